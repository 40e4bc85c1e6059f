"""Feeds equal what was written, through every crossing of pushes, pulls, builds, crashes and losses of Redis.

Everything is real and nothing runs by itself: the test owns the schedule. Relays, consumers, transitions and guards are
steps that it takes, in any order, between what people do; two replicas read.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub, add_GraphServiceServicer_to_server
from feedmesh.post.v1 import post_pb2
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub, add_PostServiceServicer_to_server
from feedmesh.ranking.v1.ranking_pb2_grpc import RankingServiceStub
from feedmesh.timeline.v1 import timeline_pb2 as pb
from launch.valkey import Running as Valkey
from runtime import client, counts, postgres
from runtime.consumer import Consumer
from runtime.paging import Cursors
from runtime.relations import Relations
from runtime.relay import Relay
from runtime.streams import EVENT, PARTITIONS, stream_keys
from services.graph import servicer as graph_service
from services.graph.store import USER_COUNTS
from services.post import servicer as post_service
from services.post.sight import Sights
from services.timeline import modes, store
from services.timeline.deliver import Fanout
from services.timeline.feed import Parts, get_feeds
from services.timeline.timelines import home_key
from tests.fakes.databases import Databases, settings_of
from tests.fakes.serving import serving
from tests.integration.timeline_stores import TimelineStores, timeline_stores

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

PEOPLE = 5
SECRET = "a secret of at least 32 characters"
LIMITS = (0, 1, 2, 10)
Worlds = Callable[[], AbstractAsyncContextManager["World"]]
Act = tuple[str, int, int]


@dataclass
class Row:
    """What the model knows of a post."""

    post_id: int
    author: int
    original: int
    deleted: bool = False


@dataclass
class World:
    """A mesh that moves only when it is told to."""

    graph: GraphServiceAsyncStub
    post: PostServiceAsyncStub
    stores: TimelineStores
    replicas: list[Parts]
    relays: list[Relay]
    workers: list[list[Consumer]]
    fanout: Fanout
    people: list[int]
    rows: list[Row] = field(default_factory=list)
    follows: set[tuple[int, int]] = field(default_factory=set)
    limit: int = LIMITS[-1]

    # What people do.

    async def write(self, author: int) -> None:
        """A post."""
        request = post_pb2.CreatePostRequest(user_id=self.people[author], content="words")
        post_id = (await self.post.CreatePost(request)).post.post_id
        self.rows.append(Row(post_id, author, post_id))

    async def share(self, sharer: int, number: int) -> None:
        """A plain share."""
        gone = {row.post_id for row in self.rows if row.deleted}
        aims = [row for row in self.rows if row.post_id == row.original and row.post_id not in gone]
        if aims:
            aim = aims[number % len(aims)]
            request = post_pb2.SharePostRequest(user_id=self.people[sharer], post_id=aim.post_id)
            share_id = (await self.post.SharePost(request)).post.post_id
            if share_id not in {row.post_id for row in self.rows}:
                self.rows.append(Row(share_id, sharer, aim.post_id))

    async def delete(self, number: int) -> None:
        """A post or a share that its author deletes."""
        there = [row for row in self.rows if not row.deleted]
        if there:
            row = there[number % len(there)]
            row.deleted = True
            gone = next(each.deleted for each in self.rows if each.post_id == row.original)
            if row.post_id == row.original or not gone:
                request = post_pb2.DeletePostRequest(post_id=row.post_id, user_id=self.people[row.author])
                await self.post.DeletePost(request)

    async def follow(self, follower: int, followee: int) -> None:
        """A follow."""
        if follower != followee:
            self.follows.add((follower, followee))
            await self.graph.Follow(
                graph_pb2.FollowRequest(follower_id=self.people[follower], following_id=self.people[followee])
            )

    async def unfollow(self, follower: int, followee: int) -> None:
        """An unfollow."""
        self.follows.discard((follower, followee))
        await self.graph.Unfollow(
            graph_pb2.UnfollowRequest(follower_id=self.people[follower], following_id=self.people[followee])
        )

    # What the mesh does.

    async def relay(self) -> None:
        """One step of each relay."""
        for relay in self.relays:
            await relay.publish()
            await relay.republish()

    async def consume(self, number: int) -> None:
        """One step of some worker."""
        for consumer in self.workers[number % len(self.workers)]:
            await consumer.step()

    async def settle(self) -> None:
        """Lets everything come to rest."""
        for relay in self.relays:
            await relay.detect()
            await relay.tend()
            for work in (relay.publish, relay.republish):
                while await work():
                    pass
        for replica in self.replicas:
            await replica.sources.guard.look()
        for worker in self.workers:
            while sum([await consumer.step() for consumer in worker]):
                pass
        await self.reconcile()
        for _ in range(3):
            await self.fanout.transitions.advance()

    # What breaks.

    async def flush(self) -> None:
        """Redis loses everything; nobody has noticed yet."""
        await self.stores.client.flushall()
        await self.notice()

    async def notice(self) -> None:
        """Relays and guards look."""
        for relay in self.relays:
            await relay.detect()
            await relay.tend()

    async def repeat(self, number: int) -> None:
        """An event that was published comes again, late."""
        for relay in self.relays:
            for key in stream_keys(relay.topic):
                entries: Any = await self.stores.client.xrange(key)
                if entries:
                    _, fields = entries[number % len(entries)]
                    await self.stores.client.xadd(key, {EVENT: fields[EVENT]})

    async def half_build(self, reader: int) -> None:
        """A builder makes a list and dies."""
        sources = self.replicas[0].sources
        key = home_key(self.people[reader])
        timeline = await sources.timelines.read(key)
        await sources.timelines.create(
            key, sources.guard.epoch, replaced=timeline.incarnation if timeline is not None else 0
        )

    async def expire(self, reader: int) -> None:
        """Somebody has not read for too long."""
        await self.stores.client.delete(home_key(self.people[reader]))

    # What readers see.

    def expected(self, reader: int) -> list[int]:
        """A reader's feed, newest first, from what was written alone."""
        authors = {followee for follower, followee in self.follows if follower == reader} | {reader}
        gone = {row.post_id for row in self.rows if row.deleted}
        place: dict[int, int] = {}
        for row in self.rows:
            if row.author in authors and row.original not in gone and not row.deleted:
                place[row.original] = max(place.get(row.original, 0), row.post_id)
        return sorted(place, key=lambda post_id: -place[post_id])

    async def read(self, reader: int, replica: int, limit: int = 7) -> tuple[list[int], set[str]]:
        """A reader's feed to its end, and what it was degraded by."""
        shown: list[int] = []
        degraded: set[str] = set()
        cursor = ""
        while True:
            request = pb.GetFeedRequest(
                user_id=self.people[reader], limit=limit, cursor=cursor, order=pb.FEED_ORDER_LATEST
            )
            [page] = await get_feeds(self.replicas[replica], [request])
            assert isinstance(page, pb.GetFeedResponse), page
            degraded.update(page.degraded)
            shown += [post.post_id for post in page.posts]
            if not page.HasField("next_cursor"):
                return shown, degraded
            cursor = page.next_cursor

    async def peek(self, reader: int, replica: int) -> None:
        """A read while events are in flight: nothing twice, nothing that may not be there, one's own writes there."""
        shown, _ = await self.read(reader, replica)
        wanted = self.expected(reader)
        assert len(shown) == len(set(shown))
        assert set(shown) <= set(wanted)
        own = {row.post_id for row in self.rows if row.author == reader and row.post_id == row.original}
        assert own & set(wanted) <= set(shown)

    async def check(self) -> None:
        """After everything came to rest: every feed at every replica is what was written."""
        await self.settle()
        for reader in range(PEOPLE):
            for replica in range(len(self.replicas)):
                shown, degraded = await self.read(reader, replica)
                assert shown == self.expected(reader), f"reader {reader} at replica {replica}"
                assert not degraded

    async def act(self, act: Act) -> None:
        """Does what one letter says."""
        kind, one, number = act
        other = number % PEOPLE
        acts: dict[str, Callable[[], Awaitable[None]]] = {
            "p": lambda: self.write(one),
            "s": lambda: self.share(one, number),
            "d": lambda: self.delete(number),
            "f": lambda: self.follow(one, other),
            "u": lambda: self.unfollow(one, other),
            "r": self.relay,
            "c": lambda: self.consume(number),
            "R": lambda: self.peek(one, number % 2),
            "l": lambda: store.set_limit(self.stores.pool, LIMITS[number % len(LIMITS)]),
            "m": self.reconcile,
            "a": self.advance,
            "x": lambda: self.expire(one),
            "h": lambda: self.half_build(one),
            "2": lambda: self.repeat(number),
            "F": self.flush,
        }
        await acts[kind]()

    async def reconcile(self) -> None:
        """Transitions look at everyone, if the limit is another."""
        await counts.fold(self.relays[1].pool, USER_COUNTS)
        await self.fanout.transitions.reconcile()

    async def advance(self) -> None:
        """Transitions take a step."""
        await self.fanout.transitions.advance()


