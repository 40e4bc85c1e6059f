"""The Redis Streams that carry the events of a topic: their names, entries and groups. Not who fills or reads them."""

from __future__ import annotations

from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ResponseError

PARTITIONS = 4
"""Streams of one topic, each on a Redis slot of its own. An event's key says which; changing this loses no event, but
the streams of the old number must be empty before."""
EVENT = b"event"
"""The field of a stream's entry that holds the event."""
AGAIN = b"again"
"""A field of an entry whose event was published before, to a Redis that may have lost it."""


def stream_key(topic: str, partition: int) -> str:
    """The stream of a topic's partition. The braces keep all that belongs to it on one slot of a Redis Cluster."""
    return f"feedmesh:{{{topic}.{partition}}}:events"


def stream_keys(topic: str) -> list[str]:
    """All streams of a topic."""
    return [stream_key(topic, partition) for partition in range(PARTITIONS)]


def entry_id(text: bytes) -> tuple[int, int]:
    """A stream entry's id as numbers that compare."""
    ms, _, sequence = text.decode().partition("-")
    return int(ms), int(sequence)


def after(entry: tuple[int, int]) -> tuple[int, int]:
    """The least id above another."""
    return entry[0], entry[1] + 1


class Group(NamedTuple):
    """What Redis says of a consumer group."""

    name: str
    delivered: tuple[int, int]
    """The id of the last entry that was delivered."""
    pending: int
    """Entries that were delivered and are not acknowledged."""
    lag: int | None
    """Entries that were not delivered yet; None where Redis cannot tell."""


async def groups_of(client: Redis, key: str) -> list[Group]:
    """A stream's consumer groups; none where there is no stream. Raises RedisError."""
    try:
        found = await client.xinfo_groups(key)
    except ResponseError as error:
        if "no such key" not in str(error):
            raise
        return []
    return [
        Group(each["name"].decode(), entry_id(each["last-delivered-id"]), each["pending"], each.get("lag"))
        for each in found
    ]


async def create_group(client: Redis, key: str, group: str) -> None:
    """Makes a consumer group that begins with the stream's first entry, and the stream, unless they are there."""
    try:
        await client.xgroup_create(key, group, id="0", mkstream=True)
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise
