"""The relay: publishes the events of an outbox (runtime/outbox.py), and trims the streams that it fills.

    the service's transaction → outbox → relay → Redis Streams → consumer groups (runtime/consumer.py)

At least once: a relay that dies after publishing publishes again, and what a Redis lost (runtime/epochs.py) is
published again from the rows, which are kept for a while. A stream is trimmed only below what every group has
acknowledged, and the relay pauses when a group lags so far that the stream would grow beyond its bound.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pydantic import Field
from redis.asyncio import Redis

from feedmesh.event.v1 import event_pb2
from runtime import epochs, metrics, migrate, postgres, process, redis
from runtime.streams import (
    AGAIN,
    EVENT,
    PARTITIONS,
    Group,
    after,
    create_group,
    entry_id,
    groups_of,
    stream_key,
    stream_keys,
)

BATCH = 500
CALM_LAG = 100
"""Events of one stream that a group may have before it while old ones are published again."""
CALM_S = 0.1
"""How long to wait for such a group before looking again."""
PRUNE_BATCH = 5_000
KEEP_MS = 60_000
"""Entries younger than this are not trimmed, so that readers without a group can follow (runtime/tail.py), and go on
where they were after a restart."""
AWAIT_EVENTS = """
DO $$ BEGIN
    FOR look IN 1..50 LOOP
        PERFORM FROM outbox WHERE published_at IS NULL LIMIT 1;
        EXIT WHEN FOUND;
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$"""
"""Ends as soon as there are events, or after half a second: looks every 10 ms at what is committed by then.

