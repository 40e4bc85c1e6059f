"""Consuming as a group: nothing is lost, whoever dies and whatever fails; what cannot be handled is kept apart.

A member's death is an exception that nothing catches: what it leaves in Redis is what a killed process leaves.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from google.rpc import code_pb2, status_pb2
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, OutOfMemoryError, ResponseError

from feedmesh.event.v1 import event_pb2
from launch import valkey as embedded
from launch.valkey import Running
from runtime import consumer, errors, metrics, process, redis
from runtime.consumer import Consumer, dead_letters, drop, revive
from runtime.streams import EVENT, create_group, stream_key
from tests.fakes.poll import until

TOPIC, GROUP = "test", "group"
KEY = stream_key(TOPIC, 0)
DEAD = consumer.dead_key(TOPIC, 0, GROUP)
OF_A_NEWER_RELEASE = event_pb2.Event(event_id=5).SerializeToString() + b"\x9a\x06\x03new"
"""An event whose fact is field 99."""


class Died(BaseException):
    """Ends a member as SIGKILL does: nothing that comes after it is done."""


@dataclass
class Handler:
    """Handles events, unless it is told to fail."""

    fails: dict[int, BaseException] = field(default_factory=dict)
    """What to raise, by event id."""
    batches: list[list[int]] = field(default_factory=list)
    """What was asked for."""
    done: list[int] = field(default_factory=list)

    async def __call__(self, events: Sequence[event_pb2.Event]) -> None:
        event_ids = [event.event_id for event in events]
        self.batches.append(event_ids)
        for event_id in event_ids:
            if event_id in self.fails:
                raise self.fails[event_id]
        self.done += event_ids

    def tries(self, event_id: int) -> int:
        """How often an event was to be handled."""
        return sum(event_id in batch for batch in self.batches)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that is silent for 0.2 s has died; tries follow each other at once."""
    for name, value in {
        "CLAIM_MS": 200,
        "TOUCH_S": 0.02,
        "BLOCK_MS": 20,
        "FIRST_BACKOFF_S": 0.002,
        "LAST_BACKOFF_S": 0.01,
    }.items():
        monkeypatch.setattr(consumer, name, value)


@pytest_asyncio.fixture
async def client(valkey: Running) -> AsyncIterator[Redis]:
    """A client of a Redis that holds nothing but the group."""
    async with redis.connect(redis.RedisSettings(redis_url=valkey.url), timeout_s=5) as client:
        await client.flushall()
        await create_group(client, KEY, GROUP)
        yield client


@asynccontextmanager
async def breakable(directory: Path) -> AsyncIterator[tuple[Running, Redis]]:
    """A Redis of one's own, and a client of it."""
    with embedded.running(directory) as server:
        async with redis.connect(redis.RedisSettings(redis_url=server.url), timeout_s=5) as client:
            yield server, client


def member(client: Redis, handle: consumer.Handle) -> Consumer:
    """One more member of the group."""
    return Consumer(client, TOPIC, 0, GROUP, handle)


@asynccontextmanager
async def running(*members: Consumer) -> AsyncIterator[process.Process]:
    """Members that consume for the block and are then asked to stop."""
    own = process.Process("test")
    tasks = [asyncio.create_task(each.run(own)) for each in members]
    try:
        yield own
    finally:
        own.stopping.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)


def payload(event_id: int) -> bytes:
    event = event_pb2.Event(event_id=event_id, user_created=event_pb2.UserCreated(user_id=event_id))
    return event.SerializeToString()


async def publish(client: Redis, *event_ids: int) -> None:
    async with client.pipeline(transaction=False) as pipeline:
        for event_id in event_ids:
            pipeline.xadd(KEY, {EVENT: payload(event_id)})
        await pipeline.execute()


async def pending(client: Redis) -> int:
    """How many entries are delivered and not acknowledged."""
    return int((await client.xpending(KEY, GROUP))["pending"])


async def some_pending(client: Redis) -> bool:
    return await pending(client) > 0


async def unfinished(client: Redis) -> int:
    """How many entries are not acknowledged, delivered or not."""
    [info] = await client.xinfo_groups(KEY)
    return int(info["pending"]) + int(info["lag"] or 0)


