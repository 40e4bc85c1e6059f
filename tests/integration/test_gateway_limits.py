"""Rate limits on a real Redis: GCRA against a leaky bucket, all limits of a request or none, and what without Redis."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.addresses import Addresses, networks
from gateway.limits import CLASSES, LIBRARY, PEOPLE, READ, SIGN_IN, Limits, Quota
from gateway.pages import UNLIMITED
from launch import valkey as embedded
from launch.valkey import Running as Valkey
from runtime import redis
from runtime.errors import Error, Unavailable
from tests.integration import timeline_stores
from tests.integration.test_gateway import Running, gateway, problem

SECOND = 1_000_000
QUOTAS = dict.fromkeys(CLASSES, Quota(5, 3600))
"""One in 12 minutes of a person, in 72 seconds of an address: none comes back during a test."""
ADDRESS = "203.0.113.7"
# A time that the test says, which the function for everybody does not take.
HELD = """
redis.register_function('held_at', function(keys, args)
  return decided(keys, {unpack(args, 2)}, tonumber(args[1]))
end)
"""
ADDRESSES = {f"{name}-address" for name in CLASSES if name != SIGN_IN}
"""Limits that are ten people's."""
Request = Sequence[tuple[str, int, int]]
"""Keys, with the interval and the quota of each."""


@pytest_asyncio.fixture
async def store(valkey: Valkey) -> AsyncIterator[Redis]:
    """An empty Redis."""
    async with redis.connect(timeline_stores.settings(valkey.url)) as client:
        await client.flushall()
        yield client


@pytest_asyncio.fixture
async def held(store: Redis) -> Redis:
    """One that decides at the times that a test says."""
    await store.function_load(LIBRARY.source + HELD, replace=True)
    return store


async def decided(client: Redis, now: int, *requests: Request) -> list[tuple[int, int, int]]:
    """What the function says of each request: which limit, how many, µs to one more."""
    keys = [key for request in requests for key, _, _ in request]
    arguments: list[bytes | int] = [bytes(range(1, len(requests) + 1))]
    for request in requests:
        arguments += [len(request), *(word for _, *limit in request for word in limit)]
    said = await client.fcall("held_at", len(keys), *keys, now, *arguments)
    return list(zip(said[::3], said[1::3], said[2::3], strict=True))


class Bucket:
    """GCRA as a continuous-state leaky bucket (I.371, annex A.2), which is the same by another rule."""

    def __init__(self, interval: int, quota: int) -> None:
        self.interval, self.quota = interval, quota
        self.content = self.filled = 0

    def room(self, now: int) -> int:
        """How many requests it takes now."""
        return (self.interval * self.quota - self.left(now)) // self.interval

    def left(self, now: int) -> int:
        """What it holds, as far as it has not leaked."""
        return max(0, self.content - (now - self.filled))

    def fill(self, now: int) -> None:
        """Takes one request."""
        self.content, self.filled = self.left(now) + self.interval, now


numbers = itertools.count()
limits = st.lists(st.tuples(st.integers(10 * SECOND, 30 * SECOND), st.integers(1, 4)), min_size=3, max_size=3)
steps = st.lists(
    st.tuples(
        st.integers(0, 40 * SECOND) | st.sampled_from([0, 1, 10 * SECOND]),
        st.lists(st.sampled_from([(0,), (1,), (2,), (0, 1), (1, 0), (0, 2), (0, 1, 2)]), min_size=1, max_size=6),
    ),
    max_size=20,
)


