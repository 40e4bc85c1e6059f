"""WatchFeed: who watches which feed, and who is told what of the news.

    caller ── begins and ends watchers ──► Stream ◄── events, each for many watchers ── Watches ◄── News
                                                                                          ▲
    topic `graph` ── who follows whom anew ───────────────────────────────────────────────┘

What is told is where to look. What of it somebody may see and wants to, `show_added` decides when it is shown, by
relations as of then: so nobody is shown what was hidden from them after it was told.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from runtime import errors, members, tail, wire
from runtime.members import Members
from runtime.relations import Relation, Relations
from services.timeline import metrics
from services.timeline.feed import Parts, Posts
from services.timeline.news import Item, News
from services.timeline.skeleton import Viewer

log = logging.getLogger(__name__)

GRAPH_TOPIC = "graph"
FOLLOWS_S = 0.1
"""How often it is looked at who follows whom anew."""
HERE_S = 1.0
"""How often all watchers are told where they are."""
ASKED = 200
"""People whose relations are asked for at once."""
RELATIONS_TIMEOUT_S = 2.0
AGAIN_S = 0.5
"""After how long it is tried again to begin watchers that could not."""
MAX_WATCHERS = 50_000
"""Of one replica: some 8 KB each for who follows 200."""
BEGUN = 100
"""Watchers that begin without a pause."""
MAX_UNREAD = 10_000
"""Events that may wait for a stream's caller."""

SlowError = errors.Unavailable("the caller reads too slowly")
Event = pb.WatchFeedResponse


@dataclass(eq=False)
class Watcher:
    """One who is told what comes into one person's home feed."""

    number: int
    """The caller's name for it."""
    user_id: int
    stream: Stream
    relation: Relation

    def reads(self, author_id: int) -> bool:
        """Whether what this author wrote may stand in the feed."""
        return author_id == self.user_id or self.relation.follows(author_id)


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
                self.end(SlowError)
            if self._unread.qsize() > MAX_UNREAD // 2:
                self.room.clear()

    def end(self, error: Exception) -> None:
        """Ends the stream, whatever is unread."""
        if not self._ended.done():
            self._ended.set_exception(error)

    async def events(self) -> AsyncGenerator[Event, None]:
        """What is told. Raises what the stream ends with."""
        while True:
            event = asyncio.ensure_future(self._unread.get())
            try:
                await asyncio.wait((event, self._ended), return_when=asyncio.FIRST_COMPLETED)
                if self._ended.done():
                    self._ended.result()
                if self._unread.qsize() <= MAX_UNREAD // 2:
                    self.room.set()
                yield event.result()
            finally:
                event.cancel()


class Watches:
    """All watchers of this replica."""

    def __init__(self, news: News, relations: Relations, graph_events: Redis) -> None:
        self._news = news
        self._relations = relations
        self._graph_events = graph_events
        self._position: tail.Position | None = None
        self._streams: set[Stream] = set()
        self._by_author: dict[int, set[Watcher]] = {}
        self._by_user: dict[int, set[Watcher]] = {}
        self._count = 0
        metrics.WATCHERS.set_function(lambda: self._count)

    async def watch(self, requests: AsyncIterable[pb.WatchFeedRequest]) -> AsyncGenerator[Event, None]:
        """One caller's stream. Raises Unavailable when it reads too slowly or the news cannot be heard."""
        stream = Stream()
        self._streams.add(stream)
        self._news.tell, self._news.tell_gap = self._tell, self._tell_gap

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
            except Exception as error:
                stream.end(error)

        reading = asyncio.create_task(read())
        try:
            async for event in stream.events():
                yield event
        finally:
            reading.cancel()
            for number in [*stream.watchers]:
                self._leave(stream, number)
            self._streams.discard(stream)
            if not self._streams:
                self._news.tell = self._news.tell_gap = None

    async def say_where(self) -> bool:
        """Tells all watchers where they are. Always False."""
        if self._streams:
            try:
                token = self._news.here
            except errors.Unavailable:
                return False
            for stream in self._streams:
                if stream.watchers:
                    stream.put(Event(here=pb.WatchFeedResponse.Here(), token=token))
        return False

    async def follow(self) -> bool:
        """Looks who follows whom anew. True when there is more."""
        if not self._count:
            self._position = None
            return False
        try:
            if self._position is None:
                self._position = await tail.begin(self._graph_events, GRAPH_TOPIC)
                await self._look_again(self._by_user)
                return False
            batch = await tail.read(self._graph_events, self._position)
        except (tail.Gap, RedisError, OSError) as error:
            log.debug("changes of follows are missed: %r", error)
            self._position = None
            return False
        followers = {event.follow_changed.follower_id for event in batch.events if event.HasField("follow_changed")}
        await self._look_again(followers & self._by_user.keys())
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
        by_token: dict[bytes, list[Watcher]] = {}
        for each in {each.watcher_id: each for each in wanted}.values():
            self._leave(stream, each.watcher_id)
            relation = relations.get(each.user_id)
            if relation is None:
                stream.put(Event(refused=pb.WatchFeedResponse.Refused(), watcher_ids=[each.watcher_id]))
                continue
            watcher = Watcher(each.watcher_id, each.user_id, stream, relation)
            by_token.setdefault(each.token, []).append(watcher)
            self._enter(watcher)
        for token, watchers in by_token.items():
            items = self._news.since(token) if token else None
            start = settled if items is None else token
            greeting = Event(watcher_ids=numbers_of(watchers), token=start)
            (greeting.gap if token and items is None else greeting.here).SetInParent()
            stream.put(greeting)
            for item in self._news.after(start, (self._news.since(start) or ()) if items is None else items):
                if some := [watcher for watcher in watchers if watcher.reads(item.author_id)]:
                    stream.put(told(item, numbers_of(some)))

    def _tell(self, items: Sequence[Item]) -> None:
        """Tells what is new to those whom it concerns."""
        for item in items:
            by_stream: dict[Stream, list[int]] = {}
            for watcher in self._by_author.get(item.author_id, ()):
                by_stream.setdefault(watcher.stream, []).append(watcher.number)
            for stream, numbers in by_stream.items():
                stream.put(told(item, numbers))

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

    def _index(self, watcher: Watcher) -> None:
        for author_id in (*watcher.relation.following.tolist(), watcher.user_id):
            self._by_author.setdefault(author_id, set()).add(watcher)

    def _unindex(self, watcher: Watcher) -> None:
        for author_id in (*watcher.relation.following.tolist(), watcher.user_id):
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
                    # Not its token: what others wrote before it was told already.
                    watcher.stream.put(told(item._replace(token=self._news.here), [watcher.number]))

    async def _relations_of(self, user_ids: Collection[int]) -> dict[int, Relation]:
        found: dict[int, Relation] = {}
        waiting = iter(user_ids)
        while some := list(itertools.islice(waiting, ASKED)):
            try:
                async with asyncio.timeout(RELATIONS_TIMEOUT_S):
                    found |= (await self._relations.of(some))[0]
            except TimeoutError:
                raise errors.Unavailable("the graph took too long") from None
        return found


