"""Which authors are pulled: as a reader knows it, and how an author comes from one mode to another.

    push ──► both ──► pull      pushed and pulled for longer than any reader's knowledge of the modes lives
    pull ──► both ──► push      in between, the author's posts are merged into the lists of all followers

An author leaves push above the limit of followers, and pull below nine tenths of it, so that one who is near the limit
does not go to and fro. While in `both` nothing else is decided. Fan-out reads the mode uncached, after it has claimed
the event. So a post whose event was handled in mode pull is found by every reader: by pulling, or in the list.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import psycopg

from feedmesh.graph.v1 import graph_pb2
from runtime import members, postgres
from services.timeline import metrics, store
from services.timeline.authors import newest
from services.timeline.epoch import UnusableError
from services.timeline.timelines import Timelines, bucket, home_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

log = logging.getLogger(__name__)

FRESH_S = 0.25
"""How old a reader's knowledge of the modes is at the most when a read begins."""
LOOK_S = 0.5
"""How long a read waits for the modes before it goes without the lists."""
STALE_S = 1.0
"""How old it may be when the lists have been read; older, and the read begins again."""
BOTH_S = 2.0
"""How long an author is both pushed and pulled before they are only pulled: longer than STALE_S by far."""
RETURN = 0.9
"""The part of the limit below which an author is pushed again."""
WAYS = 16
LEASE_S = 5.0
FOLLOWERS_PAGE = 5_000