@given(limits, steps)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_it_is_gcra_all_limits_or_none_one_after_the_other(
    held: Redis, limits: list[tuple[int, int]], steps: list[tuple[int, list[tuple[int, ...]]]]
) -> None:
    run, now = next(numbers), 1_800_000_000 * SECOND
    buckets = [Bucket(*limit) for limit in limits]
    for passed, requests in steps:
        now += passed
        found = await decided(
            held, now, *([(f"{run}:{each}", *limits[each]) for each in request] for request in requests)
        )
        for request, (which, allowed, wait) in zip(requests, found, strict=True):
            rooms = [buckets[each].room(now) for each in request]
            assert allowed == min(rooms) == rooms[which - 1]
            # Until then it takes no more than that, and then one more.
            bucket = buckets[request[which - 1]]
            assert bucket.room(now + wait) == allowed + 1 or bucket.room(now) == bucket.quota
            assert bucket.room(now + wait - 1) == allowed or wait == 0
            if allowed:
                for each in request:
                    buckets[each].fill(now)


async def test_a_clock_that_goes_back_or_a_quota_that_is_lowered_locks_nobody_out(held: Redis) -> None:
    now = 1_800_000_000 * SECOND
    one = [("a", 10 * SECOND, 6)]
    assert [allowed for _, allowed, _ in await decided(held, now, *[one] * 7)] == [6, 5, 4, 3, 2, 1, 0]
    assert await decided(held, now - 3_600 * SECOND, one) == [(1, 0, 10 * SECOND)]
    assert await decided(held, now, [("a", SECOND, 2)]) == [(1, 0, SECOND)]


async def test_keys_are_gone_when_the_quota_is_whole_again(store: Redis) -> None:
    counting = Limits(store, {READ: Quota(1_000, 10)})
    for user_id in range(1, 50):
        await counting(READ, user_id, f"2001:db8:0:{user_id:x}::1", [])
    # 49 people and as many addresses, if they are not gone by now.
    lives = [await store.pttl(key) async for key in store.scan_iter()]
    assert len(lives) <= 98
    assert all(-2 <= life <= 12 for life in lives)
    await until_empty(store)


async def until_empty(store: Redis) -> None:
    async with asyncio.timeout(10):
        while await store.dbsize():
            await asyncio.sleep(0.01)


class Said(NamedTuple):
    """What an answer says of limits."""

    name: str
    """Of the one that leaves the least; "" of none."""
    left: int = 0
    refused: bool = False


UNCOUNTED = Said("")


def said(headers: Mapping[str, str], *, refused: bool = False) -> Said:
    """What the headers of an answer say. They must be right."""
    if "ratelimit" not in headers:
        assert "ratelimit-policy" not in headers
        return UNCOUNTED
    name, left, more = re.fullmatch(r'"([a-z_-]+)";r=(\d+);t=(\d+)', headers["ratelimit"]).groups()  # type: ignore[union-attr]
    quota, seconds = (5 * PEOPLE, 72) if name in ADDRESSES else (5, 720)
    assert headers["ratelimit-policy"] == f'"{name}";q={quota};w=3600'
    # The tests may take some of it.
    assert seconds - 30 < int(more) <= seconds
    assert not refused or (left, headers["retry-after"]) == ("0", more)
    assert refused or "retry-after" not in headers
    return Said(name, int(left), refused)


async def asked(counting: Limits, name: str = READ, user_id: int = 1, address: str = ADDRESS) -> Said:
    """What one request is told."""
    headers: list[tuple[bytes, bytes]] = []
    reason = ""
    try:
        await counting(name, user_id, address, headers)
    except Error as error:
        reason = error.reason
    assert reason in ("", "RATE_LIMITED")
    return said({key.decode(): value.decode() for key, value in headers}, refused=bool(reason))


async def test_what_an_answer_says(store: Redis) -> None:
    counting = Limits(store, QUOTAS)
    assert [await asked(counting) for _ in range(5)] == [Said("read", left) for left in (4, 3, 2, 1, 0)]
    assert await asked(counting) == Said("read", 0, refused=True)
    # Others, other classes, and who is not signed in have quotas of their own.
    assert await asked(counting, user_id=2) == Said("read", 4)
    assert await asked(counting, "like") == Said("like", 4)
    assert await asked(counting, user_id=0, address="::1") == Said("read-address", 49)
    assert await asked(counting, "sign_in", address="::1") == Said("sign_in-address", 4)


