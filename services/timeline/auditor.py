"""The auditor: `python -m services.timeline.auditor [--once]`. Finds what differs in feeds, and repairs the difference.

It takes up one home timeline after the other, asks Postgres and the graph what must be in it and in the feed that is
served (audit.py), and asks again where something differs: only what differs twice counts. Nothing in flight is looked
for: neither what is younger than the settling time, nor what is younger than the oldest event that fan-out has not
handled. Run one; more do no harm.

Its reads are reads as everybody's, and would keep the lists of people alive who are gone. So the end that a list's life
had before is put back afterwards, also over that which a read of the viewer at that very moment gave it: then the
viewer's next read renews it, or at worst builds it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from redis.exceptions import RedisError

from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub
from feedmesh.post.v1 import post_pb2
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub
from feedmesh.timeline.v1 import timeline_pb2
from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceStub
from runtime import callers, client, config, errors, ids, members, migrate, postgres, process, redis, streams
from runtime.clock import Clock, wall_clock
from services.timeline import metrics, store
from services.timeline.audit import FEED, KINDS, LIST, Compared, Facts, Member, compare
from services.timeline.config import AuditorSettings
from services.timeline.epoch import Guard, UnusableError
from services.timeline.fanout import GROUP
from services.timeline.timelines import HOMES, Timeline, Timelines, author_key, home_key, user_of

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub
    from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceAsyncStub

log = logging.getLogger(__name__)

POSTS = 200
"""Posts of a feed that are compared at the least, if it has so many."""
PAGE = 100
FEED_PAGES = 5
ROWS = 1000
"""Rows of a page; and ids, and members, of one call."""
ROW_PAGES = 5
AGAIN_S = 1.0
"""When it looks again at what differed: no cache of the mesh lives that long."""
RESTS = 30
"""How many times as long as an audit took it rests: so audits take 3 % of a core at the most, of all processes."""
MAX_REST_S = 10.0
LATEST = 200
"""Feeds that the ratios are of."""
LOGGED = 20
"""Posts of each kind that are logged."""


class NotComparedError(Exception):
    """A feed cannot be compared now."""

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


@dataclass(frozen=True)
class Look:
    """A feed and its list as they were at one moment, and as they had to be."""

    timeline: Timeline
    facts: Facts
    compared: Compared


@dataclass
class Auditor:
    """Audits feeds, one at a time."""

    pool: postgres.Pool
    guard: Guard
    timelines: Timelines
    graph: GraphServiceAsyncStub
    post: PostServiceAsyncStub
    timeline: TimelineServiceAsyncStub
    settle_s: float
    clock: Clock = wall_clock
    _rests_until: float = 0.0
    _cursor: int = 0
    _waiting: deque[int] = field(default_factory=deque)
    _latest: deque[Compared] = field(default_factory=lambda: deque(maxlen=LATEST))

    def __post_init__(self) -> None:
        self._set_ratios()

    async def paced_step(self) -> bool:
        """As `step`, unless it rests: after a feed that was right, the longer the dearer that was to find out."""
        begun = time.monotonic()
        if begun < self._rests_until:
            return False
        await self.guard.look()
        more = await self.step()
        if not more and not (self._latest and self._latest[-1]):
            now = time.monotonic()
            self._rests_until = now + min(RESTS * (now - begun), MAX_REST_S)
        return more

    async def step(self) -> bool:
        """Audits the next feed; True where none was found yet, but there may be more."""
        if not self._waiting:
            self._cursor, keys = await self.timelines.scan(HOMES, self._cursor)
            self._waiting.extend(map(user_of, keys))
        if self._waiting:
            await self.audit(self._waiting.popleft())
            return False
        return self._cursor != 0

    async def audit_all(self) -> None:
        """Audits all feeds that are there."""
        while True:
            await self.guard.look()
            await self.step()
            if not self._waiting and not self._cursor:
                return

    async def audit(self, viewer_id: int) -> str:
        """Audits one feed and repairs what differs; the outcome, as the metric names it."""
        try:
            outcome = await self._audit(viewer_id)
        except NotComparedError as error:
            outcome = error.outcome
        except errors.NotFound:
            outcome = "gone"
        except (errors.Error, UnusableError, RedisError, OSError, psycopg.Error) as error:
            log.warning("a feed was not audited: %s", error, extra={"viewer_id": viewer_id})
            outcome = "failed"
        metrics.AUDIT_FEEDS.labels(outcome).inc()
        return outcome

    async def _audit(self, viewer_id: int) -> str:
        look = await self.look(viewer_id)
        compared = look.compared
        if compared:
            await asyncio.sleep(AGAIN_S)
            look = await self.look(viewer_id)
            compared = compared.confirmed(look.compared)
        self._count(compared)
        if not compared:
            return "equal"
        log.error(
            "a feed differs from what was written",
            extra={"viewer_id": viewer_id}
            | {
                f"{of}_{kind}": [entry[0] for entry in sorted(found)[:LOGGED]]
                for (of, kind), found in compared.found.items()
                if found
            },
        )
        return "repaired" if await self._repair(look, compared) else "differs"

    async def look(self, viewer_id: int) -> Look:
        """Looks at one feed and its list.

        Raises NotComparedError, NotFound (nobody), Unavailable, UnusableError, RedisError, psycopg.Error.
        """
        key = home_key(viewer_id)
        # First what waits, then what is there, then what must be: so nothing that must be can have come later.
        settled = ids.lowest_at(await self._handled_ms() - int(self.settle_s * 1000))
        # The end first: a list that ends in between is not read, and so not built, at all.
        ends_at, timeline = await self.timelines.ends_at(key), await self.timelines.read(key, renewed=False)
        if timeline is None or ends_at < 0 or timeline.epoch != self.guard.epoch or timeline.covers_nothing:
            # The next read makes it anew.
            raise NotComparedError("gone")
        try:
            posts, whole = await self._served(viewer_id)
        finally:
            await self.timelines.end_at(key, ends_at)
        facts = await self._facts(viewer_id, timeline, posts, settled)
        return Look(timeline, facts, compare(facts, timeline, posts, whole=whole))

    async def _handled_ms(self) -> int:
        """Since when events of posts may be in flight: when the first was published that fan-out did not handle yet."""
        waiting = [self.clock()]
        for key in streams.stream_keys("post"):
            for group in await streams.groups_of(self.timelines.client, key):
                if group.name == GROUP:
                    ms, sequence = group.delivered
                    entries: Any = await self.timelines.client.xrange(key, min=f"({ms}-{sequence}", count=1)
                    pending: Any = await self.timelines.client.xpending(key, GROUP)
                    first = [*(entry for entry, _ in entries), *([pending["min"]] if pending["min"] else [])]
                    waiting += [streams.entry_id(entry)[0] for entry in first]
        return min(waiting)

    async def _served(self, viewer_id: int) -> tuple[list[post_pb2.Post], bool]:
        """The beginning of a feed, and whether that is all of it."""
        posts: list[post_pb2.Post] = []
        request = timeline_pb2.GetFeedRequest(user_id=viewer_id, limit=PAGE, order=timeline_pb2.FEED_ORDER_LATEST)
        for _ in range(FEED_PAGES):
            page = await self.timeline.GetFeed(request)
            if page.degraded:
                raise NotComparedError("degraded")
            posts += page.posts
            if not page.HasField("next_cursor"):
                return posts, True
            if len(posts) >= POSTS:
                break
            request.cursor = page.next_cursor
        return posts, False

    async def _facts(self, viewer_id: int, timeline: Timeline, posts: Sequence[post_pb2.Post], settled: int) -> Facts:
        """What must be, asked of the graph and of the post service's table."""
        request = graph_pb2.BatchGetRelationsRequest()
        request.items.add(viewer_id=viewer_id)
        [relation] = (await self.graph.BatchGetRelations(request)).items
        if not relation.version:
            raise NotComparedError("gone")
        follows = dict(
            zip(
                members.unpack_ids(relation.packed_following_ids).tolist(),
                members.unpack_ids(relation.packed_follow_ids).tolist(),
                strict=True,
            )
        )
        modes = await store.modes(self.pool, list(follows))
        rows, lowest = await self._rows([viewer_id, *follows], timeline.floor)
        named = {int(post_id) for post_id, author_id, _ in timeline.rows.tolist() if author_id in follows}
        shown = {post.post_id for post in posts} | {post.shared_post.post_id for post in posts}
        others = await self._others(
            (named - {row.post_id for row in rows}) | (shown - {row.original_id for row in rows} - {0})
        )
        authors = {row.author_id for row in rows} | {row.original_author_id for row in (*rows, *others)}
        return Facts(
            viewer_id,
            follows,
            frozenset(relation.blocked_ids),
            frozenset(relation.muted_ids),
            modes.keys(),
            rows,
            lowest,
            others,
            await self._private(authors | set(timeline.rows[:, 1].tolist())),
            settled,
        )

    async def _rows(self, author_ids: Sequence[int], floor: int) -> tuple[list[post_pb2.PostRow], int]:
        """What authors wrote, newest first, down to the floor at the least; and the id down to which that is all."""
        rows: list[post_pb2.PostRow] = []
        request = post_pb2.ListPostRowsRequest(author_ids=author_ids, max_post_id=ids.MAX_ID, limit=ROWS)
        for _ in range(ROW_PAGES):
            page = (await self.post.ListPostRows(request)).rows
            rows += page
            if len(page) < ROWS:
                return rows, 0
            request.max_post_id = page[-1].post_id - 1
            if page[-1].post_id <= floor:
                break
        return rows, rows[-1].post_id

    async def _others(self, post_ids: Iterable[int]) -> list[post_pb2.PostRow]:
        """Those posts that there are or were."""
        rows: list[post_pb2.PostRow] = []
        for some in pages(sorted(post_ids), ROWS):
            rows += (await self.post.GetPostRows(post_pb2.GetPostRowsRequest(post_ids=some))).rows
        return rows

    async def _private(self, user_ids: Iterable[int]) -> dict[int, bool]:
        """Whether accounts are private, of those people that exist."""
        private: dict[int, bool] = {}
        for some in pages(sorted(user_ids), ROWS):
            answer = await self.graph.BatchGetUsers(graph_pb2.BatchGetUsersRequest(user_ids=some))
            private |= {user.user_id: user.private for user in answer.users}
        return private

    async def _repair(self, look: Look, compared: Compared) -> bool:
        """Puts into the list what is missing, takes out what never was; True where nothing else differs.

        What differs in the feed without that is no matter of single members: then the lists are dropped that it was
        made from, and the next read builds them. What must not be seen no list can help.
        """
        viewer_id = look.facts.viewer_id
        missing = newest(compared.found[LIST, "missing"])
        extra = newest(compared.found[LIST, "extra"])
        if missing or extra:
            if not await self.timelines.mend(
                home_key(viewer_id), look.timeline.incarnation, removed=extra, added=missing
            ):
                return False
            metrics.AUDIT_REPAIRS.labels("added").inc(len(missing))
            metrics.AUDIT_REPAIRS.labels("removed").inc(len(extra))
        differing = {
            post_id for kind in KINDS[FEED] if kind != "must_not_see" for (post_id,) in compared.found[FEED, kind]
        }
        unexplained = differing - {post_id for post, _, original in (*missing, *extra) for post_id in (post, original)}
        if unexplained:
            authors = {row.author_id for row in look.facts.rows if row.original_id in unexplained}
            pulled = authors.intersection(look.facts.pulled)
            dropped = await self.timelines.drop([home_key(viewer_id), *map(author_key, pulled)])
            metrics.AUDIT_REPAIRS.labels("dropped").inc(dropped)
        return not unexplained and not compared.found[FEED, "must_not_see"]

    def _count(self, compared: Compared) -> None:
        for of, entries in compared.entries.items():
            metrics.AUDIT_ENTRIES.labels(of).inc(entries)
        for what, found in compared.found.items():
            metrics.AUDIT_DIFFERENCES.labels(*what).inc(len(found))
        self._latest.append(compared)
        self._set_ratios()

    def _set_ratios(self) -> None:
        entries: Counter[str] = Counter()
        found: Counter[tuple[str, str]] = Counter()
        for each in self._latest:
            entries.update(each.entries)
            found.update({what: len(differing) for what, differing in each.found.items()})
        for of, kinds in KINDS.items():
            for kind in kinds:
                # What must not be may be all that there is.
                metrics.AUDIT_RATIO.labels(of, kind).set(found[of, kind] / max(1, entries[of]))


