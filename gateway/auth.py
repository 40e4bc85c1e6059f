"""Who asks: bearer tokens (RFC 6750), which are JWTs of an issuer (RFC 9068, checked as RFC 8725 says).

    Authorization: Bearer … ─► known by its hash? ─► else: key of its `kid` ─► signature, claims ─► who is this here?

Verifying costs a tenth of a millisecond, so a token is looked at once, and then known until it expires. The issuer is
one of OpenID Connect (gateway/oidc.py), or the mesh itself (services/graph/signing.py); either is a source of keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey, RSAKey

from runtime.errors import Error, Unauthenticated, Unavailable

log = logging.getLogger(__name__)

ALGORITHMS: Mapping[type[Key], Collection[str]] = {
    RSAKey: ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ECKey: ("ES256", "ES384", "ES512"),
    OKPKey: ("EdDSA", "Ed25519"),
}
"""What a key may have signed with. Nothing symmetric: whoever can verify could sign."""
NO_TYPE = ("",)
MIN_RSA_BITS = 2_048
MAX_KEYS = 100
MAX_TOKEN_BYTES = 8_192
MAX_KNOWN = 100_000
"""Tokens that are known; of more the first ones are verified again. Some 40 MB."""
KNOWN_S = 300.0
"""After how long it is asked again who somebody is here."""
LEEWAY_S = 5
"""By how much the issuer's clock may differ."""
MAX_NAME = 255
"""Characters of `iss` and `sub`."""
REFRESH_S = 300.0
"""How often keys are asked for, so that one that was withdrawn counts no more."""
AGAIN_S = 10.0
"""How often at the most because of a key that is not known: anybody can name one."""


class Identity(NamedTuple):
    """Who a token says one is."""

    user_id: int
    """0 of who has no account yet."""
    issuer: str
    subject: str
    session_id: int
    """0 of a token of an issuer elsewhere."""
    expires_s: float
    """Seconds of the epoch."""


NOBODY = Identity(0, "", "", 0, float("inf"))
"""Who sends no token."""

Identify = Callable[[Mapping[str, Any]], Awaitable[Identity]]
"""Takes verified claims, tells who it is here. Raises Unauthenticated, Unavailable."""


KeySource = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]
"""Gives an issuer's public keys of now, as JWKs. Raises Error, OSError, TimeoutError or ValueError."""


class KeyRing:
    """An issuer's keys by their ids, asked for now and then and when one is missing."""

    def __init__(self, source: KeySource) -> None:
        self._source = source
        self._keys: dict[str | None, Key] = {}
        self._asked_s = float("-inf")
        self._under_way: asyncio.Task[None] | None = None
        self.changed: Callable[[], None] = lambda: None
        """Called when a key is gone."""

    async def get(self, kid: str | None) -> Key | None:
        """The key, None where the issuer has none of this id. Raises Unavailable while no key at all is known."""
        key = self._keys.get(kid)
        if key is None and time.monotonic() - self._asked_s >= AGAIN_S:
            await self.refresh()
            key = self._keys.get(kid)
        if not self._keys:
            raise Unavailable("the keys of those who sign tokens cannot be read")
        return key

    async def refresh(self) -> None:
        """Asks for the keys; who comes meanwhile waits for the same answer. Without one, those known stay."""
        if self._under_way is None or self._under_way.done():
            self._asked_s = time.monotonic()
            self._under_way = asyncio.create_task(self._ask())
        await asyncio.shield(self._under_way)

    async def run(self) -> None:
        """Keeps the keys fresh, until it is cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S if self._keys else AGAIN_S)

    async def _ask(self) -> None:
        try:
            found = await self._source()
        except (Error, OSError, TimeoutError, ValueError) as error:
            log.warning("keys that tokens are signed with cannot be read: %s", error)
            return
        before, self._keys = self._keys, dict(usable(found[:MAX_KEYS]))
        if before.keys() - self._keys.keys():
            self.changed()


def usable(keys: Sequence[Mapping[str, Any]]) -> list[tuple[str | None, Key]]:
    """Those of an issuer's keys that may sign tokens, by id. Under None the only one, for a token that names none."""
    found: list[tuple[str | None, Key]] = []
    for data in keys:
        try:
            key = JWKRegistry.import_key(dict(data))
        except (JoseError, ValueError, TypeError, KeyError):
            continue
        small = isinstance(key, RSAKey) and key.public_key.key_size < MIN_RSA_BITS
        if type(key) in ALGORITHMS and data.get("use", "sig") == "sig" and not small:
            found.append((str(data["kid"]) if "kid" in data else None, key))
    return found + [(None, key) for _, key in found] if len(found) == 1 else found


