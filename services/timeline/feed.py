"""Home feeds, stage by stage: skeleton → filter → rank → hydrate, again until the pages are full.

Many pages are made together: each stage asks once for all of them. A page that filters or deletions thinned is filled
again from the rest of its window, then from the next one. Posts pass through as bytes (runtime/wire.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from feedmesh.post.v1 import post_pb2
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from runtime import client, errors, members, validation, wire
from runtime.members import Members
from runtime.paging import Cursors, most_posts
from runtime.relations import Relation, Relations
from services.timeline import metrics, scroll
from services.timeline.authors import Own, Written
from services.timeline.scroll import Scroll
from services.timeline.skeleton import (
    WINDOW,
    Held,
    Lost,
    Place,
    Read,
    Sources,
    Viewer,
    Window,
    begin,
    candidates,
    hold,
    list_sharers,
    read_homes,
)
from services.timeline.timelines import EMPTY

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub
    from feedmesh.ranking.v1.ranking_pb2_grpc import RankingServiceAsyncStub

log = logging.getLogger(__name__)

MAX_WINDOWS = 10
"""Windows that one page is made from at the most; then it is short, with a cursor."""
AHEAD = 56
"""Members of a home timeline that a first page reads beyond its window: in place of those that filters take."""
RANKING_TIMEOUT_S = 0.5
"""How long a page waits for its ranking before it is served newest first."""
MAX_SHARERS = 20
"""Sharers of one post that the post service tells."""
RANKING, REDIS, GRAPH = "ranking", "redis", "graph"
FIRST = Scroll()
"""Where a feed begins."""
KNOWN = metrics.OWN.labels("known")
Known = tuple[Mapping[int, Relation], bool]
"""The relations of those viewers that exist, and whether these are from before the graph was gone."""

Pages = wire.closed(post_pb2.BatchGetPostsResponse.DESCRIPTOR, [post_pb2.PostPage.DESCRIPTOR])
Posts = wire.closed(post_pb2.PostPage.DESCRIPTOR, [post_pb2.Post.DESCRIPTOR])


class Entry(NamedTuple):
    """One entry of a feed: a post at its place. A row of the arrays of skeleton.py."""

    position: int
    """The id that gives the place: the post's own, or its newest plain share's in the window."""
    author_id: int
    """Who wrote the post, or plainly shared it."""
    post_id: int
    """The post that is shown."""


@dataclass(frozen=True)
class Parts:
    """What feeds are made of."""

    relations: Relations
    cursors: Cursors
    sources: Sources
    post: PostServiceAsyncStub
    ranking: RankingServiceAsyncStub
    window: int = WINDOW

    @cached_property
    def hydrate(self) -> Any:
        """BatchGetPosts, with pages as bytes."""
        return client.read_by(self.post.BatchGetPosts, Pages.FromString)

    @cached_property
    def own(self) -> Own:
        """What viewers wrote themselves."""
        return Own(self.post)


@dataclass
class Page:
    """A page in the making."""

    viewer: Viewer
    order: pb.FeedOrder.ValueType
    limit: int
    place: Scroll | None
    """Where the next post is to be looked for; None at the end of the feed."""
    response: pb.GetFeedResponse = field(default_factory=pb.GetFeedResponse)
    """Without its posts."""
    posts: list[bytes] = field(default_factory=list)
    """These, as parts of a PostPage, which is what they are in the response too."""
    count: int = 0
    """How many they are."""
    held: Held | None = None
    """What Redis holds for the viewer; None where it cannot be used."""
    own: Written | None = None
    """What the viewer wrote last, if that was read."""
    own_as_of: int | None = None
    """While it may have changed since: as of when it is known."""
    rest: Members = field(default_factory=lambda: EMPTY)
    """The entries of the window that were not shown yet, in their order."""
    packed: bytes = b""
    """The same in the order of the window, packed."""
    windows: int = 0
    error: errors.Error | None = None

    @property
    def room(self) -> int:
        """How many more posts the page takes."""
        return self.limit - self.count

    @property
    def is_open(self) -> bool:
        """Whether the page wants another window."""
        return self.error is None and self.place is not None and self.room > 0 and self.windows < MAX_WINDOWS

    @property
    def is_hungry(self) -> bool:
        """Whether it wants posts of its window; or to know whether the window is right."""
        return self.error is None and ((len(self.rest) > 0 and self.room > 0) or self.own_as_of is not None)


async def get_feeds(parts: Parts, requests: Sequence[pb.GetFeedRequest]) -> list[bytes | errors.Error]:
    """The page that each request asks for (GetFeedResponse, serialized), or the Error why there is none.

    One that fails fails alone.
    """
    results: dict[int, errors.Error] = {}
    places: dict[int, Scroll] = {}
    for at, request in enumerate(requests):
        # Before anybody is asked anything: what is wrong costs nobody else.
        try:
            if violations := validation.violations(request):
                raise errors.InvalidArgument(*violations)
            places[at] = scroll.unseal(parts.cursors, request.user_id, order_of(request), request.cursor)
        except errors.InvalidArgument as error:
            results[at] = error
    pages: dict[int, Page] = {}
    # A first page is made of the newest; who scrolls on needs what is below.
    later = {requests[at].user_id for at, place in places.items() if place != FIRST}
    first = {requests[at].user_id for at in places} - later
    newest = dict.fromkeys(first, parts.window + AHEAD) | dict.fromkeys(later)
    # All of it together, though each could be asked for less if the others were known.
    relations, read, own = await asyncio.gather(
        relations_of(parts.relations, list(newest)),
        read_homes(parts.sources, newest),
        read_own(parts.own, first),
    )
    for at, place in places.items():
        request = requests[at]
        response = pb.GetFeedResponse()
        try:
            viewer = known_viewer(request.user_id, relations, response)
        except errors.Error as error:
            results[at] = error
            continue
        limit = most_posts(request)
        page = pages[at] = Page(viewer, order_of(request), limit, place, response)
        page.own, page.own_as_of = own.get(viewer.user_id, (None, None))
    await take_hold(parts.sources, list(pages.values()), read)
    await fill(parts, list(pages.values()))
    return [results.get(at) or pages[at].error or serialized(pages[at]) for at in range(len(requests))]


def serialized(page: Page) -> bytes:
    """The response of a page: messages that follow each other are one with the fields of both."""
    return b"".join([*page.posts, page.response.SerializeToString()])


async def relations_of(relations: Relations, viewer_ids: Sequence[int]) -> Known | errors.Error:
    """The relations of viewers, or why there are none."""
    try:
        return await relations.of(viewer_ids) if viewer_ids else ({}, False)
    except errors.Error as error:
        return error


async def read_own(own: Own, viewer_ids: Collection[int]) -> dict[int, tuple[Written, int | None]]:
    """What viewers wrote last, and where that is only remembered as of when.

    Nobody's where it cannot be read now: then it is asked for when it must be.
    """
    known = {viewer_id: written for viewer_id in viewer_ids if (written := own.get(viewer_id)) is not None}
    lacking = [viewer_id for viewer_id in viewer_ids if viewer_id not in known]
    try:
        read = dict(zip(lacking, await own.read(lacking), strict=True))
    except errors.Error:
        read = {}
    return {viewer_id: (each, each.as_of) for viewer_id, each in known.items()} | {
        viewer_id: (each, None) for viewer_id, each in read.items()
    }


async def viewer_of(parts: Parts, user_id: int, response: Any) -> Viewer:
    """One viewer with their relations. Raises NotFound (USER_NOT_FOUND), Unavailable."""
    return known_viewer(user_id, await relations_of(parts.relations, [user_id]), response)


def known_viewer(user_id: int, relations: Known | errors.Error, response: Any) -> Viewer:
    """A viewer by their relations, if these are known. Raises NotFound (USER_NOT_FOUND), Unavailable."""
    if isinstance(relations, errors.Error):
        raise relations
    relation, kept = relations[0].get(user_id), relations[1]
    if relation is None and kept:
        raise errors.Unavailable("the graph cannot be reached")
    if relation is None:
        raise errors.NotFound("USER_NOT_FOUND", f"there is no user {user_id}")
    if kept:
        degrade(response, GRAPH, "the graph cannot be reached")
    return Viewer(user_id, relation, kept)


def order_of(request: pb.GetFeedRequest) -> pb.FeedOrder.ValueType:
    """How the feed that is asked for is ordered."""
    return request.order or pb.FEED_ORDER_RANKED


async def fill(parts: Parts, pages: Sequence[Page]) -> None:
    """Fills pages from their places on. What goes wrong with one is its `error`."""
    while going := [page for page in pages if page.is_open]:
        try:
            await open_windows(parts, going)
            await rank(parts.ranking, [page for page in going if page.order == pb.FEED_ORDER_RANKED])
            while hungry := [page for page in going if page.is_hungry]:
                if changed := await hydrate(parts, hungry):
                    await begin_anew(parts.own, changed)
        except errors.Error as error:
            fail(going, error)
        for page in going:
            assert page.place is not None
            if page.windows and (not len(page.rest) or len(page.place.shown) >= scroll.MAX_SHOWN):
                page.place = page.place.past_window()
    for page in pages:
        metrics.FEED_WINDOWS.observe(page.windows)
        if page.place is not None and page.error is None:
            page.response.next_cursor = scroll.seal(parts.cursors, page.viewer.user_id, page.order, page.place)


def fail(pages: Iterable[Page], error: errors.Error) -> None:
    """Ends pages that cannot be made."""
    for page in pages:
        page.error = page.error or error


async def take_hold(sources: Sources, pages: Sequence[Page], read: Read | Lost) -> None:
    """Takes what Redis holds for the pages' viewers: from what was read of their home timelines."""
    for page, held in zip(pages, await hold(sources, [page.viewer for page in pages], read), strict=True):
        if isinstance(held, errors.Error):
            page.error = held
        else:
            page.held = unless_lost(held, page.response)


