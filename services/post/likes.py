"""Use cases about likes. Both are idempotent: liking twice, or unliking what one does not like, changes nothing."""

from __future__ import annotations

from feedmesh.post.v1 import post_pb2 as pb
from runtime import idempotency
from runtime.postgres import Connection, Pool, Reader
from services.post import store
from services.post.hydrate import not_found
from services.post.people import People


async def like_post(pool: Pool, people: People, request: pb.LikePostRequest) -> pb.LikePostResponse:
    """Likes a post. Raises NotFound (USER_NOT_FOUND, POST_NOT_FOUND)."""
    await people.require(request.user_id)

    async def work(connection: Connection) -> pb.LikePostResponse:
        liked = await target(connection, request.post_id)
        await store.insert_like(connection, request.user_id, liked)
        return pb.LikePostResponse(
            post_id=liked.post_id, liked=True, likes=await store.likes(connection, liked.post_id)
        )

    return await idempotency.write(pool, request, request.user_id, pb.LikePostResponse, work)


async def unlike_post(pool: Pool, people: People, request: pb.UnlikePostRequest) -> pb.UnlikePostResponse:
    """Takes a like back. Raises NotFound (USER_NOT_FOUND, POST_NOT_FOUND)."""
    await people.require(request.user_id)

    async def work(connection: Connection) -> pb.UnlikePostResponse:
        liked = await target(connection, request.post_id)
        await store.delete_like(connection, request.user_id, liked.post_id)
        return pb.UnlikePostResponse(
            post_id=liked.post_id, liked=False, likes=await store.likes(connection, liked.post_id)
        )

    return await idempotency.write(pool, request, request.user_id, pb.UnlikePostResponse, work)


async def target(reader: Reader, post_id: int) -> store.Target:
    """What an act on a post goes to. Raises NotFound (POST_NOT_FOUND)."""
    found = await store.target(reader, post_id)
    if found is None:
        raise not_found(post_id)
    return found
