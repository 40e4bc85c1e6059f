"""WatchFeed: who watches which feed, and who is told what of the news.

    caller ── begins and ends watchers ──► Stream ◄── events, each for many watchers ── Watches ◄── News
                                                                                          ▲
    topic `graph` ── who follows whom anew, blocks, private accounts ─────────────────────┘

Besides posts, it is told whose posts on screen have changed (facts.py), and whose notifications.

What is told is where to look. What of it somebody may see and wants to, show.py decides when it is shown, by relations
as of then: so nobody is shown what was hidden from them after it was told.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from feedmesh.event.v1 import event_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from runtime import errors, tail
from runtime.relations import Relation, Relations
from runtime.tokens import Numbers
from services.timeline import metrics
from services.timeline.facts import changed_by, concerned_by, hidden_by, parted_by
from services.timeline.news import Item, News
from services.timeline.notifications import READ_KEY

log = logging.getLogger(__name__)

GRAPH_TOPIC = "graph"
FOLLOWS_S = 0.1
"""How often it is looked at who follows whom anew."""
COUNTS_S = 0.5
"""How often it is told at the most that a post on screens has changed, or somebody's notifications."""
HIDDEN_S = 0.3
"""After how long an account that became private is so for the post service too: it knows people for a quarter of a
second."""
MAX_MARKS = 1_000
"""People who read their notifications, that are heard of at once."""
MAX_CHANGED = 2_000
"""Posts that are told at once to have changed."""
HERE_S = 1.0
"""How often all watchers are told where they are."""
BEGUN = 200
"""Watchers that begin, and people whose relations are asked for, at once."""
RELATIONS_TIMEOUT_S = 2.0
AGAIN_S = 0.5
"""After how long it is tried again to begin watchers that could not."""
MAX_WATCHERS = 50_000
"""Of one replica: some 8 KB each for who follows 200."""
MAX_UNREAD = 10_000
"""Events that may wait for a stream's caller."""
TOLD, NAMED = 500, 50_000
"""Events of one message; and watchers whom they name, besides those of one event."""

Event = pb.WatchFeedResponse.Event


@dataclass(eq=False)
class Watcher:
    """One who is told what comes into one person's home feed."""

    number: int
    """The caller's name for it."""
    user_id: int
    stream: Stream
    relation: Relation
    on_screen: frozenset[int] = frozenset()
    """Posts."""

    @property
    def author_ids(self) -> list[int]:
        """Whose posts may stand in the feed."""
        return [*self.relation.following.tolist(), self.user_id]


