"""Consuming a topic as a group: each event is handled at least once by some member of the group.

    take new entries ─► handle ─► acknowledge        after what was written, never before
           │              │ failed
           │              ├─ a part was Unavailable: again with backoff, as long as it takes
           │              └─ anything else: again with backoff, MAX_TRIES times, then a dead letter
           └─ entries of members that died: taken over once nobody has touched them for CLAIM_MS

While one event waits for its next try the others flow on. A stream whose dead letters are full, or that has too many
events waiting, takes no new ones: a bad release stops instead of burying everything. Handlers must be idempotent and
act on the state that they read: events come twice, late and in any order.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from redis.asyncio import Redis
from redis.exceptions import DataError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from feedmesh.event.v1 import event_pb2
from runtime import errors, ids, metrics
from runtime.clock import wall_clock
from runtime.process import Process
from runtime.streams import EVENT, create_group, stream_key

log = logging.getLogger(__name__)

BATCH = 100
"""Events handed over at once, at the most."""
BLOCK_MS = 500
CLAIM_MS = 5_000
"""How long an entry may lie with a member that does not touch it: such a member has died."""
TOUCH_S = 1.0
"""How often a member says that it still has what it has."""
MAX_TRIES = 6
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.1, 5.0
MAX_DELIVERIES = 20
"""How many members may die over an entry before it is a dead letter."""
MAX_WAITING = 500
"""Events of one stream that wait for their next try."""
MAX_DEAD = 100
"""Dead letters of one stream."""
FORGOTTEN_MS = 3_600_000
"""A member that has nothing and was silent for so long is forgotten."""
REFUSALS = ("MISCONF ", "NOREPLICAS ", "MASTERDOWN ", "CLUSTERDOWN ", "TRYAGAIN ", "BUSY ")
"""How the answers of a Redis begin that takes no writes, or nothing, for now."""

Handle = Callable[[Sequence[event_pb2.Event]], Awaitable[None]]
"""Handles a batch of events. Raising says that none is known to be handled; then each is handled alone."""


class NotUnderstoodError(Exception):
    """An event whose fact this release does not know."""


@dataclass
class Waiting:
    """An event that failed."""

    payload: bytes
    tries: int
    faults: int
    """Tries that failed for another reason than that a part was away."""
    due: float
    """In seconds of `time.monotonic()`."""


def dead_key(topic: str, partition: int, group: str) -> str:
    """The dead letters of a group from one partition: a stream beside the partition's own."""
    return f"feedmesh:{{{topic}.{partition}}}:dead:{group}"


def understand(payload: bytes) -> event_pb2.Event:
    """The event of an entry. Raises NotUnderstoodError."""
    try:
        event = event_pb2.Event.FromString(payload)
    except DecodeError:
        raise NotUnderstoodError("the entry holds no event") from None
    if event.WhichOneof("fact") is None:
        raise NotUnderstoodError(f"event {event.event_id} tells a fact that this release does not know")
    return event


def passes(error: Exception) -> bool:
    """Whether a failure is some part's that is away, not the event's."""
    if isinstance(error, RedisError):
        # Redis answered, and it was no: then only for a reason that goes away.
        if isinstance(error, ResponseError):
            return isinstance(error, (OutOfMemoryError, ReadOnlyError)) or any(text in str(error) for text in REFUSALS)
        return not isinstance(error, DataError)
    return isinstance(error, OSError) or isinstance(errors.from_exception(error), errors.Unavailable)


