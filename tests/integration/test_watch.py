"""WatchFeed: each post comes to each follower who watches once, and after whatever broke either that, or a gap."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceStub, add_TimelineServiceServicer_to_server
from gateway import hub as hubs
from gateway.hub import Hub, Subscriber
from launch.valkey import Running as Valkey
from runtime import client, errors, members, tokens
from services.timeline import news, watch
from services.timeline.news import News
from services.timeline.servicer import SERVICE, TimelineServicer
from services.timeline.watch import Watches
from tests.fakes.databases import Databases
from tests.fakes.serving import CALLER, serving
from tests.integration.mesh_world import World, mesh
from tests.integration.timeline_stores import notifications

if TYPE_CHECKING:
    from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceAsyncStub

Event = pb.WatchFeedResponse.Event
ANN, BOB, EVE = range(3)
PATIENCE_S = 10.0
QUIET_S = 0.2
"""How long nothing may come for it to be nothing."""


@dataclass
class Replica:
    """A timeline server, whose looks at what happens are the test's steps."""

    news: News
    watches: Watches
    channel: client.Channel
    stub: TimelineServiceAsyncStub

    async def look(self) -> None:
        """Hears all that happened."""
        while await self.news.step():
            pass
        while await self.watches.follow():
            pass


@dataclass
class Caller:
    """A caller's stream."""

    requests: asyncio.Queue[pb.WatchFeedRequest] = field(default_factory=asyncio.Queue)
    answers: asyncio.Queue[Event | errors.Error] = field(default_factory=asyncio.Queue)
    tokens: dict[int, bytes] = field(default_factory=dict)
    """Where each watcher goes on."""
    notified: list[int] = field(default_factory=list)
    """Watchers who were told that something concerns them."""

    async def read(self, stub: TimelineServiceAsyncStub) -> None:
        """Reads until it is cancelled."""

        async def requests() -> AsyncIterator[pb.WatchFeedRequest]:
            while True:
                yield await self.requests.get()

        stream: Any = stub.WatchFeed(requests())
        try:
            async with aclosing(stream):
                async for answer in stream:
                    for event in answer.events:
                        if event.HasField("notified"):
                            self.notified += event.watcher_ids
                        else:
                            self.answers.put_nowait(event)
        except errors.Error as error:
            self.answers.put_nowait(error)

    def begin(self, *watchers: tuple[int, int] | tuple[int, int, bytes]) -> None:
        """Begins watchers: number, whose feed, perhaps a token."""
        request = pb.WatchFeedRequest()
        for number, user_id, *token in watchers:
            request.begin.add(watcher_id=number, user_id=user_id, token=b"".join(token))
        self.requests.put_nowait(request)

    def end(self, *numbers: int) -> None:
        """Ends watchers."""
        self.requests.put_nowait(pb.WatchFeedRequest(end=numbers))

    async def next(self) -> Event:
        """The next event."""
        async with asyncio.timeout(PATIENCE_S):
            answer = await self.answers.get()
        if isinstance(answer, errors.Error):
            raise answer
        for number in answer.watcher_ids:
            told = answer.here.token or answer.gap.token
            self.tokens[number] = told or tokens.moved(self.tokens.get(number, b""), answer.partition, answer.number)
        return answer

    async def posts(self, *expected: int) -> bytes:
        """Sees to it that these posts come now, in any order, and nothing else; the first watcher's last token."""
        found = []
        for _ in expected:
            event = await self.next()
            assert event.HasField("added"), event
            found.append(int(members.unpack(event.added.member)[0, 0]))
        assert sorted(found) == sorted(expected)
        await self.nothing()
        return next(iter(self.tokens.values()))

    async def nothing(self) -> None:
        """Sees to it that nothing comes."""
        await asyncio.sleep(QUIET_S)
        assert self.answers.empty(), self.answers.get_nowait()


@dataclass
class Scene:
    """Three people; Ann follows Bob."""

    world: World
    people: list[int]
    stack: AsyncExitStack

    async def replica(self, number: int = 0) -> Replica:
        """One more timeline server, that has heard what there is."""
        parts = self.world.replicas[number]
        heard = News(self.world.stores.client, parts.own)
        watches = Watches(heard, parts.relations, self.world.stores.client)
        servicer = TimelineServicer(parts, watches, notifications(parts))
        served = await self.stack.enter_async_context(
            serving(lambda server: add_TimelineServiceServicer_to_server(servicer, server), services=(SERVICE,))
        )
        channel = await self.stack.enter_async_context(client.connect(served.target, CALLER, SERVICE))
        replica = Replica(heard, watches, channel, TimelineServiceStub(channel))
        await replica.look()
        return replica

    async def call(self, replica: Replica) -> Caller:
        """A new stream."""
        caller = Caller()
        task = asyncio.create_task(caller.read(replica.stub))

        async def end() -> None:
            task.cancel()
            await asyncio.wait((task,))

        self.stack.push_async_callback(end)
        return caller

    async def watch(self, replica: Replica, person: int, token: bytes = b"") -> tuple[Caller, bytes]:
        """A stream that watches one feed from now on, and where that begins."""
        caller = await self.call(replica)
        caller.begin((1, self.people[person], token))
        event = await caller.next()
        assert (event.WhichOneof("event"), list(event.watcher_ids)) == ("here", [1])
        await replica.look()
        return caller, event.here.token

    async def write(self, person: int, *, followers_only: bool = False) -> int:
        """A post that everybody could have heard of."""
        post_id = await self.world.write(self.people[person], followers_only=followers_only)
        await self.world.deliver()
        return post_id


