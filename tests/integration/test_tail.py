"""Following a topic without a group: every event is seen, and what may have been missed is never missed silently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from feedmesh.event.v1 import event_pb2
from launch.valkey import Running
from runtime import epochs, metrics, redis, streams, tail

TOPIC = "test"
KEYS = streams.stream_keys(TOPIC)
MARKER = b"mesh:1"


@pytest_asyncio.fixture
async def client(valkey: Running) -> AsyncIterator[Redis]:
    """A client of an empty Redis that a relay has settled with."""
    async with redis.connect(redis.RedisSettings(redis_url=valkey.url)) as client:
        await client.flushall()
        await client.set(epochs.marker_key(TOPIC), MARKER)
        yield client


async def publish(client: Redis, *event_ids: int) -> None:
    """Adds events as the relay does."""
    async with client.pipeline(transaction=False) as pipeline:
        for event_id in event_ids:
            event = event_pb2.Event(event_id=event_id).SerializeToString()
            pipeline.xadd(streams.stream_key(TOPIC, event_id % streams.PARTITIONS), {streams.EVENT: event})
        await pipeline.execute()


async def read(client: Redis, position: tail.Position) -> tuple[set[int], tail.Position]:
    """The ids of the events after a position, and where to go on; there must not be more."""
    batch = await tail.read(client, position)
    assert not batch.more
    return {event.event_id for event in batch.events}, batch.position


async def test_what_comes_after_the_position_is_read_once_from_every_partition(client: Redis) -> None:
    await publish(client, 1, 2)
    position = await tail.begin(client, TOPIC)
    await publish(client, *range(3, 13))
    seen, position = await read(client, position)
    assert seen == set(range(3, 13))
    await publish(client, 13)
    seen, position = await read(client, position)
    assert seen == {13}
    assert await read(client, position) == (set(), position)


async def test_a_long_stream_is_read_in_bounded_steps(client: Redis) -> None:
    position = await tail.begin(client, TOPIC)
    event_ids = range(0, 4 * (tail.COUNT + 5), 4)
    await publish(client, *event_ids)
    batch = await tail.read(client, position)
    assert len(batch.events) == tail.COUNT
    assert batch.more
    rest, _ = await read(client, batch.position)
    assert {event.event_id for event in batch.events} | rest == set(event_ids)


async def test_entries_that_are_no_event_are_left_out_and_counted(client: Redis) -> None:
    unreadable = metrics.TAIL_UNREADABLE.labels(TOPIC)._value.get()
    position = await tail.begin(client, TOPIC)
    await client.xadd(KEYS[0], {streams.EVENT: b"\xff\xff"})
    await client.xadd(KEYS[0], {b"other": b"field"})
    await publish(client, 4)
    seen, _ = await read(client, position)
    assert seen == {4}
    assert metrics.TAIL_UNREADABLE.labels(TOPIC)._value.get() == unreadable + 2


async def test_trimming_what_was_read_is_no_gap(client: Redis) -> None:
    await publish(client, 1)
    position = await tail.begin(client, TOPIC)
    await publish(client, 5)
    _, position = await read(client, position)
    await client.xtrim(KEYS[1], maxlen=0, approximate=False)
    await publish(client, 9)
    seen, _ = await read(client, position)
    assert seen == {9}


async def test_nothing_is_missed_while_others_write(client: Redis) -> None:
    position = await tail.begin(client, TOPIC)

    async def write(writer: int) -> None:
        for number in range(300):
            await publish(client, 10_000 * writer + number)

    writers = asyncio.gather(*(write(writer) for writer in range(1, 5)))
    seen: list[int] = []
    while True:
        done = writers.done()
        batch = await tail.read(client, position)
        seen += [event.event_id for event in batch.events]
        position = batch.position
        if done and not batch.more:
            break
    await writers
    assert sorted(seen) == [10_000 * writer + number for writer in range(1, 5) for number in range(300)]


async def test_without_a_settled_relay_there_is_no_position(client: Redis) -> None:
    await client.delete(epochs.marker_key(TOPIC))
    with pytest.raises(tail.Gap):
        await tail.begin(client, TOPIC)


async def flush(client: Redis) -> None:
    await client.flushall()


async def flush_and_fill(client: Redis) -> None:
    """What a relay makes of a flush, as fast as it can."""
    await client.flushall()
    await client.set(epochs.marker_key(TOPIC), b"mesh:2")
    await publish(client, *range(40))


async def trim_unread(client: Redis) -> None:
    await publish(client, 1)
    await client.xtrim(KEYS[1], maxlen=0, approximate=False)


async def trim_part_of_the_unread(client: Redis) -> None:
    await publish(client, 1, 5, 9)
    await client.xtrim(KEYS[1], maxlen=2, approximate=False)


async def remove_a_stream(client: Redis) -> None:
    await client.delete(KEYS[1])


async def remove_a_stream_and_add_less(client: Redis) -> None:
    await client.delete(KEYS[1])
    await publish(client, 1)


async def raise_the_epoch(client: Redis) -> None:
    await client.set(epochs.marker_key(TOPIC), b"mesh:2")


@pytest.mark.parametrize(
    "lose",
    [
        flush,
        flush_and_fill,
        trim_unread,
        trim_part_of_the_unread,
        remove_a_stream,
        remove_a_stream_and_add_less,
        raise_the_epoch,
    ],
)
async def test_a_loss_is_noticed(client: Redis, lose: Callable[[Redis], Awaitable[None]]) -> None:
    await publish(client, *range(8))
    position = await tail.begin(client, TOPIC)
    await publish(client, *range(8, 16))
    _, position = await read(client, position)
    await lose(client)
    with pytest.raises(tail.Gap):
        await tail.read(client, position)


async def millisecond(client: Redis) -> int:
    """The time of Redis."""
    seconds, micros = await client.time()
    return int(seconds * 1000 + micros // 1000)


async def test_a_stream_that_began_anew_and_grew_is_noticed(client: Redis) -> None:
    await publish(client, 1)
    position = await tail.begin(client, TOPIC)
    await client.delete(KEYS[1])
    # Within one millisecond the first entry would have the id of the one that is gone.
    begun = await millisecond(client)
    while await millisecond(client) == begun:
        pass
    await publish(client, 1, 5, 9)
    with pytest.raises(tail.Gap):
        await tail.read(client, position)


async def test_entries_are_numbered_as_the_stream_took_them(client: Redis) -> None:
    await publish(client, *range(1, 41))
    await client.xtrim(KEYS[1], maxlen=4, approximate=False)
    position = await tail.oldest(client, TOPIC)
    await publish(client, 41)
    batch = await tail.read(client, position)
    numbers = {entry.event.event_id: (entry.partition, entry.number) for entry in batch.entries}
    assert numbers == {
        event_id: (event_id % 4, (event_id - 1) // 4 + 1 if event_id % 4 else event_id // 4)
        for event_id in range(1, 42)
        if event_id % 4 != 1 or event_id > 24
    }
    assert not any(entry.is_again for entry in batch.entries)
    position = await tail.oldest(client, TOPIC)
    await client.xtrim(KEYS[2], maxlen=1, approximate=False)
    with pytest.raises(tail.Gap):
        await tail.read(client, position)


def test_what_comes_between_the_two_commands_hides_no_trimming() -> None:
    place, end = tail.Place(b"5-0", 5), tail.Place(b"7-0", 7)
    entries: list[list[Any]] = [[entry_id, []] for entry_id in (b"6-0", b"7-0", b"8-0")]
    assert tail.advance(place, end, entries) == tail.Place(b"8-0", 8)
    assert tail.advance(place, end, entries[:2]) == end
    # One was trimmed, one came: as many as there should be, and not the same.
    with pytest.raises(tail.Gap):
        tail.advance(place, end, entries[1:])


async def test_an_entry_that_was_published_before_says_so(client: Redis) -> None:
    position = await tail.begin(client, TOPIC)
    for again in ({}, {streams.AGAIN: b""}):
        fields = {streams.EVENT: event_pb2.Event(event_id=4).SerializeToString(), **again}
        await client.xadd(KEYS[0], fields)  # type: ignore[arg-type]
    batch = await tail.read(client, position)
    assert [entry.is_again for entry in batch.entries] == [False, True]


async def test_a_restart_and_an_old_snapshot_are_noticed(client: Redis, valkey: Running) -> None:
    await publish(client, 1)
    await client.save()
    try:
        position = await tail.begin(client, TOPIC)
        valkey.kill()
        with pytest.raises((RedisError, OSError)):
            await tail.read(client, position)
        valkey.restart()
        # All is as it was, the marker too.
        assert await client.get(epochs.marker_key(TOPIC)) == MARKER
        with pytest.raises(tail.Gap):
            await tail.read(client, position)
    finally:
        valkey.snapshot.unlink()
        valkey.restart()
