"""The skeletons of windows: which posts could be in them, and where plain shares put them. For many viewers at once.

Candidates come from the viewer's home timeline, from the timelines of pulled authors, from Postgres for the viewer's
own posts, and below the floor of any of these lists from Postgres alone: the same rows by another way, without a seam.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache
from redis.exceptions import RedisError

from feedmesh.post.v1 import post_pb2
from runtime import errors, ids, members
from runtime.members import Members
from runtime.relations import Ids, Relation
from services.timeline import metrics
from services.timeline.authors import OWN, Authors, Question, newest, newest_of
from services.timeline.epoch import Guard, UnusableError
from services.timeline.modes import Modes, Pulled
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
SEEN_VIEWERS = 20_000
"""Viewers of whom is kept what was made of their home timeline: 15 KB each."""
ATTEMPTS = 3
HELD_AT_HOME = metrics.HELD_ROWS.labels("home")

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Viewer:
    """Who reads, and their relations to others."""

    user_id: int
    relation: Relation
    kept: bool = False
    """Whether the relation is of before the graph was gone."""

    @cached_property
    def author_ids(self) -> Ids:
        """Whose posts they read, their own among them. Shape (n + 1,)."""
        return np.append(self.relation.followees, self.user_id)


class Window(NamedTuple):
    """The window of a first page, that is what follows from what Redis holds and from what the viewer wrote alone."""

    own: Members
    """What the viewer wrote last: these very rows."""
    size: int
    """Posts in a window."""
    place: Scroll
    entries: Members
    """As of `begin`."""
    packed: bytes
    """The entries, as ranking takes them."""


@dataclass(eq=False)
class Held:
    """What Redis holds for a viewer; or as much of it as a first page needs."""

    rows: Members
    """Shape (n, 3), newest first, each post once, of those whom the viewer reads."""
    floor: int
    """All above it is among the rows, but for the authors that are to be asked for."""
    asked: list[int]
    """Authors whose posts are not among the rows: the viewer, and pulled ones beyond the bound."""
    whole: bool
    """Whether Redis holds no more."""
    first: Window | None = None
    """The window of the first page that was made of it last."""


class Seen(NamedTuple):
    """What was made of a viewer's home timeline. It holds for as long as these very objects are what there is."""

    timeline: Timeline
    newest: int | None
    """How many members of it were read at the most."""
    relation: Relation
    held: Held


@dataclass(frozen=True)
class Sources:
    """Where candidates come from."""

    post: PostServiceAsyncStub
    guard: Guard
    timelines: Timelines
    authors: Authors
    modes: Modes
    seen: LRUCache[int, Seen] = field(default_factory=lambda: LRUCache(SEEN_VIEWERS))
    """By viewer."""


Lost = UnusableError | RedisError | OSError
"""Why Redis cannot be used."""


class Read(NamedTuple):
    """What was read of home timelines. What of it a viewer can use, their relations tell."""

    epoch: int
    pulled: Pulled
    homes: Mapping[int, Timeline | None]
    """By viewer."""
    newest: Mapping[int, int | None]
    """How many of each viewer's were read at the most; None for all."""
    known: Mapping[int, Seen]
    """What was made of those lists that are as they were."""


async def read_homes(sources: Sources, newest: Mapping[int, int | None]) -> Read | Lost:
    """Reads the home timelines of viewers: as many of the newest members as is said, or all. Gives what goes wrong."""
    try:
        epoch = sources.guard.epoch
        # First who is pulled, then the lists: who came from pull to push in between has their posts in the list.
        pulled = await sources.modes.pulled()
        seen = {
            user_id: each
            for user_id, most in newest.items()
            if (each := sources.seen.get(user_id)) is not None and each.newest == most
        }
        homes = await sources.timelines.read_all(
            {home_key(user_id): most for user_id, most in newest.items()},
            known={home_key(user_id): each.timeline for user_id, each in seen.items()},
        )
    except (UnusableError, RedisError, OSError) as error:
        return error
    by_viewer = dict(zip(newest, homes, strict=True))
    known = {user_id: each for user_id, each in seen.items() if by_viewer[user_id] is each.timeline}
    return Read(epoch, pulled, by_viewer, newest, known)


