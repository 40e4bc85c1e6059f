"""Timelines in Redis: every key, cap and format of the service. Not what is done with them: skeleton.py, deliver.py.

A *home timeline* is a list of what was pushed to one viewer, an *author timeline* of what one author wrote. Either is
there only while somebody reads: a push touches only a list that exists, so whoever has not read for a while costs
nothing. Members are packed (runtime/members.py), in no order and perhaps repeated; a reader sorts them.

Every list says what it covers. Its last element, the tail, holds

- the *floor*: all that belongs into the list and has a higher id is in it, once the events so far are handled. Below
  it, Postgres knows;
- the *epoch* (epoch.py) that it was made in. Under a later one it counts as gone;
- the *horizon*: the follow id up to which the list holds the posts of those whom the viewer follows (home only). What
  was followed later is merged by the next read;
- the *incarnation*: which making of the list this is. What was read from Postgres for one is not put into another.

Nothing that people do takes anything out of a list: what was unfollowed or deleted is filtered by the read. Only the
auditor does, of what Postgres never had, and an erasure.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from runtime import ids, members
from runtime.members import Members

BUCKETS = 64
"""Slots of a Redis Cluster that timelines are spread over, by user id. Changing it makes all lists anew."""
CAP = 800
"""Members of a list: four windows of a feed."""
SLACK = 200
"""How many more it may hold before it is trimmed, so that not every push trims."""
AUTHOR_TTL_S = 86_400
"""How long an author timeline lives that nobody reads."""
PUSH_KEYS = 500
MERGE_KEYS = 50
"""Lists of one call: it holds the server up for 1 ms, or 30 ms."""
SCANNED = 500
"""Keys of Redis that one step of a scan looks at."""
PUSH_CALLS = 500
"""Calls of one round trip."""
NOTHING = ids.MAX_ID
"""The floor of a list that covers nothing, because it is being built."""
HOMES = "feedmesh:{timeline.*}:home:*"
"""All home timelines, as a pattern of Redis."""
ALL = "feedmesh:{timeline.*}:*"
"""All home and author timelines."""
ID_BYTES = 7
TAIL_BYTES = 4 * ID_BYTES

SOURCE = Path(__file__).with_name("timelines.lua").read_text()
VERSION = hashlib.sha256(SOURCE.encode()).hexdigest()[:12]


Rows = Members | Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Timeline:
    """A list as it was at one moment."""

    rows: Members
    """Shape (n, 3), as stored: in no order, perhaps repeated."""
    floor: int
    epoch: int
    horizon: int
    incarnation: int

    @property
    def covers_nothing(self) -> bool:
        """Whether it is being built, or its builder died."""
        return self.floor == NOTHING


def bucket(user_id: int) -> int:
    """The bucket of a user's timelines."""
    # Neighbouring ids differ in their low bits, and those are a sequence's: spread enough.
    return user_id % BUCKETS


def home_key(user_id: int) -> str:
    """The home timeline of a viewer."""
    return f"feedmesh:{{timeline.{bucket(user_id)}}}:home:{user_id}"


def author_key(user_id: int) -> str:
    """The author timeline of an author."""
    return f"feedmesh:{{timeline.{bucket(user_id)}}}:author:{user_id}"


def user_of(key: bytes) -> int:
    """Whose a timeline is."""
    return int(key.rpartition(b":")[2])


def decode(stored: bytes) -> Timeline:
    """A list as the functions give it: members and tail in one string."""
    packed, tail = stored[:-TAIL_BYTES], stored[-TAIL_BYTES:]
    numbers = (int.from_bytes(tail[at : at + ID_BYTES], "big") for at in range(0, TAIL_BYTES, ID_BYTES))
    return Timeline(members.unpack(packed), *numbers)


