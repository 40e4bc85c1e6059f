"""Use cases about posts: writing, sharing, deleting, and an author's own page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feedmesh.event.v1 import event_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors, idempotency, ids, members, outbox, validation, wire
from runtime.paging import Cursors, Rows, filled_each, most_posts
from runtime.postgres import Connection, Pool
from services.post import media, mentions, store
from services.post.acts import Act, perform, still
from services.post.hot import HotPost, HotPosts
from services.post.hydrate import hydrate, hydrate_pages, not_found, present
from services.post.sight import Sights, Viewer, is_public

UserPosts = wire.closed(pb.ListUserPostsResponse.DESCRIPTOR, [pb.Post.DESCRIPTOR])
"""A ListUserPostsResponse whose posts are bytes."""


async def create_posts(
    pool: Pool, sights: Sights, requests: Sequence[pb.CreatePostRequest]
) -> list[pb.CreatePostResponse | errors.Error]:
    """Publishes posts, or says of each why not: NotFound (USER_NOT_FOUND), InvalidArgument of a media_url that is not
    the author's. Raises Unavailable."""
    known = await mentions.people(sights.graph, [request.content for request in requests])

    async def work(connection: Connection, acts: Sequence[Act]) -> list[pb.CreatePostResponse | errors.InvalidArgument]:
        media_urls = await media.attach(
            connection, sights.urls, [(act.request.user_id, act.request.media_url) for act in acts]
        )
        written = [(act, url) for act, url in zip(acts, media_urls, strict=True) if isinstance(url, str)]
        left = iter(await insert(connection, written))
        return [pb.CreatePostResponse(post=next(left)) if isinstance(url, str) else url for url in media_urls]

    async def insert(connection: Connection, written: Sequence[tuple[Act, str]]) -> list[pb.Post]:
        new = [
            store.NewPost(
                act.request.user_id, act.request.content, media_url, act.request.visibility or pb.VISIBILITY_PUBLIC
            )
            for act, media_url in written
        ]
        post_ids = await store.insert_posts(connection, new)
        posts = [
            pb.Post(
                post_id=post_id,
                user_id=row.user_id,
                username=act.username,
                content=row.content,
                media_url=row.media_url,
                created_at=ids.timestamp(post_id),
                visibility=pb.Visibility.ValueType(row.visibility),
            )
            for (act, _), row, post_id in zip(written, new, post_ids, strict=True)
        ]
        texts = [mentions.Written(post.user_id, post.content, post.post_id) for post in posts]
        mentioned = await mentions.note(connection, texts, known)
        await tell_created(
            connection,
            *(
                event_pb2.PostCreated(
                    post_id=post.post_id, author_id=post.user_id, original_id=post.post_id, mentioned_ids=its
                )
                for post, its in zip(posts, mentioned, strict=True)
            ),
        )
        return posts

    answers = await perform(pool, sights, requests, pb.CreatePostResponse, work)
    # The stored answers hold no signature: they may be asked for when it has expired.
    made = [answer.post for answer in answers if isinstance(answer, pb.CreatePostResponse) and answer.post.media_url]
    people = await sights.people.of({post.user_id for post in made}) if made else {}
    for post in made:
        public = is_public(post.visibility, people.get(post.user_id))
        post.media_url = sights.urls.shown(post.media_url, public=public)
    return answers


async def share_post(pool: Pool, sights: Sights, request: pb.SharePostRequest) -> pb.SharePostResponse:
    """Shares or quotes a post. Raises NotFound (USER_NOT_FOUND, POST_NOT_FOUND)."""
    username = await sights.people.require(request.user_id)
    seen, sight = await sights.target(pool, request.user_id, request.post_id)
    known = await mentions.people(sights.graph, [request.content])

    async def work(connection: Connection) -> pb.SharePostResponse:
        [original] = await still(connection, [Act(request, username, seen)])
        if isinstance(original, errors.Error):
            raise original
        if request.content.strip():
            quote = store.NewPost(request.user_id, request.content, "", pb.VISIBILITY_PUBLIC, original.post_id)
            [share_id] = await store.insert_posts(connection, [quote])
            await store.add_delta(connection, original.post_id, shares=1)
            told = shared(request.user_id, share_id, share_id, original)
            written = mentions.Written(request.user_id, request.content, share_id, quoted_id=original.author_id)
            [mentioned] = await mentions.note(connection, [written], known)
            told.mentioned_ids.extend(mentioned)
            await tell_created(connection, told)
        else:
            share_id = await share_plainly(connection, request.user_id, original)
        rows = await store.posts(connection, [share_id, original.post_id])
        shown = {post_id: HotPost(row) for post_id, row in rows.items()}
        if len(rows) < 2:
            # The original was deleted meanwhile: nothing is written.
            raise not_found(request.post_id)
        liked = await store.liked(connection, [request.user_id], [original.post_id])
        post = pb.Post.FromString(present(shown, shown[share_id], sight, liked.get(request.user_id, ())))
        post.username = username
        # The stored answer holds nothing of anybody else: it outlives the original by up to a day.
        post.ClearField("shared_post")
        return pb.SharePostResponse(post=post)

    response = await idempotency.write(pool, request, request.user_id, pb.SharePostResponse, work)
    if seen is not None:
        [originals] = await hydrate(pool, sights, [(Viewer(request.user_id), [seen.post_id])])
        for original in map(pb.Post.FromString, originals.values()):
            original.ClearField("shared_post")
            response.post.shared_post.CopyFrom(original)
    return response


