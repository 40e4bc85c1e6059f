"""Ranking's memory on the real post service and a real Valkey: fed by events, exact after each, and whenever something
was missed. Relay and follower are stepped by hand, so nothing here waits.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.ranking.v1 import ranking_pb2
from launch.valkey import Running
from runtime import errors, members, redis, streams
from runtime.clock import wall_clock
from runtime.process import Process
from runtime.relay import Relay
from services.ranking import __main__ as main
from services.ranking import follow
from services.ranking.columns import NOTHING, Columns
from services.ranking.config import RankingSettings
from services.ranking.features import gather
from services.ranking.follow import Follower
from services.ranking.formula import Features
from services.ranking.memory import FRESH_S, Memory
from services.ranking.servicer import RankingServicer
from tests.fakes.poll import until
from tests.fakes.serving import RealPostService, announced_port

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

PEOPLE = 3


@dataclass
class Watched:
    """The post service as ranking calls it: what is asked is noted, and something may happen while an answer is under
    way."""

    stub: PostServiceAsyncStub
    asked: list[tuple[int, list[int]]] = field(default_factory=list)
    pages: int = 0
    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def BatchGetEngagement(
        self, request: post_pb2.BatchGetEngagementRequest, **options: Any
    ) -> post_pb2.BatchGetEngagementResponse:
        self.asked += [(item.viewer_id, list(item.post_ids)) for item in request.items]
        response = await self.stub.BatchGetEngagement(request, **options)
        await self._happen()
        return response

    async def ListEngagement(
        self, request: post_pb2.ListEngagementRequest, **options: Any
    ) -> post_pb2.ListEngagementResponse:
        self.pages += 1
        response = await self.stub.ListEngagement(request, **options)
        await self._happen()
        return response

    async def _happen(self) -> None:
        happening, self.meanwhile = self.meanwhile, None
        if happening is not None:
            await happening()


@dataclass
class World:
    """People and posts, and ranking that remembers them."""

    client: Redis
    relay: Relay
    post: Watched
    people: list[int]
    memory: Memory = field(default_factory=Memory)
    posts: list[tuple[int, int, int]] = field(default_factory=list)
    """Post, author, original."""

    def __post_init__(self) -> None:
        self.follower = Follower(self.client, cast(Any, self.post), wall_clock, self.memory)

    async def write(self, author: int) -> int:
        """A post; its id."""
        request = post_pb2.CreatePostRequest(user_id=self.people[author], content="words")
        post_id = (await self.post.stub.CreatePost(request)).post.post_id
        self.posts.append((post_id, self.people[author], post_id))
        return post_id

    async def like(self, person: int, post_id: int) -> None:
        await self.post.stub.LikePost(post_pb2.LikePostRequest(user_id=self.people[person], post_id=post_id))

    async def unlike(self, person: int, post_id: int) -> None:
        await self.post.stub.UnlikePost(post_pb2.UnlikePostRequest(user_id=self.people[person], post_id=post_id))

    async def comment(self, person: int, post_id: int) -> int:
        request = post_pb2.CreateCommentRequest(user_id=self.people[person], post_id=post_id, content="words")
        return (await self.post.stub.CreateComment(request)).comment.comment_id

    async def share(self, person: int, post_id: int, content: str = "") -> int:
        request = post_pb2.SharePostRequest(user_id=self.people[person], post_id=post_id, content=content)
        share_id = (await self.post.stub.SharePost(request)).post.post_id
        self.posts.append((share_id, self.people[person], share_id if content else post_id))
        return share_id

    async def delete(self, person: int, post_id: int) -> None:
        await self.post.stub.DeletePost(post_pb2.DeletePostRequest(user_id=self.people[person], post_id=post_id))

    async def publish(self) -> None:
        """What the relay does in a while."""
        await self.relay.detect()
        await self.relay.tend()
        while await self.relay.republish() or await self.relay.publish():
            pass

    async def follow(self) -> None:
        """What the follower does in a while, until it is done."""
        for _ in range(1000):
            if not await self.follower.step() and self.memory.fresh() and self.memory.columns is not NOTHING:
                return
        raise AssertionError("the memory is never whole")

    async def settle(self) -> None:
        """All that happened has reached the memory."""
        await self.publish()
        await self.follow()

    async def features(self, memory: Memory) -> Features:
        """The features of all posts for everyone."""
        count = len(self.posts)
        viewers = [(viewer_id, slice(at * count, (at + 1) * count)) for at, viewer_id in enumerate(self.people)]
        candidates = np.array(self.posts * len(self.people), dtype=np.int64)
        return await gather(cast(Any, self.post), wall_clock, memory, viewers, candidates)

    async def is_exact(self) -> bool:
        """Whether the features are those that a ranking without a memory reads."""
        remembered, read = await self.features(self.memory), await self.features(Memory())
        return (
            all(
                np.array_equal(getattr(remembered, name), getattr(read, name))
                for name in ("likes", "comments", "shares", "affinity")
            )
            # A second makes it 0.02 % less.
            and np.allclose(remembered.heat, read.heat, rtol=0.01, atol=0.001)
        )

    async def asked(self) -> list[tuple[int, list[int]]]:
        """What the post service is asked for the features of all posts for everyone."""
        self.post.asked.clear()
        await self.features(self.memory)
        return list(self.post.asked)


@pytest_asyncio.fixture
async def world(post_service: RealPostService, valkey: Running) -> AsyncIterator[World]:
    """Three people, and a post of each that the next one likes."""
    async with redis.connect(redis.RedisSettings(redis_url=valkey.url)) as client:
        await client.flushall()
        relay = Relay(post_service.pool, client, follow.TOPIC, ("timeline",), 60)
        people = [
            (await post_service.graph.CreateUser(request)).user.user_id
            for name in ("ada", "bob", "cyd")
            for request in (graph_pb2.CreateUserRequest(username=name, email=f"{name}@example.org"),)
        ]
        world = World(client, relay, Watched(post_service.stub), people)
        for author in range(PEOPLE):
            await world.like((author + 1) % PEOPLE, await world.write(author))
        yield world


async def test_a_like_reaches_the_order_without_a_question_about_posts(world: World) -> None:
    await world.settle()
    assert await world.is_exact()
    oldest, reader = world.posts[0][0], world.people[0]
    for person in range(PEOPLE):
        await world.like(person, oldest)
        await world.comment(person, oldest)
    await world.settle()

    world.post.asked.clear()
    servicer = RankingServicer(cast(Any, world.post), wall_clock, world.memory)
    request = ranking_pb2.BatchRankRequest()
    request.items.add(viewer_id=reader, candidates=members.pack(reversed(world.posts[:3])))
    for _ in range(2):
        [item] = (await servicer.BatchRank(request, None)).items
        assert item.order[:2] == b"\0\2"
    # A viewer's affinities are asked for once.
    assert world.post.asked == [(reader, [])]


async def test_the_memory_is_exact_after_everything_that_people_do(world: World) -> None:
    await world.settle()
    first = world.posts[0][0]
    comment = await world.comment(1, first)
    share = await world.share(2, first)
    quote = await world.share(1, first, "words")
    acts: list[Callable[[], Awaitable[Any]]] = [
        lambda: world.like(2, first),
        lambda: world.unlike(2, first),
        lambda: world.like(0, quote),
        lambda: world.comment(0, quote),
        lambda: world.post.stub.DeleteComment(
            post_pb2.DeleteCommentRequest(user_id=world.people[1], comment_id=comment)
        ),
        lambda: world.delete(2, share),
        lambda: world.share(2, first),
        lambda: world.delete(1, quote),
        lambda: world.delete(0, first),
    ]
    for act in acts:
        await act()
        await world.settle()
        # Whose comment was deleted no event tells; a minute makes up for it.
        if act is acts[4]:
            world.memory.affinities.clear()
        assert await world.is_exact()
        assert all(not post_ids for _, post_ids in await world.asked())


async def test_events_may_come_twice_and_in_any_order(world: World) -> None:
    await world.settle()
    for post_id, _, _ in world.posts[:3]:
        await world.like(0, post_id)
        await world.unlike(0, post_id)
        await world.comment(0, post_id)
    await world.publish()
    chance = random.Random(1)
    for key in streams.stream_keys(follow.TOPIC):
        entries: Any = await world.client.xrange(key)
        again = [fields for _, fields in entries] * 2
        chance.shuffle(again)
        for fields in again:
            await world.client.xadd(key, fields)
    await world.follow()
    assert await world.is_exact()


async def test_one_post_that_all_touch_is_read_once_a_round(world: World) -> None:
    await world.settle()
    await world.asked()
    for person, _ in itertools.product(range(PEOPLE), range(3)):
        await world.comment(person, world.posts[0][0])
    world.post.asked.clear()
    await world.settle()
    assert world.post.asked == [(0, [world.posts[0][0]])]


async def test_a_flush_and_what_happened_around_it(world: World) -> None:
    await world.settle()
    await world.like(2, world.posts[0][0])
    await world.client.flushall()
    await world.like(0, world.posts[0][0])
    pages = world.post.pages
    assert not await world.follower.step()
    assert world.memory.columns is NOTHING
    # Until a relay has settled with it again, all is asked of the post service.
    assert await world.is_exact()
    assert all(post_ids for _, post_ids in await world.asked())
    await world.settle()
    assert world.post.pages > pages
    assert await world.is_exact()
    assert all(not post_ids for _, post_ids in await world.asked())


async def test_lost_events_are_noticed(world: World) -> None:
    await world.settle()
    await world.like(2, world.posts[0][0])
    await world.publish()
    for key in streams.stream_keys(follow.TOPIC):
        await world.client.xtrim(key, maxlen=0, approximate=False)
    pages = world.post.pages
    await world.follow()
    assert world.post.pages > pages
    assert await world.is_exact()


async def test_without_redis_all_is_asked_of_the_post_service(world: World, valkey: Running) -> None:
    await world.settle()
    valkey.kill()
    try:
        # For a moment the memory is still as good as new.
        assert not await world.follower.step()
        assert await world.is_exact()
        world.memory.looked_at -= FRESH_S
        await world.like(2, world.posts[0][0])
        assert not await world.follower.step()
        assert await world.is_exact()
        assert all(post_ids for _, post_ids in await world.asked())
    finally:
        valkey.restart()
    await world.settle()
    assert await world.is_exact()
    assert all(not post_ids for _, post_ids in await world.asked())


async def test_a_pause_of_redis_loses_nothing(world: World) -> None:
    await world.settle()
    pages = world.post.pages
    world.memory.looked_at -= FRESH_S
    await world.like(2, world.posts[0][0])
    await world.settle()
    assert world.post.pages == pages
    assert await world.is_exact()


async def test_what_happens_while_the_memory_is_read_is_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PAGE", 1)

    async def happen() -> None:
        """After the first page, which holds the newest post, was read."""
        await world.like(0, world.posts[-1][0])
        await world.like(0, world.posts[0][0])
        await world.like(0, await world.write(0))
        await world.publish()

    world.post.meanwhile = happen
    await world.settle()
    assert world.post.pages > PEOPLE
    assert await world.is_exact()
    assert all(not post_ids for _, post_ids in await world.asked())


async def test_an_answer_that_a_viewer_overtook_is_not_kept(world: World) -> None:
    await world.settle()

    async def happen() -> None:
        await world.like(0, world.posts[1][0])
        await world.settle()

    world.post.meanwhile = happen
    await world.features(world.memory)
    assert await world.is_exact()


async def test_posts_beyond_the_horizon_are_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "Columns", functools.partial(Columns, capacity=3))
    monkeypatch.setattr(follow, "PAGE", 2)
    for _ in range(3):
        await world.like(0, await world.write(1))
    await world.settle()
    assert await world.is_exact()
    by_age = sorted(post_id for post_id, _, _ in world.posts)
    horizon = world.memory.columns.horizon
    assert by_age[2] <= horizon < by_age[-1]
    assert all(max(post_ids) <= horizon for _, post_ids in await world.asked())
    # Acts on older posts need no room, those on newer ones do.
    await world.like(1, by_age[0])
    await world.like(0, await world.write(1))
    await world.like(0, await world.write(1))
    await world.settle()
    assert world.memory.columns.horizon > horizon
    assert await world.is_exact()


async def test_while_posts_cannot_be_read_the_memory_stays_and_then_catches_up(world: World) -> None:
    await world.settle()
    await world.asked()
    await world.like(0, world.posts[0][0])
    await world.like(1, world.posts[1][0])
    await world.publish()

    async def fail() -> None:
        raise errors.Unavailable("not now")

    world.post.meanwhile = fail
    assert not await world.follower.step()
    assert world.memory.fresh()
    assert world.memory.columns is not NOTHING
    await world.follow()
    assert await world.is_exact()


async def test_too_much_at_once_is_read_anew_as_a_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.settle()
    monkeypatch.setattr(follow, "MAX_TOUCHED", 2)
    for post_id, _, _ in world.posts[:3]:
        await world.comment(0, post_id)
    pages = world.post.pages
    await world.settle()
    assert world.post.pages > pages
    assert await world.is_exact()


async def test_the_server_starts_without_redis_and_ends(tmp_path: Any) -> None:
    settings = RankingSettings(
        grpc_address="127.0.0.1:0",
        post_target="127.0.0.1:1",
        redis_url=f"unix://{tmp_path}/nobody.sock",
        mesh_secret="m" * 32,
    )
    running = Process("test")
    with announced_port() as port:
        port.of = task = asyncio.create_task(main.serve(settings, running))
        await until(lambda: port.known.done() or task.done())
    assert not task.done()
    running.stopping.set()
    began = time.monotonic()
    await task
    assert time.monotonic() - began < 5
