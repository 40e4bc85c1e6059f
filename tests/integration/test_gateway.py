"""The gateway over real HTTP in front of real gRPC servers that give canned answers: what HTTP sees, and its bounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import httpx
import pytest
import pytest_asyncio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from feedmesh.graph.v1 import graph_pb2, graph_pb2_grpc
from feedmesh.post.v1 import post_pb2, post_pb2_grpc
from feedmesh.timeline.v1 import timeline_pb2, timeline_pb2_grpc
from gateway import openapi, server
from gateway.app import App
from gateway.exchange import MAX_DRAINED_BYTES
from gateway.health import Readiness
from gateway.hub import Hub
from gateway.pages import pages
from gateway.routes import CONTRACTS, of_contracts
from runtime import callers, client, context, errors
from runtime.interceptors import Chain
from tests.fakes.post import each
from tests.fakes.serving import CALLER, MESH_SECRET

MIB = 2**20
BOUND_S = 10.0
KEEP_ALIVE = "POST /like HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@dataclass
class Mesh:
    """What the fake services answer, and what they were asked."""

    likes: Callable[[post_pb2.LikePostRequest], Awaitable[post_pb2.LikePostResponse]] | None = None
    feed: Callable[[timeline_pb2.GetFeedRequest], Awaitable[timeline_pb2.GetFeedResponse]] | None = None
    export: Callable[[], AsyncIterator[post_pb2.ExportUserResponse]] | None = None
    post: post_pb2.Post | None = None
    asked: list[Any] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    deadlines_s: list[float] = field(default_factory=list)
    cancelled: int = 0
    finished: int = 0

    def note(self, request: Any) -> None:
        self.asked.append(request)
        self.request_ids.append(context.request_id.get())
        self.deadlines_s.append(context.remaining_s() or 0)


class Posts(post_pb2_grpc.PostServiceServicer):
    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    async def CreatePost(self, request: Any, rpc: Any) -> Any:
        self.mesh.note(request)
        post = post_pb2.Post(
            post_id=2**53 - 1,
            user_id=request.user_id,
            content=request.content,
            media_url=request.media_url,
            visibility=post_pb2.VISIBILITY_PUBLIC,
        )
        post.created_at.FromMilliseconds(1_768_469_400_125)
        return post_pb2.CreatePostResponse(post=post)

    async def GetPost(self, request: Any, rpc: Any) -> Any:
        self.mesh.note(request)
        if self.mesh.post is None:
            raise errors.NotFound("POST_NOT_FOUND", "no such post")
        return post_pb2.GetPostResponse(post=self.mesh.post)

    async def DeletePost(self, request: Any, rpc: Any) -> Any:
        self.mesh.note(request)
        return post_pb2.DeletePostResponse()

    async def LikePost(self, request: Any, rpc: Any) -> Any:
        self.mesh.note(request)
        if self.mesh.likes:
            answer = await self.mesh.likes(request)
            self.mesh.finished += 1
            return answer
        return post_pb2.LikePostResponse(post_id=request.post_id, liked=True, likes=1)

    async def BatchCreatePosts(self, request: Any, rpc: Any) -> Any:
        return await each(self.CreatePost, request.items, post_pb2.BatchCreatePostsResponse())

    async def BatchLikePosts(self, request: Any, rpc: Any) -> Any:
        return await each(self.LikePost, request.items, post_pb2.BatchLikePostsResponse())

    async def ExportUser(self, request: Any, rpc: Any) -> AsyncIterator[post_pb2.ExportUserResponse]:
        self.mesh.note(request)
        if self.mesh.export is None:
            account = graph_pb2.User(user_id=request.user_id, username="ada", email="ada@example.com")
            yield post_pb2.ExportUserResponse(account=account)
            yield post_pb2.ExportUserResponse(post=post_pb2.ExportedPost(post_id=7, content="line\nline"))
            yield post_pb2.ExportUserResponse(end=post_pb2.ExportEnd(records=2))
            return
        try:
            async for record in self.mesh.export():
                yield record
                self.mesh.finished += 1
        except (asyncio.CancelledError, GeneratorExit):
            self.mesh.cancelled += 1
            raise


class Graph(graph_pb2_grpc.GraphServiceServicer):
    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    async def Follow(self, request: Any, rpc: Any) -> Any:
        self.mesh.note(request)
        if request.follower_id == request.following_id:
            raise errors.InvalidArgument(errors.Violation("following_id", "is oneself"), reason="SELF_FOLLOW")
        return graph_pb2.FollowResponse(status=graph_pb2.FOLLOW_STATUS_FOLLOWING)

    async def CreateUser(self, request: Any, rpc: Any) -> Any:
        raise ZeroDivisionError("secret of the house")

    async def GetUser(self, request: Any, rpc: Any) -> Any:
        raise errors.Error("A_REASON_OF_TOMORROW", "secret of the house")


class Timeline(timeline_pb2_grpc.TimelineServiceServicer):
    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    async def GetFeed(self, request: Any, rpc: Any) -> Any:
        self.mesh.note(request)
        try:
            if self.mesh.feed:
                return await self.mesh.feed(request)
        except asyncio.CancelledError:
            self.mesh.cancelled += 1
            raise
        return timeline_pb2.GetFeedResponse(posts=[post_pb2.Post(post_id=1)], degraded=["ranking", "graph"])

    async def BatchGetFeed(self, request: Any, rpc: Any) -> Any:
        return await each(self.GetFeed, request.items, timeline_pb2.BatchGetFeedResponse())


# Any: they leave out what no test here asks for.
FAKES: dict[str, tuple[Any, Any]] = {
    "graph": (Graph, graph_pb2_grpc.add_GraphServiceServicer_to_server),
    "post": (Posts, post_pb2_grpc.add_PostServiceServicer_to_server),
    "timeline": (Timeline, timeline_pb2_grpc.add_TimelineServiceServicer_to_server),
}


@dataclass
class Running:
    mesh: Mesh
    app: App
    http: httpx.AsyncClient
    address: tuple[str, int]
    grpc: dict[str, grpc.aio.Server]
    channels: dict[str, client.Channel]

    async def send(self, raw: bytes, *, then: bytes = b"") -> bytes:
        """Sends bytes as they are, and all the more `then`; everything that comes back until the gateway closes."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(raw)
        await writer.drain()
        if then:
            writer.write(then)
            await writer.drain()
        async with asyncio.timeout(BOUND_S):
            received = await reader.read()
        writer.close()
        return received

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not condition():
                await asyncio.sleep(0.005)


