"""What this replica hears of new and deleted posts: the latest of it in memory, each once, for who watches (watch.py).

Where the news stand is told by a token: how many events of each partition there were, ever. So what came after a token
is known for as long as it is in memory, to every replica and after a restart: the streams keep the last minute
(relay.KEEP_MS), and a new replica begins with all that they have.

Besides, authors who wrote are forgotten by `Own`: a page goes by what is known of its viewer's own posts and has the
post service confirm it (feed.py). That is exact without any news, but would make a page twice that can be made once.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from feedmesh.event.v1 import event_pb2
from runtime import errors, ids, members, streams, tail, tokens
from runtime.tokens import Numbers
from services.timeline import metrics
from services.timeline.authors import Own

log = logging.getLogger(__name__)

TOPIC, GROUP = "post", "timeline"
STEP_S, IDLE_S = 0.02, 0.1
"""How often the streams are looked at: while somebody watches, and otherwise."""
KEPT = 20_000
"""News in memory: 0.5 KB each."""
SETTLED_S = 0.5
"""How old the knowledge of what fan-out has done may be."""
DISORDER_MS = 60_000
"""By how much a later one of the news may be older."""
COUNTED = 1_000
"""Entries that fan-out may have before it of one partition until nothing is taken for done."""


class Item(NamedTuple):
    """One piece of news."""

    partition: int
    number: int
    """Which of all events that the partition ever had."""
    event_id: int
    author_id: int
    post_id: int
    member: bytes
    """The post or share, packed; empty where it was deleted."""


@dataclass
class News:
    """Follows the topic of posts, round by round (`step`)."""

    events: Redis
    own: Own
    tell: Callable[[Sequence[Item]], None] | None = field(default=None, init=False)
    """Is called with what is new, while somebody watches."""
    tell_events: Callable[[Iterable[event_pb2.Event]], None] | None = field(default=None, init=False)
    """Is called with all that happened, before `tell`, while somebody watches."""
    tell_gap: Callable[[], None] | None = field(default=None, init=False)
    """Is called when the news go on after some were missed, while somebody watches."""
    _position: tail.Position | None = field(default=None, init=False)
    _heard: bool = field(default=False, init=False)
    """Whether all that the streams kept has been read once."""
    _next: float = field(default=0.0, init=False)
    _identity: bytes = field(default=b"", init=False)
    """Of the streams that the numbers are of."""
    _begin: Numbers = field(default=(), init=False)
    """All after these numbers is in memory."""
    _items: deque[Item] = field(default_factory=deque, init=False)
    _known: set[int] = field(default_factory=set, init=False)
    """The events of the items: an event may be published twice."""
    _settled: tuple[float, Numbers] = field(default=(0.0, ()), init=False)

    async def step(self) -> bool:
        """One round: reads what is new. True when there is more to read."""
        now = time.monotonic()
        if self.tell is None and now < self._next:
            return False
        self._next = now + IDLE_S
        try:
            if self._position is None:
                position = await tail.oldest(self.events, TOPIC)
                self._forget(position)
            assert self._position is not None
            batch = await tail.read(self.events, self._position)
        except tail.Gap as gap:
            log.debug("news of posts are missed: %s", gap)
            self._position, self._heard = None, False
            return False
        except (RedisError, OSError) as error:
            # Once Redis is back, the next look tells whether something was missed.
            log.debug("news of posts cannot be read: %r", error)
            return False
        new = self._heed(batch)
        if self.tell_events is not None:
            self.tell_events(batch.events)
        was_heard, self._heard = self._heard, self._heard or not batch.more
        if self._heard and not was_heard and self.tell_gap is not None:
            self.tell_gap()
        elif new and was_heard and self.tell is not None:
            self.tell(new)
        return batch.more

    @property
    def here(self) -> bytes:
        """The token of now. Raises Unavailable while the news are not heard."""
        return self.token(self._here)

    def token(self, numbers: Numbers) -> bytes:
        """The token of such numbers."""
        return tokens.pack(self._identity, numbers)

    @property
    def _here(self) -> Numbers:
        if self._position is None or not self._heard:
            raise errors.Unavailable("what happens cannot be heard")
        return numbers_of(self._position)

    def numbers(self, token: bytes) -> Numbers | None:
        """What a token says; None where it is not known what came since. Raises Unavailable as `here`."""
        ends, said = self._here, tokens.unpack(token)
        if said is None or said[0] != self._identity:
            return None
        known = zip(self._begin, said[1], ends, strict=True)
        return said[1] if all(begin <= number <= end for begin, number, end in known) else None

    def after(self, numbers: Numbers) -> list[Item]:
        """What came after such numbers, oldest first."""
        found: list[Item] = []
        seen = set[int]()
        for item in reversed(self._items):
            if item.number > numbers[item.partition]:
                found.append(item)
            elif len(seen := seen | {item.partition}) == streams.PARTITIONS:
                break
        return found[::-1]

    def by_authors(self, since: Mapping[int, int]) -> list[Item]:
        """What is known of authors' posts, of each above an id, oldest first."""
        # Events of several partitions are not in the order of their ids.
        lowest = min(since.values(), default=ids.MAX_ID) - (DISORDER_MS << ids.SEQUENCE_BITS)
        latest = itertools.takewhile(lambda item: item.event_id > lowest, reversed(self._items))
        return [item for item in latest if item.post_id > since.get(item.author_id, ids.MAX_ID)][::-1]

    async def settled(self) -> Numbers:
        """The numbers up to which fan-out has done its work: whoever reads a feed now misses nothing that is older.

        Raises Unavailable.
        """
        _ = self._here
        looked, numbers = self._settled
        if time.monotonic() - looked > SETTLED_S or not numbers:
            looked, identity = time.monotonic(), self._identity
            try:
                found = [await self._settled_of(partition) for partition in range(streams.PARTITIONS)]
            except (RedisError, OSError) as error:
                raise errors.Unavailable(f"Redis cannot be used: {error!r}") from None
            ends = self._here
            if identity != self._identity:
                raise errors.Unavailable("what happens cannot be heard")
            known = zip(self._begin, found, ends, strict=True)
            numbers = tuple(max(begin, min(number, end)) for begin, number, end in known)
            self._settled = (looked, numbers)
        return tuple(map(max, numbers, self._begin))

    async def _settled_of(self, partition: int) -> int:
        """How many events of a partition, from the first on, fan-out has done with."""
        key = streams.stream_key(TOPIC, partition)
        end = await tail.end(self.events, key)
        group = next((each for each in await streams.groups_of(self.events, key) if each.name == GROUP), None)
        if group is None:
            return 0
        # All below is done with: what was delivered and is acknowledged, but not what is pending.
        below = streams.after(group.delivered)
        if group.pending:
            pending = await self.events.xpending(key, GROUP)
            below = min(below, streams.entry_id(pending["min"])) if pending["pending"] else below
        # Asked for last, so that what came since the end was read counts as not done with too.
        left = await self.events.xrange(key, min=f"{below[0]}-{below[1]}", count=COUNTED) or ()
        return end.added - len(left) if len(left) < COUNTED else 0

    def _forget(self, position: tail.Position) -> None:
        self._position, self._begin, self._settled = position, numbers_of(position), (0.0, ())
        self._identity = hashlib.sha256(position.run_id.encode() + b" " + position.marker).digest()[: tokens.NAME_BYTES]
        self._items.clear()
        self._known.clear()

    def _heed(self, batch: tail.Batch) -> list[Item]:
        self._position = batch.position
        new: list[Item] = []
        for partition, number, event, is_again in batch.entries:
            if event.HasField("author_erased"):
                gone_id = event.author_erased.user_id
                self._known -= {item.event_id for item in self._items if item.author_id == gone_id}
                self._items = deque(item for item in self._items if item.author_id != gone_id)
                new = [item for item in new if item.author_id != gone_id]
            if event.event_id in self._known or (made := news_of(event)) is None:
                continue
            self.own.forget(made[0])
            if is_again:
                # Redis lost it. Whoever watches is told of the gap, and then reads what is made anew from Postgres.
                continue
            new.append(Item(partition, number, event.event_id, *made))
            self._known.add(event.event_id)
        self._items += new
        while len(self._items) > KEPT:
            gone = self._items.popleft()
            self._known.discard(gone.event_id)
            begin = [*self._begin]
            begin[gone.partition] = gone.number
            self._begin = tuple(begin)
        metrics.NEWS.inc(len(new))
        return new


def news_of(event: event_pb2.Event) -> tuple[int, int, bytes] | None:
    """Author, post and member of what an event tells; None of what is no news."""
    if event.HasField("post_created"):
        made = event.post_created
        return made.author_id, made.post_id, members.pack_one(made.post_id, made.author_id, made.original_id)
    if event.HasField("post_deleted"):
        return event.post_deleted.author_id, event.post_deleted.post_id, b""
    return None


def numbers_of(position: tail.Position) -> Numbers:
    """How many events there were up to a position."""
    return tuple(place.added for place in position.places)
