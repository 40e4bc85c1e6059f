"""Timelines in Redis: every key, cap and format of the service. Not what is done with them: skeleton.py, deliver.py.

A *home timeline* is a list of what was pushed to one viewer, an *author timeline* of what one author wrote. Either is
there only while somebody reads: a push touches only a list that exists, so whoever has not read for a while costs
nothing. A list is one string of packed members (runtime/members.py), oldest first, each once, so that a read takes as
many of the newest as it wants without a look at the others, and a push writes one member behind them.

Every list says what it covers. Its head holds

- the *floor*: all that belongs into the list and has a higher id is in it, once the events so far are handled. Below
  it, Postgres knows;
- the *epoch* (epoch.py) that it was made in. Under a later one it counts as gone;
- the *horizon*: the follow id up to which the list holds the posts of those whom the viewer follows (home only). What
  was followed later is merged by the next read;
- the *incarnation*: which making (or mending) of the list this is. What was read from Postgres for one is not put into
  another;
- the *bound* above which a new member goes to the end, and how many members there are.

Nothing that people do takes anything out of a list: what was unfollowed or deleted is filtered by the read. Only the
auditor does, of what Postgres never had, and an erasure. So a list with the same head is the same list, and whoever has
it is not sent it again.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from redis.asyncio import Redis

from runtime import ids, members, redis
from runtime.members import Members
from runtime.redis import bulk, command

BUCKETS = 64
"""Slots of a Redis Cluster that timelines are spread over, by user id. Changing it makes all lists anew."""
CAP = 800
"""Members of a list: four windows of a feed."""
SLACK = 100
"""How many more it may hold before it is trimmed, so that not every push trims."""
AUTHOR_TTL_S = 86_400
"""How long an author timeline lives that nobody reads."""
PUSH_CALLS = 20
"""Calls of one round trip."""
PUSH_KEYS = 500
MERGE_KEYS = 50
"""Lists of one call: it holds the server up for 2 ms, or 30 ms."""
SCANNED = 500
"""Keys of Redis that one step of a scan looks at."""
NOTHING = ids.MAX_ID
"""The floor of a list that covers nothing, because it is being built."""
ID_BYTES = 7
HEAD_BYTES = 2 * members.MEMBER_BYTES
ID_DIGITS = 16
"""Of an id in a key: all keys of a kind have one length."""
HOMES = "feedmesh:{timeline.??}:home:" + ID_DIGITS * "?"
"""All home timelines, as a pattern of Redis; not those of an earlier release, whose ids had fewer digits."""
ALL = "feedmesh:{timeline.*}:*"
"""All home and author timelines."""

LIBRARY = redis.Library(Path(__file__).with_name("timelines.lua"))
VERSION = LIBRARY.version


Rows = Members | Sequence[tuple[int, int, int]]
Ids = npt.NDArray[np.int64]
Kind = Literal["home", "author"]


@dataclass(frozen=True)
class Timeline:
    """A list as it was at one moment."""

    rows: Members
    """Shape (n, 3), newest first, each once; all above the floor, where the list covers anything."""
    floor: int
    epoch: int
    horizon: int
    incarnation: int
    whole: bool = True
    """Whether the rows are all that the list holds, and not only its newest."""
    head: bytes = b""
    """As it is stored, if it was read."""

    @property
    def covers_nothing(self) -> bool:
        """Whether it is being built, or its builder died."""
        return self.floor == NOTHING

    @property
    def covered_above(self) -> int:
        """The id above which the rows are all that belongs into the list: the floor, if they were not cut above it."""
        return self.floor if self.whole else int(self.rows[-1, 0]) - 1


def bucket(user_id: int) -> int:
    """The bucket of a user's timelines."""
    # Neighbouring ids differ in their low bits, and those are a sequence's: spread enough.
    return user_id % BUCKETS


def key_of(kind: Kind, user_id: int) -> str:
    """A timeline of a user."""
    return f"feedmesh:{{timeline.{bucket(user_id):02}}}:{kind}:{user_id:0{ID_DIGITS}}"


def home_key(user_id: int) -> str:
    """The home timeline of a viewer."""
    return key_of("home", user_id)


def author_key(user_id: int) -> str:
    """The author timeline of an author."""
    return key_of("author", user_id)


def user_of(key: bytes) -> int:
    """Whose a timeline is."""
    return int(key.rpartition(b":")[2])


