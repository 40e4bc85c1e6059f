"""Access tokens: what counts, and what of all that attackers send does not."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from gateway import auth
from gateway.auth import Identity, KeyRing, Tokens, bearer, claimed
from runtime.errors import Error, Unauthenticated, Unavailable

ISSUER, AUDIENCE = "https://issuer.example", "feedmesh"
EC = ECKey.generate_key("P-256", {"kid": "ec", "alg": "ES256", "use": "sig"})
RSA = RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
STRANGER = ECKey.generate_key("P-256", {"kid": "ec"})
"""A key of somebody else, who calls it by the same id."""
KEYS: list[Key] = [EC, RSA, ED]


class Issuer:
    """Keys as an issuer publishes them, and how often they were asked for."""

    def __init__(self, *keys: Key) -> None:
        self.keys = [key.as_dict(private=False) for key in keys]
        self.asked = 0
        self.fails = False

    async def __call__(self) -> Sequence[Mapping[str, Any]]:
        self.asked += 1
        if self.fails:
            raise OSError("gone")
        return self.keys


async def identify(claims: Mapping[str, Any]) -> Identity:
    return claimed(claims, 7, int(claims.get("sid", 0)))


def tokens(ring: KeyRing | None = None, types: Sequence[str] = ("at+jwt",)) -> Tokens:
    return Tokens(ring or KeyRing(Issuer(*KEYS)), identify, issuer=ISSUER, audience=AUDIENCE, types=types)


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "iat": now, "nbf": now, "exp": now + 60} | changed
    return {name: value for name, value in said.items() if value is not None}


def signed(
    key: Key = EC, header: Mapping[str, Any] | None = None, said: Mapping[str, Any] | None = None, alg: str = "ES256"
) -> bytes:
    full = {"alg": alg, "typ": "at+jwt", "kid": key.kid} | dict(header or {})
    return jwt.encode(full, dict(said or claims()), key, [alg]).encode()


def raw(header: Mapping[str, Any], said: Mapping[str, Any], signature: bytes = b"") -> bytes:
    parts = (json.dumps(header).encode(), json.dumps(said).encode(), signature)
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)


def by_hand(**header: Any) -> bytes:
    """A token of the issuer whose header no library would write."""
    content = raw({"alg": "ES256", "typ": "at+jwt", "kid": "ec"} | header, claims()).rpartition(b".")[0]
    signature = jws.JWSRegistry.algorithms["ES256"].sign(content, EC)
    return content + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


def with_mac(secret: bytes, kid: str) -> bytes:
    """A token signed as if the issuer's public key were a secret that both know."""
    content = raw({"alg": "HS256", "typ": "at+jwt", "kid": kid}, claims()).rpartition(b".")[0]
    return content + b"." + base64.urlsafe_b64encode(hmac.digest(secret, content, "sha256")).rstrip(b"=")


async def refused(of: Tokens, token: bytes) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await of(token)
    assert caught.value.reason == "INVALID_TOKEN"
    return caught.value.message


@pytest.mark.parametrize(
    ("key", "alg"),
    [(EC, "ES256"), (RSA, "RS256"), (RSA, "PS512"), (ED, "EdDSA"), (ED, "Ed25519")],
    ids=lambda value: value if isinstance(value, str) else value.kid,
)
async def test_a_token_of_the_issuer_counts(key: Key, alg: str) -> None:
    found = await tokens()(signed(key, alg=alg))
    assert (found.user_id, found.issuer, found.subject) == (7, ISSUER, "somebody")


async def test_what_is_written_by_hand_counts_if_it_is_right() -> None:
    assert (await tokens()(by_hand())).user_id == 7


async def test_an_audience_among_others_counts() -> None:
    await tokens()(signed(said=claims(aud=["elsewhere", AUDIENCE])))


