"""What sessions give to clients: access tokens, signed with keys that change by themselves, and refresh tokens.

Keys are in the database, sealed with a secret that is not: who reads only the one or the other cannot sign. Deleting
them there makes all access tokens void at once, and has a new one made.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from typing import NamedTuple

from joserfc import jwe, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey

from runtime import postgres
from runtime.clock import Clock
from runtime.postgres import Connection, Pool
from services.graph import session_store as store

log = logging.getLogger(__name__)

ISSUER = "feedmesh"
"""`iss`, `aud` and `client_id` of access tokens: they are the mesh's own, for itself."""
ALGORITHM = "ES256"
ACCESS_S = 600
"""How long an access token counts."""
FRESH_S = 5.0
"""How long the key is used before it is looked whether another signs by now."""
SEAL = {"alg": "dir", "enc": "A256GCM"}
REFRESH_TOKEN = re.compile(r"([1-9][0-9]{0,15})\.([1-9][0-9]{0,8})\.([A-Za-z0-9_-]{43})")


class Refresh(NamedTuple):
    """What a refresh token says."""

    session_id: int
    generation: int


class Signer:
    """Makes tokens, and reads those that come back."""

    def __init__(self, pool: Pool, secret: str, clock: Clock, *, key_days: float) -> None:
        self._pool = pool
        self._clock = clock
        self._key_days = key_days
        self._seal = OctKey.import_key(derived(secret, "seal"))
        self._mac_key = derived(secret, "refresh")
        self._key: ECKey | None = None
        self._looked_s = 0.0

    async def access_token(self, session_id: int, user_id: int) -> str:
        """A JWT of RFC 9068 for ACCESS_S; `sid` is the session."""
        now = self._clock() // 1000
        claims = {
            "iss": ISSUER,
            "aud": ISSUER,
            "client_id": ISSUER,
            "sub": str(user_id),
            "sid": str(session_id),
            "iat": now,
            "exp": now + ACCESS_S,
            "jti": secrets.token_hex(8),
        }
        key = await self._signing_key()
        return jwt.encode({"alg": ALGORITHM, "typ": "at+jwt", "kid": key.kid}, claims, key, [ALGORITHM])

    def refresh_token(self, session_id: int, generation: int) -> str:
        """The refresh token of a session's generation: always the same one."""
        return f"{session_id}.{generation}.{self._mac(session_id, generation)}"

    def read(self, refresh_token: str) -> Refresh | None:
        """What a refresh token says; None for one that was not made here."""
        parts = REFRESH_TOKEN.fullmatch(refresh_token)
        if parts is None:
            return None
        said = Refresh(int(parts[1]), int(parts[2]))
        return said if hmac.compare_digest(parts[3], self._mac(*said)) else None

    async def jwks(self) -> str:
        """The public keys of tokens that may be in use, as a JWK Set. There is at least one."""
        await self._signing_key()
        keys = await store.signing_keys(self._pool, self._key_days)
        return json.dumps({"keys": [json.loads(key.public_key) for key in keys]})

    def _mac(self, session_id: int, generation: int) -> str:
        mac = hmac.digest(self._mac_key, b"%d.%d" % (session_id, generation), "sha256")
        return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()

    async def _signing_key(self) -> ECKey:
        """The key that signs now, made where there is none that can be used."""
        if self._key is None or time.monotonic() - self._looked_s > FRESH_S:
            usable = await self._usable(self._pool)
            self._key = usable if usable is not None else await postgres.transact(self._pool, self._made)
            self._looked_s = time.monotonic()
        return self._key

    async def _usable(self, reader: postgres.Reader) -> ECKey | None:
        for key in (await store.signing_keys(reader, self._key_days))[:1]:
            if not key.is_old:
                return self._opened(key)
        return None

    def _opened(self, key: store.SigningKey) -> ECKey | None:
        try:
            return ECKey.import_key(json.loads(jwe.decrypt_compact(key.sealed_key, self._seal).plaintext or b""))
        except (JoseError, ValueError):
            log.warning("a signing key was sealed with another secret; another one is made")
            return None

    async def _made(self, connection: Connection) -> ECKey:
        await store.lock_signing_keys(connection)
        if (other := await self._usable(connection)) is not None:
            return other
        key = ECKey.generate_key("P-256", {"use": "sig", "alg": ALGORITHM}, auto_kid=True)
        sealed = jwe.encrypt_compact(SEAL, json.dumps(key.as_dict(private=True)), self._seal)
        assert key.kid is not None  # it was asked for
        await store.insert_signing_key(connection, key.kid, json.dumps(key.as_dict(private=False)), sealed)
        return key


def derived(secret: str, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose."""
    return hmac.digest(secret.encode(), purpose.encode(), hashlib.sha256)
