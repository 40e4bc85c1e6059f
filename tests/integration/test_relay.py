"""The relay: what was committed reaches every group at least once, whatever dies, is lost, is full or comes late."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from feedmesh.event.v1 import event_pb2
from launch import valkey as embedded
from launch.valkey import Running
from runtime import epochs, metrics, outbox, postgres, redis
from runtime.postgres import Pool
from runtime.relay import KEEP_MS, MAX_ENTRIES, Relay
from runtime.streams import EVENT, PARTITIONS, create_group, stream_keys
from tests.fakes.databases import Databases, settings_of
from tests.fakes.poll import until

ROOT = Path(__file__).parents[2]
TOPIC = "graph"
GROUPS = ("one", "two")
KEYS = stream_keys(TOPIC)
RETENTION = 60


@pytest_asyncio.fixture
async def dsn(databases: Databases) -> AsyncIterator[str]:
    """A database with an outbox, empty."""
    async with databases.lend("services.graph") as dsn:
        yield dsn


@pytest_asyncio.fixture
async def pool(dsn: str) -> AsyncIterator[Pool]:
    """Connections to it."""
    async with postgres.connect(settings_of(dsn)) as pool:
        yield pool


@asynccontextmanager
async def client_of(server: Running) -> AsyncIterator[Redis]:
    """One more client, as a relay has it."""
    async with redis.connect(redis.RedisSettings(redis_url=server.url), timeout_s=5) as client:
        yield client


@pytest_asyncio.fixture
async def client(valkey: Running) -> AsyncIterator[Redis]:
    """A client of the session's Redis, emptied."""
    async with client_of(valkey) as client:
        await client.flushall()
        yield client


@asynccontextmanager
async def breakable(directory: Path) -> AsyncIterator[tuple[Running, Redis]]:
    """A Redis of one's own, and a client of it."""
    with embedded.running(directory) as server:
        async with client_of(server) as client:
            yield server, client


def relay_of(pool: Pool, client: Redis, groups: tuple[str, ...] = GROUPS) -> Relay:
    """One more relay."""
    return Relay(pool, client, TOPIC, groups, RETENTION)


async def begin(pool: Pool, client: Redis, groups: tuple[str, ...] = GROUPS) -> Relay:
    """A relay that has looked at its Redis."""
    relay = relay_of(pool, client, groups)
    await relay.detect()
    await relay.tend()
    return relay


async def settle(relay: Relay) -> None:
    """All that a relay does in a while."""
    await relay.detect()
    await relay.tend()
    await publish_all(relay)


async def publish_all(relay: Relay) -> None:
    """Publishes until there is nothing to publish."""
    while await relay.republish() or await relay.publish():
        pass


def told(number: int) -> event_pb2.Event:
    return event_pb2.Event(user_created=event_pb2.UserCreated(user_id=number))


async def write(pool: Pool, count: int, first: int = 0) -> list[int]:
    """Commits so many events, with the keys that follow each other; their ids."""
    async with pool.connection() as connection, connection.transaction():
        for number in range(first, first + count):
            await outbox.add(connection, number, told(number))
    rows = await postgres.fetch(
        pool,
        "SELECT event_id FROM outbox WHERE partition_key BETWEEN %(first)s AND %(last)s",
        {"first": first, "last": first + count - 1},
    )
    return sorted(row[0] for row in rows)


async def entries(client: Redis) -> list[tuple[bytes, event_pb2.Event]]:
    """What the streams hold."""
    found: list[tuple[bytes, event_pb2.Event]] = []
    for key in KEYS:
        answer: Any = await client.xrange(key)
        found += [(entry, event_pb2.Event.FromString(fields[EVENT])) for entry, fields in answer]
    return found


async def ids(client: Redis, key: str) -> list[bytes]:
    """The ids of a stream's entries."""
    found: Any = await client.xrange(key)
    return [entry for entry, _ in found]


async def published(client: Redis) -> Counter[int]:
    """How often the streams hold each event."""
    return Counter(event.event_id for _, event in await entries(client))


