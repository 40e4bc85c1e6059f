"""What is true has its event: a write that changes something leaves exactly one in the outbox, in its transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from feedmesh.event.v1 import event_pb2 as event
from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors, postgres
from runtime.postgres import Pool
from tests.fakes.serving import GraphService, RealPostService

Told = tuple[int, event.Event]


async def told(pool: Pool) -> list[Told]:
    """Key and content of the events that were written since the last time, in order."""
    rows = await postgres.fetch(
        pool, "DELETE FROM outbox WHERE published_at IS NULL RETURNING event_id, partition_key, event"
    )
    return [(key, event.Event.FromString(payload)) for _, key, payload in sorted(rows)]


async def join(stub: Any, name: str) -> int:
    created = await stub.CreateUser(graph_pb2.CreateUserRequest(username=name, email=f"{name}@example.org"))
    return int(created.user.user_id)


def followed(follower: int, followee: int, following: bool) -> Told:
    fact = event.FollowChanged(follower_id=follower, following_id=followee, following=following)
    return follower, event.Event(follow_changed=fact)


def liked(post: int, author: int, user: int, liked: bool) -> Told:
    return post, event.Event(like_changed=event.LikeChanged(post_id=post, author_id=author, user_id=user, liked=liked))


def created(post: int, author: int, *, original: int | None = None, shared: int = 0, of: int = 0) -> Told:
    fact = event.PostCreated(
        post_id=post, author_id=author, original_id=original or post, shared_post_id=shared, shared_author_id=of
    )
    return author, event.Event(post_created=fact)


def deleted(post: int, author: int, *, shared: int = 0) -> Told:
    fact = event.PostDeleted(post_id=post, author_id=author, shared_post_id=shared)
    return author, event.Event(post_deleted=fact)


async def test_joining_and_following_are_told_once_each(graph_service: GraphService, graph_pool: Pool) -> None:
    stub = graph_service.stub
    ann, bob = await join(stub, "ann"), await join(stub, "bob")
    assert await told(graph_pool) == [
        (user_id, event.Event(user_created=event.UserCreated(user_id=user_id))) for user_id in (ann, bob)
    ]
    with pytest.raises(errors.Conflict):
        await join(stub, "ann")
    follow = graph_pb2.FollowRequest(follower_id=ann, following_id=bob)
    unfollow = graph_pb2.UnfollowRequest(follower_id=ann, following_id=bob)
    await stub.Unfollow(unfollow)
    assert await told(graph_pool) == []
    for _ in range(2):
        await asyncio.gather(*(stub.Follow(follow) for _ in range(4)))
        assert await told(graph_pool) == [followed(ann, bob, True)]
        await asyncio.gather(*(stub.Unfollow(unfollow) for _ in range(4)))
        assert await told(graph_pool) == [followed(ann, bob, False)]


async def test_blocks_privacy_and_wishes_to_follow_are_told_once_each(
    graph_service: GraphService, graph_pool: Pool
) -> None:
    stub = graph_service.stub
    ann, bob = await join(stub, "ann"), await join(stub, "bob")
    await stub.Follow(graph_pb2.FollowRequest(follower_id=ann, following_id=bob))
    await told(graph_pool)
    blocked, ended = (
        event.Event(block_changed=event.BlockChanged(user_id=bob, target_id=ann, blocked=each))
        for each in (True, False)
    )
    for _ in range(2):
        await stub.Block(graph_pb2.BlockRequest(user_id=bob, target_id=ann))
    assert await told(graph_pool) == [followed(ann, bob, False), (bob, blocked)]
    for _ in range(2):
        await stub.Unblock(graph_pb2.UnblockRequest(user_id=bob, target_id=ann))
    assert await told(graph_pool) == [(bob, ended)]
    await stub.UpdateUser(graph_pb2.UpdateUserRequest(user_id=bob, username="robert"))
    assert await told(graph_pool) == []
    await stub.UpdateUser(graph_pb2.UpdateUserRequest(user_id=bob, private=True))
    fact = event.PrivacyChanged(user_id=bob, private=True)
    assert await told(graph_pool) == [(bob, event.Event(privacy_changed=fact))]
    for _ in range(2):
        await stub.Follow(graph_pb2.FollowRequest(follower_id=ann, following_id=bob))
    wish = event.FollowRequested(follower_id=ann, following_id=bob)
    assert await told(graph_pool) == [(ann, event.Event(follow_requested=wish))]


async def test_events_name_whom_texts_mention(post_service: RealPostService) -> None:
    stub, pool = post_service.stub, post_service.pool
    ann, bob = await join(post_service.graph, "ann"), await join(post_service.graph, "bob")
    post = (await stub.CreatePost(pb.CreatePostRequest(user_id=ann, content="@bob @ann @nobody"))).post.post_id
    await stub.CreateComment(pb.CreateCommentRequest(user_id=bob, post_id=post, content="@ann"))
    await stub.SharePost(pb.SharePostRequest(user_id=ann, post_id=post, content="@bob"))
    facts = [each for _, each in await told(pool)]
    assert [list(fact.post_created.mentioned_ids or fact.comment_created.mentioned_ids) for fact in facts] == [
        [bob],
        [ann],
        [bob],
    ]


@pytest.mark.parametrize("max_following", [1])
async def test_a_follow_that_is_refused_is_not_told(graph_service: GraphService, graph_pool: Pool) -> None:
    ann, bob, cid = [await join(graph_service.stub, name) for name in ("ann", "bob", "cid")]
    await graph_service.stub.Follow(graph_pb2.FollowRequest(follower_id=ann, following_id=bob))
    await told(graph_pool)
    for followee in (ann, cid, 4_096):
        with pytest.raises(errors.Error):
            await graph_service.stub.Follow(graph_pb2.FollowRequest(follower_id=ann, following_id=followee))
    assert await told(graph_pool) == []


async def test_posts_shares_and_quotes_are_told_with_whose_counts_they_change(post_service: RealPostService) -> None:
    stub, pool = post_service.stub, post_service.pool
    ann, bob = await join(post_service.graph, "ann"), await join(post_service.graph, "bob")
    post = (await stub.CreatePost(pb.CreatePostRequest(user_id=ann, content="words"))).post.post_id
    assert await told(pool) == [created(post, ann)]
    share = pb.SharePostRequest(user_id=bob, post_id=post)
    answers = await asyncio.gather(*(stub.SharePost(share) for _ in range(4)))
    [plain] = {answer.post.post_id for answer in answers}
    assert await told(pool) == [created(plain, bob, original=post, shared=post, of=ann)]
    # What is shared of a share is its original.
    quote = (await stub.SharePost(pb.SharePostRequest(user_id=ann, post_id=plain, content="so true"))).post.post_id
    assert await told(pool) == [created(quote, ann, shared=post, of=ann)]
    of_quote = (await stub.SharePost(pb.SharePostRequest(user_id=bob, post_id=quote))).post.post_id
    assert await told(pool) == [created(of_quote, bob, original=quote, shared=quote, of=ann)]
    for gone, author, shared in ((plain, bob, post), (of_quote, bob, quote), (quote, ann, post), (post, ann, 0)):
        with pytest.raises(errors.Error):
            await stub.DeletePost(pb.DeletePostRequest(user_id=ann + bob - author, post_id=gone))
        for _ in range(2):
            await stub.DeletePost(pb.DeletePostRequest(user_id=author, post_id=gone))
        assert await told(pool) == [deleted(gone, author, shared=shared)]
    with pytest.raises(errors.NotFound):
        await stub.SharePost(share)
    assert await told(pool) == []


async def test_plain_shares_that_go_with_their_original_are_not_told(post_service: RealPostService) -> None:
    stub, pool = post_service.stub, post_service.pool
    ann = await join(post_service.graph, "ann")
    post = (await stub.CreatePost(pb.CreatePostRequest(user_id=ann, content="words"))).post.post_id
    await stub.SharePost(pb.SharePostRequest(user_id=ann, post_id=post))
    await stub.DeletePost(pb.DeletePostRequest(user_id=ann, post_id=post))
    await told(pool)
    async with pool.connection() as connection:
        await connection.execute("UPDATE posts SET deleted_at = deleted_at - interval '2 minutes'")
    await post_service.upkeep()
    assert await postgres.fetch(pool, "SELECT 1 FROM posts WHERE deleted_at IS NULL") == []
    assert await told(pool) == []


async def test_likes_and_comments_are_told_under_the_posts_key(post_service: RealPostService) -> None:
    stub, pool = post_service.stub, post_service.pool
    ann, bob = await join(post_service.graph, "ann"), await join(post_service.graph, "bob")
    post = (await stub.CreatePost(pb.CreatePostRequest(user_id=ann, content="words"))).post.post_id
    plain = (await stub.SharePost(pb.SharePostRequest(user_id=bob, post_id=post))).post.post_id
    await told(pool)
    await stub.UnlikePost(pb.UnlikePostRequest(user_id=bob, post_id=post))
    assert await told(pool) == []
    for _ in range(2):
        await asyncio.gather(*(stub.LikePost(pb.LikePostRequest(user_id=bob, post_id=plain)) for _ in range(4)))
        assert await told(pool) == [liked(post, ann, bob, True)]
        await asyncio.gather(*(stub.UnlikePost(pb.UnlikePostRequest(user_id=bob, post_id=post)) for _ in range(4)))
        assert await told(pool) == [liked(post, ann, bob, False)]
    remark = (await stub.CreateComment(pb.CreateCommentRequest(user_id=bob, post_id=plain, content="x"))).comment
    fact = event.CommentCreated(comment_id=remark.comment_id, post_id=post, author_id=ann, user_id=bob)
    assert await told(pool) == [(post, event.Event(comment_created=fact))]
    for _ in range(2):
        await stub.DeleteComment(pb.DeleteCommentRequest(user_id=ann, comment_id=remark.comment_id))
    gone = event.CommentDeleted(comment_id=remark.comment_id, post_id=post, user_id=bob)
    assert await told(pool) == [(post, event.Event(comment_deleted=gone))]


REFUSE_ONE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.user_id = {user} THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()"""