def unless_lost(held: Held | Lost, response: Any) -> Held | None:
    """What Redis holds; None, with the response marked, where it cannot be used."""
    if isinstance(held, Held):
        return held
    degrade(response, REDIS, f"{type(held).__name__}: {held}")
    return None


async def open_windows(parts: Parts, pages: Sequence[Page]) -> None:
    """Reads the window that each page stands in: `rest` is what of it no earlier page has shown. Raises Unavailable."""
    size, unknown = parts.window, list[Page]()
    for page in pages:
        page.windows += 1
        first = page.held.first if page.held is not None and page.place == FIRST else None
        if first is not None and page.own is not None and first.own is page.own.rows and first.size == size:
            page.place, page.rest, page.packed = first.place, first.entries, first.packed
        else:
            unknown.append(page)
    if not unknown:
        return
    found, asked = await look(parts, unknown, size + 1)
    short = [at for at, page in enumerate(unknown) if len(found[at]) <= size and goes_on(page)]
    if short:
        # Filters took more of the beginning than was read ahead, or much is the viewer's own.
        some = [unknown[at] for at in short]
        await take_hold(
            parts.sources, some, await read_homes(parts.sources, {page.viewer.user_id: None for page in some})
        )
        again, _ = await look(parts, some, size + 1)
        for at, rows in zip(short, again, strict=True):
            found[at] = rows
    for at, (page, rows) in enumerate(zip(unknown, found, strict=True)):
        assert page.place is not None
        is_first = page.place == FIRST
        page.place, entries = begin(page.place, rows, size)
        if page.place.forgot:
            entries = await unless_shared_later(parts.post, page, entries)
        page.rest = unshown(page.place, entries)
        page.packed = members.pack(page.rest)
        if is_first and page.held is not None and page.own is not None and at not in asked and at not in short:
            page.held.first = Window(page.own.rows, size, page.place, page.rest, page.packed)