@pytest_asyncio.fixture
async def running() -> AsyncIterator[Running]:
    async with gateway() as it:
        yield it


def gateway(*, live: bool = False, max_connections: int = 1_000, **options: Any) -> Any:
    """A gateway for a block, with further options of the app."""
    return _Gateway(live, max_connections, {"timeout_s": 5.0, "max_requests": 64, **options})


class _Gateway:
    def __init__(self, live: bool, max_connections: int, options: dict[str, Any]) -> None:
        self.live, self.max_connections, self.options = live, max_connections, options

    async def __aenter__(self) -> Running:
        mesh = Mesh()
        self.servers: dict[str, grpc.aio.Server] = {}
        self.channels: dict[str, client.Channel] = {}
        for name, contract in CONTRACTS.items():
            grpc_server = grpc.aio.server(interceptors=[Chain(callers.Known(MESH_SECRET, more=[CALLER.name]))])
            if name in FAKES:
                servicer, add = FAKES[name]
                add(servicer(mesh), grpc_server)
            healthiness = health.aio.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(healthiness, grpc_server)
            await healthiness.set("", health_pb2.HealthCheckResponse.SERVING)
            port = grpc_server.add_insecure_port("127.0.0.1:0")
            await grpc_server.start()
            self.servers[name] = grpc_server
            self.channels[name] = client.connect(f"127.0.0.1:{port}", CALLER, *contract.services_by_name.values())
        routes = of_contracts()
        listener = server.listen("127.0.0.1", 0)
        app = App(
            [(route, route.call(self.channels[route.service])) for route in routes],
            pages(openapi.document(routes), Readiness(self.channels, self.channels.keys()), server.name(listener)),
            Hub(self.channels["timeline"]) if self.live else None,
            **self.options,
        )
        address = listener.getsockname()
        self.stopping = asyncio.Event()
        self.serving = asyncio.create_task(
            server.serve(app, listener, self.stopping, max_connections=self.max_connections)
        )
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{address[1]}", timeout=BOUND_S)
        self.running = Running(mesh, app, self.http, address, self.servers, self.channels)
        return self.running

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        self.stopping.set()
        async with asyncio.timeout(BOUND_S):
            await self.serving
        for channel in self.channels.values():
            await channel.close()
        for grpc_server in self.servers.values():
            await grpc_server.stop(None)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert (response.status_code, document["status"], document["code"]) == (status, status, code), document
    assert document["request_id"] == response.headers["x-request-id"]
    return document


