"""HTTP's manners at the gateway: validators and caches, compression, origins and hosts, connections, every answer's
headers."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
from typing import Any

import orjson
import pytest

from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2
from gateway.origins import Origins, is_loopback
from gateway.representation import MAX_INLINE_BYTES, MIN_GZIP_BYTES, SHARED_S, STALE_S, takes_gzip
from tests.integration.test_gateway import BOUND_S, Running, gateway, problem, running

__all__ = ["running"]

APP = "https://app.example"
PREFLIGHT = {"origin": APP, "access-control-request-method": "POST"}


async def test_a_read_has_a_validator_and_who_has_it_already_gets_no_body(running: Running) -> None:
    running.mesh.post = post_pb2.Post(post_id=7, content="as it is")
    first = await running.http.get("/posts/7")
    tag = first.headers["etag"]
    assert re.fullmatch(r'W/"[A-Za-z0-9_-]{16}"', tag)
    for known in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*", f'W/"a,b",{tag}'):
        again = await running.http.get("/posts/7", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert {name: again.headers[name] for name in ("etag", "cache-control", "vary")} == {
            name: first.headers[name] for name in ("etag", "cache-control", "vary")
        }
        assert "content-length" not in again.headers
        assert "content-type" not in again.headers
    for other in ('"x"', tag.strip('W/"'), "", 'W/"', tag[:-2] + '"'):
        assert (await running.http.get("/posts/7", headers={"if-none-match": other})).status_code == 200
    head = await running.http.head("/posts/7", headers={"if-none-match": tag})
    assert head.status_code == 304
    assert (await running.http.head("/posts/7")).headers["etag"] == tag
    running.mesh.post.likes = 1
    changed = await running.http.get("/posts/7", headers={"if-none-match": tag})
    assert (changed.status_code, changed.json()["likes"]) == (200, 1)
    assert changed.headers["etag"] != tag


async def test_what_everybody_sees_may_be_shared_for_seconds_and_nothing_else(running: Running) -> None:
    running.mesh.post = post_pb2.Post(post_id=7)
    response = await running.http.get("/posts/7")
    kept = f"public, max-age=0, s-maxage={SHARED_S}, stale-while-revalidate={STALE_S}"
    assert response.headers["cache-control"] == kept
    assert response.headers["vary"] == "Authorization, Accept-Encoding"
    for path, headers in (("/posts/7?viewer_id=1", {}), ("/posts/7", {"authorization": "Bearer x"})):
        response = await running.http.get(path, headers=headers)
        assert response.headers["cache-control"] == "private, no-cache"
        assert response.headers["etag"]
    running.mesh.post = None
    for path in ("/posts/7", "/feed?user_id=1", "/posts/x", "/nowhere"):
        response = await running.http.get(path)
        assert response.headers["cache-control"] == "no-store"
        assert "etag" not in response.headers


async def test_long_answers_of_reads_are_compressed_for_who_wants_it(running: Running) -> None:
    async def feed(_: Any) -> timeline_pb2.GetFeedResponse:
        return timeline_pb2.GetFeedResponse(posts=[post_pb2.Post(post_id=1, content="text " * 100)] * 5)

    running.mesh.feed = feed
    plain = await running.http.get("/feed?user_id=1", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert len(plain.content) == int(plain.headers["content-length"]) > MIN_GZIP_BYTES
    packed = await running.http.get("/feed?user_id=1", headers={"accept-encoding": "br, gzip;q=0.5"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept-Encoding"
    assert int(packed.headers["content-length"]) < len(plain.content) / 5
    assert packed.content == plain.content
    head = await running.http.head("/feed?user_id=1", headers={"accept-encoding": "gzip"})
    assert head.headers["content-length"] == packed.headers["content-length"]

    posted = {"user_id": 1, "content": "text " * 500}
    for response in (
        await running.http.post("/posts", json=posted),
        await running.http.get("/healthz"),
        await running.http.get("/docs/favicon-32x32.png"),
        await running.http.get("/feed?user_id=1", headers={"accept-encoding": "gzip;q=0"}),
    ):
        assert "content-encoding" not in response.headers


async def test_a_long_answer_is_compressed_aside_and_whole(running: Running) -> None:
    raw = await running.send(
        b"GET /docs/swagger-ui.css HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    )
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"content-encoding: gzip" in head
    plain = (await running.http.get("/docs/swagger-ui.css")).content
    assert len(plain) > MAX_INLINE_BYTES
    assert gzip.decompress(body) == plain


@pytest.mark.parametrize(
    ("accepted", "wanted"),
    [
        (b"gzip", True),
        (b"GZIP", True),
        (b"x-gzip", True),
        (b"deflate, gzip;q=1.0, *;q=0.5", True),
        (b"*", True),
        (b"gzip ; q=0.001", True),
        (b"", False),
        (b"br", False),
        (b"gzip;q=0", False),
        (b"gzip;q=0.000", False),
        (b"*;q=0", False),
        (b"gzip;q=0, *", False),
        (b"gzip;q=2", False),
        (b"gzip;q=-1", False),
        (b"gzip;q=nan", False),
        (b"gzip;level=1", False),
        (b"identity, gzip;q=0.5", False),
        (b"identity;q=0.5, gzip", True),
        (b"gzipped", False),
    ],
)
def test_who_takes_gzip(accepted: bytes, wanted: bool) -> None:
    assert takes_gzip(accepted) is wanted


async def test_pages_that_are_allowed_may_use_the_api() -> None:
    async with gateway(origins=Origins([APP])) as it:
        preflight = await it.http.options("/like", headers=PREFLIGHT)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == APP
        assert preflight.headers["access-control-allow-methods"] == "OPTIONS, POST"
        assert "Idempotency-Key" in preflight.headers["access-control-allow-headers"]
        assert preflight.headers["access-control-max-age"] == "7200"
        body = {"user_id": 1, "post_id": 7}
        for response in (
            await it.http.post("/like", json=body, headers={"origin": APP}),
            await it.http.post("/like", json={}, headers={"origin": APP}),
            await it.http.get("/users/5/export", headers={"origin": APP}),
            await it.http.get("/nowhere", headers={"origin": APP}),
        ):
            assert response.headers["access-control-allow-origin"] == APP
            assert "ETag" in response.headers["access-control-expose-headers"]
            assert response.headers["vary"] == "Origin"
            assert "access-control-allow-credentials" not in response.headers
        it.mesh.post = post_pb2.Post(post_id=7)
        shared = await it.http.get("/posts/7")
        assert set(re.split(", ?", shared.headers["vary"])) == {"Authorization", "Accept-Encoding", "Origin"}
        assert "access-control-allow-origin" not in shared.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", APP + ".evil.example", "http://app.example", APP + ":8443", ""]
)
async def test_pages_of_other_origins_change_nothing(origin: str) -> None:
    async with gateway(origins=Origins([APP])) as it:
        headers = {"origin": origin}
        problem(
            await it.http.post("/like", json={"user_id": 1, "post_id": 7}, headers=headers), 403, "origin_not_allowed"
        )
        problem(await it.http.delete("/posts/1?user_id=1", headers=headers), 403, "origin_not_allowed")
        assert it.mesh.asked == []
        for response in (
            await it.http.options("/like", headers=PREFLIGHT | headers),
            await it.http.get("/feed?user_id=1", headers=headers),
        ):
            assert not any(name.startswith("access-control") for name in response.headers)


async def test_our_own_pages_may_change_things(running: Running) -> None:
    own = {"origin": f"http://127.0.0.1:{running.address[1]}"}
    assert (await running.http.post("/like", json={"user_id": 1, "post_id": 7}, headers=own)).status_code == 200
    proxied = {"origin": "https://feed.example", "host": "feed.example"}
    assert (await running.http.post("/like", json={"user_id": 1, "post_id": 7}, headers=proxied)).status_code == 200


async def test_where_acting_ids_are_believed_only_loopback_names_are_answered() -> None:
    async with gateway(origins=Origins(local=True)) as it:
        response = await it.http.get("/feed?user_id=1", headers={"host": "rebound.example:8080"})
        problem(response, 421, "host_not_allowed")
        assert it.mesh.asked == []
        assert (await it.http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:8080"])
def test_loopback_names(host: str) -> None:
    assert is_loopback(host.encode())


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "localhost.example.com",
        "10.0.0.1:80",
        "[::2]",
        "127.0.0.1.nip.io",
        "127.0.0.1:x",
        "0.0.0.0",
        ":80",
    ],
)
def test_other_names(host: str) -> None:
    assert not is_loopback(host.encode())


@pytest.mark.parametrize("path", ["/feed?user_id=1", "/nowhere", "/users/5/export", "/metrics", "/openapi.json", "/"])
async def test_every_answer_is_secured(running: Running, path: str) -> None:
    headers = (await running.http.get(path)).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-request-id"]
    assert headers["date"].endswith(" GMT")


async def test_only_the_documentation_has_inline_styles(running: Running) -> None:
    front = await running.http.get("/")
    assert "style-src 'sha256-" in front.headers["content-security-policy"]
    assert "style=" not in front.text
    policy = (await running.http.get("/docs")).headers["content-security-policy"]
    assert "script-src 'self'; style-src 'self' 'unsafe-inline'" in policy


async def test_what_is_no_http_is_a_problem_too(running: Running) -> None:
    received = await running.send(b"\x16\x03\x01\x02\x00\x01")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-content-type-options: nosniff" in head
    assert orjson.loads(body)["code"] == "malformed_request"


async def test_connections_have_a_bound() -> None:
    async with gateway(max_connections=20) as it:
        held = [await asyncio.open_connection(*it.address) for _ in range(20)]
        for _, writer in held:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        for reader, _ in held:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        received = await it.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in received
        waiting = await asyncio.open_connection(*it.address)
        with contextlib.suppress(ConnectionError):  # one more than is answered at all
            assert await it.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        waiting[1].close()
        held[0][1].close()
        received = b""
        async with asyncio.timeout(BOUND_S):  # it may take a moment until the gateway knows that one has left
            while not received.startswith(b"HTTP/1.1 200 "):
                received = await it.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for _, writer in [*held, waiting]:
            writer.close()
