"""Whose tokens count: the mesh's own (FEEDMESH_AUTH=builtin), or those of one issuer of OpenID Connect (oidc)."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from feedmesh.session.v1 import session_pb2 as pb
from feedmesh.session.v1.session_pb2_grpc import SessionServiceStub
from gateway.auth import Identity, KeyRing, Tokens, claimed
from runtime import client
from runtime.errors import Error, NotFound, Unavailable

log = logging.getLogger(__name__)

OWN = "feedmesh"
"""`iss` and `aud` of the mesh's own tokens."""
OWN_TYPES = ("at+jwt",)
POLL_S = 2.0
"""How soon a session that has ended is known to have."""
SETTLE_S = 10
TOKENS_S = 700
"""How long the mesh's own tokens count at the most, and a little."""
TIMEOUT_S = 3.0
MAX_BYTES = 256 * 2**10
DISCOVERY = "/.well-known/openid-configuration"


class OwnIssuer:
    """The session service, whose tokens name people by their ids."""

    def __init__(self, channel: client.Channel) -> None:
        stub: Any = SessionServiceStub(channel)
        self._list_keys = stub.ListSigningKeys
        self._list_ended = stub.ListEndedSessions
        self._ring = KeyRing(self._keys)
        self.tokens = Tokens(self._ring, identify, issuer=OWN, audience=OWN, types=OWN_TYPES)

    async def run(self) -> None:
        """Keeps up with keys and sessions, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ring.run())
            group.create_task(self._follow_ended())

    async def _keys(self) -> Sequence[Mapping[str, Any]]:
        keys: Sequence[Mapping[str, Any]] = json.loads((await self._list_keys(pb.ListSigningKeysRequest())).jwks)[
            "keys"
        ]
        return keys

    async def _follow_ended(self) -> None:
        asked_s = float("-inf")
        while True:
            now_s = time.monotonic()
            # Further back than the last answer: what was written then may have been committed since.
            within_s = min(now_s - asked_s + SETTLE_S, TOKENS_S)
            try:
                answer = await self._list_ended(pb.ListEndedSessionsRequest(within_s=int(within_s)))
                self.tokens.end(answer.session_ids, TOKENS_S)
                asked_s = now_s
            except Error as error:
                log.warning("which sessions have ended cannot be read: %s", error.message)
            await asyncio.sleep(POLL_S)


async def identify(claims: Mapping[str, Any]) -> Identity:
    """Who the mesh's own token names."""
    return claimed(claims, int(claims["sub"]), int(claims["sid"]))


class OidcIssuer:
    """An issuer of OpenID Connect, whose subjects are people here by `POST /users` (Discovery 1.0, 4; RFC 7517)."""

    def __init__(
        self, channel: client.Channel, issuer: str, audience: str, types: Sequence[str], *, cognito: bool = False
    ) -> None:
        stub: Any = SessionServiceStub(channel)
        self._get_identity = stub.GetIdentity
        self._issuer = issuer
        self._ring = KeyRing(self._keys)
        self.tokens = Tokens(self._ring, self._identify, issuer=issuer, audience=audience, types=types, cognito=cognito)

    async def run(self) -> None:
        """Keeps up with keys, until it is cancelled."""
        await self._ring.run()

    async def _identify(self, claims: Mapping[str, Any]) -> Identity:
        stranger = claimed(claims, 0)
        try:
            request = pb.GetIdentityRequest(issuer=stranger.issuer, subject=stranger.subject)
            return stranger._replace(user_id=(await self._get_identity(request)).user_id)
        except NotFound:
            return stranger

    async def _keys(self) -> Sequence[Mapping[str, Any]]:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=True) as session:
            said = await read(session, self._issuer.rstrip("/") + DISCOVERY)
            if said.get("issuer") != self._issuer:
                raise Unavailable(f"the issuer calls itself {said.get('issuer')!r}")
            where = said.get("jwks_uri")
            if not isinstance(where, str) or not is_safe(where):
                raise Unavailable("the issuer's jwks_uri is no https address")
            keys = (await read(session, where)).get("keys")
        if not isinstance(keys, list):
            raise Unavailable("the issuer's JWK Set has no keys")
        return [key for key in keys if isinstance(key, dict)]


async def read(session: aiohttp.ClientSession, address: str) -> dict[str, Any]:
    """A JSON object, at most MAX_BYTES of it."""
    try:
        async with session.get(address, allow_redirects=False) as answer:
            if answer.status != 200:
                raise Unavailable(f"{address} answers {answer.status}")
            body = await answer.content.read(MAX_BYTES + 1)
            while len(body) <= MAX_BYTES and (more := await answer.content.read(MAX_BYTES + 1 - len(body))):
                body += more
    except aiohttp.ClientError as error:
        raise Unavailable(f"{address} cannot be read: {error}") from None
    if len(body) > MAX_BYTES:
        raise Unavailable(f"{address} answers with more than {MAX_BYTES} bytes")
    said = orjson.loads(body)
    if not isinstance(said, dict):
        raise Unavailable(f"{address} answers with no JSON object")
    return said


def is_safe(address: str) -> bool:
    """Whether what is read there is the issuer's own: by https, or on this machine."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and local))
