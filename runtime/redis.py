"""Redis (or Valkey): connections, and whether a server is fit for what is kept in it. Which keys: see each service.

Redis is never the system of record. What is in it can be made again from Postgres, and whoever uses it must be able to
tell when it lost something: runtime/epochs.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import StringConstraints
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from runtime import config

RedisUrl = Annotated[str, StringConstraints(max_length=4096, pattern=r"^(rediss?|unix)://.+$")]
"""`redis://host:port/0`, `rediss://…` with TLS, or `unix:///path/of/a.sock`."""

MAX_CONNECTIONS = 64
LEAST_VERSION = (7, 0)
"""Functions are of Redis 7; Valkey calls itself at least that."""
FULL = 0.98
"""The part of its memory at which a server counts as full: it will refuse the next writes, unless it evicts."""

Connect = Callable[[Any], Awaitable[None]]
T = TypeVar("T")


class RedisSettings(config.Settings):
    """What a process with a Redis can be told besides."""

    redis_url: RedisUrl
    """Redis 7 or later, or Valkey."""


@asynccontextmanager
async def connect(
    settings: RedisSettings, *, timeout_s: float = 1.0, on_connect: Connect | None = None
) -> AsyncIterator[Redis]:
    """A client for the block; it connects when it is first used. At most 64 connections, more wait for one.

    A command that gets no answer within `timeout_s` raises redis's TimeoutError. Where a connection is found broken,
    the command is tried once more on a new one: everything that is sent here may take effect twice. `on_connect` sees
    each new connection before anyone else and makes it ready; what it raises, the command raises.
    """
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=MAX_CONNECTIONS,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        redis_connect_func=on_connect,
    )
    client = Redis.from_pool(pool)
    try:
        yield client
    finally:
        await client.aclose()


@dataclass(frozen=True)
class Server:
    """What a Redis says of itself."""

    run_id: str
    """Another one after each start."""
    version: tuple[int, ...]
    eviction: str
    """maxmemory-policy."""
    used_bytes: int
    max_bytes: int
    """maxmemory; 0 for no bound."""


async def look(client: Redis) -> Server:
    """Asks the server about itself. Raises RedisError."""
    [text] = await exchange(client, [command(b"INFO", b"server", b"memory")])
    said = info(text)
    return Server(
        run_id=said["run_id"],
        version=tuple(int(part) for part in said["redis_version"].split(".")),
        eviction=said.get("maxmemory_policy", ""),
        used_bytes=int(said["used_memory"]),
        max_bytes=int(said.get("maxmemory", 0)),
    )


def info(text: bytes) -> dict[str, str]:
    """What the answer to INFO says."""
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


def command(*words: bytes | int) -> bytes:
    """A command in the protocol of Redis."""
    return b"*%d\r\n" % len(words) + b"".join(map(bulk, words))


def bulk(word: bytes | int) -> bytes:
    """A word of a command in the protocol of Redis."""
    word = word if isinstance(word, bytes) else b"%d" % word
    return b"$%d\r\n%b\r\n" % (len(word), word)


async def exchange(client: Redis, commands: Sequence[bytes], *, may_fail: int = 0) -> list[Any]:
    """Sends commands that are packed already, over one connection and in this order, and gives their answers as they
    come; raises the first that is an error, unless it is among the first `may_fail`.

    For what is asked all the time: a pipeline takes several times as long.
    """
    pool = client.connection_pool
    connection: Any = await pool.get_connection()  # type: ignore[no-untyped-call]

    async def ask() -> list[Any]:
        await connection.send_packed_command(commands)
        found: list[Any] = []
        for _ in commands:
            try:
                found.append(await connection.read_response())
            except ResponseError as error:
                found.append(error)
        return found

    try:
        found: list[Any] = await connection.retry.call_with_retry(ask, lambda _: connection.disconnect())
    except BaseException:
        # Answers that nobody read are not to be taken for those of the next command.
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)
    for each in found[may_fail:]:
        if isinstance(each, ResponseError):
            raise each
    return found


class Library:
    """Functions that run in Redis, of a file in Lua. VERSION in it stands for a hash of its text, so that two releases
    run side by side."""

    def __init__(self, path: Path) -> None:
        source = path.read_text()
        self.version = hashlib.sha256(source.encode()).hexdigest()[:12]
        self.source = source.replace("VERSION", self.version)

    async def within(self, client: Redis, work: Callable[[], Awaitable[T]]) -> T:
        """What work with these functions gives. Where a server lacks them they are loaded, and it is done again."""
        try:
            return await work()
        except ResponseError as error:
            if "Function not found" not in str(error):
                raise
            # A server that is new, or came back without its memory.
            await client.function_load(self.source, replace=True)
            return await work()


def unfit(server: Server) -> str | None:
    """Why a server of this kind can never be used, or None."""
    if server.version < LEAST_VERSION:
        found = ".".join(map(str, server.version))
        return f"Redis {found} is too old: 7.0 is the least"
    if server.eviction.startswith("allkeys"):
        return (
            f"Redis would drop events: its maxmemory-policy is {server.eviction}; use noeviction or one of volatile-*"
        )
    return None


def full(server: Server) -> str | None:
    """Why this server cannot be used at the moment, or None.

    One with `volatile-*` is never known to be: near its bound it makes room by evicting what has a time to live, which
    no event has. Where there is no more of that, its refusals say so.
    """
    if server.eviction.startswith("volatile"):
        return None
    if server.max_bytes and server.used_bytes >= FULL * server.max_bytes:
        return f"Redis is full: {server.used_bytes} of {server.max_bytes} bytes"
    return None


async def require_fit(client: Redis) -> None:
    """Ends the process with one clear line when the server can be reached and is of the wrong kind."""
    try:
        server = await look(client)
    except (RedisError, OSError):
        return
    if reason := unfit(server):
        config.fail(f"{config.PREFIX}REDIS_URL: {reason}")
