"""The contract of PostService (protos/feedmesh/post/v1/post.proto), held against the fake and the real service."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedmesh.graph.v1 import graph_pb2
from feedmesh.options.v1 import options_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors, ids, members
from tests.contract.expect import MAX_ID, OUT_OF_RANGE, Page, both, damaged, page_of, read_to_end, refusal
from tests.fakes.poll import until
from tests.fakes.serving import PostService

POST = pb.DESCRIPTOR.services_by_name["PostService"]
NOBODY = NOTHING = 4_096
"""The id of no user, post or comment."""
names = itertools.count(1)
Row = tuple[int, int, int]


@pytest.fixture(params=["fake", "real"])
def service(request: pytest.FixtureRequest) -> PostService:
    found: PostService = request.getfixturevalue({"fake": "fake_post_service", "real": "post_service"}[request.param])
    return found


async def join(service: PostService) -> int:
    """A new person's id."""
    name = f"writer{next(names)}"
    request = graph_pb2.CreateUserRequest(username=name, email=f"{name}@example.org")
    return (await service.graph.CreateUser(request)).user.user_id


async def join_all(service: PostService, count: int) -> list[int]:
    return list(await asyncio.gather(*(join(service) for _ in range(count))))


async def username(service: PostService, user_id: int) -> str:
    return (await service.graph.GetUser(graph_pb2.GetUserRequest(user_id=user_id))).user.username


async def set_private(service: PostService, user_id: int, private: bool) -> None:
    await service.graph.UpdateUser(graph_pb2.UpdateUserRequest(user_id=user_id, private=private))


async def follow(service: PostService, follower_id: int, following_id: int) -> None:
    await service.graph.Follow(graph_pb2.FollowRequest(follower_id=follower_id, following_id=following_id))


async def unfollow(service: PostService, follower_id: int, following_id: int) -> None:
    await service.graph.Unfollow(graph_pb2.UnfollowRequest(follower_id=follower_id, following_id=following_id))


async def block(service: PostService, user_id: int, target_id: int) -> None:
    await service.graph.Block(graph_pb2.BlockRequest(user_id=user_id, target_id=target_id))


async def unblock(service: PostService, user_id: int, target_id: int) -> None:
    await service.graph.Unblock(graph_pb2.UnblockRequest(user_id=user_id, target_id=target_id))


async def mute(service: PostService, user_id: int, target_id: int) -> None:
    await service.graph.Mute(graph_pb2.MuteRequest(user_id=user_id, target_id=target_id))


async def write(
    service: PostService,
    user_id: int,
    content: str = "words",
    visibility: pb.Visibility.ValueType = pb.VISIBILITY_UNSPECIFIED,
) -> int:
    """A new post's id."""
    request = pb.CreatePostRequest(user_id=user_id, content=content, visibility=visibility)
    return (await service.stub.CreatePost(request)).post.post_id


async def share(service: PostService, user_id: int, post_id: int, content: str = "") -> pb.Post:
    request = pb.SharePostRequest(user_id=user_id, post_id=post_id, content=content)
    return (await service.stub.SharePost(request)).post


async def like(service: PostService, user_id: int, post_id: int) -> pb.LikePostResponse:
    return await service.stub.LikePost(pb.LikePostRequest(user_id=user_id, post_id=post_id))


async def unlike(service: PostService, user_id: int, post_id: int) -> pb.UnlikePostResponse:
    return await service.stub.UnlikePost(pb.UnlikePostRequest(user_id=user_id, post_id=post_id))


async def comment(service: PostService, user_id: int, post_id: int, content: str = "a remark") -> pb.Comment:
    request = pb.CreateCommentRequest(user_id=user_id, post_id=post_id, content=content)
    return (await service.stub.CreateComment(request)).comment


async def get(service: PostService, post_id: int, viewer_id: int | None = None) -> pb.Post:
    return (await service.stub.GetPost(pb.GetPostRequest(post_id=post_id, viewer_id=viewer_id))).post


async def delete(service: PostService, user_id: int, post_id: int) -> None:
    await service.stub.DeletePost(pb.DeletePostRequest(user_id=user_id, post_id=post_id))


async def delete_comment(service: PostService, user_id: int, comment_id: int) -> None:
    await service.stub.DeleteComment(pb.DeleteCommentRequest(user_id=user_id, comment_id=comment_id))


async def posts_of(
    service: PostService, user_id: int, cursor: str = "", limit: int | None = None, viewer_id: int | None = None
) -> Page:
    request = pb.ListUserPostsRequest(user_id=user_id, viewer_id=viewer_id, limit=limit, cursor=cursor)
    return page_of(await service.stub.ListUserPosts(request), "posts", "post_id")


async def comments_of(
    service: PostService, post_id: int, cursor: str = "", limit: int | None = None, viewer_id: int | None = None
) -> Page:
    request = pb.ListCommentsRequest(post_id=post_id, viewer_id=viewer_id, limit=limit, cursor=cursor)
    return page_of(await service.stub.ListComments(request), "comments", "comment_id")


async def hydrate(service: PostService, *pages: tuple[int, Iterable[int]]) -> list[list[pb.Post]]:
    request = pb.BatchGetPostsRequest(
        items=[pb.BatchGetPostsRequest.Item(viewer_id=viewer, post_ids=post_ids) for viewer, post_ids in pages]
    )
    return [list(item.page.posts) for item in (await service.stub.BatchGetPosts(request)).items]


def rows_of(packed: bytes) -> list[Row]:
    return [(int(a), int(b), int(c)) for a, b, c in members.unpack(packed)]


async def newest(
    service: PostService, author_ids: Iterable[int], low: int = 0, high: int = MAX_ID, limit: int = 1_000
) -> list[Row]:
    item = pb.BatchListNewestRequest.Item(author_ids=author_ids, min_post_id=low, max_post_id=high, limit=limit)
    [answer] = (await service.stub.BatchListNewest(pb.BatchListNewestRequest(items=[item]))).items
    return rows_of(answer.members)


async def sharers(
    service: PostService, original_ids: Iterable[int], sharer_ids: Iterable[int], high: int = MAX_ID
) -> list[Row]:
    item = pb.BatchListSharersRequest.Item(original_ids=original_ids, sharer_ids=sharer_ids, max_post_id=high)
    [answer] = (await service.stub.BatchListSharers(pb.BatchListSharersRequest(items=[item]))).items
    return rows_of(answer.members)


async def engagement(
    service: PostService, viewer_id: int, post_ids: Iterable[int]
) -> pb.BatchGetEngagementResponse.Item:
    item = pb.BatchGetEngagementRequest.Item(viewer_id=viewer_id, post_ids=post_ids)
    [answer] = (await service.stub.BatchGetEngagement(pb.BatchGetEngagementRequest(items=[item]))).items
    return answer


Row5 = tuple[int, int, int, int, float]


async def engaged(service: PostService, before: int = 0, limit: int = 10_000) -> list[Row5]:
    """Post, likes, comments, shares and heat of a page of engaged posts."""
    page = await service.stub.ListEngagement(pb.ListEngagementRequest(before_post_id=before, limit=limit))
    return list(zip(page.post_ids, page.likes, page.comments, page.shares, page.heat, strict=True))


async def post_counts(
    service: PostService, min_post_id: int = 0, after: int = 0, limit: int = 10_000
) -> list[tuple[int, int]]:
    """Authors with how much they wrote."""
    request = pb.ListPostCountsRequest(after_user_id=after, min_post_id=min_post_id, limit=limit)
    response = await service.stub.ListPostCounts(request)
    return list(zip(response.user_ids, response.posts, strict=True))


class Counts(NamedTuple):
    likes: int = 0
    comments: int = 0
    shares: int = 0


async def counts(service: PostService, post_id: int) -> Counts:
    post = await get(service, post_id)
    return Counts(post.likes, post.comments, post.shares)


# CreatePost and GetPost.


async def test_a_new_post_is_answered_whole_and_read_back(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    before_ms = time.time_ns() // 1_000_000
    content, media_url = "Grüße 🎉\n'; DROP TABLE posts; --", "https://example.org/a.jpg?b=c#d"
    request = pb.CreatePostRequest(user_id=ann, content=content, media_url=media_url)
    post = (await service.stub.CreatePost(request)).post
    assert 0 < post.post_id <= MAX_ID
    assert post == pb.Post(
        post_id=post.post_id,
        user_id=ann,
        username=await username(service, ann),
        content=content,
        media_url=media_url,
        created_at=ids.timestamp(post.post_id),
        visibility=pb.VISIBILITY_PUBLIC,
    )
    assert before_ms - 1 <= post.created_at.ToMilliseconds() <= time.time_ns() // 1_000_000 + 1
    assert not post.HasField("shared_post")
    for viewer in (None, ann, bob):
        assert await get(service, post.post_id, viewer) == post
    assert await hydrate(service, (0, [post.post_id]), (ann, [post.post_id])) == [[post], [post]]


@pytest.mark.parametrize(
    ("content", "media_url"),
    [("x" * 5_000, ""), ("🎉" * 5_000, ""), ("", "http://example.org/a"), (" \n", "https://example.org"), (" x ", "")],
)
async def test_a_post_at_the_edge_of_the_rules_is_taken_as_it_is(
    service: PostService, content: str, media_url: str
) -> None:
    ann = await join(service)
    request = pb.CreatePostRequest(user_id=ann, content=content, media_url=media_url)
    post = await get(service, (await service.stub.CreatePost(request)).post.post_id)
    assert (post.content, post.media_url) == (content, media_url)


@pytest.mark.parametrize(
    ("content", "media_url", "field"),
    [
        ("", "", "content"),
        (" \t\n", "", "content"),
        ("\u00a0\u2003\u3000", "", "content"),
        ("x" * 5_001, "", "content"),
        ("🎉" * 5_001, "", "content"),
        ("a\x00b", "", "content"),
        ("words", "ftp://example.org/a", "media_url"),
        ("words", "example.org/a", "media_url"),
        ("words", "https://", "media_url"),
        ("words", "https:///a", "media_url"),
        ("words", "javascript:alert(1)", "media_url"),
        ("words", "https://example.org/a b", "media_url"),
        ("words", "https://example.org/\x00", "media_url"),
        ("words", "https://example.org/" + "a" * 2_048, "media_url"),
    ],
)
async def test_a_post_needs_words_or_media_in_form(
    service: PostService, content: str, media_url: str, field: str
) -> None:
    ann = await join(service)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", field):
        await service.stub.CreatePost(pb.CreatePostRequest(user_id=ann, content=content, media_url=media_url))
    assert await posts_of(service, ann) == Page([], None)


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (pb.VISIBILITY_UNSPECIFIED, pb.VISIBILITY_PUBLIC),
        (pb.VISIBILITY_PUBLIC, pb.VISIBILITY_PUBLIC),
        (pb.VISIBILITY_FOLLOWERS, pb.VISIBILITY_FOLLOWERS),
    ],
)
async def test_a_post_shows_its_visibility_and_shares_of_it_are_public(
    service: PostService, asked: pb.Visibility.ValueType, shown: pb.Visibility.ValueType
) -> None:
    ann = await join(service)
    request = pb.CreatePostRequest(user_id=ann, content="words", visibility=asked)
    post = (await service.stub.CreatePost(request)).post
    assert post.visibility == shown
    assert await get(service, post.post_id, ann) == post
    for content in ("", "so true"):
        shared = await share(service, ann, post.post_id, content)
        assert (shared.visibility, shared.shared_post.visibility) == (pb.VISIBILITY_PUBLIC, shown)


