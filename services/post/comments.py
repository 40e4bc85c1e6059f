"""Use cases about comments."""

from __future__ import annotations

from feedmesh.event.v1 import event_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors, idempotency, ids, outbox
from runtime.paging import DEFAULT_LIMIT, Cursors
from runtime.postgres import Connection, Pool
from services.post import store
from services.post.likes import target
from services.post.people import People


async def create_comment(pool: Pool, people: People, request: pb.CreateCommentRequest) -> pb.CreateCommentResponse:
    """Comments on a post. Raises NotFound (USER_NOT_FOUND, POST_NOT_FOUND)."""
    username = await people.require(request.user_id)

    async def work(connection: Connection) -> pb.CreateCommentResponse:
        on = await target(connection, request.post_id)
        comment_id = await store.insert_comment(connection, request.user_id, on, request.content)
        fact = event_pb2.CommentCreated(
            comment_id=comment_id, post_id=on.post_id, author_id=on.author_id, user_id=request.user_id
        )
        await outbox.add(connection, on.post_id, event_pb2.Event(comment_created=fact))
        row = store.CommentRow(comment_id, on.post_id, request.user_id, on.author_id, request.content, False)
        return pb.CreateCommentResponse(comment=present(row, username))

    return await idempotency.write(pool, request, request.user_id, pb.CreateCommentResponse, work)


async def list_comments(
    pool: Pool, people: People, cursors: Cursors, request: pb.ListCommentsRequest
) -> pb.ListCommentsResponse:
    """A page of a post's comments. Raises NotFound (POST_NOT_FOUND), InvalidArgument (INVALID_CURSOR)."""
    scope = ("comments", request.post_id, request.viewer_id)
    after = cursors.open_id(scope, request.cursor, first=0)
    limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
    on = await target(pool, request.post_id)
    rows = await store.comments_under(pool, on.post_id, after, limit + 1)
    page = rows[:limit]
    names = await people.names({row.user_id for row in page})
    return pb.ListCommentsResponse(
        comments=[present(row, names.get(row.user_id, "")) for row in page],
        next_cursor=cursors.seal_id(scope, page[-1].comment_id) if len(rows) > limit else None,
    )


async def delete_comment(pool: Pool, request: pb.DeleteCommentRequest) -> pb.DeleteCommentResponse:
    """Deletes a comment. Raises NotFound (COMMENT_NOT_FOUND), Forbidden (NOT_OWNER)."""

    async def work(connection: Connection) -> pb.DeleteCommentResponse:
        row = await store.lock_comment(connection, request.comment_id)
        own = row is not None and request.user_id in (row.user_id, row.author_id)
        if row is None or (row.deleted and not own):
            raise errors.NotFound("COMMENT_NOT_FOUND", f"there is no comment {request.comment_id}")
        if not own:
            raise errors.Forbidden("NOT_OWNER", "neither the comment nor the post is yours")
        if not row.deleted:
            await store.delete_comment(connection, row)
            fact = event_pb2.CommentDeleted(comment_id=row.comment_id, post_id=row.post_id)
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