async def test_create_post_answers_the_post(running: Running) -> None:
    response = await running.http.post(
        "/posts",
        content=b'{"user_id":123,"content":"hi","media_url":null}',
        headers={"content-type": "Application/JSON; charset=utf-8", "idempotency-key": "k1", "x-request-id": "abc.1"},
    )
    assert response.status_code == 201
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-request-id"] == "abc.1"
    assert int(response.headers["content-length"]) == len(response.content)
    assert response.json() == {
        "post_id": 2**53 - 1,
        "user_id": 123,
        "username": "",
        "content": "hi",
        "media_url": "",
        "created_at": "2026-01-15T09:30:00.125Z",
        "visibility": "public",
        "likes": 0,
        "comments": 0,
        "shares": 0,
        "liked": False,
        "shared_post": None,
        "shared_by": [],
    }
    assert running.mesh.asked[0].request_id == "k1"
    assert running.mesh.request_ids == ["abc.1"]
    assert 4 < running.mesh.deadlines_s[0] <= 5


async def test_feed_moves_degraded_to_a_header(running: Running) -> None:
    response = await running.http.get("/feed?user_id=1&limit=5&order=latest&cursor=")
    assert response.status_code == 200
    assert response.headers["feed-degraded"] == "ranking, graph"
    assert set(response.json()) == {"posts", "next_cursor"}
    assert response.json()["next_cursor"] is None
    asked = running.mesh.asked[0]
    assert (asked.user_id, asked.limit, asked.order) == (1, 5, timeline_pb2.FEED_ORDER_LATEST)


async def test_follow_and_errors_of_services(running: Running) -> None:
    followed = await running.http.post("/follow", json={"follower_id": 1, "following_id": 2})
    assert (followed.status_code, followed.json()) == (200, {"status": "following"})
    oneself = await running.http.post("/follow", json={"follower_id": 1, "following_id": 1})
    assert problem(oneself, 400, "self_follow")["errors"] == [{"field": "following_id", "detail": "is oneself"}]
    problem(await running.http.get("/posts/5"), 404, "post_not_found")


async def test_defects_say_nothing(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    for response in (
        await running.http.post("/users", json={"username": "ada", "email": "ada@example.com"}),
        await running.http.get("/users/1"),
    ):
        problem(response, 500, "internal")
        assert "secret" not in response.text
    assert "A_REASON_OF_TOMORROW" in caplog.text


async def test_a_defect_of_the_gateway_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_host: str) -> NoReturn:
        raise ZeroDivisionError("secret of the house")

    app: Any = App([], {"/broken": broken}, timeout_s=1, max_requests=1)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        response = await http.get("/broken")
    problem(response, 500, "internal")
    assert "ZeroDivisionError" in caplog.text
    assert "secret" not in response.text


async def test_every_fault_is_named(running: Running) -> None:
    response = await running.http.post(
        "/posts?x=1",
        content=b'{"user_id":"1","content":7,"post_id":1,"request_id":"a"}',
        headers={"content-type": "application/json", "idempotency-key": "a b"},
    )
    named = {error["field"] for error in problem(response, 400, "invalid_argument")["errors"]}
    assert named == {"user_id", "content", "post_id", "request_id", "x", "Idempotency-Key"}
    assert not running.mesh.asked


@pytest.mark.parametrize("value", ["abc", "-1", "0", "9007199254740992", "9" * 30, "1.0", "%31a", "1%2F2", "+1", "%ff"])
async def test_a_wrong_id_in_the_path(running: Running, value: str) -> None:
    response = await running.http.get(f"/posts/{value}")
    if value == "%ff":
        problem(response, 404, "route_not_found")
    else:
        assert problem(response, 400, "invalid_argument")["errors"][0]["field"] == "post_id"


async def test_paths_and_methods(running: Running) -> None:
    for path in ("/nothing", "/posts/", "/posts/1/", "/users//posts", "/POSTS"):
        problem(await running.http.get(path), 404, "route_not_found")
    double = b"GET //posts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert (await running.send(double)).startswith(b"HTTP/1.1 40")
    refused = await running.http.put("/posts/1")
    problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
    assert (await running.http.get("/like")).headers["allow"] == "OPTIONS, POST"
    options = await running.http.request("OPTIONS", "/feed")
    assert (options.status_code, options.headers["allow"], options.content) == (204, "GET, HEAD, OPTIONS", b"")
    assert "content-length" not in options.headers
    problem(await running.http.request("OPTIONS", "/nothing"), 404, "route_not_found")
    assert (await running.http.post("/p%6Fst%73", json={"user_id": 1, "content": "x"})).status_code == 201


