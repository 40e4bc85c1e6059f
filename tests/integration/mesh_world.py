"""A mesh that moves only when it is told to: everything is real, and nothing runs by itself.

Relays, consumers, transitions, upkeep and the clock are steps that a test takes, in any order, between what people do
and what breaks; two replicas read. Lists hold five posts and windows four, so that their ends are met all the time. The
same steps lead to the same state: ids come from a clock that the test holds, and no step goes by the machine's.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis.exceptions import ResponseError

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub, add_GraphServiceServicer_to_server
from feedmesh.post.v1 import post_pb2
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub, add_PostServiceServicer_to_server
from feedmesh.ranking.v1.ranking_pb2_grpc import RankingServiceStub, add_RankingServiceServicer_to_server
from feedmesh.timeline.v1 import timeline_pb2 as pb
from launch.valkey import Running as Valkey
from runtime import client, consumer, counts, errors, ids, postgres, relations
from runtime.clock import wall_clock
from runtime.consumer import Consumer, Handle
from runtime.media import MediaUrls
from runtime.paging import Cursors
from runtime.relations import Relations
from runtime.relay import Relay
from runtime.streams import EVENT, PARTITIONS, groups_of, stream_key, stream_keys
from services.graph import relay as graph_relay
from services.graph import servicer as graph_service
from services.graph import upkeep as graph_upkeep
from services.graph.store import USER_COUNTS
from services.post import eraser, hot, people
from services.post import relay as post_relay
from services.post import servicer as post_service
from services.post import upkeep as post_upkeep
from services.post.people import People
from services.post.sight import Sights
from services.post.store import POST_COUNTS
from services.ranking import servicer as ranking_service
from services.timeline import authors, feed, modes, store
from services.timeline.deliver import Fanout
from services.timeline.fanout import GROUP
from services.timeline.feed import Parts
from services.timeline.modes import BOTH_S
from services.timeline.timelines import home_key
from tests.fakes.databases import EMPTY, Databases, settings_of
from tests.fakes.serving import CALLER, serving
from tests.integration.timeline_stores import TimelineStores, feeds, timeline_stores

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub
    from feedmesh.ranking.v1.ranking_pb2_grpc import RankingServiceAsyncStub

SECRET = "a secret of at least 32 characters"
LIMITS = (0, 1, 2, 10)
"""Limits of followers that are tried; the last is the setting."""
CAP, SLACK, WINDOW = 5, 2, 4
REPLICAS = WORKERS = 2
POST, GRAPH = 0, 1
"""The topics, as places of `World.relays`."""
PATIENCE_S = 60.0
"""How long anything may take on a busy machine before it is given up; no step is to go by that."""
EXAMPLE_MS = 1_000
"""By how much the ids of two worlds on one mesh differ at the least, so that no cache mistakes one for the other."""

HELD_IDS = """
CREATE SEQUENCE IF NOT EXISTS held_ids;
CREATE OR REPLACE FUNCTION next_id() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT nextval('held_ids') $$"""
"""Ids one after the other, from what the held clock says on."""


class Clock:
    """What the whole mesh takes for the time."""

    def __init__(self) -> None:
        self.now_ms = wall_clock()

    def __call__(self) -> int:
        """Milliseconds since 1970, as runtime.clock has it."""
        return self.now_ms

    def seconds(self) -> float:
        """As `time.monotonic()` has it."""
        return self.now_ms / 1000


@contextmanager
def held_time(clock: Clock) -> Iterator[None]:
    """For the block, what goes by the machine's clock goes by the held one, has no time limit, or is done at once."""
    with pytest.MonkeyPatch.context() as patch:
        # Readers' knowledge of the modes ages by the held clock; `advance` lets more pass than it may live.
        patch.setattr(modes, "time", SimpleNamespace(monotonic=clock.seconds))
        patch.setattr(modes, "BOTH_S", 0.0)
        patch.setattr(modes, "LEASE_S", 0.0)
        patch.setattr(authors, "CACHE_S", 0.0)
        # What the post service keeps stays until time passes: whatever changes meanwhile must be heeded.
        patch.setattr(hot, "time", SimpleNamespace(monotonic=clock.seconds))
        # Entries of a worker that died are taken over, and events that failed tried again, in the next step.
        patch.setattr(consumer, "TOUCH_S", 0.0)
        patch.setattr(consumer, "CLAIM_MS", 0)
        patch.setattr(consumer, "FIRST_BACKOFF_S", 0.0)
        for module, name in (
            (modes, "LOOK_S"),
            (feed, "RANKING_TIMEOUT_S"),
            (people, "SHOWN_TIMEOUT_S"),
            (relations, "TIMEOUT_S"),
        ):
            patch.setattr(module, name, PATIENCE_S)
        yield


