"""Use cases about comments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from feedmesh.event.v1 import event_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors, idempotency, ids, outbox
from runtime.paging import DEFAULT_LIMIT, Cursors, filled
from runtime.postgres import Connection, Pool
from services.post import mentions, store
from services.post.acts import Act, perform, still
from services.post.hydrate import not_found
from services.post.sight import Sights


async def create_comments(
    pool: Pool, sights: Sights, requests: Sequence[pb.CreateCommentRequest]
) -> list[pb.CreateCommentResponse | errors.Error]:
    """Comments on posts, or says of each why not: NotFound (USER_NOT_FOUND, POST_NOT_FOUND). Raises Unavailable."""
    known = await mentions.people(sights.graph, [request.content for request in requests])

    async def work(connection: Connection, acts: Sequence[Act]) -> list[pb.CreateCommentResponse | errors.Error]:
        targets = await still(connection, acts)
        written = [(act, on) for act, on in zip(acts, targets, strict=True) if isinstance(on, store.Target)]
        comment_ids = await store.insert_comments(
            connection, [store.NewComment(act.request.user_id, *on, act.request.content) for act, on in written]
        )
        comments = [
            store.CommentRow(comment_id, on.post_id, act.request.user_id, on.author_id, act.request.content, False)
            for (act, on), comment_id in zip(written, comment_ids, strict=True)
        ]
        texts = [mentions.Written(row.user_id, row.content, row.post_id, row.comment_id) for row in comments]
        await tell_created(connection, comments, await mentions.note(connection, texts, known))
        left = iter(comments)
        return [
            pb.CreateCommentResponse(comment=present(next(left), act.username)) if isinstance(on, store.Target) else on
            for act, on in zip(acts, targets, strict=True)
        ]

    return await perform(pool, sights, requests, pb.CreateCommentResponse, work)


async def tell_created(
    connection: Connection, comments: Sequence[store.CommentRow], mentioned: Sequence[Sequence[int]]
) -> None:
    """Writes the events of new comments, and whom each mentions."""
    facts = [
        event_pb2.CommentCreated(
            comment_id=row.comment_id,
            post_id=row.post_id,
            author_id=row.author_id,
            user_id=row.user_id,
            mentioned_ids=its,
        )
        for row, its in zip(comments, mentioned, strict=True)
    ]
    await outbox.add_all(connection, [(fact.post_id, event_pb2.Event(comment_created=fact)) for fact in facts])


async def list_comments(
    pool: Pool, sights: Sights, cursors: Cursors, request: pb.ListCommentsRequest
) -> pb.ListCommentsResponse:
    """A page of a post's comments, of those who are there for the viewer.

    Raises NotFound (POST_NOT_FOUND), InvalidArgument (INVALID_CURSOR).
    """
    scope = ("comments", request.post_id, request.viewer_id)
    after = cursors.open_id(scope, request.cursor, first=0)
    limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
    on, sight = await sights.target(pool, request.viewer_id, request.post_id)
    if on is None:
        raise not_found(request.post_id)
    post_id = on.post_id

    async def read(place: int, count: int) -> tuple[list[int], dict[int, pb.Comment]]:
        rows = await store.comments_under(pool, post_id, place, count)
        writers = replace(sight, people=await sights.people.of({row.user_id for row in rows}))
        shown = {row.comment_id: present(row, writers.name(row.user_id)) for row in rows if writers.shows(row.user_id)}
        return [row.comment_id for row in rows], shown

    comments, last = await filled(limit, after, read)
    return pb.ListCommentsResponse(
        comments=comments, next_cursor=None if last is None else cursors.seal_id(scope, last)
    )


async def delete_comment(pool: Pool, sights: Sights, request: pb.DeleteCommentRequest) -> pb.DeleteCommentResponse:
    """Deletes a comment of one's own, or under a post of one's own.

    Raises NotFound (COMMENT_NOT_FOUND), Forbidden (NOT_OWNER).
    """
    under = await store.post_of_comment(pool, request.comment_id) or request.comment_id
    seen, _ = await sights.target(pool, request.user_id, under)

    async def work(connection: Connection) -> pb.DeleteCommentResponse:
        row = await store.lock_comment(connection, request.comment_id)
        own = row is not None and request.user_id in (row.user_id, row.author_id)
        if row is None or (not own and (row.deleted or seen is None)):
            raise errors.NotFound("COMMENT_NOT_FOUND", f"there is no comment {request.comment_id}")
        if not own:
            raise errors.Forbidden("NOT_OWNER", "neither the comment nor the post is yours")
        if not row.deleted:
            await store.delete_comment(connection, row)
            fact = event_pb2.CommentDeleted(comment_id=row.comment_id, post_id=row.post_id, user_id=row.user_id)
            await outbox.add(connection, row.post_id, event_pb2.Event(comment_deleted=fact))
        return pb.DeleteCommentResponse()

    return await idempotency.write(pool, request, request.user_id, pb.DeleteCommentResponse, work)


def present(row: store.CommentRow, username: str) -> pb.Comment:
    """A comment as everyone sees it who may see the post."""
    return pb.Comment(
        comment_id=row.comment_id,
        post_id=row.post_id,
        user_id=row.user_id,
        username=username,
        content=row.content,
        created_at=ids.timestamp(row.comment_id),
    )