async def test_head_is_get_without_its_body(running: Running) -> None:
    got, head = await running.http.get("/feed?user_id=1"), await running.http.head("/feed?user_id=1")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
    assert (await running.http.head("/nothing")).status_code == 404
    assert (await running.http.get("/healthz")).status_code == 200  # the connection is still good


@pytest.mark.parametrize("kind", [None, "text/plain", "application/json-patch+json", "multipart/form-data; boundary=x"])
async def test_other_media_types(running: Running, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    response = await running.http.post("/like", content=b'{"user_id":1,"post_id":1}', headers=headers)
    problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"1", b"null", b"{", b'{"a":NaN}', b'{"user_id":1}x', b"\xff\xfe", b"[" * 500_000, b'{"a":' * 9999],
)
async def test_malformed_json(running: Running, body: bytes) -> None:
    response = await running.http.post("/like", content=body, headers={"content-type": "application/json"})
    problem(response, 400, "malformed_json")


async def test_reads_and_deletes_ignore_a_body(running: Running) -> None:
    for path, method in (("/feed?user_id=1", "GET"), ("/posts/1?user_id=1", "DELETE")):
        response = await running.http.request(method, path, content=b"<xml/>", headers={"content-type": "text/xml"})
        assert response.status_code == 200, response.text
    assert (await running.http.delete("/posts/1?user_id=1")).json() == {}


async def test_a_body_of_a_mebibyte_is_read_and_one_more_byte_is_not(running: Running) -> None:
    room = MIB - len(b'{"user_id":1,"post_id":1,"x":""}')
    for extra, status in ((0, 400), (1, 413)):
        body = b'{"user_id":1,"post_id":1,"x":"%s"}' % (b"a" * (room + extra))
        response = await running.http.post("/like", content=body, headers={"content-type": "application/json"})
        assert response.status_code == status


async def pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 2**16):
        yield b"a" * 2**16


@pytest.mark.parametrize("path", ["/like", "/nothing", "/feed"])
async def test_a_refused_body_is_drained_so_that_the_answer_arrives(running: Running, path: str) -> None:
    for content in (b"a" * (16 * MIB), pieces(16 * MIB)):
        response = await running.http.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == {"/like": 413, "/nothing": 404, "/feed": 405}[path]
        assert response.headers["connection"] == "close"


async def test_a_body_that_never_ends_is_given_up(running: Running) -> None:
    head = (KEEP_ALIVE + "Transfer-Encoding: chunked\r\n\r\n").encode()
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection(*running.address)
    writer.write(head)
    chunk = b"10000\r\n" + b"a" * 2**16 + b"\r\n"
    sent = 0
    try:
        while sent < 2 * MAX_DRAINED_BYTES:
            writer.write(chunk)
            await writer.drain()
            sent += 2**16
    except ConnectionError:
        pass
    assert sent < 2 * MAX_DRAINED_BYTES
    assert time.monotonic() - begun < BOUND_S
    writer.close()
    del reader


async def test_a_body_that_does_not_come_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.exchange.DRAIN_S", 0.5)
    async with gateway(timeout_s=0.2) as running:
        received = await running.send((KEEP_ALIVE + "Content-Length: 2000000\r\n\r\n").encode() + b"{")
        assert received.startswith(b"HTTP/1.1 413 ")
        received = await running.send((KEEP_ALIVE + "Content-Length: 20\r\n\r\n").encode() + b"{")
        assert received.startswith(b"HTTP/1.1 408 ")
        # Also where nobody asked for one.
        head = "DELETE /posts/1?user_id=1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        received = await running.send((head % (MAX_DRAINED_BYTES + 1)).encode())
        assert received.startswith(b"HTTP/1.1 413 ")
        assert b'"body_too_large"' in received


async def test_a_client_that_waits_for_100_continue_is_answered_without_it(running: Running) -> None:
    head = (KEEP_ALIVE + "Expect: 100-continue\r\nContent-Length: 20000000\r\n\r\n").encode()
    reader, writer = await asyncio.open_connection(*running.address)
    writer.write(head)
    async with asyncio.timeout(2):
        first = await reader.readuntil(b"\r\n")
    assert first == b"HTTP/1.1 413 Request Entity Too Large\r\n"
    writer.close()
    body = b'{"user_id":1,"post_id":1}'
    reader, writer = await asyncio.open_connection(*running.address)
    writer.write((KEEP_ALIVE + f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n").encode())
    async with asyncio.timeout(2):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
    writer.close()


async def test_a_chunked_body_is_read(running: Running) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"user_id":1,'
        yield b'"post_id":7}'

    response = await running.http.post("/like", content=body(), headers={"content-type": "application/json"})
    assert response.json() == {"post_id": 7, "liked": True, "likes": 1}


async def test_headers_have_a_bound(running: Running) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"a" * 1000) for i in range(100))
    assert (await running.send(head)).startswith(b"HTTP/1.1 431 ")
    many = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100 + b"\r\n"
    received = await running.send(many)
    assert received.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"head_too_large"' in received
    trailer = (KEEP_ALIVE + "Transfer-Encoding: chunked\r\n\r\n0\r\n").encode()
    trailer += b"".join(b"x-%d: %s\r\n" % (i, b"a" * 1000) for i in range(100))
    assert b"HTTP/1.1 431 " in await running.send(trailer)


