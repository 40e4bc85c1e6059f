"""Use cases about likes. Both are idempotent: liking twice, or unliking what one does not like, changes nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from feedmesh.event.v1 import event_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors, outbox
from runtime.postgres import Connection, Pool
from services.post import store
from services.post.acts import Act, perform, still
from services.post.sight import Sights


async def like_posts(
    pool: Pool, sights: Sights, requests: Sequence[pb.LikePostRequest]
) -> list[pb.LikePostResponse | errors.Error]:
    """Likes posts, or says of each why not: NotFound (USER_NOT_FOUND, POST_NOT_FOUND). Raises Unavailable."""
    return await change(pool, sights, requests, pb.LikePostResponse, store.insert_likes, liked=True)


async def unlike_posts(
    pool: Pool, sights: Sights, requests: Sequence[pb.UnlikePostRequest]
) -> list[pb.UnlikePostResponse | errors.Error]:
    """Takes likes back, or says of each why not: NotFound (USER_NOT_FOUND, POST_NOT_FOUND). Raises Unavailable."""
    return await change(pool, sights, requests, pb.UnlikePostResponse, store.delete_likes, liked=False)


async def change(
    pool: Pool,
    sights: Sights,
    requests: Sequence[Any],
    response: Any,
    write: Callable[[Connection, Iterable[store.Like]], Awaitable[list[store.Like]]],
    *,
    liked: bool,
) -> list[Any]:
    """Makes requests true by `write`, which gives what it changed; answers them with a `response` each."""

    async def work(connection: Connection, acts: Sequence[Act]) -> list[Any]:
        targets = await still(connection, acts)
        likes = {
            store.Like(act.request.user_id, *on)
            for act, on in zip(acts, targets, strict=True)
            if isinstance(on, store.Target)
        }
        await tell(connection, await write(connection, likes), liked=liked)
        counts = await store.likes_of(connection, {like.post_id for like in likes})
        return [
            response(post_id=on.post_id, liked=liked, likes=counts[on.post_id]) if isinstance(on, store.Target) else on
            for on in targets
        ]

    return await perform(pool, sights, requests, response, work, named=False)


async def tell(connection: Connection, likes: Iterable[store.Like], *, liked: bool) -> None:
    """Writes the events of likes given or taken back."""
    facts = [
        event_pb2.LikeChanged(post_id=like.post_id, author_id=like.author_id, user_id=like.user_id, liked=liked)
        for like in likes
    ]
    await outbox.add_all(connection, [(fact.post_id, event_pb2.Event(like_changed=fact)) for fact in facts])
