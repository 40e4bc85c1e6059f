"""The home feed, stage by stage: skeleton → filter → rank → hydrate, again until the page is full.

A page that filters or deletions thinned is filled again from the rest of its window, then from the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from runtime import errors, members, validation
from runtime.paging import DEFAULT_LIMIT, Cursors
from services.timeline import metrics, scroll
from services.timeline.relations import Relation, Relations
from services.timeline.skeleton import WINDOW, Entry, Skeleton, pull

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
    viewer_id = request.user_id
    order = request.order or pb.FEED_ORDER_RANKED
    limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
    place: scroll.Scroll | None = scroll.unseal(parts.cursors, viewer_id, order, request.cursor)
    authors = np.append(relation.following, viewer_id)
    response = pb.GetFeedResponse()
    windows = 0
    while place is not None and len(response.posts) < limit and windows < MAX_WINDOWS:
        windows += 1
        skeleton = await pull(parts.post, viewer_id, authors, place, parts.window)
        place = skeleton.scroll
        rest = unserved(skeleton)
        if order == pb.FEED_ORDER_RANKED:
            rest = await ranked(parts.ranking, viewer_id, rest, response)
        while rest and len(response.posts) < limit:
            taken, rest = rest[: limit - len(response.posts)], rest[limit - len(response.posts) :]
            response.posts.extend(await hydrated(parts, viewer_id, taken, skeleton))
            place = replace(place, served=place.served | {entry.position for entry in taken})
        if not rest:
            place = place.past_window()
    metrics.FEED_WINDOWS.observe(windows)
    if place is not None:
        response.next_cursor = scroll.seal(parts.cursors, viewer_id, order, place)
    return response


def unserved(skeleton: Skeleton) -> list[Entry]:
    """A window's entries that no earlier page has shown, newest first."""
    kept = [entry for entry in skeleton.entries if entry.position not in skeleton.scroll.served]
    metrics.FEED_DROPPED.labels("in_earlier_window").inc(len(skeleton.removed))
    metrics.FEED_DROPPED.labels("served").inc(len(skeleton.entries) - len(kept))
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
    except errors.Unavailable as error:
        log.warning("feed is served newest first: %s", error.message)
        metrics.FEED_DEGRADED.labels(RANKING).inc()
        response.degraded.append(RANKING)
        return entries
    return [entries[at] for at in answer.items[0].order]


async def hydrated(
    parts: Parts, viewer_id: int, entries: Sequence[Entry], skeleton: Skeleton
) -> Iterable[post_pb2.Post]:
    """The posts of the entries as the viewer sees them, in order, with their sharers; those gone meanwhile left out."""
    request = post_pb2.BatchGetPostsRequest()
    request.items.add(viewer_id=viewer_id, post_ids=[entry.post_id for entry in entries])
    sharer_ids = {sharer for entry in entries for sharer in skeleton.sharers.get(entry.post_id, ())}
    answer, names = await asyncio.gather(parts.post.BatchGetPosts(request), usernames(parts.graph, sharer_ids))
    posts = answer.items[0].posts
    metrics.FEED_DROPPED.labels("gone").inc(len(entries) - len(posts))
    for post in posts:
        for sharer_id in skeleton.sharers.get(post.post_id, ()):
            post.shared_by.add(user_id=sharer_id, username=names.get(sharer_id, ""))
    return posts


async def usernames(graph: GraphServiceAsyncStub, user_ids: set[int]) -> dict[int, str]:
    """Names by id of those people that exist. Raises Unavailable."""
    if not user_ids:
        return {}
    response = await graph.BatchGetUsers(graph_pb2.BatchGetUsersRequest(user_ids=user_ids))
    return {user.user_id: user.username for user in response.users}
