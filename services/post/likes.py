"""Use cases about likes. Both are idempotent: liking twice, or unliking what one does not like, changes nothing."""

from __future__ import annotations

from feedmesh.event.v1 import event_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import idempotency, outbox
from runtime.postgres import Connection, Pool, Reader
from services.post import store
from services.post.hydrate import not_found
from services.post.people import People


async def like_post(pool: Pool, people: People, request: pb.LikePostRequest) -> pb.LikePostResponse:
    """Likes a post. Raises NotFound (USER_NOT_FOUND, POST_NOT_FOUND)."""
    await people.require(request.user_id)

    async def work(connection: Connection) -> pb.LikePostResponse:
        liked = await target(connection, request.post_id)
        if await store.insert_like(connection, request.user_id, liked):
            await tell(connection, request.user_id, liked, now_liked=True)
        return pb.LikePostResponse(
            post_id=liked.post_id, liked=True, likes=await store.likes(connection, liked.post_id)
        )

    return await idempotency.write(pool, request, request.user_id, pb.LikePostResponse, work)


async def unlike_post(pool: Pool, people: People, request: pb.UnlikePostRequest) -> pb.UnlikePostResponse:
    """Takes a like back. Raises NotFound (USER_NOT_FOUND, POST_NOT_FOUND)."""
    await people.require(request.user_id)

    async def work(connection: Connection) -> pb.UnlikePostResponse:
        liked = await target(connection, request.post_id)
        if await store.delete_like(connection, request.user_id, liked.post_id):
            await tell(connection, request.user_id, liked, now_liked=False)
        return pb.UnlikePostResponse(
            post_id=liked.post_id, liked=False, likes=await store.likes(connection, liked.post_id)
        )

    return await idempotency.write(pool, request, request.user_id, pb.UnlikePostResponse, work)


async def tell(connection: Connection, user_id: int, on: store.Target, *, now_liked: bool) -> None:
    """Writes the event of a like given or taken back."""
    fact = event_pb2.LikeChanged(post_id=on.post_id, author_id=on.author_id, user_id=user_id, liked=now_liked)
    await outbox.add(connection, on.post_id, event_pb2.Event(like_changed=fact))


async def target(reader: Reader, post_id: int) -> store.Target:
    """What an act on a post goes to. Raises NotFound (POST_NOT_FOUND)."""
    found = await store.target(reader, post_id)
    if found is None:
        raise not_found(post_id)
    return found
