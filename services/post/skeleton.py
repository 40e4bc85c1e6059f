"""What feeds are made from: newest posts of many authors, who shared what, and what ranking goes by."""

from __future__ import annotations

import asyncio

from feedmesh.post.v1 import post_pb2 as pb
from runtime import ids, members
from runtime.postgres import Pool
from services.post import store

NO_ENGAGEMENT = (0, 0, 0, 0.0)


async def list_newest(pool: Pool, request: pb.BatchListNewestRequest) -> pb.BatchListNewestResponse:
    """The newest posts of each item's authors, packed."""
    # One after the other: a batch is no reason to take more than one of the pool's connections.
    answers = [
        await store.newest(pool, list(item.author_ids), item.min_post_id, item.max_post_id, item.limit)
        for item in request.items
    ]
    return pb.BatchListNewestResponse(
        items=[pb.BatchListNewestResponse.Item(members=members.pack(rows)) for rows in answers]
    )


async def list_sharers(pool: Pool, request: pb.BatchListSharersRequest) -> pb.BatchListSharersResponse:
    """The plain shares of each item's originals by its sharers, packed."""
    answers = [
        await store.sharers(pool, list(item.original_ids), list(item.sharer_ids), item.max_post_id)
        for item in request.items
    ]
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
