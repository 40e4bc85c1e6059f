"""Epochs: whatever Redis may have lost raises the epoch, once for all processes; nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from launch import valkey as embedded
from launch.valkey import Running
from runtime import epochs, postgres, redis
from runtime.epochs import Epoch, marker_key
from runtime.postgres import Connection, Pool

NAME = "test"
FAIL_AT_COMMIT = """
    CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'died'; END $$;
    CREATE CONSTRAINT TRIGGER die AFTER UPDATE ON redis_epochs DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION die()"""


class Process:
    """One that looks at Redis, with what it knows."""

    def __init__(self, pool: Pool, client: Redis) -> None:
        self._pool, self._client = pool, client
        self.known: Epoch | None = None
        self.losses = 0

    async def look(self) -> int:
        """The epoch's number as of now."""
        run_id = (await redis.look(self._client)).run_id
        self.known = await epochs.settle(self._pool, self._client, NAME, self.known, run_id, self._lost)
        return self.known.number

    async def _lost(self, connection: Connection) -> None:
        await connection.execute("UPDATE redis_epochs SET redo_to = coalesce(redo_to, 0) + 1 WHERE name = %s", (NAME,))
        self.losses += 1


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A Redis that may be broken, empty."""
    with embedded.running(tmp_path) as server:
        yield server


@pytest_asyncio.fixture
async def client(server: Running) -> AsyncIterator[Redis]:
    """A client of it."""
    async with redis.connect(redis.RedisSettings(redis_url=server.url), timeout_s=5) as client:
        yield client


async def noted(pool: Pool) -> tuple[int, int | None]:
    """The epoch in the database, and how often something was done about a loss."""
    [(number, losses)] = await postgres.fetch(
        pool, "SELECT epoch, redo_to FROM redis_epochs WHERE name = %(name)s", {"name": NAME}
    )
    return number, losses


async def flush(server: Running, client: Redis) -> None:
    await client.flushall()


async def restart(server: Running, client: Redis) -> None:
    server.restart()


async def restore(server: Running, client: Redis) -> None:
    """Puts an old snapshot back that holds the marker as it is now."""
    await client.save()
    server.restart()


LOSSES = [flush, restart, restore]
Lose = Callable[[Running, Redis], Awaitable[None]]


async def test_the_first_epoch_begins_and_nothing_is_lost(graph_pool: Pool, client: Redis) -> None:
    own = Process(graph_pool, client)
    assert await own.look() == 1
    assert own.known is not None
    assert await client.get(marker_key(NAME)) == own.known.marker
    assert (own.losses, await noted(graph_pool)) == (0, (1, None))


async def test_nothing_raises_it_while_redis_is_well(graph_pool: Pool, client: Redis) -> None:
    processes = [Process(graph_pool, client) for _ in range(4)]
    for number in range(250):
        await client.set("something", number)
        assert {await own.look() for own in processes} == {1}
    # One that starts now knows nothing.
    assert await Process(graph_pool, client).look() == 1
    assert await noted(graph_pool) == (1, None)


@pytest.mark.parametrize("lose", LOSSES)
async def test_each_loss_raises_it_once_though_all_notice_at_the_same_time(
    graph_pool: Pool, client: Redis, server: Running, lose: Lose
) -> None:
    processes = [Process(graph_pool, client) for _ in range(6)]
    for epoch in range(1, 6):
        looks = await asyncio.gather(*(own.look() for own in processes))
        assert set(looks) == {epoch}
        assert {await own.look() for own in [*processes, Process(graph_pool, client)]} == {epoch}
        await lose(server, client)
    assert await noted(graph_pool) == (5, 4)
    assert sum(own.losses for own in processes) == 4


async def test_one_that_looked_before_the_restart_and_comes_late_does_not_raise_it_again(
    graph_pool: Pool, client: Redis, server: Running
) -> None:
    own, late = Process(graph_pool, client), Process(graph_pool, client)
    await own.look()
    await late.look()
    before = (await redis.look(client)).run_id
    server.restart()
    assert await own.look() == 2
    assert (await epochs.settle(graph_pool, client, NAME, late.known, before)).number == 2
    assert await own.look() == await late.look() == 2


@pytest.mark.parametrize("lose", LOSSES)
async def test_a_loss_that_nobody_was_there_to_see_raises_it(
    graph_pool: Pool, client: Redis, server: Running, lose: Lose
) -> None:
    assert await Process(graph_pool, client).look() == 1
    await lose(server, client)
    assert await Process(graph_pool, client).look() == 2
    assert await noted(graph_pool) == (2, 1)


async def test_an_older_snapshot_still_raises_it(graph_pool: Pool, client: Redis, server: Running) -> None:
    own = Process(graph_pool, client)
    await own.look()
    await client.save()
    old = server.snapshot.read_bytes()
    server.snapshot.unlink()
    for epoch in (2, 3):
        server.restart()
        assert await own.look() == epoch
    server.snapshot.write_bytes(old)
    server.restart()
    assert await client.get(marker_key(NAME)) is not None
    assert await own.look() == 4
    assert await own.look() == 4


@asynccontextmanager
async def dying(pool: Pool) -> AsyncIterator[None]:
    """Whoever raises the epoch within the block dies when it commits."""
    async with pool.connection() as connection:
        await connection.execute(FAIL_AT_COMMIT)
    try:
        yield
    finally:
        async with pool.connection() as connection:
            await connection.execute("DROP FUNCTION die CASCADE")


async def test_one_that_dies_while_it_begins_the_first_leaves_no_foreign_redis(graph_pool: Pool, client: Redis) -> None:
    async with dying(graph_pool):
        with pytest.raises(psycopg.errors.RaiseException):
            await Process(graph_pool, client).look()
    assert await Process(graph_pool, client).look() == 1


@pytest.mark.parametrize("lose", LOSSES)
async def test_one_that_dies_while_it_raises_it_leaves_that_to_the_next(
    graph_pool: Pool, client: Redis, server: Running, lose: Lose
) -> None:
    own, other = Process(graph_pool, client), Process(graph_pool, client)
    assert await own.look() == await other.look() == 1
    await lose(server, client)
    async with dying(graph_pool):
        with pytest.raises(psycopg.errors.RaiseException):
            await own.look()
    assert await noted(graph_pool) == (1, None)
    assert await other.look() == 2
    assert await noted(graph_pool) == (2, 1)
    assert await own.look() == await other.look() == 2


async def test_where_the_marker_cannot_be_set_the_epoch_stays(graph_pool: Pool, client: Redis) -> None:
    own = Process(graph_pool, client)
    await own.look()
    await client.flushall()
    await client.config_set("maxmemory", 1)
    for _ in range(3):
        with pytest.raises(OutOfMemoryError):
            await own.look()
    assert await noted(graph_pool) == (1, None)
    await client.config_set("maxmemory", 0)
    assert await own.look() == 2
    assert await noted(graph_pool) == (2, 1)


async def test_the_redis_of_another_mesh_is_refused_and_left_as_it_is(
    graph_pool: Pool, post_pool: Pool, client: Redis
) -> None:
    own, other = Process(graph_pool, client), Process(post_pool, client)
    await own.look()
    marker = await client.get(marker_key(NAME))
    for _ in range(3):
        with pytest.raises(epochs.ForeignRedisError, match="FLUSHDB"):
            await other.look()
    assert await client.get(marker_key(NAME)) == marker
    assert await own.look() == 1
    # As it says.
    await client.flushdb()
    assert await other.look() == 1
    with pytest.raises(epochs.ForeignRedisError):
        await own.look()
