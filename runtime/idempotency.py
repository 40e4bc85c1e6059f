"""Writes that take effect once: the answer is stored under the request's key, in the write's own transaction.

A key belongs to one actor and one request. It is kept for a day; until then the same request with the same key gets the
first answer, and another request with it is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from runtime import errors, metrics, postgres

M = TypeVar("M", bound=Message)
KEPT_HOURS = 24
PRUNE_BATCH = 5_000


async def write(
    pool: postgres.Pool,
    request: Any,
    actor_id: int,
    response: type[M],
    work: Callable[[postgres.Connection], Awaitable[M]],
) -> M:
    """Runs a write in one transaction and returns its answer; with a `request.request_id` it takes effect once.

    Raises Refused (REQUEST_ID_REUSED) when the actor's key came with another request, and Conflict
    (REQUEST_IN_PROGRESS) while the first request with it is running. A write that raised stored no answer.
    """
    key = request.request_id
    if not key:
        return await postgres.transact(pool, work)
    digest = fingerprint(request)

    async def once(connection: postgres.Connection) -> M:
        cursor = await connection.execute("SELECT pg_try_advisory_xact_lock(hashtextextended(%s, %s))", (key, actor_id))
        locked = await cursor.fetchone()
        if not locked or not locked[0]:
            raise errors.Conflict("REQUEST_IN_PROGRESS", "the request with this idempotency key is still running")
        cursor = await connection.execute(
            "SELECT fingerprint, response FROM idempotency_keys WHERE actor_id = %s AND key = %s", (actor_id, key)
        )
        if row := await cursor.fetchone():
            if row[0] != digest:
                raise errors.Refused("REQUEST_ID_REUSED", "this idempotency key came before with another request")
            metrics.IDEMPOTENT_REPLAYS.inc()
            return response.FromString(row[1])
        answer = await work(connection)
        await connection.execute(
            "INSERT INTO idempotency_keys (actor_id, key, fingerprint, response) VALUES (%s, %s, %s, %s)",
            (actor_id, key, digest, answer.SerializeToString()),
        )
        return answer

    return await postgres.transact(pool, once)


async def forget(connection: postgres.Connection, actor_id: int) -> None:
    """Deletes all answers of an actor who is erased."""
    await connection.execute("DELETE FROM idempotency_keys WHERE actor_id = %s", (actor_id,))


async def count(pool: postgres.Pool, actor_id: int) -> int:
    """How many answers of an actor are kept."""
    [row] = await postgres.fetch(
        pool, "SELECT count(*) FROM idempotency_keys WHERE actor_id = %(actor)s", {"actor": actor_id}
    )
    return int(row[0])


def fingerprint(request: Message) -> bytes:
    """SHA-256 over a request's type and its content, its key left out."""
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    name = content.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(name + b"\0" + content.SerializeToString(deterministic=True)).digest()


async def prune(pool: postgres.Pool) -> bool:
    """Deletes up to 5,000 answers that are older than a day; True when there may be more."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            """
            DELETE FROM idempotency_keys WHERE (actor_id, key) IN (
                SELECT actor_id, key FROM idempotency_keys
                WHERE created_at < now() - make_interval(hours => %s) ORDER BY created_at LIMIT %s
            )""",
            (KEPT_HOURS, PRUNE_BATCH),
        )
        return cursor.rowcount == PRUNE_BATCH
