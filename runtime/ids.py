"""Ids: 53-bit integers that sort by time. Made in Postgres (`next_id()` of runtime/migrations/0001_ids.sql), read here.

The upper 41 bits are milliseconds since 2024-01-01 UTC, the lower 12 a sequence. They fit a number of JSON and carry
their creation time.
"""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

EPOCH_MS = 1_704_067_200_000
"""2024-01-01T00:00:00Z in milliseconds since 1970."""
SEQUENCE_BITS = 12
MAX_ID = 2**53 - 1


def time_ms(identifier: int) -> int:
    """When an id was made, in milliseconds since 1970-01-01 UTC."""
    return (identifier >> SEQUENCE_BITS) + EPOCH_MS


def lowest_at(ms: int) -> int:
    """The lowest id that can be made at a time, in milliseconds since 1970-01-01 UTC."""
    return (ms - EPOCH_MS) << SEQUENCE_BITS


def timestamp(identifier: int) -> Timestamp:
    """When an id was made."""
    seconds, ms = divmod(time_ms(identifier), 1000)
    return Timestamp(seconds=seconds, nanos=ms * 1_000_000)
