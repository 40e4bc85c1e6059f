"""The transactional outbox: events are rows of the transaction that made them true. runtime/relay.py publishes them."""

from __future__ import annotations

from collections.abc import Sequence

from feedmesh.event.v1 import event_pb2
from runtime import postgres


async def add(connection: postgres.Connection, key: int, event: event_pb2.Event) -> None:
    """Writes an event in the caller's transaction. Events of one `key` share a partition."""
    await add_all(connection, [(key, event)])


async def add_all(connection: postgres.Connection, events: Sequence[tuple[int, event_pb2.Event]]) -> None:
    """Writes events, each with its key, in the caller's transaction and in this order."""
    if events:
        await connection.execute(
            "INSERT INTO outbox (partition_key, event) SELECT * FROM unnest(%s::bigint[], %s::bytea[])",
            (
                postgres.int8s([key for key, _ in events]),
                postgres.byteas([event.SerializeToString() for _, event in events]),
            ),
        )
