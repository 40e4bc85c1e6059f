"""The demo's probes against a gateway in memory, and the counters that it reads from the mesh's processes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from bench import community, counters, visible
from bench.client import Client, connect
from bench.counters import CANDIDATES, DELIVERED, FANNED_OUT, TRIED
from bench.drive import Measured
from bench.mesh import Log, Mesh

METRICS = """\
# TYPE feedmesh_deliveries_total counter
feedmesh_deliveries_total 12.0
# TYPE feedmesh_deliveries_created gauge
feedmesh_deliveries_created 1.7e+09
# TYPE feedmesh_feed_rows_total counter
feedmesh_feed_rows_total{source="home"} 800.0
# TYPE feedmesh_worker_rounds_total counter
feedmesh_worker_rounds_total{outcome="ok",task="publish"} 9.0
"""


class Gateway:
    """Feeds that have a new post at the third look, or never. Who has not read before has no feed."""

    def __init__(self, *, loses: bool = False) -> None:
        self.looks = -1 if loses else 2
        self.readers: set[str] = set()
        self.posts: list[dict[str, object]] = []
        self.looked: Counter[int] = Counter()
        self.app = web.Application()
        self.app.add_routes([web.post("/posts", self.post), web.get("/feed", self.feed)])

    async def post(self, request: web.Request) -> web.Response:
        self.posts.append(await request.json() | {"post_id": len(self.posts) + 1, "username": "a.b", "likes": 0})
        return web.json_response(self.posts[-1], status=201)

    async def feed(self, request: web.Request) -> web.Response:
        assert (request.query["order"], request.query["limit"]) == ("latest", str(visible.LIMIT))
        first = request.query["user_id"] not in self.readers
        self.readers.add(request.query["user_id"])
        shown = [] if first else [post for at, post in enumerate(self.posts) if self.looked[at] == self.looks]
        self.looked.update(range(len(self.posts)) if not first else ())
        return web.json_response({"posts": shown, "next_cursor": None}, headers={"Feed-Degraded": "redis"})


async def probed(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> tuple[Measured, Client]:
    monkeypatch.setattr(visible, "AT_ONCE", 1)
    monkeypatch.setattr(visible, "LATE_S", 0.05)
    plan = community.build([(0, 1)], Random(1))
    async with TestServer(gateway.app) as server, connect(str(server.make_url("")).rstrip("/"), 1) as client:
        measured = await visible.probe(client, plan, [5, 7], Random(1), seconds=0.01, run="run1")
    return measured, client


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POSTS", "LIKES", "COMMENTS", "SHARES"):
        monkeypatch.setattr(community, name, 2)


async def test_a_probe_looks_until_the_post_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    measured, client = await probed(gateway, monkeypatch)
    assert (measured.requests, measured.errors, len(measured.seconds)) == (1, 0, 1)
    assert measured.seconds[0] > 2 * visible.POLL_S
    [author] = [post["user_id"] for post in gateway.posts]
    assert gateway.readers == {str({5: 7, 7: 5}[author])}  # type: ignore[index]
    assert client.degraded == {"redis": 4}


async def test_a_post_that_never_comes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, client = await probed(Gateway(loses=True), monkeypatch)
    assert (measured.requests, measured.errors, measured.seconds) == (1, 1, [])
    assert client.errors == {"from 201 to a follower's feed: not seen within 0 s": 1}


async def test_counters_are_added_up_over_processes() -> None:
    app = web.Application()

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=METRICS)

    app.add_routes([web.get("/metrics", metrics)])
    async with TestServer(app) as server, connect("http://127.0.0.1:1", 1) as client:
        before = await counters.read(client, [server.make_url("/metrics")])
        after = await counters.read(client, [server.make_url("/metrics")] * 3)
        assert not client.errors
        await counters.read(client, [server.make_url("/gone")])
        assert client.errors
    assert after.values == {(DELIVERED,): 36, (CANDIDATES, "home"): 2_400}
    rose = after.since(before)
    assert rose.values == {(DELIVERED,): 24, (CANDIDATES, "home"): 1_600}
    assert (rose.values[TRIED,], rose.values[FANNED_OUT, "push"]) == (0, 0)
    assert 0 < rose.seconds < 10


def test_a_mesh_of_ours_says_where_its_metrics_are(tmp_path: Path) -> None:
    path = tmp_path / "log"
    earlier = "  metrics    http://127.0.0.1:1/metrics  of an earlier one\n"
    path.write_text(
        f"{earlier}"
        "feedmesh is ready on http://127.0.0.1:8080\n"
        "  start at   http://127.0.0.1:8080/\n"
        "  metrics    http://127.0.0.1:2/metrics  timeline\n"
        "  metrics    http://127.0.0.1:3/metrics  timeline-fanout\n"
    )
    assert Mesh("", log=Log(path, len(earlier))).metrics() == [
        URL(f"http://127.0.0.1:{port}/metrics") for port in (2, 3)
    ]
    assert Mesh("").metrics() == []
