"""Live updates through a whole mesh: whatever is killed, everybody is told each post once, or told to read the feed."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from aiohttp import web
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from tests.e2e import mesh as meshes
from tests.e2e.mesh import Json, Mesh
from tests.e2e.test_crashes import eventually_user, post_with_retries, started_again, wait_for, wait_for_ready

READERS, AUTHORS, FOLLOWED = 30, 10, 4
PAUSE_S = 0.05
BEFORE, AFTER = 20, 40
"""Posts written before something is killed, and after."""


@pytest_asyncio.fixture(scope="module")
async def fragile(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh to break."""
    with meshes.running(tmp_path_factory.mktemp("live")) as own:
        yield own
        await own.http.aclose()


@dataclass
class Reader:
    """A client that is told, and comes back with its last token."""

    mesh: Mesh
    user_id: int
    told: list[int] = field(default_factory=list)
    """Since the last gap, or the beginning."""
    seen: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    gaps: int = 0
    connections: int = 0
    last: str = ""
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Reads until it is cancelled."""
        while True:
            with suppress(httpx.HTTPError):
                headers = {"Last-Event-ID": self.last} if self.last else {}
                async with self.mesh.http.stream(
                    "GET", "/live/events", params={"user_id": self.user_id}, headers=headers, timeout=30
                ) as response:
                    if response.status_code == 200:
                        self.connections += 1
                        await self._read(response)
            await asyncio.sleep(0.1)

    async def _read(self, response: httpx.Response) -> None:
        said: dict[str, str] = {}
        async for line in response.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                said[name] = value
                continue
            await self._heed(said)
            said = {}

    async def _heed(self, said: dict[str, str]) -> None:
        event = json.loads(said.get("data", "{}"))
        if event.get("type") == "post_added":
            post_id = event["post"]["post_id"]
            assert post_id not in self.told, "a post was told twice"
            self.told.append(post_id)
            self.seen.add(post_id)
        elif event.get("type") == "post_removed":
            self.removed.add(event["post_id"])
        elif event.get("type") == "gap":
            assert event["reload"] == ["feed"]
            self.gaps += 1
            self.told.clear()
            await self._reload()
        elif event.get("type") == "reconnect":
            assert 0 < event["after_ms"] <= 5_000
        elif not self.last:
            await self._reload()
        self.last = said.get("id", self.last)
        self.ready.set()

    async def _reload(self) -> None:
        while True:
            with suppress(httpx.HTTPError, AssertionError):
                posts = await self.mesh.scroll("/feed", itertools.cycle([100]), user_id=self.user_id, order="latest")
                self.seen.update(post["post_id"] for post in posts)
                return
            await asyncio.sleep(0.1)


class SocketReader(Reader):
    """The same by a WebSocket."""

    async def run(self) -> None:
        """Reads until it is cancelled."""
        address = f"{self.mesh.url.replace('http', 'ws', 1)}/live?user_id={self.user_id}"
        while True:
            with suppress(WebSocketException, OSError):
                async with connect(f"{address}&token={self.last}", proxy=None) as socket:
                    self.connections += 1
                    async for message in socket:
                        await self._heed({"data": str(message), **token_in(str(message))})
            await asyncio.sleep(0.1)


def token_in(message: str) -> dict[str, str]:
    """The token of an event, as the id that Server-Sent Events have."""
    said = json.loads(message)
    return {"id": said["token"]} if "token" in said else {}


@pytest.mark.parametrize("victim", ["services.timeline", "gateway", "valkey-server"])
async def test_every_post_is_told_once_though_something_is_killed(fragile: Mesh, victim: str) -> None:
    await wait_for_ready(fragile)
    name = victim.replace(".", "-")
    authors = [await eventually_user(fragile, f"live-{name}-author-{n}") for n in range(AUTHORS)]
    kinds = itertools.cycle([Reader, SocketReader])
    readers = [next(kinds)(fragile, await fragile.user(f"live-{name}-{n}")) for n in range(READERS)]
    wanted: dict[int, set[int]] = {reader.user_id: set() for reader in readers}
    followers: dict[int, list[int]] = {author: [] for author in authors}
    for number, reader in enumerate(readers):
        for author in (authors[(number + n) % AUTHORS] for n in range(FOLLOWED)):
            await fragile.post("/follow", {"follower_id": reader.user_id, "following_id": author})
            followers[author].append(reader.user_id)
    running = [asyncio.create_task(reader.run()) for reader in readers]
    async with asyncio.timeout(60):
        await asyncio.gather(*(reader.ready.wait() for reader in readers))

    async def write(number: int) -> None:
        author = authors[number % AUTHORS]
        post_id = await post_with_retries(fragile, author, f"{name}/{number}")
        for follower in followers[author]:
            wanted[follower].add(post_id)

    for number in range(BEFORE):
        await write(number)
    pid = fragile.pids()[victim]
    os.kill(pid, signal.SIGKILL)
    for number in range(BEFORE, BEFORE + AFTER):
        await write(number)
        await asyncio.sleep(PAUSE_S)
    await wait_for(partial(started_again, fragile, victim, pid), f"{victim} to be started again")
    await wait_for(
        lambda: (
            all(reader.seen == wanted[reader.user_id] for reader in readers) or any(task.done() for task in running)
        ),
        "everybody to be told everything",
    )
    for task in running:
        assert not task.done(), task.result()
        task.cancel()
    assert all(reader.connections > 1 for reader in readers) == (victim == "gateway")
    if victim != "valkey-server":
        assert not any(reader.gaps for reader in readers)
        assert all(set(reader.told) == wanted[reader.user_id] for reader in readers)


async def test_who_may_not_see_is_not_told_and_who_deletes_takes_back(fragile: Mesh) -> None:
    await wait_for_ready(fragile)
    author, reader_id, blocked_id = [await eventually_user(fragile, f"live-{who}") for who in ("ann", "bob", "eve")]
    readers = [Reader(fragile, reader_id), SocketReader(fragile, blocked_id)]
    for reader in readers:
        await fragile.post("/follow", {"follower_id": reader.user_id, "following_id": author})
    running = [asyncio.create_task(reader.run()) for reader in readers]
    async with asyncio.timeout(60):
        await asyncio.gather(*(reader.ready.wait() for reader in readers))
    first = (await fragile.post("/posts", {"user_id": author, "content": "one"}, 201))["post_id"]
    await wait_for(lambda: all(reader.told == [first] for reader in readers), "both to be told")
    await fragile.post("/block", {"user_id": author, "target_id": blocked_id})
    second = (await fragile.post("/posts", {"user_id": author, "content": "two"}, 201))["post_id"]
    await wait_for(lambda: readers[0].told == [first, second], "the other to be told")
    await fragile.http.delete(f"/posts/{second}", params={"user_id": author})
    await wait_for(lambda: readers[0].removed == {second}, "the deletion to be told")
    assert readers[1].told == [first]
    for task in running:
        assert not task.done(), task.result()
        task.cancel()


async def test_a_socket_is_refused_as_any_request_is_and_takes_nothing(fragile: Mesh) -> None:
    await wait_for_ready(fragile)
    address = fragile.url.replace("http", "ws", 1)
    for path, status, problem in (
        ("/live", 400, "invalid_argument"),
        ("/live?user_id=x&foo=1", 400, "invalid_argument"),
        ("/live?user_id=99", 404, "user_not_found"),
    ):
        with pytest.raises(InvalidStatus) as refused:
            await connect(address + path, proxy=None)
        assert (refused.value.response.status_code, json.loads(refused.value.response.body)["code"]) == (
            status,
            problem,
        )
    # A page of another origin could say who it is whose feed it listens to: CORS does not cover sockets.
    for headers, problem in (
        ({"origin": "https://evil.example"}, "origin_not_allowed"),
        ({"host": "rebound.example"}, "host_not_allowed"),
    ):
        with pytest.raises(InvalidStatus) as foreign:
            await connect(address + "/live?user_id=99", proxy=None, additional_headers=headers)
        assert json.loads(foreign.value.response.body)["code"] == problem
        assert foreign.value.response.headers["x-content-type-options"] == "nosniff"
    # Nothing else becomes a socket, and a plain request of this path is no socket.
    with pytest.raises(InvalidStatus) as elsewhere:
        await connect(address + "/feed?user_id=99", proxy=None)
    assert elsewhere.value.response.status_code == 404
    assert (await fragile.http.get("/live", params={"user_id": 99})).status_code == 404
    reader = await eventually_user(fragile, "live-speaker")
    for said, code, why in (
        ("hello", 1008, "not JSON"),
        ("[]", 1008, "must be a JSON object"),
        ('{"type":"like","post_ids":[]}', 1008, "type"),
        ('{"type":"screen","post_ids":[1,"a"]}', 1008, "post_ids[1]"),
        (json.dumps({"type": "screen", "post_ids": [*range(1, 52)]}), 1008, "post_ids"),
        ('{"type":"screen","post_ids":[1,1]}', 1008, "post_ids"),
        ('{"type":"screen","posts":[1]}', 1008, "posts"),
        (b"\xff", 1008, "text"),
        ("x" * 5_000, 1009, ""),
    ):
        async with connect(f"{address}/live?user_id={reader}&token=garbage", proxy=None) as socket:
            assert json.loads(await socket.recv())["type"] == "gap"
            await socket.send(said)
            await asyncio.wait_for(socket.wait_closed(), 10)
            assert socket.close_code == code
            assert why in (socket.close_reason or "")
    async with connect(f"{address}/live?user_id={reader}", proxy=None) as socket:
        for _ in range(200):
            with suppress(ConnectionClosed):
                await socket.send('{"type":"screen","post_ids":[1]}')
        await asyncio.wait_for(socket.wait_closed(), 10)
        assert (socket.close_code, socket.close_reason) == (1008, "more than 10 messages a second")
    # Nor does it who goes on all the same.
    reading, writing = await asyncio.open_connection(fragile.http.base_url.host, fragile.http.base_url.port)
    head = f"GET /live?user_id={reader} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    writing.write(f"{head}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    assert b" 101 " in await reading.readuntil(b"\r\n\r\n")
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(flood(writing), 5)
    writing.transport.abort()
    many = [await connect(f"{address}/live?user_id={reader}", proxy=None) for _ in range(20)]
    with pytest.raises(InvalidStatus) as too_many:
        await connect(f"{address}/live?user_id={reader}", proxy=None)
    assert too_many.value.response.status_code == 429
    for socket in many:
        await socket.close()


async def test_notifications_come_live_and_are_read(fragile: Mesh) -> None:
    await wait_for_ready(fragile)
    ann, bob, eve = [await eventually_user(fragile, f"noted-{who}") for who in ("ann", "bob", "eve")]
    post = (await fragile.post("/posts", {"user_id": ann, "content": "hello"}, 201))["post_id"]
    address = f"{fragile.url.replace('http', 'ws', 1)}/live?user_id={ann}"

    async def next_of(socket: ClientConnection) -> Json:
        async with asyncio.timeout(10):
            while (said := dict(json.loads(await socket.recv())))["type"] != "notification":
                pass
        return said

    async with connect(address, proxy=None) as socket:
        await fragile.post("/like", {"user_id": bob, "post_id": post})
        said = await next_of(socket)
        assert (said["unread"], said["notification"]["kind"]) == (1, "liked")
        assert said["notification"]["post"]["post_id"] == post
        assert said["notification"]["actors"] == [{"user_id": bob, "username": "noted-bob"}]
        await fragile.post("/comments", {"user_id": eve, "post_id": post, "content": "see @noted-bob"}, 201)
        said = await next_of(socket)
        assert (said["unread"], said["notification"]["kind"]) == (2, "commented")
    page = await fragile.get("/notifications", user_id=ann, limit=1)
    assert (page["unread"], page["notifications"]) == (2, [said["notification"]])
    page = await fragile.get("/notifications", user_id=ann, cursor=page["next_cursor"])
    assert [note["kind"] for note in page["notifications"]] == ["liked"]
    read = {"user_id": ann, "notification_id": said["notification"]["notification_id"]}
    assert await fragile.post("/notifications/read", read) == {"unread": 0}
    [mention] = (await fragile.get("/notifications", user_id=bob))["notifications"]
    assert (mention["kind"], mention["actors"][0]["user_id"], mention["unread"]) == ("mentioned", eve, True)
    for query, status in (("99", 404), ("x", 400), (f"{ann}&limit=0", 400), (f"{ann}&cursor=AAAA", 400)):
        assert (await fragile.http.get(f"/notifications?user_id={query}")).status_code == status


async def test_with_a_webhook_notifications_are_handed_over(tmp_path: Path) -> None:
    got: asyncio.Queue[Json] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        got.put_nowait(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    told = {
        "FEEDMESH_WEBHOOK_URL": f"http://127.0.0.1:{runner.addresses[0][1]}/hook",
        "FEEDMESH_WEBHOOK_SECRET": "a secret of at least so many characters",
    }
    with meshes.running(tmp_path, **told) as mesh:
        ann, bob = await mesh.user("ann"), await mesh.user("bob")
        await mesh.post("/follow", {"follower_id": bob, "following_id": ann})
        async with asyncio.timeout(30):
            said = await got.get()
        assert (said["kind"], said["user_id"], said["actor"]) == ("followed", ann, {"user_id": bob, "username": "bob"})
        await mesh.http.aclose()
    await runner.cleanup()


async def flood(writing: asyncio.StreamWriter) -> None:
    """Says what is on screen for as long as it can be said."""
    content = b'{"type":"screen","post_ids":[1]}'
    frames = 100 * (b"\x81%c\0\0\0\0%b" % (0x80 | len(content), content))
    while True:
        writing.write(frames)
        await writing.drain()
        await asyncio.sleep(0)


async def test_counts_of_posts_on_screen_come_and_posts_go_within_a_second(fragile: Mesh) -> None:
    await wait_for_ready(fragile)
    author, reader = [await eventually_user(fragile, f"screen-{who}") for who in ("ann", "bob")]
    posts = [(await fragile.post("/posts", {"user_id": author, "content": f"{n}"}, 201))["post_id"] for n in range(2)]
    address = fragile.url.replace("http", "ws", 1)
    async with connect(f"{address}/live?user_id={reader}", proxy=None) as socket:

        async def events(count: int) -> list[Json]:
            async with asyncio.timeout(10):
                found: list[Json] = []
                while len(found) < count:
                    said = json.loads(await socket.recv())
                    assert said.pop("token")
                    found += [said] if said["type"] != "here" else []
                return found

        await socket.send(json.dumps({"type": "screen", "post_ids": [*posts, 99]}))
        told = await events(3)
        nothing = {"likes": 0, "comments": 0, "shares": 0}
        assert {said["post_id"]: said for said in told} == {
            99: {"type": "post_removed", "post_id": 99},
            **{post_id: {"type": "counts", "post_id": post_id, **nothing} for post_id in posts},
        }
        begun = time.monotonic()
        await fragile.post("/like", {"user_id": reader, "post_id": posts[0]})
        assert await events(1) == [{"type": "counts", "post_id": posts[0], **nothing, "likes": 1}]
        await fragile.post("/block", {"user_id": author, "target_id": reader})
        assert sorted((await events(2)), key=str) == [{"type": "post_removed", "post_id": each} for each in posts]
        # Each within a second; twice that, on a machine that does something else besides.
        assert time.monotonic() < begun + 4