@asynccontextmanager
async def world(databases: Databases, valkey: Valkey) -> AsyncIterator[World]:
    """Five people on empty stores; lists hold five posts, windows four."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        graph_pool = await enter(postgres.connect(settings_of(await enter(databases.lend("services.graph")))))
        post_pool = await enter(postgres.connect(settings_of(await enter(databases.lend("services.post")))))
        stores = await enter(timeline_stores(databases, valkey, cap=5, slack=2))
        graph_servicer = graph_service.GraphServicer(graph_pool, Cursors(SECRET), 5000)
        served = await enter(
            serving(lambda s: add_GraphServiceServicer_to_server(graph_servicer, s), services=(graph_service.SERVICE,))
        )
        graph = GraphServiceStub(await enter(client.connect(served.target, graph_service.SERVICE)))
        post_servicer = post_service.PostServicer(post_pool, Sights(graph), Cursors(SECRET))
        served = await enter(
            serving(lambda s: add_PostServiceServicer_to_server(post_servicer, s), services=(post_service.SERVICE,))
        )
        post_channel = await enter(client.connect(served.target, post_service.SERVICE))
        post = PostServiceStub(post_channel)
        fanouts = [await stores.fanout(graph, post, limit=LIMITS[-1]) for _ in range(2)]
        yield World(
            graph,
            post,
            stores,
            [
                Parts(
                    Relations(graph),
                    Cursors(SECRET),
                    await stores.sources(post),
                    graph,
                    post,
                    # Newest first needs no ranking.
                    RankingServiceStub(post_channel),
                    window=4,
                )
                for _ in range(2)
            ],
            [
                Relay(pool, stores.client, topic, ("timeline",), 60)
                for topic, pool in (("post", post_pool), ("graph", graph_pool))
            ],
            [
                [
                    Consumer(stores.client, topic, partition, "timeline", handle)
                    for topic, handle in (("post", fanout.post_events), ("graph", fanout.graph_events))
                    for partition in range(PARTITIONS)
                ]
                for fanout in fanouts
            ],
            fanouts[0],
            [
                (
                    await graph.CreateUser(
                        graph_pb2.CreateUserRequest(username=f"person{n}", email=f"person{n}@example.org")
                    )
                ).user.user_id
                for n in range(PEOPLE)
            ],
        )


@pytest.fixture(scope="session")
def worlds(databases: Databases, valkey: Valkey) -> Worlds:
    """Makes worlds."""
    return lambda: world(databases, valkey)


@pytest.fixture(autouse=True, scope="module")
def _no_knowledge_is_kept() -> Iterator[None]:
    """Readers look at the modes every time, so that an author need not be in both for longer than that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modes, "FRESH_S", 0.0)
        patch.setattr(modes, "BOTH_S", 0.0)
        patch.setattr("services.timeline.authors.CACHE_S", 0.0)
        yield