@dataclass(frozen=True)
class Timelines:
    """The functions of timelines.lua, called. Every method raises RedisError."""

    client: Redis
    active_s: int = 0
    """How long a home timeline lives that nobody reads. Only who reads need say it."""
    cap: int = CAP
    slack: int = SLACK

    def cut(self, rows: Members) -> tuple[Members, int]:
        """The newest of rows that are newest first, as many as a list holds, and the floor that they leave.

        The floor is 0 where these are all, so ask for one more than `cap`.
        """
        return (rows[: self.cap], int(rows[self.cap, 0])) if len(rows) > self.cap else (rows, 0)

    async def read(self, key: str, *, renewed: bool = True) -> Timeline | None:
        """One list, or None. Its life is renewed, unless that is not wanted."""
        stored = await self._call("read", [key], self._ttl(key) if renewed else 0)
        return None if stored is None else decode(stored)

    async def read_all(self, keys: Sequence[str], *, renewed: bool = True) -> list[Timeline | None]:
        """Many lists, in one round trip to each server. Their lives are renewed, unless that is not wanted."""
        if not keys:
            return []

        async def work() -> list[bytes | None]:
            async with self.client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.fcall(f"read_{VERSION}", 1, key, self._ttl(key) if renewed else 0)
                return list(await pipeline.execute())

        found = await self._with_functions(work)
        return [None if stored is None else decode(stored) for stored in found]

    async def create(self, key: str, epoch: int, *, replaced: int = 0) -> Timeline:
        """Makes a list that covers nothing, from now on open to pushes, unless there is one of this epoch or later.

        `replaced` is the incarnation of a list to be made anew. Gives the tail of the list that there is now, no rows:
        it is to be built where it covers nothing and is of this epoch.
        """
        incarnation = secrets.randbits(52) + 1
        tail = await self._call("create", [key], seven(epoch), seven(incarnation), seven(replaced), self._ttl(key))
        return decode(tail)

    async def fill(self, key: str, incarnation: int, rows: Members, floor: int, horizon: int) -> bool:
        """Completes what `create` made with rows (at most 800) that were read after it. False where it is gone."""
        return bool(
            await self._call(
                "fill",
                [key],
                seven(incarnation),
                members.pack(rows),
                seven(floor),
                seven(horizon),
                self._ttl(key),
                self.cap,
            )
        )

    async def merge(
        self, keys: Sequence[str], rows: Members, down_to: int, *, incarnation: int = 0, horizon: int = 0
    ) -> int:
        """Adds an author's rows (at most 800) to lists that are there; above `down_to` the author wrote nothing else.

        The keys are of one bucket. With an incarnation only to that one. How many lists it found.
        """
        found = 0
        for at in range(0, len(keys), MERGE_KEYS):
            found += await self._call(
                "merge",
                keys[at : at + MERGE_KEYS],
                seven(incarnation),
                members.pack(rows),
                seven(down_to),
                seven(horizon),
                self.cap,
            )
        return found

    async def push(self, pushes: Iterable[tuple[Iterable[str], Rows]]) -> int:
        """Adds rows (at most 100 a push) to those of the lists that are there. How many rows found a list.

        All pushes go together, in a few round trips: a call for each bucket of each, as no command spans slots.
        """
        calls: list[tuple[list[str], bytes]] = []
        for keys, rows in pushes:
            by_slot: dict[str, list[str]] = {}
            for key in keys:
                by_slot.setdefault(key[: key.index("}")], []).append(key)
            packed = members.pack(rows)
            for together in by_slot.values():
                calls += [(together[at : at + PUSH_KEYS], packed) for at in range(0, len(together), PUSH_KEYS)]

        async def send(some: Sequence[tuple[list[str], bytes]]) -> int:
            async with self.client.pipeline(transaction=False) as pipeline:
                for together, packed in some:
                    pipeline.fcall(f"push_{VERSION}", len(together), *together, packed, self.cap, self.slack)
                found: list[int] = await pipeline.execute()
            return sum(
                lists * len(packed) // members.MEMBER_BYTES for lists, (_, packed) in zip(found, some, strict=True)
            )

        return sum(
            [
                await self._with_functions(lambda at=at: send(calls[at : at + PUSH_CALLS]))  # type: ignore[misc]
                for at in range(0, len(calls), PUSH_CALLS)
            ]
        )

    # For the auditor, the operator, and erasures.

    async def homes(self) -> AsyncIterator[tuple[str, Timeline]]:
        """All home timelines with their keys, none renewed. One that is there all the time comes at least once."""
        cursor, more = 0, True
        while more:
            cursor, found = await self.scan(HOMES, cursor)
            keys = [key.decode() for key in found]
            for key, timeline in zip(keys, await self.read_all(keys, renewed=False), strict=True):
                if timeline is not None:
                    yield key, timeline
            more = cursor != 0

    async def mend(
        self,
        key: str,
        incarnation: int,
        *,
        removed: Collection[tuple[int, int, int]],
        added: Collection[tuple[int, int, int]],
    ) -> bool:
        """Takes members out of a list and puts others in (at most 1,000), in one step. False where it is gone."""
        packed = [members.pack(each) for each in (removed, added)]
        return bool(await self._call("mend", [key], seven(incarnation), *packed, self.cap, self.slack))

    async def ends_at(self, key: str) -> int:
        """When a list's life ends, in milliseconds since 1970; below 0 where there is none, or no end."""
        return int(await self.client.pexpiretime(key))

    async def end_at(self, key: str, ms: int) -> None:
        """Lets a list's life end at a time, in milliseconds since 1970, if it would end later."""
        await self.client.pexpireat(key, ms, lt=True)

    async def drop(self, keys: Sequence[str | bytes]) -> int:
        """Removes lists, so that the next read builds them; how many there were."""
        async with self.client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.unlink(key)
            return sum(await pipeline.execute())

    async def scan(self, pattern: str, cursor: int, count: int = SCANNED) -> tuple[int, list[bytes]]:
        """The next of all lists whose keys match, around `count` keys of Redis further on; the cursor is 0 at the end.

        Lists that are there all the time come at least once.
        """
        cursor, keys = await self.client.scan(cursor, match=pattern, count=count)
        return int(cursor), [key for key in keys if isinstance(key, bytes)]

    def _ttl(self, key: str) -> int:
        return self.active_s if ":home:" in key else AUTHOR_TTL_S

    async def _call(self, function: str, keys: Sequence[str], *arguments: bytes | int) -> Any:
        async def call() -> Any:
            return await self.client.fcall(f"{function}_{VERSION}", len(keys), *keys, *arguments)

        return await self._with_functions(call)

    async def _with_functions(self, work: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await work()
        except ResponseError as error:
            if "Function not found" not in str(error):
                raise
            # A server that is new, or came back without its memory.
            await self.client.function_load(SOURCE.replace("VERSION", VERSION), replace=True)
            return await work()


def seven(number: int) -> bytes:
    """An integer as the functions take it: seven bytes."""
    return number.to_bytes(ID_BYTES, "big")


EMPTY: Members = np.empty((0, 3), dtype=np.int64)
