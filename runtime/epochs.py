"""Tells whether Redis may have lost something: a flush, a restart, a failover, an old snapshot put back.

Postgres keeps, for each name, an epoch and the run of the server that it began with; Redis keeps the epoch as a marker.
A FLUSHALL keeps the run but not the marker, a snapshot put back keeps a marker but not the run: both must be as known.
Otherwise the epoch is raised, once for all processes, and whatever was kept under the old one is not to be trusted.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from redis.asyncio import Redis

from runtime import postgres

log = logging.getLogger(__name__)

Lost = Callable[[postgres.Connection], Awaitable[None]]
"""What to write in the transaction that raises the epoch."""


class ForeignRedisError(Exception):
    """The Redis holds the data of another mesh."""


class Epoch(NamedTuple):
    """A time during which Redis lost nothing."""

    mesh: str
    number: int
    """At least 1."""
    run_id: str

    @property
    def marker(self) -> bytes:
        """What Redis holds while it lasts."""
        return f"{self.mesh}:{self.number}".encode()


def marker_key(name: str) -> str:
    """Where Redis holds the marker."""
    return f"feedmesh:{{{name}}}:epoch"


async def settle(
    pool: postgres.Pool, client: Redis, name: str, known: Epoch | None, run_id: str, lost: Lost | None = None
) -> Epoch:
    """The epoch as of now, raised if Redis may have lost something since it began.

    `known` is what the last call gave, `run_id` the run of the server as of now. Raises RedisError, psycopg.Error,
    ForeignRedisError.
    """
    if known is not None and known.run_id == run_id and await client.get(marker_key(name)) == known.marker:
        return known

    async def begin(connection: postgres.Connection) -> None:
        await connection.execute("INSERT INTO redis_epochs (name) VALUES (%s) ON CONFLICT DO NOTHING", (name,))

    async def work(connection: postgres.Connection) -> tuple[Epoch, bool]:
        cursor = await connection.execute(
            "SELECT mesh::text, epoch, run_id FROM redis_epochs WHERE name = %s FOR UPDATE", (name,)
        )
        row = await cursor.fetchone()
        assert row is not None
        current = Epoch(*row)
        # Both asked again under the lock: another process may have raised it meanwhile.
        run_id = str((await client.info("server"))["run_id"])
        marker: Any = await client.get(marker_key(name))
        if marker == current.marker and current.run_id == run_id:
            return current, False
        if marker is not None and not marker.startswith(f"{current.mesh}:".encode()):
            raise ForeignRedisError(
                "this Redis holds the data of another mesh: give each its own, or empty it with FLUSHDB"
            )
        raised = Epoch(current.mesh, current.number + 1, run_id)
        await connection.execute(
            "UPDATE redis_epochs SET epoch = %s, run_id = %s WHERE name = %s", (raised.number, run_id, name)
        )
        if lost is not None and current.number:
            await lost(connection)
        # Before the lock is let go: others would raise it once more. Where this process dies before it commits, the
        # next one finds a marker that is not the epoch's, and raises it.
        await client.set(marker_key(name), raised.marker)
        return raised, True

    # Committed before Redis is told of the mesh, which would be a stranger to its own Redis otherwise.
    await postgres.transact(pool, begin)
    epoch, raised = await postgres.transact(pool, work)
    if raised:
        log.warning("%s: epoch %d begins: Redis is new or may have lost something", name, epoch.number)
    return epoch
