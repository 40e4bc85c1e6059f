"""Whether Redis can be used at this moment, and which lists in it are to be believed.

The guard looks four times a second. In between, no restarted or replaced server is read from: each new connection is
held against the run that the epoch began with. (A flush in between does no harm: the lists are gone with the events.)
"""

from __future__ import annotations

import logging
from typing import Any

import psycopg
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from runtime import epochs, metrics, postgres, redis

log = logging.getLogger(__name__)

NAME = "timelines"
LOOK_S = 0.25


class UnusableError(Exception):
    """Redis cannot be used now; a feed is to be read from Postgres."""


class Guard:
    """What a process knows of its Redis."""

    def __init__(self, pool: postgres.Pool, client: Redis) -> None:
        """`client` is one of its own, without `admit`."""
        self._pool = pool
        self._client = client
        self._epoch: epochs.Epoch | None = None
        self._known: epochs.Epoch | None = None
        self._reason = ""

    @property
    def epoch(self) -> int:
        """The epoch whose lists are to be believed. Raises UnusableError."""
        if self._epoch is None:
            raise UnusableError(self._reason)
        return self._epoch.number

    async def look(self) -> bool:
        """Looks at Redis once. Always False: it waits until the next time."""
        try:
            server = await redis.look(self._client)
            reason = redis.unfit(server) or redis.full(server)
            if reason is None:
                self._known = await epochs.settle(self._pool, self._client, NAME, self._known, server.run_id)
        except (RedisError, OSError, psycopg.Error, epochs.ForeignRedisError) as error:
            reason = f"{type(error).__name__}: {error}"
        self._use(None if reason else self._known, reason or "")
        return False

    async def admit(self, connection: Any) -> None:
        """Makes a new connection ready, unless it leads to another run of the server than is known."""
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        text = await connection.read_response()
        run_id = next(
            (
                line.partition(b":")[2].strip().decode()
                for line in bytes(text).splitlines()
                if line.startswith(b"run_id:")
            ),
            "",
        )
        if self._epoch is not None and run_id != self._epoch.run_id:
            self._use(None, "Redis is another than a moment ago")
        if self._epoch is None:
            raise RedisConnectionError("Redis cannot be used until it was looked at")

    def _use(self, epoch: epochs.Epoch | None, reason: str) -> None:
        if reason != self._reason and epoch is None:
            log.warning("feeds are read from Postgres: %s", reason)
        elif self._reason and epoch is not None:
            log.info("feeds are read from Redis again")
        self._epoch, self._reason = epoch, reason
        metrics.REDIS_USABLE.set(epoch is not None)