@pytest.mark.parametrize("started", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nx-a: "])
async def test_a_head_that_does_not_come_is_not_awaited_for_ever(
    running: Running, started: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.server.HEAD_S", 0.2)
    whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    assert await running.send(started) == b""
    if started:
        assert (await running.send(whole + started)).count(b"HTTP/1.1 200") == 1


UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"


@pytest.mark.parametrize("cut", [0, 1, 60, 200, 260])
async def test_a_wish_to_upgrade_is_declined_and_its_body_read(running: Running, cut: int) -> None:
    body = b'{"user_id":1,"post_id":7}'
    post = (KEEP_ALIVE + UPGRADE + f"Content-Length: {len(body)}\r\n\r\n").encode() + body
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n"
    both = post + post + last
    received = await running.send(both[:cut], then=both[cut:])
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert received.count(b'{"post_id":7,"liked":true,"likes":1}') == 2


async def test_many_wishes_to_upgrade_at_once(running: Running) -> None:
    one = b"GET /healthz HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: a\r\n\r\n"
    received = await running.send(one * 500 + b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 501


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET http://elsewhere/healthz", b"200"),
        ("GET /healthz?#x", b"200"),
        ("GET *", b"40"),
        ("OPTIONS *", b"40"),
        ("GET posts", b"40"),
        ("GET /%00", b"404"),
        ("GET /posts/%", b"400"),
        ("GET /posts/1%00", b"400"),
        ("GET /feed?user_id=1%00", b"400"),
        ("BREW /feed", b"400"),
        ("CONNECT localhost:1", b"40"),
        ("CONNECT /feed", b"40"),
    ],
)
async def test_odd_requests(running: Running, head: str, status: bytes) -> None:
    received = await running.send(f"{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert received.startswith(b"HTTP/1.1 " + status), received


async def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    first = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
    received = await running.send(
        first + first.replace(b"nothing", b"healthz").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    )
    assert received.index(b"HTTP/1.1 404") < received.index(b"HTTP/1.1 200")


async def test_request_ids(running: Running) -> None:
    for given in ("a b", "", "x" * 129, "a/b"):
        made = (await running.http.get("/healthz", headers={"x-request-id": given})).headers["x-request-id"]
        assert made != given
        assert len(made) == 32
    kept = "x" * 128
    assert (await running.http.get("/healthz", headers={"x-request-id": kept})).headers["x-request-id"] == kept


async def test_a_repeated_idempotency_key_is_refused(running: Running) -> None:
    response = await running.http.request(
        "DELETE", "/posts/1?user_id=1", headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    )
    assert problem(response, 400, "invalid_argument")["errors"][0]["field"] == "Idempotency-Key"


async def test_the_deadline_reaches_the_service_and_the_client_is_told() -> None:
    async with gateway(timeout_s=0.3) as running:

        async def slow(request: Any) -> Any:
            await asyncio.Event().wait()

        running.mesh.feed = slow
        begun = time.monotonic()
        response = await running.http.get("/feed?user_id=1")
        problem(response, 503, "unavailable")
        assert response.headers["retry-after"] == "1"
        assert 0.2 < time.monotonic() - begun < 2
        assert running.mesh.deadlines_s[0] < 0.3
        await running.until(lambda: running.mesh.cancelled == 1)


async def test_a_read_ends_with_its_client(running: Running) -> None:
    async def slow(request: Any) -> Any:
        await asyncio.Event().wait()

    running.mesh.feed = slow
    _, writer = await asyncio.open_connection(*running.address)
    writer.write(b"GET /feed?user_id=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    await running.until(lambda: len(running.mesh.asked) == 1)
    writer.close()
    await running.until(lambda: running.mesh.cancelled == 1)
    assert (await running.http.get("/healthz")).status_code == 200
    assert 'status="499"' in (await running.http.get("/metrics")).text


async def test_a_read_ends_with_its_client_though_another_request_was_sent_on(running: Running) -> None:
    async def slow(request: Any) -> Any:
        await asyncio.Event().wait()

    running.mesh.feed = slow
    _, writer = await asyncio.open_connection(*running.address)
    writer.write(2 * b"GET /feed?user_id=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    await running.until(lambda: len(running.mesh.asked) == 1)
    writer.close()
    await running.until(lambda: running.mesh.cancelled == 1)
    assert len(running.mesh.asked) == 1


async def test_an_idle_connection_is_closed_and_one_in_use_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.KEEP_ALIVE_S", 1)
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with gateway() as running, asyncio.timeout(BOUND_S):
        reader, writer = await asyncio.open_connection(*running.address)
        begun = time.monotonic()
        while time.monotonic() - begun < 1.5:
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await reader.readexactly(len(b'{"alive":true}'))
            await asyncio.sleep(0.1)
        idle = time.monotonic()
        assert await reader.read() == b""
        assert 0.7 < time.monotonic() - idle < 5
        writer.close()


async def test_a_write_runs_to_its_end(running: Running) -> None:
    going = asyncio.Event()

    async def slow(request: Any) -> post_pb2.LikePostResponse:
        await going.wait()
        return post_pb2.LikePostResponse()

    running.mesh.likes = slow
    body = b'{"user_id":1,"post_id":1}'
    _, writer = await asyncio.open_connection(*running.address)
    writer.write((KEEP_ALIVE + f"Content-Length: {len(body)}\r\n\r\n").encode() + body)
    await running.until(lambda: len(running.mesh.asked) == 1)
    writer.close()
    await running.http.get("/healthz")
    going.set()
    await running.until(lambda: running.mesh.finished == 1)


async def test_room_is_bounded_and_operations_are_not() -> None:
    async with gateway(max_requests=2) as running:
        going = asyncio.Event()

        async def slow(request: Any) -> timeline_pb2.GetFeedResponse:
            await going.wait()
            return timeline_pb2.GetFeedResponse()

        running.mesh.feed = slow
        under_way = [asyncio.create_task(running.http.get("/feed?user_id=1")) for _ in range(2)]
        await running.until(lambda: len(running.mesh.asked) == 2)
        refused = await running.http.get("/feed?user_id=1")
        problem(refused, 503, "unavailable")
        assert refused.headers["retry-after"] == "1"
        assert (await running.http.get("/healthz")).status_code == 200
        going.set()
        assert [(await task).status_code for task in under_way] == [200, 200]
        assert (await running.http.get("/feed?user_id=1")).status_code == 200


async def test_whose_time_is_up_in_the_middle_of_a_batch_is_told_so(running: Running) -> None:
    going = asyncio.Event()

    async def slow(request: Any) -> timeline_pb2.GetFeedResponse:
        await going.wait()
        return timeline_pb2.GetFeedResponse()

    running.mesh.feed = slow
    route = next(route for route in of_contracts() if route.template == "/feed")
    call: Any = route.call(running.channels["timeline"])

    async def within(seconds: float) -> Any:
        context.deadline.set(time.monotonic() + seconds)
        return await call(timeline_pb2.GetFeedRequest(user_id=1))

    hasty, patient = asyncio.create_task(within(0.1)), asyncio.create_task(within(BOUND_S))
    with pytest.raises(errors.Unavailable):
        await hasty
    going.set()
    assert list((await patient).posts) == []


async def test_a_part_that_is_gone(running: Running) -> None:
    assert (await running.http.get("/readyz")).json() == {"ready": True, "parts": dict.fromkeys(CONTRACTS, "serving")}
    await running.grpc["graph"].stop(None)
    response = await running.http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert response.json()["parts"] == dict.fromkeys(CONTRACTS, "serving") | {"graph": "unavailable"}
    problem(await running.http.post("/follow", json={"follower_id": 1, "following_id": 2}), 503, "unavailable")


async def test_pages(running: Running) -> None:
    front = await running.http.get("/", headers={"host": "feed.example:81"})
    assert "curl http://feed.example:81/users" in front.text
    assert "<script" not in (await running.http.get("/", headers={"host": "<script>"})).text
    assert "http://127.0.0.1:" in (await running.http.get("/", headers={"host": "<script>"})).text
    docs = await running.http.get("/docs")
    assert "https:" not in docs.text
    for asset in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png", "start.js"):
        response = await running.http.get(f"/docs/{asset}")
        assert response.status_code == 200
        assert response.content
    assert json.loads((await running.http.get("/openapi.json")).content)["openapi"].startswith("3.1")
    problem(await running.http.get("/docs/swagger-ui.js.map"), 404, "route_not_found")
    problem(await running.http.post("/docs", content=b"x"), 405, "method_not_allowed")


async def test_metrics_are_labelled_with_the_template(running: Running) -> None:
    await running.http.get("/posts/987654321")
    await running.http.get("/nothing/at/all")
    await running.http.request("PROPFIND", "/feed")
    text = (await running.http.get("/metrics")).text
    assert 'http_server_requests_total{method="GET",route="/posts/{post_id}",status="404"}' in text
    assert 'route="none"' in text
    assert 'method="OTHER",route="/feed",status="405"' in text
    assert "http_server_request_duration_seconds_bucket" in text
    assert "987654321" not in text


async def test_a_stop_lets_requests_under_way_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    holder = gateway()
    running = await holder.__aenter__()
    going = asyncio.Event()

    async def slow(request: Any) -> timeline_pb2.GetFeedResponse:
        await going.wait()
        return timeline_pb2.GetFeedResponse()

    running.mesh.feed = slow
    under_way = asyncio.create_task(running.http.get("/feed?user_id=1"))
    await running.until(lambda: len(running.mesh.asked) == 1)
    holder.stopping.set()

    async def refused() -> bool:
        try:
            _, writer = await asyncio.open_connection(*running.address)
            writer.close()
        except ConnectionError:
            return True
        return False

    async with asyncio.timeout(BOUND_S):
        while not await refused():
            await asyncio.sleep(0.01)
    going.set()
    assert (await under_way).status_code == 200
    await holder.__aexit__()


# Answers that are streams.

Records = AsyncIterator[post_pb2.ExportUserResponse]
EXPORT = b"GET /users/1/export HTTP/1.1\r\nHost: x\r\n\r\n"
LINE = b'{"like":{"post_id":%d,"created_at":null}}\n'


def chunk(number: int) -> bytes:
    """A record of a canned export as it goes over the wire."""
    line = LINE % number
    return b"%x\r\n%s\r\n" % (len(line), line)


def like(number: int) -> post_pb2.ExportUserResponse:
    return post_pb2.ExportUserResponse(like=post_pb2.ExportedLike(post_id=number))


async def endless() -> Records:
    while True:
        yield like(2**53 - 1)


async def endless_and_large() -> Records:
    while True:
        yield post_pb2.ExportUserResponse(post=post_pb2.ExportedPost(content="a" * 2**16))


async def one_and_no_more() -> Records:
    yield like(1)
    await asyncio.Event().wait()


async def test_a_stream_is_a_line_of_json_a_record(running: Running) -> None:
    for _ in range(2):  # the second on the same connection
        response = await running.http.get("/users/5/export", headers={"x-request-id": "abc.1"})
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.headers["transfer-encoding"] == "chunked"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-request-id"] == "abc.1"
        assert "content-length" not in response.headers
        account, post, end = [json.loads(line) for line in response.content.splitlines()]
        assert list(account) == ["account"]
        assert account["account"]["email"] == "ada@example.com"
        assert (list(post), post["post"]["content"]) == (["post"], "line\nline")
        assert end == {"end": {"records": 2}}
    assert running.mesh.request_ids == ["abc.1", "abc.1"]
    assert running.mesh.deadlines_s[0] > 500
    text = (await running.http.get("/metrics")).text
    assert 'http_server_requests_total{method="GET",route="/users/{user_id}/export",status="200"}' in text
    assert 'duration_seconds_count{method="GET",route="/users/{user_id}/export"}' in text


async def test_head_of_a_stream_is_its_head(running: Running) -> None:
    running.mesh.export = endless
    head = await running.http.head("/users/5/export")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == "application/x-ndjson"
    await running.until(lambda: running.mesh.cancelled == 1)
    assert (await running.http.get("/healthz")).status_code == 200
    problem_free = await running.http.head("/users/x/export")
    assert problem_free.status_code == 400


async def test_records_are_sent_as_they_come(running: Running) -> None:
    going = asyncio.Event()

    async def slow() -> Records:
        yield like(1)
        await going.wait()
        yield like(2)

    running.mesh.export = slow
    reader, writer = await asyncio.open_connection(*running.address)
    writer.write(EXPORT)
    async with asyncio.timeout(BOUND_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await reader.readexactly(len(chunk(1))) == chunk(1)
        going.set()
        last = chunk(2) + b"0\r\n\r\n"
        assert await reader.readexactly(len(last)) == last
    writer.close()


async def test_a_stream_that_fails_before_its_first_record_is_a_problem() -> None:
    async def unknown() -> Records:
        raise errors.NotFound("USER_NOT_FOUND", "there is no user 1")
        yield like(1)

    async def broken() -> Records:
        raise ZeroDivisionError("secret of the house")
        yield like(1)

    async def silent() -> Records:
        await asyncio.Event().wait()
        yield like(1)

    async with gateway(timeout_s=0.3) as running:
        for export, status, code in (
            (unknown, 404, "user_not_found"),
            (broken, 500, "internal"),
            (silent, 503, "unavailable"),
        ):
            running.mesh.export = export
            problem(await running.http.get("/users/1/export"), status, code)
        await running.until(lambda: running.mesh.cancelled == 1)
        asked = len(running.mesh.asked)
        problem(await running.http.get("/users/0/export"), 400, "invalid_argument")
        problem(await running.http.get("/users/1/export?limit=1"), 400, "invalid_argument")
        assert len(running.mesh.asked) == asked


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Unavailable("not now"), 503),
        (errors.NotFound("USER_NOT_FOUND", "gone meanwhile"), 404),
        (ZeroDivisionError("secret of the house"), 500),
    ],
    ids=str,
)
async def test_a_stream_that_fails_in_the_middle_breaks_off(
    running: Running, error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gateway")

    async def fails() -> Records:
        yield like(1)
        raise error

    running.mesh.export = fails
    received = await running.send(EXPORT)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(chunk(1))
    assert b"secret" not in received
    with pytest.raises(httpx.RemoteProtocolError):
        await running.http.get("/users/1/export")
    text = (await running.http.get("/metrics")).text
    assert f'route="/users/{{user_id}}/export",status="{status}"' in text
    assert "broke off" in caplog.text
    assert "ASGI" not in caplog.text


async def test_a_stream_ends_with_its_client_whether_it_waits_or_sends(running: Running) -> None:
    for number, export in enumerate((one_and_no_more, endless), start=1):
        running.mesh.export = export
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(EXPORT)
        async with asyncio.timeout(BOUND_S):
            await reader.readuntil(chunk(1) if export is one_and_no_more else chunk(2**53 - 1))
        writer.close()
        await running.until(lambda number=number: running.mesh.cancelled == number)  # type: ignore[misc]
    assert 'route="none",status="499"' in (await running.http.get("/metrics")).text


async def test_a_client_that_takes_nothing_is_cut_off(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.TAKE_S", 0.3)
    running.mesh.export = endless_and_large
    loop = asyncio.get_running_loop()
    with socket.create_connection(running.address) as client_side:
        client_side.setblocking(False)
        await loop.sock_sendall(client_side, EXPORT)
        await running.until(lambda: running.mesh.cancelled == 1)
        assert running.mesh.finished < 1_000  # no more than the buffers in between hold
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while some := await loop.sock_recv(client_side, 2**16):
                received = some
        assert not received.endswith(b"0\r\n\r\n")


async def test_a_client_that_takes_its_time_gets_all_of_it(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.TAKE_S", 0.5)

    async def many() -> Records:
        for _ in range(20_000):
            yield like(2**53 - 1)

    running.mesh.export = many
    reader, writer = await asyncio.open_connection(*running.address, limit=2**12)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
    writer.write(EXPORT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    received = b""
    begun = time.monotonic()
    async with asyncio.timeout(60):
        while some := await reader.read(2**14):
            received += some
            await asyncio.sleep(0.01)
    assert time.monotonic() - begun > 0.5
    assert received.endswith(b"0\r\n\r\n")
    assert received.count(b'"like"') == 20_000


async def test_a_stream_is_under_way_to_its_end_and_not_bound_by_the_time_of_a_request() -> None:
    async with gateway(timeout_s=1.0, max_requests=1) as running:
        going = asyncio.Event()

        async def slow() -> Records:
            for number in range(5):
                yield like(number)
                await asyncio.sleep(0.3)
            await going.wait()

        running.mesh.export = slow
        begun = time.monotonic()
        under_way = asyncio.create_task(running.http.get("/users/1/export"))
        await running.until(lambda: running.mesh.finished == 5)
        problem(await running.http.get("/feed?user_id=1"), 503, "unavailable")
        going.set()
        assert len((await under_way).content.splitlines()) == 5
        assert time.monotonic() - begun > 1.0
        assert (await running.http.get("/feed?user_id=1")).status_code == 200


async def test_a_stream_has_a_bound_of_its_own(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.app.MAX_STREAM_S", 0.4)
    running.mesh.export = endless
    begun = time.monotonic()
    with pytest.raises(httpx.RemoteProtocolError):
        await running.http.get("/users/1/export")
    assert 0.3 < time.monotonic() - begun < 5
    await running.until(lambda: running.mesh.cancelled == 1)
    assert (await running.http.get("/healthz")).status_code == 200
