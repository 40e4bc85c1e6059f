"""Which web pages may use the API from another origin (CORS), and under which names the gateway may be asked.

Browsers send whatever a page tells them to, also to a gateway on the visitor's own machine. So a page of another origin
reads nothing and writes nothing unless the operator named it; it opens no WebSocket, which CORS does not cover; and a
gateway that believes acting ids answers to names of this machine alone, lest a name of the page's own be pointed here
(DNS rebinding). Who is no browser sends no `Origin` and is not concerned.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from functools import lru_cache

from gateway.exchange import Headers
from runtime.errors import Error, Forbidden

SENT = b"Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Range, X-Request-Id"
"""Request headers that a page may set."""
READ = b"ETag, Feed-Degraded, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id"
"""Answer headers that a page may read, beside those that each may."""
PREFLIGHT_S = 7200
"""How long a browser may keep the answer to its preflight request; Chrome keeps none longer."""
MAX_HOST = 300
"""Bytes of a `Host` that can be one."""


class Origins:
    """The origins that may use the API, as in `https://app.example`, and whether only this machine may."""

    def __init__(self, allowed: Collection[str] = (), *, local: bool = False) -> None:
        """`local` is for a gateway that believes acting ids: it answers to loopback names alone."""
        vary = [(b"vary", b"Origin")] if allowed else []
        self._others: Headers = vary
        self._allowed: dict[bytes, Headers] = {
            origin.encode(): [
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-expose-headers", READ),
                *vary,
            ]
            for origin in allowed
        }
        self._local = local

    def headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        """What every answer to a request says of its origin. No credentials: tokens are no cookies."""
        return self._allowed.get(headers.get(b"origin", b""), self._others)

    def preflight(self, headers: Mapping[bytes, bytes], methods: bytes) -> Headers:
        """What the answer to OPTIONS says besides, where a browser asks for a page whether it may use these methods."""
        if b"access-control-request-method" not in headers or headers.get(b"origin", b"") not in self._allowed:
            return ()
        return [
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", SENT),
            (b"access-control-max-age", b"%d" % PREFLIGHT_S),
        ]

    def check(self, headers: Mapping[bytes, bytes], *, changes: bool) -> None:
        """Raises Error (HOST_NOT_ALLOWED); and Forbidden (ORIGIN_NOT_ALLOWED) where a page may not do what it asks.

        `changes` is whether the request may change something, or opens a WebSocket.
        """
        host = headers.get(b"host", b"")
        if self._local and host and not (len(host) <= MAX_HOST and is_loopback(host)):
            raise Error("HOST_NOT_ALLOWED", "this gateway answers to localhost, 127.0.0.1 and [::1] only")
        if changes and (origin := headers.get(b"origin")) is not None:
            # Behind a proxy that ends TLS our own scheme is not known, so the host alone tells.
            own = origin.partition(b"://")[2].lower() == host.lower() != b""
            if not own and origin not in self._allowed:
                raise Forbidden("ORIGIN_NOT_ALLOWED", "web pages of this origin may not use this API")


@lru_cache(maxsize=64)
def is_loopback(host: bytes) -> bool:
    """Whether a `Host` header names this machine by a loopback name or address; any port."""
    name = host.decode("latin-1").lower()
    if not name.endswith("]"):
        before, _, port = name.rpartition(":")
        name = before if before and port.isdecimal() else name
    try:
        return name == "localhost" or ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
