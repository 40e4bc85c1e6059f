"""Push for most, pull for those with many followers, and no post lost between: on a whole mesh, while things break.

Two replicas of the timeline service and two fan-out workers: one of each as the launcher starts them, and one more.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from feedmesh.timeline.v1 import timeline_pb2 as pb
from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceStub
from launch import settings
from runtime import callers, client, errors
from services.timeline.servicer import SERVICE
from services.timeline.timelines import Timelines, author_key, home_key
from tests.e2e import mesh as meshes
from tests.e2e.mesh import ROOT, Mesh
from tests.e2e.test_crashes import post_with_retries, wait_for_ready

if TYPE_CHECKING:
    from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceAsyncStub

log = logging.getLogger(__name__)

LIMIT = 4
PEOPLE = 16
WRITERS = 3
CROSSINGS = 100
WORKERS = ("services.timeline.fanout", "services.post.relay", "services.graph.relay")


@dataclass
class Crowd:
    """A mesh whose limit is four followers, its stores, and sixteen people: the n-th has n followers."""

    mesh: Mesh
    redis: Redis
    dsns: dict[str, str]
    second: TimelineServiceAsyncStub
    people: list[int]
    told: dict[str, str]
    """What a fan-out worker is told, and so the operator's commands."""
    written: dict[int, int] = field(default_factory=dict)
    """The author of each post."""

    def expected(self, reader: int) -> list[int]:
        """A reader's feed, newest first, as Postgres has it."""
        with psycopg.connect(self.dsns["graph"]) as graph:
            rows = graph.execute("SELECT following_id FROM followers WHERE follower_id = %s", (reader,)).fetchall()
        authors = [reader, *(row[0] for row in rows)]
        with psycopg.connect(self.dsns["post"]) as post:
            found = post.execute(
                "SELECT post_id FROM posts WHERE user_id = ANY(%s) AND deleted_at IS NULL ORDER BY post_id DESC",
                (authors,),
            )
            return [row[0] for row in found.fetchall()]

    async def read_second(self, reader: int) -> list[int]:
        """A reader's feed at the second replica, to its end."""
        shown: list[int] = []
        cursor = ""
        while True:
            request = pb.GetFeedRequest(user_id=reader, limit=100, cursor=cursor, order=pb.FEED_ORDER_LATEST)
            page = await self.second.GetFeed(request)
            shown += [post.post_id for post in page.posts]
            if not page.HasField("next_cursor"):
                return shown
            cursor = page.next_cursor

    async def all_exact(self) -> float:
        """Waits until everyone's feed at both replicas equals Postgres; how many seconds that took."""
        begun = time.monotonic()
        for reader in self.people:
            wanted = self.expected(reader)
            await self.mesh.shows(reader, wanted)
            while await self.read_second(reader) != wanted:
                assert time.monotonic() < begun + 60
                await asyncio.sleep(0.05)
        return time.monotonic() - begun

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """People write and read for the block, at both replicas; nothing is ever shown twice."""
        stopping = asyncio.Event()
        chance = random.Random(1)

        async def write(writer: int) -> None:
            for n in itertools.count():
                if stopping.is_set():
                    return
                author = chance.choice(self.people)
                self.written[await post_with_retries(self.mesh, author, f"{writer}/{n}")] = author

        async def read() -> None:
            while not stopping.is_set():
                try:
                    shown = await self.read_second(chance.choice(self.people))
                except errors.Unavailable:
                    continue
                assert len(shown) == len(set(shown))

        tasks = [*(asyncio.create_task(write(n)) for n in range(WRITERS)), asyncio.create_task(read())]
        try:
            yield
        finally:
            stopping.set()
            await asyncio.gather(*tasks)

    async def more(self, count: int) -> None:
        """Waits until so many more posts are written."""
        enough = len(self.written) + count
        await eventually(lambda: len(self.written) >= enough, "more posts")

    async def home(self, reader: int) -> set[int]:
        """The posts in a reader's home timeline in Redis."""
        return await self.held(home_key(reader))

    async def held(self, key: str) -> set[int]:
        """The posts in a list in Redis."""
        timeline = await Timelines(self.redis).read(key, renewed=False)
        return set(timeline.rows[:, 0].tolist()) if timeline is not None else set()

    def modes(self) -> dict[int, str]:
        """Who is not in mode push."""
        with psycopg.connect(self.dsns["timeline"]) as timeline:
            return dict(timeline.execute("SELECT author_id, mode FROM author_modes").fetchall())

    async def set_limit(self, limit: str) -> None:
        """As an operator does."""
        command = [sys.executable, "-m", "services.timeline.admin", "limit", limit]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=self.told, stdout=subprocess.DEVNULL)
        assert await process.wait() == 0


