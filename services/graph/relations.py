"""What feeds are made of: whom viewers follow, block and mute, and who follows authors."""

from __future__ import annotations

from feedmesh.graph.v1 import graph_pb2 as pb
from runtime.postgres import Pool
from services.graph import store


async def get_relations(pool: Pool, request: pb.BatchGetRelationsRequest) -> pb.BatchGetRelationsResponse:
    """The relations of each viewer, or that they have not changed. A viewer that does not exist has version 0."""
    known: dict[int, int] = {}
    for item in request.items:
        # Two callers may know different versions of one viewer: then both get the whole.
        same = known.setdefault(item.viewer_id, item.known_version) == item.known_version
        known[item.viewer_id] = item.known_version if same else 0
    found = await store.relations(pool, known)
    response = pb.BatchGetRelationsResponse()
    for item in request.items:
        relations = found.get(item.viewer_id)
        if relations is None:
            response.items.add(version=0)
        elif relations.version == known[item.viewer_id]:
            response.items.add(version=relations.version, unchanged=True)
        else:
            response.items.add(
                version=relations.version,
                packed_following_ids=relations.following_ids,
                packed_follow_ids=relations.follow_ids,
                blocked_ids=relations.blocked_ids,
                muted_ids=relations.muted_ids,
            )
    return response


async def list_follower_ids(pool: Pool, request: pb.BatchListFollowerIdsRequest) -> pb.BatchListFollowerIdsResponse:
    """A page of the followers of each item's user."""
    pages = await store.follower_ids(
        pool, [(item.user_id, item.before_follow_id, item.limit) for item in request.items]
    )
    return pb.BatchListFollowerIdsResponse(
        items=[
            pb.BatchListFollowerIdsResponse.Item(
                packed_follower_ids=page.packed, next_follow_id=page.next_follow_id, followers=page.followers
            )
            for page in pages
        ]
    )


async def get_follower_counts(
    pool: Pool, request: pb.BatchGetFollowerCountsRequest
) -> pb.BatchGetFollowerCountsResponse:
    """How many people follow each user, exactly."""
    found = await store.follower_counts(pool, list(request.user_ids))
    return pb.BatchGetFollowerCountsResponse(followers=[found.get(user_id, 0) for user_id in request.user_ids])


async def list_follower_counts(pool: Pool, request: pb.ListFollowerCountsRequest) -> pb.ListFollowerCountsResponse:
    """A page of those who have many followers, as of the last fold of counts."""
    rows = await store.followed_by_many(pool, request.after_user_id, request.min_followers, request.limit)
    return pb.ListFollowerCountsResponse(user_ids=[row[0] for row in rows], followers=[row[1] for row in rows])


async def list_follow_acts(pool: Pool, request: pb.BatchListFollowActsRequest) -> pb.BatchListFollowActsResponse:
    """Who followed each item's person, and who asked to."""
    found = await store.follow_acts(pool, [(item.user_id, item.before_id, item.limit) for item in request.items])
    return pb.BatchListFollowActsResponse(
        items=[
            pb.BatchListFollowActsResponse.Item(
                acts=[pb.FollowAct(act_id=row.act_id, user_id=row.user_id, requested=row.requested) for row in rows]
            )
            for rows in found
        ]
    )


async def get_user_ids(pool: Pool, request: pb.BatchGetUserIdsRequest) -> pb.BatchGetUserIdsResponse:
    """Who has each username."""
    names = [name.lower() for name in request.usernames]
    found = await store.ids_of_names(pool, names)
    return pb.BatchGetUserIdsResponse(user_ids=[found.get(name, 0) for name in names])
