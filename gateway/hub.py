"""Live updates: the home feeds of all this gateway's clients over one stream of the timeline service.

    client ◄── WebSocket, or Server-Sent Events ── Subscriber ◄── Hub ◄── one WatchFeed stream ── a timeline replica
                                                    │
                                                    └── when its client takes more: BatchGetLivePosts

A subscriber holds ids until its client takes them; only then posts are read, as they are and if they may be seen by
then. Each event has a token. Whoever comes back with the last one (`Last-Event-ID`), to any gateway, goes on there;
likewise the hub itself, subscriber by subscriber, when its stream breaks.

A client with a socket may say which posts are on its screen. Of these it is told when their counts change, and when
they are to go: whatever may have happened to one, it is looked at, and told is what differs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import logging
import random
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceStub
from gateway import metrics
from gateway.encode import Known, compiled
from runtime import client, errors, members, tokens, wire
from runtime.coalesce import RPC_ITEMS, Coalescer

if TYPE_CHECKING:
    from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceAsyncStub

log = logging.getLogger(__name__)

PING_S = 15
"""After how long without an event a client hears that it is still connected."""
MAX_SUBSCRIBERS, MAX_OF_USER = 20_000, 20
MAX_WAITING = 200
"""Events that wait for a client to take them; with more it is told of a gap instead."""
SHOWN = 20
"""Posts that one client is shown at once."""
BATCH = 500
"""Posts for people that one question asks for, each as often as it is for another; a client's SHOWN go together."""
POSTS = 200
"""Different posts of one question."""
BEGUN = 1_000
"""Watchers that one message begins or ends."""
AGAIN_S = (0.05, 0.5)
"""How long to wait before a stream that broke is opened again."""
GREETING_S = 5.0
"""How long a client waits while the mesh begins to tell nobody. While others are being begun it waits its turn."""
NOTES_AGAIN_S = 2.0
"""After how long notifications are looked at again that could not be read."""
LOST, LOST_S = b"?", 1.0
"""A token that is none; how long a client that takes too little is told nothing."""

Live = wire.closed(pb.BatchGetLivePostsResponse.DESCRIPTOR, [post_pb2.Post.DESCRIPTOR])
Wanted = tuple[bytes, bool]
"""A post, packed, and whether it is on screen."""
Asked = tuple[int, list[Wanted]]
"""Who wants what."""


class Told(NamedTuple):
    """An event that waits for a client to take it."""

    kind: str
    """As in the contract: here, gap, added, removed, refused."""
    token: bytes
    """Where the client goes on after it."""
    member: bytes = b""
    """Of what was added."""
    post_id: int = 0
    """Of what was removed."""


class Event(NamedTuple):
    """An event as clients have it."""

    kind: str
    token: bytes
    """As text."""
    data: bytes
    """JSON."""

    def sent(self) -> bytes:
        """As Server-Sent Events have it. That nothing came is no event, but sets the id."""
        if self.kind == "here":
            return b"id: %b\n\n" % self.token
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.token, self.kind.encode(), self.data)


UNKNOWN = 0
"""The author of a post that was not looked at yet."""


class Counts(NamedTuple):
    """Of a post on screen, what is told of it."""

    likes: int
    comments: int
    shares: int


@dataclass
class Seen:
    """A post on a client's screen, as the client was told of it last."""

    author_id: int = UNKNOWN
    counts: Counts | None = None


class Taken(NamedTuple):
    """What a client is to be told next."""

    told: list[Told]
    changed: list[int]
    """Posts on screen to look at."""
    note: dict[str, Any] | None
    """What an event says of notifications."""