@dataclass(eq=False)
class Stream:
    """A caller's stream: its watchers, and what they have still to be told."""

    watchers: dict[int, Watcher] = field(default_factory=dict)
    _unread: asyncio.Queue[Event] = field(default_factory=lambda: asyncio.Queue(MAX_UNREAD))
    _ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    room: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while few events wait: then watchers may begin, who bring many at once."""

    def __post_init__(self) -> None:
        self.room.set()

    def put(self, event: Event) -> None:
        """Tells an event. A caller who reads too slowly is told nothing more."""
        if not self._ended.done():
            try:
                self._unread.put_nowait(event)
            except asyncio.QueueFull:
                self.end(errors.Unavailable("the caller reads too slowly"))
            if self._unread.qsize() > MAX_UNREAD // 2:
                self.room.clear()

    def end(self, error: Exception) -> None:
        """Ends the stream, whatever is unread."""
        if not self._ended.done():
            self._ended.set_exception(error)

    async def messages(self) -> AsyncGenerator[pb.WatchFeedResponse, None]:
        """What is told, as much together as there is. Raises what the stream ends with."""
        while True:
            waiting = asyncio.ensure_future(self._unread.get())
            try:
                await asyncio.wait((waiting, self._ended), return_when=asyncio.FIRST_COMPLETED)
                if self._ended.done():
                    self._ended.result()
                events = [waiting.result()]
                named = len(events[0].watcher_ids)
                while not self._unread.empty() and len(events) < TOLD and named < NAMED:
                    events.append(self._unread.get_nowait())
                    named += len(events[-1].watcher_ids)
                if self._unread.qsize() <= MAX_UNREAD // 2:
                    self.room.set()
                yield pb.WatchFeedResponse(events=events)
            finally:
                waiting.cancel()


class Watches:
    """All watchers of this replica."""

    def __init__(self, news: News, relations: Relations, stores: Redis) -> None:
        self._news = news
        self._relations = relations
        self._stores = stores
        self._position: tail.Position | None = None
        self._streams: set[Stream] = set()
        self._by_author: dict[int, set[Watcher]] = {}
        self._by_user: dict[int, set[Watcher]] = {}
        self._on_screen: dict[int, set[Watcher]] = {}
        """By post."""
        self._changed: dict[int, None] = {}
        """Posts on screens that are to be told of, those that wait for longest first."""
        self._concerned: set[int] = set()
        """People who are to be told that their notifications may have changed."""
        self._marks_after = ""
        """Up to where it was heard who read their notifications."""
        self._hidden: deque[tuple[float, int]] = deque()
        """When it is to be told that what may be seen of an author's has changed, and of whom; in this order."""
        self._begun: set[int] = set()
        """People who began to be told, whom they follow being known from just before."""
        self._count = 0
        metrics.WATCHERS.set_function(lambda: self._count)

    async def watch(self, requests: AsyncIterable[pb.WatchFeedRequest]) -> AsyncGenerator[pb.WatchFeedResponse, None]:
        """One caller's stream. Raises Unavailable when it reads too slowly or the news cannot be heard."""
        stream = Stream()
        self._streams.add(stream)
        self._news.tell, self._news.tell_gap = self._tell, self._tell_gap
        self._news.tell_events = self._heed

        async def read() -> None:
            try:
                async for request in requests:
                    for number in request.end:
                        self._leave(stream, number)
                    if self._count + len(request.begin) > MAX_WATCHERS:
                        raise errors.Unavailable("this replica has as many watchers as it takes")
                    waiting = iter(request.begin)
                    # Not all at once: others wait meanwhile.
                    while some := list(itertools.islice(waiting, BEGUN)):
                        await stream.room.wait()
                        await self._begin(stream, some)
                    for screen in request.screens:
                        if (watcher := stream.watchers.get(screen.watcher_id)) is not None:
                            self._put_on_screen(watcher, screen.post_ids)
            except Exception as error:
                stream.end(error)

        reading = asyncio.create_task(read())
        try:
            async for message in stream.messages():
                yield message
        finally:
            reading.cancel()
            for number in [*stream.watchers]:
                self._leave(stream, number)
            self._streams.discard(stream)
            if not self._streams:
                self._news.tell = self._news.tell_gap = None
                self._news.tell_events = None

    async def say_where(self) -> bool:
        """Tells all watchers where they are. Always False."""
        if self._streams:
            try:
                here = pb.WatchFeedResponse.Here(token=self._news.here)
            except errors.Unavailable:
                return False
            for stream in self._streams:
                if stream.watchers:
                    stream.put(Event(here=here))
        return False

    async def tell_changes(self) -> bool:
        """Tells of what changed on screens, and whom something concerns. True when there is more."""
        await self._hear_marks()
        concerned, self._concerned = self._concerned, set()
        self._notify(watcher for user_id in concerned for watcher in self._by_user.get(user_id, ()))
        for post_id in list(itertools.islice(self._changed, MAX_CHANGED)):
            del self._changed[post_id]
            for stream, numbers in by_stream(self._on_screen.get(post_id, ())).items():
                stream.put(changed([post_id], numbers))
        return bool(self._changed)

    async def _hear_marks(self) -> None:
        """Notes who has read their notifications, at whichever replica."""
        if not self._count:
            self._marks_after = ""
            return
        with suppress(RedisError, OSError):
            if not self._marks_after:
                seconds, micros = await self._stores.time()
                self._marks_after = f"{1000 * seconds + micros // 1000}-0"
            entries: Any = await self._stores.xrange(READ_KEY, f"({self._marks_after}", count=MAX_MARKS)
            for entry_id, said in entries or ():
                self._marks_after = entry_id.decode()
                self._concerned |= {int(said[b"user"])} & self._by_user.keys()

    def _notify(self, watchers: Iterable[Watcher]) -> None:
        for stream, numbers in by_stream(watchers).items():
            stream.put(Event(notified=pb.WatchFeedResponse.Notified(), watcher_ids=numbers))

    async def follow(self) -> bool:
        """Looks who follows whom anew, and who hides from whom. True when there is more."""
        if not self._count:
            self._position = None
            self._begun.clear()
            return False
        hidden = set[int]()
        while self._hidden and self._hidden[0][0] <= time.monotonic():
            hidden.add(self._hidden.popleft()[1])
        for author_id in hidden:
            for stream in self._streams:
                stream.put(changed_of(author_id, ()))
        try:
            if self._position is None:
                position = await tail.begin(self._stores, GRAPH_TOPIC)
                # Whatever happened before is not heard.
                await self._look_again(self._by_user)
                self._changed |= dict.fromkeys(self._on_screen)
                self._concerned |= self._by_user.keys()
                self._position = position
                return False
            batch = await tail.read(self._stores, self._position)
            followers = {event.follow_changed.follower_id for event in batch.events if event.HasField("follow_changed")}
            begun = set(self._begun)
            await self._look_again((followers | begun) & self._by_user.keys())
        except errors.Unavailable as error:
            log.debug("relations cannot be read, which are read later: %s", error.message)
            return False
        except (tail.Gap, RedisError, OSError) as error:
            log.debug("changes of follows are missed: %r", error)
            self._position = None
            return False
        self._begun -= begun
        self._heed(batch.events)
        self._position = batch.position
        return batch.more

    async def _begin(self, stream: Stream, wanted: Sequence[pb.WatchFeedRequest.Watcher]) -> None:
        """Begins watchers, as soon as that can be. Who has begun before is told on meanwhile."""
        while True:
            try:
                relations = await self._relations_of({each.user_id for each in wanted})
                settled = await self._news.settled()
                break
            except errors.Unavailable as error:
                log.debug("watchers cannot begin: %s", error.message)
            await asyncio.sleep(AGAIN_S)
        # From here on without a pause: what is told from memory is followed by what is new.
        begun: list[tuple[Watcher, Numbers]] = []
        screens: list[tuple[Watcher, Sequence[int]]] = []
        greeted: dict[tuple[str, Numbers], list[int]] = {}
        for each in {each.watcher_id: each for each in wanted}.values():
            self._leave(stream, each.watcher_id)
            relation = relations.get(each.user_id)
            if relation is None:
                stream.put(Event(refused=pb.WatchFeedResponse.Refused(), watcher_ids=[each.watcher_id]))
                continue
            watcher = Watcher(each.watcher_id, each.user_id, stream, relation)
            self._enter(watcher)
            screens.append((watcher, each.on_screen))
            known = self._news.numbers(each.token) if each.token else None
            start = settled if known is None else known
            begun.append((watcher, start))
            kind = "gap" if each.token and known is None else "here"
            greeted.setdefault((kind, start), []).append(watcher.number)
        for (kind, start), numbers in greeted.items():
            event = Event(watcher_ids=numbers)
            getattr(event, kind).token = self._news.token(start)
            stream.put(event)
        self._catch_up(stream, begun)
        self._begun |= {watcher.user_id for watcher, _ in begun}
        for watcher, post_ids in screens:
            self._put_on_screen(watcher, post_ids)
        self._notify(watcher for watcher, _ in begun)

    def _catch_up(self, stream: Stream, begun: Sequence[tuple[Watcher, Numbers]]) -> None:
        """Tells each watcher what came since it was where it begins."""
        items = self._news.after(tuple(map(min, zip(*(start for _, start in begun), strict=True)))) if begun else []
        if not items:
            return
        readers: dict[int, list[tuple[int, Numbers]]] = {}
        for watcher, start in begun:
            for author_id in watcher.author_ids:
                readers.setdefault(author_id, []).append((watcher.number, start))
        for item in items:
            if some := [
                number for number, start in readers.get(item.author_id, ()) if item.number > start[item.partition]
            ]:
                stream.put(told(item, some))

    def _tell(self, items: Sequence[Item]) -> None:
        """Tells what is new to those whom it concerns."""
        for item in items:
            for stream, numbers in by_stream(self._by_author.get(item.author_id, ())).items():
                stream.put(told(item, numbers))

    def _heed(self, events: Iterable[event_pb2.Event]) -> None:
        """Notes what events of either topic mean to who watches, but for new posts."""
        for event in events:
            self._changed |= dict.fromkeys(post_id for post_id in changed_by(event) if post_id in self._on_screen)
            self._concerned |= concerned_by(event) & self._by_user.keys()
            if author_id := hidden_by(event):
                self._hidden.append((time.monotonic() + HIDDEN_S, author_id))
            for user_id, author_id in parted_by(event):
                for watcher in self._by_user.get(user_id, ()):
                    if watcher.on_screen:
                        watcher.stream.put(changed_of(author_id, [watcher.number]))

    def _put_on_screen(self, watcher: Watcher, post_ids: Iterable[int]) -> None:
        """From now on these are on a watcher's screen. Those that were not before are told to be looked at."""
        before, watcher.on_screen = watcher.on_screen, frozenset(post_ids)
        for post_id in before - watcher.on_screen:
            discard(self._on_screen, post_id, watcher)
        for post_id in watcher.on_screen - before:
            self._on_screen.setdefault(post_id, set()).add(watcher)
        if new := watcher.on_screen - before:
            watcher.stream.put(changed(new, [watcher.number]))

    def _tell_gap(self) -> None:
        # Each caller begins its watchers again, with the tokens that they have, and is told of the gap then.
        for stream in self._streams:
            stream.end(errors.Unavailable("some of what happened was missed"))

    def _enter(self, watcher: Watcher) -> None:
        self._count += 1
        watcher.stream.watchers[watcher.number] = watcher
        self._by_user.setdefault(watcher.user_id, set()).add(watcher)
        self._index(watcher)

    def _leave(self, stream: Stream, number: int) -> None:
        watcher = stream.watchers.pop(number, None)
        if watcher is not None:
            self._count -= 1
            self._unindex(watcher)
            discard(self._by_user, watcher.user_id, watcher)
            for post_id in watcher.on_screen:
                discard(self._on_screen, post_id, watcher)

    def _index(self, watcher: Watcher) -> None:
        for author_id in watcher.author_ids:
            self._by_author.setdefault(author_id, set()).add(watcher)

    def _unindex(self, watcher: Watcher) -> None:
        for author_id in watcher.author_ids:
            discard(self._by_author, author_id, watcher)

    async def _look_again(self, user_ids: Collection[int]) -> None:
        """Reads anew whom people follow."""
        if not user_ids:
            return
        for user_id, relation in (await self._relations_of(set(user_ids))).items():
            for watcher in [*self._by_user.get(user_id, ())]:
                if watcher.relation is relation:
                    continue
                before = set(watcher.relation.following.tolist())
                self._unindex(watcher)
                watcher.relation = relation
                self._index(watcher)
                follows = zip(relation.following.tolist(), relation.follow_ids.tolist(), strict=True)
                since = {author_id: follow_id for author_id, follow_id in follows if author_id not in before}
                for item in self._news.by_authors(since):
                    watcher.stream.put(told(item, [watcher.number]))

    async def _relations_of(self, user_ids: Collection[int]) -> dict[int, Relation]:
        found: dict[int, Relation] = {}
        waiting = iter(user_ids)
        while some := list(itertools.islice(waiting, BEGUN)):
            try:
                async with asyncio.timeout(RELATIONS_TIMEOUT_S):
                    of_some, kept = await self._relations.of(some)
            except TimeoutError:
                raise errors.Unavailable("the graph took too long") from None
            if kept:
                raise errors.Unavailable("the graph cannot be reached")
            found |= of_some
        return found


