"""Use cases about follows: following, unfollowing, listing, and the relations that feeds are made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import errors, idempotency, ids
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
        return pb.FollowResponse(status=pb.FOLLOW_STATUS_FOLLOWING)

    return await idempotency.write(pool, request, follower_id, pb.FollowResponse, work)


async def unfollow(pool: Pool, request: pb.UnfollowRequest) -> pb.UnfollowResponse:
    """Removes the edge, where it is. Raises NotFound (USER_NOT_FOUND)."""

    async def work(connection: Connection) -> pb.UnfollowResponse:
        await lock(connection, request.follower_id, request.following_id)
        await store.delete_edge(connection, request.follower_id, request.following_id)
        return pb.UnfollowResponse(status=pb.FOLLOW_STATUS_NOT_FOLLOWING)

    return await idempotency.write(pool, request, request.follower_id, pb.UnfollowResponse, work)


async def lock(connection: Connection, follower_id: int, following_id: int) -> None:
    """Locks both people of an edge. Raises NotFound (USER_NOT_FOUND)."""
    found = await store.lock_edge(connection, follower_id, following_id)
    for user_id in (follower_id, following_id):
        if user_id not in found:
            raise users.not_found(user_id)


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
        version, following_ids = found.get(item.viewer_id, (0, []))
        response.items.add(version=version, unchanged=following_ids is None, following_ids=following_ids or ())
    return response