async def test_a_batch_tells_of_each_once_and_of_what_the_database_refuses_nothing(
    post_service: RealPostService,
) -> None:
    stub, pool = post_service.stub, post_service.pool
    ann, bob, cid = [await join(post_service.graph, name) for name in ("ann", "bob", "cid")]
    post = (await stub.CreatePost(pb.CreatePostRequest(user_id=ann, content="words"))).post.post_id
    await stub.LikePost(pb.LikePostRequest(user_id=ann, post_id=post))
    await told(pool)
    likes = pb.BatchLikePostsRequest(
        items=[pb.LikePostRequest(user_id=user, post_id=post) for user in (bob, ann, cid, bob, 4_096)]
    )
    async with pool.connection() as connection:
        await connection.execute(REFUSE_ONE.format(user=cid, table="likes").encode())
        try:
            answers = (await stub.BatchLikePosts(likes)).items
        finally:
            await connection.execute("DROP FUNCTION refuse CASCADE")
    assert [item.WhichOneof("outcome") for item in answers] == ["result", "result", "error", "result", "error"]
    assert [errors.from_status(answers[at].error).reason for at in (2, 4)] == ["INTERNAL", "USER_NOT_FOUND"]
    assert await told(pool) == [liked(post, ann, bob, True)]
    assert [item.result.likes for item in (await stub.BatchLikePosts(likes)).items] == [3, 3, 3, 3, 0]
    assert await told(pool) == [liked(post, ann, cid, True)]
    unlikes = pb.BatchUnlikePostsRequest(
        items=[pb.UnlikePostRequest(user_id=user, post_id=post) for user in (bob, bob, cid)]
    )
    assert [item.result.likes for item in (await stub.BatchUnlikePosts(unlikes)).items] == [1, 1, 1]
    assert sorted(await told(pool), key=repr) == sorted(
        [liked(post, ann, bob, False), liked(post, ann, cid, False)], key=repr
    )
    made = (
        await stub.BatchCreatePosts(
            pb.BatchCreatePostsRequest(items=[pb.CreatePostRequest(user_id=user, content="x") for user in (bob, cid)])
        )
    ).items
    assert await told(pool) == [created(item.result.post.post_id, item.result.post.user_id) for item in made]