@pytest_asyncio.fixture(scope="module")
async def crowd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Crowd]:
    """Everybody follows those with a higher number; everyone has read once."""
    folder = tmp_path_factory.mktemp("crowd")
    with meshes.running(folder, FEEDMESH_PUSH_MAX_FOLLOWERS=str(LIMIT)) as mesh:
        log = mesh.log.read_text()
        dsn = re.findall(r"Postgres +(host=.*)dbname=postgres", log)[-1]
        url = re.findall(r"Valkey +(unix:\S+)", log)[-1]
        port = settings.free_port()
        with (
            another(
                mesh,
                "services.timeline",
                folder,
                FEEDMESH_GRPC_ADDRESS=f"127.0.0.1:{port}",
                FEEDMESH_MORE_CALLERS="test",
            ),
            another(mesh, "services.timeline.fanout", folder),
        ):
            secret = meshes.environment_of(mesh.pids()["gateway"])["FEEDMESH_MESH_SECRET"]
            async with client.connect(f"127.0.0.1:{port}", callers.caller("test", secret), SERVICE) as channel:
                await wait_for_ready(mesh)
                people = [await mesh.user(f"crowd{n}") for n in range(PEOPLE)]
                follows = {(people[one], people[other]) for one in range(PEOPLE) for other in range(one + 1, PEOPLE)}
                for follower, followee in follows:
                    await mesh.post("/follow", {"follower_id": follower, "following_id": followee})
                redis = Redis.from_url(url)
                yield Crowd(
                    mesh,
                    redis,
                    {name: f"{dsn}dbname=feedmesh_{name}" for name in ("graph", "post", "timeline")},
                    TimelineServiceStub(channel),
                    people,
                    meshes.environment_of(mesh.pids()["services.timeline.fanout"]),
                )
                await redis.aclose()
                await mesh.http.aclose()


