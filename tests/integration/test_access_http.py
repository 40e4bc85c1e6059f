"""A gateway that takes tokens: who may ask, as whom, and how one comes to have an account."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import ECKey

from gateway import auth
from gateway.access import Access
from gateway.app import App
from gateway.config import Settings
from gateway.issuers import MAX_BYTES, OidcIssuer
from gateway.routes import Route, of_contracts
from launch.valkey import Running as Valkey
from runtime import client
from services.graph.session import SERVICE
from tests.fakes.databases import Databases
from tests.fakes.serving import CALLER, MESH_SECRET
from tests.integration.whole_mesh import WholeMesh, whole_mesh

PASSWORD = "correct horse battery staple"


@pytest_asyncio.fixture(scope="module")
async def mesh(databases: Databases, valkey: Valkey) -> AsyncIterator[WholeMesh]:
    async with whole_mesh(databases, valkey) as running:
        yield running


def problem(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json().get("code", "")


WITH_ACTOR = [route for route in of_contracts() if route.transcoder.actor]
FOR_SOMEBODY = [route for route in WITH_ACTOR if route.transcoder.needs_actor]
FOR_STRANGERS = {
    ("POST", "/users"),
    ("POST", "/sessions"),
    ("POST", "/sessions/renew"),
}
"""What has nobody who acts: one comes to be somebody by it."""


def asked(route: Route, actor: int | None) -> dict[str, Any]:
    """A request of somebody, with ids of nothing elsewhere, as httpx takes it."""
    path, rest = route.template, {}
    for name in (each.name for each in route.rpc.input_type.fields):
        if name == route.transcoder.actor:
            value = actor
        elif name in route.transcoder.required or name in route.path_names:
            value = 9_007_199_254_740_991
        else:
            continue
        if name in route.path_names:
            path = path.replace(f"{{{name}}}", str(value))
        elif value is not None:
            rest[name] = value
    where: dict[str, Any] = {"json": rest} if route.transcoder.has_body else {"params": rest}
    return {"method": route.method, "url": path, **where}


@pytest.mark.parametrize("route", WITH_ACTOR, ids=lambda route: f"{route.method} {route.template}")
async def test_nobody_acts_or_looks_for_another(mesh: WholeMesh, route: Route) -> None:
    me, other = await mesh.person(), await mesh.person()
    response = await mesh.strict.request(**asked(route, other), headers=await mesh.bearer(me))
    assert problem(response) == (403, "acting_as_another")
    response = await mesh.strict.request(**asked(route, other))
    assert problem(response) == (401, "unauthenticated")
    assert response.headers["www-authenticate"] == 'Bearer realm="feedmesh"'


@pytest.mark.parametrize("route", FOR_SOMEBODY, ids=lambda route: f"{route.method} {route.template}")
async def test_what_takes_somebody_is_not_for_strangers(mesh: WholeMesh, route: Route) -> None:
    actor = 1 if route.transcoder.actor in route.path_names else None
    assert problem(await mesh.strict.request(**asked(route, actor))) == (401, "unauthenticated")
    headers = {"authorization": "Bearer " + "x" * 40}
    response = await mesh.strict.request(**asked(route, actor), headers=headers)
    assert problem(response) == (401, "invalid_token")
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


async def test_every_route_is_of_somebody_or_known_to_be_for_strangers() -> None:
    without = {(route.method, route.template) for route in of_contracts()}
    assert without - {(route.method, route.template) for route in WITH_ACTOR} == FOR_STRANGERS


async def test_who_has_signed_in_need_not_say_who_they_are(mesh: WholeMesh) -> None:
    me = await mesh.person()
    headers = await mesh.bearer(me)
    post = (await mesh.strict.post("/posts", json={"content": "mine"}, headers=headers)).json()
    assert post["user_id"] == me
    assert (await mesh.strict.post("/like", json={"post_id": post["post_id"]}, headers=headers)).status_code == 200
    feed = (await mesh.strict.get("/feed", headers=headers)).json()
    assert [each["post_id"] for each in feed["posts"]] == [post["post_id"]]
    seen = (await mesh.strict.get(f"/posts/{post['post_id']}", headers=headers)).json()
    assert seen["liked"]
    assert not (await mesh.strict.get(f"/posts/{post['post_id']}")).json()["liked"]
    assert (await mesh.strict.get("/feed", params={"user_id": me}, headers=headers)).json() == feed


async def test_one_keeps_the_same_query_of_two_apart(mesh: WholeMesh) -> None:
    one, other = await mesh.person(), await mesh.person()
    for person in (one, other, one):
        headers = await mesh.bearer(person)
        await mesh.strict.post("/posts", json={"content": f"of {person}"}, headers=headers)
        feed = (await mesh.strict.get("/feed?limit=7", headers=headers)).json()
        assert {each["user_id"] for each in feed["posts"]} == {person}
    assert (await mesh.strict.get("/feed?limit=7")).status_code == 401


async def test_signing_up_in_and_out(mesh: WholeMesh) -> None:
    body = {"username": "signs_up", "email": "signs_up@example.org"}
    response = await mesh.strict.post("/users", json=body)
    assert problem(response) == (400, "invalid_argument")
    assert response.json()["errors"] == [{"field": "password", "detail": "is required"}]
    user_id = (await mesh.strict.post("/users", json=body | {"password": PASSWORD})).json()["user_id"]

    wrong = await mesh.strict.post("/sessions", json={"username": "signs_up", "password": "wrong"})
    assert problem(wrong) == (401, "wrong_credentials")
    response = await mesh.strict.post("/sessions", json={"username": "signs_up", "password": PASSWORD})
    session = response.json()
    assert (response.status_code, session["user_id"], session["expires_in"]) == (201, user_id, 600)
    assert response.headers["cache-control"] == "no-store"
    headers = {"authorization": f"Bearer {session['access_token']}"}
    assert (await mesh.strict.get("/feed", headers=headers)).status_code == 200
    listed = (await mesh.strict.get("/sessions", headers=headers)).json()
    assert [each["session_id"] for each in listed["sessions"]] == [session["session_id"]]

    renewed = await mesh.strict.post("/sessions/renew", json={"refresh_token": session["refresh_token"]})
    assert renewed.json()["refresh_token"] != session["refresh_token"]
    assert (await mesh.strict.delete(f"/sessions/{session['session_id']}", headers=headers)).status_code == 200
    again = await mesh.strict.post("/sessions/renew", json={"refresh_token": renewed.json()["refresh_token"]})
    assert problem(again) == (401, "session_ended")


@pytest.mark.parametrize("name", ["issuer", "subject"])
async def test_nobody_says_by_themselves_who_they_are_elsewhere(mesh: WholeMesh, name: str) -> None:
    body = {"username": "liar", "email": "liar@example.org", "password": PASSWORD, name: "somebody"}
    for http in (mesh.http, mesh.strict):
        response = await http.post("/users", json=body)
        assert response.json()["errors"] == [{"field": name, "detail": "unknown field"}]


# An issuer elsewhere.


@dataclass
class Elsewhere:
    """An issuer of OpenID Connect on this machine."""

    url: str = ""
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "1"}))
    says: dict[str, Any] = field(default_factory=dict)
    """What its discovery document says otherwise."""
    jwks: bytes | None = None
    status: int = 200
    slow_s: float = 0
    asked: int = 0

    async def discovery(self, _: web.Request) -> web.Response:
        await asyncio.sleep(self.slow_s)
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | self.says, status=self.status)

    async def keys(self, _: web.Request) -> web.Response:
        self.asked += 1
        keys = json.dumps({"keys": [self.key.as_dict(private=False)]}).encode()
        return web.Response(body=keys if self.jwks is None else self.jwks)

    def bearer(self, subject: str, **changed: Any) -> dict[str, str]:
        """The headers of somebody who has signed in there."""
        said = {"iss": self.url, "aud": "feedmesh", "sub": subject, "exp": 2**33} | changed
        token = jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": self.key.kid}, said, self.key, ["ES256"])
        return {"authorization": f"Bearer {token}"}


@asynccontextmanager
async def elsewhere() -> AsyncIterator[Elsewhere]:
    issuer = Elsewhere()
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", issuer.discovery)
    app.router.add_get("/keys", issuer.keys)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield issuer
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def issuer() -> AsyncIterator[Elsewhere]:
    async with elsewhere() as running:
        yield running


@pytest_asyncio.fixture
async def edge(mesh: WholeMesh, issuer: Elsewhere) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that trusts it."""
    async with client.connect(mesh.targets["session"], CALLER, SERVICE) as channel:
        routes = [route for route in of_contracts() if route.service in mesh.channels]
        app = App(
            [(route, route.call(mesh.channels[route.service])) for route in routes],
            {},
            None,
            Access(OidcIssuer(channel, issuer.url, "feedmesh", ["at+jwt"])),
            timeout_s=10,
            max_requests=10,
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge") as http:
            yield http


async def test_who_signs_in_elsewhere_makes_an_account_and_has_it(edge: httpx.AsyncClient, issuer: Elsewhere) -> None:
    headers = issuer.bearer("someone|1")
    body = {"username": "someone1", "email": "someone1@example.org"}
    assert problem(await edge.get("/feed", headers=headers)) == (403, "no_account")
    assert problem(await edge.post("/users", json=body)) == (401, "unauthenticated")
    refused = await edge.post("/users", json=body | {"password": PASSWORD}, headers=headers)
    assert refused.json()["errors"][0]["field"] == "password"
    user_id = (await edge.post("/users", json=body, headers=headers)).json()["user_id"]
    post = await edge.post("/posts", json={"content": "from elsewhere"}, headers=headers)
    assert (post.status_code, post.json()["user_id"]) == (201, user_id)
    again = {"username": "someone2", "email": "someone2@example.org"}
    assert problem(await edge.post("/users", json=again, headers=headers)) == (409, "identity_taken")
    assert problem(await edge.get("/feed", headers=issuer.bearer("someone|2"))) == (403, "no_account")
    assert issuer.asked == 1


async def test_another_audience_does_not_count(edge: httpx.AsyncClient, issuer: Elsewhere) -> None:
    assert problem(await edge.get("/feed", headers=issuer.bearer("x", aud="other"))) == (401, "invalid_token")


BROKEN: dict[str, dict[str, Any]] = {
    "calls itself another": {"says": {"issuer": "https://attacker.example"}},
    "has its keys in the clear elsewhere": {"says": {"jwks_uri": "http://192.0.2.1/keys"}},
    "has its keys in a file": {"says": {"jwks_uri": "file:///etc/passwd"}},
    "redirects": {"status": 302},
    "fails": {"status": 500},
    "answers no JSON": {"jwks": b"<html>"},
    "answers a list": {"jwks": b"[]"},
    "has no keys": {"jwks": b'{"keys":7}'},
    "answers without end": {"jwks": b" " * (MAX_BYTES + 1)},
    "takes its time": {"slow_s": 60},
}


@pytest.mark.parametrize("how", BROKEN)
async def test_an_issuer_that_cannot_be_used_is_nobodys_fault(
    edge: httpx.AsyncClient, issuer: Elsewhere, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.issuers.TIMEOUT_S", 0.3)
    for name, value in BROKEN[how].items():
        setattr(issuer, name, value)
    response = await edge.get("/feed", headers=issuer.bearer("someone|1"))
    assert problem(response) == (503, "unavailable")
    assert (await edge.get("/users/1")).status_code == 404


async def test_a_new_key_of_the_issuer_counts(
    edge: httpx.AsyncClient, issuer: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problem(await edge.get("/feed", headers=issuer.bearer("rotates"))) == (403, "no_account")
    issuer.key = ECKey.generate_key("P-256", {"kid": "2"})
    assert problem(await edge.get("/feed", headers=issuer.bearer("rotates"))) == (401, "invalid_token")
    monkeypatch.setattr(auth, "AGAIN_S", 0)
    assert problem(await edge.get("/feed", headers=issuer.bearer("rotates"))) == (403, "no_account")


# Settings.

TARGETS = {f"{name}_target": "127.0.0.1:1" for name in ("graph", "post", "ranking", "timeline", "session")} | {
    "redis_url": "redis://127.0.0.1:1/0",
    "mesh_secret": MESH_SECRET,
    "media_url": "file:///nowhere",
    "media_secret": "s" * 32,
}
OIDC = {"auth": "oidc", "oidc_issuer": "https://issuer.example/", "oidc_audience": "feedmesh"}


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ({"http_host": "0.0.0.0"}, "HTTP_HOST"),
        ({"http_host": "192.0.2.1", "auth": "local"}, "HTTP_HOST"),
        ({"http_host": "example.org"}, "HTTP_HOST"),
        ({"auth": "builtin", "session_target": None}, "SESSION_TARGET"),
        ({"auth": "oidc"}, "OIDC_ISSUER"),
        (OIDC | {"oidc_audience": None}, "OIDC_AUDIENCE"),
        (OIDC | {"oidc_issuer": "http://issuer.example"}, "https"),
        (OIDC | {"oidc_issuer": "https://issuer.example/?a=b"}, "https"),
        (OIDC | {"oidc_types": "at+jwt,"}, "oidc_types"),
    ],
)
def test_a_gateway_refuses_settings_that_would_let_everybody_in(told: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        Settings(**(TARGETS | told))


@pytest.mark.parametrize("told", [{"auth": "builtin", "http_host": "0.0.0.0"}, OIDC | {"http_host": "::"}, {}])
def test_with_authentication_it_listens_anywhere(told: dict[str, Any]) -> None:
    Settings(**(TARGETS | told))
