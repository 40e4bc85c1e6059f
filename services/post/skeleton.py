"""What feeds are made from: newest posts of many authors, who shared what, and what ranking goes by."""

from __future__ import annotations

import asyncio

from feedmesh.post.v1 import post_pb2 as pb
from runtime import ids, members, wire
from runtime.postgres import Pool
from services.post import store
from services.post.hot import HotPosts
from services.post.hydrate import Page, hydrate_feeds
from services.post.sight import Sights, Viewer

Answer = wire.closed(pb.BatchGetPostsResponse.DESCRIPTOR, [pb.PostPage.DESCRIPTOR])
NO_ENGAGEMENT = (0, 0, 0, 0.0)


async def get_posts(hot: HotPosts, sights: Sights, request: pb.BatchGetPostsRequest) -> bytes:
    """Each item's posts as its viewer sees them, serialized."""
    pages = [
        Page(
            Viewer(item.viewer_id, item.relations_version, item.relations_kept),
            list(item.post_ids),
            item.sharers_up_to if item.HasField("sharers_up_to") else None,
            item.only_alike,
        )
        for item in request.items
    ]
    answer = Answer()
    for item, shown in zip(request.items, await hydrate_feeds(hot, sights, pages), strict=True):
        changed = item.HasField("own_as_of") and hot.has_written(item.viewer_id, item.own_as_of)
        answer.items.add(page=shown.page, members=shown.members, shares=shown.shares, own_changed=changed)
    answer.as_of = hot.as_of
    return bytes(answer.SerializeToString())


async def list_newest(pool: Pool, request: pb.BatchListNewestRequest) -> pb.BatchListNewestResponse:
    """The newest posts of each item's authors, packed."""
    items = request.items
    # What is asked of one author each goes together: readers' own posts, mostly.
    asked = {
        at: (item.author_ids[0], item.min_post_id, item.max_post_id, item.limit)
        for at, item in enumerate(items)
        if len(item.author_ids) == 1
    }
    answers = dict.fromkeys(range(len(items)), b"")
    of_each, as_of = await store.newest_of_each(pool, list(asked.values()))
    answers |= zip(asked, of_each, strict=True)
    for at, item in enumerate(items):
        # One after the other: a batch is no reason to take more than one of the pool's connections.
        if len(item.author_ids) > 1:
            answers[at] = members.pack(
                await store.newest(pool, list(item.author_ids), item.min_post_id, item.max_post_id, item.limit)
            )
    return pb.BatchListNewestResponse(
        items=[pb.BatchListNewestResponse.Item(members=packed) for packed in answers.values()], as_of=as_of
    )


async def list_sharers(pool: Pool, request: pb.BatchListSharersRequest) -> pb.BatchListSharersResponse:
    """The plain shares of each item's originals by its sharers, packed."""
    answers = await store.sharers(
        pool,
        [store.SharersQuestion(item.original_ids, item.sharer_ids, item.max_post_id) for item in request.items],
    )
    return pb.BatchListSharersResponse(
        items=[pb.BatchListSharersResponse.Item(members=members.pack(rows)) for rows in answers]
    )


async def get_engagement(pool: Pool, request: pb.BatchGetEngagementRequest) -> pb.BatchGetEngagementResponse:
    """Counts and heat of each item's posts, and its viewer's affinities."""
    by_post, by_viewer = await asyncio.gather(
        store.engagement(pool, {post_id for item in request.items for post_id in item.post_ids}),
        store.affinities(pool, {item.viewer_id for item in request.items}),
    )
    response = pb.BatchGetEngagementResponse()
    for item in request.items:
        rows = [by_post.get(post_id, NO_ENGAGEMENT) for post_id in item.post_ids]
        affinities = by_viewer.get(item.viewer_id, [])
        response.items.add(
            likes=[row[0] for row in rows],
            comments=[row[1] for row in rows],
            shares=[row[2] for row in rows],
            heat=[row[3] for row in rows],
            affinity_author_ids=[author_id for author_id, _ in affinities],
            affinities=[weight for _, weight in affinities],
        )
    return response


async def list_engagement(pool: Pool, request: pb.ListEngagementRequest) -> pb.ListEngagementResponse:
    """A page of the posts that anyone ever engaged with: counts, and heat as of now."""
    rows = await store.engaged(pool, request.before_post_id or ids.MAX_ID + 1, request.limit)
    return pb.ListEngagementResponse(
        post_ids=[row[0] for row in rows],
        likes=[row[1] for row in rows],
        comments=[row[2] for row in rows],
        shares=[row[3] for row in rows],
        heat=[row[4] for row in rows],
    )


async def list_post_counts(pool: Pool, request: pb.ListPostCountsRequest) -> pb.ListPostCountsResponse:
    """A page of those who wrote since a moment, and how much."""
    rows = await store.post_counts(pool, request.after_user_id, request.min_post_id, request.limit)
    return pb.ListPostCountsResponse(user_ids=[row[0] for row in rows], posts=[row[1] for row in rows])


async def list_acts(pool: Pool, request: pb.BatchListActsRequest) -> pb.BatchListActsResponse:
    """What concerns each item's person."""
    found = await store.acts_of(pool, [(item.user_id, item.before_id, item.limit) for item in request.items])
    response = pb.BatchListActsResponse()
    for rows in found:
        response.items.add(
            acts=[
                pb.Act(
                    kind=pb.ActKind.Value(f"ACT_KIND_{row.kind.upper()}"),
                    act_id=row.act_id,
                    user_id=row.user_id,
                    post_id=row.post_id,
                    comment_id=row.comment_id,
                )
                for row in rows
            ]
        )
    return response
