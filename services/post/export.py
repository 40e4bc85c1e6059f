"""Use case of taking one's data away: what the mesh holds of a person, record by record."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import ids
from runtime.media import MediaUrls
from runtime.postgres import Pool
from services.post import media, store
from services.post.sight import Sights

PAGE = 500
"""Rows that one statement reads. Each page is a read of its own: nothing is held while the reader takes its time."""


class Kind(NamedTuple):
    """One kind of what a person wrote."""

    read: Callable[[Pool, int, int, int], Awaitable[Sequence[Any]]]
    """Gives up to so many rows of someone below an id, newest first; a row begins with its id."""
    record: Callable[[Any], pb.ExportUserResponse]
    """The record of a row."""


async def export_user(pool: Pool, sights: Sights, user_id: int) -> AsyncGenerator[pb.ExportUserResponse, None]:
    """The graph's records, then posts, comments, likes and media, each newest first, at last the end with their number.

    Nothing is read before it is asked for. What changes meanwhile may be in it or not. Raises NotFound
    (USER_NOT_FOUND), Unavailable.
    """
    count = 0
    async with aclosing(everything(pool, sights, user_id)) as records:
        async for record in records:
            count += 1
            yield record
    yield pb.ExportUserResponse(end=pb.ExportEnd(records=count))


async def everything(pool: Pool, sights: Sights, user_id: int) -> AsyncGenerator[pb.ExportUserResponse, None]:
    """All records but the end."""
    told: Any = sights.graph.ExportUser(
        graph_pb2.ExportUserRequest(user_id=user_id)
    )  # a generator: see runtime/client.py
    async with aclosing(told) as of_graph:
        async for record in of_graph:
            if record.HasField("account"):
                yield pb.ExportUserResponse(account=record.account)
            elif record.HasField("tie"):
                yield pb.ExportUserResponse(tie=record.tie)
    for kind in (*KINDS, Kind(store.media_by, partial(of_media, sights.urls))):
        before = ids.MAX_ID + 1
        while rows := await kind.read(pool, user_id, before, PAGE):
            for row in rows:
                yield kind.record(row)
            if len(rows) < PAGE:
                break
            before = rows[-1][0]


def of_post(row: store.WrittenRow) -> pb.ExportUserResponse:
    """The record of a post, share or quote."""
    return pb.ExportUserResponse(post=pb.ExportedPost(**row._asdict(), created_at=ids.timestamp(row.post_id)))


def of_comment(row: store.CommentRow) -> pb.ExportUserResponse:
    """The record of a comment."""
    return pb.ExportUserResponse(
        comment=pb.ExportedComment(
            comment_id=row.comment_id,
            post_id=row.post_id,
            content=row.content,
            created_at=ids.timestamp(row.comment_id),
        )
    )


def of_like(row: tuple[int, int]) -> pb.ExportUserResponse:
    """The record of a like."""
    like_id, post_id = row
    return pb.ExportUserResponse(like=pb.ExportedLike(post_id=post_id, created_at=ids.timestamp(like_id)))


def of_media(urls: MediaUrls, row: store.MediaRow) -> pb.ExportUserResponse:
    """The record of an image or video."""
    return pb.ExportUserResponse(media=media.present(row, urls))


KINDS = (Kind(store.written_by, of_post), Kind(store.comments_by, of_comment), Kind(store.likes_by, of_like))
"""In the order of the export; then come media."""