@pytest_asyncio.fixture
async def scene(databases: Databases, valkey: Valkey) -> AsyncIterator[Scene]:
    """The world, with nothing under way."""
    async with mesh(databases, valkey) as whole, whole.world() as world, AsyncExitStack() as stack:
        people = [await world.join() for _ in range(3)]
        await world.follow(people[ANN], people[BOB])
        await world.deliver()
        yield Scene(world, people, stack)


async def test_posts_of_whom_one_follows_and_ones_own_are_told_and_no_others(scene: Scene) -> None:
    replica = await scene.replica()
    caller, _ = await scene.watch(replica, ANN)
    expected = [await scene.write(BOB), await scene.write(ANN)]
    await scene.write(EVE)
    await replica.look()
    await caller.posts(*expected)
    await scene.world.delete(scene.people[BOB], expected[0])
    await scene.world.deliver()
    await replica.look()
    event = await caller.next()
    assert (event.removed.post_id, list(event.watcher_ids)) == (expected[0], [1])


async def test_one_event_names_all_watchers_of_a_stream_and_who_has_ended_none(scene: Scene) -> None:
    replica = await scene.replica()
    caller = await scene.call(replica)
    caller.begin((1, scene.people[ANN]), (2, scene.people[BOB]), (3, scene.people[EVE]), (4, scene.people[ANN]))
    assert sorted((await caller.next()).watcher_ids) == [1, 2, 3, 4]
    await scene.write(BOB)
    await replica.look()
    assert sorted((await caller.next()).watcher_ids) == [1, 2, 4]
    caller.end(1)
    # A number that is taken: the watcher that had it is no more.
    caller.begin((2, scene.people[EVE]))
    assert list((await caller.next()).watcher_ids) == [2]
    await scene.write(BOB)
    await replica.look()
    assert list((await caller.next()).watcher_ids) == [4]
    await replica.watches.say_where()
    here = await caller.next()
    assert (here.HasField("here"), list(here.watcher_ids), here.here.token) == (True, [], replica.news.here)
    await caller.nothing()


@pytest.mark.parametrize("number", [0, 1])
async def test_from_any_token_on_all_comes_once_at_any_replica(scene: Scene, number: int) -> None:
    replica = await scene.replica()
    caller, token = await scene.watch(replica, ANN)
    reached = [token]
    expected = [await scene.write(BOB) for _ in range(9)]
    await replica.look()
    told = []
    for _ in expected:
        event = await caller.next()
        told.append(int(members.unpack(event.added.member)[0, 0]))
        reached.append(caller.tokens[1])
    assert sorted(told) == expected
    # As after a restart: it has heard nothing but what the streams keep.
    other = await scene.replica(number)
    for at, token in enumerate(reached):
        again = await scene.call(other)
        again.begin((7, scene.people[ANN], token))
        here = await again.next()
        assert (here.here.token, list(here.watcher_ids)) == (token, [7])
        await again.posts(*told[at:])
    new = await scene.write(BOB)
    await other.look()
    await again.posts(new)


async def test_who_leaves_in_the_midst_of_catching_up_is_told_nothing_twice(scene: Scene) -> None:
    replica = await scene.replica()
    caller, _ = await scene.watch(replica, ANN)
    both = (BOB, ANN)  # whose events are in two partitions
    first = [await scene.write(person) for person in both * 3]
    await replica.look()
    token = await caller.posts(*first)
    rest = [await scene.write(person) for person in both * 4]
    # It reads partition by partition what came one by one.
    other = await scene.replica()
    told: list[int] = []
    while len(told) < len(rest):
        again = await scene.call(other)
        again.begin((1, scene.people[ANN], token))
        assert (await again.next()).HasField("here")
        event = await again.next()
        told.append(int(members.unpack(event.added.member)[0, 0]))
        token = again.tokens[1]
    assert sorted(told) == rest


async def test_an_event_that_is_published_twice_is_told_once(scene: Scene) -> None:
    replica = await scene.replica()
    caller, _ = await scene.watch(replica, ANN)
    post_id = await scene.write(BOB)
    for number in range(3):
        await scene.world.repeat(0, number)
    await replica.look()
    await caller.posts(post_id)
    await scene.world.repeat(0, 0)
    await replica.look()
    await caller.nothing()


