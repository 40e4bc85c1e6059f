"""I1 on a whole mesh: `kill -9` of any process or store loses no acknowledged write, and a retry takes effect once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from launch.processes import FEEDMESH
from tests.e2e import mesh as meshes
from tests.e2e.mesh import Mesh

WRITERS = 6
VICTIMS = tuple(process.argv[-1] for process in FEEDMESH.processes if not process.needs)
"""Every process of the mesh, by its module."""


@pytest_asyncio.fixture(scope="module")
async def fragile(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh to break."""
    with meshes.running(tmp_path_factory.mktemp("fragile")) as own:
        yield own
        await own.http.aclose()


@pytest.mark.parametrize("victim", [*VICTIMS, "postgres", "valkey-server"])
async def test_each_acknowledged_post_exists_once_after_kill_9(fragile: Mesh, victim: str) -> None:
    name = victim.replace(".", "-")
    author = await eventually_user(fragile, f"crash-{name}")
    follower = await fragile.user(f"crash-{name}-follower")
    await fragile.post("/follow", {"follower_id": follower, "following_id": author})
    await fragile.shows(follower, [])  # from now on pushed to
    acknowledged: dict[str, int] = {}
    stopping = asyncio.Event()

    async def write(writer: int) -> None:
        for n in itertools.count():
            if stopping.is_set():
                return
            content = f"{writer}/{n}"
            acknowledged[content] = await post_with_retries(fragile, author, content)

    writers = [asyncio.create_task(write(writer)) for writer in range(WRITERS)]
    for _ in range(2):
        await more_than(acknowledged, 40)
        pid = fragile.pids()[victim]
        os.kill(pid, signal.SIGKILL)
        await wait_for(partial(started_again, fragile, victim, pid), f"{victim} to be started again")
    await more_than(acknowledged, 40)
    stopping.set()
    await asyncio.gather(*writers)

    await wait_for_ready(fragile)
    stored = await fragile.scroll(f"/users/{author}/posts", itertools.cycle([100]))
    assert sorted((post["content"], post["post_id"]) for post in stored) == sorted(acknowledged.items())
    shown = await fragile.scroll("/feed", itertools.cycle([100]), user_id=author)
    assert sorted(post["post_id"] for post in shown) == sorted(acknowledged.values())
    await fragile.shows(follower, acknowledged.values())


async def test_the_feed_goes_on_without_ranking_and_says_so(fragile: Mesh) -> None:
    await wait_for_ready(fragile)
    author = await eventually_user(fragile, "without-ranking")
    posts = [(await fragile.post("/posts", {"user_id": author, "content": f"{n}"}, 201))["post_id"] for n in range(3)]

    async def whole() -> None:
        end = time.monotonic() + 20
        while "feed-degraded" in (await fragile.http.get("/feed", params={"user_id": author})).headers:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)

    await whole()  # the store that was killed before may have been missing until now
    ranking = fragile.pids()["services.ranking"]
    os.kill(ranking, signal.SIGSTOP)
    try:
        response = await fragile.http.get("/feed", params={"user_id": author})
        assert response.headers["feed-degraded"] == "ranking"
        assert [post["post_id"] for post in response.json()["posts"]] == posts[::-1]
        assert "degraded" not in response.json()
    finally:
        os.kill(ranking, signal.SIGCONT)
    await whole()


async def test_readiness_tells_the_truth(fragile: Mesh) -> None:
    await wait_for_ready(fragile)

    async def answers(status: int) -> None:
        end = time.monotonic() + 30
        while (await fragile.http.get("/readyz")).status_code != status:
            assert time.monotonic() < end, status
            await asyncio.sleep(0.1)

    pids = fragile.pids()
    postgres = [pids["postgres"], *meshes.children(pids["postgres"])]
    for pid in postgres:
        os.kill(pid, signal.SIGSTOP)
    await answers(503)
    response = await fragile.http.get("/posts/1")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    for pid in postgres:
        os.kill(pid, signal.SIGCONT)
    await answers(200)
    assert (await fragile.http.get("/posts/1")).status_code == 404

    # A feed does without ranking, so the gateway is ready without it, and says what is missing.
    os.kill(pids["services.ranking"], signal.SIGSTOP)
    parts = {"ranking": "serving"}
    end = time.monotonic() + 30
    while parts["ranking"] == "serving":
        assert time.monotonic() < end
        response = await fragile.http.get("/readyz")
        assert response.status_code == 200
        parts = response.json()["parts"]
    os.kill(pids["services.ranking"], signal.SIGCONT)


async def test_data_survives_a_restart_of_everything(tmp_path: Path) -> None:
    with meshes.running(tmp_path) as first:
        author = await first.user("survivor")
        post = await first.post("/posts", {"user_id": author, "content": "still here"}, 201)
        cursor = (await first.get("/feed", user_id=author, limit=1))["next_cursor"]
        await first.http.aclose()
    assert cursor is None
    with meshes.running(tmp_path) as second:
        assert (await second.get("/feed", user_id=author))["posts"] == [post]
        await second.http.aclose()


def started_again(mesh: Mesh, module: str, pid: int) -> bool:
    """Whether a process runs under another pid than it had."""
    return mesh.pids().get(module, pid) != pid


async def more_than(acknowledged: dict[str, int], count: int) -> None:
    """Waits until `count` more posts are acknowledged."""
    enough = len(acknowledged) + count
    await wait_for(lambda: len(acknowledged) >= enough, f"{count} more posts")


async def post_with_retries(mesh: Mesh, author: int, content: str) -> int:
    """Posts as a careful client does: the same key until it is acknowledged. The post's id."""
    key = {"Idempotency-Key": str(uuid.uuid4())}
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            response = await mesh.http.post("/posts", json={"user_id": author, "content": content}, headers=key)
            if response.status_code == 201:
                return int(response.json()["post_id"])
            # 408 where the mesh and this very process take turns on too few cores to send a body in time.
            assert response.status_code in (408, 409, 503), response.text
            assert response.status_code != 503 or response.headers["retry-after"]
        await asyncio.sleep(0.05)
    raise AssertionError("never acknowledged")


async def eventually_user(mesh: Mesh, username: str) -> int:
    """Registers a person on a mesh that is being broken."""
    await wait_for_ready(mesh)
    return await mesh.user(username)


async def wait_for_ready(mesh: Mesh) -> None:
    """Waits until every part answers, the gateway and each other: who is looked for in a feed, graph is asked."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            ready = (await mesh.http.get("/readyz")).status_code == 200
            if ready and (await mesh.http.get("/feed", params={"user_id": 1})).status_code == 404:
                return
        await asyncio.sleep(0.05)
    raise AssertionError("not ready")


async def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Waits until something holds, at most 30 s."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"waited for {what}"
        await asyncio.sleep(0.02)
