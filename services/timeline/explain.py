"""Why a post is in a feed, or is not: where it comes from, which filter keeps it out, what ranks it."""

from __future__ import annotations

import numpy as np

from feedmesh.post.v1 import post_pb2
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from runtime import errors, ids, members
from runtime.members import Members
from services.timeline.feed import (
    RANKING,
    RANKING_TIMEOUT_S,
    Entry,
    Parts,
    degrade,
    unless_lost,
    viewer_of,
)
from services.timeline.skeleton import Viewer, hold, read_homes


async def explain(parts: Parts, request: pb.ExplainPostRequest) -> pb.ExplainPostResponse:
    """Explains one post to one person.

    Raises NotFound (USER_NOT_FOUND, POST_NOT_FOUND for what they may not see), Unavailable.
    """
    response = pb.ExplainPostResponse()
    viewer = await viewer_of(parts, request.user_id, response)
    post, shares = await shown(parts, viewer, request.post_id)
    response.post_id = post.post_id
    reads_author = post.user_id in viewer.author_ids
    if viewer.relation.mutes(post.user_id):
        response.filter = pb.FEED_FILTER_MUTED
    elif not reads_author and not len(shares):
        response.filter = await nobody_read(parts, viewer, post.post_id)
    else:
        share_id, sharer_id = shares[0, :2].tolist() if len(shares) else (post.post_id, post.user_id)
        entry = Entry(share_id, sharer_id, post.post_id)
        response.shared_by.extend(post.shared_by)
        response.source = await source(parts, viewer, entry, response)
        response.in_feed = response.source != pb.FEED_SOURCE_IN_FLIGHT
        if response.in_feed:
            response.place_id = entry.position
        await add_rank(parts, viewer, entry, response)
    return response


async def shown(parts: Parts, viewer: Viewer, post_id: int) -> tuple[post_pb2.Post, Members]:
    """The post that a feed would show, of a plain share the original, and its plain shares that count, newest first.

    Raises NotFound (POST_NOT_FOUND), Unavailable.
    """
    asked = post_pb2.GetPostRequest(post_id=post_id, viewer_id=viewer.user_id)
    post = (await parts.post.GetPost(asked)).post
    # Every other post has a text or a medium of its own.
    if post.HasField("shared_post") and not post.content and not post.media_url:
        post = post.shared_post
    request = post_pb2.BatchGetPostsRequest()
    request.items.add(
        viewer_id=viewer.user_id,
        post_ids=[post.post_id],
        relations_version=viewer.relation.version,
        relations_kept=viewer.kept,
        sharers_up_to=ids.MAX_ID,
    )
    item = (await parts.post.BatchGetPosts(request)).items[0]
    if not item.page.posts:
        raise errors.NotFound("POST_NOT_FOUND", f"there is no post {post_id}")
    return item.page.posts[0], members.unpack(item.shares)


async def nobody_read(parts: Parts, viewer: Viewer, post_id: int) -> pb.FeedFilter.ValueType:
    """What keeps a post out that nobody wrote or shared whom the viewer reads."""
    muted = np.intersect1d(viewer.relation.following, viewer.relation.muted, assume_unique=True)
    item = post_pb2.BatchListSharersRequest.Item(
        viewer_id=viewer.user_id, original_ids=[post_id], sharer_ids=muted, max_post_id=ids.MAX_ID
    )
    answer = await parts.post.BatchListSharers(post_pb2.BatchListSharersRequest(items=[item]))
    return pb.FEED_FILTER_SHARER_MUTED if answer.items[0].members else pb.FEED_FILTER_NOT_FOLLOWED


async def source(
    parts: Parts, viewer: Viewer, entry: Entry, response: pb.ExplainPostResponse
) -> pb.FeedSource.ValueType:
    """How an entry comes into the feed at this moment."""
    if entry.author_id == viewer.user_id:
        return pb.FEED_SOURCE_OWN
    [taken] = await hold(parts.sources, [viewer], await read_homes(parts.sources, {viewer.user_id: None}))
    if isinstance(taken, errors.Error):
        raise taken
    held = unless_lost(taken, response)
    if held is None or entry.position <= held.floor or entry.author_id in held.asked:
        return pb.FEED_SOURCE_STORED
    if entry.position not in held.rows[:, 0]:
        return pb.FEED_SOURCE_IN_FLIGHT
    pulled = await parts.sources.modes.pulled()
    return pb.FEED_SOURCE_PULLED if pulled.among(np.array([entry.author_id]))[0] else pb.FEED_SOURCE_PUSHED


async def add_rank(parts: Parts, viewer: Viewer, entry: Entry, response: pb.ExplainPostResponse) -> None:
    """Fills in what ranks an entry; leaves it out, with the response marked, when ranking cannot be reached."""
    request = ranking_pb2.ExplainRankRequest(viewer_id=viewer.user_id, candidates=members.pack([entry]))
    try:
        answer = await parts.ranking.ExplainRank(request, timeout=RANKING_TIMEOUT_S)
    except errors.Unavailable as error:
        degrade(response, RANKING, error.message)
        return
    response.rank.CopyFrom(answer.ranks[0])