async def test_what_a_token_does_not_tell_is_a_gap(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "KEPT", 3)
    monkeypatch.setattr(news, "SETTLED_S", 0.0)
    replica = await scene.replica()
    _, ancient = await scene.watch(replica, ANN)
    for _ in range(8):
        await scene.write(BOB)
    await replica.look()
    store, numbers = tokens.unpack(replica.news.here) or (b"", ())
    strange = {
        "ancient": ancient,
        "forged": b"\xff" * tokens.LAYOUT.size,
        "of another mesh": tokens.pack(b"\0" * 8, numbers),
        "of what has not happened yet": tokens.pack(store, [number + 1 for number in numbers]),
        "garbage": b"?",
    }
    for token in strange.values():
        caller = await scene.call(replica)
        caller.begin((1, scene.people[ANN], token))
        event = await caller.next()
        assert event.HasField("gap")
        assert replica.news.after(replica.news.numbers(event.gap.token) or ()) == []
        post_id = await scene.write(BOB)
        await replica.look()
        await caller.posts(post_id)
    caller.begin((1, scene.people[ANN], b"!" * 65))
    with pytest.raises(errors.InvalidArgument, match=r"begin\[0\].token"):
        await caller.next()


async def test_after_redis_lost_everything_there_is_a_gap_and_nothing_old(scene: Scene) -> None:
    replica = await scene.replica()
    caller, _ = await scene.watch(replica, ANN)
    post_id = await scene.write(BOB)
    await replica.look()
    token = await caller.posts(post_id)
    await scene.world.flush()
    unheard = await scene.world.write(scene.people[BOB])
    await scene.world.notice()
    for _ in range(2):  # the first look finds out, the next begins anew
        await replica.look()
    with pytest.raises(errors.Unavailable):
        await caller.next()
    caller = await scene.call(replica)
    caller.begin((1, scene.people[ANN], token))
    assert (await caller.next()).HasField("gap")
    # What Redis lost is published again, and what had not been published yet.
    await scene.world.deliver()
    await replica.look()
    await caller.posts(unheard)
    shown, _ = await scene.world.read(scene.people[ANN], 0)
    assert {post.post_id for post in shown} == {post_id, unheard}


async def test_a_feed_that_is_read_after_the_beginning_lacks_nothing_that_is_not_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news, "SETTLED_S", 0.0)
    await scene.write(BOB)
    late = await scene.world.write(scene.people[BOB])
    # It is in the stream, and in no list yet.
    await scene.world.relay()
    replica = await scene.replica()
    caller, _ = await scene.watch(replica, ANN)
    await caller.posts(late)
    await scene.world.deliver()
    caller, _ = await scene.watch(replica, ANN)
    await caller.nothing()


async def test_who_is_followed_meanwhile_is_told_of_from_the_follow_on(scene: Scene) -> None:
    replica = await scene.replica()
    caller, _ = await scene.watch(replica, ANN)
    before = await scene.write(EVE)
    await replica.look()
    await scene.world.follow(scene.people[ANN], scene.people[EVE])
    await scene.world.pass_time(1)
    between = await scene.write(EVE)
    assert before < between
    await replica.look()
    await caller.posts(between)
    after = await scene.write(EVE)
    await replica.look()
    await caller.posts(after)
    await scene.world.unfollow(scene.people[ANN], scene.people[EVE])
    await scene.world.deliver()
    await replica.look()
    await scene.write(EVE)
    await replica.look()
    await caller.nothing()


async def test_a_caller_who_does_not_read_is_cut_off_and_holds_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MAX_UNREAD", 5)
    replica = await scene.replica()
    stream = watch.Stream()
    for number in range(7):
        stream.put(Event(number=number))
    with pytest.raises(errors.Unavailable, match="slowly"):
        async for _ in stream.messages():
            pass
    await scene.watch(replica, ANN)
    await scene.stack.aclose()
    assert not replica.watches._count
    assert not replica.watches._by_author
    assert not replica.watches._by_user
    assert replica.news.tell is None


async def test_nobody_watches_a_feed_of_nobody(scene: Scene) -> None:
    replica = await scene.replica()
    caller = await scene.call(replica)
    caller.begin((1, 99), (2, scene.people[ANN]))
    refused, here = await caller.next(), await caller.next()
    assert (refused.HasField("refused"), list(refused.watcher_ids)) == (True, [1])
    assert (here.HasField("here"), list(here.watcher_ids)) == (True, [2])


# What is shown.


async def shown(replica: Replica, viewer_id: int, *rows: tuple[int, int, int]) -> list[post_pb2.Post]:
    request = pb.BatchGetLivePostsRequest()
    for row in rows:
        request.items.add(member=members.pack_one(*row), user_ids=[viewer_id])
    answers = (await replica.stub.BatchGetLivePosts(request)).items
    assert all(list(view.viewers) == [0] for answer in answers for view in answer.views)
    return [view.post for answer in answers for view in answer.views]


async def test_what_was_told_is_shown_as_it_is_by_then_and_only_if_it_may_be(scene: Scene) -> None:
    replica, world = await scene.replica(), scene.world
    ann, bob, eve = scene.people
    post_id = await scene.write(BOB)
    told = (post_id, bob, post_id)

    async def seen() -> bool:
        return bool(await shown(replica, ann, told))

    [post] = await shown(replica, ann, told)
    assert (post.content, post.likes) == ("words", 0)
    await world.like(eve, post_id)
    assert [post.likes for post in await shown(replica, ann, told)] == [1]
    assert not await shown(replica, eve, told)
    assert await shown(replica, bob, told)
    for hide, back in (
        (world.mute(ann, bob), world.unmute(ann, bob)),
        (world.unfollow(ann, bob), world.follow(ann, bob)),
    ):
        await hide
        assert not await seen()
        await back
        assert await seen()
    await world.block(bob, ann)
    assert not await seen()
    await world.unblock(bob, ann)
    await world.follow(ann, bob)
    assert await seen()
    await world.delete(bob, post_id)
    assert not await seen()
    assert await shown(replica, 99, told) == []


