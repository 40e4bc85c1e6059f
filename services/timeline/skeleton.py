"""The skeleton of a window: which posts could be in it, and where plain shares put them.

Candidates come from the viewer's home timeline, from the timelines of pulled authors, from Postgres for the viewer's
own posts, and below the floor of any of these lists from Postgres alone: the same rows by another way, without a seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from feedmesh.post.v1 import post_pb2
from runtime import ids, members
from runtime.members import Members
from runtime.relations import Ids, Relation
from services.timeline import metrics
from services.timeline.authors import Authors, newest
from services.timeline.epoch import Guard, UnusableError
from services.timeline.modes import Modes
from services.timeline.scroll import Scroll
from services.timeline.timelines import EMPTY, Timeline, Timelines, home_key

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

WINDOW = 200
"""Posts in a window, and so candidates of a ranking."""
MAX_PULLED = 200
"""Author timelines that one read takes from Redis; who follows more pulled authors has them read from Postgres."""
MAX_MERGED = 200
"""New followees whose posts a read merges into the list; of more, the list is made anew."""
MOSTLY = 100
"""Members of a list from which on it is made anew when less than half of them are of whom the viewer follows."""
ATTEMPTS = 3


class Entry(NamedTuple):
    """One entry of a feed: a post at its place."""

    position: int
    """The id that gives the place: the post's own, or its newest plain share's in the window."""
    author_id: int
    """Who wrote the post, or plainly shared it."""
    post_id: int
    """The post that is shown."""


@dataclass(frozen=True)
class Viewer:
    """Who reads, and their relations to others."""

    user_id: int
    relation: Relation
    kept: bool = False
    """Whether the relation is of before the graph was gone."""

    @cached_property
    def followees(self) -> Ids:
        """Whose posts they read besides their own: those whom they follow and do not mute. Shape (n,), rising."""
        return np.setdiff1d(self.relation.following, self.relation.muted, assume_unique=True)

    @cached_property
    def author_ids(self) -> Ids:
        """Whose posts they read, their own among them. Shape (n + 1,)."""
        return np.append(self.followees, self.user_id)


class Held(NamedTuple):
    """What Redis holds for a viewer: everything above the floor, but for the authors that are to be asked for."""

    rows: Members
    """Shape (n, 3), newest first, each post once, of those whom the viewer reads."""
    floor: int
    asked: list[int]
    """Authors whose posts are not among the rows: the viewer, and pulled ones beyond the bound."""


@dataclass(frozen=True)
class Sources:
    """Where candidates come from."""

    post: PostServiceAsyncStub
    guard: Guard
    timelines: Timelines
    authors: Authors
    modes: Modes


async def hold(sources: Sources, viewer: Viewer) -> Held:
    """What Redis holds for a viewer; their home timeline is built, completed or made anew where that is needed.

    Raises UnusableError, RedisError, Unavailable.
    """
    epoch = sources.guard.epoch
    for _ in range(ATTEMPTS):
        # First who is pulled, then the lists: who came from pull to push in between has their posts in the list.
        pulled = await sources.modes.pulled()
        timeline = await home(sources, viewer, epoch)
        pulled_ids = viewer.followees[pulled.among(viewer.followees)].tolist()
        many = len(pulled_ids) > MAX_PULLED
        lists = [timeline, *(await sources.authors.read([] if many else pulled_ids, epoch))]
        if not pulled.is_stale():
            rows = np.concatenate([each.rows for each in lists])
            floor = max(each.floor for each in lists)
            rows = newest_first(rows[(rows[:, 0] > floor) & np.isin(rows[:, 1], viewer.followees)])
            metrics.HELD_ROWS.labels("home").inc(len(timeline.rows))
            metrics.HELD_ROWS.labels("authors").inc(sum(len(each.rows) for each in lists[1:]))
            return Held(rows, floor, [viewer.user_id, *(pulled_ids if many else [])])
    raise UnusableError("the lists were read too slowly")


async def home(sources: Sources, viewer: Viewer, epoch: int) -> Timeline:
    """The viewer's home timeline with all whom they follow in it."""
    timelines, key = sources.timelines, home_key(viewer.user_id)
    relation = viewer.relation
    for _ in range(ATTEMPTS):
        timeline = await timelines.read(key)
        if timeline is None or timeline.epoch < epoch or timeline.covers_nothing:
            made = await timelines.create(key, epoch)
        elif timeline.epoch > epoch:
            raise UnusableError("this process does not know the latest epoch yet")
        else:
            new = relation.following[relation.follow_ids > timeline.horizon]
            kept = np.count_nonzero(np.isin(timeline.rows[:, 1], relation.following))
            if len(new) <= MAX_MERGED and (len(timeline.rows) < MOSTLY or 2 * kept >= len(timeline.rows)):
                return await completed(sources, relation, key, timeline, new) if len(new) else timeline
            made = await timelines.create(key, epoch, replaced=timeline.incarnation)
        if made.epoch == epoch and made.covers_nothing:
            return await built(sources, relation, key, made)
        # Somebody else was faster.
    raise UnusableError("the list is made anew again and again")