async def test_an_address_is_ten_people_and_what_is_refused_costs_nothing(store: Redis) -> None:
    counting = Limits(store, QUOTAS)
    for user_id in range(1, PEOPLE + 1):
        for left in (4, 3, 2, 1, 0):
            assert await asked(counting, user_id=user_id, address="2001:db8:0:1::1") == Said("read", left)
    for number in range(3):
        found = await asked(counting, user_id=99, address=f"2001:db8:0:1::{number}")
        assert found == Said("read-address", 0, refused=True)
    assert await asked(counting, user_id=99, address="2001:db8:0:2::1") == Said("read", 4)
    for _ in range(3):
        assert await asked(counting, user_id=1) == Said("read", 0, refused=True)
    assert await asked(counting, user_id=0) == Said("read-address", 49)


async def test_many_at_once_get_as_much_as_one_after_the_other_in_few_calls(store: Redis) -> None:
    counting = [Limits(store, QUOTAS) for _ in range(2)]
    await asyncio.gather(*(asked(each, user_id=99) for each in counting))
    before = (await store.info("commandstats"))["cmdstat_fcall"]["calls"]
    found = await asyncio.gather(
        *(asked(counting[n % 2], user_id=n % 10 + 1, address=f"::{n}:0:0:0:1") for n in range(600))
    )
    assert sum(not each.refused for each in found) == 50
    assert (await store.info("commandstats"))["cmdstat_fcall"]["calls"] - before < 60


@asynccontextmanager
async def fragile(folder: Path) -> AsyncIterator[tuple[Valkey, Limits]]:
    """A Redis to break, and limits in it."""
    with embedded.running(folder) as server:
        async with redis.connect(timeline_stores.settings(server.url), timeout_s=0.1) as client:
            yield server, Limits(client, QUOTAS)


async def until_counted(counting: Limits, user_id: int) -> Said:
    async with asyncio.timeout(10):
        while (found := await asked(counting, user_id=user_id)) == UNCOUNTED:
            await asyncio.sleep(0.05)
    return found


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_without_redis_all_pass_but_sign_in_and_nobody_waits(tmp_path: Path, how: str) -> None:
    async with fragile(tmp_path) as (server, counting):
        assert [(await asked(counting)).refused for _ in range(6)] == [False] * 5 + [True]
        if how == "killed":
            server.kill()
        else:
            server.process.send_signal(signal.SIGSTOP)
        assert await asked(counting) == UNCOUNTED
        begun = time.monotonic()
        for _ in range(20):
            assert await asked(counting) == UNCOUNTED
            with pytest.raises(Unavailable, match="sign in"):
                await counting("sign_in", 0, ADDRESS, [])
        assert time.monotonic() - begun < 1
        if how == "killed":
            server.restart()
        else:
            server.process.send_signal(signal.SIGCONT)
        assert await until_counted(counting, user_id=2) == Said("read", 4)
        # What was counted before is there, or all begin anew.
        assert (await asked(counting)).refused == (how == "stopped")
        await counting("sign_in", 0, ADDRESS, [])


async def test_a_redis_that_was_flushed_or_lost_its_functions_counts_on(store: Redis) -> None:
    counting = Limits(store, QUOTAS)
    assert await asked(counting) == Said("read", 4)
    await store.function_flush()
    assert await asked(counting) == Said("read", 3)
    await store.flushall()
    assert await asked(counting) == Said("read", 4)


async def test_one_that_is_full_is_as_if_it_were_away(tmp_path: Path) -> None:
    async with fragile(tmp_path) as (server, counting):
        await asked(counting)
        async with redis.connect(timeline_stores.settings(server.url)) as client:
            await client.config_set("maxmemory", 1)
            assert await asked(counting) == UNCOUNTED
            await client.config_set("maxmemory", 0)
        assert await until_counted(counting, user_id=1) == Said("read", 3)


@asynccontextmanager
async def limited(store: Redis, trusted: str = "") -> AsyncIterator[Running]:
    """A gateway with limits."""
    addresses = Addresses(networks(trusted))
    async with gateway(live=True, limits=Limits(store, QUOTAS), addresses=addresses) as running:
        yield running


