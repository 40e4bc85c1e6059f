"""Use cases about blocks, which go both ways, and mutes, which are one's own affair."""

from __future__ import annotations

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import errors, idempotency, outbox
from runtime.paging import Cursors
from runtime.postgres import Connection, Pool
from services.graph import follows, listings, store

MAX_BLOCKS = 10_000
MAX_MUTES = 10_000


async def block(pool: Pool, request: pb.BlockRequest) -> pb.BlockResponse:
    """Hides two people from each other, their follows and requests ended.

    Raises InvalidArgument (SELF_TARGET), NotFound (USER_NOT_FOUND), Refused (BLOCK_LIMIT).
    """
    user_id, target_id = request.user_id, request.target_id
    require_other(user_id, target_id)

    async def work(connection: Connection) -> pb.BlockResponse:
        await follows.lock(connection, user_id, target_id, both=True)
        if await store.is_full(connection, store.BLOCKS, user_id, target_id, MAX_BLOCKS):
            raise errors.Refused("BLOCK_LIMIT", f"one may block at most {MAX_BLOCKS} people")
        await follows.end(connection, user_id, target_id)
        await follows.end(connection, target_id, user_id)
        if await store.insert_block(connection, user_id, target_id):
            await tell(connection, user_id, target_id, blocked=True)
        return pb.BlockResponse()

    return await idempotency.write(pool, request, user_id, pb.BlockResponse, work)


async def unblock(pool: Pool, request: pb.UnblockRequest) -> pb.UnblockResponse:
    """Takes one's own block back, where it is. Raises NotFound (USER_NOT_FOUND)."""

    async def work(connection: Connection) -> pb.UnblockResponse:
        await follows.lock(connection, request.user_id, request.target_id, both=True)
        if await store.delete_block(connection, request.user_id, request.target_id):
            await tell(connection, request.user_id, request.target_id, blocked=False)
        return pb.UnblockResponse()

    return await idempotency.write(pool, request, request.user_id, pb.UnblockResponse, work)


async def tell(connection: Connection, user_id: int, target_id: int, *, blocked: bool) -> None:
    """Adds the event of a block or of its end."""
    fact = event_pb2.BlockChanged(user_id=user_id, target_id=target_id, blocked=blocked)
    await outbox.add(connection, user_id, event_pb2.Event(block_changed=fact))


async def mute(pool: Pool, request: pb.MuteRequest) -> pb.MuteResponse:
    """Keeps someone out of one's feed.

    Raises InvalidArgument (SELF_TARGET), NotFound (USER_NOT_FOUND), Refused (MUTE_LIMIT).
    """
    require_other(request.user_id, request.target_id)

    async def work(connection: Connection) -> pb.MuteResponse:
        await follows.lock(connection, request.user_id, request.target_id)
        if await store.is_full(connection, store.MUTES, request.user_id, request.target_id, MAX_MUTES):
            raise errors.Refused("MUTE_LIMIT", f"one may mute at most {MAX_MUTES} people")
        await store.insert_mute(connection, request.user_id, request.target_id)
        return pb.MuteResponse()

    return await idempotency.write(pool, request, request.user_id, pb.MuteResponse, work)


async def unmute(pool: Pool, request: pb.UnmuteRequest) -> pb.UnmuteResponse:
    """Takes a mute back, where it is. Raises NotFound (USER_NOT_FOUND)."""

    async def work(connection: Connection) -> pb.UnmuteResponse:
        await follows.lock(connection, request.user_id, request.target_id)
        await store.delete_mute(connection, request.user_id, request.target_id)
        return pb.UnmuteResponse()

    return await idempotency.write(pool, request, request.user_id, pb.UnmuteResponse, work)


def require_other(user_id: int, target_id: int) -> None:
    """Raises InvalidArgument (SELF_TARGET) for oneself."""
    if user_id == target_id:
        raise errors.InvalidArgument(
            errors.Violation("target_id", "must be someone else than user_id"), reason="SELF_TARGET"
        )


async def list_blocks(pool: Pool, cursors: Cursors, request: pb.ListBlocksRequest) -> pb.ListBlocksResponse:
    """A page of whom one blocks. Raises NotFound, InvalidArgument (INVALID_CURSOR)."""
    page, cursor = await listings.of_oneself(pool, cursors, "blocks", store.BLOCKS, request)
    return pb.ListBlocksResponse(users=page, next_cursor=cursor)


async def list_mutes(pool: Pool, cursors: Cursors, request: pb.ListMutesRequest) -> pb.ListMutesResponse:
    """A page of whom one mutes. Raises NotFound, InvalidArgument (INVALID_CURSOR)."""
    page, cursor = await listings.of_oneself(pool, cursors, "mutes", store.MUTES, request)
    return pb.ListMutesResponse(users=page, next_cursor=cursor)