@dataclass
class Hold:
    """An answer that is to be held back."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class Gate:
    """A client whose next answer can be held back: what it says grows old before anybody goes by it."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self.next: Hold | None = None

    def __getattr__(self, name: str) -> Any:
        async def call(request: Any, **options: Any) -> Any:
            answer = await getattr(self._stub, name)(request, **options)
            hold, self.next = self.next, None
            if hold is not None:
                hold.reached.set()
                await hold.released.wait()
            return answer

        return call


@dataclass
class Mesh:
    """What is there as long as the tests run: servers on empty databases, and their clients."""

    clock: Clock
    graph_pool: postgres.Pool
    post_pool: postgres.Pool
    stores: TimelineStores
    graph: GraphServiceAsyncStub
    post: PostServiceAsyncStub
    ranking: RankingServiceAsyncStub

    @asynccontextmanager
    async def world(self) -> AsyncIterator[World]:
        """A world without anybody in it, of which there is one at a time."""
        for pool in (self.graph_pool, self.post_pool, self.stores.pool):
            async with pool.connection() as connection:
                await connection.execute(EMPTY)
        await self.stores.client.flushall()
        await self.pass_time(EXAMPLE_MS)
        async with AsyncExitStack() as stack:
            stores = replace(self.stores, stack=stack)
            world = World(self, stores)
            for _ in range(REPLICAS):
                gate = Gate(self.post)
                sources = await stores.sources(cast(Any, gate))
                world.builders.append(gate)
                world.replicas.append(
                    Parts(Relations(self.graph), Cursors(SECRET), sources, self.post, self.ranking, WINDOW)
                )
            for _ in range(WORKERS):
                followers, merged = Gate(self.graph), Gate(self.post)
                fanout = await stores.fanout(self.graph, cast(Any, merged), limit=LIMITS[-1])
                world.pushers.append(followers)
                world.mergers.append(merged)
                world.fanouts.append(
                    Fanout(fanout.pool, fanout.guard, fanout.timelines, cast(Any, followers), fanout.transitions)
                )
            world.workers = [world.worker(number) for number in range(WORKERS)]
            await world.notice()
            yield world
            await world.go_on_all()

    async def pass_time(self, ms: int) -> None:
        """The clock goes on; ids with it."""
        self.clock.now_ms += ms
        first = (self.clock.now_ms - ids.EPOCH_MS) << ids.SEQUENCE_BITS
        for pool in (self.graph_pool, self.post_pool):
            await postgres.fetch(pool, "SELECT setval('held_ids', %(first)s, false)", {"first": first})


@asynccontextmanager
async def mesh(databases: Databases, valkey: Valkey) -> AsyncIterator[Mesh]:
    """Servers for the block."""
    clock = Clock()
    async with AsyncExitStack() as stack:
        stack.enter_context(held_time(clock))
        enter = stack.enter_async_context
        pools = []
        for package in ("services.graph", "services.post"):
            pools.append(await enter(postgres.connect(settings_of(await databases.copy(package)))))
            async with pools[-1].connection() as connection:
                await connection.execute(HELD_IDS.encode())
        graph_pool, post_pool = pools
        stores = await enter(timeline_stores(databases, valkey, cap=CAP, slack=SLACK))

        async def serve(add: Callable[[Any, Any], None], servicer: Any, service: Any) -> Any:
            served = await enter(serving(lambda server: add(servicer, server), services=(service,)))
            return await enter(client.connect(served.target, CALLER, service))

        graph = GraphServiceStub(
            await serve(
                add_GraphServiceServicer_to_server,
                graph_service.GraphServicer(graph_pool, Cursors(SECRET), 5000),
                graph_service.SERVICE,
            )
        )
        sights = Sights(graph, MediaUrls(SECRET))
        sights.people = People(graph, timer=clock.seconds)
        posts = post_service.PostServicer(post_pool, sights, Cursors(SECRET))
        post = PostServiceStub(await serve(add_PostServiceServicer_to_server, posts, post_service.SERVICE))
        ranking = RankingServiceStub(
            await serve(
                add_RankingServiceServicer_to_server,
                # Its memory stays empty: it asks the post service.
                ranking_service.RankingServicer(post, clock),
                ranking_service.SERVICE,
            )
        )
        yield Mesh(clock, graph_pool, post_pool, stores, graph, post, ranking)


