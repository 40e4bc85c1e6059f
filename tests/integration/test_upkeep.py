"""What time does to the post service's database: heat that cools for months, posts that are deleted and swept."""

from __future__ import annotations

import pytest

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import counts, postgres
from services.post import store
from services.post.upkeep import sweep_deleted_posts
from tests.fakes.databases import Databases, settings_of
from tests.fakes.serving import RealPostService


async def person(service: RealPostService, name: str) -> int:
    request = graph_pb2.CreateUserRequest(username=name, email=f"{name}@example.org")
    return (await service.graph.CreateUser(request)).user.user_id


async def post(service: RealPostService, author: int) -> int:
    return (await service.stub.CreatePost(pb.CreatePostRequest(user_id=author, content="words"))).post.post_id


async def engagement(service: RealPostService, *post_ids: int) -> pb.BatchGetEngagementResponse.Item:
    item = pb.BatchGetEngagementRequest.Item(viewer_id=1, post_ids=post_ids)
    return (await service.stub.BatchGetEngagement(pb.BatchGetEngagementRequest(items=[item]))).items[0]


async def time_passes(service: RealPostService, hours: float) -> None:
    """As if so many hours had passed since the last fold."""
    async with service.pool.connection() as connection:
        await connection.execute(
            "UPDATE post_counts SET heat_at = heat_at - make_interval(secs => %s)", (hours * 3600,)
        )


@pytest.mark.parametrize("hours", [1, 100, 151, 1_100, 2_000, 20_000])
async def test_heat_cools_for_years_and_what_is_cold_can_be_read_and_folded(
    post_service: RealPostService, hours: float
) -> None:
    author = await person(post_service, "author")
    cold, other = await post(post_service, author), await post(post_service, author)
    await post_service.stub.LikePost(pb.LikePostRequest(user_id=author, post_id=cold))
    await post_service.upkeep()
    await time_passes(post_service, hours)

    assert (await engagement(post_service, cold)).heat[0] == pytest.approx(0.5**hours, abs=1e-6, rel=0.01)
    assert (await post_service.stub.GetPost(pb.GetPostRequest(post_id=cold))).post.likes == 1

    # An unlike adds no heat to what is left of it, and must not stop the folder.
    await post_service.stub.UnlikePost(pb.UnlikePostRequest(user_id=author, post_id=cold))
    await post_service.stub.LikePost(pb.LikePostRequest(user_id=author, post_id=other))
    assert await counts.fold(post_service.pool, store.POST_COUNTS) is False
    assert await postgres.fetch(post_service.pool, "SELECT count(*) FROM post_count_deltas") == [(0,)]
    assert list((await engagement(post_service, cold, other)).likes) == [0, 1]


async def test_what_hung_on_a_deleted_post_is_swept_in_bounded_steps(post_service: RealPostService) -> None:
    author, reader = await person(post_service, "author"), await person(post_service, "reader")
    gone, kept = await post(post_service, author), await post(post_service, author)
    for post_id in (gone, kept):
        await post_service.stub.LikePost(pb.LikePostRequest(user_id=reader, post_id=post_id))
        await post_service.stub.CreateComment(pb.CreateCommentRequest(user_id=reader, post_id=post_id, content="hm"))
        await post_service.stub.SharePost(pb.SharePostRequest(user_id=reader, post_id=post_id))
    await post_service.stub.DeletePost(pb.DeletePostRequest(user_id=author, post_id=gone))
    assert await store.unswept(post_service.pool, 10) == [], "not while a transaction may still see it alive"

    async with post_service.pool.connection() as connection:
        await connection.execute("UPDATE posts SET deleted_at = deleted_at - interval '2 minutes' WHERE swept = false")
    while await sweep_deleted_posts(post_service.pool):
        pass
    for table in ("likes", "comments", "shares"):
        rows = await postgres.fetch(post_service.pool, f"SELECT post_id FROM {table}")
        assert rows == [(kept,)], table
    rows = await postgres.fetch(post_service.pool, "SELECT count(*) FROM posts WHERE deleted_at IS NOT NULL AND swept")
    assert rows == [(2,)], "the post and its plain share"


async def test_a_new_partition_keeps_no_reader_waiting(databases: Databases) -> None:
    async with postgres.connect(settings_of(await databases.copy("services.post"))) as pool:
        async with pool.connection() as backup, backup.transaction():
            await backup.execute("SELECT count(*) FROM posts")
            assert await store.make_partitions(pool, 5) == 2
            assert await store.posts(pool, [1]) == {}
        keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'p' AND conrelid::regclass::text LIKE 'posts%'"
        assert await postgres.fetch(pool, keys) == [(7,)], "of the table and of each partition"