ATTACKS: dict[str, bytes] = {
    "alg none": raw({"alg": "none", "typ": "at+jwt", "kid": "ec"}, claims()),
    "alg None": raw({"alg": "None", "typ": "at+jwt", "kid": "ec"}, claims()),
    "no alg": raw({"typ": "at+jwt", "kid": "ec"}, claims(), b"x" * 64),
    "no signature": signed().rpartition(b".")[0] + b".",
    "another's signature": signed(STRANGER),
    "HS256 with the public key as its secret": with_mac(RSA.as_pem(private=False), "rsa"),
    "HS256 with the key's id as its secret": with_mac(b"rsa", "rsa"),
    "RS256 by the id of an EC key": signed(RSA, {"kid": "ec"}, alg="RS256"),
    "a key that it brings along": signed(STRANGER, {"jwk": STRANGER.as_dict(private=False)}),
    "a key that is elsewhere": signed(STRANGER, {"jku": "https://attacker.example/keys"}),
    "a certificate that it brings along": signed(STRANGER, {"x5c": ["AAAA"]}),
    "kid that is a path": signed(EC, {"kid": "../../../../dev/null"}),
    "kid that is SQL": signed(EC, {"kid": "ec' OR '1'='1"}),
    "no kid among several": by_hand(kid=None),
    "unknown crit": by_hand(crit=["more"], more=1),
    "crit of what is understood": by_hand(crit=["kid"]),
    "crit that is empty": by_hand(crit=[]),
    "crit b64": by_hand(crit=["b64"], b64=True),
    "an ID token": signed(EC, {"typ": "JWT"}),
    "no typ": signed(EC, {"typ": ""}),
    "typ that is no text": by_hand(typ=["at+jwt"]),
    "another issuer": signed(said=claims(iss="https://attacker.example")),
    "an issuer that begins alike": signed(said=claims(iss=ISSUER + ".attacker.example")),
    "no issuer": signed(said=claims(iss=None)),
    "another audience": signed(said=claims(aud="elsewhere")),
    "no audience": signed(said=claims(aud=None)),
    "audiences that are none": signed(said=claims(aud=[])),
    "expired": signed(said=claims(exp=int(time.time()) - auth.LEEWAY_S - 1)),
    "for ever": signed(said=claims(exp=None)),
    "exp that is no number": signed(said=claims(exp="tomorrow")),
    "exp that is true": signed(said=claims(exp=True)),
    "not yet": signed(said=claims(nbf=int(time.time()) + 60)),
    "issued in the future": signed(said=claims(iat=int(time.time()) + 60)),
    "no subject": signed(said=claims(sub=None)),
    "subject that is a number": signed(said=claims(sub=7)),
    "subject with U+0000": signed(said=claims(sub="some\0body")),
    "subject that is long": signed(said=claims(sub="s" * 256)),
    "oversized": signed(said=claims(more="x" * auth.MAX_TOKEN_BYTES)),
    "claims that are no object": jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": "ec"}, claims(), EC, ["ES256"])
    .encode()
    .split(b".")[0]
    + b"."
    + base64.urlsafe_b64encode(b"[]").rstrip(b"=")
    + b"."
    + b"AAAA",
    "a JWE": b"eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..AAAA.AAAA.AAAA",
    "deep nesting": b".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=") for part in (b'{"alg":' + b"[" * 3000, b"{}", b"x")
    ),
    "nothing": b"",
    "dots": b"..",
    "no base64": b"\xff.\xff.\xff",
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_what_is_no_token_of_the_issuer_does_not_count(attack: str) -> None:
    message = await refused(tokens(), ATTACKS[attack])
    assert len(message) < 300


@given(st.binary(max_size=300))
async def test_no_bytes_fail_in_another_way(data: bytes) -> None:
    await refused(tokens(), data)


@given(st.dictionaries(st.text(max_size=10), st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=6))
async def test_no_header_fails_in_another_way(header: dict[str, Any]) -> None:
    await refused(tokens(), raw({"alg": "ES256", "typ": "at+jwt", "kid": "ec"} | header, claims(), b"x" * 64))


async def test_types_are_a_matter_of_settings() -> None:
    assert (await tokens(types=("at+jwt", "jwt"))(signed(EC, {"typ": "JWT"}))).user_id == 7
    assert (await tokens()(signed(EC, {"typ": "application/at+jwt"}))).user_id == 7


def of_cognito(key: Key = RSA, typ: str | None = None, **changed: Any) -> bytes:
    """A token as Cognito makes them."""
    said = claims(**{"aud": None, "client_id": AUDIENCE, "token_use": "access", "username": "somebody"} | changed)
    header = {"alg": "RS256", "kid": key.kid} | ({"typ": typ} if typ else {})
    registry = jws.JWSRegistry(algorithms=["RS256"])
    return jws.serialize_compact(header, json.dumps(said), key, registry=registry).encode()


async def test_of_cognito_an_access_token_of_our_client_counts_and_nothing_else() -> None:
    of = Tokens(KeyRing(Issuer(*KEYS)), identify, issuer=ISSUER, audience=AUDIENCE, types=("at+jwt",), cognito=True)
    assert (await of(of_cognito())).subject == "somebody"
    for token in (
        of_cognito(token_use="id", aud=AUDIENCE),  # an ID token
        of_cognito(token_use=None),
        of_cognito(client_id="another"),
        of_cognito(client_id=None, aud=AUDIENCE),
        of_cognito(iss="https://another.example"),
        of_cognito(exp=int(time.time()) - 60),
        of_cognito(typ="JWT"),
        signed(said=claims(client_id=AUDIENCE, token_use="access")),
    ):
        await refused(of, token)
    await refused(tokens(), of_cognito())  # elsewhere it is none