@pytest.mark.parametrize("visibility", [3, -1, 2**31 - 1])
async def test_a_visibility_that_is_none_is_refused(service: PostService, visibility: Any) -> None:
    ann = await join(service)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "visibility"):
        await write(service, ann, visibility=visibility)


async def test_whoever_is_unknown_can_do_nothing(service: PostService) -> None:
    ann = await join(service)
    post_id = await write(service, ann)
    for act in (
        write(service, NOBODY),
        like(service, NOBODY, post_id),
        unlike(service, NOBODY, post_id),
        share(service, NOBODY, post_id),
        share(service, NOBODY, post_id, "so true"),
        comment(service, NOBODY, post_id),
        posts_of(service, NOBODY),
    ):
        with refusal(errors.NotFound, "USER_NOT_FOUND"):
            await act
    assert await counts(service, post_id) == Counts()


async def test_what_is_no_post_cannot_be_acted_upon(service: PostService) -> None:
    ann = await join(service)
    gone = await write(service, ann)
    await delete(service, ann, gone)
    for post_id in (NOTHING, MAX_ID, gone):
        for act in (
            get(service, post_id),
            like(service, ann, post_id),
            unlike(service, ann, post_id),
            share(service, ann, post_id),
            share(service, ann, post_id, "so true"),
            comment(service, ann, post_id),
            comments_of(service, post_id),
        ):
            with refusal(errors.NotFound, "POST_NOT_FOUND"):
                await act


@pytest.mark.parametrize("wrong", OUT_OF_RANGE)
async def test_what_is_no_id_is_refused_by_field(service: PostService, wrong: int) -> None:
    stub = service.stub
    calls: list[tuple[Awaitable[Any], tuple[str, ...]]] = [
        (write(service, wrong), ("user_id",)),
        (get(service, wrong, wrong), ("post_id", "viewer_id")),
        (delete(service, wrong, wrong), ("post_id", "user_id")),
        (stub.ListUserPosts(pb.ListUserPostsRequest(user_id=wrong, viewer_id=wrong)), ("user_id", "viewer_id")),
        (like(service, wrong, wrong), ("user_id", "post_id")),
        (unlike(service, wrong, wrong), ("user_id", "post_id")),
        (share(service, wrong, wrong), ("user_id", "post_id")),
        (comment(service, wrong, wrong), ("user_id", "post_id")),
        (stub.ListComments(pb.ListCommentsRequest(post_id=wrong, viewer_id=wrong)), ("post_id", "viewer_id")),
        (delete_comment(service, wrong, wrong), ("comment_id", "user_id")),
    ]
    for call, fields in calls:
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", *fields):
            await call


async def test_pages_and_batches_have_bounds(service: PostService) -> None:
    ann = await join(service)
    post_id = await write(service, ann)
    for limit in (0, 101, -1):
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "limit"):
            await posts_of(service, ann, limit=limit)
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "limit"):
            await comments_of(service, post_id, limit=limit)
    for limit in (0, 1_001):
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "items[0].limit"):
            await newest(service, [ann], limit=limit)
    for limit in (0, 10_001, -1):
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "limit"):
            await engaged(service, limit=limit)
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "limit"):
            await post_counts(service, limit=limit)
    for call, path in (
        (hydrate(service, (0, [1] * 201)), "items[0].post_ids"),
        (hydrate(service, *[(0, [1])] * 65), "items"),
        (hydrate(service, *[(0, [1] * 101)] * 7), "items"),
        (newest(service, [1] * 10_001), "items[0].author_ids"),
        (sharers(service, [1] * 1_001, [1]), "items[0].original_ids"),
        (sharers(service, [1], [1] * 10_001), "items[0].sharer_ids"),
        (engagement(service, 1, [1] * 1_001), "items[0].post_ids"),
    ):
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", path):
            await call


# Likes.


async def test_likes_count_people_once_both_ways(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)
    await unlike(service, bob, post_id)
    assert await counts(service, post_id) == Counts()
    for _ in range(2):
        for _ in range(2):
            assert await like(service, bob, post_id) == pb.LikePostResponse(post_id=post_id, liked=True, likes=1)
            assert await counts(service, post_id) == Counts(likes=1)
        assert (await like(service, ann, post_id)).likes == 2
        assert ((await get(service, post_id, bob)).liked, (await get(service, post_id)).liked) == (True, False)
        await service.upkeep()
        assert (await unlike(service, ann, post_id)).likes == 1
        for _ in range(2):
            assert await unlike(service, bob, post_id) == pb.UnlikePostResponse(post_id=post_id, liked=False, likes=0)
            assert await counts(service, post_id) == Counts()
        assert not (await get(service, post_id, bob)).liked
        await service.upkeep()
        assert await counts(service, post_id) == Counts()


async def test_likes_of_many_at_once_are_all_counted(service: PostService) -> None:
    people = await join_all(service, 12)
    post_id = await write(service, people[0])
    await asyncio.gather(*(like(service, user_id, post_id) for user_id in people * 2))
    assert await counts(service, post_id) == Counts(likes=12)
    await asyncio.gather(service.upkeep(), *(unlike(service, user_id, post_id) for user_id in people[:5] * 2))
    assert await counts(service, post_id) == Counts(likes=7)


# Comments.


async def test_a_comment_is_answered_whole_and_listed_oldest_first(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)
    first = await comment(service, bob, post_id, "🎉" * 5_000)
    assert first == pb.Comment(
        comment_id=first.comment_id,
        post_id=post_id,
        user_id=bob,
        username=await username(service, bob),
        content="🎉" * 5_000,
        created_at=ids.timestamp(first.comment_id),
    )
    second = await comment(service, ann, post_id, " second ")
    listed = await service.stub.ListComments(pb.ListCommentsRequest(post_id=post_id, viewer_id=ann))
    assert list(listed.comments) == [first, second]
    assert await counts(service, post_id) == Counts(comments=2)


@pytest.mark.parametrize("content", ["", " \n\t", "\u00a0\u3000", "x" * 5_001, "a\x00b"])
async def test_a_comment_needs_words(service: PostService, content: str) -> None:
    ann = await join(service)
    post_id = await write(service, ann)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "content"):
        await comment(service, ann, post_id, content)
    assert await counts(service, post_id) == Counts()


async def test_a_comment_is_deleted_by_its_writer_or_the_posts_author_and_by_nobody_else(service: PostService) -> None:
    author, writer, other = await join_all(service, 3)
    post_id = await write(service, author)
    mine, theirs, kept = [(await comment(service, writer, post_id)).comment_id for _ in range(3)]
    with refusal(errors.Forbidden, "NOT_OWNER"):
        await delete_comment(service, other, mine)
    for _ in range(2):
        await delete_comment(service, writer, mine)
        await delete_comment(service, author, theirs)
        assert await counts(service, post_id) == Counts(comments=1)
        assert await comments_of(service, post_id) == Page([kept], None)
    with refusal(errors.NotFound, "COMMENT_NOT_FOUND"):
        await delete_comment(service, other, mine)
    for nothing in (NOTHING, MAX_ID):
        with refusal(errors.NotFound, "COMMENT_NOT_FOUND"):
            await delete_comment(service, writer, nothing)
    await delete(service, author, post_id)
    with refusal(errors.NotFound, "COMMENT_NOT_FOUND"):
        await delete_comment(service, writer, kept)


@pytest.mark.parametrize("limit", [1, 2, 5, 11, 100])
async def test_comments_page_to_the_end_while_more_are_written(service: PostService, limit: int) -> None:
    ann = await join(service)
    post_id = await write(service, ann)
    expected = [(await comment(service, ann, post_id)).comment_id for _ in range(11)]

    async def come() -> None:
        expected.append((await comment(service, ann, post_id)).comment_id)

    assert await read_to_end(lambda cursor: comments_of(service, post_id, cursor, limit), limit, come) == expected
    assert await counts(service, post_id) == Counts(comments=len(expected))


# Shares.


async def test_a_plain_share_repeats_its_original_once_a_person(service: PostService) -> None:
    ann, bob, cid = await join_all(service, 3)
    post_id = await write(service, ann)
    await like(service, cid, post_id)
    shared = await share(service, bob, post_id)
    original = await get(service, post_id, bob)
    assert shared == pb.Post(
        post_id=shared.post_id,
        user_id=bob,
        username=await username(service, bob),
        created_at=ids.timestamp(shared.post_id),
        visibility=pb.VISIBILITY_PUBLIC,
        likes=1,
        shares=1,
        shared_post=original,
    )
    assert original.shares == 1
    for content in ("", " \n", "\u3000"):
        assert (await share(service, bob, post_id, content)).post_id == shared.post_id
    assert await counts(service, post_id) == Counts(likes=1, shares=1)
    assert (await share(service, ann, post_id)).post_id != shared.post_id
    assert await counts(service, post_id) == Counts(likes=1, shares=2)
    await service.upkeep()
    assert await counts(service, shared.post_id) == Counts(likes=1, shares=2)


