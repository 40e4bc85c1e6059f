"""The home feed, stage by stage: skeleton → filter → rank → hydrate, again until the page is full.

A page that filters or deletions thinned is filled again from the rest of its window, then from the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from runtime import errors, members, validation
from runtime.paging import DEFAULT_LIMIT, Cursors
from services.timeline import metrics, scroll
from services.timeline.relations import Relation, Relations
from services.timeline.scroll import Scroll
from services.timeline.skeleton import WINDOW, Entry, Viewer, list_sharers, pull

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub
    from feedmesh.ranking.v1.ranking_pb2_grpc import RankingServiceAsyncStub

log = logging.getLogger(__name__)

MAX_WINDOWS = 10
"""Windows that one page is made from at the most; then it is short, with a cursor."""
RANKING_TIMEOUT_S = 0.5
"""How long a page waits for its ranking before it is served newest first."""
RANKING = "ranking"


@dataclass(frozen=True)
class Parts:
    """What a feed is made of."""

    relations: Relations
    cursors: Cursors
    graph: GraphServiceAsyncStub
    post: PostServiceAsyncStub
    ranking: RankingServiceAsyncStub
    window: int = WINDOW


async def get_feeds(parts: Parts, requests: Sequence[pb.GetFeedRequest]) -> list[pb.GetFeedResponse | errors.Error]:
    """The page that each request asks for, or why there is none: one that fails does not fail the others."""
    wrong: dict[int, errors.Error] = {}
    for at, request in enumerate(requests):
        if violations := validation.violations(request):
            wrong[at] = errors.InvalidArgument(*violations)
    viewers = {request.user_id for at, request in enumerate(requests) if at not in wrong}
    relations = await parts.relations.of(sorted(viewers)) if viewers else {}

    async def one(at: int, request: pb.GetFeedRequest) -> pb.GetFeedResponse | errors.Error:
        if at in wrong:
            return wrong[at]
        if request.user_id not in relations:
            return errors.NotFound("USER_NOT_FOUND", f"there is no user {request.user_id}")
        try:
            return await get_feed(parts, relations[request.user_id], request)
        except errors.Error as error:
            return error

    return await asyncio.gather(*(one(at, request) for at, request in enumerate(requests)))


async def get_feed(parts: Parts, relation: Relation, request: pb.GetFeedRequest) -> pb.GetFeedResponse:
    """One page. Raises InvalidArgument (INVALID_CURSOR), Unavailable."""
    viewer = Viewer(request.user_id, [*relation.following.tolist(), request.user_id])
    order = request.order or pb.FEED_ORDER_RANKED
    limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
    place: Scroll | None = scroll.unseal(parts.cursors, viewer.user_id, order, request.cursor)
    response = pb.GetFeedResponse()
    windows = 0
    while place is not None and len(response.posts) < limit and windows < MAX_WINDOWS:
        windows += 1
        place, entries = await pull(parts.post, viewer, place, parts.window)
        rest = unshown(place, entries)
        if order == pb.FEED_ORDER_RANKED:
            rest = await ranked(parts.ranking, viewer.user_id, rest, response)
        while rest and (room := limit - len(response.posts)):
            taken, rest = [entry.post_id for entry in rest[:room]], rest[room:]
            response.posts.extend(await hydrated(parts, viewer, place.bound, taken))
            place = place.showing(taken)
        if not rest or len(place.shown) >= scroll.MAX_SHOWN:
            place = place.past_window()
    metrics.FEED_WINDOWS.observe(windows)
    if place is not None:
        response.next_cursor = scroll.seal(parts.cursors, viewer.user_id, order, place)
    return response


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
        metrics.FEED_DEGRADED.labels(RANKING).inc()
        response.degraded.append(RANKING)
        return entries
    return [entries[at] for at in answer.items[0].order]


async def hydrated(parts: Parts, viewer: Viewer, bound: int, post_ids: Sequence[int]) -> Iterable[post_pb2.Post]:
    """The posts as the viewer sees them, in order, with their sharers; those gone meanwhile left out."""
    request = post_pb2.BatchGetPostsRequest()
    request.items.add(viewer_id=viewer.user_id, post_ids=post_ids)
    answer, shares = await asyncio.gather(
        parts.post.BatchGetPosts(request), list_sharers(parts.post, viewer, bound, post_ids)
    )
    posts = answer.items[0].posts
    metrics.FEED_DROPPED.labels("gone").inc(len(post_ids) - len(posts))
    names = await usernames(parts.graph, set(shares[:, 1].tolist()))
    for post in posts:
        for sharer_id in shares[shares[:, 2] == post.post_id, 1].tolist():
            post.shared_by.add(user_id=sharer_id, username=names.get(sharer_id, ""))
    return posts


async def usernames(graph: GraphServiceAsyncStub, user_ids: set[int]) -> dict[int, str]:
    """Names by id of those people that exist. Raises Unavailable."""
    if not user_ids:
        return {}
    response = await graph.BatchGetUsers(graph_pb2.BatchGetUsersRequest(user_ids=user_ids))
    return {user.user_id: user.username for user in response.users}
