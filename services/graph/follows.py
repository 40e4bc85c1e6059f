"""Use cases about follows: following, unfollowing, listing, and the relations that feeds are made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import errors, idempotency, ids, outbox
from runtime.paging import DEFAULT_LIMIT, Cursors
from runtime.postgres import Connection, Pool
from services.graph import store, users


async def follow(pool: Pool, request: pb.FollowRequest, max_following: int) -> pb.FollowResponse:
    """Makes the edge, unless it is there. Raises InvalidArgument (SELF_FOLLOW), NotFound, Refused (FOLLOW_LIMIT)."""
    follower_id, following_id = request.follower_id, request.following_id
    if follower_id == following_id:
        raise errors.InvalidArgument(
            errors.Violation("following_id", "must be someone else than follower_id"), reason="SELF_FOLLOW"
        )

    async def work(connection: Connection) -> pb.FollowResponse:
        await lock(connection, follower_id, following_id)
        is_there, count = await store.following_state(connection, follower_id, following_id)
        if not is_there:
            if count >= max_following:
                raise errors.Refused("FOLLOW_LIMIT", f"one may follow at most {max_following} people")
            await store.insert_edge(connection, follower_id, following_id)
            await tell(connection, follower_id, following_id, following=True)
        return pb.FollowResponse(status=pb.FOLLOW_STATUS_FOLLOWING)

    return await idempotency.write(pool, request, follower_id, pb.FollowResponse, work)


async def unfollow(pool: Pool, request: pb.UnfollowRequest) -> pb.UnfollowResponse:
    """Removes the edge, where it is. Raises NotFound (USER_NOT_FOUND)."""

    async def work(connection: Connection) -> pb.UnfollowResponse:
        await lock(connection, request.follower_id, request.following_id)
        if await store.delete_edge(connection, request.follower_id, request.following_id):
            await tell(connection, request.follower_id, request.following_id, following=False)
        return pb.UnfollowResponse(status=pb.FOLLOW_STATUS_NOT_FOLLOWING)

    return await idempotency.write(pool, request, request.follower_id, pb.UnfollowResponse, work)


async def lock(connection: Connection, follower_id: int, following_id: int) -> None:
    """Locks both people of an edge. Raises NotFound (USER_NOT_FOUND)."""
    found = await store.lock_edge(connection, follower_id, following_id)
    for user_id in (follower_id, following_id):
        if user_id not in found:
            raise users.not_found(user_id)


async def tell(connection: Connection, follower_id: int, following_id: int, *, following: bool) -> None:
    """Writes the event of a follow or an unfollow."""
    fact = event_pb2.FollowChanged(follower_id=follower_id, following_id=following_id, following=following)
    await outbox.add(connection, follower_id, event_pb2.Event(follow_changed=fact))


async def list_followers(pool: Pool, cursors: Cursors, request: pb.ListFollowersRequest) -> pb.ListFollowersResponse:
    """A page of who follows a person. Raises NotFound, InvalidArgument (INVALID_CURSOR)."""
    page, cursor = await list_edges(pool, cursors, "followers", store.followers, request)
    return pb.ListFollowersResponse(users=page, next_cursor=cursor)


async def list_following(pool: Pool, cursors: Cursors, request: pb.ListFollowingRequest) -> pb.ListFollowingResponse:
    """A page of whom a person follows. Raises NotFound, InvalidArgument (INVALID_CURSOR)."""
    page, cursor = await list_edges(pool, cursors, "following", store.following, request)
    return pb.ListFollowingResponse(users=page, next_cursor=cursor)


async def list_edges(
    pool: Pool,
    cursors: Cursors,
    listing: str,
    read: Callable[[Pool, int, int, int], Awaitable[list[tuple[int, store.UserRow]]]],
    request: pb.ListFollowersRequest | pb.ListFollowingRequest,
) -> tuple[Sequence[pb.User], str | None]:
    """A page of one of the two listings, and the cursor for what follows it."""
    scope = (listing, request.user_id, request.viewer_id)
    before = cursors.open_id(scope, request.cursor, first=ids.MAX_ID + 1)
    limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
    rows = await read(pool, request.user_id, before, limit + 1)
    if not rows and await store.user(pool, request.user_id) is None:
        raise users.not_found(request.user_id)
    more = len(rows) > limit
    page = rows[:limit]
    return (
        [users.present(row, request.viewer_id) for _, row in page],
        cursors.seal_id(scope, page[-1][0]) if more else None,
    )


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
                following_ids=relations.following_ids,
                follow_ids=relations.follow_ids,
            )
    return response


async def list_follower_ids(pool: Pool, request: pb.BatchListFollowerIdsRequest) -> pb.BatchListFollowerIdsResponse:
    """A page of the followers of each item's user."""
    pages = await store.follower_ids(
        pool, [(item.user_id, item.before_follow_id or ids.MAX_ID + 1, item.limit) for item in request.items]
    )
    return pb.BatchListFollowerIdsResponse(
        items=[
            pb.BatchListFollowerIdsResponse.Item(follower_ids=follower_ids, next_follow_id=next_follow_id)
            for follower_ids, next_follow_id in pages
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