async def members(client: Redis) -> int:
    """How many members the group has."""
    return len(await client.xinfo_consumers(KEY, GROUP))


async def silent(client: Redis, ms: int) -> bool:
    """Whether all members are silent for so long."""
    return all(each["idle"] >= ms for each in await client.xinfo_consumers(KEY, GROUP))


async def letters(client: Redis) -> list[dict[bytes, bytes]]:
    """What the dead letters say."""
    return [fields for _, fields in await dead_letters(client, TOPIC, 0, GROUP)]


async def letter_ids(client: Redis) -> list[int]:
    """The ids of the events that are dead letters."""
    return [event_pb2.Event.FromString(letter[EVENT]).event_id for letter in await letters(client)]


async def until_idle(client: Redis) -> None:
    """Waits until what is pending may be taken over."""

    async def idle() -> bool:
        found = await client.xpending_range(KEY, GROUP, min="-", max="+", count=1000)
        return all(int(each["time_since_delivered"]) >= consumer.CLAIM_MS for each in found)

    await until(idle)


def stopped() -> bool:
    """Whether the metric says that the consumer takes nothing new."""
    return bool(metrics.CONSUMER_STOPPED.labels(TOPIC, GROUP, KEY)._value.get())


# What is acknowledged has been handled.


async def test_an_event_is_acknowledged_after_its_handler_returned_and_not_before(client: Redis) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    handler = Handler()

    async def slow(events: Sequence[event_pb2.Event]) -> None:
        begun.set()
        await go_on.wait()
        await handler(events)

    await publish(client, 1, 2)
    step = asyncio.create_task(member(client, slow).step())
    await begun.wait()
    assert await pending(client) == 2
    go_on.set()
    assert await step == 2
    assert (handler.done, await pending(client)) == ([1, 2], 0)


async def test_what_a_member_had_when_it_died_another_takes_over(client: Redis) -> None:
    await publish(client, 1, 2)
    with pytest.raises(Died):
        await member(client, Handler({1: Died()})).step()
    assert await pending(client) == 2
    handler = Handler()
    other = member(client, handler)
    # It may be alive and at work.
    assert await other.step() == 0
    await until_idle(client)
    await publish(client, 3)
    await until(lambda: other_steps(other, handler, 3))
    assert (sorted(handler.done), await pending(client), await letters(client)) == ([1, 2, 3], 0, [])


async def other_steps(other: Consumer, handler: Handler, count: int) -> bool:
    await other.step()
    return len(handler.done) >= count


async def test_what_a_member_had_only_one_other_takes_over(client: Redis) -> None:
    for deaths in (1, 2):
        event_ids = list(range(100 * deaths, 100 * deaths + 20))
        await publish(client, *event_ids)
        for _ in range(deaths):
            await until_idle(client)
            with pytest.raises(Died):
                await member(client, Handler(dict.fromkeys(event_ids, Died()))).step()
        await until_idle(client)
        handler = Handler()
        # In one step: all see the same entries, and each asks for them.
        await asyncio.gather(*(member(client, handler).step() for _ in range(4)))
        assert sorted(handler.done) == event_ids


async def test_what_was_delivered_and_never_arrived_is_taken_over_from_oneself(client: Redis) -> None:
    await publish(client, 1)
    handler = Handler()
    own = member(client, handler)
    # The server's answer that was lost on its way.
    await client.xreadgroup(GROUP, own._member, {KEY: ">"})
    async with running(own):
        await until(lambda: handler.done == [1])
    assert await pending(client) == 0


async def test_a_member_that_works_long_is_not_robbed(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "CLAIM_MS", 300)
    handler, robber = Handler(), Handler()

    async def slow(events: Sequence[event_pb2.Event]) -> None:
        # Not a wait for anything: it is at work for three times as long as the silent live.
        await asyncio.sleep(3 * consumer.CLAIM_MS / 1000)
        await handler(events)

    await publish(client, 1, 2)
    async with running(member(client, slow)):
        await until(lambda: pending_is(client, 2))
        async with running(member(client, robber)):
            await until(lambda: handler.done == [1, 2])
    assert robber.batches == []