def by_stream(watchers: Iterable[Watcher]) -> dict[Stream, list[int]]:
    """What each stream's caller calls its watchers of these."""
    found: dict[Stream, list[int]] = {}
    for watcher in watchers:
        found.setdefault(watcher.stream, []).append(watcher.number)
    return found


def discard(index: dict[int, set[Watcher]], key: int, watcher: Watcher) -> None:
    """Takes a watcher out of an index, and what is empty then."""
    some = index.get(key)
    if some is not None:
        some.discard(watcher)
        if not some:
            del index[key]


def changed(post_ids: Iterable[int], numbers: Sequence[int]) -> Event:
    """That some watchers are to look at posts again."""
    return Event(changed=pb.WatchFeedResponse.Changed(post_ids=post_ids), watcher_ids=numbers)


def changed_of(author_id: int, numbers: Sequence[int]) -> Event:
    """That some watchers, or all, are to look at all posts of an author again."""
    return Event(changed=pb.WatchFeedResponse.Changed(author_id=author_id), watcher_ids=numbers)


def told(item: Item, numbers: Sequence[int]) -> Event:
    """A piece of news as an event for some watchers."""
    event = Event(watcher_ids=numbers, partition=item.partition, number=item.number)
    if item.member:
        event.added.member = item.member
    else:
        event.removed.post_id = item.post_id
    metrics.WATCH_EVENTS.labels("added" if item.member else "removed").inc(len(numbers))
    return event