async def read(client: Redis, group: str, count: int = 10_000) -> list[int]:
    """Reads and acknowledges what is new for a group, at most `count` of each partition."""
    event_ids: list[int] = []
    for key in KEYS:
        answer: Any = await client.xreadgroup(group, "member", {key: ">"}, count=count)
        for _, found in answer:
            event_ids += [event_pb2.Event.FromString(fields[EVENT]).event_id for _, fields in found]
            await client.xack(key, group, *(entry for entry, _ in found))
    return event_ids


async def unpublished(pool: Pool) -> int:
    [(count,)] = await postgres.fetch(pool, "SELECT count(*) FROM outbox WHERE published_at IS NULL")
    return int(count)


def usable() -> bool:
    """What the metric says."""
    return bool(metrics.REDIS_USABLE._value.get())


# Publishing.


async def test_each_event_comes_with_its_id_in_the_partition_of_its_key(pool: Pool, client: Redis) -> None:
    relay = await begin(pool, client)
    event_ids = await write(pool, 10, first=-3)
    assert await relay.publish() is False
    for partition, key in enumerate(KEYS):
        answer: Any = await client.xrange(key)
        events = [event_pb2.Event.FromString(fields[EVENT]) for _, fields in answer]
        assert [event.user_created.user_id for event in events] == [
            number for number in range(-3, 7) if number % PARTITIONS == partition
        ]
    assert await published(client) == Counter(event_ids)


async def test_what_commits_late_with_a_smaller_id_is_published(pool: Pool, client: Redis) -> None:
    relay = await begin(pool, client)
    async with pool.connection() as late, late.transaction():
        await outbox.add(late, 0, told(0))
        [later] = await write(pool, 1, first=1)
        await relay.publish()
        assert await published(client) == Counter([later])
    await relay.publish()
    [first] = [event_id for event_id in await published(client) if event_id != later]
    assert first < later


async def test_what_is_not_committed_is_not_published(pool: Pool, client: Redis) -> None:
    relay = await begin(pool, client)
    async with pool.connection() as connection, connection.transaction(force_rollback=True):
        await outbox.add(connection, 0, told(0))
        await relay.publish()
    await relay.publish()
    assert await entries(client) == []


async def test_it_waits_for_the_next_event_half_a_second_at_the_most(pool: Pool, client: Redis) -> None:
    relay = await begin(pool, client)
    begun = time.monotonic()
    assert await relay.publish_next() is False
    assert 0.4 < time.monotonic() - begun < 5
    waiting = asyncio.create_task(relay.publish_next())
    event_ids = await write(pool, 2)
    await waiting
    if await unpublished(pool):  # it had not begun to wait, or was too slow
        await relay.publish_next()
    assert await published(client) == Counter(event_ids)


async def test_relays_that_work_at_once_publish_each_event_once(pool: Pool, valkey: Running, client: Redis) -> None:
    event_ids = await write(pool, 3000)
    async with AsyncExitStack() as stack:
        relays = [await begin(pool, await stack.enter_async_context(client_of(valkey))) for _ in range(3)]

        async def work(relay: Relay) -> None:
            while await unpublished(pool):
                await relay.publish()

        await asyncio.gather(*(work(relay) for relay in relays))
    assert await published(client) == Counter(event_ids)


@asynccontextmanager
async def at_commit(pool: Pool, statement: str) -> AsyncIterator[None]:
    """Whoever marks an event as published within the block does this when it commits."""
    async with pool.connection() as connection:
        await connection.execute(
            f"""
            CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {statement}; RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON outbox DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION at_commit()""".encode()
        )
    try:
        yield
    finally:
        async with pool.connection() as connection:
            await connection.execute("DROP FUNCTION at_commit CASCADE")