WRITES: dict[str, Callable[[int, int, int], Any]] = {
    "CreatePost": lambda user, post, comment: pb.CreatePostRequest(user_id=user, content="words"),
    "SharePost": lambda user, post, comment: pb.SharePostRequest(user_id=user, post_id=post),
    "SharePost quote": lambda user, post, comment: pb.SharePostRequest(user_id=user, post_id=post, content="so true"),
    "LikePost": lambda user, post, comment: pb.LikePostRequest(user_id=user, post_id=post),
    "CreateComment": lambda user, post, comment: pb.CreateCommentRequest(user_id=user, post_id=post, content="x"),
    "DeleteComment": lambda user, post, comment: pb.DeleteCommentRequest(user_id=user, comment_id=comment),
    "DeletePost": lambda user, post, comment: pb.DeletePostRequest(user_id=user, post_id=post),
}


async def writing(service: RealPostService, name: str, key: str = "key") -> Callable[[], Awaitable[Any]]:
    """A write with a key, ready to be sent, and nothing in the outbox yet."""
    user = await join(service.graph, "ann")
    post = (await service.stub.CreatePost(pb.CreatePostRequest(user_id=user, content="words"))).post.post_id
    remark = await service.stub.CreateComment(pb.CreateCommentRequest(user_id=user, post_id=post, content="x"))
    await told(service.pool)
    request = WRITES[name](user, post, remark.comment.comment_id)
    request.request_id = key
    return lambda: getattr(service.stub, name.split(maxsplit=1)[0])(request)


