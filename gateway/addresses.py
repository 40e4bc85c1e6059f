"""Whose address a request comes from: the peer's, or what proxies say of theirs, as far as they are trusted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from gateway.exchange import Headers

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNKNOWN = "unknown"
"""The address of a peer that has none, as RFC 7239 calls it."""
CACHED = 32_768
"""Addresses, and what proxies said of them, that are remembered as they were read: some 10 MB of each."""
KEPT_BYTES = 128
"""Of what a proxy said; longer ones are read each time."""
LONGEST = 64
"""Characters that an address with a port can have."""
PORT = r"(?::[0-9]{1,5})?"
WITH_PORT = re.compile(rf"([0-9.]+){PORT}|\[([0-9A-Fa-f:.]+)\]{PORT}")
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - what RFC 9110 calls a token
PAIR = re.compile(rf'[ \t]*(?:({TOKEN})=(?:({TOKEN})|"((?:[^"\\]|\\.)*)"))?[ \t]*(?:(;)|(,)|\Z)')


class Addresses:
    """Reads addresses of clients. `trusted` are the networks of proxies that say whom they speak for."""

    def __init__(self, trusted: Sequence[Network] = ()) -> None:
        @lru_cache(CACHED)
        def known(text: str) -> tuple[str, bool] | None:
            """An address in its shortest form, and whether it is a trusted proxy's."""
            if (address := parsed(text)) is None:
                return None
            return str(address), any(address in network for network in trusted)

        self._known = known
        self._remembered = lru_cache(CACHED)(self._said)

    def __call__(self, peer: str | None, headers: Headers) -> str:
        """The client's address in its shortest form, UNKNOWN where there is none. Raises nothing, whatever comes.

        X-Forwarded-For and Forwarded (RFC 7239) are read from the right, for as long as who wrote an entry is a trusted
        proxy. Where an entry that counts is no address, or the two headers differ, it is the peer's own.
        """
        own, is_trusted = self._known(peer or "") or (UNKNOWN, False)
        if not is_trusted:
            return own
        said = tuple(header for header in headers if header[0] in HEADERS)
        is_short = sum(len(value) for _, value in said) <= KEPT_BYTES
        return self._remembered(own, said) if is_short else self._said(own, said)

    def _said(self, own: str, headers: Headers) -> str:
        """The client of the proxy `own` by these headers."""
        said: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            said.setdefault(name, []).append(value)
        clients = {
            self._client(own, HEADERS[name](b",".join(values).decode("latin-1"))) for name, values in said.items()
        }
        return (clients.pop() if len(clients) == 1 else "") or own

    def _client(self, own: str, entries: Sequence[str]) -> str:
        """The first from the right that is no trusted proxy, or the last; "" where one on the way is malformed."""
        client = own
        for entry in reversed(entries):
            found = self._known(entry) if len(entry) <= LONGEST else None
            if found is None:
                return ""
            client, is_trusted = found
            if not is_trusted:
                break
        return client


def x_forwarded_for(value: str) -> list[str]:
    """The entries of X-Forwarded-For."""
    return [entry.strip(" \t") for entry in value.split(",")]


def forwarded(value: str) -> list[str]:
    """Of each element of Forwarded its `for`, "" where it has none; only an empty one where the header is malformed."""
    found, element, at = [], "", 0
    while at <= len(value):
        pair = PAIR.match(value, at)
        if pair is None:
            return [""]
        name, token, quoted, goes_on, _ = pair.groups()
        if name and name.lower() == "for":
            element = token or re.sub(r"\\(.)", r"\1", quoted or "")
        if not goes_on:
            found.append(element)
            element = ""
        at = pair.end() if goes_on or pair.group(5) else len(value) + 1
    return found


HEADERS = {b"x-forwarded-for": x_forwarded_for, b"forwarded": forwarded}


def parsed(text: str) -> Address | None:
    """An address, with or without a port; None for anything else. One of IPv4 within IPv6 counts as IPv4."""
    if found := WITH_PORT.fullmatch(text):
        text = found[1] or found[2]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))  # without the zone of a link-local one
    return address


@lru_cache(CACHED)
def network_of(address: str) -> bytes:
    """What one client can be expected to have of addresses: one of IPv4, a /64 of IPv6."""
    if ":" not in address:
        return address.encode()
    return str(ip_network((address, 64), strict=False)).encode()


def networks(text: str) -> tuple[Network, ...]:
    """Networks in CIDR notation, separated by commas; none of "". Raises ValueError."""
    return tuple(ip_network(each.strip()) for each in text.split(",")) if text else ()