class Consumer:
    """One member of a group, on one partition of a topic."""

    def __init__(self, client: Redis, topic: str, partition: int, group: str, handle: Handle) -> None:
        """`client` must wait longer for an answer than BLOCK_MS."""
        self._client = client
        self._topic, self._group, self._handle = topic, group, handle
        self._key, self._dead = stream_key(topic, partition), dead_key(topic, partition, group)
        self._member = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._waiting: dict[bytes, Waiting] = {}
        self._held: set[bytes] = set()
        self._stopping = asyncio.Event()
        self._touching = False
        self._dead_letters = 0
        self._last_take_over = 0.0

    async def join(self) -> None:
        """Makes the group, beginning with the stream's first entry, unless there is one. Raises RedisError."""
        await create_group(self._client, self._key, self._group)

    async def run(self, process: Process) -> None:
        """Consumes until the process is asked to stop; what is being handled is finished first."""
        self._stopping = process.stopping
        self._touching = True
        touching = asyncio.create_task(self._keep_touching())
        try:
            while not process.stopping.is_set():
                try:
                    await self.step(BLOCK_MS)
                except (RedisError, OSError) as error:
                    if "NOGROUP" in str(error):
                        await self._rejoin()
                    else:
                        log.warning("%s: %s", self._key, error)
                        await asyncio.sleep(FIRST_BACKOFF_S * 5)
        finally:
            # On Python 3.11 a cancellation can get lost in the midst of a command (bpo-37658), hence the flag.
            self._touching = False
            touching.cancel()
            await asyncio.wait([touching])
            await self._leave()

    async def step(self, block_ms: int | None = None) -> int:
        """One round: tries that are due, entries of the dead, new ones. How many events it looked at.

        Waits up to `block_ms` for new ones; None does not wait. Raises RedisError.
        """
        looked = await self._retry()
        if time.monotonic() - self._last_take_over >= TOUCH_S:
            self._last_take_over = time.monotonic()
            looked += await self._take_over()
        if self._stopping.is_set():
            return looked
        stopped = len(self._waiting) >= MAX_WAITING or (self._dead_letters >= MAX_DEAD and bool(self._waiting))
        metrics.CONSUMER_STOPPED.labels(self._topic, self._group, self._key).set(stopped)
        if stopped:
            if block_ms:
                await asyncio.sleep(block_ms / 1000)
            return looked
        if self._waiting and block_ms:
            soonest = min(waiting.due for waiting in self._waiting.values()) - time.monotonic()
            block_ms = max(1, min(block_ms, int(soonest * 1000)))
        answer: Any = await self._client.xreadgroup(
            self._group, self._member, {self._key: ">"}, count=BATCH, block=block_ms
        )
        entries = [(entry, fields.get(EVENT, b"")) for _, stream in answer or () for entry, fields in stream]
        await self._take(entries)
        return looked + len(entries)

    async def _take(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Handles entries together; where that fails, each alone."""
        if not entries:
            return
        payloads = dict(entries)
        self._held.update(payloads)
        try:
            events = []
            for entry, payload in entries:
                try:
                    events.append((entry, understand(payload)))
                except NotUnderstoodError as error:
                    await self._failed(entry, payload, error)
            try:
                if events:
                    await self._handle([event for _, event in events])
                    await self._done(events)
            except Exception as error:
                if len(events) == 1:
                    await self._failed(events[0][0], payloads[events[0][0]], error)
                    return
                for entry, _ in events:
                    if self._stopping.is_set():
                        break
                    await self._alone(entry, payloads[entry])
        finally:
            self._held.difference_update(payloads)

    async def _retry(self) -> int:
        now = time.monotonic()
        due = [(entry, waiting.payload) for entry, waiting in self._waiting.items() if waiting.due <= now]
        for entry, payload in due:
            if self._stopping.is_set():
                break
            await self._alone(entry, payload)
        return len(due)

    async def _alone(self, entry: bytes, payload: bytes) -> None:
        try:
            event = understand(payload)
            await self._handle([event])
            await self._done([(entry, event)])
        except Exception as error:
            await self._failed(entry, payload, error)

    async def _done(self, events: Sequence[tuple[bytes, event_pb2.Event]]) -> None:
        await self._client.xack(self._key, self._group, *(entry for entry, _ in events))
        now = wall_clock()
        delay = metrics.CONSUMER_DELAY.labels(self._topic, self._group)
        for entry, event in events:
            self._waiting.pop(entry, None)
            delay.observe(max(0, now - ids.time_ms(event.event_id)) / 1000)
        metrics.CONSUMER_EVENTS.labels(self._topic, self._group, "done").inc(len(events))

    async def _failed(self, entry: bytes, payload: bytes, error: Exception) -> None:
        """Lets an event wait for its next try, or buries it."""
        before = self._waiting.get(entry, Waiting(payload, 0, 0, 0.0))
        fault = not passes(error)
        tries, faults = before.tries + 1, before.faults + fault
        if fault and faults >= MAX_TRIES and await self._bury(entry, payload, tries, error):
            self._waiting.pop(entry, None)
            return
        metrics.CONSUMER_EVENTS.labels(self._topic, self._group, "retried").inc()
        log.warning(
            "an event failed and is tried again",
            extra={"stream": self._key, "entry": entry.decode(), "tries": tries, "cause": repr(error)},
        )
        backoff = min(FIRST_BACKOFF_S * 2 ** min(tries - 1, 10), LAST_BACKOFF_S)
        self._waiting[entry] = Waiting(payload, tries, faults, time.monotonic() + backoff)

    async def _bury(self, entry: bytes, payload: bytes, tries: int, error: Exception) -> bool:
        """Makes an entry a dead letter. False where there are too many, or Redis cannot take it now."""
        try:
            return await self._try_to_bury(entry, payload, tries, error)
        except (RedisError, OSError) as refusal:
            # It waits on; the others are not to wait for it.
            log.warning("%s: %s", self._dead, refusal)
            return False

    async def _try_to_bury(self, entry: bytes, payload: bytes, tries: int, error: Exception) -> bool:
        """In one step with its acknowledgement. Raises RedisError."""
        self._dead_letters = await self._client.xlen(self._dead)
        if self._dead_letters >= MAX_DEAD:
            log.error(
                "%s: its dead letters are full: it takes no new events until some are retried or dropped", self._key
            )
            return False
        async with self._client.pipeline(transaction=True) as pipeline:
            pipeline.xadd(self._dead, {EVENT: payload, b"tries": tries, b"error": repr(error)[:1000]})
            pipeline.xack(self._key, self._group, entry)
            await pipeline.execute()
        self._dead_letters += 1
        metrics.DEAD_LETTERS.labels(self._topic, self._group, self._key).set(self._dead_letters)
        metrics.CONSUMER_EVENTS.labels(self._topic, self._group, "dead").inc()
        log.error(
            "an event is a dead letter now",
            extra={"stream": self._dead, "entry": entry.decode(), "tries": tries, "cause": repr(error)},
        )
        return True

    async def _take_over(self) -> int:
        """Takes over entries of members that died; one that was delivered too often is likely to be why."""
        self._dead_letters = await self._client.xlen(self._dead)
        metrics.DEAD_LETTERS.labels(self._topic, self._group, self._key).set(self._dead_letters)
        if len(self._waiting) >= MAX_WAITING:
            return 0
        found = await self._client.xpending_range(self._key, self._group, min="-", max="+", count=BATCH, idle=CLAIM_MS)
        deliveries = {
            each["message_id"]: int(each["times_delivered"])
            for each in found
            if each["message_id"] not in self._waiting and each["message_id"] not in self._held
        }
        # Once, it may have been anything. Whoever dies again tells which one it is, if each is taken and handled alone.
        suspects = [entry for entry, times in deliveries.items() if times > 1]
        entries = await self._claim([entry for entry, times in deliveries.items() if times <= 1])
        taken = len(entries)
        await self._take(entries)
        for suspect in suspects:
            if self._stopping.is_set():
                break
            entries = await self._claim([suspect])
            taken += len(entries)
            if deliveries[suspect] < MAX_DELIVERIES:
                await self._take(entries)
                continue
            for entry, payload in entries:
                # Never handled again: where it cannot be buried, it is left as it is.
                await self._bury(entry, payload, deliveries[suspect], RuntimeError("whoever handled it died"))
        return taken

    async def _claim(self, entries: list[Any]) -> list[tuple[bytes, bytes]]:
        """Takes over those of the entries that nobody touched meanwhile."""
        if not entries:
            return []
        claimed: Any = await self._client.xclaim(self._key, self._group, self._member, CLAIM_MS, entries)
        return [(entry, fields.get(EVENT, b"")) for entry, fields in claimed if fields is not None]

    async def _keep_touching(self) -> None:
        """Says again and again that what this member has is not to be taken over."""
        while self._touching:
            await asyncio.sleep(TOUCH_S)
            try:
                await self._touch([*self._held.difference(self._waiting)])
                # Their handler came back, if with an error: nobody has died of them.
                await self._touch([*self._waiting], retrycount=1)
            except (RedisError, OSError):
                continue

    async def _touch(self, entries: list[Any], retrycount: int | None = None, idle: int | None = None) -> None:
        if entries:
            await self._client.xclaim(
                self._key, self._group, self._member, 0, entries, idle=idle, retrycount=retrycount, justid=True
            )

    async def _rejoin(self) -> None:
        try:
            await self.join()
        except (RedisError, OSError) as error:
            log.warning("%s: %s", self._key, error)
            await asyncio.sleep(FIRST_BACKOFF_S * 5)

    async def _leave(self) -> None:
        """Is no member any more, unless it leaves something behind: that waits for the others."""
        try:
            # To be taken over at once.
            await self._touch([*self._waiting], retrycount=1, idle=CLAIM_MS)
            for each in await self._client.xinfo_consumers(self._key, self._group):
                own = each["name"] == self._member.encode()
                if not each["pending"] and (own or each["idle"] > FORGOTTEN_MS):
                    await self._client.xgroup_delconsumer(self._key, self._group, each["name"])
        except (RedisError, OSError):
            log.info("%s: left without a word", self._key)


async def dead_letters(client: Redis, topic: str, partition: int, group: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """All dead letters of a partition, oldest first: entry id and fields. Raises RedisError."""
    found: Any = await client.xrange(dead_key(topic, partition, group))
    return [(entry, fields) for entry, fields in found]


async def revive(client: Redis, topic: str, partition: int, group: str, entry: bytes, payload: bytes) -> None:
    """Puts a dead letter back at the end of its stream, in one step; other groups see it again. Raises RedisError."""
    async with client.pipeline(transaction=True) as pipeline:
        pipeline.xadd(stream_key(topic, partition), {EVENT: payload})
        pipeline.xdel(dead_key(topic, partition, group), entry)
        await pipeline.execute()


async def drop(client: Redis, topic: str, partition: int, group: str, entry: bytes) -> None:
    """Removes a dead letter for good. Raises RedisError."""
    await client.xdel(dead_key(topic, partition, group), entry)