async def test_what_waits_for_its_next_try_is_not_robbed(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "CLAIM_MS", 300)
    monkeypatch.setattr(consumer, "FIRST_BACKOFF_S", 0.9)
    monkeypatch.setattr(consumer, "LAST_BACKOFF_S", 0.9)
    handler, robber = Handler({1: ValueError("no")}), Handler()
    await publish(client, 1)
    async with running(member(client, handler)):
        await until(lambda: handler.tries(1) == 1)
        async with running(member(client, robber)):
            await until(lambda: handler.tries(1) == 2)
    assert robber.batches == []


async def pending_is(client: Redis, count: int) -> bool:
    return await pending(client) == count


async def test_members_share_a_stream_and_each_event_is_handled_once(client: Redis) -> None:
    handlers = [Handler(), Handler(), Handler()]
    async with running(*(member(client, handler) for handler in handlers)):
        for first in range(0, 1000, 50):
            await publish(client, *range(first, first + 50))
        await until(lambda: sum(len(handler.done) for handler in handlers) >= 1000)
    done = [event_id for handler in handlers for event_id in handler.done]
    assert sorted(done) == list(range(1000))
    assert await unfinished(client) == 0


# What fails.


async def test_one_that_fails_is_retried_alone_while_the_others_and_new_ones_flow(client: Redis) -> None:
    handler = Handler({3: ValueError("not three")})
    await publish(client, 1, 2, 3, 4, 5)
    async with running(member(client, handler)):
        await until(lambda: len(handler.done) == 4)
        await publish(client, 6, 7)
        await until(lambda: len(handler.done) == 6)
        await until(lambda: unfinished_is(client, 0))
    assert handler.batches[0] == [1, 2, 3, 4, 5]
    # Once with the others, once alone to tell whose fault it is, and then again and again.
    assert handler.batches.count([3]) == consumer.MAX_TRIES
    assert sorted(handler.done) == [1, 2, 4, 5, 6, 7]
    [letter] = await letters(client)
    assert letter == {EVENT: payload(3), b"tries": b"6", b"error": b"ValueError('not three')"}


async def unfinished_is(client: Redis, count: int) -> bool:
    return await unfinished(client) == count


async def test_an_event_that_gets_better_is_no_dead_letter(client: Redis) -> None:
    handler = Handler({1: ValueError("not yet")})
    await publish(client, 1)
    async with running(member(client, handler)):
        await until(lambda: handler.tries(1) == consumer.MAX_TRIES - 1)
        handler.fails.clear()
        await until(lambda: handler.done == [1])
        await until(lambda: unfinished_is(client, 0))
    assert await letters(client) == []


async def test_backoff_grows(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr(consumer, "LAST_BACKOFF_S", 0.16)
    times: list[float] = []

    async def handle(events: Sequence[event_pb2.Event]) -> None:
        times.append(asyncio.get_running_loop().time())
        raise ValueError

    await publish(client, 1)
    async with running(member(client, handle)):
        await until(lambda: unfinished_is(client, 0))
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert len(waits) == consumer.MAX_TRIES - 1
    assert all(wait >= least for wait, least in zip(waits, (0.02, 0.04, 0.08, 0.16, 0.16), strict=True))


PASS: list[Exception] = [
    errors.Unavailable("a part is away"),
    errors.from_status(status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED)),
    ConnectionError("refused"),
    TimeoutError(),
    RedisConnectionError("reset"),
    OutOfMemoryError("command not allowed when used memory > 'maxmemory'"),
    ResponseError("MISCONF Errors writing to the RDB file"),
    ResponseError("NOREPLICAS Not enough good replicas to write."),
    ResponseError("BUSY Redis is busy running a script."),
    psycopg.OperationalError("the connection is lost"),
    psycopg.errors.QueryCanceled("canceling statement due to statement timeout"),
]
FAIL: list[Exception] = [
    ValueError("no"),
    errors.NotFound("POST_NOT_FOUND"),
    errors.InvalidArgument(),
    errors.Error("INTERNAL"),
    ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    ResponseError("BUSYGROUP Consumer Group name already exists"),
    DataError("Invalid input of type: 'NoneType'."),
    psycopg.errors.UndefinedColumn("no such column"),
]