async def test_a_quote_is_a_post_of_its_own(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)
    first, second = [await share(service, bob, post_id, "so true") for _ in range(2)]
    assert first.post_id != second.post_id
    await like(service, ann, first.post_id)
    quote = await get(service, first.post_id, ann)
    assert (quote.content, quote.likes, quote.shares, quote.liked) == ("so true", 1, 0, True)
    assert quote.shared_post == await get(service, post_id, ann)
    assert await counts(service, post_id) == Counts(shares=2)
    assert not quote.shared_post.liked


@pytest.mark.parametrize(("content", "fits"), [("x" * 5_000, True), ("x" * 5_001, False), ("a\x00b", False)])
async def test_a_quotes_words_are_bounded(service: PostService, content: str, fits: bool) -> None:
    ann = await join(service)
    post_id = await write(service, ann)
    if fits:
        assert (await share(service, ann, post_id, content)).content == content
    else:
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "content"):
            await share(service, ann, post_id, content)
    assert await counts(service, post_id) == Counts(shares=int(fits))


async def test_a_plain_share_stands_for_its_original(service: PostService) -> None:
    ann, bob, cid = await join_all(service, 3)
    post_id = await write(service, ann)
    shared = (await share(service, bob, post_id)).post_id
    assert await like(service, cid, shared) == pb.LikePostResponse(post_id=post_id, liked=True, likes=1)
    assert (await like(service, cid, post_id)).likes == 1
    remark = await comment(service, cid, shared)
    assert remark.post_id == post_id
    assert await comments_of(service, shared) == await comments_of(service, post_id) == Page([remark.comment_id], None)
    assert (await get(service, shared, cid)).liked
    assert (await get(service, shared, cid)).shared_post.liked
    again = await share(service, cid, shared)
    assert again.shared_post.post_id == post_id
    quote = await share(service, cid, shared, "so true")
    assert quote.shared_post.post_id == post_id
    assert await counts(service, post_id) == await counts(service, shared) == Counts(likes=1, comments=1, shares=3)
    assert await unlike(service, cid, shared) == pb.UnlikePostResponse(post_id=post_id, liked=False, likes=0)


async def test_the_share_of_a_quote_shows_the_quote_one_level_deep(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)
    quote = await share(service, bob, post_id, "so true")
    for shared in (await share(service, ann, quote.post_id), await share(service, ann, quote.post_id, "indeed")):
        assert shared.shared_post.post_id == quote.post_id
        assert not shared.shared_post.HasField("shared_post")
    assert await counts(service, quote.post_id) == Counts(shares=2)
    assert await counts(service, post_id) == Counts(shares=1)


# DeletePost.


