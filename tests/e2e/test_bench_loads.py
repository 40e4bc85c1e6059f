"""The load generators, against a server that counts what it is asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench import loads
from bench.client import DemoError

try:
    loads.find_wrk()
    loads.find_k6()
except DemoError as missing:
    pytest.skip(str(missing), allow_module_level=True)


class Counting:
    """Counts requests."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.status = 200
        app = web.Application()
        app.add_routes([web.get("/feed", self.answer), web.post("/like", self.answer)])
        self.server = TestServer(app)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.text()
        assert not body or request.content_type == "application/json"
        line = f"{request.method} {request.path_qs} {body}".rstrip()
        own = sorted(f"\t{name}: {value}" for name, value in request.headers.items() if name.startswith("X-"))
        line += "".join(own)
        self.asked[line] += 1
        return web.json_response({}, status=self.status)

    @property
    def base(self) -> str:
        return str(self.server.make_url("")).rstrip("/")


@pytest_asyncio.fixture
async def counting() -> AsyncIterator[Counting]:
    counting = Counting()
    async with counting.server:
        yield counting


READS = [f"GET /feed?user_id={user_id}&limit=20" for user_id in range(1, 8)]
LIKES = [f'POST /like {{"user_id": {user_id}, "post_id": 1}}' for user_id in range(1, 201)]


async def test_a_closed_loop_sends_all_requests_over_and_over(counting: Counting) -> None:
    run = await loads.closed(counting.base, READS, connections=4, seconds=1)
    assert set(counting.asked) == set(READS)
    assert counting.asked.total() - 4 <= run.requests <= counting.asked.total()
    assert 0 < run.p50_ms <= run.p99_ms <= run.max_ms
    assert (run.refused, run.dropped) == (0, 0)
    assert run.cpu_seconds > 0


@pytest.mark.parametrize("generator", ["wrk", "k6"])
async def test_requests_may_have_headers(counting: Counting, generator: str) -> None:
    requests = [READS[0], f"{READS[1]}\tX-One: 1 a\tX-Two: 2:b", f"{LIKES[0]}\tX-One: 3"]
    if generator == "wrk":
        await loads.closed(counting.base, requests, connections=1, seconds=1)
    else:
        await loads.open_loop(counting.base, requests, rate=20, seconds=1)
    assert set(counting.asked) == set(requests)


async def test_a_closed_loop_ends_when_each_request_was_answered(counting: Counting) -> None:
    run = await loads.closed(counting.base, LIKES, connections=8, seconds=3, once=True)
    assert set(counting.asked) == set(LIKES)
    assert len(LIKES) <= counting.asked.total() <= len(LIKES) + 8
    assert run.seconds < 3


async def test_an_open_loop_keeps_its_rate_and_waits_for_nobody(counting: Counting) -> None:
    run = await loads.open_loop(counting.base, LIKES + READS, rate=100, seconds=2)
    assert 190 <= run.requests == counting.asked.total() <= 201  # a request may be late, and none is sent twice
    assert set(counting.asked) <= set(LIKES + READS)
    assert (run.refused, run.dropped) == (0, 0)


@pytest.mark.parametrize("generator", ["wrk", "k6"])
async def test_refusals_are_counted(counting: Counting, generator: str) -> None:
    counting.status = 503
    if generator == "wrk":
        run = await loads.closed(counting.base, READS, connections=2, seconds=1)
    else:
        run = await loads.open_loop(counting.base, READS, rate=20, seconds=1)
    assert run.refused == run.requests > 0


async def test_what_an_open_loop_could_not_begin_counts_as_endless(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "AT_ONCE", 1)
    run = await loads.open_loop(counting.base, READS, rate=5_000, seconds=1)
    assert run.dropped > 0
    assert run.p99_ms == math.inf