@pytest.mark.parametrize("error", PASS, ids=repr)
def test_that_a_part_is_away_is_no_fault_of_the_event(error: Exception) -> None:
    assert consumer.passes(error)


@pytest.mark.parametrize("error", FAIL, ids=repr)
def test_anything_else_is(error: Exception) -> None:
    assert not consumer.passes(error)


async def test_while_a_part_is_away_nothing_becomes_a_dead_letter(client: Redis) -> None:
    handler = Handler({1: errors.Unavailable("the graph is away"), 2: RedisConnectionError(), 3: OutOfMemoryError()})
    await publish(client, *range(6))
    async with running(member(client, handler)):
        await until(lambda: all(handler.tries(event_id) > 3 * consumer.MAX_TRIES for event_id in (1, 2, 3)))
        assert (sorted(handler.done), await letters(client)) == ([0, 4, 5], [])
        handler.fails.clear()
        await until(lambda: unfinished_is(client, 0))
    assert sorted(handler.done) == [0, 1, 2, 3, 4, 5]


async def test_tries_while_a_part_was_away_are_not_held_against_the_event(client: Redis) -> None:
    handler = Handler({1: errors.Unavailable("the graph is away")})
    await publish(client, 1)
    async with running(member(client, handler)):
        await until(lambda: handler.tries(1) > 2 * consumer.MAX_TRIES)
        handler.fails[1] = ValueError("answers while it starts")
        before = handler.tries(1)
        await until(lambda: handler.tries(1) > before)
        handler.fails.clear()
        await until(lambda: unfinished_is(client, 0))
    assert (handler.done, await letters(client)) == ([1], [])


async def test_a_redis_that_refuses_writes_buries_nothing(tmp_path: Path) -> None:
    """Full, or without the replicas that it was told to have."""
    async with breakable(tmp_path) as (_, client):
        await create_group(client, KEY, GROUP)
        handler, gate = Handler(), asyncio.Event()

        async def write(events: Sequence[event_pb2.Event]) -> None:
            await gate.wait()
            for event in events:
                await client.set(f"seen {event.event_id}", "x")
            await handler(events)

        async with running(member(client, write)):
            for first, (setting, bad, good) in enumerate((("maxmemory", 1, 0), ("min-replicas-to-write", 1, 0))):
                await publish(client, 2 * first, 2 * first + 1)
                # One at least is read: without its replicas Redis refuses that too.
                await until(lambda: some_pending(client))
                await client.config_set(setting, bad)
                gate.set()
                await until(lambda: failing(30))
                assert await letters(client) == []
                await client.config_set(setting, good)
                await until(lambda: unfinished_is(client, 0))
                gate.clear()
        assert sorted(set(handler.done)) == [0, 1, 2, 3]
        assert await letters(client) == []


async def failing(times: int) -> bool:
    """Whether that many tries have failed since this was first asked."""
    counter = metrics.CONSUMER_EVENTS.labels(TOPIC, GROUP, "retried")
    before = counter._value.get()
    await until(lambda: counter._value.get() >= before + times)
    return True


async def test_one_that_cannot_be_buried_holds_up_no_other(tmp_path: Path) -> None:
    """Redis is full just when an event has failed for the last time."""
    async with breakable(tmp_path) as (_, client):
        await create_group(client, KEY, GROUP)
        await publish(client, 1, 2, 3)
        handler = Handler({1: ValueError("no"), 2: errors.Unavailable("not yet")})
        await client.config_set("maxmemory", 1)
        async with running(member(client, handler)):
            await until(lambda: handler.tries(1) > 2 * consumer.MAX_TRIES)
            before = handler.tries(2)
            await until(lambda: handler.tries(2) > before)
            del handler.fails[2]
            await until(lambda: sorted(handler.done) == [2, 3])
            await client.config_set("maxmemory", 0)
            await until(lambda: unfinished_is(client, 0))
        assert await letter_ids(client) == [1]


# What cannot be understood.

