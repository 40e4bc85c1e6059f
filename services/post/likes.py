"""Use cases about likes. Both are idempotent: liking twice, or unliking what one does not like, changes nothing."""

from __future__ import annotations

from feedmesh.event.v1 import event_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import idempotency, outbox
from runtime.postgres import Connection, Pool
from services.post import store
from services.post.hydrate import not_found
from services.post.sight import Sights


async def like_post(pool: Pool, sights: Sights, request: pb.LikePostRequest) -> pb.LikePostResponse:
    """Likes a post. Raises NotFound (USER_NOT_FOUND, POST_NOT_FOUND)."""
    await sights.people.require(request.user_id)
    seen, _ = await sights.target(pool, request.user_id, request.post_id)

    async def work(connection: Connection) -> pb.LikePostResponse:
        liked = await still(connection, request.post_id, seen)
        if await store.insert_like(connection, request.user_id, liked):
            await tell(connection, request.user_id, liked, now_liked=True)
        return pb.LikePostResponse(
            post_id=liked.post_id, liked=True, likes=await store.likes(connection, liked.post_id)
        )

    return await idempotency.write(pool, request, request.user_id, pb.LikePostResponse, work)


async def unlike_post(pool: Pool, sights: Sights, request: pb.UnlikePostRequest) -> pb.UnlikePostResponse:
    """Takes a like back. Raises NotFound (USER_NOT_FOUND, POST_NOT_FOUND)."""
    await sights.people.require(request.user_id)
    seen, _ = await sights.target(pool, request.user_id, request.post_id)

    async def work(connection: Connection) -> pb.UnlikePostResponse:
        liked = await still(connection, request.post_id, seen)
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


async def still(connection: Connection, post_id: int, seen: store.Target | None) -> store.Target:
    """What an act on a post goes to, which the actor could see just now (None: could not).

    In the act's transaction, where a repeated request gets its first answer whatever may be seen by now. Raises
    NotFound (POST_NOT_FOUND).
    """
    if seen is None or not await store.is_there(connection, post_id):
        raise not_found(post_id)
    return seen