def goes_on(page: Page) -> bool:
    """Whether only the beginning was taken of what Redis holds."""
    return page.held is not None and not page.held.whole


async def look(parts: Parts, pages: Sequence[Page], limit: int) -> tuple[list[Members], set[int]]:
    """The newest candidates of the pages' places, as `skeleton.candidates`."""
    places = [
        Place(page.viewer, page.held, page.own.rows if page.own else None, page.place.low or 0, page.place.high)
        for page in pages
        if page.place is not None
    ]
    return await candidates(parts.post, places, limit)


async def unless_shared_later(post: PostServiceAsyncStub, page: Page, entries: Members) -> Members:
    """The entries but for posts that have a newer share in an earlier window."""
    assert page.place is not None
    shares = await list_sharers(post, page.viewer, page.place.bound, entries[:, 2].tolist())
    later = shares[shares[:, 0] > page.place.high, 2]
    return entries[~np.isin(entries[:, 2], later)]


def unshown(place: Scroll, entries: Members) -> Members:
    """A window's entries that no earlier page has shown, newest first."""
    if not place.shown and not place.earlier:
        return entries
    shown = np.array([*place.shown, *place.earlier], dtype=np.int64)
    kept = entries[~np.isin(entries[:, 2], shown)]
    metrics.FEED_DROPPED.labels("shown").inc(len(entries) - len(kept))
    return kept