async def test_a_share_is_shown_as_its_original_while_it_is_shared(scene: Scene) -> None:
    replica, world = await scene.replica(), scene.world
    ann, bob, eve = scene.people
    original = await scene.write(EVE)
    share = int(await world.share(bob, original))
    told = (share, bob, original)
    [post] = await shown(replica, ann, told)
    assert (post.post_id, [sharer.user_id for sharer in post.shared_by]) == (original, [bob])
    await world.mute(ann, eve)
    assert not await shown(replica, ann, told)
    await world.unmute(ann, eve)
    assert await shown(replica, ann, told)
    await world.delete(bob, share)
    assert not await shown(replica, ann, told)


async def test_each_viewer_sees_a_post_in_their_own_way(scene: Scene) -> None:
    replica, world = await scene.replica(), scene.world
    ann, bob, eve = scene.people
    posts = [await scene.write(BOB), await scene.write(EVE), await scene.write(BOB, followers_only=True)]
    liked = await scene.write(BOB)
    await world.like(ann, liked)
    viewers = [ann, bob, eve, 99, ann]
    rows = [(posts[0], bob), (posts[1], eve), (posts[2], bob), (liked, bob)]
    request = pb.BatchGetLivePostsRequest()
    for post_id, author_id in rows:
        request.items.add(member=members.pack_one(post_id, author_id, post_id), user_ids=viewers)
    answers = (await replica.stub.BatchGetLivePosts(request)).items
    assert [[(view.post.post_id, view.post.liked, list(view.viewers)) for view in each.views] for each in answers] == [
        [(posts[0], False, [0, 1, 4])],
        [(posts[1], False, [2])],
        [(posts[2], False, [0, 1, 4])],
        [(liked, True, [0, 4]), (liked, False, [1])],
    ]
    # More than the graph is asked about at once.
    del request.items[1:]
    request.items[0].user_ids[:] = [*range(1, 500), ann]
    [answer] = (await replica.stub.BatchGetLivePosts(request)).items
    assert [list(view.viewers) for view in answer.views] == [[499]]
    request.items[0].user_ids.extend([ann] * 1_000)
    with pytest.raises(errors.InvalidArgument, match="1000 people"):
        await replica.stub.BatchGetLivePosts(request)


# The gateway's end.


@dataclass
class Edge:
    """A gateway's hub on a replica."""

    scene: Scene
    replica: Replica
    hub: Hub

    async def subscribe(self, person: int, token: bytes = b"") -> Subscriber:
        """A client that has begun."""
        subscriber = self.hub.join(self.scene.people[person], token)
        async with asyncio.timeout(PATIENCE_S):
            while not subscriber.begun:
                await asyncio.sleep(0.01)
        await self.replica.look()
        return subscriber

    async def told(self, *subscribers: Subscriber) -> None:
        """Waits until all that happened has come to the subscribers."""
        await self.replica.look()
        here = self.replica.news.here
        async with asyncio.timeout(PATIENCE_S):
            while any(each.token != here for each in subscribers):
                await self.replica.watches.say_where()
                await asyncio.sleep(0.02)

    async def take(self, subscriber: Subscriber) -> list[tuple[str, int]]:
        """What a client is told that takes what is there: kinds and posts."""
        return [
            (said["type"], said["post"]["post_id"] if "post" in said else said.get("post_id", 0))
            for said in await self.said(subscriber)
            if said["type"] != "notification"
        ]

    async def next_added(self, subscriber: Subscriber) -> int:
        """The next post that a client is told of. Raises what ends its events."""
        async with asyncio.timeout(3 * PATIENCE_S), aclosing(self.hub.events(subscriber)) as events:
            async for event in events:
                if event.kind == "post_added":
                    return int(json.loads(event.data)["post"]["post_id"])
        raise AssertionError("the events ended")

    async def arrived(self) -> None:
        """Waits until all that hub and replica have said to each other has been heard.

        Who joins is greeted after all that: on their stream everything comes in the order in which it was said.
        """
        last = self.hub.join(self.scene.people[EVE], b"")
        async with asyncio.timeout(PATIENCE_S):
            while not last.begun or self.hub._some_concerned.is_set():
                await asyncio.sleep(0.01)
        self.hub.leave(last)

    async def said(self, subscriber: Subscriber) -> list[dict[str, Any]]:
        """The same as it is sent."""
        found: list[dict[str, Any]] = []

        async def take() -> None:
            async with aclosing(self.hub.events(subscriber)) as events:
                async for event in events:
                    fields = dict(line.split(b": ", 1) for line in event.sent().splitlines() if line)
                    said = json.loads(event.data)
                    assert said["token"].encode() == fields[b"id"]
                    if event.kind != "here":
                        assert (fields[b"event"], fields[b"data"]) == (said["type"].encode(), event.data)
                        found.append(said)

        await self.arrived()
        taking = asyncio.create_task(take())
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.sleep(0)
            # Not while it reads posts: what it was about to tell would be lost.
            while subscriber._ready.is_set() and not taking.done():
                await asyncio.sleep(0.01)
        taking.cancel()
        with suppress(asyncio.CancelledError):
            await taking
        return found

    async def shows(self, subscriber: Subscriber, *post_ids: int) -> list[tuple[int, int, int, int]]:
        """Puts posts on a client's screen, of which each is new there; what it is told of them then."""
        self.hub.put_on_screen(subscriber, post_ids)
        found: list[tuple[int, int, int, int]] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < len(post_ids):
                found += await self.counts(subscriber)
        return found

    async def counts(self, subscriber: Subscriber) -> list[tuple[int, int, int, int]]:
        """What a client is told of counts: post, likes, comments, shares."""
        await self.scene.world.deliver()
        await self.replica.look()
        while await self.replica.watches.tell_changes():
            pass
        return [
            (said["post_id"], said["likes"], said["comments"], said["shares"])
            for said in await self.said(subscriber)
            if said["type"] == "counts"
        ]


