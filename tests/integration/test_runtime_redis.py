"""Which Redis can be used and which cannot be for now; and that a client outlives its server."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as RedisTimeoutError

from launch import valkey as embedded
from launch.valkey import Running
from runtime import redis
from runtime.redis import RedisSettings, Server

FIT = Server("run", (7, 0, 0), "noeviction", used_bytes=10**6, max_bytes=0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"version": (7, 0)}, None),
        ({"version": (7,)}, "Redis 7 is too old"),
        ({"version": (6, 2, 14)}, "Redis 6.2.14 is too old: 7.0 is the least"),
        ({"version": (10, 0, 1)}, None),
        ({"eviction": ""}, None),
        ({"eviction": "volatile-lru"}, None),
        ({"eviction": "volatile-ttl"}, None),
        ({"eviction": "allkeys-lru"}, "allkeys-lru; use noeviction or one of volatile-*"),
        ({"eviction": "allkeys-lfu"}, "allkeys-lfu"),
        ({"eviction": "allkeys-random"}, "allkeys-random"),
        # That is of the moment, and no reason never to use it.
        ({"used_bytes": 10, "max_bytes": 10}, None),
    ],
)
def test_what_kind_of_server_can_never_be_used(changes: dict[str, object], reason: str | None) -> None:
    found = redis.unfit(dataclasses.replace(FIT, **changes))  # type: ignore[arg-type]
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.parametrize(
    ("used", "most", "full"),
    [(10**9, 0, False), (0, 100, False), (97, 100, False), (98, 100, True), (100, 100, True), (150, 100, True)],
)
def test_when_a_server_is_full(used: int, most: int, full: bool) -> None:
    server = dataclasses.replace(FIT, used_bytes=used, max_bytes=most)
    assert redis.full(server) == (f"Redis is full: {used} of {most} bytes" if full else None)
    # It makes room.
    assert redis.full(dataclasses.replace(server, eviction="volatile-lru")) is None


@pytest.mark.parametrize("policy", ["lru", "lfu", "random", "ttl"])
async def test_what_has_no_time_to_live_is_never_evicted(tmp_path: Path, policy: str) -> None:
    """As events and epochs have none: what has one goes, and when that is gone, writes are refused."""
    with embedded.running(tmp_path) as server:
        async with redis.connect(settings(server)) as client:
            await client.config_set("maxmemory-policy", f"volatile-{policy}")
            await client.config_set("maxmemory", (await redis.look(client)).used_bytes + 4_000_000)
            await client.set("marker", "1")
            for number in range(100):
                await client.xadd("events", {"event": number})
            # Twice as much as there is room for, while the others are what was used longest ago.
            for number in range(800):
                await client.set(f"list{number}", "x" * 10_000, ex=1000 + number)
            assert 0 < await client.dbsize() - 2 < 600
            assert (await client.get("marker"), await client.xlen("events")) == (b"1", 100)
            with pytest.raises(OutOfMemoryError):
                await fill(client)
            assert (await client.get("marker"), await client.dbsize()) == (b"1", 2)
            assert await client.xlen("events") > 100
            assert redis.full(await redis.look(client)) is None


async def fill(client: Redis) -> None:
    """More events than there is room for."""
    for _ in range(800):
        await client.xadd("events", {"event": "x" * 10_000})


async def test_a_server_says_what_it_is(tmp_path: Path) -> None:
    with embedded.running(tmp_path) as server:
        async with redis.connect(settings(server)) as client:
            await client.config_set("maxmemory", 10**9)
            first = await redis.look(client)
            assert first.version >= redis.LEAST_VERSION
            assert (first.eviction, first.max_bytes) == ("noeviction", 10**9)
            assert 0 < first.used_bytes < 10**8
            assert len(first.run_id) == 40
            assert (await redis.look(client)).run_id == first.run_id
            server.restart()
            assert (await redis.look(client)).run_id != first.run_id


async def test_one_of_the_wrong_kind_ends_the_process_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with embedded.running(tmp_path) as server:
        async with redis.connect(settings(server)) as client:
            await redis.require_fit(client)
            await client.config_set("maxmemory-policy", "allkeys-lfu")
            with pytest.raises(SystemExit) as end:
                await redis.require_fit(client)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("FEEDMESH_REDIS_URL: Redis would drop events: its maxmemory-policy is allkeys-lfu;")


async def test_one_that_cannot_be_reached_may_be_of_the_right_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in (f"unix://{tmp_path}/nothing", "redis://127.0.0.1:1/0"):
        async with redis.connect(RedisSettings(redis_url=url)) as client:
            await redis.require_fit(client)
    assert capsys.readouterr().err == ""


async def test_a_client_outlives_its_server(tmp_path: Path) -> None:
    """Its connections are broken without its knowledge, all of them."""
    with embedded.running(tmp_path) as server:
        async with redis.connect(settings(server)) as client:
            for _ in range(3):
                await asyncio.gather(*(client.blpop(["nothing"], timeout=0.05) for _ in range(10)))
                server.restart()
                counts = await asyncio.gather(*(client.incr("counter") for _ in range(30)))
                assert sorted(counts) == list(range(1, 31))
                server.restart()
                async with client.pipeline(transaction=False) as pipeline:
                    pipeline.incr("counter")
                    pipeline.incr("counter")
                    assert await pipeline.execute() == [1, 2]
                server.restart()
                async with client.pipeline(transaction=True) as pipeline:
                    pipeline.incr("counter")
                    assert await pipeline.execute() == [1]
            server.kill()
            with pytest.raises(RedisConnectionError):
                await client.ping()
            server.restart()
            assert await client.ping()


async def test_a_command_without_an_answer_ends_in_time_and_is_not_sent_again(tmp_path: Path) -> None:
    with embedded.running(tmp_path) as server:
        async with redis.connect(settings(server), timeout_s=0.2) as client:
            assert await client.incr("counter") == 1
            server.process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(RedisTimeoutError):
                await client.incr("counter")
            assert time.monotonic() - began < 1
            server.process.send_signal(signal.SIGCONT)
            assert await client.get("counter") in (b"1", b"2")


async def test_connections_are_bounded_and_more_wait_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "MAX_CONNECTIONS", 4)
    with embedded.running(tmp_path) as server:
        async with redis.connect(settings(server)) as watcher, redis.connect(settings(server), timeout_s=5) as client:
            await asyncio.gather(*(client.incr("counter") for _ in range(200)))
            assert await client.get("counter") == b"200"
            # The watcher's own is one.
            assert (await watcher.info("clients"))["connected_clients"] <= 5
        async with redis.connect(settings(server), timeout_s=0.2) as client:
            pool: Any = client.connection_pool
            held = [await pool.get_connection() for _ in range(4)]
            with pytest.raises(RedisConnectionError, match="No connection available"):
                await client.ping()
            waiting = asyncio.ensure_future(client.incr("counter"))
            for connection in held:
                await pool.release(connection)
            assert await waiting == 201


async def test_what_makes_a_connection_ready_may_refuse_it(tmp_path: Path) -> None:
    admitted = False

    async def admit(connection: object) -> None:
        if not admitted:
            raise RedisConnectionError("not yet")
        await connection.on_connect()  # type: ignore[attr-defined]

    with embedded.running(tmp_path) as server:
        async with redis.connect(settings(server), on_connect=admit) as client:
            with pytest.raises(RedisConnectionError, match="not yet"):
                await client.ping()
            admitted = True
            assert await client.ping()


def settings(server: Running) -> RedisSettings:
    """What a process with this Redis is told."""
    return RedisSettings(redis_url=server.url)