GARBLED: dict[str, tuple[dict[bytes, bytes], bytes]] = {
    "not an event": ({EVENT: b"\xff\xff"}, b"\xff\xff"),
    "a fact of a newer release": ({EVENT: OF_A_NEWER_RELEASE}, OF_A_NEWER_RELEASE),
    "an event without a fact": ({EVENT: b"\x08\x05"}, b"\x08\x05"),
    "an entry without the field": ({b"other": b"x"}, b""),
}


@pytest.mark.parametrize("name", GARBLED)
async def test_what_is_not_understood_is_kept_as_it_is(client: Redis, name: str) -> None:
    fields, kept = GARBLED[name]
    handler = Handler()
    await publish(client, 1)
    await client.xadd(KEY, fields)  # type: ignore[arg-type]
    await publish(client, 2)
    async with running(member(client, handler)):
        await until(lambda: unfinished_is(client, 0))
    assert handler.batches == [[1, 2]]
    [letter] = await letters(client)
    assert letter[EVENT] == kept
    assert letter[b"tries"] == b"%d" % consumer.MAX_TRIES
    assert letter[b"error"].startswith(b"NotUnderstoodError(")
    # A newer release gets what the relay sent, byte by byte.
    [(entry, fields)] = await dead_letters(client, TOPIC, 0, GROUP)
    await revive(client, TOPIC, 0, GROUP, entry, fields[EVENT])
    last: Any = await client.xrevrange(KEY, count=1)
    assert last[0][1] == {EVENT: kept}
    assert await letters(client) == []


async def test_what_a_newer_release_added_to_a_known_fact_survives(client: Redis) -> None:
    # In an order that no serializer of ours would choose.
    odd = b"\x9a\x06\x03new" + payload(1) + event_pb2.Event(event_id=1).SerializeToString()
    await client.xadd(KEY, {EVENT: odd})
    async with running(member(client, Handler({1: ValueError("no")}))):
        await until(lambda: unfinished_is(client, 0))
    [letter] = await letters(client)
    assert letter[EVENT] == odd


# Too much that fails.


async def test_full_dead_letters_stop_the_stream_until_one_is_dropped(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "MAX_DEAD", 3)
    handler = Handler({event_id: ValueError("no") for event_id in range(1, 5)})
    await publish(client, 1, 2, 3, 4)
    async with running(member(client, handler)):
        await until(lambda: handler.tries(4) > 2 * consumer.MAX_TRIES)
        await until(stopped)
        await publish(client, 5)
        before = handler.tries(4)
        await until(lambda: handler.tries(4) > before + 5)
        # Still tried, and still there; the one after it waits.
        assert (handler.done, await pending(client), await unfinished(client)) == ([], 1, 2)
        [first, *_] = await dead_letters(client, TOPIC, 0, GROUP)
        await drop(client, TOPIC, 0, GROUP, first[0])
        await until(lambda: handler.done == [5])
        await until(lambda: not stopped())
    assert len(await letters(client)) == 3
    assert await unfinished(client) == 0


async def test_one_that_was_stopped_goes_on_when_its_event_can_be_handled(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "MAX_DEAD", 1)
    handler = Handler({1: ValueError("no"), 2: ValueError("no")})
    await publish(client, 1, 2)
    async with running(member(client, handler)):
        await until(stopped)
        await publish(client, 3)
        handler.fails.clear()
        await until(lambda: 3 in handler.done)
    assert await unfinished(client) == 0


async def test_so_many_wait_and_no_more(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "MAX_WAITING", 10)
    monkeypatch.setattr(consumer, "BATCH", 5)
    handler = Handler({event_id: errors.Unavailable("away") for event_id in range(200)})
    await publish(client, *range(100))
    # Members die and leave theirs to it.
    for _ in range(6):
        with pytest.raises(Died):
            await member(client, Handler({event_id: Died() for event_id in range(100)})).step()
    await until_idle(client)
    own = member(client, handler)
    async with running(own):
        await until(lambda: failing(200))
        await until(stopped)
        assert 10 <= len(own._waiting) < 20
        handler.fails.clear()
        await until(lambda: unfinished_is(client, 0))
        await until(lambda: not stopped())
    assert set(handler.done) == set(range(100))


# What kills.