@pytest_asyncio.fixture
async def edge(scene: Scene) -> AsyncIterator[Edge]:
    """A hub that runs."""
    replica = await scene.replica()
    hub = Hub(replica.channel)
    task = asyncio.create_task(hub.run())
    yield Edge(scene, replica, hub)
    task.cancel()
    await asyncio.wait((task,))


async def test_a_client_is_told_what_comes_and_goes_on_from_its_token(edge: Edge) -> None:
    first = await edge.subscribe(ANN)
    one = await edge.scene.write(BOB)
    await edge.told(first)
    assert await edge.take(first) == [("post_added", one)]
    token = first.token
    edge.hub.leave(first)
    two = await edge.scene.write(BOB)
    await edge.scene.world.delete(edge.scene.people[BOB], two)
    three = await edge.scene.write(BOB)
    again = await edge.subscribe(ANN, token)
    await edge.told(again)
    # Events of several partitions come in any order; what is gone by now is not shown.
    assert sorted(await edge.take(again)) == [("post_added", three), ("post_removed", two)]


async def test_what_waits_for_a_client_is_not_shown_once_it_is_hidden(edge: Edge) -> None:
    ann, bob, _ = edge.scene.people
    subscriber = await edge.subscribe(ANN)
    kept, gone = await edge.scene.write(BOB), await edge.scene.write(BOB)
    await edge.told(subscriber)
    await edge.scene.world.delete(bob, gone)
    assert await edge.take(subscriber) == [("post_added", kept)]
    await edge.scene.write(BOB)
    await edge.told(subscriber)
    await edge.scene.world.block(bob, ann)
    assert [kind for kind, _ in await edge.take(subscriber) if kind != "post_removed"] == []


async def test_who_takes_too_little_is_told_of_a_gap(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "MAX_WAITING", 3)
    monkeypatch.setattr(hubs, "LOST_S", 0.1)
    slow, other = await edge.subscribe(ANN), await edge.subscribe(ANN)
    assert await edge.take(other) == []
    posts = [await edge.scene.write(BOB) for _ in range(6)]
    await edge.told(slow, other)
    found = await edge.take(slow)
    assert found[0] == ("gap", 0)
    assert len(found) < len(posts)
    post_id = await edge.scene.write(BOB)
    await edge.told(slow)
    assert await edge.take(slow) == [("post_added", post_id)]


async def test_a_ping_takes_nothing_from_who_takes_nothing(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "MAX_WAITING", 3)
    monkeypatch.setattr(hubs, "PING_S", 1)
    slow = await edge.subscribe(ANN)
    assert await edge.take(slow) == []
    posts = [await edge.scene.write(BOB) for _ in range(3)]
    await edge.told(slow)
    await asyncio.sleep(2.5)
    assert sorted(await edge.take(slow)) == [("post_added", post_id) for post_id in posts]


async def test_one_person_has_so_many_connections_at_the_most(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "MAX_OF_USER", 2)
    monkeypatch.setattr(hubs, "MAX_SUBSCRIBERS", 3)
    ann, bob, eve = edge.scene.people
    first, _ = edge.hub.join(ann, b""), edge.hub.join(ann, b"")
    with pytest.raises(errors.Error) as refused:
        edge.hub.join(ann, b"")
    assert refused.value.reason == "TOO_MANY_STREAMS"
    edge.hub.join(bob, b"")
    with pytest.raises(errors.Unavailable):
        edge.hub.join(eve, b"")
    edge.hub.leave(first)
    edge.hub.leave(first)
    edge.hub.join(ann, b"")


async def test_a_feed_of_nobody_and_a_token_that_is_none(edge: Edge) -> None:
    nobody = edge.hub.join(99, b"")
    with pytest.raises(errors.NotFound):
        await edge.take(nobody)
    for text in ("!", "a", "\u00e9", "A" * 200, "-_-_"):
        subscriber = await edge.subscribe(ANN, hubs.token_of(text))
        assert await edge.take(subscriber) == [("gap", 0)]
        edge.hub.leave(subscriber)
    assert hubs.token_of("") == b""