EVERYONE: list[Act] = [("f", one, other) for one in range(PEOPLE) for other in range(PEOPLE) if one != other]


HAPPENS = "p" * 12 + "s" * 4 + "dd" + "ff" + "uu" + "r" * 6 + "c" * 6 + "R" * 6 + "l" + "mm" + "aaa" + "x" + "h" + "22"
"""How often what happens: see `World.act`."""
ACTS = 250


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("losses", ["", "F"], ids=["redis stays", "redis is flushed"])
async def test_every_feed_equals_what_was_written(worlds: Worlds, seed: int, losses: str) -> None:
    chance = random.Random(seed)
    async with worlds() as mesh:
        await mesh.notice()
        for act in EVERYONE[::2]:
            await mesh.act(act)
        for _ in range(ACTS):
            await mesh.act((chance.choice(HAPPENS + losses), chance.randrange(PEOPLE), chance.randrange(10**6)))
        await mesh.check()


async def published(mesh: World, topic: int) -> list[event_pb2.Event]:
    """All events of a topic so far, in the order of their ids; no consumer has seen one."""
    relay = mesh.relays[topic]
    while await relay.publish():
        pass
    events = []
    for key in stream_keys(relay.topic):
        entries: Any = await mesh.stores.client.xrange(key)
        events += [event_pb2.Event.FromString(fields[EVENT]) for _, fields in entries]
    return sorted(events, key=lambda event: event.event_id)


