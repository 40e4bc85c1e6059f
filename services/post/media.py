"""Use cases about media: who uploaded what, which posts show it, and what is cleared away.

Of each upload there is a row before its objects are stored, and objects go only when no row names them any more. Both
take a lock on the media: so an upload that begins while its objects are cleared away waits, and stores them after that.
One that began before its row was forgotten has stored them by the time when they are cleared away, minutes later. So no
row lacks its objects, and no objects stay that nothing names.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors, ids, media, postgres
from runtime.blobs import Blobs
from runtime.media import MediaUrls
from runtime.postgres import Connection, Pool
from services.post import store
from services.post.sight import Sights, is_public

MAX_UNATTACHED, MAX_MEDIA = 100, 10_000
"""What one person may have uploaded that no post of theirs shows, and in all."""
DUE, LEFT = 200, 50
"""Rows that one round looks at, and media whose objects it clears away."""


async def create_media(
    pool: Pool, sights: Sights, max_bytes: int, request: pb.CreateMediaRequest
) -> pb.CreateMediaResponse:
    """Notes an upload. Raises NotFound (USER_NOT_FOUND), Refused (MEDIA_LIMIT), Unavailable."""
    await sights.people.require(request.user_id)
    new = store.NewMedia(
        request.media_id,
        request.user_id,
        request.size,
        request.width,
        request.height,
        request.duration_ms,
        request.bytes,
    )

    async def work(connection: Connection) -> store.MediaRow:
        await store.lock(connection, f"media of {request.user_id}")
        await store.lock(connection, f"media {request.media_id}")
        row = await store.renew_media(connection, new)
        if row is None:
            count, unattached, held = await store.media_held(connection, new.user_id)
            if unattached >= MAX_UNATTACHED:
                raise errors.Refused("MEDIA_LIMIT", f"{MAX_UNATTACHED} media wait for a post: write it, or wait a day")
            if count >= MAX_MEDIA or held + new.bytes > max_bytes:
                raise errors.Refused(
                    "MEDIA_LIMIT", f"one may keep {MAX_MEDIA} media, and {max_bytes} bytes: delete posts that show some"
                )
            row = await store.insert_media(connection, new)
        return row

    return pb.CreateMediaResponse(media=present(await postgres.transact(pool, work), sights.urls))


async def get_public(pool: Pool, sights: Sights, media_ids: Sequence[str]) -> pb.BatchGetPublicMediaResponse:
    """Those of the media that everybody may see. Raises Unavailable."""
    shown = await store.publicly_shown(pool, media_ids)
    people = await sights.people.of({user_id for _, user_id in shown})
    public = {media_id for media_id, user_id in shown if is_public(pb.VISIBILITY_PUBLIC, people.get(user_id))}
    if any(media_id not in public and user_id not in people for media_id, user_id in shown):
        raise errors.Unavailable("the graph cannot be reached")
    return pb.BatchGetPublicMediaResponse(media_ids=sorted(public))


async def attach(
    connection: Connection, urls: MediaUrls, wanted: Sequence[tuple[int, str]]
) -> list[str | errors.InvalidArgument]:
    """For each new post (author, media_url): the media_url that it holds, or why it may not show it.

    Media of the authors' are theirs for as long as such a post is there, from this transaction on.
    """
    media_ids = [urls.media_id(url) for _, url in wanted]
    asked = {(user_id, media_id) for (user_id, _), media_id in zip(wanted, media_ids, strict=True) if media_id}
    held = await store.attach_media(connection, sorted(asked)) if asked else {}
    return [
        url
        if not media_id
        else media.path(media_id, held[user_id, media_id])
        if (user_id, media_id) in held
        else errors.InvalidArgument(
            errors.Violation("media_url", "is no media of the author's, or not any more: POST /media uploads it")
        )
        for (user_id, url), media_id in zip(wanted, media_ids, strict=True)
    ]


def present(row: store.MediaRow, urls: MediaUrls) -> pb.Media:
    """A media as whoever uploaded it sees it."""
    return pb.Media(
        media_id=row.media_id,
        media_url=urls.shown(media.path(row.media_id, row.size), public=False),
        width=row.width,
        height=row.height,
        duration_ms=row.duration_ms,
        bytes=row.bytes,
        created_at=ids.timestamp(row.upload_id),
    )


# Upkeep.


async def forget_unshown(pool: Pool) -> bool:
    """Forgets uploads that are due and that no post of their owner shows; True when there may be more."""

    async def work(connection: Connection) -> int:
        # Locked first: a post that shows one is committed by now, or finds it gone.
        due = await store.lock_due_media(connection, DUE)
        await store.forget_media(connection, await store.unshown_of(connection, due))
        return len(due)

    return await postgres.transact(pool, work) == DUE


async def clear_left(pool: Pool, blobs: Blobs) -> bool:
    """Clears away the objects of media that no row names any more; True when there may be more at once.

    Raises Unavailable where the store fails; it is asked again.
    """
    left = await store.left_media(pool, LEFT)
    done = [await postgres.transact(pool, partial(clear_one, blobs=blobs, media_id=media_id)) for media_id in left]
    return sum(done) == LEFT


async def clear_one(connection: Connection, blobs: Blobs, media_id: str) -> bool:
    """Clears away one media's objects, unless somebody has uploaded it again; whether that is done."""
    # First the note: who forgets a row of it meanwhile waits, and notes it anew.
    if not await store.lock_left_media(connection, media_id):
        return False
    if not await store.try_lock(connection, f"media {media_id}"):
        return False  # it is being uploaded
    # No upload begins from here on until the objects are gone.
    if not await store.is_media_named(connection, media_id):
        await blobs.delete([media.key(media_id, size) for size in media.SIZES])
    await store.forget_left_media(connection, media_id)
    return True
