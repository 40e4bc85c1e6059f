"""Transactions on a real database: tried again where Postgres asks for that, and no more often than five times."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import errors, metrics, postgres
from runtime.postgres import Connection, Pool
from services.graph import store, users
from services.graph.passwords import Passwords
from tests.fakes.databases import Databases, settings_of


async def person(pool: Pool, name: str) -> int:
    request = pb.CreateUserRequest(username=name, email=f"{name}@example.org")
    return (await users.create_user(pool, Passwords(), request)).user.user_id


async def rename(connection: Connection, user_id: int, name: str) -> None:
    await connection.execute("UPDATE users SET username = %s WHERE user_id = %s", (name, user_id))


async def names(pool: Pool) -> list[str]:
    return sorted(row[0] for row in await postgres.fetch(pool, "SELECT username FROM users"))


def retries(kind: str) -> float:
    value: float = metrics.POSTGRES_RETRIES.labels(kind)._value.get()
    return value


async def test_a_serialization_failure_is_tried_again(graph_pool: Pool) -> None:
    user_id = await person(graph_pool, "ann")
    before, attempts = retries("SerializationFailure"), 0

    async def work(connection: Connection) -> int:
        nonlocal attempts
        attempts += 1
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await connection.execute("SELECT 1 FROM users")
        if attempts < 3:
            async with graph_pool.connection() as other:
                await rename(other, user_id, f"other{attempts}")
        await rename(connection, user_id, "mine")
        return attempts

    assert await postgres.transact(graph_pool, work) == 3
    assert await names(graph_pool) == ["mine"]
    assert retries("SerializationFailure") == before + 2


async def test_of_two_in_a_deadlock_both_get_through(graph_pool: Pool) -> None:
    pair = [await person(graph_pool, name) for name in ("ann", "bob")]
    before = retries("DeadlockDetected")
    both_hold_one = asyncio.Barrier(2)
    attempts = [0, 0]
    # Not a name: those who change names queue up for the version of people.
    write = "UPDATE users SET email = %s WHERE user_id = %s"

    async def crosswise(connection: Connection, me: int) -> None:
        attempts[me] += 1
        await connection.execute("SET LOCAL deadlock_timeout = '20ms'")
        await connection.execute(write, (f"first{me}@example.org", pair[me]))
        if attempts[me] == 1:
            await both_hold_one.wait()
        await connection.execute(write, (f"second{me}@example.org", pair[1 - me]))

    await asyncio.gather(*(postgres.transact(graph_pool, lambda c, me=me: crosswise(c, me)) for me in (0, 1)))  # type: ignore[misc]
    assert retries("DeadlockDetected") > before
    assert len(await names(graph_pool)) == 2


async def test_a_clash_of_ids_is_tried_again(databases: Databases) -> None:
    dsn = await databases.copy("services.graph")
    async with postgres.connect(settings_of(dsn)) as pool:
        async with pool.connection() as connection:
            # Each id comes twice in a row.
            await connection.execute(
                """CREATE OR REPLACE FUNCTION next_id() RETURNS bigint LANGUAGE sql VOLATILE AS $$
                SELECT 1000 + nextval('id_sequence') / 2 $$"""
            )
        made = [await person(pool, f"person{n}") for n in range(6)]
        assert sorted(set(made)) == sorted(made)
        assert len(await names(pool)) == 6


async def test_it_is_tried_five_times_at_the_most(graph_pool: Pool) -> None:
    attempts = 0

    async def work(connection: Connection) -> None:
        nonlocal attempts
        attempts += 1
        await store.insert_user(connection, f"ann{attempts}", f"ann{attempts}@example.org")
        raise psycopg.errors.SerializationFailure

    with pytest.raises(psycopg.errors.SerializationFailure):
        await postgres.transact(graph_pool, work)
    assert attempts == postgres.ATTEMPTS == 5
    assert await names(graph_pool) == []


@pytest.mark.parametrize("error", [errors.NotFound("USER_NOT_FOUND"), ValueError("a defect"), psycopg.DataError()])
async def test_anything_else_is_raised_at_once_and_leaves_nothing(graph_pool: Pool, error: Exception) -> None:
    attempts = 0

    async def work(connection: Connection) -> None:
        nonlocal attempts
        attempts += 1
        await store.insert_user(connection, "ann", "ann@example.org")
        raise error

    with pytest.raises(type(error)):
        await postgres.transact(graph_pool, work)
    assert attempts == 1
    assert await names(graph_pool) == []


async def test_a_taken_name_is_no_clash_of_ids(graph_pool: Pool) -> None:
    await person(graph_pool, "ann")
    before = retries("UniqueViolation")
    with pytest.raises(errors.Conflict):
        await person(graph_pool, "ann")
    assert retries("UniqueViolation") == before


@pytest.mark.parametrize("use", ["fetch", "transact"])
async def test_a_pool_whose_connections_the_database_ended_all_goes_on(graph_pool: Pool, use: str) -> None:
    held = [await graph_pool.getconn() for _ in range(graph_pool.max_size)]
    for connection in held:
        await graph_pool.putconn(connection)
    async with await psycopg.AsyncConnection.connect(str(graph_pool.conninfo), autocommit=True) as killer:
        await killer.execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    if use == "fetch":
        assert await names(graph_pool) == []
    else:
        assert await person(graph_pool, "ann")


async def test_a_pool_that_is_exhausted_is_unavailable_and_not_a_defect(
    graph_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_pool, "timeout", 0.05)
    held = [await graph_pool.getconn() for _ in range(graph_pool.max_size)]
    try:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - which one it is, is the point of the next line
            await names(graph_pool)
        assert isinstance(errors.from_exception(caught.value), errors.Unavailable)
        before = retries("PoolTimeout")
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await person(graph_pool, "ann")
        assert isinstance(errors.from_exception(caught.value), errors.Unavailable)
        assert retries("PoolTimeout") == before, "who waited once does not wait five times"
    finally:
        for connection in held:
            await graph_pool.putconn(connection)
    assert await names(graph_pool) == []


async def test_no_database_ends_the_process_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = AsyncConnectionPool.open

    async def impatient(pool: Pool, *, wait: bool, timeout: float) -> None:  # noqa: ASYNC109 - psycopg's own signature
        assert timeout == 30
        await opened(pool, wait=wait, timeout=0.2)

    monkeypatch.setattr(AsyncConnectionPool, "open", impatient)
    with pytest.raises(SystemExit) as caught:
        async with postgres.connect(settings_of("postgresql://user:hunter2@127.0.0.1:1/db")):
            pass
    assert caught.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("FEEDMESH_POSTGRES_DSN: cannot connect")
    assert "hunter2" not in line


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_lists_arrive_as_they_were_sent(graph_pool: Pool, count: int) -> None:
    numbers = [-(2**63), 0, 2**63 - 1][:count]
    words = ["", "zwölf", '{"a,\\b"}'][:count]
    strings = [b"", b"\0\xff", b"\\x00"][:count]
    [row] = await postgres.fetch(
        graph_pool,
        "SELECT %(numbers)s::bigint[], %(words)s::text[], %(strings)s::bytea[]",
        {
            "numbers": postgres.int8s(numbers),
            "words": postgres.texts(words),
            "strings": postgres.byteas(strings),
        },
    )
    assert row == (numbers, words, strings)


async def test_queries_at_the_same_time_each_get_their_rows(graph_pool: Pool) -> None:
    async def same(number: int) -> bool:
        rows = await postgres.fetch(graph_pool, "SELECT %(number)s::bigint", {"number": number})
        return rows == [(number,)]

    assert all(await asyncio.gather(*(same(number) for number in range(50))))