async def test_a_hub_that_drains_lets_everybody_go_and_takes_nobody(edge: Edge) -> None:
    subscriber = await edge.subscribe(ANN)
    events = edge.hub.events(subscriber)
    assert (await anext(events)).kind == "here"
    taking = asyncio.ensure_future(anext(events, None))
    await asyncio.sleep(0)
    edge.hub.drain()
    async with asyncio.timeout(PATIENCE_S):
        assert await taking is None
    with pytest.raises(errors.Unavailable):
        edge.hub.join(edge.scene.people[BOB], b"")


async def test_without_clients_there_is_no_stream(edge: Edge) -> None:
    subscriber = await edge.subscribe(ANN)
    assert edge.replica.news.tell is not None
    edge.hub.leave(subscriber)
    async with asyncio.timeout(PATIENCE_S):
        while edge.replica.news.tell is not None:
            await edge.replica.watches.say_where()
            await asyncio.sleep(0.02)
    await edge.subscribe(ANN)


async def test_while_the_graph_is_away_nothing_is_taken_for_what_it_is_not(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriber = await edge.subscribe(ANN)
    before = subscriber.token
    hidden = await edge.scene.write(BOB, followers_only=True)
    await edge.told(subscriber)
    relations = edge.scene.world.replicas[0].relations
    of = relations.of

    async def kept(viewer_ids: Sequence[int], *rest: Any) -> tuple[dict[int, Any], bool]:
        return {}, True

    # As where of these viewers nothing is known of before the graph was gone, but of another.
    monkeypatch.setattr(relations, "of", kept)
    with pytest.raises(errors.Unavailable):
        await edge.next_added(subscriber)
    caller = await edge.scene.call(edge.replica)
    caller.begin((1, edge.scene.people[ANN]))
    await caller.nothing()
    with pytest.raises(errors.Unavailable):
        await notifications(edge.scene.world.replicas[0]).pages(
            [pb.ListNotificationsRequest(user_id=edge.scene.people[ANN])]
        )
    monkeypatch.setattr(relations, "of", of)
    assert (await caller.next()).HasField("here")
    # What it did not take it is told when it comes back, by what it had before.
    again = await edge.subscribe(ANN, before)
    await edge.told(again)
    assert await edge.take(again) == [("post_added", hidden)]


async def test_who_is_followed_while_a_watcher_begins_is_told_of(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = await scene.replica()
    await scene.watch(replica, BOB)
    settled = replica.news.settled

    async def meanwhile() -> Any:
        # After relations were read, and heard of before the watcher is there.
        await scene.world.follow(scene.people[ANN], scene.people[EVE])
        await scene.world.deliver()
        await replica.look()
        return await settled()

    monkeypatch.setattr(replica.news, "settled", meanwhile)
    caller, _ = await scene.watch(replica, ANN)
    post_id = await scene.write(EVE)
    await replica.look()
    await caller.posts(post_id)


async def test_news_of_whom_one_follows_anew_need_not_be_in_order(scene: Scene) -> None:
    replica = await scene.replica()
    caller, _ = await scene.watch(replica, ANN)
    await scene.world.follow(scene.people[ANN], scene.people[EVE])
    # Partition by partition: what is read last is older than what one followed.
    before = await scene.world.write(scene.people[BOB])
    await scene.world.pass_time(1)
    after = await scene.world.write(scene.people[EVE])
    await scene.world.deliver()
    replica.news._items.clear()
    while await replica.news.step():
        pass
    items = sorted(replica.news._items, key=lambda item: -item.event_id)
    replica.news._items.clear()
    replica.news._items.extend(items)
    told = [item.post_id for item in replica.news.by_authors({scene.people[EVE]: before})]
    assert told == [after]
    del caller


async def test_an_event_may_concern_more_clients_than_a_batch_holds(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "MAX_OF_USER", 3_000)
    first = await edge.subscribe(ANN)
    others = [edge.hub.join(edge.scene.people[person], b"") for person in (ANN, BOB) for _ in range(2_500)]
    async with asyncio.timeout(30):
        while not all(each.begun for each in others):
            await asyncio.sleep(0.05)
    told = [asyncio.create_task(edge.next_added(each)) for each in (first, *others)]
    await asyncio.sleep(0.1)
    post_id = await edge.scene.write(BOB)
    await edge.replica.look()
    assert await asyncio.gather(*told) == [post_id] * 5_001


# What is on screen.


async def test_of_posts_on_screen_counts_are_told_when_they_change(edge: Edge) -> None:
    world, (ann, _, eve) = edge.scene.world, edge.scene.people
    subscriber = await edge.subscribe(ANN)
    # Of anybody, not only of whom one follows.
    one, two = await edge.scene.write(BOB), await edge.scene.write(EVE)
    await edge.told(subscriber)
    await edge.take(subscriber)
    assert sorted(await edge.shows(subscriber, one, two)) == [(one, 0, 0, 0), (two, 0, 0, 0)]
    assert await edge.counts(subscriber) == []
    for liker in edge.scene.people:
        await world.like(liker, two)
    await world.comment(ann, two)
    await world.share(eve, one)
    assert sorted(await edge.counts(subscriber)) == [(one, 0, 0, 1), (two, 3, 1, 0)]
    await world.unlike(eve, two)
    assert await edge.counts(subscriber) == [(two, 2, 1, 0)]
    # What is not on screen any more is not told, and what was is told once it is back.
    edge.hub.put_on_screen(subscriber, [one])
    assert await edge.counts(subscriber) == []
    await world.like(eve, two)
    assert await edge.counts(subscriber) == []
    assert await edge.shows(subscriber, two) == [(two, 3, 1, 0)]
    edge.hub.leave(subscriber)
    assert not edge.hub._seeing


async def test_what_is_new_on_a_screen_is_told_to_be_looked_at(scene: Scene) -> None:
    replica = await scene.replica()
    caller = await scene.call(replica)
    request = pb.WatchFeedRequest()
    request.begin.add(watcher_id=1, user_id=scene.people[ANN], on_screen=[5, 6])
    caller.requests.put_nowait(request)
    assert (await caller.next()).HasField("here")
    # From now on changes are told, so what was looked at before may be old.
    event = await caller.next()
    assert (sorted(event.changed.post_ids), list(event.watcher_ids)) == ([5, 6], [1])
    caller.requests.put_nowait(
        pb.WatchFeedRequest(screens=[pb.WatchFeedRequest.Screen(watcher_id=each, post_ids=[6, 7]) for each in (1, 2)])
    )
    event = await caller.next()
    assert (list(event.changed.post_ids), list(event.watcher_ids)) == ([7], [1])
    await caller.nothing()
    caller.requests.put_nowait(
        pb.WatchFeedRequest(screens=[pb.WatchFeedRequest.Screen(watcher_id=1, post_ids=range(51))])
    )
    with pytest.raises(errors.InvalidArgument, match="post_ids"):
        await caller.next()


async def test_of_one_post_counts_are_told_once_a_turn_to_all_who_see_it(edge: Edge) -> None:
    world, (_, bob, eve) = edge.scene.world, edge.scene.people
    post_id = await edge.scene.write(BOB)
    subscribers = [await edge.subscribe(person) for person in (ANN, BOB, EVE)]
    for subscriber in subscribers:
        await edge.shows(subscriber, post_id)
    for _ in range(3):
        await world.like(eve, post_id)
        await world.unlike(eve, post_id)
    await world.like(bob, post_id)
    await world.like(eve, post_id)
    told = [await edge.counts(subscriber) for subscriber in subscribers]
    assert told == [[(post_id, 2, 0, 0)]] * 3


@pytest.mark.parametrize("how", ["delete", "block", "blocked", "private", "erase", "unfollow"])
async def test_what_may_not_be_seen_any_more_goes_from_screens(edge: Edge, how: str) -> None:
    world, (ann, bob, _) = edge.scene.world, edge.scene.people
    post_id = await edge.scene.write(BOB, followers_only=how == "unfollow")
    viewer = EVE if how == "private" else ANN
    subscriber = await edge.subscribe(viewer)
    other = await edge.subscribe(BOB)
    assert len(await edge.shows(subscriber, post_id)) == len(await edge.shows(other, post_id)) == 1
    await {
        "delete": lambda: world.delete(bob, post_id),
        "block": lambda: world.block(ann, bob),
        "blocked": lambda: world.block(bob, ann),
        "private": lambda: world.set_private(bob, True),
        "erase": lambda: world.erase(bob),
        "unfollow": lambda: world.unfollow(ann, bob),
    }[how]()
    # By then the post service knows who is private.
    await world.pass_time(watch.HIDDEN_S)
    found: list[tuple[str, int]] = []
    async with asyncio.timeout(PATIENCE_S):
        while not found:
            await edge.scene.world.deliver()
            await edge.replica.look()
            await edge.replica.watches.tell_changes()
            found = await edge.take(subscriber)
    # Ann follows the author too.
    assert set(found) == {("post_removed", post_id)}
    assert not subscriber.screen
    if how not in ("delete", "erase"):
        assert await edge.take(other) == []
        assert other.screen


async def test_what_comes_back_on_screen_is_looked_at_anew(edge: Edge) -> None:
    world, (ann, bob, _) = edge.scene.world, edge.scene.people
    post_id = await edge.scene.write(BOB)
    subscriber = await edge.subscribe(ANN)
    assert await edge.shows(subscriber, post_id) == [(post_id, 0, 0, 0)]
    edge.hub.put_on_screen(subscriber, [])
    edge.hub.put_on_screen(subscriber, [post_id])
    assert await edge.counts(subscriber) == [(post_id, 0, 0, 0)]
    await world.block(bob, ann)
    await edge.counts(subscriber)
    assert not subscriber.screen
    await world.unblock(bob, ann)
    assert await edge.shows(subscriber, post_id) == [(post_id, 0, 0, 0)]
    assert await edge.counts(subscriber) == []
    await world.block(bob, ann)
    await edge.counts(subscriber)
    assert not subscriber.screen
    assert not edge.hub._seeing


async def test_what_was_not_heard_is_looked_at_once_hearing_goes_on(edge: Edge) -> None:
    world, (ann, bob, _) = edge.scene.world, edge.scene.people
    post_id = await edge.scene.write(BOB)
    subscriber = await edge.subscribe(ANN)
    assert len(await edge.shows(subscriber, post_id)) == 1
    await world.block(bob, ann)
    await world.deliver()
    # As after a gap: where it goes on, the block is past.
    edge.replica.watches._position = None
    found: list[tuple[str, int]] = []
    async with asyncio.timeout(PATIENCE_S):
        while not found:
            await edge.replica.look()
            await edge.replica.watches.tell_changes()
            found = await edge.take(subscriber)
    assert found == [("post_removed", post_id)]


async def test_after_a_stream_broke_what_changed_meanwhile_is_told(edge: Edge) -> None:
    world, (_, _, eve) = edge.scene.world, edge.scene.people
    posts = [await edge.scene.write(BOB) for _ in range(3)]
    subscriber = await edge.subscribe(ANN)
    assert len(await edge.shows(subscriber, *posts)) == 3
    [stream] = edge.replica.watches._streams
    stream.end(errors.Unavailable("it breaks"))
    await world.like(eve, posts[0])
    async with asyncio.timeout(PATIENCE_S):
        while not (told := await edge.counts(subscriber)):
            pass
    assert told == [(posts[0], 1, 0, 0)]
    await world.like(eve, posts[1])
    assert await edge.counts(subscriber) == [(posts[1], 1, 0, 0)]


async def test_who_is_gone_is_on_no_index(edge: Edge) -> None:
    post_id = await edge.scene.write(BOB)
    subscriber = await edge.subscribe(ANN)
    await edge.shows(subscriber, post_id)
    watches = edge.replica.watches
    assert list(watches._on_screen) == [post_id]
    edge.hub.leave(subscriber)
    async with asyncio.timeout(PATIENCE_S):
        while watches._count:
            await watches.say_where()
            await asyncio.sleep(0.02)
    assert not watches._on_screen
    assert not edge.hub._seeing


# What concerns people.


async def test_who_is_concerned_is_told_and_nobody_else(scene: Scene) -> None:
    world, (ann, bob, eve) = scene.world, scene.people
    replica = await scene.replica()
    caller = await scene.call(replica)
    caller.begin((1, ann), (2, bob), (3, eve), (4, bob))
    assert (await caller.next()).HasField("here")
    post_id = await scene.write(BOB)
    await replica.look()
    await caller.next()
    # Whoever begins looks once.
    assert sorted(caller.notified) == [1, 2, 3, 4]

    async def told() -> list[int]:
        caller.notified.clear()
        await world.deliver()
        await replica.look()
        while await replica.watches.tell_changes():
            pass
        await caller.nothing()
        return sorted(caller.notified)

    # And once more when what happens in the graph begins to be heard.
    assert await told() == [1, 2, 3, 4]
    await world.like(bob, post_id)
    assert await told() == []
    for _ in range(3):
        await world.like(eve, post_id)
        await world.unlike(eve, post_id)
    assert await told() == [2, 4]
    await world.comment(ann, post_id)
    await world.follow(eve, ann)
    assert await told() == [1, 2, 4]
    await world.set_private(ann, True)
    await world.unfollow(bob, ann)
    await world.follow(bob, ann)
    assert await told() == [1]


async def test_a_client_is_told_of_notifications_when_it_comes_and_when_they_change(edge: Edge) -> None:
    world, (ann, bob, eve) = edge.scene.world, edge.scene.people
    post_id = await edge.scene.write(BOB)
    first = await edge.subscribe(BOB)

    async def notes(subscriber: Subscriber) -> list[tuple[int, str, list[int]]]:
        await world.deliver()
        await edge.replica.look()
        await edge.replica.watches.tell_changes()
        return [
            (
                said["unread"],
                said["notification"]["kind"],
                [actor["user_id"] for actor in said["notification"]["actors"]],
            )
            for said in await edge.said(subscriber)
            if said["type"] == "notification"
        ]

    # That Ann follows him.
    assert await notes(first) == [(1, "followed", [ann])]
    assert await notes(first) == []
    await world.pass_time(1)
    await world.like(eve, post_id)
    assert await notes(first) == [(2, "liked", [eve])]
    await world.like(ann, post_id)
    await world.like(bob, post_id)
    assert await notes(first) == [(2, "liked", [ann, eve])]
    second = await edge.subscribe(BOB)
    assert await notes(second) == [(2, "liked", [ann, eve])]
    await world.block(bob, ann)
    assert await notes(second) == [(1, "liked", [eve])]
    # Who reads them elsewhere has read them here.
    other = notifications(edge.scene.world.replicas[1])
    [page] = await other.pages([pb.ListNotificationsRequest(user_id=bob)])
    assert isinstance(page, pb.ListNotificationsResponse)
    newest = page.notifications[0].notification_id
    await other.read(pb.ReadNotificationsRequest(user_id=bob, notification_id=newest))
    assert await notes(second) == [(0, "liked", [eve])]
    # Who comes back is told in any case: there may have been some when it left.
    third = await edge.subscribe(BOB, second.token)
    assert await notes(third) == [(0, "liked", [eve])]
    # Who has none is told nothing.
    assert await notes(await edge.subscribe(EVE)) == []
