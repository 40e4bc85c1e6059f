"""The transactional outbox: events are rows of the transaction that made them true. runtime/relay.py publishes them."""

from __future__ import annotations

from feedmesh.event.v1 import event_pb2
from runtime import postgres


async def add(connection: postgres.Connection, key: int, event: event_pb2.Event) -> None:
    """Writes an event in the caller's transaction. Events of one `key` share a partition."""
    await connection.execute(
        "INSERT INTO outbox (partition_key, event) VALUES (%s, %s)", (key, event.SerializeToString())
    )