async def test_a_post_is_deleted_by_its_author_alone_and_again_without_harm(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id, kept = await write(service, ann), await write(service, ann)
    with refusal(errors.Forbidden, "NOT_OWNER"):
        await delete(service, bob, post_id)
    for _ in range(2):
        await delete(service, ann, post_id)
        with refusal(errors.NotFound, "POST_NOT_FOUND"):
            await get(service, post_id, ann)
        with refusal(errors.NotFound, "POST_NOT_FOUND"):
            await delete(service, bob, post_id)
        assert await posts_of(service, ann) == Page([kept], None)
        assert await hydrate(service, (ann, [post_id, kept])) == [[await get(service, kept)]]
        assert await newest(service, [ann]) == [(kept, ann, kept)]
    for nothing in (NOTHING, MAX_ID):
        with refusal(errors.NotFound, "POST_NOT_FOUND"):
            await delete(service, ann, nothing)


async def test_with_an_original_go_its_plain_shares_and_quotes_lose_it(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)
    plain = (await share(service, bob, post_id)).post_id
    quote = (await share(service, bob, post_id, "so true")).post_id
    await delete(service, ann, post_id)
    for act in (
        get(service, plain),
        like(service, ann, plain),
        comment(service, ann, plain),
        share(service, ann, plain),
    ):
        with refusal(errors.NotFound, "POST_NOT_FOUND"):
            await act
    with refusal(errors.NotFound, "POST_NOT_FOUND"):
        await comments_of(service, plain)
    left = await get(service, quote)
    assert (left.content, left.HasField("shared_post")) == ("so true", False)
    assert await posts_of(service, bob) == Page([quote], None)
    assert await hydrate(service, (ann, [plain, quote, post_id])) == [[left]]
    await delete(service, bob, plain)
    await delete(service, bob, quote)
    await service.upkeep()
    assert await posts_of(service, bob) == Page([], None)


async def test_a_share_taken_back_is_counted_no_more_and_can_be_made_again(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)
    plain = (await share(service, bob, post_id)).post_id
    quote = (await share(service, bob, post_id, "so true")).post_id
    for gone, left in ((plain, 1), (plain, 1), (quote, 0), (quote, 0)):
        await delete(service, bob, gone)
        assert await counts(service, post_id) == Counts(shares=left)
    assert await sharers(service, [post_id], [bob]) == []
    again = (await share(service, bob, post_id)).post_id
    assert again != plain
    assert await counts(service, post_id) == Counts(shares=1)
    assert await sharers(service, [post_id], [bob]) == [(again, bob, post_id)]
    await service.upkeep()
    assert await counts(service, post_id) == Counts(shares=1)


async def test_sharing_and_taking_back_at_once_ends_in_one_of_the_two(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)

    async def toggle() -> None:
        for _ in range(12):
            with contextlib.suppress(errors.NotFound):  # another took the share back before it could be read
                await delete(service, bob, (await share(service, bob, post_id)).post_id)

    await asyncio.gather(*(toggle() for _ in range(4)))
    left = await sharers(service, [post_id], [bob])
    assert await counts(service, post_id) == Counts(shares=len(left))
    assert len(left) <= 1


# Who may see what.

SEES = {
    "author": (True, True),
    "follower": (True, True),
    "muting follower": (True, True),
    "followed": (True, False),
    "asked": (True, False),
    "muting": (True, False),
    "other": (True, False),
    "blocking": (False, False),
    "blocked": (False, False),
    "stranger": (True, False),
}
"""By how one stands to an author: whether one sees what is open to all, and what is for followers: a post for followers
of anyone, and everything of a private account."""
READS: dict[str, Callable[[PostService, int, int], Awaitable[Any]]] = {
    "GetPost": lambda service, viewer, post_id: get(service, post_id, viewer or None),
    "BatchGetPosts": lambda service, viewer, post_id: hydrate(service, (viewer, [post_id])),
    "ListComments": lambda service, viewer, post_id: comments_of(service, post_id, viewer_id=viewer or None),
}
ACTS: dict[str, Callable[[PostService, int, int], Awaitable[Any]]] = {
    "LikePost": like,
    "UnlikePost": unlike,
    "SharePost": share,
    "SharePost quote": lambda service, actor, post_id: share(service, actor, post_id, "so true"),
    "CreateComment": comment,
    "DeletePost": lambda service, actor, post_id: delete_in_vain(service, actor, post_id),
}


async def delete_in_vain(service: PostService, actor_id: int, post_id: int) -> None:
    """Someone else's post: whoever sees it is told so."""
    with contextlib.suppress(errors.Forbidden):
        await delete(service, actor_id, post_id)


async def outcome(service: PostService, rpc: str, viewer_id: int, post_id: int) -> str:
    """How an RPC answers of a post, in words that do not name it."""
    try:
        answer = await (READS | ACTS)[rpc](service, viewer_id, post_id)
    except errors.Error as error:
        return f"{type(error).__name__} {error.reason} {error.message}".replace(str(post_id), "...")
    return "nothing" if answer == [[]] else "seen"


async def circle(service: PostService, private: bool) -> dict[str, int]:
    """People by how they stand to the author, as in SEES (0 for a stranger), whose account is private or not."""
    people = dict(zip(SEES, await join_all(service, len(SEES)), strict=True)) | {"stranger": 0}
    author = people["author"]
    await follow(service, people["follower"], author)
    await follow(service, people["muting follower"], author)
    await follow(service, author, people["followed"])
    await mute(service, people["muting follower"], author)
    await mute(service, people["muting"], author)
    await block(service, people["blocking"], author)
    await block(service, author, people["blocked"])
    await set_private(service, author, True)
    await follow(service, people["asked"], author)
    await set_private(service, author, private)
    return people


@pytest.mark.parametrize("private", [False, True], ids=["public account", "private account"])
@pytest.mark.parametrize("visibility", [pb.VISIBILITY_PUBLIC, pb.VISIBILITY_FOLLOWERS], ids=["public", "followers"])
async def test_who_may_see_a_post_is_the_same_in_every_answer(
    service: PostService, private: bool, visibility: pb.Visibility.ValueType
) -> None:
    people = await circle(service, private)
    author, friend = people["author"], people["follower"]
    post_id, other_id = await write(service, author, visibility=visibility), await write(service, friend)
    quote_id = (await share(service, friend, post_id, "so true")).post_id
    for_followers = private or visibility == pb.VISIBILITY_FOLLOWERS
    posts = {
        "the post": (post_id, author, for_followers),
        "a friend's share of it": ((await share(service, friend, post_id)).post_id, friend, for_followers),
        "the author's share of a friend's": ((await share(service, author, other_id)).post_id, author, private),
        "the author's quote of a friend's": ((await share(service, author, other_id, "so")).post_id, author, private),
    }
    found, expected = {}, {}
    for who, viewer in people.items():
        for rpc in READS | ACTS if viewer else READS:
            absent = await outcome(service, rpc, viewer, NOTHING)
            for what, (seen_id, owner, only_followers) in posts.items():
                if rpc != "DeletePost" or viewer != owner:
                    found[who, rpc, what] = await outcome(service, rpc, viewer, seen_id)
                    expected[who, rpc, what] = "seen" if SEES[who][only_followers] else absent
        quote = await get(service, quote_id, viewer or None)
        assert quote.HasField("shared_post") == SEES[who][for_followers], who
    assert found == expected
    pages = await hydrate(service, *((viewer, [i for i, _, _ in posts.values()]) for viewer in people.values()))
    assert [[post.post_id for post in page] for page in pages] == [
        [seen_id for seen_id, _, only_followers in posts.values() if SEES[who][only_followers]] for who in people
    ]


@pytest.mark.parametrize("private", [False, True], ids=["public account", "private account"])
async def test_a_persons_posts_are_listed_as_far_as_the_viewer_may_see_them(
    service: PostService, private: bool
) -> None:
    people = await circle(service, private)
    author, friend = people["author"], people["followed"]
    friends_own = await write(service, friend, visibility=pb.VISIBILITY_FOLLOWERS)
    visibilities = [pb.VISIBILITY_FOLLOWERS, pb.VISIBILITY_PUBLIC, pb.VISIBILITY_FOLLOWERS, pb.VISIBILITY_FOLLOWERS]
    written = [(await write(service, author, visibility=v), v) for v in visibilities * 2]
    of_friend = (await share(service, author, friends_own)).post_id
    written += [(await write(service, author, visibility=v), v) for v in visibilities]
    for who, viewer in people.items():
        if who in ("blocking", "blocked"):
            with refusal(errors.NotFound, "USER_NOT_FOUND"):
                await posts_of(service, author, viewer_id=viewer)
            continue
        expected = [i for i, v in written if SEES[who][private or v == pb.VISIBILITY_FOLLOWERS]]
        if who == "author" or (who == "followed" and not private):
            expected.append(of_friend)
        for limit in (1, 2, 3, 100):
            read = partial(posts_of, service, author, limit=limit, viewer_id=viewer or None)
            assert await read_to_end(read, limit) == sorted(expected, reverse=True), who


async def test_who_stands_otherwise_to_the_author_sees_otherwise_in_the_next_answer(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    public, followers = await write(service, ann), await write(service, ann, visibility=pb.VISIBILITY_FOLLOWERS)
    posts = [public, followers]
    for change, actor, other, expected in (
        (follow, bob, ann, posts),
        (unfollow, bob, ann, [public]),
        (follow, bob, ann, posts),
        (mute, bob, ann, posts),
        (block, ann, bob, []),
        (unblock, ann, bob, [public]),
        (follow, bob, ann, posts),
        (block, bob, ann, []),
        (block, ann, bob, []),
        (unblock, bob, ann, []),
        (unblock, ann, bob, [public]),
    ):
        await change(service, actor, other)
        [page] = await hydrate(service, (bob, posts))
        assert [post.post_id for post in page] == expected
        assert [i for i in posts if await outcome(service, "GetPost", bob, i) == "seen"] == expected
        [own] = await hydrate(service, (ann, posts))
        assert [post.post_id for post in own] == posts


async def test_an_account_that_becomes_private_or_public_takes_its_posts_along(service: PostService) -> None:
    ann, follower, other = await join_all(service, 3)
    await follow(service, follower, ann)
    post_id = await write(service, ann)
    for private in (True, False, True):
        await set_private(service, ann, private)
        await until(lambda hidden=private: reads_as(service, ann, (other, 0), [] if hidden else [post_id]))
        assert await reads_as(service, ann, (ann, follower), [post_id])


async def reads_as(service: PostService, author_id: int, viewers: Iterable[int], expected: list[int]) -> bool:
    """Whether these viewers (0: a stranger) find just these posts of an author."""
    return all([(await posts_of(service, author_id, viewer_id=v or None)).rows == expected for v in viewers])


async def test_relations_of_any_version_show_what_the_graph_says(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann, visibility=pb.VISIBILITY_FOLLOWERS)
    for change, shown in ((follow, 1), (unfollow, 0)):
        await change(service, bob, ann)
        item = graph_pb2.BatchGetRelationsRequest.Item(viewer_id=bob)
        known = (await service.graph.BatchGetRelations(graph_pb2.BatchGetRelationsRequest(items=[item]))).items[0]
        request = pb.BatchGetPostsRequest()
        for version in (known.version, 0, known.version):
            request.items.add(viewer_id=bob, post_ids=[post_id], relations_version=version)
        answer = await service.stub.BatchGetPosts(request)
        assert [len(item.page.posts) for item in answer.items] == [shown] * 3


async def test_comments_of_whom_a_block_hides_are_left_out(service: PostService) -> None:
    author, viewer, *others = await join_all(service, 10)
    post_id = await write(service, author)
    written = [(await comment(service, other, post_id)).comment_id for other in others * 2]
    for n, (actor, other) in enumerate(((viewer, others[1]), (others[2], viewer), (author, others[4]))):
        await block(service, actor, other)
        await mute(service, viewer, others[n + 5])
    hidden = {viewer: (1, 2), author: (4,), others[0]: (), others[1]: (), None: ()}
    for seen_by, without in hidden.items():
        expected = [comment_id for n, comment_id in enumerate(written) if n % len(others) not in without]
        for limit in (1, 2, 3, 100):
            read = partial(comments_of, service, post_id, limit=limit, viewer_id=seen_by)
            assert await read_to_end(read, limit) == expected
        assert (await get(service, post_id, seen_by)).comments == len(written)


async def test_a_comment_is_deleted_by_its_writer_though_the_post_is_hidden_and_is_nothing_to_others_then(
    service: PostService,
) -> None:
    author, writer, blocked, other = await join_all(service, 4)
    await follow(service, writer, author)
    await follow(service, blocked, author)
    post_id = await write(service, author, visibility=pb.VISIBILITY_FOLLOWERS)
    mine, theirs, kept = [(await comment(service, writer, post_id)).comment_id for _ in range(3)]
    with refusal(errors.Forbidden, "NOT_OWNER"):
        await delete_comment(service, blocked, mine)
    await block(service, author, writer)
    await block(service, blocked, author)
    for user_id in (blocked, other):
        with refusal(errors.NotFound, "COMMENT_NOT_FOUND"):
            await delete_comment(service, user_id, kept)
    for _ in range(2):
        await delete_comment(service, writer, mine)
        await delete_comment(service, author, theirs)
    assert (await get(service, post_id, author)).comments == 1


async def test_a_share_of_what_is_hidden_by_now_is_its_sharers_to_take_back(service: PostService) -> None:
    ann, bob, cid = await join_all(service, 3)
    post_id = await write(service, ann)
    plain = (await share(service, bob, post_id)).post_id
    quote = (await share(service, bob, post_id, "so true")).post_id
    await block(service, ann, bob)
    for viewer, seen in ((bob, [quote]), (cid, [quote, plain]), (None, [quote, plain])):
        assert await posts_of(service, bob, viewer_id=viewer) == Page(seen, None)
    assert not (await get(service, quote, bob)).HasField("shared_post")
    with refusal(errors.NotFound, "POST_NOT_FOUND"):
        await delete(service, bob, post_id)
    for _ in range(2):
        await delete(service, bob, plain)
        assert await posts_of(service, bob, viewer_id=cid) == Page([quote], None)
    assert await counts(service, post_id) == Counts(shares=1)


async def test_with_a_person_goes_all_that_is_theirs(service: PostService) -> None:
    gone, bob, cid = await join_all(service, 3)
    other_id = await write(service, bob)
    post_id = await write(service, gone)
    for user_id in (gone, cid):
        await comment(service, user_id, other_id)
    quote = (await share(service, bob, post_id, "so true")).post_id
    theirs = [
        post_id,
        (await share(service, gone, other_id)).post_id,
        (await share(service, gone, other_id, "so true")).post_id,
        (await share(service, bob, post_id)).post_id,
    ]
    await service.graph.DeleteUser(graph_pb2.DeleteUserRequest(user_id=gone))

    async def nothing_is_seen() -> bool:
        return await hydrate(service, (bob, theirs), (0, theirs)) == [[], []]

    await until(nothing_is_seen)
    for viewer in (cid, 0):
        for rpc in READS | ACTS if viewer else READS:
            absent = await outcome(service, rpc, viewer, NOTHING)
            assert [await outcome(service, rpc, viewer, i) for i in theirs] == [absent] * 4, rpc
        assert not (await get(service, quote, viewer or None)).HasField("shared_post")
        assert await posts_of(service, bob, viewer_id=viewer or None) == Page([quote, other_id], None)
        listed = await service.stub.ListComments(pb.ListCommentsRequest(post_id=other_id, viewer_id=viewer or None))
        assert [row.user_id for row in listed.comments] == [cid]
        with refusal(errors.NotFound, "USER_NOT_FOUND"):
            await posts_of(service, gone, viewer_id=viewer or None)
    for act in (
        write(service, gone),
        like(service, gone, other_id),
        unlike(service, gone, other_id),
        share(service, gone, other_id),
        comment(service, gone, other_id),
    ):
        with refusal(errors.NotFound, "USER_NOT_FOUND"):
            await act


# Idempotency keys.


@dataclass(frozen=True)
class Stage:
    """Who is there before a write with a key."""

    author: int
    actor: int
    post_id: int
    other_id: int
    comment_id: int


async def stage(service: PostService) -> Stage:
    author, actor = await join_all(service, 2)
    post_id, other_id = await write(service, author), await write(service, actor)
    await like(service, actor, other_id)
    return Stage(author, actor, post_id, other_id, (await comment(service, actor, post_id)).comment_id)


WRITES: dict[str, Callable[[Stage], Any]] = {
    "CreatePost": lambda s: pb.CreatePostRequest(user_id=s.actor, content="words"),
    "SharePost": lambda s: pb.SharePostRequest(user_id=s.actor, post_id=s.post_id),
    "SharePost quote": lambda s: pb.SharePostRequest(user_id=s.actor, post_id=s.post_id, content="so true"),
    "LikePost": lambda s: pb.LikePostRequest(user_id=s.actor, post_id=s.post_id),
    "UnlikePost": lambda s: pb.UnlikePostRequest(user_id=s.actor, post_id=s.other_id),
    "CreateComment": lambda s: pb.CreateCommentRequest(user_id=s.actor, post_id=s.post_id, content="a remark"),
    "DeletePost": lambda s: pb.DeletePostRequest(user_id=s.actor, post_id=s.other_id),
    "DeleteComment": lambda s: pb.DeleteCommentRequest(user_id=s.actor, comment_id=s.comment_id),
}


def keyed(service: PostService, name: str, there: Stage, key: str) -> tuple[Callable[[Any], Awaitable[Any]], Any]:
    """An RPC, and a request to it with a key."""
    request = WRITES[name](there)
    request.request_id = key
    return getattr(service.stub, name.split(maxsplit=1)[0]), request


async def effects(service: PostService, there: Stage) -> tuple[list[pb.Post], Page, Page]:
    """What a write could have changed."""
    [left] = await hydrate(service, (there.actor, [there.post_id, there.other_id]))
    return left, await posts_of(service, there.actor), await comments_of(service, there.post_id)


@pytest.mark.parametrize("name", WRITES)
async def test_a_request_with_a_key_takes_effect_once_and_is_answered_alike(service: PostService, name: str) -> None:
    there = await stage(service)
    call, request = keyed(service, name, there, "key")
    before = await effects(service, there)
    answer = await call(request)
    after = await effects(service, there)
    assert after != before
    for _ in range(2):
        assert await call(request) == answer
        assert await effects(service, there) == after


@pytest.mark.parametrize("name", WRITES)
async def test_two_at_once_with_a_key_have_one_effect(service: PostService, name: str) -> None:
    async def change(send: Callable[[Callable[[Any], Awaitable[Any]], Any], Awaitable[Any]]) -> int:
        """By how much the numbers of things change that a write can change."""
        there = await stage(service)
        before = size(await effects(service, there))
        await send(*keyed(service, name, there, "key"))
        return size(await effects(service, there)) - before

    async def send_twice(call: Callable[[Any], Awaitable[Any]], request: Any) -> None:
        answers = await both(call, request)
        assert await call(request) == answers[0]
        assert all(answer == answers[0] for answer in answers)

    assert await change(send_twice) == await change(lambda call, request: call(request)) != 0


def size(seen: tuple[list[pb.Post], Page, Page]) -> int:
    posts, own, remarks = seen
    return sum(post.likes + post.comments + post.shares for post in posts) + len(own.rows) + len(remarks.rows)


async def test_another_request_with_the_key_is_refused_whatever_its_method(service: PostService) -> None:
    there = await stage(service)
    lasting = [name for name in WRITES if not name.startswith("Delete")]
    for first, second in itertools.product(lasting, WRITES):
        key = f"{first} {second}"
        call, request = keyed(service, first, there, key)
        await call(request)
        if first != second:
            call, request = keyed(service, second, there, key)
            with refusal(errors.Refused, "REQUEST_ID_REUSED"):
                await call(request)
    await service.stub.LikePost(pb.LikePostRequest(user_id=there.actor, post_id=there.post_id, request_id="key"))
    with refusal(errors.Refused, "REQUEST_ID_REUSED"):
        await service.stub.LikePost(pb.LikePostRequest(user_id=there.actor, post_id=there.other_id, request_id="key"))


async def test_a_key_is_its_actors_own_and_has_a_bound(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    key = "ä" * 255
    first, second = [
        await service.stub.CreatePost(pb.CreatePostRequest(user_id=user_id, content="x", request_id=key))
        for user_id in (ann, bob)
    ]
    assert first.post.post_id != second.post.post_id
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "request_id"):
        await service.stub.CreatePost(pb.CreatePostRequest(user_id=ann, content="x", request_id="k" * 256))


async def test_a_key_holds_no_nul(service: PostService) -> None:
    there = await stage(service)
    for name in WRITES:
        call, request = keyed(service, name, there, "k\x00")
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "request_id"):
            await call(request)


async def test_a_write_that_was_refused_leaves_its_key_free(service: PostService) -> None:
    ann = await join(service)
    post_id = await write(service, ann)
    with refusal(errors.NotFound, "POST_NOT_FOUND"):
        await service.stub.LikePost(pb.LikePostRequest(user_id=ann, post_id=NOTHING, request_id="key"))
    await service.stub.LikePost(pb.LikePostRequest(user_id=ann, post_id=post_id, request_id="key"))


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_with_a_key_is_answered_again_where_the_post_may_not_be_seen_by_now(
    service: PostService, name: str
) -> None:
    there = await stage(service)
    call, request = keyed(service, name, there, "key")
    answer = await call(request)
    await block(service, there.author, there.actor)
    if isinstance(answer, pb.SharePostResponse):
        answer.post.ClearField("shared_post")  # of the original no answer is kept
    assert await call(request) == answer


async def test_a_share_with_a_key_is_answered_again_after_it_was_taken_back(service: PostService) -> None:
    ann = await join(service)
    post_id = await write(service, ann)
    request = pb.SharePostRequest(user_id=ann, post_id=post_id, request_id="key")
    shared = (await service.stub.SharePost(request)).post.post_id
    await delete(service, ann, shared)
    assert (await service.stub.SharePost(request)).post.post_id == shared
    assert await counts(service, post_id) == Counts()


async def test_a_share_with_a_key_is_answered_again_after_its_original_was_deleted(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)
    request = pb.SharePostRequest(user_id=bob, post_id=post_id, content="quoted", request_id="key")
    shared = await service.stub.SharePost(request)
    await delete(service, ann, post_id)
    shared.post.ClearField("shared_post")  # of the original no answer is kept
    assert await service.stub.SharePost(request) == shared


# Batches.


async def batch(service: PostService, name: str, *requests: Any) -> list[Any]:
    """For each request what its RPC answers, or the error that it fails with."""
    many = POST.methods_by_name[POST.methods_by_name[name].GetOptions().Extensions[options_pb2.batch]]
    answer = await getattr(service.stub, many.name)(getattr(pb, many.input_type.name)(items=requests))
    return [errors.from_status(item.error) if item.HasField("error") else item.result for item in answer.items]


def reason_of(outcome: Any) -> str:
    """Why something was not done; "" where it was."""
    return outcome.reason if isinstance(outcome, errors.Error) else ""


def reasons(outcomes: Iterable[Any]) -> list[str]:
    return [reason_of(outcome) for outcome in outcomes]


MANY: dict[str, Callable[[int, int, int], Any]] = {
    "CreatePost": lambda user, post, n: pb.CreatePostRequest(user_id=user, content=f"words {n}"),
    "LikePost": lambda user, post, n: pb.LikePostRequest(user_id=user, post_id=post),
    "UnlikePost": lambda user, post, n: pb.UnlikePostRequest(user_id=user, post_id=post),
    "CreateComment": lambda user, post, n: pb.CreateCommentRequest(user_id=user, post_id=post, content=f"remark {n}"),
}


@pytest.mark.parametrize("name", MANY)
async def test_a_batch_answers_one_for_one_and_what_is_wrong_fails_alone(service: PostService, name: str) -> None:
    ann, bob, cid = await join_all(service, 3)
    open_to_all, hidden, other = await write(service, ann), await write(service, cid), await write(service, bob)
    plain = (await share(service, bob, open_to_all)).post_id
    await block(service, cid, ann)
    asked = [(ann, open_to_all), (0, open_to_all), (bob, plain), (NOBODY, open_to_all), (ann, hidden), (bob, NOTHING)]
    asked += [(bob, 2**60), (cid, other), (ann, open_to_all)]
    before = await counts(service, open_to_all)
    outcomes = await batch(service, name, *(MANY[name](user, post, n) for n, (user, post) in enumerate(asked)))
    unseen = "" if name == "CreatePost" else "POST_NOT_FOUND"
    beyond = "" if name == "CreatePost" else "INVALID_ARGUMENT"
    assert reasons(outcomes) == ["", "INVALID_ARGUMENT", "", "USER_NOT_FOUND", unseen, unseen, beyond, "", ""]
    done = [(n, outcome) for n, outcome in enumerate(outcomes) if not isinstance(outcome, errors.Error)]
    if name == "CreatePost":
        assert [outcome.post.content for _, outcome in done] == [f"words {n}" for n, _ in done]
        for n, outcome in done:
            assert await get(service, outcome.post.post_id, asked[n][0]) == outcome.post
    elif name == "CreateComment":
        remarks = [outcome.comment for n, outcome in done if n != 7]
        assert [(c.content, c.user_id, c.post_id, c.username) for c in remarks] == [
            (f"remark {n}", user, open_to_all, await username(service, user))
            for n, user in ((0, ann), (2, bob), (8, ann))
        ]
        assert sorted((await comments_of(service, open_to_all)).rows) == sorted(c.comment_id for c in remarks)
        assert (await counts(service, open_to_all)).comments == before.comments + 3
    else:
        liked = name == "LikePost"
        assert [(outcome.post_id, outcome.liked) for _, outcome in done] == [
            (post, liked) for post in (open_to_all, open_to_all, other, open_to_all)
        ]
        assert (await counts(service, open_to_all)).likes == (2 if liked else 0)
        assert done[-1][1].likes == (2 if liked else 0)


async def test_a_batch_of_nothing_is_answered_and_one_of_too_many_is_refused(service: PostService) -> None:
    ann = await join(service)
    post_id = await write(service, ann)
    for name, request in MANY.items():
        assert await batch(service, name) == []
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "items"):
            await batch(service, name, *(request(ann, post_id, n) for n in range(65)))
    assert await counts(service, post_id) == Counts()