@pytest.mark.parametrize("name", WRITES)
async def test_a_replay_by_its_key_is_not_told_again(post_service: RealPostService, name: str) -> None:
    send = await writing(post_service, name)
    for expected in (1, 0, 0):
        await send()
        assert len(await told(post_service.pool)) == expected


async def test_a_replay_of_joining_or_following_is_not_told_again(
    graph_service: GraphService, graph_pool: Pool
) -> None:
    stub = graph_service.stub
    request = graph_pb2.CreateUserRequest(username="ann", email="ann@example.org", request_id="key")
    ann = (await stub.CreateUser(request)).user.user_id
    bob = await join(stub, "bob")
    follow = graph_pb2.FollowRequest(follower_id=ann, following_id=bob, request_id="follow")
    unfollow = graph_pb2.UnfollowRequest(follower_id=ann, following_id=bob, request_id="unfollow")
    await told(graph_pool)
    await stub.CreateUser(request)
    assert await told(graph_pool) == []
    for send in (lambda: stub.Follow(follow), lambda: stub.Unfollow(unfollow)):
        for expected in (1, 0, 0):
            await send()
            assert len(await told(graph_pool)) == expected


REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()"""
SNAPSHOT = """
    SELECT (SELECT count(*) FROM posts WHERE deleted_at IS NULL), (SELECT count(*) FROM likes),
           (SELECT count(*) FROM comments WHERE deleted_at IS NULL), (SELECT count(*) FROM shares),
           (SELECT count(*) FROM outbox)"""


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("table", ["idempotency_keys", "outbox"])
async def test_a_write_and_its_event_are_kept_together_or_not_at_all(
    post_service: RealPostService, name: str, table: str
) -> None:
    # The key's row is the transaction's last statement: what comes before it has been done by then.
    send, pool = await writing(post_service, name), post_service.pool
    before = await postgres.fetch(pool, SNAPSHOT)
    async with pool.connection() as connection:
        await connection.execute(REFUSE.format(table=table).encode())
        try:
            with pytest.raises(errors.Error):
                await send()
        finally:
            await connection.execute("DROP FUNCTION refuse CASCADE")
    assert await postgres.fetch(pool, SNAPSHOT) == before
    await send()
    assert len(await told(pool)) == 1


async def test_follow_ids_of_one_follower_rise_whatever_the_clock_does(
    graph_service: GraphService, graph_pool: Pool
) -> None:
    stub = graph_service.stub
    ann, *others = [await join(stub, f"person{n}") for n in range(6)]
    await stub.Follow(graph_pb2.FollowRequest(follower_id=ann, following_id=others[0]))
    # As if that follow had been made by a clock that was an hour ahead.
    async with graph_pool.connection() as connection:
        await connection.execute("UPDATE followers SET follow_id = id_at(now() + interval '1 hour') + 4095")
    for other in others[1:]:
        await stub.Follow(graph_pb2.FollowRequest(follower_id=ann, following_id=other))
    rows = await postgres.fetch(graph_pool, "SELECT following_id FROM followers ORDER BY follow_id")
    assert [row[0] for row in rows] == others
