"""Use cases about follows: following, asking to follow, unfollowing, and listing both sides."""

from __future__ import annotations

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import errors, idempotency, outbox
from runtime.paging import Cursors
from runtime.postgres import Connection, Pool
from services.graph import listings, store, users


async def follow(pool: Pool, request: pb.FollowRequest, max_following: int) -> pb.FollowResponse:
    """Makes the edge, or where the account is private the request for it, unless it is there.

    Raises InvalidArgument (SELF_FOLLOW), NotFound (USER_NOT_FOUND, across a block too), Refused (FOLLOW_LIMIT).
    """
    follower_id, following_id = request.follower_id, request.following_id
    if follower_id == following_id:
        raise errors.InvalidArgument(
            errors.Violation("following_id", "must be someone else than follower_id"), reason="SELF_FOLLOW"
        )

    async def work(connection: Connection) -> pb.FollowResponse:
        await lock(connection, follower_id, following_id)
        state = await store.follow_state(connection, follower_id, following_id)
        if state.blocked:
            raise users.not_found(following_id)
        if not state.following and not state.requested and state.reach >= max_following:
            raise errors.Refused("FOLLOW_LIMIT", f"one may follow at most {max_following} people")
        if state.private and not state.following:
            if not state.requested:
                await store.insert_request(connection, follower_id, following_id)
                fact = event_pb2.FollowRequested(follower_id=follower_id, following_id=following_id)
                await outbox.add(connection, follower_id, event_pb2.Event(follow_requested=fact))
            return pb.FollowResponse(status=pb.FOLLOW_STATUS_REQUESTED)
        if not state.following:
            await store.insert_edge(connection, follower_id, following_id)
            await tell(connection, follower_id, following_id, following=True)
        return pb.FollowResponse(status=pb.FOLLOW_STATUS_FOLLOWING)

    return await idempotency.write(pool, request, follower_id, pb.FollowResponse, work)


async def unfollow(pool: Pool, request: pb.UnfollowRequest) -> pb.UnfollowResponse:
    """Removes the edge or the request, where it is. Raises NotFound (USER_NOT_FOUND)."""

    async def work(connection: Connection) -> pb.UnfollowResponse:
        await lock(connection, request.follower_id, request.following_id)
        await end(connection, request.follower_id, request.following_id)
        return pb.UnfollowResponse(status=pb.FOLLOW_STATUS_NOT_FOLLOWING)

    return await idempotency.write(pool, request, request.follower_id, pb.UnfollowResponse, work)


async def accept(pool: Pool, request: pb.AcceptFollowRequestRequest) -> pb.AcceptFollowRequestResponse:
    """Makes an edge of a request. Raises NotFound (USER_NOT_FOUND, FOLLOW_REQUEST_NOT_FOUND)."""

    async def work(connection: Connection) -> pb.AcceptFollowRequestResponse:
        await lock(connection, request.follower_id, request.user_id)
        state = await store.follow_state(connection, request.follower_id, request.user_id)
        if not state.following:
            if not state.requested:
                raise errors.NotFound("FOLLOW_REQUEST_NOT_FOUND", f"user {request.follower_id} has not asked to follow")
            await store.insert_edge(connection, request.follower_id, request.user_id)
            await tell(connection, request.follower_id, request.user_id, following=True)
        return pb.AcceptFollowRequestResponse(status=pb.FOLLOW_STATUS_FOLLOWING)

    return await idempotency.write(pool, request, request.user_id, pb.AcceptFollowRequestResponse, work)


async def reject(pool: Pool, request: pb.RejectFollowRequestRequest) -> pb.RejectFollowRequestResponse:
    """Removes a request, where it is. Raises NotFound (USER_NOT_FOUND)."""

    async def work(connection: Connection) -> pb.RejectFollowRequestResponse:
        await lock(connection, request.follower_id, request.user_id)
        await store.delete_request(connection, request.follower_id, request.user_id)
        state = await store.follow_state(connection, request.follower_id, request.user_id)
        return pb.RejectFollowRequestResponse(
            status=pb.FOLLOW_STATUS_FOLLOWING if state.following else pb.FOLLOW_STATUS_NOT_FOLLOWING
        )

    return await idempotency.write(pool, request, request.user_id, pb.RejectFollowRequestResponse, work)


async def lock(connection: Connection, changed_id: int, other_id: int, *, both: bool = False) -> None:
    """Locks two people; the first one's relations are to change, or both's. Raises NotFound (USER_NOT_FOUND)."""
    found = await store.lock_pair(connection, changed_id, other_id, both=both)
    for user_id in (changed_id, other_id):
        if user_id not in found:
            raise users.not_found(user_id)


async def end(connection: Connection, follower_id: int, following_id: int) -> None:
    """Removes the edge and the request, where they are. The follower must be locked for a change."""
    await store.delete_request(connection, follower_id, following_id)
    if await store.delete_edge(connection, follower_id, following_id):
        await tell(connection, follower_id, following_id, following=False)


async def tell(connection: Connection, follower_id: int, following_id: int, *, following: bool) -> None:
    """Writes the event of a follow or an unfollow."""
    fact = event_pb2.FollowChanged(follower_id=follower_id, following_id=following_id, following=following)
    await outbox.add(connection, follower_id, event_pb2.Event(follow_changed=fact))


async def list_followers(pool: Pool, cursors: Cursors, request: pb.ListFollowersRequest) -> pb.ListFollowersResponse:
    """A page of who follows a person. Raises NotFound, InvalidArgument (INVALID_CURSOR)."""
    page, cursor = await listings.of_others(pool, cursors, "followers", store.FOLLOWERS, request)
    return pb.ListFollowersResponse(users=page, next_cursor=cursor)


async def list_following(pool: Pool, cursors: Cursors, request: pb.ListFollowingRequest) -> pb.ListFollowingResponse:
    """A page of whom a person follows. Raises NotFound, InvalidArgument (INVALID_CURSOR)."""
    page, cursor = await listings.of_others(pool, cursors, "following", store.FOLLOWING, request)
    return pb.ListFollowingResponse(users=page, next_cursor=cursor)


async def list_requests(
    pool: Pool, cursors: Cursors, request: pb.ListFollowRequestsRequest
) -> pb.ListFollowRequestsResponse:
    """A page of who asked to follow one. Raises NotFound, InvalidArgument (INVALID_CURSOR)."""
    page, cursor = await listings.of_oneself(pool, cursors, "requests", store.FOLLOW_REQUESTS, request)
    return pb.ListFollowRequestsResponse(users=page, next_cursor=cursor)