def newest(members: Iterable[tuple[int, ...]]) -> list[Member]:
    """The newest of some members, as many as a call takes."""
    return [(post, author, original) for post, author, original in sorted(members, reverse=True)[:ROWS]]


def pages(numbers: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    """Numbers in slices of a bounded size."""
    return (numbers[at : at + size] for at in range(0, len(numbers), size))


async def serve(settings: AuditorSettings, running: process.Process, *, once: bool) -> None:
    """Audits until the process is asked to stop, or with `once` every feed once."""
    me = callers.of(running.name, settings)
    async with (
        postgres.connect(settings) as pool,
        redis.connect(settings, timeout_s=5) as stores,
        client.connect(
            settings.graph_target, me, graph_pb2.DESCRIPTOR.services_by_name["GraphService"]
        ) as graph_channel,
        client.connect(settings.post_target, me, post_pb2.DESCRIPTOR.services_by_name["PostService"]) as post_channel,
        client.connect(
            settings.timeline_target, me, timeline_pb2.DESCRIPTOR.services_by_name["TimelineService"]
        ) as timeline_channel,
    ):
        await migrate.require(pool, "services.timeline")
        await redis.require_fit(stores)
        guard = Guard(pool, stores)
        await guard.look()
        auditor = Auditor(
            pool,
            guard,
            Timelines(stores),
            GraphServiceStub(graph_channel),
            PostServiceStub(post_channel),
            TimelineServiceStub(timeline_channel),
            settings.audit_settle_s,
        )
        if once:
            await auditor.audit_all()
            return
        await running.every(1 / settings.audit_feeds_per_s, "audit", auditor.paced_step)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m services.timeline.auditor")
    parser.add_argument("--once", action="store_true", help="audit every feed once, then end")
    once = parser.parse_args().once
    settings = config.load(AuditorSettings)
    process.run("timeline-auditor", settings, lambda running: serve(settings, running, once=once))


if __name__ == "__main__":
    main()