@pytest.mark.parametrize("name", MANY)
async def test_keys_hold_in_batches_as_they_do_alone(service: PostService, name: str) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)

    def keyed_request(user: int, key: str, n: int = 0) -> Any:
        request = MANY[name](user, post_id, n)
        request.request_id = key
        return request

    first = await getattr(service.stub, name)(keyed_request(ann, "first"))
    used = pb.CreatePostRequest(user_id=bob, content="words", request_id="used")
    await service.stub.CreatePost(used)
    asked = [("first", ann), ("used", bob), ("new", bob), ("new", bob), ("", ann), ("first", bob)]
    outcomes = await batch(service, name, *(keyed_request(user, key) for key, user in asked))
    # The second of two with one key may be told that the first is under way, or gets its answer.
    assert reasons(outcomes) == ["", "REQUEST_ID_REUSED", "", reason_of(outcomes[3]), "", ""]
    assert outcomes[0] == first
    assert outcomes[3] == outcomes[2] or reason_of(outcomes[3]) == "REQUEST_IN_PROGRESS"
    again = await batch(service, name, *(keyed_request(user, key) for key, user in (asked[2], asked[5], asked[0])))
    assert again == [outcomes[2], outcomes[5], outcomes[0]]


async def test_many_likes_at_once_of_one_post_all_count(service: PostService) -> None:
    people = await join_all(service, 40)
    post_id = await write(service, people[0])
    likes = [like(service, user, post_id) for user in (*people, *people[:20])]
    likes += [like(service, user, NOTHING) for user in people[:5]]
    answers = await asyncio.gather(*likes, return_exceptions=True)
    assert reasons(answers) == [""] * 60 + ["POST_NOT_FOUND"] * 5
    assert max(answer.likes for answer in answers if isinstance(answer, pb.LikePostResponse)) == 40
    assert await counts(service, post_id) == Counts(likes=40)
    # Each then likes and unlikes at once: whatever comes last, counts and likes agree.
    await asyncio.gather(*(act(service, user, post_id) for user in people for act in (like, unlike)))
    seen = await asyncio.gather(*(get(service, post_id, user) for user in people))
    assert {post.likes for post in seen} == {sum(post.liked for post in seen)}