async def hold(sources: Sources, viewers: Sequence[Viewer], read: Read | Lost) -> list[Held | Lost | errors.Error]:
    """What Redis holds for each viewer, or why there is nothing. `read` is what was read of their home timelines.

    Home timelines are built, completed or made anew where that is needed.
    """
    if not isinstance(read, Read):
        return [read for _ in viewers]
    try:
        pulled_ids = [pulled_by(read.pulled, viewer) for viewer in viewers]
        authors = await sources.authors.read({each for some in pulled_ids if some for each in some}, read.epoch)
    except (RedisError, OSError, errors.Error) as error:
        return [error for _ in viewers]
    ready = not read.pulled.is_stale()
    held: list[Held | Lost | errors.Error | None] = [None for _ in viewers]
    for at, (viewer, some) in enumerate(zip(viewers, pulled_ids, strict=True)):
        timeline, known = read.homes[viewer.user_id], read.known.get(viewer.user_id)
        if not ready or timeline is None or timeline.epoch != read.epoch:
            continue
        if known is not None and known.relation is viewer.relation and not some and some is not None:
            held[at] = known.held
        elif is_complete(viewer.relation, timeline, read.epoch):
            followed = among(viewer.relation.following, timeline.rows[:, 1])
            if not is_mostly_others(followed):
                # Of its own, not a part of the array of all that were read together, which it would keep.
                own = timeline if known is not None else replace(timeline, rows=timeline.rows.copy())
                newest = read.newest[viewer.user_id]
                made = held[at] = held_by(viewer, own, followed, some, authors, newest)
                if some == [] and newest is not None:
                    sources.seen[viewer.user_id] = Seen(own, newest, viewer.relation, made)
    slow = [at for at, each in enumerate(held) if each is None]
    if slow:
        # Each for itself: what keeps one is nothing to the others.
        for at, each in zip(slow, await asyncio.gather(*(hold_one(sources, viewers[at]) for at in slow)), strict=True):
            held[at] = each
    HELD_AT_HOME.inc(sum(len(each.rows) for each in held if isinstance(each, Held)))
    return [each for each in held if each is not None]


def pulled_by(pulled: Pulled, viewer: Viewer) -> list[int] | None:
    """The pulled authors whom a viewer reads; None where they are too many, and are read from Postgres."""
    if not len(pulled.author_ids):
        return []
    followees = viewer.relation.followees
    found: list[int] = followees[pulled.among(followees)].tolist()
    return found if len(found) <= MAX_PULLED else None


def held_by(
    viewer: Viewer,
    timeline: Timeline,
    followed: Flags,
    pulled_ids: list[int] | None,
    authors: Mapping[int, Timeline],
    newest: int | None = None,
) -> Held:
    """What a complete home timeline and those of pulled authors hold for a viewer.

    `followed` tells which of the home timeline's rows are of whom the viewer follows.
    """
    relation = viewer.relation
    read = followed if not len(relation.muted) else among(relation.followees, timeline.rows[:, 1])
    rows = timeline.rows if read.all() else timeline.rows[read]
    asked, floor, whole = [viewer.user_id], timeline.covered_above, timeline.whole
    if pulled_ids is None:
        pulled_ids = []
        asked += relation.followees.tolist()
    if pulled_ids:
        lists = [authors[author_id] for author_id in pulled_ids]
        floor = max(floor, *(each.floor for each in lists))
        above = [each[each[:, 0] > floor] for each in (rows, *(each.rows for each in lists))]
        if newest is not None and any(len(each) > newest for each in above):
            # As if each had been read no further: the rest is for later pages.
            floor = max(floor, *(int(each[newest, 0]) for each in above if len(each) > newest))
            above, whole = [each[each[:, 0] > floor] for each in above], False
        metrics.HELD_ROWS.labels("authors").inc(sum(len(each) for each in above[1:]))
        rows = newest_first(np.concatenate(above))
    return Held(rows, floor, asked, whole)


def is_complete(relation: Relation, timeline: Timeline, epoch: int) -> bool:
    """Whether a list holds all whom its viewer follows."""
    return timeline.epoch == epoch and not timeline.covers_nothing and relation.latest_follow <= timeline.horizon


def is_mostly_others(followed: Flags) -> bool:
    """Whether most of a list is of people whom its viewer does not follow any more."""
    return len(followed) >= MOSTLY and 2 * int(np.count_nonzero(followed)) < len(followed)


async def hold_one(sources: Sources, viewer: Viewer) -> Held | Lost | errors.Error:
    """What Redis holds for a viewer whose lists may have to be made first."""
    try:
        epoch = sources.guard.epoch
        for _ in range(ATTEMPTS):
            pulled = await sources.modes.pulled()
            timeline = await home(sources, viewer, epoch)
            pulled_ids = pulled_by(pulled, viewer)
            authors = await sources.authors.read(set(pulled_ids or ()), epoch)
            if not pulled.is_stale():
                followed = among(viewer.relation.following, timeline.rows[:, 1])
                return held_by(viewer, timeline, followed, pulled_ids, authors)
        return UnusableError("the lists were read too slowly")
    except (UnusableError, RedisError, OSError, errors.Error) as error:
        return error


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
            followed = among(relation.following, timeline.rows[:, 1])
            if len(new) <= MAX_MERGED and not is_mostly_others(followed):
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
    horizon = relation.latest_follow
    filled = await timelines.fill(key, made.incarnation, rows, floor, horizon)
    metrics.TIMELINE_BUILDS.labels("built" if filled else "lost").inc()
    return replace(made, rows=rows, floor=floor, horizon=horizon)