@dataclass
class World:
    """Some people on a mesh, and its schedule."""

    mesh: Mesh
    stores: TimelineStores
    replicas: list[Parts] = field(default_factory=list)
    fanouts: list[Fanout] = field(default_factory=list)
    workers: list[list[Consumer]] = field(default_factory=list)
    builders: list[Gate] = field(default_factory=list)
    """Each replica's view of posts, as lists are built by it."""
    pushers: list[Gate] = field(default_factory=list)
    """Each worker's view of followers, as posts are pushed by it."""
    mergers: list[Gate] = field(default_factory=list)
    """Each worker's view of posts, as authors come back to push by it."""
    held: list[tuple[Hold, asyncio.Task[Any]]] = field(default_factory=list)
    handled: set[int] = field(default_factory=set)
    """Posts that are in all lists they belong into: some worker has handled their event, or all lists are younger."""
    _names: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        mesh, redis = self.mesh, self.stores.client
        self.relays = [
            Relay(mesh.post_pool, redis, post_relay.TOPIC, post_relay.GROUPS, 60),
            Relay(mesh.graph_pool, redis, graph_relay.TOPIC, graph_relay.GROUPS, 60),
        ]
        self.erasers = self.consumers([("graph", partial(eraser.note, mesh.post_pool))], eraser.GROUP)

    # What people do. Each gives what is answered, or the reason of the refusal.

    async def join(self) -> int:
        """A new person's id."""
        name = f"person{next(self._names)}"
        request = graph_pb2.CreateUserRequest(username=name, email=f"{name}@example.org")
        return (await self.mesh.graph.CreateUser(request)).user.user_id

    async def follow(self, follower: int, followee: int) -> str:
        """A follow."""
        request = graph_pb2.FollowRequest(follower_id=follower, following_id=followee)
        return await stands(self.mesh.graph.Follow(request))

    async def unfollow(self, follower: int, followee: int) -> str:
        """An unfollow."""
        request = graph_pb2.UnfollowRequest(follower_id=follower, following_id=followee)
        return await stands(self.mesh.graph.Unfollow(request))

    async def accept(self, user: int, follower: int) -> str:
        """A request is accepted."""
        request = graph_pb2.AcceptFollowRequestRequest(user_id=user, follower_id=follower)
        return await stands(self.mesh.graph.AcceptFollowRequest(request))

    async def reject(self, user: int, follower: int) -> str:
        """A request is dropped."""
        request = graph_pb2.RejectFollowRequestRequest(user_id=user, follower_id=follower)
        return await stands(self.mesh.graph.RejectFollowRequest(request))

    async def block(self, user: int, target: int) -> str:
        """A block."""
        return await reason(self.mesh.graph.Block(graph_pb2.BlockRequest(user_id=user, target_id=target)))

    async def unblock(self, user: int, target: int) -> str:
        """A block is taken back."""
        return await reason(self.mesh.graph.Unblock(graph_pb2.UnblockRequest(user_id=user, target_id=target)))

    async def mute(self, user: int, target: int) -> str:
        """A mute."""
        return await reason(self.mesh.graph.Mute(graph_pb2.MuteRequest(user_id=user, target_id=target)))

    async def unmute(self, user: int, target: int) -> str:
        """A mute is taken back."""
        return await reason(self.mesh.graph.Unmute(graph_pb2.UnmuteRequest(user_id=user, target_id=target)))

    async def set_private(self, user: int, private: bool) -> str:
        """An account becomes private or public."""
        return await reason(self.mesh.graph.UpdateUser(graph_pb2.UpdateUserRequest(user_id=user, private=private)))

    async def erase(self, user: int) -> str:
        """A person erases themselves."""
        return await reason(self.mesh.graph.DeleteUser(graph_pb2.DeleteUserRequest(user_id=user)))

    async def write(self, author: int, *, followers_only: bool = False) -> int:
        """A post's id."""
        visibility = post_pb2.VISIBILITY_FOLLOWERS if followers_only else post_pb2.VISIBILITY_PUBLIC
        request = post_pb2.CreatePostRequest(user_id=author, content="words", visibility=visibility)
        return (await self.mesh.post.CreatePost(request)).post.post_id

    async def share(self, sharer: int, post_id: int, content: str = "") -> int | str:
        """A share's id; with content that of a quote."""
        request = post_pb2.SharePostRequest(user_id=sharer, post_id=post_id, content=content)
        answer = await answered(self.mesh.post.SharePost(request))
        return answer if isinstance(answer, str) else answer.post.post_id

    async def delete(self, user: int, post_id: int) -> str:
        """A post or share is deleted."""
        return await reason(self.mesh.post.DeletePost(post_pb2.DeletePostRequest(user_id=user, post_id=post_id)))

    async def like(self, user: int, post_id: int) -> int | str:
        """How many like the post now."""
        answer = await answered(self.mesh.post.LikePost(post_pb2.LikePostRequest(user_id=user, post_id=post_id)))
        return answer if isinstance(answer, str) else answer.likes

    async def unlike(self, user: int, post_id: int) -> int | str:
        """How many like the post now."""
        answer = await answered(self.mesh.post.UnlikePost(post_pb2.UnlikePostRequest(user_id=user, post_id=post_id)))
        return answer if isinstance(answer, str) else answer.likes

    async def comment(self, user: int, post_id: int) -> int | str:
        """A comment's id."""
        request = post_pb2.CreateCommentRequest(user_id=user, post_id=post_id, content="words")
        answer = await answered(self.mesh.post.CreateComment(request))
        return answer if isinstance(answer, str) else answer.comment.comment_id

    # What the mesh does.

    async def relay(self) -> None:
        """One step of each relay."""
        for relay in self.relays:
            await relay.publish()
            await relay.republish()

    async def consume(self, number: int) -> int:
        """One step of a worker; how many events it looked at."""
        return sum([await step(each) for each in self.workers[number]])

    async def notice(self) -> None:
        """Relays, replicas and workers look whether Redis lost something."""
        for relay in self.relays:
            await relay.detect()
            await relay.tend()
        for guard in (*(each.sources.guard for each in self.replicas), *(each.guard for each in self.fanouts)):
            await guard.look()

    async def set_limit(self, limit: int) -> None:
        """An operator sets the limit of followers."""
        await store.set_limit(self.stores.pool, limit)

    async def fold(self) -> None:
        """Counts are folded."""
        await counts.fold(self.mesh.graph_pool, USER_COUNTS)
        await counts.fold(self.mesh.post_pool, POST_COUNTS)

    async def reconcile(self, number: int = 0) -> None:
        """Transitions look at everyone, if the limit is another."""
        await counts.fold(self.mesh.graph_pool, USER_COUNTS)
        await self.fanouts[number].transitions.reconcile()

    async def advance(self, number: int = 0) -> None:
        """Transitions take a step. An author is in both for longer than any knowledge of the modes lives."""
        await self.pass_time(BOTH_S)
        await self.fanouts[number].transitions.advance()

    async def sweep_graph(self) -> None:
        """What hung on erased people in the graph is cleared away."""
        while await graph_upkeep.sweep_erased_users(self.mesh.graph_pool):
            pass

    async def sweep_posts(self) -> None:
        """What hung on deleted posts is cleared away, and what erased people wrote, as far as that is known."""
        for each in self.erasers:
            await step(each)
        await eraser.erase(self.mesh.post_pool)
        await post_upkeep.sweep_deleted_posts(self.mesh.post_pool)

    async def pass_time(self, seconds: float) -> None:
        """The clock goes on."""
        await self.mesh.pass_time(int(seconds * 1000))

    async def settle(self) -> None:
        """Lets everything come to rest."""
        await self.go_on_all()
        await self.notice()
        await self.sweep_graph()
        await self.deliver()
        while await eraser.erase(self.mesh.post_pool) or await post_upkeep.sweep_deleted_posts(self.mesh.post_pool):
            pass
        await self.deliver()
        await self.reconcile()
        while await postgres.fetch(self.stores.pool, "SELECT FROM author_modes WHERE mode = 'both'"):
            await self.advance()
        await self.pass_time(BOTH_S)

    async def deliver(self) -> None:
        """Every event comes to everyone."""
        for relay in self.relays:
            for work in (relay.publish, relay.republish):
                while await work():
                    pass
        while sum([await self.consume(number) for number in range(WORKERS)] + [await step(e) for e in self.erasers]):
            pass

    async def left(self) -> list[str]:
        """What is still under way, or was buried; after everything came to rest nothing."""
        found = []
        for relay in self.relays:
            for partition, key in enumerate(stream_keys(relay.topic)):
                for group in await groups_of(self.stores.client, key):
                    found += [f"{key} {group.name}: {group}"] if group.pending or group.lag else []
                    if await consumer.dead_letters(self.stores.client, relay.topic, partition, group.name):
                        found.append(f"{key} {group.name}: dead letters")
        return found

    # What takes long: it reads, and goes by what it read only after the test did something else.

    async def begin(self, gate: Gate, work: Coroutine[Any, Any, Any]) -> None:
        """Begins something and holds it back at its next answer through a gate, if it comes there."""
        gate.next = hold = Hold()
        task = asyncio.create_task(work)
        reached = asyncio.create_task(hold.reached.wait())
        await asyncio.wait((task, reached), return_when=asyncio.FIRST_COMPLETED)
        gate.next = None
        reached.cancel()
        if task.done():
            await task
        else:
            self.held.append((hold, task))

    async def go_on(self, number: int) -> None:
        """Lets one of those that are held back end."""
        hold, task = self.held.pop(number % len(self.held))
        hold.released.set()
        await task

    async def go_on_all(self) -> None:
        """Lets all of them end."""
        while self.held:
            await self.go_on(0)

    async def read_slowly(self, reader: int, number: int) -> None:
        """A read that builds a list, as it has expired, and is held back between reading and writing it."""
        await self.expire(reader)
        await self.begin(self.builders[number], self.page(reader, number))

    async def advance_slowly(self, number: int) -> None:
        """A step of transitions that is held back between reading an author's posts and merging them."""
        await self.pass_time(BOTH_S)
        await self.begin(self.mergers[number], self.fanouts[number].transitions.advance())

    async def consume_slowly(self, number: int) -> None:
        """A step of a worker that is held back between reading who follows and pushing.

        It is no member any more: others take its events over.
        """
        slow, self.workers[number] = self.workers[number], self.worker(number)

        async def work() -> None:
            for each in slow:
                await step(each)

        await self.begin(self.pushers[number], work())

    # What breaks.

    async def flush(self) -> None:
        """Redis loses everything; nobody has noticed yet."""
        await self.stores.client.flushall()
        for (post_id,) in await postgres.fetch(self.mesh.post_pool, "SELECT post_id FROM posts"):
            self.handled.add(post_id)

    async def publish_and_die(self) -> None:
        """Relays publish and die before they noted it."""
        for relay in self.relays:
            unpublished = "SELECT event_id FROM outbox WHERE published_at IS NULL"
            event_ids = [row[0] for row in await postgres.fetch(relay.pool, unpublished)]
            await relay.publish()
            async with relay.pool.connection() as connection:
                await connection.execute("UPDATE outbox SET published_at = NULL WHERE event_id = ANY(%s)", (event_ids,))

    async def take_and_die(self, number: int, survived: int) -> None:
        """A worker takes what there is, handles so many events of each stream, and dies before it acknowledged one."""
        for topic, handle in self.handlers(number):
            for partition in range(PARTITIONS):
                taken = await self.take(stream_key(topic, partition), f"dead-{number}")
                if taken[:survived]:
                    await handle(taken[:survived])

    async def take(self, key: str, member: str) -> list[event_pb2.Event]:
        """The new events of a stream, as its member takes them who will never acknowledge."""
        try:
            answer: Any = await self.stores.client.xreadgroup(GROUP, member, {key: ">"}, count=100)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return []
        return [event_pb2.Event.FromString(fields[EVENT]) for _, stream in answer or () for _, fields in stream]

    async def repeat(self, topic: int, number: int) -> None:
        """An event that was published comes again, late."""
        events = await self.events(topic, published=True)
        if events:
            event = events[number % len(events)]
            key = stream_key(self.relays[topic].topic, number % PARTITIONS)
            await self.stores.client.xadd(key, {EVENT: event.SerializeToString()})

    async def handle(self, topic: int, number: int, worker: int = 0) -> None:
        """Any event is handled, before or after all others."""
        events = await self.events(topic)
        if events:
            await self.handlers(worker)[topic][1]([events[number % len(events)]])

    async def events(self, topic: int, *, published: bool = False) -> list[event_pb2.Event]:
        """All events of a topic so far, in the order of their ids; perhaps only those that were published."""
        rows = await postgres.fetch(
            self.relays[topic].pool,
            "SELECT event_id, event FROM outbox WHERE published_at IS NOT NULL OR NOT %(published)s ORDER BY event_id",
            {"published": published},
        )
        return [
            event_pb2.Event.FromString(event_pb2.Event(event_id=event_id).SerializeToString() + event)
            for event_id, event in rows
        ]

    async def half_build(self, reader: int) -> None:
        """A builder makes a list, or makes it anew, and dies."""
        sources, key = self.replicas[0].sources, home_key(reader)
        timeline = await sources.timelines.read(key)
        await sources.timelines.create(
            key, sources.guard.epoch, replaced=timeline.incarnation if timeline is not None else 0
        )

    async def expire(self, reader: int) -> None:
        """Somebody has not read for too long."""
        await self.stores.client.delete(home_key(reader))

    # What readers see.

    async def page(
        self,
        reader: int,
        replica: int,
        *,
        limit: int = 20,
        cursor: str = "",
        order: pb.FeedOrder.ValueType = pb.FEED_ORDER_LATEST,
    ) -> pb.GetFeedResponse | errors.Error:
        """A page of a reader's feed, or why there is none."""
        request = pb.GetFeedRequest(user_id=reader, limit=limit, cursor=cursor, order=order)
        [page] = await feeds(self.replicas[replica], [request])
        return page

    async def read(
        self,
        reader: int,
        replica: int,
        limits: Sequence[int] = (7,),
        order: pb.FeedOrder.ValueType = pb.FEED_ORDER_LATEST,
    ) -> tuple[list[post_pb2.Post], set[str]]:
        """A reader's feed to its end, by pages of these limits in turn, and what it was degraded by."""
        shown: list[post_pb2.Post] = []
        degraded: set[str] = set()
        cursor = ""
        for limit in itertools.cycle(limits):
            page = await self.page(reader, replica, limit=limit, cursor=cursor, order=order)
            assert isinstance(page, pb.GetFeedResponse), page
            assert len(page.posts) <= limit
            degraded.update(page.degraded)
            shown += page.posts
            if not page.HasField("next_cursor"):
                break
            cursor = page.next_cursor
        return shown, degraded

    # Workers.

    def worker(self, number: int) -> list[Consumer]:
        """A new worker's consumers."""
        return self.consumers(self.handlers(number), GROUP)

    def consumers(self, handlers: Sequence[tuple[str, Handle]], group: str) -> list[Consumer]:
        """Members of a group, one for each partition of the topics that are handled."""
        return [
            Consumer(self.stores.client, topic, partition, group, handle)
            for topic, handle in handlers
            for partition in range(PARTITIONS)
        ]

    def handlers(self, number: int) -> list[tuple[str, Handle]]:
        """What a worker does with the events of each topic."""
        fanout = self.fanouts[number]

        async def post_events(events: Sequence[event_pb2.Event]) -> None:
            await fanout.post_events(events)
            self.handled.update(event.post_created.post_id for event in events if event.HasField("post_created"))

        return [("post", post_events), ("graph", fanout.graph_events)]


async def step(each: Consumer) -> int:
    """One step of a consumer, as it takes them when it runs."""
    try:
        return await each.step()
    except ResponseError as error:
        if "NOGROUP" not in str(error):
            raise
        await each.join()
        return 0


async def answered(call: Awaitable[Any]) -> Any:
    """The answer of a call, or the reason why it was refused."""
    try:
        return await call
    except errors.Error as error:
        if isinstance(error, errors.Unavailable):
            raise
        return error.reason


async def reason(call: Awaitable[Any]) -> str:
    """Why a call was refused; "" where it was not."""
    answer = await answered(call)
    return answer if isinstance(answer, str) else ""


async def stands(call: Awaitable[Any]) -> str:
    """Where a follow stands after a call, or why it was refused."""
    answer = await answered(call)
    if isinstance(answer, str):
        return answer
    return graph_pb2.FollowStatus.Name(answer.status).removeprefix("FOLLOW_STATUS_")
