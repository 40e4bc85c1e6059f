"""Invariant I3: counts plus pending deltas equal rows, in every snapshot; and deltas drain."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2 as pb
from runtime import counts, errors, postgres
from runtime.postgres import Connection, Pool
from services.graph import store as graph_store
from services.post import store
from tests.fakes.poll import until
from tests.fakes.serving import GraphService, RealPostService

POSTS_OUT_OF_STEP = """
    SELECT post_id, counted, rows FROM (
        SELECT p.post_id,
               ARRAY[coalesce(c.likes, 0) + coalesce(d.likes, 0), coalesce(c.comments, 0) + coalesce(d.comments, 0),
                     coalesce(c.shares, 0) + coalesce(d.shares, 0)]::bigint[] AS counted,
               ARRAY[(SELECT count(*) FROM likes l WHERE l.post_id = p.post_id),
                     (SELECT count(*) FROM comments m WHERE m.post_id = p.post_id AND m.deleted_at IS NULL),
                     (SELECT count(*) FROM posts s WHERE s.shared_post_id = p.post_id AND s.deleted_at IS NULL)
               ]::bigint[] AS rows
        FROM posts p LEFT JOIN post_counts c USING (post_id) LEFT JOIN LATERAL (
            SELECT sum(likes) AS likes, sum(comments) AS comments, sum(shares) AS shares
            FROM post_count_deltas WHERE post_id = p.post_id
        ) d ON true
        -- A deleted post has no counts, and its rows go when it is swept.
        WHERE p.deleted_at IS NULL
    ) every WHERE counted <> rows"""
USERS_OUT_OF_STEP = """
    SELECT user_id, counted, rows FROM (
        SELECT u.user_id,
               ARRAY[coalesce(c.followers, 0) + coalesce(d.followers, 0),
                     coalesce(c.following, 0) + coalesce(d.following, 0)]::bigint[] AS counted,
               ARRAY[(SELECT count(*) FROM followers f WHERE f.following_id = u.user_id),
                     (SELECT count(*) FROM followers f WHERE f.follower_id = u.user_id)]::bigint[] AS rows
        FROM users u LEFT JOIN user_counts c USING (user_id) LEFT JOIN LATERAL (
            SELECT sum(followers) AS followers, sum(following) AS following
            FROM user_count_deltas WHERE user_id = u.user_id
        ) d ON true
    ) every WHERE counted <> rows"""


async def hammer(pool: Pool, table: counts.Counts, out_of_step: str, acts: list[Callable[[], Awaitable[Any]]]) -> int:
    """Does all acts, six at a time, while two folders fold and snapshots are compared; how many snapshots."""
    done = asyncio.Event()
    left = list(acts)
    snapshots = 0

    async def actor() -> None:
        while left:
            try:
                await left.pop()()
            except (errors.NotFound, errors.Forbidden) as error:
                # Another actor was faster. Anything else is wrong.
                assert error.reason in ("POST_NOT_FOUND", "COMMENT_NOT_FOUND", "NOT_OWNER")  # noqa: PT017

    async def folder() -> None:
        while not done.is_set():
            await counts.fold(pool, table)

    async def watcher() -> None:
        nonlocal snapshots
        while not done.is_set():
            async with pool.connection() as connection, connection.transaction():
                await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                wrong = await (await connection.execute(out_of_step.encode())).fetchall()
            assert wrong == []
            snapshots += 1

    async def act() -> None:
        try:
            await asyncio.gather(*(actor() for _ in range(6)))
        finally:
            done.set()

    await asyncio.gather(act(), folder(), folder(), watcher())
    return snapshots


async def pending(pool: Pool, table: counts.Counts) -> int:
    rows = await postgres.fetch(pool, f"SELECT count(*) FROM {table.name}_count_deltas")
    return int(rows[0][0])


async def drained(pool: Pool, table: counts.Counts) -> bool:
    await counts.fold(pool, table)
    return await pending(pool, table) == 0


async def test_counts_of_posts_equal_rows_in_every_snapshot_and_drain(post_service: RealPostService) -> None:
    stub, pool = post_service.stub, post_service.pool
    chance = random.Random(3)
    people = [
        (
            await post_service.graph.CreateUser(
                graph_pb2.CreateUserRequest(username=f"hammer{n}", email=f"hammer{n}@example.org")
            )
        ).user.user_id
        for n in range(5)
    ]
    posts = [
        (await stub.CreatePost(pb.CreatePostRequest(user_id=people[0], content=f"{n}"))).post.post_id for n in range(4)
    ]
    comments: list[tuple[int, int]] = []
    shares: list[tuple[int, int]] = []

    async def comment(user: int, post: int) -> None:
        made = await stub.CreateComment(pb.CreateCommentRequest(user_id=user, post_id=post, content="x"))
        comments.append((user, made.comment.comment_id))

    async def share(user: int, post: int, content: str) -> None:
        made = await stub.SharePost(pb.SharePostRequest(user_id=user, post_id=post, content=content))
        shares.append((user, made.post.post_id))

    async def delete_comment() -> None:
        if comments:
            user, comment_id = chance.choice(comments)
            await stub.DeleteComment(pb.DeleteCommentRequest(user_id=user, comment_id=comment_id))

    async def delete_share() -> None:
        if shares:
            user, post_id = chance.choice(shares)
            await stub.DeletePost(pb.DeletePostRequest(user_id=user, post_id=post_id))

    acts: list[Callable[[], Awaitable[Any]]] = []
    for n in range(360):
        user, post = chance.choice(people), chance.choice(posts)
        if n == 40:  # done late: the last act of the list comes first
            acts.append(lambda: stub.DeletePost(pb.DeletePostRequest(user_id=people[0], post_id=posts[3])))
        match chance.randrange(7):
            case 0 | 1:
                acts.append(lambda u=user, p=post: stub.LikePost(pb.LikePostRequest(user_id=u, post_id=p)))  # type: ignore[misc]
            case 2:
                acts.append(lambda u=user, p=post: stub.UnlikePost(pb.UnlikePostRequest(user_id=u, post_id=p)))  # type: ignore[misc]
            case 3:
                acts.append(lambda u=user, p=post: comment(u, p))  # type: ignore[misc]
            case 4:
                acts.append(delete_comment)
            case 5:
                content = chance.choice(["", "x"])
                acts.append(lambda u=user, p=post, c=content: share(u, p, c))  # type: ignore[misc]
            case _:
                acts.append(delete_share)
    assert await hammer(pool, store.POST_COUNTS, POSTS_OUT_OF_STEP, acts) > 5
    await until(lambda: drained(pool, store.POST_COUNTS))
    assert await postgres.fetch(pool, POSTS_OUT_OF_STEP) == []


async def test_batches_that_cross_each_other_and_deletions_wait_for_nobody_in_a_ring(
    post_service: RealPostService,
) -> None:
    stub, pool = post_service.stub, post_service.pool
    chance = random.Random(5)
    joining = [graph_pb2.CreateUserRequest(username=f"ring{n}", email=f"ring{n}@example.org") for n in range(12)]
    people = [(await post_service.graph.CreateUser(request)).user.user_id for request in joining]
    posts = [
        (await stub.CreatePost(pb.CreatePostRequest(user_id=people[0], content=f"{n}"))).post.post_id for n in range(6)
    ]
    everything = [(user, post) for user in people for post in posts[:4]]

    async def like_all(order: list[tuple[int, int]]) -> None:
        items = [pb.LikePostRequest(user_id=user, post_id=post) for user, post in order]
        await stub.BatchLikePosts(pb.BatchLikePostsRequest(items=items))

    async def unlike_all(order: list[tuple[int, int]]) -> None:
        items = [pb.UnlikePostRequest(user_id=user, post_id=post) for user, post in order]
        await stub.BatchUnlikePosts(pb.BatchUnlikePostsRequest(items=items))

    async def comment_on_all(order: list[tuple[int, int]]) -> None:
        items = [pb.CreateCommentRequest(user_id=user, post_id=post, content="x") for user, post in order]
        await stub.BatchCreateComments(pb.BatchCreateCommentsRequest(items=items))

    acts: list[Callable[[], Awaitable[Any]]] = [
        lambda post=post: stub.DeletePost(pb.DeletePostRequest(user_id=people[0], post_id=post))  # type: ignore[misc]
        for post in posts[2:]
    ]
    for n in range(96):
        order = chance.sample(everything, chance.randint(8, len(everything)))
        acts.insert(0, lambda act=(like_all, unlike_all, comment_on_all)[n % 3], order=order: act(order))  # type: ignore[misc]
    before = deadlocks()
    assert await hammer(pool, store.POST_COUNTS, POSTS_OUT_OF_STEP, acts) > 5
    assert deadlocks() == before
    await until(lambda: drained(pool, store.POST_COUNTS))
    assert await postgres.fetch(pool, POSTS_OUT_OF_STEP) == []


@pytest.mark.parametrize("write", [store.insert_likes, store.delete_likes])
async def test_likes_are_written_in_one_order_whatever_order_they_come_in(
    post_service: RealPostService, write: Callable[[Connection, list[store.Like]], Awaitable[Any]]
) -> None:
    pool = post_service.pool
    ann = (
        await post_service.graph.CreateUser(graph_pb2.CreateUserRequest(username="ann", email="ann@example.org"))
    ).user.user_id
    posts = [
        (await post_service.stub.CreatePost(pb.CreatePostRequest(user_id=ann, content="words"))).post.post_id
        for _ in range(2)
    ]
    first, second = [store.Like(ann, post, ann) for post in posts]
    if write is store.delete_likes:
        await postgres.transact(pool, lambda c: store.insert_likes(c, [first, second]))
    before = deadlocks()
    async with pool.connection() as connection, connection.transaction():
        await write(connection, [first])
        other = asyncio.create_task(postgres.transact(pool, lambda c: write(c, [second, first])))
        await until(lambda: waits(pool))
        # What comes second it does not hold yet.
        await write(connection, [second])
    await other
    assert deadlocks() == before
    assert await number_of_likes(pool) == (2 if write is store.insert_likes else 0)


async def waits(pool: Pool) -> bool:
    """Whether a transaction waits for another."""
    return bool(
        await postgres.fetch(
            pool,
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
    )


async def number_of_likes(pool: Pool) -> int:
    [row] = await postgres.fetch(pool, "SELECT count(*) FROM likes")
    return int(row[0])


def deadlocks() -> float:
    """How many transactions of this process ended in a deadlock."""
    return (
        REGISTRY.get_sample_value("feedmesh_postgres_transaction_retries_total", {"error": "DeadlockDetected"}) or 0.0
    )


async def test_counts_of_people_equal_rows_in_every_snapshot_and_drain(
    graph_service: GraphService, graph_pool: Pool
) -> None:
    stub = graph_service.stub
    chance = random.Random(4)
    people = [
        (
            await stub.CreateUser(graph_pb2.CreateUserRequest(username=f"hammer{n}", email=f"hammer{n}@example.org"))
        ).user.user_id
        for n in range(6)
    ]
    acts: list[Callable[[], Awaitable[Any]]] = []
    for _ in range(240):
        a, b = chance.sample(people, 2)
        if chance.random() < 0.6:
            acts.append(lambda a=a, b=b: stub.Follow(graph_pb2.FollowRequest(follower_id=a, following_id=b)))  # type: ignore[misc]
        else:
            acts.append(lambda a=a, b=b: stub.Unfollow(graph_pb2.UnfollowRequest(follower_id=a, following_id=b)))  # type: ignore[misc]
    assert await hammer(graph_pool, graph_store.USER_COUNTS, USERS_OUT_OF_STEP, acts) > 5
    await until(lambda: drained(graph_pool, graph_store.USER_COUNTS))
    assert await postgres.fetch(graph_pool, USERS_OUT_OF_STEP) == []


# One fold. Deltas are written as rows here: what they count does not matter to the folder.


async def add(pool: Pool, post_id: int, *, likes: int = 0, comments: int = 0, shares: int = 0, times: int = 1) -> None:
    async with pool.connection() as connection:
        await connection.execute(
            """INSERT INTO post_count_deltas (post_id, likes, comments, shares)
            SELECT %s, %s, %s, %s FROM generate_series(1, %s)""",
            (post_id, likes, comments, shares, times),
        )


async def totals(pool: Pool, post_id: int) -> tuple[int, int, int]:
    [row] = await postgres.fetch(
        pool, "SELECT likes, comments, shares FROM post_counts WHERE post_id = %(id)s", {"id": post_id}
    )
    return row[0], row[1], row[2]


async def heat(pool: Pool, post_id: int) -> float:
    return (await store.engagement(pool, [post_id]))[post_id][3]


async def test_a_fold_adds_what_is_pending(post_pool: Pool) -> None:
    await add(post_pool, 1, likes=1, times=3)
    await add(post_pool, 1, likes=-1, comments=2)
    await add(post_pool, 2, shares=1)
    assert await counts.fold(post_pool, store.POST_COUNTS) is False
    assert (await totals(post_pool, 1), await totals(post_pool, 2)) == ((2, 2, 0), (0, 0, 1))
    await add(post_pool, 1, likes=-2, comments=-2, shares=1)
    assert await counts.fold(post_pool, store.POST_COUNTS) is False
    assert await counts.fold(post_pool, store.POST_COUNTS) is False
    assert await totals(post_pool, 1) == (0, 0, 1)
    assert await pending(post_pool, store.POST_COUNTS) == 0


async def test_a_fold_takes_a_bounded_number_and_says_when_there_may_be_more(post_pool: Pool) -> None:
    await add(post_pool, 1, likes=1, times=counts.BATCH + 1)
    assert await counts.fold(post_pool, store.POST_COUNTS) is True
    assert await pending(post_pool, store.POST_COUNTS) == 1
    assert await counts.fold(post_pool, store.POST_COUNTS) is False
    assert await totals(post_pool, 1) == (counts.BATCH + 1, 0, 0)


async def test_only_one_folds_at_a_time(post_pool: Pool) -> None:
    await add(post_pool, 1, likes=1)
    async with post_pool.connection() as other, other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock(%s)", (counts.LOCK,))
        assert await counts.fold(post_pool, store.POST_COUNTS) is False
        assert await pending(post_pool, store.POST_COUNTS) == 1
    await counts.fold(post_pool, store.POST_COUNTS)
    assert await pending(post_pool, store.POST_COUNTS) == 0


async def test_a_fold_that_fails_loses_nothing(post_pool: Pool) -> None:
    await add(post_pool, 1, likes=1)

    async def fold_and_fail(connection: Connection) -> None:
        await connection.execute(counts.statement(store.POST_COUNTS), {"batch": counts.BATCH})
        raise ValueError("the process died here")

    with pytest.raises(ValueError, match="died"):
        await postgres.transact(post_pool, fold_and_fail)
    assert await pending(post_pool, store.POST_COUNTS) == 1
    assert await postgres.fetch(post_pool, "SELECT 1 FROM post_counts") == []


async def test_heat_halves_every_hour_and_counts_do_not(post_pool: Pool) -> None:
    await add(post_pool, 1, likes=2, comments=1, shares=1)
    assert await heat(post_pool, 1) == pytest.approx(2 + 2 + 3)
    await counts.fold(post_pool, store.POST_COUNTS)
    assert await heat(post_pool, 1) == pytest.approx(7, abs=0.05)
    await let_pass(post_pool, hours=1)
    assert await heat(post_pool, 1) == pytest.approx(3.5, abs=0.05)
    await add(post_pool, 1, likes=4)
    assert await heat(post_pool, 1) == pytest.approx(7.5, abs=0.05)
    await counts.fold(post_pool, store.POST_COUNTS)
    assert await heat(post_pool, 1) == pytest.approx(7.5, abs=0.05)
    await let_pass(post_pool, hours=2)
    assert await heat(post_pool, 1) == pytest.approx(7.5 / 4, abs=0.05)
    assert await totals(post_pool, 1) == (6, 1, 1)
    await let_pass(post_pool, hours=24 * 365 * 50)
    await add(post_pool, 1, likes=-1)
    await counts.fold(post_pool, store.POST_COUNTS)
    assert await heat(post_pool, 1) == 0


async def test_heat_is_never_negative(post_pool: Pool) -> None:
    await add(post_pool, 1, likes=-3)
    assert await heat(post_pool, 1) == 0
    await counts.fold(post_pool, store.POST_COUNTS)
    assert await heat(post_pool, 1) == 0


async def let_pass(pool: Pool, *, hours: int) -> None:
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE post_counts SET heat_at = heat_at - make_interval(secs => 3600.0 * %s)", (hours,)
        )


async def test_a_share_taken_back_just_when_it_is_made_again_is_made_again(post_service: RealPostService) -> None:
    stub, pool = post_service.stub, post_service.pool
    created = await post_service.graph.CreateUser(graph_pb2.CreateUserRequest(username="ann", email="ann@example.org"))
    ann = created.user.user_id
    post_id = (await stub.CreatePost(pb.CreatePostRequest(user_id=ann, content="words"))).post.post_id
    request = pb.SharePostRequest(user_id=ann, post_id=post_id)
    first = (await stub.SharePost(request)).post.post_id
    async with pool.connection() as gate, at_the_gate(pool, "shares"):
        await gate.execute("SELECT pg_advisory_lock(7)")
        again = asyncio.ensure_future(stub.SharePost(request))
        await until(lambda: waits_at_the_gate(pool))
        # The second share has met the first one, and has not read it yet.
        await stub.DeletePost(pb.DeletePostRequest(user_id=ann, post_id=first))
        await gate.execute("SELECT pg_advisory_unlock(7)")
        made = (await again).post.post_id
    assert made != first
    assert await postgres.fetch(pool, "SELECT share_id FROM shares") == [(made,)]
    assert await postgres.fetch(pool, POSTS_OUT_OF_STEP) == []


@asynccontextmanager
async def at_the_gate(pool: Pool, table: str) -> AsyncIterator[None]:
    """For the block, each statement that inserts into a table waits at its end for the advisory lock 7."""
    async with pool.connection() as connection:
        await connection.execute(
            """CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$"""
        )
        await connection.execute(
            f"CREATE TRIGGER gate AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION gate()".encode()
        )
    try:
        yield
    finally:
        async with pool.connection() as connection:
            await connection.execute("DROP FUNCTION gate CASCADE")


async def waits_at_the_gate(pool: Pool) -> bool:
    rows = await postgres.fetch(
        pool,
        """SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())""",
    )
    return bool(rows)


async def test_a_swept_post_leaves_no_counts_even_when_its_quotes_go_later(post_service: RealPostService) -> None:
    stub, pool = post_service.stub, post_service.pool
    created = await post_service.graph.CreateUser(graph_pb2.CreateUserRequest(username="ann", email="ann@example.org"))
    ann = created.user.user_id
    post_id = (await stub.CreatePost(pb.CreatePostRequest(user_id=ann, content="words"))).post.post_id
    await stub.LikePost(pb.LikePostRequest(user_id=ann, post_id=post_id))
    await stub.CreateComment(pb.CreateCommentRequest(user_id=ann, post_id=post_id, content="a remark"))
    plain = (await stub.SharePost(pb.SharePostRequest(user_id=ann, post_id=post_id))).post.post_id
    quote = (await stub.SharePost(pb.SharePostRequest(user_id=ann, post_id=post_id, content="so true"))).post.post_id
    await post_service.upkeep()
    await stub.DeletePost(pb.DeletePostRequest(user_id=ann, post_id=post_id))
    await post_service.upkeep()
    assert await postgres.fetch(pool, "SELECT 1 FROM likes") == [(1,)], "what is just deleted is left for a minute"
    for _ in range(2):  # the post first, then the plain share that went with it
        async with pool.connection() as connection:
            await connection.execute("UPDATE posts SET deleted_at = deleted_at - interval '2 minutes'")
        await post_service.upkeep()
    for table in ("likes", "comments", "shares", "post_counts", "post_count_deltas"):
        assert await postgres.fetch(pool, f"SELECT 1 FROM {table}") == [], table
    left = await postgres.fetch(pool, "SELECT post_id FROM posts WHERE deleted_at IS NULL")
    assert left == [(quote,)]
    assert await postgres.fetch(pool, "SELECT 1 FROM posts WHERE deleted_at IS NOT NULL AND NOT swept") == []
    for gone in (plain, quote):
        await stub.DeletePost(pb.DeletePostRequest(user_id=ann, post_id=gone))
    await post_service.upkeep()
    negative = "SELECT post_id, likes, comments, shares FROM post_counts WHERE least(likes, comments, shares) < 0"
    assert await postgres.fetch(pool, negative) == []