async def completed(sources: Sources, relation: Relation, key: str, timeline: Timeline, new: Ids) -> Timeline:
    """Merges the posts of those who are followed since the list's horizon, above its floor."""
    timelines = sources.timelines
    rows, down_to = timelines.cut(await newest(sources.post, new, low=timeline.floor + 1, limit=timelines.cap + 1))
    horizon = relation.latest_follow
    # Where the list is gone or was made anew meanwhile, this read has what it needs all the same.
    await timelines.merge([key], rows, down_to, incarnation=timeline.incarnation, horizon=horizon)
    metrics.TIMELINE_BUILDS.labels("merged").inc()
    floor = max(timeline.floor, down_to)
    both = newest_first(np.concatenate([timeline.rows, rows]))
    return replace(timeline, rows=both[both[:, 0] > floor], floor=floor, horizon=horizon)


def in_range(held: Held, low: int, high: int, limit: int) -> Members:
    """The newest `limit` rows that are held with ids from low to high."""
    rows = held.rows
    if high < ids.MAX_ID:
        rows = rows[rows[:, 0] <= high]
    if low > held.floor + 1:
        rows = rows[rows[:, 0] >= low]
    return rows[:limit]


class Place(NamedTuple):
    """Where candidates are looked for."""

    viewer: Viewer
    held: Held | None
    own: Members | None
    """The viewer's own newest posts, at most OWN of them, if they were read."""
    low: int
    """The lowest id."""
    high: int
    """The highest id."""


async def candidates(post: PostServiceAsyncStub, places: Sequence[Place], limit: int) -> tuple[list[Members], set[int]]:
    """For each place the newest `limit` posts: shape (n, 3). And the numbers of those for which Postgres was asked.

    Of what is held, and of Postgres below it, unless that is only the beginning of what Redis holds.
    Raises Unavailable.
    """
    found = [EMPTY for _ in places]
    asked: list[tuple[int, Question]] = []
    for at, (_, held, own, low, high) in enumerate(places):
        if held is not None and held.floor < high:
            found[at] = rows = in_range(held, low, high, limit)
            # What is older than the last of a full window is none of it.
            above = int(rows[-1, 0]) if len(rows) == limit else max(held.floor + 1, low)
            if own is None or len(held.asked) > 1 or (len(own) == OWN and own[-1, 0] > above):
                asked.append((at, (held.asked, above, high, limit)))
            elif len(own := own[(own[:, 0] >= above) & (own[:, 0] <= high)]):
                found[at] = newest_first(np.concatenate([rows, own]))[:limit]
    for (at, _), rows in zip(asked, await newest_of(post, [question for _, question in asked]), strict=True):
        if len(rows):
            found[at] = newest_first(np.concatenate([found[at], rows]))[:limit]
    below: list[tuple[int, Question]] = []
    for at, (viewer, held, _, low, high) in enumerate(places):
        left = high if held is None else min(high, held.floor)
        if len(found[at]) < limit and low <= left and left > 0 and (held is None or held.whole):
            below.append((at, (viewer.author_ids, low, left, limit - len(found[at]))))
    rest = await asyncio.gather(*(newest_of(post, [question]) for _, question in below))
    for (at, _), [rows] in zip(below, rest, strict=True):
        metrics.HELD_ROWS.labels("postgres").inc(len(rows))
        found[at] = np.concatenate([found[at], rows])
    return found, {at for at, _ in (*asked, *below)}


def begin(place: Scroll, found: Members, size: int) -> tuple[Scroll, Members]:
    """A window of at most `size` posts, of candidates one more than that: its place with its ends known, its entries.

    An entry is a post at its place, shape (n, 3), newest first: the id that gives the place (the post's own, or its
    newest plain share's in the window), who wrote or shared it, the post that is shown.
    """
    # One more than a window tells whether anything is below it.
    cut_off = len(found) > size
    found = found[:size]
    if place.bound == ids.MAX_ID:
        # The first page: what is newest now bounds the whole scroll.
        newest_id = int(found[0, 0]) if len(found) else 0
        place = Scroll(newest_id, newest_id, int(found[-1, 0]) if cut_off else 0)
    else:
        # What a follow in between pages added may overfill a window that was cut before; then it ends sooner.
        place = place._replace(low=int(found[-1, 0]) if cut_off else place.low or 0)
    post_ids = np.sort(found[:, 2])
    if (post_ids[1:] == post_ids[:-1]).any():
        _, first = np.unique(found[:, 2], return_index=True)
        first.sort()
        found = found[first]
    return place, found


def among(rising: Ids, values: Ids) -> Flags:
    """Which of some values are among rising ids: shape as given."""
    if not len(rising):
        return np.zeros(values.shape, dtype=bool)
    # What is above all has its place behind the last one, which it is not.
    found: Flags = rising.take(rising.searchsorted(values), mode="clip") == values
    return found


def newest_first(rows: Members) -> Members:
    """Rows by falling post id, each post once."""
    rows = rows.take(np.argsort(rows[:, 0])[::-1], axis=0)
    again = rows[1:, 0] == rows[:-1, 0]
    return rows[np.append(True, ~again)] if again.any() else rows


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