async def rank(ranking: RankingServiceAsyncStub, pages: Sequence[Page]) -> None:
    """Puts the pages' entries in order of relevance.

    Leaves them newest first, with the responses marked, when ranking cannot be reached.
    """
    pages = [page for page in pages if len(page.rest) and RANKING not in page.response.degraded]
    if not pages:
        return
    request = ranking_pb2.BatchRankRequest()
    for page in pages:
        request.items.add(viewer_id=page.viewer.user_id, candidates=page.packed)
    try:
        answer = await ranking.BatchRank(request, timeout=RANKING_TIMEOUT_S)
    except errors.Error as error:
        level = logging.WARNING if isinstance(error, errors.Unavailable) else logging.ERROR
        log.log(level, "feeds are served newest first: %s", error.message)
        for page in pages:
            degrade(page.response, RANKING, error.message)
        return
    for page, item in zip(pages, answer.items, strict=True):
        page.rest = page.rest.take(np.frombuffer(item.order, dtype=">u2"), axis=0)


async def begin_anew(own: Own, pages: Sequence[Page]) -> None:
    """Takes first pages back whose viewers wrote something that was not known. Raises Unavailable."""
    metrics.OWN.labels("changed").inc(len(pages))
    for page, written in zip(pages, await own.read([page.viewer.user_id for page in pages]), strict=True):
        page.own, page.place, page.rest, page.windows = written, FIRST, EMPTY, 0


async def hydrate(parts: Parts, pages: Sequence[Page]) -> list[Page]:
    """Moves the first entries of each page's rest, as many as it has room for, onto the page.

    But for pages whose viewers wrote something that is not known of: these. Raises Unavailable.
    """
    request = post_pb2.BatchGetPostsRequest()
    for page in pages:
        assert page.place is not None
        request.items.add(
            viewer_id=page.viewer.user_id,
            post_ids=page.rest[: page.room, 2].tolist(),
            relations_version=page.viewer.relation.version,
            relations_kept=page.viewer.kept,
            sharers_up_to=page.place.bound,
            own_as_of=page.own_as_of,
        )
    answer = await parts.hydrate(request)
    changed: list[Page] = []
    shown = members.unpack_each([item.members for item in answer.items])
    shares = members.unpack_each([item.shares for item in answer.items])
    for page, item, rows, shared in zip(pages, answer.items, shown, shares, strict=True):
        asked, page.own_as_of = page.own_as_of is not None, None
        if asked and item.own_changed:
            changed.append(page)
            continue
        if asked and page.own is not None:
            page.own.as_of = max(page.own.as_of, answer.as_of)
            KNOWN.inc()
        put(page, item.page, rows, shared)
    return changed


