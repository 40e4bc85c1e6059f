"""The demo against stand-ins for a gateway: retries, checks of answers, and what it says when there is no mesh."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web
from rich.console import Console
from yarl import URL

from bench import client as demo_client
from bench import demo, drive, mesh
from bench.client import DemoError, Failed, Reply, connect

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def gateway(handler: Handler) -> AsyncIterator[int]:
    """A server that answers everything with one function, on the port that this gives."""
    runner = web.ServerRunner(web.Server(handler))  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_client, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(demo_client, "LONGEST_PAUSE_S", 0.001)
    monkeypatch.setattr(demo_client, "RECONNECT_S", 0.001)


async def written(handler: Handler) -> tuple[dict[str, Any], int]:
    async with gateway(handler) as port, connect(f"http://127.0.0.1:{port}", 2) as client:
        return await client.write(client.url("/posts"), {"content": "hi"}, "key-1"), client.retries


async def test_a_write_is_tried_again_with_the_same_key() -> None:
    seen: list[tuple[str, bytes]] = []

    async def flaky(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers["Idempotency-Key"], await request.read()))
        if len(seen) == 1:
            return web.json_response({"code": "unavailable"}, status=503)
        if len(seen) == 2:
            assert request.transport is not None
            request.transport.abort()  # the answer is lost
        if len(seen) == 3:
            return web.json_response({"code": "request_in_progress"}, status=409)
        return web.json_response({"post_id": 7}, status=201)

    assert await written(flaky) == ({"post_id": 7}, 3)
    assert set(seen) == {("key-1", b'{"content":"hi"}')}


@pytest.mark.parametrize(("status", "attempts"), [(400, 1), (409, 1), (500, 1), (503, demo_client.ATTEMPTS)])
async def test_a_write_that_fails_in_the_end_says_why(status: int, attempts: int) -> None:
    seen = 0

    async def refuses(_: web.Request) -> web.StreamResponse:
        nonlocal seen
        seen += 1
        return web.json_response({"code": "some_reason", "detail": "because"}, status=status)

    with pytest.raises(Failed, match=f"^{status} some_reason because$"):
        await written(refuses)
    assert seen == attempts


async def test_a_mesh_that_is_gone_ends_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_client, "GONE_S", 0.0)
    async with connect(f"http://127.0.0.1:{free_port()}", 2) as client:
        with pytest.raises(DemoError, match="has not answered for"):
            await client.get(client.url("/feed"))


def page(*authors: int, **changed: Any) -> Reply:
    posts = [{"post_id": at, "user_id": author, "username": "a.b", "likes": 0} for at, author in enumerate(authors)]
    return Reply(200, orjson.dumps({"posts": posts, "next_cursor": None} | changed))


def operation(kind: str) -> drive.Operation:
    return drive.Operation(kind, URL("http://x/"), 5, content="hi")


@pytest.mark.parametrize(
    ("kind", "reply", "fault"),
    [
        (drive.HOME, page(1, 2, 3), None),
        (drive.HOME, page(), None),
        (drive.HOME, page(*[1] * 20), None),
        (drive.HOME, page(*[1] * 21), "21 posts on a page of 20"),
        (drive.HOME, page(1, next_cursor=3), "no page of posts"),
        (drive.HOME, page(posts=None), "no page of posts"),
        (drive.HOME, page(posts=[{"post_id": 1}]), "a post without its fields"),
        (drive.HOME, page(posts=[3]), "a post without its fields"),
        (drive.HOME, Reply(200, b"<html>"), "200 and no JSON object"),
        (drive.HOME, Reply(503, b'{"code":"unavailable"}'), "503 unavailable"),
        (drive.HOME, Reply(0, b"no answer: TimeoutError"), "no answer: TimeoutError"),
        (drive.AUTHOR, page(5, 5), None),
        (drive.AUTHOR, page(5, 6), "a post of somebody else on an author's page"),
        (drive.POST, Reply(201, b'{"post_id":1,"user_id":5,"content":"hi"}'), None),
        (drive.POST, Reply(201, b'{"post_id":1,"user_id":5,"content":"ho"}'), "another post than was written"),
        (drive.POST, Reply(201, b'{"user_id":5}'), "a new post without its id"),
        (drive.POST, Reply(200, b"{}"), "200"),
    ],
)
def test_answers_are_checked(kind: str, reply: Reply, fault: str | None) -> None:
    assert drive.CHECKS[kind](reply, operation(kind)) == fault


def test_a_post_twice_on_a_page_is_a_fault() -> None:
    twice = {"post_id": 1, "user_id": 5, "username": "a.b", "likes": 0}
    assert drive.check_page(page(posts=[twice, twice]))[1] == "a post twice on a page"


async def test_a_mesh_that_runs_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ready(_: web.Request) -> web.StreamResponse:
        return web.json_response({"ready": True, "parts": {}})

    async with gateway(ready) as port:
        monkeypatch.setenv("FEEDMESH_HTTP_PORT", str(port))
        hold: list[mesh.Mesh] = []
        async with mesh.find_or_start(Console(quiet=True), hold) as found:
            assert found == mesh.Mesh(f"http://127.0.0.1:{port}")
        assert hold == []


@pytest.mark.parametrize("answer", ["<html>", "[]", '{"status":"ok"}'])
async def test_a_port_taken_by_something_else(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    async def foreign(_: web.Request) -> web.StreamResponse:
        return web.Response(text=answer)

    async with gateway(foreign) as port:
        monkeypatch.setenv("FEEDMESH_HTTP_PORT", str(port))
        with pytest.raises(DemoError, match="taken by something that is no feedmesh"):
            async with mesh.find_or_start(Console(quiet=True), []):
                raise AssertionError("unreachable")


def test_a_wrong_port_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FEEDMESH_HTTP_PORT", "eighty")
    assert demo.main([]) == 1
    assert capsys.readouterr().err == "demo: FEEDMESH_HTTP_PORT is 'eighty': give a port from 1 to 65535\n"


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--seconds", "nan"], ["--connections", "x"]])
def test_wrong_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main(arguments)
    assert ended.value.code == 2
    assert "invalid" in capsys.readouterr().err
