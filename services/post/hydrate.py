"""Hydration: from ids to posts as a viewer sees them, with names, counts and the viewer's own likes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors, ids
from runtime.postgres import Pool
from services.post import store
from services.post.sight import STRANGER, Sight, Sights, Viewer


async def hydrate(pool: Pool, sights: Sights, pages: Sequence[tuple[Viewer, Sequence[int]]]) -> list[list[pb.Post]]:
    """For each page (viewer, post ids) the posts that the viewer may see, in the order asked for.

    Raises Unavailable.
    """
    rows = await store.posts(pool, {post_id for _, post_ids in pages for post_id in post_ids})
    if originals := {row.shared_post_id for row in rows.values() if row.shared_post_id is not None} - rows.keys():
        rows |= await store.posts(pool, originals)
    likeable = [
        (viewer.user_id, shown_id)
        for viewer, post_ids in pages
        if viewer.user_id != STRANGER
        for shown_id in {other for post_id in post_ids if post_id in rows for other in shown(rows[post_id])}
    ]
    # What is not there is asked for as what may not be seen is, so that the time tells nothing.
    authors = {row.user_id for row in rows.values()} or {post_id for _, post_ids in pages for post_id in post_ids}
    liked, seen = await asyncio.gather(store.liked(pool, likeable), sights.of([viewer for viewer, _ in pages], authors))
    return [
        [
            present(rows, row, sight, liked)
            for post_id in post_ids
            if (row := rows.get(post_id)) and sight.sees_post(row, rows.get(row.original_id))
        ]
        for sight, (_, post_ids) in zip(seen, pages, strict=True)
    ]


def shown(row: store.PostRow) -> tuple[int, ...]:
    """The ids of the posts that are shown with one: itself and its original."""
    return (row.post_id,) if row.shared_post_id is None else (row.post_id, row.shared_post_id)


async def hydrate_one(pool: Pool, sights: Sights, post_id: int, viewer_id: int) -> pb.Post:
    """One post as the viewer sees it. Raises NotFound (POST_NOT_FOUND), Unavailable."""
    [posts] = await hydrate(pool, sights, [(Viewer(viewer_id), [post_id])])
    if not posts:
        raise not_found(post_id)
    return posts[0]


def present(
    rows: Mapping[int, store.PostRow],
    row: store.PostRow,
    sight: Sight,
    liked: set[tuple[int, int]],
    *,
    nested: bool = False,
) -> pb.Post:
    """A post as the viewer sees it; its original, one level deep, where that may be seen."""
    counted = rows[row.original_id]
    post = pb.Post(
        post_id=row.post_id,
        user_id=row.user_id,
        username=sight.name(row.user_id),
        content=row.content,
        media_url=row.media_url,
        created_at=ids.timestamp(row.post_id),
        visibility=pb.Visibility.ValueType(row.visibility),
        likes=counted.likes,
        comments=counted.comments,
        shares=counted.shares,
        liked=(sight.viewer_id, counted.post_id) in liked,
    )
    original = rows.get(row.shared_post_id) if row.shared_post_id is not None and not nested else None
    if original is not None and sight.sees(original.user_id, original.visibility):
        post.shared_post.CopyFrom(present(rows, original, sight, liked, nested=True))
    return post


def not_found(post_id: int) -> errors.NotFound:
    """There is no such post, or it may not be seen."""
    return errors.NotFound("POST_NOT_FOUND", f"there is no post {post_id}")