@contextmanager
def another(mesh: Mesh, module: str, folder: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """One more process of a kind that the launcher started, told the same."""
    environment = {**meshes.environment_of(mesh.pids()[module]), **settings, "FEEDMESH_METRICS_ADDRESS": "127.0.0.1:0"}
    with (folder / f"{module}.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", module], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that stands still for the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def eventually(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str) -> None:
    """Waits until something holds, at most 30 s."""
    end = time.monotonic() + 30
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < end, f"waited for {what}"
        await asyncio.sleep(0.1)


async def test_few_followers_are_pushed_many_are_pulled_and_a_feed_has_both_in_order(crowd: Crowd) -> None:
    pushed, pulled, reader = crowd.people[LIMIT], crowd.people[LIMIT + 1], crowd.people[0]
    await eventually(
        lambda: crowd.modes() == dict.fromkeys(crowd.people[LIMIT + 1 :], "pull"),
        "those with many followers to be pulled",
    )
    await crowd.mesh.shows(reader, [])
    posts = [
        (await crowd.mesh.post("/posts", {"user_id": author, "content": "words"}, 201))["post_id"]
        for author in [pushed, pulled] * 5
    ]
    await crowd.mesh.shows(reader, posts)
    await eventually(lambda: in_redis(crowd, reader, set(posts[::2])), "the pushed posts and no others in the list")
    assert await crowd.held(author_key(pulled)) == set(posts[1::2])


async def in_redis(crowd: Crowd, reader: int, wanted: set[int]) -> bool:
    return await crowd.home(reader) == wanted


async def test_who_does_not_read_costs_no_memory_and_finds_everything_on_return(crowd: Crowd) -> None:
    absent = crowd.people[1]
    await crowd.redis.delete(home_key(absent))  # as after FEEDMESH_ACTIVE_DAYS
    for author in crowd.people[2:]:
        await crowd.mesh.post("/posts", {"user_id": author, "content": "while you were away"}, 201)
    await crowd.mesh.shows(crowd.people[0], crowd.expected(crowd.people[0]))
    assert not await crowd.redis.exists(home_key(absent))
    response = await crowd.mesh.http.get("/feed", params={"user_id": absent, "order": "latest", "limit": 100})
    assert [post["post_id"] for post in response.json()["posts"]] == crowd.expected(absent)
    assert await crowd.redis.exists(home_key(absent))


@pytest.mark.timeout(300)
async def test_crossing_the_limit_a_hundred_times_while_workers_die_loses_nothing(crowd: Crowd) -> None:
    async def kill(victims: Iterator[str]) -> None:
        while True:
            await asyncio.sleep(1.5)  # between two deaths, not for anything to happen
            if pid := crowd.mesh.pids().get(next(victims)):
                os.kill(pid, signal.SIGKILL)

    crossings = 0
    everyone = set(crowd.people[1:])
    async with crowd.load():
        killing = asyncio.create_task(kill(itertools.cycle(WORKERS)))
        try:
            while crossings < CROSSINGS:
                before = crowd.modes()
                await crowd.set_limit("0")
                await eventually(
                    lambda: {who for who, mode in crowd.modes().items() if mode == "pull"} >= everyone,
                    "all to be pulled",
                )
                crossings += len(everyone - before.keys())
                await crowd.set_limit("1000")
                await eventually(lambda: not crowd.modes(), "all to be pushed")
                crossings += len(everyone)
        finally:
            killing.cancel()
    await crowd.set_limit("default")
    await wait_for_ready(crowd.mesh)
    await crowd.all_exact()


@pytest.mark.parametrize("loss", ["flush", "kill -9", "an old snapshot"])
async def test_whatever_redis_loses_all_feeds_are_exact_again(crowd: Crowd, loss: str) -> None:
    async with crowd.load():
        await crowd.more(20)
        if loss == "flush":
            await crowd.redis.flushall()
        else:
            if loss == "an old snapshot":
                await crowd.redis.save()
                await crowd.more(60)
            os.kill(crowd.mesh.pids()["valkey-server"], signal.SIGKILL)
        lost = time.monotonic()
        await crowd.more(40)
    since_load = await crowd.all_exact()
    log.info("%s: all exact %.1f s after it, %.1f s after the load", loss, time.monotonic() - lost, since_load)


async def test_while_redis_is_down_feeds_are_whole_and_say_so(crowd: Crowd) -> None:
    reader = crowd.people[0]
    await crowd.all_exact()
    with stopped(crowd.mesh.pids()["valkey-server"]):
        post = await crowd.mesh.post("/posts", {"user_id": crowd.people[3], "content": "without redis"}, 201)
        response = await crowd.mesh.http.get("/feed", params={"user_id": reader, "order": "latest", "limit": 100})
        assert response.status_code == 200
        assert response.headers["feed-degraded"] == "redis"
        assert response.json()["posts"][0]["post_id"] == post["post_id"]
        await crowd.mesh.shows(reader, crowd.expected(reader))
    back = time.monotonic()

    async def whole() -> bool:
        response = await crowd.mesh.http.get("/feed", params={"user_id": reader})
        return "feed-degraded" not in response.headers

    await eventually(whole, "redis to be used again")
    await crowd.all_exact()
    log.info("redis was down: all exact %.1f s after it was back", time.monotonic() - back)


async def test_while_the_graph_is_down_feeds_go_on_and_say_so(crowd: Crowd) -> None:
    reader = crowd.people[0]
    await crowd.all_exact()
    with stopped(crowd.mesh.pids()["services.graph"]):
        response = await crowd.mesh.http.get("/feed", params={"user_id": reader, "order": "latest"})
        assert (response.status_code, response.headers["feed-degraded"]) == (200, "graph")
        assert [post["post_id"] for post in response.json()["posts"]] == crowd.expected(reader)[:20]
        stranger = await crowd.mesh.http.get("/feed", params={"user_id": 1})
        assert (stranger.status_code, stranger.headers["retry-after"]) == (503, "1")
    await wait_for_ready(crowd.mesh)
    await crowd.all_exact()