class Pulled(NamedTuple):
    """Who is to be pulled, as of a moment."""

    author_ids: npt.NDArray[np.int64]
    """Shape (n,), rising."""
    as_of: float
    """Seconds of `time.monotonic()`."""

    def among(self, author_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of some authors are pulled: shape as given."""
        at = np.searchsorted(self.author_ids, author_ids)
        at[at == len(self.author_ids)] = 0
        return self.author_ids[at] == author_ids if len(self.author_ids) else np.zeros(author_ids.shape, dtype=bool)

    def is_stale(self) -> bool:
        """Whether so much time has passed that an author could have gone all the way from push to pull."""
        return time.monotonic() - self.as_of > STALE_S


class Modes:
    """The modes as readers of this process know them: all in memory, looked at four times a second during reads."""

    def __init__(self, pool: postgres.Pool) -> None:
        self.pool = pool
        self._version = -1
        self._known = Pulled(np.empty(0, dtype=np.int64), float("-inf"))
        self._failed = float("-inf")
        self._lock = asyncio.Lock()

    async def pulled(self) -> Pulled:
        """Who is pulled, as of at most a quarter of a second ago. Raises UnusableError."""
        if time.monotonic() - self._known.as_of > FRESH_S:
            async with self._lock:
                if time.monotonic() - self._known.as_of > FRESH_S:
                    await self._look_in_time()
        return self._known

    async def _look_in_time(self) -> None:
        # Readers that waited for one who failed do not try again one after the other.
        if time.monotonic() - self._failed < FRESH_S:
            raise UnusableError("the modes of authors cannot be read")
        try:
            async with asyncio.timeout(LOOK_S):
                await self._look()
        except (psycopg.Error, TimeoutError) as error:
            self._failed = time.monotonic()
            raise UnusableError(f"the modes of authors cannot be read: {error!r}") from None

    async def _look(self) -> None:
        as_of = time.monotonic()
        self._version, author_ids = await store.pulled(self.pool, self._version)
        known = self._known.author_ids if author_ids is None else np.sort(np.array(author_ids, dtype=np.int64))
        self._known = Pulled(known, as_of)


@dataclass(frozen=True)
class Transitions:
    """Takes authors from mode to mode. Any number of workers may, at once."""

    pool: postgres.Pool
    timelines: Timelines
    graph: GraphServiceAsyncStub
    post: PostServiceAsyncStub
    default_limit: int
    """FEEDMESH_PUSH_MAX_FOLLOWERS."""

    async def followers(self, author_ids: Sequence[int]) -> dict[int, int]:
        """How many followers authors (at most 1,000) have. Raises Unavailable."""
        answer = await self.graph.BatchGetFollowerCounts(graph_pb2.BatchGetFollowerCountsRequest(user_ids=author_ids))
        return dict(zip(author_ids, answer.followers, strict=True))

    async def modes(self, author_ids: Sequence[int]) -> tuple[dict[int, str], int]:
        """The modes of those authors that are not in mode push, and the limit of followers, as of now."""
        modes, at_run_time = await store.modes_and_limit(self.pool, author_ids)
        return modes, self.default_limit if at_run_time is None else at_run_time

    async def look_at(self, author_ids: Sequence[int]) -> None:
        """Looks whether authors (at most 1,000) are to leave their mode. Raises psycopg.Error, Unavailable."""
        followers = await self.followers(author_ids)
        await self.consider(followers, *await self.modes(author_ids))

    async def consider(self, followers: Mapping[int, int], modes: Mapping[int, str], limit: int) -> None:
        """Takes those authors out of their mode who have too many or too few followers for it. Raises psycopg.Error.

        Whoever is in another mode by now stays in it.
        """
        for author_id, count in followers.items():
            mode = modes.get(author_id, "push")
            if mode == "push" and count > limit:
                await self._change("pull", author_id, store.leave_push)
            elif mode == "pull" and count < limit * RETURN:
                await self._change("push", author_id, store.leave_pull)

    async def _change(
        self, target: str, author_id: int, leave: Callable[[postgres.Connection, int], Awaitable[bool]]
    ) -> None:
        if await postgres.transact(self.pool, lambda connection: leave(connection, author_id)):
            log.info("an author is on the way to %s", target, extra={"author_id": author_id})
            metrics.MODE_CHANGES.labels(f"to_{target}").inc()

    async def reconcile(self) -> bool:
        """Looks at all authors again where the limit has changed. Always False."""
        at_run_time, reconciled = await store.limit(self.pool)
        limit = self.default_limit if at_run_time is None else at_run_time
        if limit == reconciled:
            return False
        pulled = await store.all_pulled(self.pool)
        for at in range(0, len(pulled), 1000):
            await self.look_at(pulled[at : at + 1000])
        after = 0
        while True:
            page = await self.graph.ListFollowerCounts(
                graph_pb2.ListFollowerCountsRequest(after_user_id=after, min_followers=max(limit, 0) + 1, limit=1000)
            )
            if page.user_ids:
                await self.look_at(page.user_ids)
                after = page.user_ids[-1]
            if len(page.user_ids) < 1000:
                break
        await store.set_reconciled(self.pool, limit)
        log.info("all authors were looked at with a new limit", extra={"max_followers": limit})
        return False

    async def advance(self) -> bool:
        """Takes authors who are on their way a step further. True when there may be more."""
        ways = await store.on_the_way(self.pool, BOTH_S, WAYS)
        for way in ways:
            if way.target == "pull":
                await postgres.transact(self.pool, lambda c, way=way: store.arrive_at_pull(c, way))  # type: ignore[misc]
            elif await store.lease(self.pool, way, LEASE_S, renewed=False):
                await self._merge(way)
                await postgres.transact(self.pool, lambda c, way=way: store.arrive_at_push(c, way))  # type: ignore[misc]
        if ways:
            # The limit or their followers may have changed while they were on the way.
            await self.look_at([way.author_id for way in ways])
        return len(ways) == WAYS

    async def _merge(self, way: store.Way) -> None:
        """Merges an author's posts into the lists of all followers, above each one's floor."""
        rows, down_to = self.timelines.cut(await newest(self.post, [way.author_id], limit=self.timelines.cap + 1))
        before, leased = 0, time.monotonic()
        while True:
            answer = await self.graph.BatchListFollowerIds(
                graph_pb2.BatchListFollowerIdsRequest(
                    items=[
                        graph_pb2.BatchListFollowerIdsRequest.Item(
                            user_id=way.author_id, before_follow_id=before, limit=FOLLOWERS_PAGE
                        )
                    ]
                )
            )
            by_bucket: dict[int, list[str]] = {}
            for follower_id in members.unpack_ids(answer.items[0].packed_follower_ids).tolist():
                by_bucket.setdefault(bucket(follower_id), []).append(home_key(follower_id))
            for keys in by_bucket.values():
                await self.timelines.merge(keys, rows, down_to)
                if time.monotonic() - leased > LEASE_S / 4:
                    leased = time.monotonic()
                    await store.lease(self.pool, way, LEASE_S, renewed=True)
            before = answer.items[0].next_follow_id
            if not before:
                return