async def share_plainly(connection: Connection, user_id: int, original: store.Target) -> int:
    """Someone's one plain share of a post: the one that there is, or a new one."""
    while True:
        # Between the two statements the share that was in the way may have been taken back: then it is made again.
        if share_id := await store.insert_plain_share(connection, user_id, original):
            await tell_created(connection, shared(user_id, share_id, original.post_id, original))
            return share_id
        if share_id := await store.plain_share(connection, user_id, original):
            return share_id


def shared(user_id: int, share_id: int, original_id: int, of: store.Target) -> event_pb2.PostCreated:
    """What is told of a new share or quote of a post."""
    return event_pb2.PostCreated(
        post_id=share_id,
        author_id=user_id,
        original_id=original_id,
        shared_post_id=of.post_id,
        shared_author_id=of.author_id,
    )


async def tell_created(connection: Connection, *facts: event_pb2.PostCreated) -> None:
    """Writes the events of new posts, shares and quotes."""
    await outbox.add_all(connection, [(fact.author_id, event_pb2.Event(post_created=fact)) for fact in facts])


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
    hot: HotPosts, sights: Sights, cursors: Cursors, requests: Sequence[pb.ListUserPostsRequest]
) -> list[Any]:
    """For each request a page of those of one person's posts that the viewer may see (a `UserPosts`), or why not:
    NotFound (USER_NOT_FOUND), InvalidArgument (INVALID_CURSOR). Raises Unavailable."""
    results: dict[int, Any] = {}
    starts: dict[int, int] = {}
    for at, request in enumerate(requests):
        try:
            if wrong := validation.violations(request):
                raise errors.InvalidArgument(*wrong)
            starts[at] = cursors.open_id(scope(request), request.cursor, first=ids.MAX_ID + 1)
        except errors.InvalidArgument as error:
            results[at] = error
    pairs = [(requests[at].viewer_id, requests[at].user_id) for at in starts]
    viewers: dict[int, Viewer] = {}
    for at, sight in zip(starts, await sights.of_each(pairs), strict=True):
        if isinstance(sight, errors.Error):
            results[at] = sight
        elif sight.sees(requests[at].user_id, pb.VISIBILITY_PUBLIC):
            version = sight.relation.version if sight.relation is not None else 0
            viewers[at] = Viewer(sight.viewer_id, version, sight.kept)
        else:
            results[at] = UserPosts()

    pages = {at: (most_posts(requests[at]), starts[at]) for at in viewers}

    async def read(places: Mapping[int, int]) -> dict[int, Rows[bytes]]:
        questions = [(requests[at].user_id, 0, before - 1, pages[at][0] + 1) for at, before in places.items()]
        rows = members.unpack_each((await store.newest_of_each(hot.pool, questions))[0])
        post_ids = [each[:, 0].tolist() for each in rows]
        posts = await hydrate_pages(hot, sights, [(viewers[at], its) for at, its in zip(places, post_ids, strict=True)])
        return dict(zip(places, zip(post_ids, posts, strict=True), strict=True))

    for at, (posts, last) in (await filled_each(pages, read)).items():
        cursor = None if last is None else cursors.seal_id(scope(requests[at]), last)
        results[at] = UserPosts(posts=posts, next_cursor=cursor)
    return [results[at] for at in range(len(requests))]


def scope(request: pb.ListUserPostsRequest) -> tuple[str | int, ...]:
    """What a page's cursor is bound to."""
    return ("posts", request.user_id, request.viewer_id)
