"""A whole mesh that strangers are let near: people sign up and in, act by their tokens alone, and are counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.e2e import mesh as meshes
from tests.e2e.mesh import Json, Mesh

PASSWORD = "correct horse battery staple"
BOUND_S = 30.0
QUOTAS = {"FEEDMESH_LIMIT_SIGN_IN": "30/60", "FEEDMESH_LIMIT_LIKE": "5/3600"}


@pytest_asyncio.fixture(scope="module")
async def strict(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh whose people sign in with it."""
    with meshes.running(tmp_path_factory.mktemp("strict"), FEEDMESH_AUTH="builtin", **QUOTAS) as own:
        yield own
        await own.http.aclose()


async def sign_up(mesh: Mesh, name: str) -> tuple[Json, dict[str, str]]:
    """A new person's session, and their headers."""
    await mesh.post("/users", {"username": name, "email": f"{name}@example.org", "password": PASSWORD}, 201)
    session = await mesh.post("/sessions", {"username": name, "password": PASSWORD}, 201)
    return session, {"authorization": f"Bearer {session['access_token']}"}


async def shown(http: httpx.AsyncClient, headers: dict[str, str], post_id: int) -> None:
    """Waits until a post is in somebody's feed."""
    async with asyncio.timeout(BOUND_S):
        while True:
            feed = (await http.get("/feed", headers=headers)).json()
            if post_id in {post["post_id"] for post in feed["posts"]}:
                return
            await asyncio.sleep(0.1)


async def to_the_end(socket: ClientConnection) -> None:
    """Reads on until the connection is closed; no post may come."""
    while True:
        assert json.loads(await socket.recv())["type"] in ("here", "notification")


async def test_two_people_meet_and_nobody_else_acts_for_them(strict: Mesh) -> None:
    ada, as_ada = await sign_up(strict, "ada")
    grace, as_grace = await sign_up(strict, "grace")
    await strict.post("/follow", {"following_id": grace["user_id"]}, headers=as_ada)
    post = await strict.post("/posts", {"content": "hello"}, 201, headers=as_grace)
    await shown(strict.http, as_ada, post["post_id"])

    forged = {"user_id": grace["user_id"], "content": "never said"}
    for headers, status in ((as_ada, 403), ({}, 401), ({"authorization": "Bearer x"}, 401)):
        assert (await strict.http.post("/posts", json=forged, headers=headers)).status_code == status
    assert (await strict.http.get("/feed", params={"user_id": ada["user_id"]})).status_code == 401
    export = await strict.http.get(f"/users/{ada['user_id']}/export", headers=as_grace)
    assert export.status_code == 403
    assert (await strict.http.get(f"/posts/{post['post_id']}")).status_code == 200
    assert (await strict.http.get("/metrics")).status_code == 404


async def test_a_live_connection_lasts_as_long_as_its_session(strict: Mesh) -> None:
    author, as_author = await sign_up(strict, "author")
    reader, as_reader = await sign_up(strict, "reader")
    await strict.post("/follow", {"following_id": author["user_id"]}, headers=as_reader)
    address = strict.url.replace("http", "ws", 1) + "/live"
    with pytest.raises(InvalidStatus) as refused:
        await connect(address)
    assert refused.value.response.status_code == 401
    # As browsers do, which can set no headers.
    protocols = [Subprotocol("feedmesh"), Subprotocol(f"bearer.{reader['access_token']}")]
    async with asyncio.timeout(BOUND_S), connect(address, subprotocols=protocols) as socket:
        assert socket.subprotocol == "feedmesh"
        assert json.loads(await socket.recv())["type"] == "here"
        post = await strict.post("/posts", {"content": "live"}, 201, headers=as_author)
        told = json.loads(await socket.recv())
        assert (told["type"], told["post"]["post_id"]) == ("post_added", post["post_id"])

        await strict.http.delete(f"/sessions/{reader['session_id']}", headers=as_reader)
        while (await strict.http.get("/feed", headers=as_reader)).status_code == 200:
            await asyncio.sleep(0.1)
        await strict.post("/posts", {"content": "not for who has signed out"}, 201, headers=as_author)
        with pytest.raises(ConnectionClosed) as closed:
            await to_the_end(socket)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 3000


async def test_who_asks_too_much_is_refused_and_others_are_not(strict: Mesh) -> None:
    _, loud = await sign_up(strict, "loud")
    _, quiet = await sign_up(strict, "quiet")
    post = await strict.post("/posts", {"content": "likable"}, 201, headers=loud)
    for left in range(4, -1, -1):
        response = await strict.http.post("/like", json={"post_id": post["post_id"]}, headers=loud)
        assert response.status_code == 200
        assert response.headers["ratelimit-policy"] == '"like";q=5;w=3600'
        assert response.headers["ratelimit"].startswith(f'"like";r={left};')
    response = await strict.http.post("/like", json={"post_id": post["post_id"]}, headers=loud)
    assert (response.status_code, response.json()["code"]) == (429, "rate_limited")
    assert 0 < int(response.headers["retry-after"]) <= 720
    assert (await strict.http.post("/like", json={"post_id": post["post_id"]}, headers=quiet)).status_code == 200


async def test_a_password_cannot_be_guessed_by_trying(strict: Mesh) -> None:
    await strict.post("/users", {"username": "tried", "email": "tried@example.org", "password": PASSWORD}, 201)
    codes = []
    for number in range(14):
        response = await strict.http.post("/sessions", json={"username": "tried", "password": f"guess {number}"})
        codes.append(response.json()["code"])
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) > 0
    assert codes[:10] == ["wrong_credentials"] * 10
    assert set(codes[11:]) == {"rate_limited"}
