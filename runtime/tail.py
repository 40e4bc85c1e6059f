"""Following a topic without a consumer group: every process sees every event, and is told when it may have missed some.

For what is kept in a process's memory and can be read anew from its owner. Nothing is acknowledged and nothing waits
for a tail: the relay keeps entries for `relay.KEEP_MS` whether or not one has read them. So events can be missed, but
not silently: each read holds what it got against the stream's own count of all entries that it ever took, and against
the topic's epoch (runtime/epochs.py) and the server's run, which tell of a flush, a restart, an old snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from feedmesh.event.v1 import event_pb2
from runtime import epochs, metrics, redis, streams

COUNT = 1_000
"""Entries of one stream that one read takes at the most."""


class Gap(Exception):
    """Events may have been missed: what was made of them must be made anew, from a new position on."""


class Place(NamedTuple):
    """A place in one stream."""

    last_id: bytes
    """The entry before it; `0-0` at the beginning."""
    added: int
    """How many entries the stream ever took up to there, trimmed ones included."""


@dataclass(frozen=True)
class Position:
    """A place in all streams of a topic, and what must stay as it is for it to mean anything."""

    topic: str
    run_id: str
    marker: bytes
    places: tuple[Place, ...]


class Entry(NamedTuple):
    """One event and where it stands."""

    partition: int
    number: int
    """Which of all entries that the stream ever took, from 1 on."""
    event: event_pb2.Event
    is_again: bool
    """Whether it was published before, to a Redis that lost it."""


class Batch(NamedTuple):
    """What one read got."""

    entries: list[Entry]
    """Those of one partition in their order; some events may come twice."""
    position: Position
    """Where to go on."""
    more: bool
    """Whether there is more to read at once."""

    @property
    def events(self) -> list[event_pb2.Event]:
        """What the entries say."""
        return [entry.event for entry in self.entries]


async def begin(client: Redis, topic: str) -> Position:
    """The end of the topic as of now: reading from there gives what comes after.

    What was true before is in its owner's database by then, so take the position first and read the state after. Raises
    Gap while no relay has settled with this Redis, RedisError.
    """
    seen = await look(client, topic, ())
    if seen.marker is None:
        raise Gap(f"no relay has filled this Redis with the topic {topic} yet")
    return Position(topic, seen.run_id, seen.marker, seen.ends)


async def oldest(client: Redis, topic: str) -> Position:
    """The beginning of what the streams hold as of now. Raises as `begin`.

    What is trimmed before it is read is a gap.
    """
    position = await begin(client, topic)
    keys = [key.encode() for key in streams.stream_keys(topic)]
    answers = await redis.exchange(
        client, [redis.command(b"XINFO", b"STREAM", key) for key in keys], may_fail=len(keys)
    )
    return replace(position, places=tuple(map(first_of, answers)))


async def end(client: Redis, key: str) -> Place:
    """Where a stream ends as of now. Raises RedisError."""
    [answer] = await redis.exchange(client, [redis.command(b"XINFO", b"STREAM", key.encode())], may_fail=1)
    return end_of(answer)


async def read(client: Redis, position: Position) -> Batch:
    """The events after a position, at most 1,000 of each partition; does not wait for any. Raises Gap, RedisError.

    An entry that is no event is left out and counted.
    """
    seen = await look(client, position.topic, position.places)
    if seen.run_id != position.run_id or seen.marker != position.marker:
        raise Gap("Redis is another or may have lost something")
    places = tuple(map(advance, position.places, seen.ends, seen.entries))
    return Batch(
        [
            Entry(partition, place.added + at, event, streams.AGAIN in entry[1][::2])
            for partition, (place, entries) in enumerate(zip(position.places, seen.entries, strict=True))
            for at, entry in enumerate(entries, start=1)
            if (event := decoded(position.topic, entry))
        ],
        Position(position.topic, position.run_id, position.marker, places),
        any(len(entries) == COUNT for entries in seen.entries),
    )


def advance(place: Place, end: Place, entries: Sequence[Any]) -> Place:
    """The place after having read these entries; `end` is where the stream ended just before. Raises Gap."""
    after = Place(entries[-1][0] if entries else place.last_id, place.added + len(entries))
    until_end = after.added
    if entries:
        # What came between the two commands.
        last = streams.entry_id(end.last_id)
        for entry in reversed(entries):
            if streams.entry_id(entry[0]) <= last:
                break
            until_end -= 1
    # Fewer than were read: the stream began anew. More: the rest is trimmed or lies below the place.
    if end.added < until_end or (end.added > until_end and len(entries) < COUNT):
        raise Gap("a stream was trimmed before it was read, or began anew")
    return after


class Seen(NamedTuple):
    """What Redis answers to one look at a topic."""

    ends: tuple[Place, ...]
    entries: list[list[Any]]
    marker: bytes | None
    run_id: str


async def look(client: Redis, topic: str, places: Sequence[Place]) -> Seen:
    """Asks for the streams' ends, the entries after these places, the marker, and the run."""
    keys = [key.encode() for key in streams.stream_keys(topic)]
    # One connection, so one server, and in this order: what is lost after the marker was read, the next look notices.
    # No command names two keys and there is no transaction, for the sake of a cluster. And none blocks: a look a few
    # times a second costs next to nothing and holds no connection.
    answers = await redis.exchange(
        client,
        [
            *(redis.command(b"XINFO", b"STREAM", key) for key in keys),
            *(
                redis.command(b"XRANGE", key, b"(" + place.last_id, b"+", b"COUNT", COUNT)
                for key, place in zip(keys, places, strict=False)
            ),
            redis.command(b"GET", epochs.marker_key(topic).encode()),
            redis.command(b"INFO", b"server"),
        ],
        may_fail=len(keys),
    )
    ends = tuple(map(end_of, answers[: len(keys)]))
    *entries, marker, server = answers[len(keys) :]
    return Seen(ends, entries, marker, redis.info(server)["run_id"])


def end_of(answer: Any) -> Place:
    """Where a stream ends, by Redis's answer about it."""
    said = stream_of(answer)
    return Place(said[b"last-generated-id"], said[b"entries-added"]) if said else Place(b"0-0", 0)


def first_of(answer: Any) -> Place:
    """Where what a stream holds begins, by Redis's answer about it."""
    said = stream_of(answer)
    if not said or not said[b"length"]:
        return end_of(answer)
    ms, sequence = streams.entry_id(said[b"first-entry"][0])
    before = b"%d-%d" % ((ms, sequence - 1) if sequence else (ms - 1, 2**64 - 1))
    return Place(before, said[b"entries-added"] - said[b"length"])


def stream_of(answer: Any) -> dict[bytes, Any]:
    """What Redis says of a stream; nothing where there is none."""
    if isinstance(answer, ResponseError) and "no such key" in str(answer):
        return {}
    if isinstance(answer, Exception):
        raise answer
    # By RESP3 a dict, by RESP2 (`?protocol=2` of the URL) a list.
    return answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))


def decoded(topic: str, entry: Any) -> event_pb2.Event | None:
    """The event of a stream's entry; None where it is none."""
    try:
        fields = entry[1]
        return event_pb2.Event.FromString(fields[fields.index(streams.EVENT) + 1])
    except (ValueError, DecodeError):
        metrics.TAIL_UNREADABLE.labels(topic).inc()
        return None
