"""The partitions of posts: one a month, made ahead, without a gap."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from runtime import postgres
from runtime.postgres import Pool
from services.post import store, upkeep
from tests.fakes.databases import Databases, settings_of
from tests.fakes.poll import until

MONTHS = """
    SELECT to_char(month, 'YYYY_MM'), id_at(month AT TIME ZONE 'UTC'),
           id_at((month + interval '1 month') AT TIME ZONE 'UTC')
    FROM generate_series(date_trunc('month', now() AT TIME ZONE 'UTC'),
                         date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => %(ahead)s),
                         interval '1 month') AS month"""


async def months(pool: Pool, ahead: int = upkeep.MONTHS_AHEAD) -> list[tuple[str, int, int]]:
    """Name, first id and first id after it, of this month and those ahead."""
    return [(row[0], row[1], row[2]) for row in await postgres.fetch(pool, MONTHS, {"ahead": ahead})]


async def partitions(pool: Pool) -> list[str]:
    rows = await postgres.fetch(
        pool, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'posts'::regclass ORDER BY 1"
    )
    return [row[0] for row in rows]


async def place(pool: Pool, post_id: int) -> str:
    """Puts a post with this id in; the partition that it is in."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "INSERT INTO posts (post_id, original_id, user_id, content) VALUES (%(id)s, %(id)s, 1, '')"
            " RETURNING tableoid::regclass::text",
            {"id": post_id},
        )
        row = await cursor.fetchone()
        assert row is not None
        return str(row[0])


async def test_this_month_and_three_ahead_are_there_from_the_start(post_pool: Pool) -> None:
    assert await partitions(post_pool) == [f"posts_{name}" for name, _, _ in await months(post_pool)]
    assert await store.make_partitions(post_pool, upkeep.MONTHS_AHEAD) == 0


async def test_each_post_lies_in_the_month_of_its_id_and_no_month_leaves_a_gap(post_pool: Pool) -> None:
    for name, first, after in await months(post_pool):
        assert await place(post_pool, first) == f"posts_{name}"
        assert await place(post_pool, after - 1) == f"posts_{name}"
    [(_, this_month, _), *_, (_, _, beyond)] = await months(post_pool)
    for post_id in (this_month - 1, beyond):
        with pytest.raises(psycopg.errors.CheckViolation):
            await place(post_pool, post_id)


async def test_a_lacking_month_is_made_by_upkeep(databases: Databases) -> None:
    dsn = await databases.copy("services.post")
    async with postgres.connect(settings_of(dsn)) as pool:
        *_, before_last, last = [f"posts_{name}" for name, _, _ in await months(pool)]
        everything = await partitions(pool)
        async with pool.connection() as connection:
            for name in (before_last, last):
                await connection.execute(f"ALTER TABLE posts DETACH PARTITION {name}".encode())
                await connection.execute(f"DROP TABLE {name}".encode())
        assert await store.make_partitions(pool, upkeep.MONTHS_AHEAD) == 2
        assert await partitions(pool) == everything
        assert await store.make_partitions(pool, upkeep.MONTHS_AHEAD + 2) == 2
        assert await upkeep.make_partitions(pool) is False


async def test_two_that_make_partitions_at_once_do_not_get_in_each_others_way(databases: Databases) -> None:
    dsn = await databases.copy("services.post")
    async with postgres.connect(settings_of(dsn)) as pool:
        async with pool.connection() as first, first.transaction():
            await first.execute("SELECT make_post_partitions(12)")
            second = asyncio.create_task(store.make_partitions(pool, 12))
            await until(lambda: waits_for_a_lock(pool))
        assert await second == 0
        assert len(await partitions(pool)) == 13


async def waits_for_a_lock(pool: Pool) -> bool:
    return bool(
        await postgres.fetch(
            pool, "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    )


async def test_posts_are_written_while_partitions_are_made(databases: Databases) -> None:
    dsn = await databases.copy("services.post")

    async with postgres.connect(settings_of(dsn)) as pool:

        async def write() -> int:
            new = [store.NewPost(1, "words", "", 1)]
            [post_id] = await postgres.transact(pool, lambda c: store.insert_posts(c, new))
            return post_id

        written = [write() for _ in range(20)]
        made, *posts = await asyncio.gather(store.make_partitions(pool, 6), *written)
        assert made == 6 - upkeep.MONTHS_AHEAD
        assert len(set(posts)) == 20