Postgres looks, which takes a third of what asking it so often takes. With a NOTIFY of the writers they would commit one
after the other: half as many a second, where each commits a single event.
"""
KEEP_LONG_MS = 10_000
"""The same of a stream that is half full, lest the relay pauses for entries that all groups have acknowledged."""
MAX_ENTRIES = 100_000
"""Of one stream, at some 100 bytes each; the relay pauses beyond it."""


class RelaySettings(postgres.PostgresSettings, redis.RedisSettings):
    """What a relay can be told."""

    outbox_retention_minutes: int = Field(default=60, ge=1, le=10_080)
    """How long events stay in the outbox: what was published within this time is published again when Redis lost it."""


@dataclass
class Relay:
    """Publishes one database's outbox as one topic."""

    pool: postgres.Pool
    client: Redis
    topic: str
    groups: tuple[str, ...]
    """Who must have acknowledged an entry before it may be trimmed."""
    retention_minutes: int
    epoch: epochs.Epoch | None = field(default=None, init=False)
    """None until the Redis is known to be this mesh's."""
    usable: bool = field(default=False, init=False)
    """Whether Redis could be used when it was last looked at."""
    paused: bool = field(default=False, init=False)

    async def detect(self) -> bool:
        """Looks whether Redis lost something, and if so has the kept events published again. Always False.

        Raises where Redis cannot be used; nothing is published then.
        """
        usable = False
        try:
            server = await redis.look(self.client)
            if reason := redis.unfit(server):
                raise RuntimeError(reason)
            self.epoch = await epochs.settle(self.pool, self.client, self.topic, self.epoch, server.run_id, self._redo)
            # One that is full is known all the same: trimming makes room in it.
            if reason := redis.full(server):
                raise RuntimeError(reason)
            usable = True
        except epochs.ForeignRedisError:
            self.epoch = None
            raise
        finally:
            self.usable = usable
            metrics.REDIS_USABLE.set(usable)
        return False

    async def _redo(self, connection: postgres.Connection) -> None:
        # The last event and not the time: the clock may have been set back since.
        await connection.execute(
            "UPDATE redis_epochs SET redo_after = 0, redo_to = (SELECT max(event_id) FROM outbox) WHERE name = %s",
            (self.topic,),
        )

    async def publish_next(self) -> bool:
        """Waits for events, half a second at the most, and publishes up to 500; True when there may be more."""
        if not self.paused and self.usable:
            async with self.pool.connection() as connection:
                await connection.execute(AWAIT_EVENTS)
        return await self.publish()

    async def publish(self) -> bool:
        """Publishes up to 500 events; True when there may be more."""
        if self.paused or not self.usable:
            return False
        async with self.pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(
                """
                SELECT event_id, partition_key, event, false FROM outbox WHERE published_at IS NULL
                ORDER BY event_id LIMIT %s FOR UPDATE SKIP LOCKED""",
                (BATCH,),
            )
            rows = await cursor.fetchall()
            await self._send(connection, rows)
        return len(rows) == BATCH

    async def republish(self) -> bool:
        """Publishes up to 500 events again that Redis may have lost; True when there may be more."""
        if self.paused or not self.usable:
            return False

        async with self.pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(
                "SELECT redo_after, redo_to FROM redis_epochs WHERE name = %s AND redo_to IS NOT NULL FOR UPDATE",
                (self.topic,),
            )
            place = await cursor.fetchone()
            if place is None:
                return False
            # Unpublished ones too: a relay may have sent them to what Redis was before, and be about to commit that.
            cursor = await connection.execute(
                """
                SELECT event_id, partition_key, event, published_at IS NOT NULL FROM outbox
                WHERE event_id > %s AND event_id <= %s ORDER BY event_id LIMIT %s""",
                (*place, BATCH),
            )
            rows = await cursor.fetchall()
            await self._send(connection, rows)
            after, to = (rows[-1][0], place[1]) if len(rows) == BATCH else (None, None)
            await connection.execute(
                "UPDATE redis_epochs SET redo_after = %s, redo_to = %s WHERE name = %s", (after, to, self.topic)
            )
            metrics.OUTBOX_REPUBLISHED.labels(self.topic).inc(len(rows))
        return after is not None

    async def republish_calmly(self) -> bool:
        """Publishes again unless a group has enough to do, so that new events wait behind some hundreds of old ones.

        True when there may be more; where a group has enough to do, only after CALM_S.
        """
        if self.paused or not self.usable:
            return False
        to_redo = "SELECT FROM redis_epochs WHERE name = %(topic)s AND redo_to IS NOT NULL"
        if not await postgres.fetch(self.pool, to_redo, {"topic": self.topic}):
            return False
        for key in stream_keys(self.topic):
            groups = await groups_of(self.client, key)
            # `tend` makes those that lack.
            if self._lacking(groups) or any((group.lag or 0) + group.pending >= CALM_LAG for group in groups):
                await asyncio.sleep(CALM_S)
                return True
        return await self.republish()

    async def _send(self, connection: postgres.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        async with self.client.pipeline(transaction=False) as pipeline:
            for event_id, key, payload, is_again in rows:
                # Serialized messages that follow each other are one message with the fields of both.
                event = event_pb2.Event(event_id=event_id).SerializeToString() + payload
                fields: dict[Any, Any] = {EVENT: event, AGAIN: b""} if is_again else {EVENT: event}
                pipeline.xadd(stream_key(self.topic, key % PARTITIONS), fields)
            await pipeline.execute()
        await connection.execute(
            "UPDATE outbox SET published_at = clock_timestamp() WHERE event_id = ANY(%s) AND published_at IS NULL",
            ([row[0] for row in rows],),
        )
        metrics.OUTBOX_PUBLISHED.labels(self.topic).inc(len(rows))

    async def tend(self) -> bool:
        """Makes lacking groups, trims what all have acknowledged, pauses or goes on. Always False."""
        longest = 0
        for key in stream_keys(self.topic) if self.epoch else ():
            groups = await groups_of(self.client, key)
            # A full Redis refuses to make one even where it is there already, and has to be trimmed all the same.
            if lacking := self._lacking(groups):
                for name in lacking:
                    await create_group(self.client, key, name)
                groups = await groups_of(self.client, key)
            await self._trim(key, groups)
            longest = max(longest, await self.client.xlen(key))
        self.paused = longest >= MAX_ENTRIES
        metrics.RELAY_PAUSED.labels(self.topic).set(self.paused)
        async with self.pool.connection() as connection:
            cursor = await connection.execute(
                """
                SELECT extract(epoch FROM clock_timestamp() - id_time(min(event_id)))
                FROM outbox WHERE published_at IS NULL"""
            )
            row = await cursor.fetchone()
        metrics.OUTBOX_AGE.labels(self.topic).set(row[0] if row and row[0] is not None else 0)
        return False

    def _lacking(self, groups: Sequence[Group]) -> set[str]:
        """Who must acknowledge and is not among a stream's groups."""
        return set(self.groups).difference(group.name for group in groups)

    async def _trim(self, key: str, groups: Sequence[Group]) -> None:
        seconds, _ = await self.client.time()
        is_long = await self.client.xlen(key) > MAX_ENTRIES // 2
        keep_from = (seconds * 1000 - (min(KEEP_MS, KEEP_LONG_MS) if is_long else KEEP_MS), 0)
        for group in groups:
            metrics.CONSUMER_LAG.labels(self.topic, group.name, key).set(
                (group.lag if group.lag is not None else -1) + group.pending
            )
            pending = await self.client.xpending(key, group.name)
            # What is pending is kept; otherwise all up to what was last delivered may go.
            first = entry_id(pending["min"]) if pending["pending"] else after(group.delivered)
            keep_from = min(keep_from, first)
        await self.client.xtrim(key, minid=f"{keep_from[0]}-{keep_from[1]}", approximate=True)

    async def prune(self) -> bool:
        """Deletes up to 5,000 events that were published long ago; True when there may be more.

        None while Redis may have lost them and they are not published again yet.
        """
        if not self.usable:
            return False
        async with self.pool.connection() as connection:
            cursor = await connection.execute(
                """
                DELETE FROM outbox WHERE event_id IN (
                    SELECT event_id FROM outbox
                    WHERE event_id < id_at(now() - make_interval(mins => %(minutes)s))
                      AND published_at < now() - make_interval(mins => %(minutes)s)
                      AND NOT EXISTS (SELECT FROM redis_epochs WHERE name = %(topic)s AND redo_to IS NOT NULL)
                    ORDER BY event_id LIMIT %(limit)s
                )""",
                {"minutes": self.retention_minutes, "topic": self.topic, "limit": PRUNE_BATCH},
            )
            return cursor.rowcount == PRUNE_BATCH


def run(name: str, settings: RelaySettings, package: str, topic: str, groups: tuple[str, ...]) -> NoReturn:
    """Relays until the process is asked to stop; with `--once`, until everything is published."""
    parser = argparse.ArgumentParser(prog=f"python -m {package}.relay")
    parser.add_argument("--once", action="store_true", help="publish what there is, then end")
    once = parser.parse_args().once

    async def serve(running: process.Process) -> None:
        async with postgres.connect(settings) as pool, redis.connect(settings, timeout_s=5) as client:
            await migrate.require(pool, package)
            await redis.require_fit(client)
            relay = Relay(pool, client, topic, groups, settings.outbox_retention_minutes)
            if once:
                await relay.detect()
                for work in (relay.tend, relay.republish, relay.publish, relay.prune):
                    while await work():
                        pass
                if relay.paused:
                    raise RuntimeError(f"events are left: a stream of {topic} is full until its groups catch up")
                return
            await asyncio.gather(
                running.every(0.5, "detect_loss", relay.detect),
                running.every(0.01, "publish", relay.publish_next),
                running.every(0.5, "republish", relay.republish_calmly),
                running.every(1, "tend_streams", relay.tend),
                running.every(10, "prune_outbox", relay.prune),
            )

    process.run(name, settings, serve)