# ListUserPosts, and cursors.


@pytest.mark.parametrize("limit", [1, 2, 5, 12, 100])
async def test_a_persons_posts_page_to_the_end_newest_first_while_more_are_written(
    service: PostService, limit: int
) -> None:
    ann, bob = await join_all(service, 2)
    expected = []
    for n in range(12):
        match n % 3:
            case 0:
                expected.append(await write(service, ann))
            case 1:
                expected.append((await share(service, ann, await write(service, bob))).post_id)
            case _:
                expected.append((await share(service, ann, expected[0], f"quote {n}")).post_id)
    deleted = await write(service, bob)
    await share(service, ann, deleted)
    await delete(service, bob, deleted)

    async def come() -> None:
        await write(service, ann)

    pages = read_to_end(lambda cursor: posts_of(service, ann, cursor, limit), limit, come)
    assert await pages == expected[::-1]


async def test_a_page_holds_20_where_the_request_does_not_say(service: PostService) -> None:
    ann = await join(service)
    posts = [await write(service, ann) for _ in range(21)]
    await asyncio.gather(*(comment(service, ann, posts[0]) for _ in range(21)))
    assert len((await posts_of(service, ann)).rows) == 20
    assert len((await comments_of(service, posts[0])).rows) == 20


async def test_a_persons_posts_are_shown_as_the_viewer_sees_them(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)
    await like(service, bob, post_id)
    for viewer, liked in ((None, False), (ann, False), (bob, True)):
        [post] = (await service.stub.ListUserPosts(pb.ListUserPostsRequest(user_id=ann, viewer_id=viewer))).posts
        assert post == await get(service, post_id, viewer)
        assert post.liked == liked


async def test_a_post_deleted_between_two_pages_is_not_shown_and_no_other_is_lost(service: PostService) -> None:
    ann = await join(service)
    posts = [await write(service, ann) for _ in range(6)]
    first = await posts_of(service, ann, limit=2)
    await delete(service, ann, posts[4])
    await delete(service, ann, posts[2])
    assert first.next_cursor
    assert await posts_of(service, ann, first.next_cursor) == Page([posts[3], posts[1], posts[0]], None)


