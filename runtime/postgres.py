"""A service's database: the pool of connections and transactions that are tried again. SQL is in each `store.py`."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Annotated, Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import psycopg
import psycopg_pool
from psycopg import AsyncConnection, AsyncCursor
from psycopg.adapt import Dumper
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from pydantic import Field, StringConstraints

from runtime import config, metrics

Dsn = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
"""A connection string of libpq: `postgresql://user@host/database` or `host=… dbname=…`."""
Connection = AsyncConnection[TupleRow]


class Pooled(Connection):
    """A connection of a pool."""

    @cached_property
    def reading(self) -> AsyncCursor[TupleRow]:
        """A cursor for those who have the connection to themselves: to make one costs a tenth of a query."""
        return self.cursor(binary=True)


Pool = AsyncConnectionPool[Pooled]
Reader = Pool | Connection
T = TypeVar("T")

STATEMENT_TIMEOUT_MS = 8_000
CONNECTION_WAIT_S = 3.0
"""How long a request waits for a free connection before it is answered with UNAVAILABLE."""
MAX_WAITING = 512
"""Requests that wait for a connection at once; more are answered with UNAVAILABLE at once."""
ATTEMPTS = 5
WATCH_S = 1.0
"""Between two looks at whether the database answers."""
ANSWER_S = 3.0
"""How long it may take to answer: a process that is busy is no reason to call its database ill."""

ELEMENT = np.dtype([("bytes", ">i4"), ("value", ">i8")])
"""An element of a bigint[] as it travels."""
BIGINT_OID, BIGINT_ARRAY_OID = 20, 1016
BYTEA_OID, TEXT_OID = 17, 25


class Int8s(NamedTuple):
    """A bigint[] as Postgres takes it."""

    content: bytes


def int8s(values: Collection[int] | npt.NDArray[np.int64]) -> Int8s:
    """A list of integers as the parameter of a query: as a bigint[], in a tenth of the time that a list takes."""
    array = values if isinstance(values, np.ndarray) else np.fromiter(values, np.int64, len(values))
    elements = np.empty(len(array), ELEMENT)
    elements["bytes"] = 8
    elements["value"] = array
    # Dimensions, whether any is null, the elements' type; then each dimension's size and lower bound.
    head = (1, 0, BIGINT_OID, len(array), 1) if len(array) else (0, 0, BIGINT_OID)
    return Int8s(struct.pack(f">{len(head)}i", *head) + elements.tobytes())


class Strings(NamedTuple):
    """A text[] or bytea[] as Postgres takes it; the query casts it to what it is."""

    content: bytes


def texts(values: Collection[str]) -> Strings:
    """A list of texts as the parameter of a query: as a text[], in a quarter of the time that a list takes."""
    return strings([value.encode() for value in values], TEXT_OID)


def byteas(values: Collection[bytes]) -> Strings:
    """The same of bytes: as a bytea[]."""
    return strings(values, BYTEA_OID)


def strings(values: Collection[bytes], oid: int) -> Strings:
    """An array of elements of a type that travels as its bytes."""
    head = (1, 0, oid, len(values), 1) if values else (0, 0, oid)
    elements = [part for value in values for part in (len(value).to_bytes(4, "big"), value)]
    return Strings(struct.pack(f">{len(head)}i", *head) + b"".join(elements))


class StringsDumper(Dumper):
    """Sends Strings."""

    format = psycopg.pq.Format.BINARY

    def dump(self, obj: Int8s | Strings) -> bytes:
        """The parameter's bytes."""
        return obj.content


class Int8sDumper(StringsDumper):
    """Sends Int8s."""

    oid = BIGINT_ARRAY_OID


psycopg.adapters.register_dumper(Strings, StringsDumper)
psycopg.adapters.register_dumper(Int8s, Int8sDumper)


class PostgresSettings(config.Settings):
    """What a process with a database can be told besides."""

    postgres_dsn: Dsn
    """The process's own database."""
    postgres_pool_size: int = Field(default=8, ge=1, le=100)
    """Connections that this process holds at the most."""