async def test_an_unfollow_that_is_handled_after_the_next_follow_takes_nothing_away(worlds: Worlds) -> None:
    async with worlds() as mesh:
        await mesh.notice()
        await mesh.follow(0, 1)
        await mesh.read(0, 0)
        await mesh.unfollow(0, 1)
        await mesh.write(1)  # to nobody
        await mesh.read(0, 1)
        await mesh.follow(0, 1)
        await mesh.write(1)
        graph_events = [event for event in await published(mesh, 1) if event.HasField("follow_changed")]
        assert [event.follow_changed.following for event in graph_events] == [True, False, True]
        for event in [graph_events[2], graph_events[0], graph_events[1]]:
            await mesh.fanout.graph_events([event])
        await mesh.fanout.post_events(await published(mesh, 0))
        for replica in (0, 1):
            assert await mesh.read(0, replica) == (mesh.expected(0), set())
        assert len(mesh.expected(0)) == 2


@pytest.mark.parametrize("seed", range(3))
async def test_events_that_come_twice_and_in_any_order_change_nothing(worlds: Worlds, seed: int) -> None:
    chance = random.Random(seed)
    async with worlds() as mesh:
        await mesh.notice()
        for act in EVERYONE:
            await mesh.act(act)
        for reader in range(PEOPLE):
            await mesh.read(reader, 0)
        for _ in range(25):
            await mesh.act((chance.choice("ppppsdfu"), chance.randrange(PEOPLE), chance.randrange(10**6)))
        for topic, handle in ((0, mesh.fanout.post_events), (1, mesh.fanout.graph_events)):
            events = await published(mesh, topic) * 3
            chance.shuffle(events)
            for event in events:
                await handle([event])
        for reader in range(PEOPLE):
            assert await mesh.read(reader, 1) == (mesh.expected(reader), set())


async def test_a_reader_who_knows_an_author_as_pushed_misses_nothing_that_is_written_on_the_way_to_pull(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "FRESH_S", 60.0)
    monkeypatch.setattr(modes, "STALE_S", 60.0)
    async with worlds() as mesh:
        await mesh.notice()
        await mesh.follow(0, 1)
        await mesh.read(0, 0)  # its replica knows: nobody is pulled
        await store.set_limit(mesh.stores.pool, 0)
        await mesh.reconcile()
        assert set((await store.modes(mesh.stores.pool, mesh.people)).values()) == {"both"}
        await mesh.write(1)
        await mesh.fanout.post_events(await published(mesh, 0))
        assert await mesh.read(0, 0) == (mesh.expected(0), set())


async def test_a_read_that_takes_longer_than_its_knowledge_of_the_modes_begins_again(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worlds() as mesh:
        await mesh.notice()
        await mesh.follow(0, 1)
        await mesh.write(1)
        await mesh.settle()
        monkeypatch.setattr(modes, "STALE_S", -1.0)
        assert await mesh.read(0, 0) == (mesh.expected(0), {"redis"})