async def spend(http: httpx.AsyncClient, path: str, times: int) -> None:
    for _ in range(times):
        assert (await http.get(path)).status_code == 200


async def test_refused_requests_are_problems_and_reach_no_service(store: Redis) -> None:
    async with limited(store) as running:
        await spend(running.http, "/feed?user_id=1", 5 * PEOPLE)
        seen = len(running.mesh.asked)
        refused = await running.http.get("/feed?user_id=1")
        assert problem(refused, 429, "rate_limited")["detail"] == "at most 50 requests in 3600 s"
        assert said(refused.headers, refused=True) == Said("read-address", 0, refused=True)
        assert len(running.mesh.asked) == seen
        # Writes go on, and say what is left; so does what is refused for another reason.
        liked = await running.http.post("/like", json={"user_id": 1, "post_id": 2})
        assert (liked.status_code, said(liked.headers)) == (200, Said("like-address", 49))
        wrong = await running.http.post("/like", json={"user_id": 0})
        assert (wrong.status_code, said(wrong.headers)) == (400, Said("like-address", 48))
        followed = await running.http.post("/follow", json={"follower_id": 1, "following_id": 2})
        assert said(followed.headers).name == "follow-address"
        posted = await running.http.post("/posts", json={"user_id": 1, "content": "hi"})
        assert said(posted.headers).name == "write-address"


async def test_pages_and_live_updates_are_reads_and_health_is_not_limited(store: Redis) -> None:
    async with limited(store) as running:
        await spend(running.http, "/openapi.json", 5 * PEOPLE - 1)
        assert said((await running.http.get("/users/1/export")).headers) == Said("read-address", 0)
        for path in ("/", "/docs", "/users/1/export", "/live/events?user_id=1"):
            refused = await running.http.get(path)
            problem(refused, 429, "rate_limited")
            assert said(refused.headers, refused=True).refused
        host, port = running.address
        with pytest.raises(InvalidStatus) as socket:
            await connect(f"ws://{host}:{port}/live?user_id=1").__aenter__()
        assert socket.value.response.status_code == 429
        assert said(socket.value.response.headers, refused=True).refused
        for path in UNLIMITED:
            answer = await running.http.get(path)
            assert answer.status_code in (200, 503)
            assert said(answer.headers) == UNCOUNTED


async def test_a_large_body_of_a_refused_request_is_not_waited_for(store: Redis) -> None:
    async with limited(store) as running:
        for _ in range(5 * PEOPLE):
            await running.http.post("/posts", json={"user_id": 1, "content": "hi"})
        answer = await running.send(
            b"POST /posts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n",
            then=b"x" * 1_000_000,
        )
        assert answer.startswith(b"HTTP/1.1 429 ")


async def test_addresses_are_those_that_trusted_proxies_say(store: Redis) -> None:
    async with limited(store, trusted="127.0.0.0/8") as running:
        for own in ("203.0.113.1", "203.0.113.2"):
            answer = await running.http.get("/feed?user_id=1", headers={"x-forwarded-for": f"10.9.8.7, {own}"})
            assert said(answer.headers) == Said("read-address", 49)
    async with limited(store) as running:
        for left in (49, 48):
            answer = await running.http.get("/feed?user_id=1", headers={"x-forwarded-for": f"203.0.113.{left}"})
            assert said(answer.headers) == Said("read-address", left)


async def test_without_redis_one_reads_and_cannot_sign_up(tmp_path: Path) -> None:
    async with fragile(tmp_path) as (server, counting), gateway(limits=counting) as running:
        server.kill()
        feed = await running.http.get("/feed?user_id=1")
        assert (feed.status_code, said(feed.headers)) == (200, UNCOUNTED)
        signed_up = await running.http.post("/users", json={"username": "ada", "email": "ada@example.com"})
        problem(signed_up, 503, "unavailable")
        assert signed_up.headers["retry-after"] == "1"
