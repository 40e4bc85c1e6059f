"""What authors wrote: from Postgres through the post service, and from author timelines, kept for a quarter second.

A celebrity is no hot key: however many read, each replica reads their timeline four times a second. What viewers wrote
themselves is kept until the post service says, with the page that it is needed for, that it changed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache, TTLCache

from feedmesh.post.v1 import post_pb2
from runtime import ids, members
from runtime.members import Members
from services.timeline import metrics
from services.timeline.timelines import Timeline, Timelines, author_key

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

CACHE_S = 0.25
CACHED_AUTHORS = 2_000
"""20 KB each."""
BUILDS = 8
"""Author timelines that one read builds at once."""
OWN = 20
"""Of their own posts that are known of a viewer before it is known how far a first page's window goes."""
OWN_S = 300.0
"""After how long that is read anew though nobody said that it changed: whatever goes wrong heals by then."""
CACHED_VIEWERS = 50_000
"""0.8 KB each."""


Question = tuple[Sequence[int] | npt.NDArray[np.int64], int, int, int]
"""Authors, lowest id, highest id, and how many posts at the most."""


async def newest(
    post: PostServiceAsyncStub,
    author_ids: Sequence[int] | npt.NDArray[np.int64],
    *,
    limit: int,
    low: int = 0,
    high: int = ids.MAX_ID,
) -> Members:
    """The newest posts of authors (at most 10,000) with ids from low to high, newest first, at most `limit` (1,000).

    Raises Unavailable.
    """
    [rows] = await newest_of(post, [(author_ids, low, high, limit)])
    return rows


async def newest_of(post: PostServiceAsyncStub, questions: Sequence[Question]) -> list[Members]:
    """The answers to at most 64 questions, as `newest`. Raises Unavailable."""
    if not questions:
        return []
    request = post_pb2.BatchListNewestRequest()
    for author_ids, low, high, limit in questions:
        request.items.add(author_ids=author_ids, min_post_id=low, max_post_id=high, limit=limit)
    return members.unpack_each([item.members for item in (await post.BatchListNewest(request)).items])


@dataclass(eq=False)
class Written:
    """What a viewer wrote last."""

    rows: Members
    """Their newest posts, newest first; at most OWN."""
    as_of: int
    """All before this is known: see BatchGetPostsRequest."""
    read_s: float
    """Before it was read, in seconds of `time.monotonic()`."""


class Own:
    """What viewers wrote last, as far as this process knows: whoever goes by it has it confirmed."""

    def __init__(self, post: PostServiceAsyncStub) -> None:
        self._post = post
        self._known: LRUCache[int, Written] = LRUCache(CACHED_VIEWERS)

    def get(self, viewer_id: int) -> Written | None:
        """What is known of a viewer."""
        found = self._known.get(viewer_id)
        return found if found is not None and time.monotonic() - found.read_s < OWN_S else None

    def forget(self, viewer_id: int) -> None:
        """Lets what a viewer wrote be read anew."""
        self._known.pop(viewer_id, None)

    async def read(self, viewer_ids: Sequence[int]) -> list[Written]:
        """What viewers (at most 64) wrote, as of now. Raises Unavailable."""
        if not viewer_ids:
            return []
        request = post_pb2.BatchListNewestRequest()
        for viewer_id in viewer_ids:
            request.items.add(author_ids=[viewer_id], max_post_id=ids.MAX_ID, limit=OWN)
        read_s = time.monotonic()
        answer = await self._post.BatchListNewest(request)
        rows = members.unpack_each([item.members for item in answer.items])
        found = [Written(its, answer.as_of, read_s) for its in rows]
        for viewer_id, written in zip(viewer_ids, found, strict=True):
            self._known[viewer_id] = written
        metrics.OWN.labels("read").inc(len(found))
        return found


class Authors:
    """Author timelines, read and where there is none built."""

    def __init__(self, timelines: Timelines, post: PostServiceAsyncStub) -> None:
        self._timelines = timelines
        self._post = post
        self._known: TTLCache[tuple[int, int], Timeline] = TTLCache(CACHED_AUTHORS, CACHE_S)
        self._builds = asyncio.Semaphore(BUILDS)

    async def read(self, author_ids: Collection[int], epoch: int) -> dict[int, Timeline]:
        """The timelines of authors, as of at most a quarter of a second ago. Raises RedisError, Unavailable."""
        if not author_ids:
            return {}
        known = {author_id: self._known.get((epoch, author_id)) for author_id in author_ids}
        lacking = [author_id for author_id, timeline in known.items() if timeline is None]
        stored = await self._timelines.read_all(dict.fromkeys(map(author_key, lacking)))
        fresh = await asyncio.gather(
            *(self._whole(author_id, epoch, timeline) for author_id, timeline in zip(lacking, stored, strict=True))
        )
        for author_id, timeline in zip(lacking, fresh, strict=True):
            known[author_id] = self._known[epoch, author_id] = timeline
        return {author_id: timeline for author_id, timeline in known.items() if timeline is not None}

    async def _whole(self, author_id: int, epoch: int, timeline: Timeline | None) -> Timeline:
        """A timeline that can be read: as it is stored, or built."""
        if timeline is not None and timeline.epoch == epoch and not timeline.covers_nothing:
            return timeline
        async with self._builds:
            key = author_key(author_id)
            # First the list, then Postgres: what is written in between is pushed.
            made = await self._timelines.create(key, epoch)
            rows, floor = self._timelines.cut(await newest(self._post, [author_id], limit=self._timelines.cap + 1))
            if made.covers_nothing and made.epoch == epoch:
                await self._timelines.fill(key, made.incarnation, rows, floor, horizon=0)
            return Timeline(rows, floor, epoch, 0, made.incarnation)