def numbers_of(watchers: Iterable[Watcher]) -> list[int]:
    """What their caller calls them."""
    return [watcher.number for watcher in watchers]


def discard(index: dict[int, set[Watcher]], key: int, watcher: Watcher) -> None:
    """Takes a watcher out of an index, and what is empty then."""
    some = index.get(key)
    if some is not None:
        some.discard(watcher)
        if not some:
            del index[key]


def told(item: Item, numbers: Sequence[int]) -> Event:
    """A piece of news as an event for some watchers."""
    event = Event(watcher_ids=numbers, token=item.token)
    if item.member:
        event.added.member = item.member
    else:
        event.removed.post_id = item.post_id
    metrics.WATCH_EVENTS.labels("added" if item.member else "removed").inc(len(numbers))
    return event


async def show_added(parts: Parts, request: pb.BatchGetAddedPostsRequest) -> pb.BatchGetAddedPostsResponse:
    """Those of the posts that stand in each person's feed now, as they are now. Raises Unavailable."""
    wanted = members.unpack_each([item.members for item in request.items])
    relations, kept = await parts.relations.of(list({item.user_id for item in request.items}))
    viewers = [
        Viewer(item.user_id, relation, kept) if (relation := relations.get(item.user_id)) is not None else None
        for item in request.items
    ]
    rows = [
        each[[viewer is not None and followed(viewer, author_id) for author_id in each[:, 1].tolist()]]
        for viewer, each in zip(viewers, wanted, strict=True)
    ]
    asked = post_pb2.BatchGetPostsRequest()
    places = [at for at, each in enumerate(rows) if len(each)]
    for at in places:
        viewer = viewers[at]
        assert viewer is not None
        asked.items.add(
            viewer_id=viewer.user_id,
            post_ids=rows[at][:, 2].tolist(),
            relations_version=viewer.relation.version,
            relations_kept=viewer.kept,
            sharers_up_to=int(rows[at][:, 0].max()),
        )
    response = pb.BatchGetAddedPostsResponse(items=[pb.BatchGetAddedPostsResponse.Item() for _ in viewers])
    if not places:
        return response
    answer = await parts.hydrate(asked)
    for at, item in zip(places, answer.items, strict=True):
        viewer = viewers[at]
        assert viewer is not None
        page, post_ids = standing(viewer, rows[at], item)
        response.items[at].page.ParseFromString(page)
        response.items[at].post_ids.extend(post_ids)
    return response


def followed(viewer: Viewer, author_id: int) -> bool:
    """Whether what this author wrote or shared stands in a viewer's feed."""
    return author_id == viewer.user_id or (viewer.relation.follows(author_id) and not viewer.relation.mutes(author_id))


def standing(viewer: Viewer, rows: Members, item: Any) -> tuple[bytes, list[int]]:
    """Of posts that a viewer may see, a PostPage of those that stand in the feed, and their ids.

    Not what a muted author wrote and somebody shared, nor what was shared where the share has been taken back.
    """
    seen = members.unpack(item.members)
    shares = set(members.unpack(item.shares)[:, 0].tolist())
    writers = dict(zip(seen[:, 0].tolist(), seen[:, 1].tolist(), strict=True))
    posts = dict(zip(writers, Posts.FromString(item.page).posts, strict=True))
    shown = [
        original_id
        for post_id, _, original_id in rows.tolist()
        if original_id in posts
        and not viewer.relation.mutes(writers[original_id])
        and (post_id == original_id or post_id in shares)
    ]
    return b"".join(wire.listed(posts[post_id]) for post_id in dict.fromkeys(shown)), list(dict.fromkeys(shown))