async def built(sources: Sources, relation: Relation, key: str, made: Timeline) -> Timeline:
    """Builds a list that covers nothing: pushes arrive in it already, so what is read now leaves nothing out."""
    timelines = sources.timelines
    rows, floor = timelines.cut(await newest(sources.post, relation.following, limit=timelines.cap + 1))
    horizon = int(relation.follow_ids.max(initial=0))
    filled = await timelines.fill(key, made.incarnation, rows, floor, horizon)
    metrics.TIMELINE_BUILDS.labels("built" if filled else "lost").inc()
    return replace(made, rows=rows, floor=floor, horizon=horizon)


async def completed(sources: Sources, relation: Relation, key: str, timeline: Timeline, new: Ids) -> Timeline:
    """Merges the posts of those who are followed since the list's horizon, above its floor."""
    timelines = sources.timelines
    rows, down_to = timelines.cut(await newest(sources.post, new, low=timeline.floor + 1, limit=timelines.cap + 1))
    horizon = int(relation.follow_ids.max(initial=0))
    # Where the list is gone or was made anew meanwhile, this read has what it needs all the same.
    await timelines.merge([key], rows, down_to, incarnation=timeline.incarnation, horizon=horizon)
    metrics.TIMELINE_BUILDS.labels("merged").inc()
    return replace(
        timeline,
        rows=np.concatenate([timeline.rows, rows]),
        floor=max(timeline.floor, down_to),
        horizon=horizon,
    )


async def window(
    post: PostServiceAsyncStub, viewer: Viewer, held: Held | None, scroll: Scroll, size: int
) -> tuple[Scroll, list[Entry]]:
    """Reads a window of at most `size` posts: its entries, newest first. Without `held` all of it from Postgres.

    Returns the place with the window's ends now known, too. Raises Unavailable.
    """
    # One more than a window tells whether anything is below it.
    found = await candidates(post, viewer, held, scroll.low or 0, scroll.high, size + 1)
    cut_off = len(found) > size
    found = found[:size]
    if scroll.bound == ids.MAX_ID:
        # The first page: what is newest now bounds the whole scroll.
        newest_id = int(found[0, 0]) if len(found) else 0
        scroll = replace(scroll, bound=newest_id, high=newest_id)
    # What a follow in between pages added may overfill a window that was cut before; then it ends sooner.
    scroll = replace(scroll, low=int(found[-1, 0]) if cut_off else scroll.low or 0)
    entries: dict[int, Entry] = {}
    for position, author_id, post_id in found.tolist():
        entries.setdefault(post_id, Entry(position, author_id, post_id))
    if scroll.forgot:
        for share_id, _, post_id in (await list_sharers(post, viewer, scroll.bound, list(entries))).tolist():
            if share_id > scroll.high:
                entries.pop(post_id, None)
    return scroll, list(entries.values())


async def candidates(
    post: PostServiceAsyncStub, viewer: Viewer, held: Held | None, low: int, high: int, limit: int
) -> Members:
    """The newest `limit` posts for a viewer with ids from low to high, newest first: shape (n, 3)."""
    found = EMPTY
    if held is not None and held.floor < high:
        above = max(held.floor + 1, low)
        rows = held.rows[(held.rows[:, 0] >= above) & (held.rows[:, 0] <= high)][:limit]
        asked = await newest(post, held.asked, low=above, high=high, limit=limit)
        found = newest_first(np.concatenate([rows, asked]))[:limit]
        high = held.floor
    if len(found) < limit and low <= high and high > 0:
        rest = await newest(post, viewer.author_ids, low=low, high=high, limit=limit - len(found))
        metrics.HELD_ROWS.labels("postgres").inc(len(rest))
        found = np.concatenate([found, rest])
    return found


def newest_first(rows: Members) -> Members:
    """Rows by falling post id, each post once."""
    _, first = np.unique(rows[:, 0], return_index=True)
    return rows[first[::-1]]


async def list_sharers(
    post: PostServiceAsyncStub, viewer: Viewer, bound: int, post_ids: Sequence[int]
) -> members.Members:
    """The plain shares of posts by those whom the viewer reads, newest first, with ids up to `bound`.

    At most 20 of each post. Raises Unavailable.
    """
    item = post_pb2.BatchListSharersRequest.Item(
        viewer_id=viewer.user_id,
        original_ids=post_ids,
        sharer_ids=viewer.author_ids,
        max_post_id=bound,
    )
    answer = await post.BatchListSharers(post_pb2.BatchListSharersRequest(items=[item]))
    return members.unpack(answer.items[0].members)