def put(page: Page, posts: bytes, rows: Members, shares: Members) -> None:
    """Puts onto a page those of its next entries that may be seen. `rows` say what `posts` (a PostPage) are.

    A list may still hold a share that was taken back; then the post's place is another. The page is cut there and goes
    on in the right order.
    """
    assert page.place is not None
    room = page.room
    taken = page.rest[:room]
    positions, post_ids = taken[:, 0].tolist(), taken[:, 2].tolist()
    if not len(page.viewer.relation.muted) and rows[:, 0].tolist() == post_ids:
        # All may be seen. A post at its own place is there because of its author.
        shared_at = {*positions}.difference(post_ids)
        if not shared_at or shared_at.issubset(shares[:, 0].tolist()):
            # And the others are where they were shared. So it is mostly.
            page.posts.append(posts)
            page.count += len(rows)
            page.rest = page.rest[room:]
            page.place = page.place.showing(post_ids)
            return
    viewer, dropped = page.viewer, metrics.FEED_DROPPED
    authors: dict[int, tuple[bytes, int]] = {
        post_id: (post, author_id)
        for post, (post_id, author_id, _) in zip(Posts.FromString(posts).posts, rows.tolist(), strict=True)
    }
    left, shown = page.rest[room:], []
    for at, (position, author_id, post_id) in enumerate(taken.tolist()):
        post, writer_id = authors.get(post_id, (b"", 0))
        if not post:
            dropped.labels("unseen").inc()
        elif viewer.relation.mutes(writer_id):
            dropped.labels("muted").inc()
        else:
            # A post at its own place is there because of its author.
            if position != post_id:
                entry = Entry(position, author_id, post_id)
                right = placed(viewer, entry, writer_id, shares[shares[:, 2] == post_id])
                if right != entry:
                    dropped.labels("unshared").inc()
                    here = [right] if right is not None and right.position >= (page.place.low or 0) else []
                    left = np.concatenate([np.array(here, dtype=np.int64).reshape(-1, 3), page.rest[at + 1 :]])
                    break
            page.posts.append(wire.listed(post))
            page.count += 1
        shown.append(post_id)
    if page.order == pb.FEED_ORDER_LATEST:
        left = left[np.argsort(-left[:, 0], kind="stable")]
    page.rest = left
    page.place = page.place.showing(shown)


def degrade(response: Any, part: str, why: str) -> None:
    """Marks an answer as made without a part of the mesh, and counts it."""
    log.debug("a feed is served without %s: %s", part, why)
    metrics.FEED_DEGRADED.labels(part).inc()
    response.degraded.append(part)


def placed(viewer: Viewer, entry: Entry, author_id: int, shares: members.Members) -> Entry | None:
    """Where an entry belongs by the shares that there are (newest first, at most 20); None for nowhere."""
    if entry.position in shares[:, 0] or (entry.position == entry.post_id and author_id in viewer.author_ids):
        return entry
    if len(shares) == MAX_SHARERS and shares[-1, 0] > entry.position:
        return entry  # there are more than are told
    for share_id, sharer_id, _ in shares.tolist():
        if share_id < entry.position:
            return Entry(share_id, sharer_id, entry.post_id)
    if len(shares):
        return entry  # shared anew, later: it stands where it was met
    return Entry(entry.post_id, author_id, entry.post_id) if author_id in viewer.author_ids else None