async def test_a_token_is_verified_once() -> None:
    seen = []

    async def counting(said: Mapping[str, Any]) -> Identity:
        seen.append(said)
        return await identify(said)

    of = Tokens(KeyRing(Issuer(EC)), counting, issuer=ISSUER, audience=AUDIENCE, types=("at+jwt",))
    token = signed()
    assert await of(token) == await of(token)
    assert len(seen) == 1


async def test_a_token_that_is_known_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    of, token = tokens(), signed()
    found = await of(token)
    assert of.counts(found)
    later = time.time() + 60 + auth.LEEWAY_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert not of.counts(found)
    await refused(of, token)


async def test_a_token_of_a_session_that_has_ended_counts_no_more() -> None:
    of, token = tokens(), signed(said=claims(sid="99"))
    found = await of(token)
    of.end([99], 60)
    assert not of.counts(found)
    await refused(of, token)
    of.end([], 60)
    await refused(of, token)


async def test_who_has_no_account_is_asked_about_again() -> None:
    accounts = {"somebody": 0}

    async def look_up(said: Mapping[str, Any]) -> Identity:
        return claimed(said, accounts[said["sub"]])

    of, token = Tokens(KeyRing(Issuer(EC)), look_up, issuer=ISSUER, audience=AUDIENCE, types=("at+jwt",)), signed()
    assert (await of(token)).user_id == 0
    accounts["somebody"] = 7
    assert (await of(token)).user_id == 7


async def test_the_known_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_KNOWN", 3)
    of = tokens()
    for number in range(10):
        await of(signed(said=claims(sub=str(number))))
    assert len(of._known) == 3


async def test_a_new_key_counts_at_once_and_unknown_ones_are_asked_for_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer, now = Issuer(EC), time.monotonic()
    of = tokens(KeyRing(issuer))
    await of(signed())
    issuer.keys.append(RSA.as_dict(private=False))
    for _ in range(5):
        await refused(of, signed(RSA, alg="RS256"))
    assert issuer.asked == 1
    monkeypatch.setattr(time, "monotonic", lambda: now + auth.AGAIN_S + 1)
    assert (await of(signed(RSA, alg="RS256"))).user_id == 7
    assert issuer.asked == 2


async def test_a_key_that_was_withdrawn_takes_its_tokens_along() -> None:
    issuer = Issuer(EC, RSA)
    ring = KeyRing(issuer)
    of = tokens(ring)
    token = signed(RSA, alg="RS256")
    await of(token)
    del issuer.keys[1]
    await ring.refresh()
    await refused(of, token)


async def test_keys_outlive_an_issuer_that_is_away() -> None:
    issuer = Issuer(EC)
    ring = KeyRing(issuer)
    of = tokens(ring)
    await of(signed())
    issuer.fails = True
    await ring.refresh()
    assert (await of(signed(said=claims(sub="another")))).user_id == 7


async def test_without_any_key_it_is_not_the_tokens_fault() -> None:
    issuer = Issuer(EC)
    issuer.fails = True
    with pytest.raises(Unavailable):
        await tokens(KeyRing(issuer))(signed())


def test_only_keys_that_may_sign_are_taken() -> None:
    weak = RSAKey.generate_key(1024, {"kid": "weak"})
    shared = OctKey.generate_key(256, {"kid": "shared"})
    for_secrets = ECKey.generate_key("P-256", {"kid": "enc", "use": "enc"})
    broken = {"kty": "EC", "kid": "broken", "crv": "P-256"}
    found = auth.usable([
        *(key.as_dict(private=False) for key in (EC, RSA, weak, for_secrets)), shared.as_dict(), broken, {"kty": 7}
    ])  # fmt: skip
    assert [kid for kid, _ in found] == ["ec", "rsa"]


@pytest.mark.parametrize("authorization", [b"", b"Bearer", b"Bearer ", b"Basic YTpi", b"bearer\tx", b"Bearerx"])
def test_only_bearer_tokens_are_understood(authorization: bytes) -> None:
    with pytest.raises(Error) as caught:
        bearer(authorization)
    assert caught.value.reason == "INVALID_TOKEN"


def test_the_scheme_may_be_in_any_case() -> None:
    assert bearer(b"BEARER abc") == b"abc"