async def test_an_event_that_kills_is_buried_and_none_of_those_that_were_with_it(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "MAX_DELIVERIES", 4)
    monkeypatch.setattr(consumer, "CLAIM_MS", 5)
    handler = Handler({7: Died()})
    await publish(client, *range(20))
    deaths = 0
    while await unfinished(client):
        assert deaths < 30
        try:
            await until_idle(client)
            await member(client, handler).step()
        except Died:
            deaths += 1
    assert deaths == 4
    assert sorted(set(handler.done)) == [event_id for event_id in range(20) if event_id != 7]
    [letter] = await letters(client)
    assert (letter[EVENT], letter[b"error"]) == (payload(7), b"RuntimeError('whoever handled it died')")


async def test_an_event_that_kills_is_not_tried_when_the_dead_letters_are_full(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "MAX_DELIVERIES", 2)
    monkeypatch.setattr(consumer, "MAX_DEAD", 1)
    await client.xadd(DEAD, {EVENT: payload(1)})
    await publish(client, 7)
    for _ in range(2):
        await until_idle(client)
        with pytest.raises(Died):
            await member(client, Handler({7: Died()})).step()
    await until_idle(client)
    handler = Handler({7: Died()})
    async with running(member(client, handler)):
        await publish(client, 8)
        await until(lambda: handler.done == [8])
        await until(lambda: pending_is(client, 1))
        await client.delete(DEAD)
        await until(lambda: unfinished_is(client, 0))
    assert handler.tries(7) == 0
    assert await letter_ids(client) == [7]


async def test_waiting_for_a_part_through_many_members_is_no_death(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "MAX_DELIVERIES", 3)
    handler = Handler({1: errors.Unavailable("away for long")})
    await publish(client, 1)
    for _ in range(5):
        before = handler.tries(1)
        async with running(member(client, handler)):
            await until(lambda before=before: handler.tries(1) >= before + 3)
    handler.fails.clear()
    async with running(member(client, handler)):
        await until(lambda: unfinished_is(client, 0))
    assert (handler.done, await letters(client)) == ([1], [])


# Redis breaks.


async def test_after_a_flush_the_group_is_made_again_and_nothing_is_left_out(client: Redis) -> None:
    handler = Handler()
    async with running(member(client, handler), member(client, handler)):
        for first in range(0, 50, 10):
            await client.flushall()
            # Before anyone has made the group again.
            await publish(client, *range(first, first + 10))
            await until(lambda first=first: set(range(first + 10)) <= set(handler.done))
        await until(lambda: unfinished_is(client, 0))
    assert sorted(handler.done) == list(range(50))


async def test_what_waited_when_everything_was_flushed_is_tried_and_forgotten(client: Redis) -> None:
    handler = Handler({1: errors.Unavailable("away")})
    await publish(client, 1)
    own = member(client, handler)
    async with running(own):
        await until(lambda: handler.tries(1) > 2)
        await client.flushall()
        handler.fails.clear()
        await until(lambda: not own._waiting)
        await publish(client, 2)
        await until(lambda: handler.done == [1, 2])