async def test_only_a_cursor_of_this_listing_and_viewer_is_taken(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    mine, other = [await write(service, ann) for _ in range(2)]
    for _ in range(2):
        await write(service, bob)
        for post_id in (mine, other):
            await comment(service, bob, post_id)
    of_posts, of_comments = await posts_of(service, ann, limit=1), await comments_of(service, mine, limit=1)
    assert of_posts.next_cursor
    assert of_comments.next_cursor
    for post_request in (
        pb.ListUserPostsRequest(user_id=bob, cursor=of_posts.next_cursor),
        pb.ListUserPostsRequest(user_id=ann, viewer_id=ann, cursor=of_posts.next_cursor),
        pb.ListUserPostsRequest(user_id=ann, cursor=of_comments.next_cursor),
        *(pb.ListUserPostsRequest(user_id=ann, cursor=bad) for bad in damaged(of_posts.next_cursor)),
    ):
        with refusal(errors.InvalidArgument, "INVALID_CURSOR", "cursor"):
            await service.stub.ListUserPosts(post_request)
    for request in (
        pb.ListCommentsRequest(post_id=other, cursor=of_comments.next_cursor),
        pb.ListCommentsRequest(post_id=mine, viewer_id=bob, cursor=of_comments.next_cursor),
        pb.ListCommentsRequest(post_id=mine, cursor=of_posts.next_cursor),
        *(pb.ListCommentsRequest(post_id=mine, cursor=bad) for bad in damaged(of_comments.next_cursor)),
    ):
        with refusal(errors.InvalidArgument, "INVALID_CURSOR", "cursor"):
            await service.stub.ListComments(request)


# BatchGetPosts.


async def test_pages_are_hydrated_in_the_order_asked_for_each_for_its_viewer(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    first, second = await write(service, ann), await write(service, bob)
    shared = (await share(service, bob, first)).post_id
    await like(service, bob, first)
    wanted = [second, NOTHING, shared, first]
    pages = await hydrate(service, (bob, wanted), (ann, []), (0, wanted[::-1]), (ann, [NOTHING]), (ann, [first]))
    assert pages == [
        [await get(service, second, bob), await get(service, shared, bob), await get(service, first, bob)],
        [],
        [await get(service, first), await get(service, shared), await get(service, second)],
        [],
        [await get(service, first, ann)],
    ]
    assert [post.liked for post in pages[0]] == [False, True, True]


async def test_whether_somebody_wrote_since_is_told(service: PostService) -> None:
    ann, bob, cid = await join_all(service, 3)
    post = await write(service, bob)

    async def as_of() -> int:
        item = pb.BatchListNewestRequest.Item(author_ids=[ann], max_post_id=ids.MAX_ID, limit=1)
        return (await service.stub.BatchListNewest(pb.BatchListNewestRequest(items=[item]))).as_of

    async def changed(since: int) -> list[bool]:
        request = pb.BatchGetPostsRequest()
        for viewer in (ann, cid):
            request.items.add(viewer_id=viewer, post_ids=[post], own_as_of=since)
        request.items.add(viewer_id=ann)
        answer = await service.stub.BatchGetPosts(request)
        assert answer.as_of >= since
        return [item.own_changed for item in answer.items]

    async def known() -> int:
        """From when on what is asked is known, for a server may have begun since."""
        while (await changed(since := await as_of())) != [False, False, False]:
            await write(service, bob)
        return since

    since = await known()
    await like(service, ann, post)
    await comment(service, ann, post)
    assert await changed(since) == [False, False, False]
    mine = await write(service, ann)
    assert await changed(since) == [True, False, False]
    for act in (
        partial(delete, service, ann, mine),
        partial(share, service, ann, post),
        partial(share, service, ann, post, "a quote"),
    ):
        since = await known()
        await act()
        assert await changed(since) == [True, False, False]


# BatchListNewest.


@dataclass
class Library:
    """What a handful of people wrote and shared, as a test remembers it."""

    service: PostService
    authors: list[int]
    rows: list[Row] = field(default_factory=list)
    """Post, author and original of all that is not deleted."""

    def newest(self, author_ids: Iterable[int], low: int, high: int, limit: int) -> list[Row]:
        """What BatchListNewest should answer."""
        wanted = [row for row in self.rows if row[1] in set(author_ids) and low <= row[0] <= high]
        return sorted(wanted, reverse=True)[:limit]


@pytest_asyncio.fixture
async def library(service: PostService) -> Library:
    people = await join_all(service, 8)
    made = Library(service, people)
    chance = random.Random(8)
    weights = [40, 20, 10, 5, 3, 1, 1, 0]
    for _ in range(60):
        [author] = chance.choices(people, weights)
        if made.rows and chance.random() < 0.2:
            original = chance.choice(made.rows)[2]
            plain = await share(service, author, original, chance.choice(["", "so true"]))
            row = (plain.post_id, author, plain.post_id if plain.content else original)
        else:
            post_id = await write(service, author)
            row = (post_id, author, post_id)
        if row not in made.rows:
            made.rows.append(row)
        if chance.random() < 0.1:
            shared = {original for post_id, _, original in made.rows if original != post_id}
            gone = chance.choice([row for row in made.rows if row[0] not in shared])
            await delete(service, gone[1], gone[0])
            made.rows.remove(gone)
    return made


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_newest_are_those_that_a_search_of_everything_finds(library: Library, data: st.DataObject) -> None:
    edges = [bound for post_id, _, _ in library.rows for bound in (post_id - 1, post_id, post_id + 1)]
    bounds = st.sampled_from([0, 1, *edges, MAX_ID])
    question = st.tuples(
        st.lists(st.sampled_from([*library.authors, NOBODY]), unique=True, max_size=9),
        bounds,
        bounds,
        st.one_of(st.integers(1, 12), st.integers(1, 1_000)),
    )
    questions = data.draw(st.lists(question, min_size=1, max_size=6))
    request = pb.BatchListNewestRequest(
        items=[
            pb.BatchListNewestRequest.Item(author_ids=authors, min_post_id=low, max_post_id=high, limit=limit)
            for authors, low, high, limit in questions
        ]
    )
    answers = (await library.service.stub.BatchListNewest(request)).items
    assert [rows_of(answer.members) for answer in answers] == [library.newest(*question) for question in questions]


async def test_newest_of_an_author_who_is_named_twice_come_once(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    first, second, third = await write(service, ann), await write(service, bob), await write(service, ann)
    expected = [(third, ann, third), (second, bob, second), (first, ann, first)]
    assert await newest(service, [ann, bob, ann]) == expected
    assert await newest(service, [ann, ann, bob], limit=2) == expected[:2]


async def test_newest_leave_out_plain_shares_of_what_is_deleted(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    gone, kept = await write(service, ann), await write(service, bob)
    await share(service, bob, gone)
    await delete(service, ann, gone)
    assert await newest(service, [bob]) == [(kept, bob, kept)]


async def test_newest_of_nobody_are_none(service: PostService) -> None:
    ann = await join(service)
    await write(service, ann)
    assert await newest(service, []) == await newest(service, [NOBODY, 0, -1]) == []
    assert list((await service.stub.BatchListNewest(pb.BatchListNewestRequest())).items) == []


# BatchListSharers.


async def test_sharers_are_named_newest_first_20_of_each_original(service: PostService) -> None:
    author, *people = await join_all(service, 24)
    much, little, none = [await write(service, author) for _ in range(3)]
    shares = [((await share(service, user_id, much)).post_id, user_id, much) for user_id in people]
    shares += [((await share(service, user_id, little)).post_id, user_id, little) for user_id in people[:2]]
    await share(service, people[5], little, "a quote is no plain share")
    expected = shares[:2:-1]
    assert await sharers(service, [much, little, none, NOTHING], people) == expected
    assert await sharers(service, [much], [*people[:3], author, NOBODY]) == shares[2::-1]
    assert await sharers(service, [much, little], people, high=shares[4][0]) == shares[4::-1]
    assert await sharers(service, [much], people, high=shares[4][0] - 1) == shares[3::-1]
    assert await sharers(service, [], people) == await sharers(service, [much], []) == []


async def test_sharers_of_an_original_that_is_named_twice_come_once(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)
    plain = (await share(service, bob, post_id)).post_id
    assert await sharers(service, [post_id, post_id], [bob, bob]) == [(plain, bob, post_id)]


async def test_sharers_of_what_is_deleted_are_none(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    post_id = await write(service, ann)
    await share(service, bob, post_id)
    await delete(service, ann, post_id)
    assert await sharers(service, [post_id], [bob]) == []


# BatchGetEngagement.


async def test_engagement_is_columns_of_counts_and_heat(service: PostService) -> None:
    ann, bob, cid = await join_all(service, 3)
    loved, quiet = await write(service, ann), await write(service, ann)
    for user_id in (ann, bob, cid):
        await like(service, user_id, loved)
    await comment(service, bob, loved)
    await comment(service, bob, loved)
    await share(service, bob, loved)
    await share(service, bob, loved, "so true")
    await like(service, bob, quiet)
    for _ in range(2):
        item = await engagement(service, ann, [quiet, NOTHING, loved])
        assert (list(item.likes), list(item.comments), list(item.shares)) == ([1, 0, 3], [0, 0, 2], [0, 0, 2])
        assert list(item.heat) == pytest.approx([1, 0, 3 + 2 * 2 + 3 * 2], abs=0.1)
        await service.upkeep()
    assert await engagement(service, ann, []) == pb.BatchGetEngagementResponse.Item(
        affinity_author_ids=[ann], affinities=[1]
    )
    assert await engagement(service, NOBODY, [NOTHING]) == pb.BatchGetEngagementResponse.Item(
        likes=[0], comments=[0], shares=[0], heat=[0]
    )


async def test_a_deleted_post_engages_nobody(service: PostService) -> None:
    ann = await join(service)
    post_id = await write(service, ann)
    await like(service, ann, post_id)
    await delete(service, ann, post_id)
    item = await engagement(service, ann, [post_id])
    assert (list(item.likes), list(item.heat)) == ([0], [0])


async def test_affinity_weighs_what_a_viewer_did_by_author(service: PostService) -> None:
    ann, bob, viewer, other = await join_all(service, 4)
    of_ann = [await write(service, ann) for _ in range(2)]
    of_bob = await write(service, bob)
    for post_id in of_ann:
        await like(service, viewer, post_id)
    remark = await comment(service, viewer, of_ann[0])
    await comment(service, viewer, of_bob)
    await share(service, viewer, of_bob)
    await like(service, other, of_bob)
    items = [pb.BatchGetEngagementRequest.Item(viewer_id=user_id) for user_id in (viewer, other, ann, viewer)]
    answers = (await service.stub.BatchGetEngagement(pb.BatchGetEngagementRequest(items=items))).items
    found = [dict(zip(item.affinity_author_ids, item.affinities, strict=True)) for item in answers]
    assert found == [{ann: 4, bob: 5}, {bob: 1}, {}, {ann: 4, bob: 5}]
    await delete_comment(service, viewer, remark.comment_id)
    await unlike(service, viewer, of_ann[1])
    item = await engagement(service, viewer, [])
    assert dict(zip(item.affinity_author_ids, item.affinities, strict=True)) == {ann: 1, bob: 5}


# ListEngagement and ListPostCounts.


async def test_engaged_posts_are_paged_newest_first_with_counts_and_heat(service: PostService) -> None:
    people = await join_all(service, 4)
    posts = [await write(service, people[n % 4]) for n in range(12)]
    chance = random.Random(11)

    async def act() -> None:
        for _ in range(12):
            user_id, post_id = chance.choice(people), chance.choice(posts[:-2])
            match chance.randrange(5):
                case 0 | 1:
                    await like(service, user_id, post_id)
                case 2:
                    await comment(service, user_id, post_id)
                case 3:
                    await share(service, user_id, post_id)
                case _:
                    await share(service, user_id, post_id, "so true")

    # Some counts are folded, others pending, and of some posts there are both.
    await act()
    await service.upkeep()
    await act()
    unliked = posts[-1]
    await like(service, people[0], unliked)
    await unlike(service, people[0], unliked)
    for _ in range(2):
        rows = await engaged(service)
        assert [row[0] for row in rows] == sorted({row[0] for row in rows}, reverse=True)
        expected = {post_id: tally for post_id in posts if any(tally := await counts(service, post_id))}
        assert len(expected) > 4
        assert {post_id: Counts(*tally) for post_id, *tally, _ in rows if any(tally)} == expected
        for post_id, likes, comments, shares, heat in rows:
            assert heat == pytest.approx(likes + 2 * comments + 3 * shares, abs=0.1), post_id
        for limit in (1, 3, len(rows) - 1, len(rows)):
            paged: list[int] = []
            before = 0
            while page := await engaged(service, before, limit):
                paged += [row[0] for row in page]
                before = paged[-1]
                if len(page) < limit:
                    break
            assert paged == [row[0] for row in rows]
        await service.upkeep()


async def test_what_is_deleted_is_engaged_with_no_more(service: PostService) -> None:
    ann = await join(service)
    gone, kept = await write(service, ann), await write(service, ann)
    for post_id in (gone, kept):
        await like(service, ann, post_id)
    plain = (await share(service, ann, kept)).post_id
    await service.upkeep()
    await delete(service, ann, gone)
    await delete(service, ann, plain)
    assert [row[:4] for row in await engaged(service)] == [(kept, 1, 0, 0)]
    assert await engaged(service, before=kept) == await engaged(service, before=-1) == []


async def test_authors_are_paged_by_id_with_how_much_they_wrote(service: PostService) -> None:
    people = await join_all(service, 5)
    first = [await write(service, user_id) for user_id in people[:4] for _ in range(3)]
    since = await write(service, people[1])
    await share(service, people[2], since)
    await share(service, people[2], since, "so true")
    await delete(service, people[3], await write(service, people[3]))
    await delete(service, people[0], first[0])
    everything = sorted(zip(people, (2, 4, 5, 3), strict=False))
    assert await post_counts(service) == everything
    assert await post_counts(service, since) == sorted([(people[1], 1), (people[2], 2)])
    assert await post_counts(service, since + 1) == [(people[2], 2)]
    assert await post_counts(service, MAX_ID) == []
    for limit in (1, 3, 4, 5):
        found: list[tuple[int, int]] = []
        while len(page := await post_counts(service, 0, found[-1][0] if found else 0, limit)) == limit:
            found += page
        assert found + page == everything


# What is checked: rows, and traces.


async def test_rows_say_what_the_table_has_deleted_originals_and_all(service: PostService) -> None:
    ann, bob, cid = await join_all(service, 3)
    own, other = await write(service, ann), await write(service, bob)
    shared = (await share(service, ann, other)).post_id
    await write(service, cid)
    await delete(service, bob, other)
    gone = await write(service, ann)
    await delete(service, ann, gone)
    request = pb.ListPostRowsRequest(author_ids=[ann, bob], min_post_id=own, max_post_id=MAX_ID, limit=10)
    rows = (await service.stub.ListPostRows(request)).rows
    assert list(rows) == [
        pb.PostRow(
            post_id=post_id,
            author_id=ann,
            original_id=original_id,
            original_author_id=author,
            original_visibility=pb.VISIBILITY_PUBLIC,
            original_deleted=deleted,
        )
        for post_id, original_id, author, deleted in ((shared, other, bob, True), (own, own, ann, False))
    ]
    request.limit = 1
    assert [row.post_id for row in (await service.stub.ListPostRows(request)).rows] == [shared]
    request.max_post_id = own
    assert [row.post_id for row in (await service.stub.ListPostRows(request)).rows] == [own]
    found = (await service.stub.GetPostRows(pb.GetPostRowsRequest(post_ids=[own, gone, NOTHING, gone]))).rows
    assert {row.post_id: row.deleted for row in found} == {own: False, gone: True}


async def test_what_a_person_wrote_is_a_trace(service: PostService) -> None:
    ann = await join(service)

    async def traces() -> int:
        answer = await service.stub.CountTraces(pb.CountTracesRequest(user_id=ann))
        return sum(trace.count for trace in answer.traces)

    assert await traces() == 0
    await write(service, ann)
    assert await traces() > 0


async def test_an_export_holds_all_that_is_ones_own_and_an_end(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    await service.graph.Follow(graph_pb2.FollowRequest(follower_id=ann, following_id=bob))
    await service.graph.Block(graph_pb2.BlockRequest(user_id=bob, target_id=await join(service)))
    own, other = await write(service, ann), await write(service, bob)
    shared = (await share(service, ann, other)).post_id
    await like(service, ann, other)
    remark = pb.CreateCommentRequest(user_id=ann, post_id=other, content="words")
    comment = (await service.stub.CreateComment(remark)).comment.comment_id
    gone = await write(service, ann)
    await delete(service, ann, gone)
    request = pb.ExportUserRequest(user_id=ann)
    records = [record async for record in service.stub.ExportUser(request)]
    assert records[0].account.user_id == ann
    assert records[0].account.email
    assert [(record.tie.kind, record.tie.user_id) for record in records if record.HasField("tie")] == [
        (graph_pb2.TIE_KIND_FOLLOWING, bob)
    ]
    posts = [(record.post.post_id, record.post.shared_post_id) for record in records if record.HasField("post")]
    assert posts == [(shared, other), (own, 0)]
    assert [record.comment.comment_id for record in records if record.HasField("comment")] == [comment]
    assert [record.like.post_id for record in records if record.HasField("like")] == [other]
    assert records[-1].end.records == len(records) - 1 == 6
    with refusal(errors.NotFound, "USER_NOT_FOUND"):
        [record async for record in service.stub.ExportUser(pb.ExportUserRequest(user_id=NOTHING))]


# What concerns people.


async def acts_of(service: PostService, user_id: int, before_id: int = ids.MAX_ID, limit: int = 100) -> list[pb.Act]:
    item = pb.BatchListActsRequest.Item(user_id=user_id, before_id=before_id, limit=limit)
    [answer] = (await service.stub.BatchListActs(pb.BatchListActsRequest(items=[item]))).items
    assert sorted((act.act_id for act in answer.acts), reverse=True) == [act.act_id for act in answer.acts]
    return list(answer.acts)


def told(acts: Iterable[pb.Act]) -> list[tuple[str, int, int, int]]:
    """Acts as (what, who, post, comment), oldest first."""
    return [
        (pb.ActKind.Name(act.kind).removeprefix("ACT_KIND_").lower(), act.user_id, act.post_id, act.comment_id)
        for act in reversed(list(acts))
    ]


async def test_acts_tell_what_others_did_until_it_is_taken_back(post_service: PostService) -> None:
    ann, bob, eve = await join_all(post_service, 3)
    post_id = await write(post_service, ann)
    await like(post_service, bob, post_id)
    remark = await comment(post_service, eve, post_id)
    plain = await share(post_service, bob, post_id)
    quote = await share(post_service, eve, post_id, "look")
    for own in (
        like(post_service, ann, post_id),
        comment(post_service, ann, post_id),
        share(post_service, ann, post_id),
    ):
        await own
    expected = [
        ("liked", bob, post_id, 0),
        ("commented", eve, post_id, remark.comment_id),
        ("shared", bob, post_id, 0),
        ("quoted", eve, quote.post_id, 0),
    ]
    acts = await acts_of(post_service, ann)
    assert told(acts) == expected
    assert await acts_of(post_service, bob) == []
    for at in range(len(acts)):
        assert await acts_of(post_service, ann, before_id=acts[at].act_id) == acts[at + 1 :]
        assert await acts_of(post_service, ann, limit=at + 1) == acts[: at + 1]
    for take_back in (
        unlike(post_service, bob, post_id),
        delete_comment(post_service, eve, remark.comment_id),
        delete(post_service, bob, plain.post_id),
        delete(post_service, eve, quote.post_id),
    ):
        await take_back
        expected.pop(0)
        assert told(await acts_of(post_service, ann)) == expected


async def test_who_is_mentioned_is_told_of_it_once_a_text(post_service: PostService) -> None:
    ann, bob, eve = await join_all(post_service, 3)
    names = {user_id: await username(post_service, user_id) for user_id in (ann, bob, eve)}
    text = f"@{names[bob]} and @{names[bob].upper()}, @{names[ann]}, me@{names[eve]}.example, @nobody.of.this.name"
    post_id = await write(post_service, ann, text)
    remark = await comment(post_service, eve, post_id, f"(@{names[bob]})")
    # Who is quoted is told of the quote.
    quote = await share(post_service, bob, post_id, f"@{names[ann]} @{names[eve]}")
    assert told(await acts_of(post_service, bob)) == [
        ("mentioned", ann, post_id, 0),
        ("mentioned", eve, post_id, remark.comment_id),
    ]
    assert told(await acts_of(post_service, eve)) == [("mentioned", bob, quote.post_id, 0)]
    assert told(await acts_of(post_service, ann)) == [
        ("commented", eve, post_id, remark.comment_id),
        ("quoted", bob, quote.post_id, 0),
    ]
    await delete_comment(post_service, eve, remark.comment_id)
    assert told(await acts_of(post_service, bob)) == [("mentioned", ann, post_id, 0)]
    await delete(post_service, ann, post_id)
    assert await acts_of(post_service, bob) == []


async def test_what_is_alike_to_all_is_what_everybody_sees_as_it_is(post_service: PostService) -> None:
    ann, bob = await join_all(post_service, 2)
    post_id = await write(post_service, ann)
    hidden = await write(post_service, ann, visibility=pb.VISIBILITY_FOLLOWERS)
    plain, quote = await share(post_service, bob, post_id), await share(post_service, bob, post_id, "look")
    await like(post_service, bob, post_id)

    async def alike() -> list[int]:
        request = pb.BatchGetPostsRequest()
        request.items.add(post_ids=[post_id, hidden, plain.post_id, quote.post_id], only_alike=True)
        [item] = (await post_service.stub.BatchGetPosts(request)).items
        return [post.post_id for post in item.page.posts]

    assert await alike() == [post_id]
    await set_private(post_service, ann, True)
    async with asyncio.timeout(10):
        while await alike():
            await asyncio.sleep(0.05)


# Media.


async def upload(service: PostService, user_id: int, media_id: str, size: str = "large") -> pb.Media:
    request = pb.CreateMediaRequest(
        media_id=media_id, user_id=user_id, size=size, width=640, height=480, duration_ms=7, bytes=1000
    )
    return (await service.stub.CreateMedia(request)).media


async def public_media(service: PostService, *media_ids: str) -> set[str]:
    request = pb.BatchGetPublicMediaRequest(media_ids=media_ids)
    return set((await service.stub.BatchGetPublicMedia(request)).media_ids)


async def test_media_are_shown_by_posts_of_who_uploaded_them(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    one, other = "1" * 64, "2" * 64
    made = await upload(service, ann, one, "mp4")
    assert await upload(service, ann, one, "mp4") == made
    assert (made.media_id, made.width, made.height, made.duration_ms, made.bytes) == (one, 640, 480, 7, 1000)
    plain = f"/media/{one}/mp4"
    assert made.media_url.startswith(f"{plain}?expires=")
    for user_id, url in ((bob, made.media_url), (ann, f"/media/{other}/large")):
        with pytest.raises(errors.InvalidArgument) as caught:
            await service.stub.CreatePost(pb.CreatePostRequest(user_id=user_id, media_url=url))
        assert [each.field for each in caught.value.fields] == ["media_url"]
    for url in (plain, made.media_url, f"/media/{one}/small"):
        request = pb.CreatePostRequest(user_id=ann, media_url=url)
        assert (await service.stub.CreatePost(request)).post.media_url == plain
    for user_id, media_id, size in (
        (ann, "1" * 63, "large"),
        (ann, "A" * 64, "large"),
        (ann, one, "small"),
        (0, one, "mp4"),
    ):
        with pytest.raises(errors.InvalidArgument):
            await upload(service, user_id, media_id, size)
    with pytest.raises(errors.NotFound, match=str(NOBODY)):
        await upload(service, NOBODY, one)


async def test_media_are_public_while_a_public_post_of_a_public_account_shows_them(service: PostService) -> None:
    ann, bob = await join_all(service, 2)
    await follow(service, bob, ann)
    one, other = "1" * 64, "2" * 64
    await upload(service, ann, one)
    await upload(service, bob, other)
    assert await public_media(service, one, other, "3" * 64) == set()
    hidden = pb.CreatePostRequest(user_id=ann, media_url=f"/media/{one}/large", visibility=pb.VISIBILITY_FOLLOWERS)
    post = (await service.stub.CreatePost(hidden)).post
    assert "signature=" in post.media_url
    assert (await get(service, post.post_id, bob)).media_url == post.media_url
    [[shown]] = await hydrate(service, (bob, [post.post_id]))
    assert shown.media_url == post.media_url
    assert await public_media(service, one, other) == set()
    for _ in range(2):
        public = pb.CreatePostRequest(user_id=ann, media_url=f"/media/{one}/large")
        post = (await service.stub.CreatePost(public)).post
        assert post.media_url == f"/media/{one}/large"
        assert await public_media(service, one, other, one) == {one}
        await delete(service, ann, post.post_id)
        assert await public_media(service, one) == set()
    post = (await service.stub.CreatePost(public)).post
    await set_private(service, ann, True)

    async def is_signed() -> bool:
        return "signature=" in (await get(service, post.post_id, bob)).media_url

    await until(is_signed)
    assert await public_media(service, one) == set()


async def test_what_waits_for_a_post_is_bounded(service: PostService) -> None:
    [ann] = await join_all(service, 1)
    names = [f"{number:064x}" for number in range(101)]
    for name in names[:100]:
        await upload(service, ann, name)
    with pytest.raises(errors.Refused) as caught:
        await upload(service, ann, names[100])
    assert caught.value.reason == "MEDIA_LIMIT"
    await upload(service, ann, names[0])
    await service.stub.CreatePost(pb.CreatePostRequest(user_id=ann, media_url=f"/media/{names[0]}/large"))
    await upload(service, ann, names[100])
