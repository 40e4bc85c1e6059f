"""What a post service holds of posts is as they are now, whichever replica changed them, and whatever is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from feedmesh.post.v1 import post_pb2 as pb
from runtime import postgres
from runtime.media import MediaUrls
from runtime.paging import Cursors
from services.post import hot, metrics, store
from services.post.servicer import PostServicer
from services.post.sight import Sights
from tests.contract.test_post_service import join_all
from tests.fakes.serving import RealPostService


@dataclass
class Replicas:
    """Two of a post service on one database: one that shows, one that writes."""

    pool: postgres.Pool
    shows: PostServicer
    writes: PostServicer
    ann: int
    bob: int
    cid: int

    async def post(self, user_id: int, content: str = "words") -> int:
        """A new post."""
        request = pb.CreatePostRequest(user_id=user_id, content=content)
        return (await self.writes.CreatePost(request, None)).post.post_id

    async def shown(self, viewer_id: int, *post_ids: int) -> list[tuple[int, int, int, int, bool, list[int]]]:
        """What a feed shows of posts: id, likes, comments, shares, whether liked, and who shared."""
        item = pb.BatchGetPostsRequest.Item(viewer_id=viewer_id, post_ids=post_ids, sharers_up_to=2**53 - 1)
        answer = await self.shows.BatchGetPosts(pb.BatchGetPostsRequest(items=[item]), None)
        [page] = pb.BatchGetPostsResponse.FromString(answer).items
        return [
            (p.post_id, p.likes, p.comments, p.shares, p.liked, [sharer.user_id for sharer in p.shared_by])
            for p in page.page.posts
        ]

    async def read(self) -> int:
        """How many posts were read from Postgres so far."""
        return int(metrics.HOT_POSTS.labels("read")._value.get())


@pytest_asyncio.fixture
async def replicas(post_service: RealPostService) -> AsyncIterator[Replicas]:
    ann, bob, cid = await join_all(post_service, 3)
    pool, sights = post_service.pool, Sights(post_service.graph, MediaUrls("a secret of at least 32 characters"))
    cursors = Cursors("a secret that is long enough for cursors")
    yield Replicas(
        pool, PostServicer(pool, sights, cursors), PostServicer(pool, sights, cursors), ann=ann, bob=bob, cid=cid
    )


async def test_whatever_is_done_to_a_post_shows_in_everybodys_next_read(replicas: Replicas) -> None:
    r, service = replicas, replicas.writes
    ann, bob, cid = r.ann, r.bob, r.cid
    post, quoted = await r.post(ann), await r.post(ann, "quoted")
    expected = {"likes": 0, "comments": 0, "shares": 0}
    said: list[int] = []

    async def check(likes: int = 0, comments: int = 0, shares: int = 0) -> None:
        expected["likes"] += likes
        expected["comments"] += comments
        expected["shares"] += shares
        [(_, *counts, _, _)] = await r.shown(cid, post)
        assert counts == list(expected.values())
        before = await r.read()
        [(_, *counts, _, _)] = await r.shown(cid, post)
        assert (counts, await r.read()) == (list(expected.values()), before), "it was not held"

    await check()
    for likers in ([bob], [bob, cid]):
        for liker in likers:
            await service.LikePost(pb.LikePostRequest(user_id=liker, post_id=post), None)
            await check(likes=1)
        for liker in likers:
            await service.UnlikePost(pb.UnlikePostRequest(user_id=liker, post_id=post), None)
            await check(likes=-1)
    for _ in range(2):
        request = pb.CreateCommentRequest(user_id=bob, post_id=post, content="a remark")
        said.append((await service.CreateComment(request, None)).comment.comment_id)
        await check(comments=1)
    await service.DeleteComment(pb.DeleteCommentRequest(user_id=ann, comment_id=said[0]), None)
    await check(comments=-1)
    for content in ("", "a quote"):
        share = (
            await service.SharePost(pb.SharePostRequest(user_id=bob, post_id=post, content=content), None)
        ).post.post_id
        await check(shares=1)
        await service.DeletePost(pb.DeletePostRequest(user_id=bob, post_id=share), None)
        await check(shares=-1)
    await service.LikePost(pb.LikePostRequest(user_id=bob, post_id=post), None)
    await check(likes=1)

    async def erase(take: Callable[..., Awaitable[Any]]) -> None:
        await postgres.transact(r.pool, lambda connection: take(connection, bob, 10))

    await erase(store.take_likes)
    await check(likes=-1)
    await erase(store.take_comments)
    await check(comments=-1)
    assert [row[0] for row in await r.shown(cid, post, quoted)] == [post, quoted]
    await service.DeletePost(pb.DeletePostRequest(user_id=ann, post_id=post), None)
    assert [row[0] for row in await r.shown(cid, post, quoted)] == [quoted]


async def test_a_transaction_that_commits_late_is_not_missed(replicas: Replicas) -> None:
    r = replicas
    post, other = await r.post(r.ann), await r.post(r.ann)
    assert [row[1] for row in await r.shown(r.cid, post, other)] == [0, 0]
    async with r.pool.connection() as slow, slow.transaction():
        await store.insert_likes(slow, [store.Like(r.bob, post, r.ann)])
        for likes in range(1, 4):
            # What comes after it, and is seen long before it.
            liker = (r.ann, r.bob, r.cid)[likes - 1]
            await r.writes.LikePost(pb.LikePostRequest(user_id=liker, post_id=other), None)
            assert [row[1] for row in await r.shown(r.cid, post, other)] == [0, likes]
    assert [row[1] for row in await r.shown(r.cid, post, other)] == [1, 3]


async def test_what_changes_while_a_post_is_read_is_not_lost(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = replicas
    post = await r.post(r.ann)
    read, go_on = asyncio.Event(), asyncio.Event()
    posts_with_shares = store.posts_with_shares

    async def slowly(*arguments: Any) -> Any:
        rows = await posts_with_shares(*arguments)
        read.set()
        await go_on.wait()
        return rows

    monkeypatch.setattr(store, "posts_with_shares", slowly)
    first = asyncio.create_task(r.shown(r.cid, post))
    await read.wait()
    await r.writes.LikePost(pb.LikePostRequest(user_id=r.bob, post_id=post), None)
    second = asyncio.create_task(r.shown(r.cid, post))
    async with asyncio.timeout(10):
        while not r.shows.hot._reads._waiting:
            await asyncio.sleep(0)
    go_on.set()
    assert [row[1] for row in await first] == [0]
    assert [row[1] for row in await second] == [1]
    assert [row[1] for row in await r.shown(r.cid, post)] == [1]


@pytest.mark.parametrize("why", ["too many", "a gap", "an older database"])
async def test_where_notes_may_be_lacking_all_is_read_anew(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    r, held = replicas, replicas.shows.hot
    post = await r.post(r.ann)
    await r.shown(r.cid, post)
    assert held.held(post) is not None
    if why == "too many":
        monkeypatch.setattr(store, "MAX_CHANGES", 0)
        await r.writes.LikePost(pb.LikePostRequest(user_id=r.bob, post_id=post), None)
    elif why == "a gap":
        monkeypatch.setattr(hot, "GAP_S", -1.0)
    else:
        assert held._seen is not None
        held._seen = held._seen._replace(xmax=held._seen.xmax + 1_000)
    since = held.as_of
    await held.look({})
    assert held.held(post) is None
    assert held.has_written(r.ann, since - 1)
    assert held.has_written(r.ann, since + 1_000_000)


async def test_no_more_is_held_than_there_is_room_for(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    r, held = replicas, replicas.shows.hot
    monkeypatch.setattr(hot, "KEPT_POSTS", 3)
    monkeypatch.setattr(hot, "KEPT_AUTHORS", 1)
    await r.shown(r.cid, 1)
    since = held.as_of
    posts = [await r.post(author) for author in (r.ann, r.ann, r.bob, r.bob, r.cid)]
    assert [row[0] for row in await r.shown(r.cid, *posts)] == posts
    assert len([post for post in posts if held.held(post)]) == 3
    assert len(held._wrote) == 1
    # Of whom it is not known any more, it may be.
    assert all(held.has_written(author, since) for author in (r.ann, r.bob, r.cid))


async def test_what_one_likes_shows_in_ones_next_read_whoever_else_reads_meanwhile(replicas: Replicas) -> None:
    r, service = replicas, replicas.writes
    posts = [await r.post(r.ann) for _ in range(3)]

    async def liked(viewer_id: int, *post_ids: int) -> list[bool]:
        return [row[4] for row in await r.shown(viewer_id, *post_ids)]

    assert await liked(r.bob, *posts[:2]) == [False, False]
    for turn in range(3):
        for post in posts[:2]:
            await service.LikePost(pb.LikePostRequest(user_id=r.bob, post_id=post), None)
            if turn == 1:
                await liked(r.cid, *posts)  # it is heeded by another's read
            assert await liked(r.bob, *posts) == [each in posts[: posts.index(post) + 1] for each in posts]
        for post in posts[:2]:
            await service.UnlikePost(pb.UnlikePostRequest(user_id=r.bob, post_id=post), None)
            if turn == 1:
                await liked(r.cid, *posts)
            assert await liked(r.bob, post) == [False]
        assert await liked(r.bob, *posts) == [False] * 3
    assert r.bob in r.shows.hot._likes
    assert await liked(r.cid, *posts) == [False] * 3


async def test_likes_that_were_read_before_one_was_given_are_not_kept(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    r = replicas
    post = await r.post(r.ann)
    await r.shown(r.cid, post)
    read, go_on = asyncio.Event(), asyncio.Event()
    acts = store.acts

    async def slowly(pool: Any, users: list[int], *arguments: Any) -> Any:
        found = await acts(pool, users, *arguments)
        if r.bob in users and not read.is_set():
            read.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(store, "acts", slowly)
    first = asyncio.create_task(r.shown(r.bob, post))
    await read.wait()
    await r.writes.LikePost(pb.LikePostRequest(user_id=r.bob, post_id=post), None)
    assert [row[4] for row in await r.shown(r.cid, post)] == [False]
    go_on.set()
    await first
    assert [row[4] for row in await r.shown(r.bob, post)] == [True]


async def test_no_more_likes_are_kept_than_there_is_room_for(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    r, held = replicas, replicas.shows.hot
    monkeypatch.setattr(hot, "KEPT_LIKERS", 2)
    monkeypatch.setattr(hot, "KEPT_LIKES", 3)
    posts = [await r.post(r.ann) for _ in range(4)]
    await r.writes.LikePost(pb.LikePostRequest(user_id=r.bob, post_id=posts[0]), None)
    for viewer in (r.ann, r.bob, r.cid):
        for some in (posts[:2], posts[2:], posts):
            assert [row[4] for row in await r.shown(viewer, *some)] == [
                viewer == r.bob and post == posts[0] for post in some
            ]
    assert list(held._likes) == [r.bob, r.cid]
    assert all(len(likes.asked) <= 4 for likes in held._likes.values())


async def test_what_goes_wrong_heals_in_minutes(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    r = replicas
    post = await r.post(r.ann)
    await r.shown(r.bob, post)
    # Somebody writes by hand, and notes nothing.
    async with r.pool.connection() as connection:
        await connection.execute(
            "INSERT INTO likes (user_id, post_id, author_id) VALUES (%s, %s, %s)", (r.bob, post, r.ann)
        )
        await connection.execute("INSERT INTO post_count_deltas (post_id, likes) VALUES (%s, 1)", (post,))
    assert await r.shown(r.bob, post) == [(post, 0, 0, 0, False, [])]
    monkeypatch.setattr(hot, "KEPT_S", 0.0)
    assert await r.shown(r.bob, post) == [(post, 1, 0, 0, True, [])]