class Subscriber:
    """One client's events."""

    def __init__(self, number: int, user_id: int, token: bytes, may_stay: Callable[[], bool]) -> None:
        self.number = number
        self.user_id = user_id
        self.may_stay = may_stay
        """Asked before anything is told."""
        self.token = token
        """Where it goes on: all up to there waits here or was taken."""
        self.begun = False
        """Whether the stream of now tells it."""
        self.greeted = False
        """Whether any ever did."""
        self.gone = False
        self.idle_turns = 0
        """Seconds since it was told anything."""
        self.screen: dict[int, Seen] = {}
        """By post."""
        self.taken = token
        """Where the client goes on after what it has taken."""
        self.told_unread: tuple[int, int] | None = None if token else (0, 0)
        """How many notifications were unread as it was told last, and the newest one; None where that is not known."""
        self._changed: dict[int, None] = {}
        """Posts on screen that are to be looked at."""
        self._note: dict[str, Any] | None = None
        """What is to be told of notifications."""
        self._waiting: deque[Told] = deque()
        self._ready = asyncio.Event()

    def put(self, kind: str, token: bytes, member: bytes = b"", post_id: int = 0) -> bool:
        """An event. False where too many wait: then they are given up."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.clear()
            return False
        self.token = token or self.token
        self._waiting.append(Told(kind, self.token, member, post_id))
        self.idle_turns = 0
        self._ready.set()
        return True

    def look_at(self, post_ids: Iterable[int]) -> None:
        """These posts, if they are on screen, may have changed."""
        self._changed |= dict.fromkeys(post_id for post_id in post_ids if post_id in self.screen)
        if self._changed:
            self._ready.set()

    def note(self, unread: int, newest: dict[str, Any] | None) -> None:
        """How many notifications are unread now, and the newest one. It is told where that is something else."""
        before, self.told_unread = self.told_unread, (unread, newest["notification_id"] if newest else 0)
        if self.told_unread != before and (before is None or unread or any(before)):
            self._note = {"unread": unread, "notification": newest}
            self._ready.set()

    def look_at_all_of(self, author_id: int) -> None:
        """What this person wrote may be seen no more, or again."""
        self.look_at([post_id for post_id, seen in self.screen.items() if seen.author_id in (author_id, UNKNOWN)])

    def pass_on(self, token: bytes) -> None:
        """Nothing came up to this token."""
        if self.begun:
            self.token = token

    @property
    def has_taken_all(self) -> bool:
        """Whether no event waits."""
        return not self._waiting

    def wake(self) -> None:
        """Ends a wait for events."""
        self._ready.set()

    async def take(self) -> Taken:
        """The next events, at most SHOWN, and what to look at, once there is any; nothing when it is woken."""
        if not self._waiting and not self._changed and not self._note:
            self._ready.clear()
            await self._ready.wait()
        told = [self._waiting.popleft() for _ in range(min(SHOWN, len(self._waiting)))]
        self.taken = told[-1].token if self._waiting else self.token
        taken = Taken(told, [*self._changed], self._note)
        self._changed, self._note = {}, None
        return taken


Changes = asyncio.Queue[tuple[str, int]]
"""What a stream is to be told of subscribers, by number: begin, end, screen."""


class Hub:
    """All subscribers of this gateway, and the stream that they share."""

    def __init__(self, channel: client.Channel) -> None:
        stub: TimelineServiceAsyncStub = TimelineServiceStub(channel)
        self._watch: Any = stub.WatchFeed
        self._get_live = client.read_by(stub.BatchGetLivePosts, Live.FromString)
        self._show = Coalescer(
            "live_posts", self._show_many, max_weight=BATCH, weigh=weight, max_waiting=MAX_SUBSCRIBERS
        )
        self._concerned: dict[Subscriber, None] = {}
        """Whose notifications are to be looked at."""
        self._some_concerned = asyncio.Event()
        self._list_notifications = stub.BatchListNotifications
        self._json = Known(post_pb2.Post.DESCRIPTOR)
        self._notification_json = compiled(pb.Notification.DESCRIPTOR)
        self._numbers = itertools.count(1)
        self._subscribers: dict[int, Subscriber] = {}
        self._of_user: Counter[int] = Counter()
        self._changes: Changes = asyncio.Queue()
        self._seeing: dict[int, set[Subscriber]] = {}
        """By author, who has something of theirs on screen; and by UNKNOWN."""
        self._some = asyncio.Event()
        self._greeted_s = 0.0
        self._draining = False
        metrics.LIVE_SUBSCRIBERS.set_function(lambda: len(self._subscribers))

    def join(self, user_id: int, token: bytes, may_stay: Callable[[], bool] = lambda: True) -> Subscriber:
        """A new subscriber, with the last token that it was told or b"", for as long as it may stay.

        Whoever joins leaves. Raises Unavailable, Error (TOO_MANY_STREAMS).
        """
        if self._draining or len(self._subscribers) >= MAX_SUBSCRIBERS:
            raise errors.Unavailable("this gateway takes no more live connections")
        if self._of_user[user_id] >= MAX_OF_USER:
            raise errors.Error("TOO_MANY_STREAMS", f"one may have {MAX_OF_USER} live connections")
        self._of_user[user_id] += 1
        subscriber = Subscriber(next(self._numbers), user_id, token, may_stay)
        self._begin(subscriber)
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Ends a subscriber."""
        if not subscriber.gone:
            subscriber.gone = True
            self._end(subscriber)
            self._concerned.pop(subscriber, None)
            before, subscriber.screen = subscriber.screen, {}
            self._let_go(subscriber, {seen.author_id for seen in before.values()})
            self._of_user[subscriber.user_id] -= 1
            if not self._of_user[subscriber.user_id]:
                del self._of_user[subscriber.user_id]
        if not self._subscribers:
            self._some.clear()

    def _begin(self, subscriber: Subscriber) -> None:
        if not subscriber.gone:
            self._subscribers[subscriber.number] = subscriber
            self._changes.put_nowait(("begin", subscriber.number))
            self._some.set()

    def _end(self, subscriber: Subscriber) -> None:
        self._changes.put_nowait(("end", subscriber.number))
        self._subscribers.pop(subscriber.number, None)

    def _lose(self, subscriber: Subscriber) -> None:
        """Begins a subscriber anew that has given up events: with a token of none, so that it is told of a gap.

        Not of one from here: what was told just now may not be in the feed yet that is to be read again. And not at
        once: as much may come again.
        """
        self._end(subscriber)
        subscriber.number, subscriber.token, subscriber.begun = next(self._numbers), LOST, False
        asyncio.get_running_loop().call_later(LOST_S, self._begin, subscriber)

    def drain(self) -> None:
        """Lets all clients go, to come back elsewhere: each at a time of its own (RECONNECT_MS)."""
        self._draining = True
        for subscriber in self._subscribers.values():
            subscriber.wake()

    async def run(self) -> None:
        """Tells subscribers what happens, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            group.create_task(self._ping())
            group.create_task(self._note())

    async def _listen(self) -> None:
        """Keeps a stream open while there are subscribers."""
        while True:
            await self._some.wait()
            self._changes = asyncio.Queue()
            for subscriber in self._subscribers.values():
                subscriber.begun = False
                self._changes.put_nowait(("begin", subscriber.number))
            stream = self._watch(self._requests(self._changes))
            try:
                async with aclosing(stream):
                    async for message in stream:
                        for event in message.events:
                            self._heed(event)
                        if not self._subscribers:
                            break
            except errors.Error as error:
                log.debug("the stream of live updates broke: %s", error.message)
            except Exception:
                log.exception("live updates failed, and are begun again")
            await asyncio.sleep(random.uniform(*AGAIN_S))  # noqa: S311 - so that not all gateways come at once

    async def _requests(self, changes: Changes) -> AsyncIterator[pb.WatchFeedRequest]:
        while True:
            some = [await changes.get()]
            while len(some) < BEGUN and not changes.empty():
                some.append(changes.get_nowait())
            request = pb.WatchFeedRequest()
            for kind, number in some:
                one = self._subscribers.get(number)
                if kind == "end":
                    request.end.append(number)
                elif one is not None and kind == "begin":
                    request.begin.add(watcher_id=number, user_id=one.user_id, token=one.token, on_screen=one.screen)
                elif one is not None:
                    request.screens.add(watcher_id=number, post_ids=one.screen)
            yield request

    def put_on_screen(self, subscriber: Subscriber, post_ids: Sequence[int]) -> None:
        """From now on these posts are on a client's screen. Those that were not are looked at.

        And once more when the mesh knows of them, and says so: from then on it tells of changes.
        """
        before = subscriber.screen
        subscriber.screen = {post_id: before.get(post_id) or Seen() for post_id in post_ids}
        if new := subscriber.screen.keys() - before.keys():
            self._seeing.setdefault(UNKNOWN, set()).add(subscriber)
            subscriber.look_at(new)
        self._let_go(
            subscriber, {seen.author_id for post_id, seen in before.items() if post_id not in subscriber.screen}
        )
        self._changes.put_nowait(("screen", subscriber.number))

    def _take_off_screen(self, subscriber: Subscriber, post_id: int) -> None:
        if (seen := subscriber.screen.pop(post_id, None)) is not None:
            self._let_go(subscriber, {seen.author_id})
            self._changes.put_nowait(("screen", subscriber.number))

    def _let_go(self, subscriber: Subscriber, author_ids: Iterable[int]) -> None:
        """Forgets that a client sees these authors, unless others of theirs are on the screen."""
        left = {seen.author_id for seen in subscriber.screen.values()}
        for author_id in author_ids:
            if author_id not in left and (its := self._seeing.get(author_id)) is not None:
                its.discard(subscriber)
                if not its:
                    del self._seeing[author_id]

    def _heed(self, event: pb.WatchFeedResponse.Event) -> None:
        kind = event.WhichOneof("event")
        if kind is None:
            return  # of a newer version of the mesh
        if kind == "changed":
            self._heed_change(event.changed, event.watcher_ids)
            return
        if kind == "notified":
            for number in event.watcher_ids:
                if (one := self._subscribers.get(number)) is not None:
                    self._concerned[one] = None
            self._some_concerned.set()
            return
        token: bytes = event.here.token or event.gap.token
        if not event.watcher_ids:
            for subscriber in self._subscribers.values():
                subscriber.pass_on(token)
            return
        if token:
            self._greeted_s = time.monotonic()
        member, post_id = event.added.member, event.removed.post_id
        metrics.LIVE_EVENTS.labels(kind).inc(len(event.watcher_ids))
        for number in event.watcher_ids:
            one = self._subscribers.get(number)
            if one is None:
                continue
            # When it goes on by another stream, its client need not know.
            is_news, one.begun, one.greeted = kind != "here" or not one.greeted, True, True
            reached = token or tokens.moved(one.token, event.partition, event.number)
            if not is_news:
                one.token = reached
            elif not one.put(kind, reached, member, post_id):
                self._lose(one)

    def _heed_change(self, changed: pb.WatchFeedResponse.Changed, numbers: Sequence[int]) -> None:
        author_id = changed.author_id
        if author_id and not numbers:
            for one in self._seeing.get(author_id, set()) | self._seeing.get(UNKNOWN, set()):
                one.look_at_all_of(author_id)
        for number in numbers:
            subscriber = self._subscribers.get(number)
            if subscriber is not None and author_id:
                subscriber.look_at_all_of(author_id)
            elif subscriber is not None:
                subscriber.look_at(changed.post_ids)

    async def _ping(self) -> None:
        """Tells clients that are told nothing, from time to time, that they are still connected."""
        while True:
            await asyncio.sleep(1)
            for subscriber in self._subscribers.values():
                subscriber.idle_turns += 1
                if subscriber.idle_turns >= PING_S and subscriber.greeted and subscriber.has_taken_all:
                    subscriber.put("here", b"")

    async def first(self, events: AsyncGenerator[Event, None]) -> Event:
        """The first event. Raises what the events do, and Unavailable once nobody is begun to be told any more."""
        begun = time.monotonic()
        waiting = asyncio.ensure_future(anext(events, None))
        try:
            while not (await asyncio.wait((waiting,), timeout=GREETING_S))[0]:
                if time.monotonic() - max(self._greeted_s, begun) >= GREETING_S:
                    raise errors.Unavailable("the mesh tells nothing now")
            if (event := waiting.result()) is not None:
                return event
            raise errors.Unavailable("this gateway is about to end")
        finally:
            await cancelled(waiting)

    async def events(self, subscriber: Subscriber) -> AsyncGenerator[Event, None]:
        """What a client is told, until this gateway is to end or the client may not stay.

        Raises NotFound (USER_NOT_FOUND), Unavailable.
        """
        while not self._draining:
            some, changed, note = await subscriber.take()
            if not subscriber.may_stay():
                return
            wanted = [(told.member, False) for told in some if told.kind == "added"]
            wanted += [(on_screen(post_id), True) for post_id in changed]
            shown = await self._show((subscriber.user_id, wanted)) if wanted else {}
            for told in some:
                token = as_text(told.token)
                if told.kind == "refused":
                    raise errors.NotFound("USER_NOT_FOUND", f"there is no user {subscriber.user_id}")
                if told.kind == "added":
                    if (post := shown.get((told.member, False))) is not None:
                        yield event_of("post_added", token, post=post)
                elif told.kind == "removed":
                    self._take_off_screen(subscriber, told.post_id)
                    yield event_of("post_removed", token, post_id=told.post_id)
                elif told.kind == "gap":
                    yield event_of("gap", token, reload=["feed"])
                else:
                    yield event_of("here", token)
            token = as_text(subscriber.taken)
            for post_id in changed:
                seen = subscriber.screen.get(post_id)
                if seen is None:
                    continue
                now = shown.get((on_screen(post_id), True))
                if now is None:
                    self._take_off_screen(subscriber, post_id)
                    yield event_of("post_removed", token, post_id=post_id)
                    continue
                author_id, counts = now
                if seen.author_id != author_id:
                    seen.author_id = author_id
                    self._seeing.setdefault(author_id, set()).add(subscriber)
                    self._let_go(subscriber, {UNKNOWN})
                if counts != seen.counts:
                    seen.counts = counts
                    yield event_of("counts", token, post_id=post_id, **counts._asdict())
            if note is not None:
                yield event_of("notification", token, **note)

    async def _show_many(self, items: Sequence[Asked]) -> list[dict[Wanted, Any]]:
        """What each subscriber wants, as far as it is to be shown: JSON; of what is on screen, author and counts."""
        viewers: dict[Wanted, list[int]] = {}
        for at, (_, wanted) in enumerate(items):
            for each in set(wanted):
                viewers.setdefault(each, []).append(at)
        found: list[dict[Wanted, Any]] = [{} for _ in items]
        waiting = iter(viewers)
        while some := list(itertools.islice(waiting, POSTS)):
            request = pb.BatchGetLivePostsRequest()
            for wish in some:
                member, is_on_screen = wish
                user_ids = [items[at][0] for at in viewers[wish]]
                request.items.add(member=member, user_ids=user_ids, on_screen=is_on_screen)
            for wish, item in zip(some, (await self._get_live(request)).items, strict=True):
                for view in item.views:
                    shown = counted(view.post) if wish[1] else self._json[view.post]
                    for place in view.viewers:
                        found[viewers[wish][place]][wish] = shown
        return found

    async def _note(self) -> None:
        """Looks at the notifications of those whom something concerns, and of who has just come.

        For half of the time at the most, and for nobody who waits: posts go first when all come at once.
        """
        while True:
            await self._some_concerned.wait()
            begun = time.monotonic()
            some = list(itertools.islice(self._concerned, RPC_ITEMS))
            if not some:  # they have left
                self._some_concerned.clear()
                continue
            for each in some:
                del self._concerned[each]
            try:
                answer = await self._list_notifications(
                    pb.BatchListNotificationsRequest(
                        items=[pb.ListNotificationsRequest(user_id=each.user_id, limit=1) for each in some]
                    )
                )
            except errors.Error as error:
                # What they are is a state: whoever is looked at later has missed nothing.
                log.debug("notifications cannot be read: %s", error.message)
                self._concerned |= dict.fromkeys(each for each in some if not each.gone)
                await asyncio.sleep(NOTES_AGAIN_S)
                continue
            for each, item in zip(some, answer.items, strict=True):
                if item.HasField("result"):
                    notes = item.result.notifications
                    each.note(item.result.unread, self._notification_json(notes[0]) if notes else None)
            if not self._concerned:
                self._some_concerned.clear()
            await asyncio.sleep(time.monotonic() - begun)


async def cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Ends tasks."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def on_screen(post_id: int) -> bytes:
    """A post whose author need not be known, packed."""
    return members.pack_one(post_id, 0, post_id)


def counted(content: bytes) -> tuple[int, Counts]:
    """A post's author and counts."""
    post = post_pb2.Post.FromString(content)
    return post.user_id, Counts(post.likes, post.comments, post.shares)


def as_text(token: bytes) -> bytes:
    """A token as clients have it."""
    return base64.urlsafe_b64encode(token).rstrip(b"=")


def weight(item: Asked) -> int:
    """How many posts a client asks for."""
    return len(item[1])


def event_of(kind: str, token: bytes, **said: Any) -> Event:
    """An event that says something."""
    return Event(kind, token, orjson.dumps({"type": kind, "token": token.decode(), **said}))


def token_of(text: str) -> bytes:
    """The token that a client sends back; one that is none counts as unknown, which is a gap."""
    if not text:
        return b""
    try:
        token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return LOST
    return token if 0 < len(token) <= 64 else LOST