def decode(stored: Sequence[bytes | None]) -> list[Timeline | None]:
    """Lists as the functions give them: a head, two members long, and members."""
    if not any(stored):
        return [None for _ in stored]
    lengths = [len(each or b"") // members.MEMBER_BYTES for each in stored]
    # One array for all: there are hundreds in a batch of feeds.
    records = members.unpack(b"".join(filter(None, stored)))
    timelines: list[Timeline | None] = []
    end = 0
    for each, length in zip(stored, lengths, strict=True):
        if not each:
            timelines.append(None)
            continue
        begin, end = end, end + length
        (floor, epoch, horizon), (incarnation, _, count) = records[begin : begin + 2].tolist()
        # What covers nothing is whole: there is nothing that could lack.
        whole = floor == NOTHING or length - 2 == count
        timelines.append(
            Timeline(records[begin + 2 : end][::-1], floor, epoch, horizon, incarnation, whole, each[:HEAD_BYTES])
        )
    return timelines


def oldest_first(rows: Rows) -> bytes:
    """Rows in any order, perhaps repeated, as the functions take them."""
    if isinstance(rows, np.ndarray):
        _, first = np.unique(rows[:, 0], return_index=True)
        return members.pack(rows[first])
    by_id = {row[0]: row for row in rows}
    return members.pack([by_id[post_id] for post_id in sorted(by_id)])


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

    async def read(self, key: str, *, newest: int | None = None, renewed: bool = True) -> Timeline | None:
        """One list, or None: see `read_all`."""
        return (await self.read_all({key: newest}, renewed=renewed))[0]

    async def read_all(
        self,
        newest: Mapping[str, int | None],
        *,
        known: Mapping[str, Timeline] = MappingProxyType({}),
        renewed: bool = True,
    ) -> list[Timeline | None]:
        """Many lists, in one round trip to each server: for each key that many (at least 1) of its newest members, or
        with None all.

        Those that are still as they are `known`, by a read of as many, are these very objects. Their lives are renewed,
        unless that is not wanted.
        """
        if not newest:
            return []
        function = f"read_{VERSION}".encode()
        commands = [
            command(
                *(b"FCALL", function, 1, key.encode()),
                *(self._ttl(key) if renewed else 0, most or 0, known[key].head if key in known else b""),
            )
            for key, most in newest.items()
        ]
        stored = await LIBRARY.within(self.client, partial(redis.exchange, self.client, commands))
        same = {
            at: known[key]
            for at, (key, each) in enumerate(zip(newest, stored, strict=True))
            if key in known and each == known[key].head
        }
        found = decode([None if at in same else each for at, each in enumerate(stored)])
        return [same.get(at, each) for at, each in enumerate(found)]

    async def create(self, key: str, epoch: int, *, replaced: int = 0) -> Timeline:
        """Makes a list that covers nothing, from now on open to pushes, unless there is one of this epoch or later.

        `replaced` is the incarnation of a list to be made anew. Gives the list that there is now, without its rows: it
        is to be built where it covers nothing and is of this epoch.
        """
        incarnation = secrets.randbits(52) + 1
        head = await self._call("create", [key], seven(epoch), seven(incarnation), seven(replaced), self._ttl(key))
        made = decode([head])[0]
        assert made is not None
        return made

    async def fill(self, key: str, incarnation: int, rows: Rows, floor: int, horizon: int) -> bool:
        """Completes what `create` made with rows (at most 800) that were read after it. False where it is gone."""
        arguments = (seven(incarnation), oldest_first(rows), seven(floor), seven(horizon), self._ttl(key))
        return bool(await self._call("fill", [key], *arguments, self.cap, self.slack))

    async def merge(
        self, keys: Sequence[str], rows: Rows, down_to: int, *, incarnation: int = 0, horizon: int = 0
    ) -> int:
        """Adds an author's rows (at most 800) to lists that are there; above `down_to` the author wrote nothing else.

        The keys are of one bucket. With an incarnation only to that one. How many lists it found.
        """
        arguments = (seven(incarnation), oldest_first(rows), seven(down_to), seven(horizon), self.cap, self.slack)
        found = 0
        for at in range(0, len(keys), MERGE_KEYS):
            found += await self._call("merge", keys[at : at + MERGE_KEYS], *arguments)
        return found

    async def push(self, kind: Kind, pushes: Sequence[tuple[Sequence[int] | Ids, Rows]]) -> int:
        """Adds rows (at most 100 a push) to those of the users' lists that are there. How many rows found a list.

        All pushes go together: what one list gets of several is added in one step.
        """
        calls = push_commands(kind, pushes, bulk(self.cap) + bulk(self.slack))
        found = 0
        for at in range(0, len(calls), PUSH_CALLS):
            some = partial(redis.exchange, self.client, calls[at : at + PUSH_CALLS])
            found += sum(await LIBRARY.within(self.client, some))
        return found

    # For the auditor, the operator, and erasures.

    async def homes(self) -> AsyncIterator[tuple[str, Timeline]]:
        """All home timelines with their keys, none renewed. One that is there all the time comes at least once."""
        cursor, more = 0, True
        while more:
            cursor, found = await self.scan(HOMES, cursor)
            # A scan may tell of one twice.
            keys = dict.fromkeys(key.decode() for key in found)
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
        packed = [oldest_first(list(each)) for each in (removed, added)]
        another = seven(secrets.randbits(52) + 1)
        return bool(await self._call("mend", [key], seven(incarnation), *packed, self.cap, self.slack, another))

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

        return await LIBRARY.within(self.client, call)


def push_commands(kind: Kind, pushes: Sequence[tuple[Sequence[int] | Ids, Rows]], limits: bytes) -> list[bytes]:
    """The calls of `push` for all pushes, in the protocol of Redis.

    By hand, as a client takes 1.5 µs a key, half of what Redis itself takes for it.
    """
    user_ids, sets, packed = by_user(pushes)
    if not len(user_ids):
        return []
    buckets = user_ids % BUCKETS
    order = np.lexsort((sets, buckets))
    user_ids, sets, buckets = user_ids[order], sets[order], buckets[order]
    # No call spans buckets, as no command spans slots; and within a call who gets the same is together.
    places = np.arange(len(user_ids))
    call_of = buckets * len(user_ids) + (places - np.searchsorted(buckets, buckets)) // PUSH_KEYS
    begins = np.flatnonzero(np.diff(call_of, prepend=-1) | np.diff(sets, prepend=-1))
    runs = zip(
        call_of[begins].tolist(),
        sets[begins].tolist(),
        begins.tolist(),
        [*begins[1:].tolist(), len(user_ids)],
        strict=True,
    )
    keys = packed_keys(kind, user_ids)
    text, length = keys.tobytes(), keys.shape[1]
    name = bulk(b"FCALL") + bulk(f"push_{VERSION}".encode())
    calls = []
    for _, together in groupby(runs, key=itemgetter(0)):
        some = list(together)
        begin, end = some[0][2], some[-1][3]
        call = [b"*%d\r\n" % (end - begin + 2 * len(some) + 5), name, bulk(end - begin)]
        call += (text[begin * length : end * length], limits)
        for _, its, first, last in some:
            call += (bulk(last - first), packed[its])
        calls.append(b"".join(call))
    return calls


def by_user(pushes: Sequence[tuple[Sequence[int] | Ids, Rows]]) -> tuple[Ids, Ids, list[bytes]]:
    """Who gets what: the users, each once; for each the place of what they get among the third, which is packed."""
    to = [np.asarray(user_ids, dtype=np.int64) for user_ids, _ in pushes]
    user_ids = np.concatenate([EMPTY[:, 0], *to])
    pushed = np.repeat(np.arange(len(to)), [len(each) for each in to])
    order = np.lexsort((pushed, user_ids))
    user_ids, pushed = user_ids[order], pushed[order]
    begins = np.flatnonzero(np.diff(user_ids, prepend=-1))
    ends = np.append(begins[1:], len(user_ids))
    packed = [bulk(oldest_first(rows)) for _, rows in pushes]
    sets = pushed[begins]
    # Who gets several pushes is named once, with the rows of all of them.
    known: dict[bytes, int] = {}
    for at in np.flatnonzero(ends - begins > 1).tolist():
        several = pushed[begins[at] : ends[at]]
        place = known.get(several.tobytes())
        if place is None:
            place = known[several.tobytes()] = len(packed)
            rows = np.concatenate([np.asarray(pushes[each][1], dtype=np.int64).reshape(-1, 3) for each in several])
            packed.append(bulk(oldest_first(rows)))
        sets[at] = place
    return user_ids[begins], sets, packed


def packed_keys(kind: Kind, user_ids: Ids) -> npt.NDArray[np.uint8]:
    """The keys of users' lists in the protocol of Redis: shape (n, bytes of one)."""
    one = bulk(key_of(kind, 0).encode())
    keys = np.tile(np.frombuffer(one, dtype=np.uint8), (len(user_ids), 1))
    at = one.index(b".") + 1
    keys[:, at : at + 2] = DIGITS[user_ids % BUCKETS, 2:]
    for place in range(ID_DIGITS // 4):
        at = len(one) - 6 - 4 * place
        keys[:, at : at + 4] = DIGITS[user_ids // 10_000**place % 10_000]
    return keys


def seven(number: int) -> bytes:
    """An integer as the functions take it: seven bytes."""
    return number.to_bytes(ID_BYTES, "big")


EMPTY: Members = np.empty((0, 3), dtype=np.int64)
DIGITS = np.array([f"{number:04}".encode() for number in range(10_000)]).view(np.uint8).reshape(10_000, 4)
"""The four digits of a number."""
