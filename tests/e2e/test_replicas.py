"""Two of every process: what one replica took all others tell at once, and killing one of each loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from launch.processes import FEEDMESH
from tests.e2e import mesh as meshes
from tests.e2e.mesh import Json, Mesh

RUN = [process for process in FEEDMESH.processes if not process.needs]
TWO = {process.replicas_setting: "2" for process in RUN}
ROUNDS = 12
WRITERS = 4


class Pair:
    """A mesh's two gateways, asked in turn."""

    def __init__(self, mesh: Mesh) -> None:
        first = httpx.URL(mesh.url)
        urls = [first, first.copy_with(port=(first.port or 0) + 1)]
        self.mesh = mesh
        self.clients = [httpx.AsyncClient(base_url=url, timeout=20) for url in urls]
        self._turn = itertools.cycle(self.clients)

    async def ask(self, method: str, path: str, **rest: object) -> Json:
        """A request that the next gateway must answer with 2xx."""
        response = await next(self._turn).request(method, path, **rest)  # type: ignore[arg-type]
        assert response.is_success, response.text
        return dict(response.json())

    async def insist(self, method: str, path: str, **rest: object) -> Json:
        """A request that is sent, with one key, until a gateway answers it with 2xx; refused with 409 and 503 only."""
        headers = {"Idempotency-Key": str(uuid.uuid4())} if method != "GET" else {}
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                response = await next(self._turn).request(method, path, headers=headers, **rest)  # type: ignore[arg-type]
                if response.is_success:
                    return dict(response.json())
                assert response.status_code in (409, 503), response.text
            await asyncio.sleep(0.02)
        raise AssertionError(f"{method} {path} was never answered")

    async def user(self, username: str) -> int:
        """Registers a person; their id."""
        body = {"username": username, "email": f"{username}@example.org"}
        return int((await self.ask("POST", "/users", json=body))["user_id"])

    async def feed(self, user_id: int) -> list[Json]:
        """The newest posts of someone's feed."""
        return list((await self.ask("GET", "/feed", params={"user_id": user_id, "order": "latest"}))["posts"])