async def test_one_that_dies_between_publishing_and_committing_publishes_again(pool: Pool, client: Redis) -> None:
    relay = await begin(pool, client)
    event_ids = await write(pool, 5)
    async with at_commit(pool, "RAISE EXCEPTION 'died'"):
        with pytest.raises(psycopg.errors.RaiseException):
            await relay.publish()
    assert await unpublished(pool) == 5
    await (await begin(pool, client)).publish()
    assert await published(client) == Counter(event_ids * 2)


async def test_nothing_is_published_before_it_is_known_whose_redis_it_is(pool: Pool, client: Redis) -> None:
    await write(pool, 1)
    relay = relay_of(pool, client)
    assert await relay.publish() is False
    await relay.tend()
    assert await client.dbsize() == 0


# Trimming.


@asynccontextmanager
async def trimmed_exactly(directory: Path) -> AsyncIterator[Redis]:
    """A Redis that trims entry by entry, and a hundred of them at a time; by default it trims by the hundred."""
    async with breakable(directory) as (_, client):
        await client.config_set("stream-node-max-entries", 1)
        yield client


@pytest.mark.parametrize("seed", range(4))
async def test_trimming_takes_what_all_have_acknowledged_and_nothing_else(
    pool: Pool, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    key = KEYS[0]
    async with trimmed_exactly(tmp_path) as client:
        relay = await begin(pool, client)
        now, _ = await client.time()
        old, young = now * 1000 - KEEP_MS - 60_000, now * 1000 - KEEP_MS + 60_000
        for ms in (old, young):
            for number in range(100):
                await client.xadd(key, {EVENT: b""}, id=f"{ms + number // 3}-{number % 3}")
        due: dict[str, set[bytes]] = {group: set() for group in GROUPS}
        acknowledged: dict[str, set[bytes]] = {group: set() for group in GROUPS}
        everything = await ids(client, key)
        for _ in range(30):
            group = chance.choice(GROUPS)
            if chance.random() < 0.5:
                answer: Any = await client.xreadgroup(group, "member", {key: ">"}, count=chance.randrange(1, 40))
                due[group].update(entry for _, found in answer for entry, _ in found)
            elif due[group]:
                count = chance.choice((len(due[group]), chance.randrange(1, len(due[group]) + 1)))
                done = chance.sample(sorted(due[group]), count)
                await client.xack(key, group, *done)
                due[group].difference_update(done)
                acknowledged[group].update(done)
            await relay.tend()
            # All up to the first that someone has not acknowledged, or that is young.
            needed = next(
                number
                for number, entry in enumerate(everything)
                if int(entry.split(b"-")[0]) >= young or any(entry not in acknowledged[each] for each in GROUPS)
            )
            assert await ids(client, key) == everything[needed:]
        for group in GROUPS:
            await read(client, group)
            if due[group]:
                await client.xack(key, group, *due[group])
        await relay.tend()
        assert await ids(client, key) == everything[100:]


async def test_a_group_that_is_not_there_yet_gets_all_there_is(pool: Pool, tmp_path: Path) -> None:
    async with trimmed_exactly(tmp_path) as client:
        await settle(relay_of(pool, client, ("one",)))
        for number in range(50):
            event = event_pb2.Event(event_id=number + 1).SerializeToString()
            await client.xadd(KEYS[0], {EVENT: event}, id=f"{number + 1}-0")
        await read(client, "one")
        # A release with one more group.
        await (await begin(pool, client, ("one", "two"))).tend()
        assert await read(client, "two") == list(range(1, 51))


async def test_a_group_that_nobody_named_holds_its_entries_too(pool: Pool, tmp_path: Path) -> None:
    async with trimmed_exactly(tmp_path) as client:
        await create_group(client, KEYS[0], "someone's")
        await client.xadd(KEYS[0], {EVENT: b""}, id="1-0")
        relay = await begin(pool, client, ("one",))
        await read(client, "one")
        await relay.tend()
        assert await client.xlen(KEYS[0]) == 1
        await read_raw(client, KEYS[0], "someone's")
        await relay.tend()
        assert await client.xlen(KEYS[0]) == 0


async def test_streams_stay_short_while_events_flow(pool: Pool, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.relay.KEEP_MS", -60_000)
    relay = await begin(pool, client)
    for first in range(0, 4000, 1000):
        await write(pool, 1000, first)
        await settle(relay)
        for group in GROUPS:
            assert len(await read(client, group)) == 1000
    await relay.tend()
    # Redis trims by the hundred.
    assert [await client.xlen(key) < 100 for key in KEYS] == [True] * PARTITIONS


async def test_a_stream_that_is_half_full_keeps_what_is_young_for_less_long(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.relay.MAX_ENTRIES", 100)
    async with trimmed_exactly(tmp_path) as client:
        relay = await begin(pool, client, ("one",))
        now, _ = await client.time()
        # Young by the one bound, old by the other.
        for number in range(51):
            await client.xadd(KEYS[0], {EVENT: b""}, id=f"{now * 1000 - KEEP_MS // 2}-{number}")
            if number == 49:
                await read_raw(client, KEYS[0], "one")
                await relay.tend()
                assert await client.xlen(KEYS[0]) == 50
        await read_raw(client, KEYS[0], "one")
        await relay.tend()
        assert await client.xlen(KEYS[0]) == 0


async def test_it_pauses_while_a_group_lags_too_far_and_goes_on(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.relay.KEEP_MS", -60_000)
    monkeypatch.setattr("runtime.relay.MAX_ENTRIES", 50)
    paused = metrics.RELAY_PAUSED.labels(TOPIC)
    async with trimmed_exactly(tmp_path) as client:
        relay = await begin(pool, client)
        event_ids = await write(pool, 400)
        await settle(relay)
        assert await relay.tend() is False
        late = await write(pool, 10, first=400)
        await settle(relay)
        assert (relay.paused, paused._value.get(), await unpublished(pool)) == (True, 1, 10)
        seen = {group: await read(client, group) for group in GROUPS}
        await settle(relay)
        assert (relay.paused, paused._value.get(), await unpublished(pool)) == (False, 0, 0)
        for group in GROUPS:
            assert sorted(seen[group] + await read(client, group)) == sorted(event_ids + late)


# Pruning.


async def put(pool: Pool, number: int, minutes: int, published_minutes: int | None) -> None:
    """Writes an event of a time ago that was published a time ago."""
    async with pool.connection() as connection:
        await connection.execute(
            """
            INSERT INTO outbox (event_id, partition_key, event, published_at)
            VALUES (id_at(now() - make_interval(mins => %s)) + %s, %s, %s, now() - make_interval(mins => %s))""",
            (minutes, number, number, told(number).SerializeToString(), published_minutes),
        )


async def left(pool: Pool) -> list[int]:
    """The keys of the events that are kept."""
    return [row[0] for row in await postgres.fetch(pool, "SELECT partition_key FROM outbox ORDER BY partition_key")]


async def test_pruning_takes_what_was_published_longer_ago_than_is_promised(pool: Pool, client: Redis) -> None:
    relay = await begin(pool, client)
    await put(pool, 1, minutes=120, published_minutes=119)
    await put(pool, 2, minutes=61, published_minutes=61)
    # A relay that was away for an hour, and has just published it: Redis may lose it yet.
    await put(pool, 3, minutes=120, published_minutes=0)
    await put(pool, 4, minutes=120, published_minutes=59)
    await put(pool, 5, minutes=59, published_minutes=59)
    await put(pool, 6, minutes=600, published_minutes=None)
    assert await relay.prune() is False
    assert await left(pool) == [3, 4, 5, 6]


async def test_pruning_takes_all_there_is_by_and_by(pool: Pool, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.relay.PRUNE_BATCH", 2)
    relay = await begin(pool, client)
    for number in range(5):
        await put(pool, number, minutes=120, published_minutes=120)
    assert [await relay.prune() for _ in range(3)] == [True, True, False]
    assert await left(pool) == []


async def test_what_redis_may_have_lost_is_not_pruned_before_it_is_published_again(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is away for longer than events are kept."""
    monkeypatch.setattr("runtime.relay.BATCH", 2)
    async with breakable(tmp_path) as (server, client):
        relay = await begin(pool, client)
        server.kill()
        with pytest.raises(RedisError):
            await relay.detect()
        for number in range(3):
            await put(pool, number, minutes=120, published_minutes=120)
        await relay.prune()
        # A relay that starts meanwhile knows no more.
        await relay_of(pool, client).prune()
        assert await left(pool) == [0, 1, 2]
        server.restart()
        await relay.detect()
        await relay.tend()
        assert await relay.republish() is True
        await relay.prune()
        assert await left(pool) == [0, 1, 2]
        assert await relay.republish() is False
        await relay.prune()
        assert await left(pool) == []
        assert len(await read(client, "one")) == 3


# Losses.


async def flush(server: Running, client: Redis) -> None:
    await client.flushall()


async def restart(server: Running, client: Redis) -> None:
    server.restart()


async def restore(server: Running, client: Redis) -> None:
    """Starts it with what it held earlier on."""
    assert server.snapshot.exists()
    server.restart()


Lose = Callable[[Running, Redis], Awaitable[None]]
LOSSES = [flush, restart, restore]


@pytest.mark.parametrize("lose", LOSSES)
async def test_after_a_loss_every_event_of_the_window_comes_to_every_group(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Lose
) -> None:
    monkeypatch.setattr("runtime.relay.BATCH", 50)
    republished = metrics.OUTBOX_REPUBLISHED.labels(TOPIC)
    async with breakable(tmp_path) as (server, client):
        relays = [await begin(pool, client), await begin(pool, client)]
        await put(pool, 9_999, minutes=1, published_minutes=1)
        seen: dict[str, set[int]] = {group: set() for group in GROUPS}
        everything = [row[0] for row in await postgres.fetch(pool, "SELECT event_id FROM outbox")]
        before = republished._value.get()
        for first in range(0, 400, 100):
            everything += await write(pool, 100, first)
            await settle(relays[0])
            await read(client, "one", count=10)
            if first == 100 and lose is restore:
                await client.save()
        assert republished._value.get() == before
        await lose(server, client)
        # Before anyone has noticed.
        everything += await write(pool, 100, 400)
        await relays[0].publish()
        for relay in relays:
            await relay.detect()
            await relay.tend()
        for _ in range(30):
            for relay in relays:
                await relay.republish()
                await relay.publish()
            for group in GROUPS:
                seen[group].update(await read(client, group))
        assert seen == {group: set(everything) for group in GROUPS}
        assert republished._value.get() >= before + 401
        # And then no more.
        for relay in relays:
            await settle(relay)
        assert await read(client, "one") == []


async def test_one_that_dies_while_it_publishes_again_leaves_the_rest_to_the_next(
    pool: Pool, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.relay.BATCH", 10)
    relay = await begin(pool, client)
    event_ids = await write(pool, 35)
    await settle(relay)
    await client.flushall()
    await relay.detect()
    await relay.tend()
    assert await relay.republish() is True
    other = await begin(pool, client)
    # While the next one is at it, Redis loses everything once more.
    assert await other.republish() is True
    await client.flushall()
    await settle(other)
    assert await published(client) == Counter(event_ids)


async def test_a_loss_between_publishing_and_committing_is_none(pool: Pool, valkey: Running, client: Redis) -> None:
    """One relay has published and is about to commit; Redis loses it, and another relay publishes all again."""
    async with AsyncExitStack() as stack:
        slow = await begin(pool, client)
        quick = await begin(pool, await stack.enter_async_context(client_of(valkey)))
        [event_id] = await write(pool, 1)
        gate = await stack.enter_async_context(pool.connection())
        await stack.enter_async_context(at_commit(pool, "PERFORM pg_advisory_xact_lock(1)"))
        await gate.execute("SELECT pg_advisory_lock(1)")
        publishing = asyncio.create_task(slow.publish())
        await until(lambda: holds(client, event_id))
        await client.flushall()
        await quick.detect()
        await quick.tend()
        again = asyncio.create_task(quick.republish())
        await asyncio.wait([again], timeout=0.2)
        await gate.execute("SELECT pg_advisory_unlock(1)")
        await asyncio.gather(publishing, again)
    await settle(slow)
    await settle(quick)
    assert await holds(client, event_id)


async def holds(client: Redis, event_id: int) -> bool:
    return event_id in await published(client)


async def test_what_redis_lost_is_published_again_whatever_the_clock_did(pool: Pool, client: Redis) -> None:
    relay = await begin(pool, client)
    # Written by a clock that was ahead and has been set back since.
    await put(pool, 1, minutes=-90, published_minutes=1)
    await client.flushall()
    await settle(relay)
    assert [event.user_created.user_id for _, event in await entries(client)] == [1]


# Publishing again calmly.


async def asked(client: Redis) -> int:
    """How often Redis was asked for a stream's groups."""
    stats: Any = await client.info("commandstats")
    return int(stats.get("cmdstat_xinfo|groups", {}).get("calls", 0))


async def test_where_nothing_is_to_be_published_again_redis_is_not_asked(pool: Pool, client: Redis) -> None:
    relay = await begin(pool, client)
    await write(pool, 10)
    await settle(relay)
    before = await asked(client)
    assert await relay.republish_calmly() is False
    assert await asked(client) == before
    # What counts does count.
    await relay.tend()
    assert await asked(client) == before + PARTITIONS


async def test_old_events_come_again_only_while_every_group_has_room(
    pool: Pool, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.relay.CALM_S", 0.001)
    relay = await begin(pool, client)
    event_ids = await write(pool, 1100)
    await settle(relay)
    await client.flushall()
    await relay.detect()
    # The streams and their groups are not there again yet.
    assert await relay.republish_calmly() is True
    assert await entries(client) == []
    await relay.tend()
    seen: dict[str, set[int]] = {group: set() for group in GROUPS}
    for count in (500, 1000, 1100):
        # A batch, and no more until the slowest has caught up.
        for _ in range(3):
            assert await relay.republish_calmly() is (count < 1100)
            assert len(await entries(client)) == count
            seen["one"].update(await read(client, "one"))
        seen["two"].update(await read(client, "two"))
    assert seen == {group: set(event_ids) for group in GROUPS}


# A Redis that cannot be used.


async def test_while_redis_is_full_events_wait(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.relay.KEEP_MS", -60_000)
    async with breakable(tmp_path) as (_, client):
        relay = await begin(pool, client)
        event_ids = await write(pool, 500)
        await settle(relay)
        await client.config_set("maxmemory", (await redis.look(client)).used_bytes + 50_000)
        event_ids += await write(pool, 3000, 500)
        # Full in the midst of it.
        with pytest.raises(OutOfMemoryError):
            await publish_all(relay)
        await client.config_set("maxmemory", (await redis.look(client)).used_bytes)
        for own in (relay, relay_of(pool, client)):
            with pytest.raises(RuntimeError, match="full"):
                await own.detect()
            assert not usable()
            # Nothing that only fills it up again with what it holds.
            before = await published(client)
            assert await own.publish() is False
            assert await published(client) == before
        assert await unpublished(pool) > 2000
        # A group catches up; trimming makes room, by a relay that has seen it full only.
        seen: dict[str, list[int]] = {group: await read(client, group) for group in GROUPS}
        await own.tend()
        assert sum([await client.xlen(key) for key in KEYS]) < 400
        await client.config_set("maxmemory", 0)
        await settle(own)
        assert usable()
        for group in GROUPS:
            assert set(seen[group] + await read(client, group)) == set(event_ids)


async def test_one_that_would_drop_events_is_refused_and_says_why(pool: Pool, tmp_path: Path) -> None:
    async with breakable(tmp_path) as (_, client):
        relay = await begin(pool, client)
        await write(pool, 1)
        await client.config_set("maxmemory-policy", "allkeys-lru")
        for own in (relay, relay_of(pool, client)):
            with pytest.raises(RuntimeError, match=r"drop events.*allkeys-lru.*use noeviction"):
                await own.detect()
            await own.publish()
            assert (usable(), await entries(client)) == (False, [])
        await client.config_set("maxmemory-policy", "volatile-ttl")
        await settle(relay)
        assert (usable(), len(await entries(client))) == (True, 1)


async def test_while_redis_is_away_events_wait(pool: Pool, tmp_path: Path) -> None:
    async with breakable(tmp_path) as (server, client):
        relay = await begin(pool, client)
        event_ids = await write(pool, 3)
        server.kill()
        with pytest.raises(RedisError):
            await relay.publish()
        with pytest.raises(RedisError):
            await relay.detect()
        assert (usable(), await unpublished(pool)) == (False, 3)
        assert await relay.publish() is False
        server.restart()
        await settle(relay)
        assert (usable(), await published(client)) == (True, Counter(event_ids))


async def test_the_redis_of_another_mesh_is_left_alone(pool: Pool, post_pool: Pool, tmp_path: Path) -> None:
    async with trimmed_exactly(tmp_path) as client:
        own = await begin(pool, client)
        await client.flushall()
        other = await begin(post_pool, client, ("theirs",))
        await write(post_pool, 1)
        await settle(other)
        await client.xadd(KEYS[1], {EVENT: b"old"}, id="1-0")
        await read_raw(client, KEYS[1], "theirs")
        await write(pool, 5)
        before = [await client.dump(key) for key in KEYS]
        for relay in (own, relay_of(pool, client)):
            with pytest.raises(epochs.ForeignRedisError):
                await relay.detect()
            await relay.tend()
            await relay.republish()
            await relay.publish()
            assert not usable()
        assert [await client.dump(key) for key in KEYS] == before
        assert await unpublished(pool) == 5


async def read_raw(client: Redis, key: str, group: str) -> None:
    answer: Any = await client.xreadgroup(group, "member", {key: ">"})
    for _, found in answer:
        await client.xack(key, group, *(entry for entry, _ in found))


# The process.


async def run_once(dsn: str, url: str) -> tuple[int, Sequence[str]]:
    """Runs the graph's relay with `--once`: exit code, and what it printed to standard error."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FEEDMESH_")}
    environ |= {"FEEDMESH_POSTGRES_DSN": dsn, "FEEDMESH_REDIS_URL": url, "FEEDMESH_LOG_LEVEL": "error"}
    command = [sys.executable, "-m", "services.graph.relay", "--once"]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30
    )
    return done.returncode, done.stderr.splitlines()


async def test_once_publishes_all_there_is_and_ends(dsn: str, pool: Pool, tmp_path: Path) -> None:
    async with breakable(tmp_path) as (server, client):
        event_ids = await write(pool, 1200)
        await put(pool, 5_000, minutes=120, published_minutes=120)
        assert await run_once(dsn, server.url) == (0, [])
        assert await published(client) == Counter(event_ids)
        assert len(await left(pool)) == 1200
        # With a stream that is too long nothing is published, and it says so.
        late = await write(pool, 1, first=1200)
        for _ in range(MAX_ENTRIES // 1000):
            async with client.pipeline(transaction=False) as pipeline:
                for _ in range(1000):
                    pipeline.xadd(KEYS[0], {EVENT: b""})
                await pipeline.execute()
        assert (await run_once(dsn, server.url), await unpublished(pool)) == ((1, []), len(late))
        assert await read(client, "timeline") != []
        await client.config_set("maxmemory-policy", "allkeys-random")
        code, lines = await run_once(dsn, server.url)
        assert code == 2
        [line] = lines
        assert line.startswith("FEEDMESH_REDIS_URL: ")
        assert "allkeys-random" in line