@asynccontextmanager
async def connect(settings: PostgresSettings) -> AsyncIterator[Pool]:
    """A pool of autocommit connections, open for the block. Waits up to 30 s for the database to be there.

    Ends the process with one clear line when it is not.
    """
    pool: Pool = AsyncConnectionPool(
        settings.postgres_dsn,
        connection_class=Pooled,
        kwargs={
            "autocommit": True,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c idle_in_transaction_session_timeout=10000",
        },
        min_size=1,
        max_size=settings.postgres_pool_size,
        timeout=CONNECTION_WAIT_S,
        max_waiting=MAX_WAITING,
        reconnect_timeout=5,
        open=False,
    )
    try:
        await pool.open(wait=True, timeout=30)
    except psycopg.OperationalError as error:
        config.fail(f"{config.PREFIX}POSTGRES_DSN: cannot connect: {' '.join(str(error).split())}")
    for state, statistic in (("open", "pool_size"), ("idle", "pool_available"), ("waiting", "requests_waiting")):
        gauge = metrics.POSTGRES_CONNECTIONS.labels(state)
        gauge.set_function(lambda statistic=statistic: pool.get_stats().get(statistic, 0))  # type: ignore[misc]
    try:
        yield pool
    finally:
        await pool.close()


async def watch(settings: PostgresSettings, report: Callable[[bool], Awaitable[None]]) -> NoReturn:
    """Reports every second whether the database answers.

    On a connection of its own: that all of the pool's are in use makes no database ill.
    """
    connection: Connection | None = None
    while True:
        try:
            async with asyncio.timeout(ANSWER_S):
                connection = connection or await AsyncConnection.connect(settings.postgres_dsn, autocommit=True)
                await connection.execute("SELECT 1")
            await report(True)
        except Exception:
            # Whatever it was, the watch goes on: who stops looking would leave the last answer standing.
            if connection is not None:
                await connection.close()
            connection = None
            await report(False)
        await asyncio.sleep(WATCH_S)


async def transact(pool: Pool, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Runs `work` in one transaction and commits it; tries again, at most 5 times, where Postgres asks for that.

    Tried again are serialization failures, deadlocks, and a clash of two ids made in the same millisecond. `work` must
    do nothing but talk to its connection. Raises what `work` raised; nothing is written then. Where the connection
    breaks at the commit, nobody can tell: that is what idempotency keys are for.
    """
    for attempt in range(1, ATTEMPTS + 1):
        begun = False
        try:
            async with pool.connection() as connection, connection.transaction():
                begun = True
                return await work(connection)
        except psycopg.Error as error:
            # A connection that a restart of the database broke fails before anything has begun.
            broken = not begun and is_broken(error)
            if attempt == ATTEMPTS or not (broken or may_pass(error)):
                raise
            if broken:
                await pool.check()
            metrics.POSTGRES_RETRIES.labels(type(error).__name__).inc()
            await asyncio.sleep(0.002 * 2**attempt)
    raise AssertionError("unreachable")


def is_broken(error: psycopg.Error) -> bool:
    """Whether a connection is at fault that another may be had for, not the lack of any."""
    exhausted = (psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests, psycopg_pool.PoolClosed)
    return isinstance(error, psycopg.OperationalError) and not isinstance(error, exhausted)


def may_pass(error: psycopg.Error) -> bool:
    """Whether the same transaction may succeed when it is tried again."""
    if isinstance(error, psycopg.errors.UniqueViolation):
        # A primary key that is no id of ours is inserted with ON CONFLICT, and so never gets here.
        return (error.diag.constraint_name or "").endswith("_pkey")
    return isinstance(error, (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected))


async def fetch(reader: Reader, query: str, parameters: dict[str, Any] | None = None) -> list[TupleRow]:
    """All rows of one query that changes nothing: in a connection's transaction, or outside one on any of the pool's.

    On the pool it is tried again where it met a broken connection.
    """
    # Rows travel as binary: a bigint costs half of what its digits do.
    if isinstance(reader, AsyncConnection):
        return await (await reader.execute(query.encode(), parameters, binary=True)).fetchall()
    for attempt in range(1, ATTEMPTS + 1):
        # By hand: as a context manager the pool would besides end a transaction, and there is none.
        connection = await reader.getconn()
        try:
            return await (await connection.reading.execute(query.encode(), parameters)).fetchall()
        except psycopg.OperationalError as error:
            if attempt == ATTEMPTS or not (connection.broken and is_broken(error)):
                raise
        finally:
            await reader.putconn(connection)
        # Replaces every connection that the restart broke.
        await reader.check()
    raise AssertionError("unreachable")