class Tokens:
    """Tells who a request's `Authorization` is."""

    def __init__(
        self,
        ring: KeyRing,
        identify: Identify,
        *,
        issuer: str,
        audience: str,
        types: Collection[str],
        cognito: bool = False,
    ) -> None:
        """`types` are the values of `typ` that an access token may have, in lower case, without `application/`.

        Those of Amazon Cognito have neither a type nor an audience: what they are is in `token_use`, for whom in
        `client_id`.
        """
        self._ring = ring
        self._identify = identify
        self._types = NO_TYPE if cognito else types
        kind = {"client_id": audience, "token_use": "access"} if cognito else {"aud": audience}
        needed: Any = {name: {"essential": True, "value": value} for name, value in {"iss": issuer, **kind}.items()}
        self._claims = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_S, exp={"essential": True}, sub={"essential": True}, **needed
        )
        self._known: dict[bytes, tuple[Identity, float]] = {}
        """By the token's hash, and until when that is enough."""
        self._ended: dict[int, float] = {}
        """Sessions, and until when they may have tokens."""
        ring.changed = self._known.clear

    async def __call__(self, token: bytes) -> Identity:
        """Who a token says one is. Raises Unauthenticated (INVALID_TOKEN), Unavailable."""
        digest = hashlib.sha256(token).digest()
        found, until_s = self._known.get(digest, (NOBODY, 0.0))
        if until_s <= time.time():
            found = await self._identify(await self._verified(token))
            if found.user_id:
                while len(self._known) >= MAX_KNOWN:
                    del self._known[next(iter(self._known))]
                self._known[digest] = found, min(found.expires_s, time.time() + KNOWN_S)
        if found.session_id in self._ended:
            raise invalid("the session has ended")
        return found

    def counts(self, identity: Identity) -> bool:
        """Whether somebody who was let in may stay: their token has not expired, and their session not ended."""
        return identity.expires_s > time.time() and identity.session_id not in self._ended

    def end(self, session_ids: Collection[int], for_s: float) -> None:
        """These sessions have ended, which have no tokens that count for longer than this."""
        now_s = time.monotonic()
        self._ended = {one: until_s for one, until_s in self._ended.items() if until_s > now_s}
        self._ended |= dict.fromkeys(session_ids, now_s + for_s)

    async def _verified(self, token: bytes) -> Mapping[str, Any]:
        if len(token) > MAX_TOKEN_BYTES:
            raise invalid(f"it is over {MAX_TOKEN_BYTES} bytes")
        try:
            header = jws.extract_compact(token).headers()
        except (JoseError, ValueError, TypeError, RecursionError):
            raise invalid("it is no JWT") from None
        kind, kid = header.get("typ", ""), header.get("kid")
        if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in self._types:
            raise invalid(f"its typ is none of {', '.join(self._types) or 'none'}")
        if "crit" in header:
            raise invalid("it asks for what is not understood here (crit)")
        # The header says which key and nothing of what it is: `jwk`, `jku` and the like are not looked at.
        key = await self._ring.get(kid if isinstance(kid, str) else None)
        if key is None:
            raise invalid("its key is not known")
        own = key.get("alg")
        algorithms = [name for name in ALGORITHMS[type(key)] if own in (None, name)]
        try:
            found = jwt.decode(token, key, registry=jws.JWSRegistry(algorithms=algorithms, strict_check_header=False))
            self._claims.validate(found.claims)
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise invalid(str(error)) from None
        return found.claims


def bearer(authorization: bytes) -> bytes:
    """The token of an `Authorization` header. Raises Unauthenticated (INVALID_TOKEN) for another scheme."""
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip():
        raise invalid("the scheme is Bearer")
    return token.strip()


def claimed(claims: Mapping[str, Any], user_id: int, session_id: int = 0) -> Identity:
    """The identity of verified claims."""
    issuer, subject = claims["iss"], claims["sub"]
    if not (isinstance(subject, str) and 0 < len(subject) <= MAX_NAME and "\0" not in subject):
        raise invalid("its sub is no name")
    expires_s = float(claims["exp"])
    return Identity(user_id, issuer, subject, session_id, expires_s)


def invalid(why: str) -> Unauthenticated:
    """A token that does not count."""
    return Unauthenticated("INVALID_TOKEN", f"the access token does not count: {why}")
