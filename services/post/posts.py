"""Use cases about posts: writing, sharing, deleting, and an author's own page."""

from __future__ import annotations

from feedmesh.event.v1 import event_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors, idempotency, ids, outbox
from runtime.paging import DEFAULT_LIMIT, Cursors, filled
from runtime.postgres import Connection, Pool
from services.post import store
from services.post.hydrate import hydrate, not_found, present
from services.post.likes import still
from services.post.sight import Sights, Viewer


async def create_post(pool: Pool, sights: Sights, request: pb.CreatePostRequest) -> pb.CreatePostResponse:
    """Publishes a post. Raises NotFound (USER_NOT_FOUND)."""
    username = await sights.people.require(request.user_id)
    visibility = request.visibility or pb.VISIBILITY_PUBLIC

    async def work(connection: Connection) -> pb.CreatePostResponse:
        post_id = await store.insert_post(
            connection, request.user_id, request.content, request.media_url, visibility=visibility
        )
        await tell_created(connection, request.user_id, post_id, original_id=post_id)
        return pb.CreatePostResponse(
            post=pb.Post(
                post_id=post_id,
                user_id=request.user_id,
                username=username,
                content=request.content,
                media_url=request.media_url,
                created_at=ids.timestamp(post_id),
                visibility=visibility,
            )
        )

    return await idempotency.write(pool, request, request.user_id, pb.CreatePostResponse, work)


async def share_post(pool: Pool, sights: Sights, request: pb.SharePostRequest) -> pb.SharePostResponse:
    """Shares or quotes a post. Raises NotFound (USER_NOT_FOUND, POST_NOT_FOUND)."""
    username = await sights.people.require(request.user_id)
    seen, sight = await sights.target(pool, request.user_id, request.post_id)

    async def work(connection: Connection) -> pb.SharePostResponse:
        original = await still(connection, request.post_id, seen)
        if request.content.strip():
            share_id = await store.insert_post(
                connection,
                request.user_id,
                request.content,
                "",
                visibility=pb.VISIBILITY_PUBLIC,
                shared_post_id=original.post_id,
            )
            await store.add_delta(connection, original.post_id, shares=1)
            await tell_created(
                connection, request.user_id, share_id, original_id=share_id, shared_post_id=original.post_id
            )
        else:
            share_id = await share_plainly(connection, request.user_id, original)
        rows = await store.posts(connection, [share_id, original.post_id])
        if len(rows) < 2:
            # The original was deleted meanwhile: nothing is written.
            raise not_found(request.post_id)
        liked = await store.liked(connection, [(request.user_id, original.post_id)])
        post = present(rows, rows[share_id], sight, liked)
        post.username = username
        # The stored answer holds nothing of anybody else: it outlives the original by up to a day.
        post.ClearField("shared_post")
        return pb.SharePostResponse(post=post)

    response = await idempotency.write(pool, request, request.user_id, pb.SharePostResponse, work)
    if seen is not None:
        [originals] = await hydrate(pool, sights, [(Viewer(request.user_id), [seen.post_id])])
        for original in originals:
            original.ClearField("shared_post")
            response.post.shared_post.CopyFrom(original)
    return response


async def share_plainly(connection: Connection, user_id: int, original: store.Target) -> int:
    """Someone's one plain share of a post: the one that there is, or a new one."""
    while True:
        # Between the two statements the share that was in the way may have been taken back: then it is made again.
        if share_id := await store.insert_plain_share(connection, user_id, original):
            await tell_created(
                connection, user_id, share_id, original_id=original.post_id, shared_post_id=original.post_id
            )
            return share_id
        if share_id := await store.plain_share(connection, user_id, original):
            return share_id


async def tell_created(
    connection: Connection, author_id: int, post_id: int, *, original_id: int, shared_post_id: int = 0
) -> None:
    """Writes the event of a new post, share or quote."""
    fact = event_pb2.PostCreated(
        post_id=post_id, author_id=author_id, original_id=original_id, shared_post_id=shared_post_id
    )
    await outbox.add(connection, author_id, event_pb2.Event(post_created=fact))


async def delete_post(pool: Pool, sights: Sights, request: pb.DeletePostRequest) -> pb.DeletePostResponse:
    """Deletes one's own post. Raises NotFound (POST_NOT_FOUND), Forbidden (NOT_OWNER)."""
    seen, _ = await sights.target(pool, request.user_id, request.post_id)

    async def work(connection: Connection) -> pb.DeletePostResponse:
        row = await store.lock_post(connection, request.post_id)
        own = row is not None and row.user_id == request.user_id
        if row is None or (not own and (row.deleted or seen is None)):
            raise not_found(request.post_id)
        if not own:
            raise errors.Forbidden("NOT_OWNER", "the post is someone else's")
        if not row.deleted:
            await remove(connection, row)
        return pb.DeletePostResponse()

    return await idempotency.write(pool, request, request.user_id, pb.DeletePostResponse, work)


async def remove(connection: Connection, row: store.LockedPost) -> None:
    """Deletes a post that the transaction holds."""
    await store.delete_post(connection, row)
    # Of its plain shares no event tells: whoever knows them knows that they repeat this post.
    fact = event_pb2.PostDeleted(post_id=row.post_id, author_id=row.user_id, shared_post_id=row.shared_post_id or 0)
    await outbox.add(connection, row.user_id, event_pb2.Event(post_deleted=fact))


async def list_user_posts(
    pool: Pool, sights: Sights, cursors: Cursors, request: pb.ListUserPostsRequest
) -> pb.ListUserPostsResponse:
    """A page of those of one person's posts that the viewer may see.

    Raises NotFound (USER_NOT_FOUND), InvalidArgument (INVALID_CURSOR).
    """
    scope = ("posts", request.user_id, request.viewer_id)
    before = cursors.open_id(scope, request.cursor, first=ids.MAX_ID + 1)
    limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
    sight = await sights.require(request.user_id, request.viewer_id)
    if not sight.sees(request.user_id, pb.VISIBILITY_PUBLIC):
        return pb.ListUserPostsResponse()
    version = sight.relation.version if sight.relation is not None else 0
    viewer = Viewer(request.viewer_id, version, sight.kept)

    async def read(place: int, count: int) -> tuple[list[int], dict[int, pb.Post]]:
        post_ids = await store.posts_of(pool, request.user_id, place, count)
        [posts] = await hydrate(pool, sights, [(viewer, post_ids)])
        return post_ids, {post.post_id: post for post in posts}

    posts, last = await filled(limit, before, read)
    return pb.ListUserPostsResponse(posts=posts, next_cursor=None if last is None else cursors.seal_id(scope, last))
