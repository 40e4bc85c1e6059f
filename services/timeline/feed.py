"""The home feed, stage by stage: skeleton → filter → rank → hydrate, again until the page is full.

A page that filters or deletions thinned is filled again from the rest of its window, then from the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from runtime import errors, members, validation
from runtime.paging import DEFAULT_LIMIT, Cursors
from runtime.relations import Relation, Relations
from services.timeline import metrics, scroll
from services.timeline.epoch import UnusableError
from services.timeline.scroll import Scroll
from services.timeline.skeleton import WINDOW, Entry, Held, Sources, Viewer, hold, list_sharers, window

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub
    from feedmesh.ranking.v1.ranking_pb2_grpc import RankingServiceAsyncStub

log = logging.getLogger(__name__)

MAX_WINDOWS = 10
"""Windows that one page is made from at the most; then it is short, with a cursor."""
RANKING_TIMEOUT_S = 0.5
"""How long a page waits for its ranking before it is served newest first."""
MAX_SHARERS = 20
"""Sharers of one post that the post service tells."""
RANKING, REDIS, GRAPH = "ranking", "redis", "graph"

Degradable = pb.GetFeedResponse | pb.ExplainPostResponse
"""What may be made without a part of the mesh."""


@dataclass(frozen=True)
class Parts:
    """What a feed is made of."""

    relations: Relations
    cursors: Cursors
    sources: Sources
    graph: GraphServiceAsyncStub
    post: PostServiceAsyncStub
    ranking: RankingServiceAsyncStub
    window: int = WINDOW


async def get_feeds(parts: Parts, requests: Sequence[pb.GetFeedRequest]) -> list[pb.GetFeedResponse | errors.Error]:
    """The page that each request asks for, or why there is none: one that fails does not fail the others."""
    wrong: dict[int, errors.Error] = {}
    places: dict[int, Scroll] = {}
    for at, request in enumerate(requests):
        # Before anybody is asked anything: what is wrong costs nobody else.
        try:
            if violations := validation.violations(request):
                raise errors.InvalidArgument(*violations)
            places[at] = scroll.unseal(parts.cursors, request.user_id, order_of(request), request.cursor)
        except errors.InvalidArgument as error:
            wrong[at] = error
    viewers = {requests[at].user_id for at in places}
    relations, kept = await parts.relations.of(sorted(viewers)) if viewers else ({}, False)

    async def one(at: int, request: pb.GetFeedRequest) -> pb.GetFeedResponse | errors.Error:
        if at in wrong:
            return wrong[at]
        response = pb.GetFeedResponse()
        try:
            viewer = known_viewer(request.user_id, relations.get(request.user_id), kept, response)
            await fill_page(parts, viewer, request, places[at], response)
        except errors.Error as error:
            return error
        return response

    return await asyncio.gather(*(one(at, request) for at, request in enumerate(requests)))


async def viewer_of(parts: Parts, user_id: int, response: Degradable) -> Viewer:
    """One viewer with their relations. Raises NotFound (USER_NOT_FOUND), Unavailable."""
    relations, kept = await parts.relations.of([user_id])
    return known_viewer(user_id, relations.get(user_id), kept, response)


def known_viewer(user_id: int, relation: Relation | None, kept: bool, response: Degradable) -> Viewer:
    """A viewer by their relations, if these are known. Raises NotFound (USER_NOT_FOUND), Unavailable."""
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


async def fill_page(
    parts: Parts, viewer: Viewer, request: pb.GetFeedRequest, beginning: Scroll, response: pb.GetFeedResponse
) -> None:
    """Fills one page from its beginning on. Raises Unavailable."""
    order = order_of(request)
    limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
    place: Scroll | None = beginning
    held = await held_or_none(parts.sources, viewer, response)
    windows = 0
    while place is not None and len(response.posts) < limit and windows < MAX_WINDOWS:
        windows += 1
        place, entries = await window(parts.post, viewer, held, place, parts.window)
        rest = unshown(place, entries)
        if order == pb.FEED_ORDER_RANKED:
            rest = await ranked(parts.ranking, viewer.user_id, rest, response)
        while rest and (room := limit - len(response.posts)):
            posts, shown, rest = await hydrated(parts, viewer, place, rest, room, response)
            response.posts.extend(posts)
            place = place.showing(shown)
            if order == pb.FEED_ORDER_LATEST:
                rest.sort(reverse=True)
        if not rest or len(place.shown) >= scroll.MAX_SHOWN:
            place = place.past_window()
    metrics.FEED_WINDOWS.observe(windows)
    if place is not None:
        response.next_cursor = scroll.seal(parts.cursors, viewer.user_id, order, place)


async def held_or_none(sources: Sources, viewer: Viewer, response: Degradable) -> Held | None:
    """What Redis holds for a viewer; None, with the response marked, when it cannot be used."""
    try:
        return await hold(sources, viewer)
    except (UnusableError, RedisError, OSError) as error:
        degrade(response, REDIS, f"{type(error).__name__}: {error}")
        return None


def degrade(response: Degradable, part: str, why: str) -> None:
    """Marks an answer as made without a part of the mesh, and counts it."""
    log.debug("a feed is served without %s: %s", part, why)
    metrics.FEED_DEGRADED.labels(part).inc()
    response.degraded.append(part)


def unshown(place: Scroll, entries: list[Entry]) -> list[Entry]:
    """A window's entries that no earlier page has shown, newest first."""
    kept = [entry for entry in entries if entry.post_id not in place.shown and entry.post_id not in place.earlier]
    metrics.FEED_DROPPED.labels("shown").inc(len(entries) - len(kept))
    return kept


