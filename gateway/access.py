"""What is asked of who asks, before a service is: who they are, and whether this is for strangers.

That nobody acts for another is the transcoder's part, which knows the field that says who acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.auth import NOBODY, Identity, bearer
from gateway.issuers import OidcIssuer, OwnIssuer
from gateway.routes import Route
from gateway.transcode import unauthenticated
from runtime.errors import Conflict, Error, Forbidden, InvalidArgument, Violation

PROTOCOL, TOKEN = "feedmesh", "bearer."
"""What a browser may ask for as the subprotocols of its WebSocket, which takes no headers: our name, and its token."""


class Access:
    """Lets requests in, by tokens of an issuer; without one everybody is believed."""

    def __init__(self, issuer: OwnIssuer | OidcIssuer | None) -> None:
        self._issuer = issuer

    async def __call__(self, headers: Mapping[bytes, bytes], offered: Sequence[str] = ()) -> Identity | None:
        """Who asks; None where whoever is named is believed. `offered` are the subprotocols of a WebSocket.

        Raises Unauthenticated (INVALID_TOKEN), Unavailable.
        """
        if self._issuer is None:
            return None
        authorization = headers.get(b"authorization")
        if authorization is not None:
            return await self._issuer.tokens(bearer(authorization))
        for each in offered:
            if each.startswith(TOKEN):
                return await self._issuer.tokens(each.removeprefix(TOKEN).encode())
        return NOBODY

    def counts(self, identity: Identity | None) -> bool:
        """Whether somebody who was let in may stay."""
        return identity is None or self._issuer is None or self._issuer.tokens.counts(identity)

    def complete(self, message: Any, route: Route, identity: Identity | None) -> None:
        """Puts what the token says into a request that wants it: who registers.

        Raises Unauthenticated, Conflict (IDENTITY_TAKEN), InvalidArgument.
        """
        if identity is None or not route.transcoder.claims:
            return
        if isinstance(self._issuer, OwnIssuer):
            if not message.HasField("password"):
                raise InvalidArgument(Violation("password", "is required"))
            return
        if not identity.subject:
            raise unauthenticated()
        if identity.user_id:
            raise Conflict("IDENTITY_TAKEN", f"you are user {identity.user_id} already")
        if message.HasField("password"):
            raise InvalidArgument(Violation("password", "is for no one here: people sign in at their issuer"))
        said = {"iss": identity.issuer, "sub": identity.subject}
        for field, claim in route.transcoder.claims.items():
            setattr(message, field, said[claim])


def acting(identity: Identity | None) -> int | None:
    """Who has signed in, as gateway/transcode.py takes it."""
    return None if identity is None else identity.user_id


def stranger(identity: Identity) -> Error:
    """Why somebody who is nobody here may not do what takes somebody."""
    if identity.subject:
        return Forbidden("NO_ACCOUNT", "the token is good, but you have no account yet: POST /users makes one")
    return unauthenticated()