async def test_it_goes_on_when_redis_was_killed_and_started(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with breakable(tmp_path) as (server, client):
        handler = Handler()
        async with running(member(client, handler)):
            await until(lambda: client.exists(KEY))  # type: ignore[arg-type]
            await publish(client, 1)
            await until(lambda: unfinished_is(client, 0))
            server.kill()
            await until(lambda: "Error" in caplog.text)
            server.restart()
            await publish(client, 2)
            await until(lambda: 2 in handler.done)
        assert set(handler.done) == {1, 2}


# Leaving.


async def test_a_member_that_stops_finishes_its_batch_and_leaves(client: Redis) -> None:
    begun, go_on, handler = asyncio.Event(), asyncio.Event(), Handler()

    async def slow(events: Sequence[event_pb2.Event]) -> None:
        begun.set()
        await go_on.wait()
        await handler(events)

    await publish(client, 1, 2)
    async with running(member(client, slow)) as own:
        await begun.wait()
        assert await members(client) == 1
        own.stopping.set()
        await publish(client, 3)
        go_on.set()
    assert handler.done == [1, 2]
    assert (await pending(client), await unfinished(client), await members(client)) == (0, 1, 0)


async def test_a_member_that_is_asked_to_stop_while_it_retries_takes_nothing_new(client: Redis) -> None:
    begun, go_on, handler = asyncio.Event(), asyncio.Event(), Handler({1: errors.Unavailable("away")})

    async def slow(events: Sequence[event_pb2.Event]) -> None:
        if handler.batches:
            begun.set()
            await go_on.wait()
        await handler(events)

    await publish(client, 1)
    async with running(member(client, slow)) as own:
        await begun.wait()
        await publish(client, 2)
        own.stopping.set()
        go_on.set()
    assert set(map(tuple, handler.batches)) == {(1,)}
    assert await unfinished(client) == 2


async def test_a_member_that_stops_leaves_what_waits_to_the_others(client: Redis) -> None:
    handler, heir = Handler({1: errors.Unavailable("away")}), Handler()
    await publish(client, 1, 2)
    async with running(member(client, handler)):
        await until(lambda: handler.tries(1) > 2)
    assert (await pending(client), await members(client)) == (1, 1)
    async with running(member(client, heir)):
        await until(lambda: heir.done == [1])
        await until(lambda: unfinished_is(client, 0))


async def test_a_member_stops_soon_though_everything_takes_long_to_fail(client: Redis) -> None:
    """As when a database is away: each try takes until its deadline."""

    async def slow(events: Sequence[event_pb2.Event]) -> None:
        tried.append(len(events))
        await asyncio.sleep(0.05)  # what a try takes, not a wait for anything
        raise errors.Unavailable("the deadline has passed")

    tried: list[int] = []
    await publish(client, *range(100))
    own = process.Process("test")
    task = asyncio.create_task(member(client, slow).run(own))
    await until(lambda: len(tried) == 3)
    own.stopping.set()
    await asyncio.wait_for(task, 2)
    assert tried[3:] in ([], [1])
    assert await unfinished(client) == 100


async def test_members_that_left_without_a_word_are_forgotten_when_they_have_nothing(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(client, 1, 2)
    await member(client, Handler()).step()
    await publish(client, 3)
    with pytest.raises(Died):
        await member(client, Handler({3: Died()})).step()
    assert await members(client) == 2
    async with running(member(client, Handler())):
        pass
    assert await members(client) == 2
    monkeypatch.setattr(consumer, "FORGOTTEN_MS", 10)
    await until(lambda: silent(client, 11))
    async with running(member(client, Handler())):
        pass
    # The one that has something stays.
    assert (await members(client), await pending(client)) == (1, 1)


# What an operator does.


async def test_dead_letters_are_shown_revived_and_dropped(client: Redis) -> None:
    handler = Handler({1: ValueError("one"), 2: ValueError("two"), 3: ValueError("three")})
    await publish(client, 1, 2, 3)
    async with running(member(client, handler)):
        await until(lambda: unfinished_is(client, 0))
        found = await dead_letters(client, TOPIC, 0, GROUP)
        assert {fields[b"error"] for _, fields in found} == {
            b"ValueError('one')",
            b"ValueError('two')",
            b"ValueError('three')",
        }
        by_error = {fields[b"error"]: (entry, fields[EVENT]) for entry, fields in found}
        handler.fails.clear()
        await revive(client, TOPIC, 0, GROUP, *by_error[b"ValueError('one')"])
        await drop(client, TOPIC, 0, GROUP, by_error[b"ValueError('two')"][0])
        await until(lambda: handler.done == [1])
        await until(lambda: unfinished_is(client, 0))
    assert await letter_ids(client) == [3]


async def test_a_letter_that_cannot_be_put_back_stays_one(tmp_path: Path) -> None:
    async with breakable(tmp_path) as (_, client):
        entry: Any = await client.xadd(DEAD, {EVENT: payload(1)})
        await client.config_set("maxmemory", 1)
        with pytest.raises(OutOfMemoryError):
            await revive(client, TOPIC, 0, GROUP, entry, payload(1))
        assert (await letter_ids(client), await client.exists(KEY)) == ([1], 0)