async def ranked(
    ranking: RankingServiceAsyncStub, viewer_id: int, entries: list[Entry], response: pb.GetFeedResponse
) -> list[Entry]:
    """The entries by relevance; as they are, newest first, with the response marked, when ranking cannot be reached."""
    if not entries or RANKING in response.degraded:
        return entries
    request = ranking_pb2.BatchRankRequest()
    request.items.add(viewer_id=viewer_id, candidates=members.pack(entries))
    try:
        answer = await ranking.BatchRank(request, timeout=RANKING_TIMEOUT_S)
    except errors.Error as error:
        level = logging.WARNING if isinstance(error, errors.Unavailable) else logging.ERROR
        log.log(level, "feed is served newest first: %s", error.message)
        degrade(response, RANKING, error.message)
        return entries
    return [entries[at] for at in answer.items[0].order]


async def hydrated(
    parts: Parts, viewer: Viewer, place: Scroll, entries: list[Entry], room: int, response: pb.GetFeedResponse
) -> tuple[list[post_pb2.Post], list[int], list[Entry]]:
    """The first `room` entries as the viewer sees them, with their sharers; what may not be seen is left out.

    Gives the posts, the ids that need not be looked at again, and the entries that are left. A list may still hold a
    share that was taken back; then the post's place is another. The page is cut there and goes on in the right order.
    """
    taken = entries[:room]
    post_ids = [entry.post_id for entry in taken]
    request = post_pb2.BatchGetPostsRequest()
    request.items.add(
        viewer_id=viewer.user_id,
        post_ids=post_ids,
        relations_version=viewer.relation.version,
        relations_kept=viewer.kept,
    )
    answer, shares = await asyncio.gather(
        parts.post.BatchGetPosts(request), list_sharers(parts.post, viewer, place.bound, post_ids)
    )
    found = {post.post_id: post for post in answer.items[0].posts}
    posts: list[post_pb2.Post] = []
    shown: list[int] = []
    for at, entry in enumerate(taken):
        post = found.get(entry.post_id)
        if post is None:
            metrics.FEED_DROPPED.labels("unseen").inc()
        elif viewer.relation.mutes(post.user_id):
            metrics.FEED_DROPPED.labels("muted").inc()
        else:
            own = shares[shares[:, 2] == entry.post_id]
            right = placed(viewer, entry, post.user_id, own)
            if right != entry:
                metrics.FEED_DROPPED.labels("unshared").inc()
                here = [right] if right is not None and right.position >= (place.low or 0) else []
                entries = [*here, *entries[at + 1 :]]
                break
            for sharer_id in own[:, 1].tolist():
                post.shared_by.add(user_id=sharer_id)
            if viewer.relation.mutes(post.shared_post.user_id):
                post.ClearField("shared_post")
            posts.append(post)
        shown.append(entry.post_id)
    else:
        entries = entries[room:]
    await name_sharers(parts.graph, posts, response)
    return posts, shown, entries


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


async def name_sharers(graph: GraphServiceAsyncStub, posts: Sequence[post_pb2.Post], response: Degradable) -> None:
    """Fills in the names of sharers; leaves them "", with the response marked, when the graph cannot be reached."""
    sharers = [sharer for post in posts for sharer in post.shared_by]
    if not sharers:
        return
    try:
        names = await usernames(graph, {sharer.user_id for sharer in sharers})
    except errors.Unavailable as error:
        if GRAPH not in response.degraded:
            degrade(response, GRAPH, error.message)
        return
    for post in posts:
        # Whoever has no name was erased a moment ago.
        named = [
            post_pb2.Sharer(user_id=sharer.user_id, username=names[sharer.user_id])
            for sharer in post.shared_by
            if sharer.user_id in names
        ]
        post.ClearField("shared_by")
        post.shared_by.extend(named)


async def usernames(graph: GraphServiceAsyncStub, user_ids: set[int]) -> dict[int, str]:
    """Names by id of those people that exist. Raises Unavailable."""
    response = await graph.BatchGetUsers(graph_pb2.BatchGetUsersRequest(user_ids=user_ids))
    return {user.user_id: user.username for user in response.users}