@pytest_asyncio.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A mesh with two replicas of everything."""
    with meshes.running(tmp_path_factory.mktemp("two of each"), **TWO) as own:
        pair = Pair(own)
        yield pair
        for client in (own.http, *pair.clients):
            await client.aclose()


async def test_each_replica_shows_under_its_own_name(pair: Pair) -> None:
    said = pair.mesh.log.read_text()
    assert {module: len(pids) for module, pids in replicas(pair.mesh).items()} == {
        process.argv[-1]: 2 for process in RUN
    }
    for process in RUN:
        assert f"/metrics  {process.name}-1\n" in said
        assert f"/metrics  {process.name}-2\n" in said


async def test_whichever_replica_answers_one_sees_what_one_did(pair: Pair) -> None:
    me, friend = await pair.user("two.me"), await pair.user("two.friend")
    theirs = (await pair.ask("POST", "/posts", json={"user_id": friend, "content": "theirs"}))["post_id"]
    for turn in range(ROUNDS):
        assert theirs not in ids(await pair.feed(me))
        await pair.ask("POST", "/follow", json={"follower_id": me, "following_id": friend})
        assert theirs in ids(await pair.feed(me))
        mine = (await pair.ask("POST", "/posts", json={"user_id": me, "content": f"{turn}"}))["post_id"]
        assert ids(await pair.feed(me))[0] == mine
        liked = await pair.ask("POST", "/like", json={"user_id": me, "post_id": theirs})
        [shown] = [post for post in await pair.feed(me) if post["post_id"] == theirs]
        assert (shown["liked"], shown["likes"]) == (True, liked["likes"])
        unliked = await pair.ask("POST", "/unlike", json={"user_id": me, "post_id": theirs})
        [shown] = [post for post in await pair.feed(me) if post["post_id"] == theirs]
        assert (shown["liked"], shown["likes"]) == (False, unliked["likes"])
        remark = {"user_id": me, "post_id": theirs, "content": "said"}
        comment = (await pair.ask("POST", "/comments", json=remark))["comment_id"]
        [shown] = [post for post in await pair.feed(me) if post["post_id"] == theirs]
        assert shown["comments"] == 1
        await pair.ask("DELETE", f"/comments/{comment}", params={"user_id": me})
        [shown] = [post for post in await pair.feed(me) if post["post_id"] == theirs]
        assert shown["comments"] == 0
        await pair.ask("DELETE", f"/posts/{mine}", params={"user_id": me})
        assert mine not in ids(await pair.feed(me))
        await pair.ask("POST", "/unfollow", json={"follower_id": me, "following_id": friend})


async def test_what_is_deleted_is_gone_from_the_next_read_at_every_replica(pair: Pair) -> None:
    author, reader = await pair.user("gone.author"), await pair.user("gone.reader")
    await pair.ask("POST", "/follow", json={"follower_id": reader, "following_id": author})
    for turn in range(ROUNDS):
        post = (await pair.ask("POST", "/posts", json={"user_id": author, "content": f"{turn}"}))["post_id"]
        end = time.monotonic() + 10
        while post not in ids(await pair.feed(reader)):
            assert time.monotonic() < end
        for _ in range(4):
            await pair.feed(reader)  # every replica knows it
        await pair.ask("DELETE", f"/posts/{post}", params={"user_id": author})
        for _ in range(4):
            assert post not in ids(await pair.feed(reader))


async def test_nothing_is_lost_while_one_replica_of_each_is_killed(pair: Pair) -> None:
    author, follower = await pair.user("kill.author"), await pair.user("kill.follower")
    liker = await pair.user("kill.liker")
    await pair.ask("POST", "/follow", json={"follower_id": follower, "following_id": author})
    await pair.feed(follower)  # from now on pushed to
    acknowledged: dict[str, int] = {}
    liked: set[int] = set()
    reads = 0
    stopping = asyncio.Event()

    async def write(writer: int) -> None:
        for n in itertools.count():
            if stopping.is_set():
                return
            content = f"{writer}/{n}"
            body = {"user_id": author, "content": content}
            post_id = acknowledged[content] = (await pair.insist("POST", "/posts", json=body))["post_id"]
            await pair.insist("POST", "/like", json={"user_id": liker, "post_id": post_id})
            liked.add(post_id)

    async def read() -> None:
        nonlocal reads
        while not stopping.is_set():
            shown = ids((await pair.insist("GET", "/feed", params={"user_id": follower}))["posts"])
            assert len(shown) == len(set(shown))
            reads += 1

    async def more() -> None:
        enough, end = (len(liked) + 4, reads + 2), time.monotonic() + 30
        while len(liked) < enough[0] or reads < enough[1]:
            assert time.monotonic() < end, "requests stand still"
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(work) for work in (*map(write, range(WRITERS)), read())]
    await more()
    before = replicas(pair.mesh)
    for pids in before.values():
        os.kill(min(pids), signal.SIGKILL)
        await more()
    end = time.monotonic() + 30
    while {module: len(pids) for module, pids in replicas(pair.mesh).items()} != dict.fromkeys(before, 2):
        assert time.monotonic() < end, "one is not started again"
        await asyncio.sleep(0.05)
    for module, pids in replicas(pair.mesh).items():
        assert max(before[module]) in pids, f"the other {module} was not killed"
        assert min(before[module]) not in pids
    await more()
    stopping.set()
    await asyncio.gather(*tasks)
    for client in pair.clients:
        await ready(client)

    stored = await pair.mesh.scroll(f"/users/{author}/posts", itertools.cycle([100]), viewer_id=liker)
    assert {post["content"]: post["post_id"] for post in stored} == acknowledged
    assert len(stored) == len(acknowledged)
    assert all((post["likes"], post["liked"]) == (1, True) for post in stored if post["post_id"] in liked)
    await pair.mesh.shows(follower, acknowledged.values())


async def ready(gateway: httpx.AsyncClient) -> None:
    """Waits until a gateway that was started again reaches every part."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if (await gateway.get("/readyz")).status_code == 200:
                return
        await asyncio.sleep(0.05)
    raise AssertionError("not ready")


def replicas(mesh: Mesh) -> dict[str, set[int]]:
    """The mesh's Python processes by their module."""
    found: dict[str, set[int]] = {}
    for pid in meshes.children(mesh.launcher.pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "-m" in words:
                found.setdefault(words[words.index("-m") + 1], set()).add(pid)
    return found


def ids(posts: list[Json]) -> list[int]:
    """The ids of posts."""
    return [post["post_id"] for post in posts]
