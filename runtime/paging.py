"""Cursors: opaque, signed, and bound to the listing and the viewer that they were made for.

A cursor is base64url(payload + first 16 bytes of HMAC-SHA256 over scope and payload). The scope (which listing, whose,
for whom, in which order) is signed and not carried, so that a cursor of another listing is a forged one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from runtime.errors import InvalidArgument, Violation

MAC_BYTES = 16
MAX_CURSOR_CHARACTERS = 8192
MAX_BATCH_POSTS = 640
"""Posts that one answer holds at the most: with an original each can be 42 KB, and a message has 32 MiB."""
DEFAULT_LIMIT = 20
"""How many a page holds where the request does not say."""
MAX_LIMIT = 100
"""How many a page holds at the most."""
MAX_READS = 10

T = TypeVar("T")
Rows = tuple[Sequence[int], Mapping[int, T]]
"""The ids of rows of a listing, and those of the rows that are shown."""


class Cursors:
    """Seals and opens cursors with one secret, which all replicas of a service share."""

    def __init__(self, secret: str) -> None:
        self._key = secret.encode()

    def seal(self, scope: tuple[str | int, ...], payload: bytes) -> str:
        """The cursor for a payload of at most 6,000 bytes."""
        return encode(payload + self._mac(scope, payload))

    def open(self, scope: tuple[str | int, ...], cursor: str) -> bytes:
        """The payload of a cursor. Raises InvalidArgument (INVALID_CURSOR) unless it was sealed for this scope."""
        if len(cursor) <= MAX_CURSOR_CHARACTERS and cursor.isascii():
            try:
                sealed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            except binascii.Error:
                sealed = b""
            payload, mac = sealed[:-MAC_BYTES], sealed[-MAC_BYTES:]
            # One cursor has one form: base64 lets the last character vary.
            if hmac.compare_digest(mac, self._mac(scope, payload)) and encode(sealed) == cursor:
                return payload
        raise InvalidArgument(Violation("cursor", "is not a cursor of this listing"), reason="INVALID_CURSOR")

    def seal_id(self, scope: tuple[str | int, ...], last_id: int) -> str:
        """The cursor of a listing by id: the last id of the page."""
        return self.seal(scope, last_id.to_bytes(7, "big"))

    def open_id(self, scope: tuple[str | int, ...], cursor: str, *, first: int) -> int:
        """The id that a page goes on from; `first` for no cursor."""
        return int.from_bytes(self.open(scope, cursor), "big") if cursor else first

    def _mac(self, scope: tuple[str | int, ...], payload: bytes) -> bytes:
        message = repr(scope).encode() + b"\0" + payload
        return hmac.digest(self._key, message, hashlib.sha256)[:MAC_BYTES]


async def filled(limit: int, place: int, read: Callable[[int, int], Awaitable[Rows[T]]]) -> tuple[list[T], int | None]:
    """A page of `limit` rows of a listing of which some are left out; and the id that the next one goes on from.

    `read(place, count)` gives the ids of the `count` rows after a place, and those of the rows that are shown, by id.
    Reads at most ten times: then the page is short, with a place to go on from. None at the end.
    """

    async def read_each(places: Mapping[int, int]) -> dict[int, Rows[T]]:
        return {at: await read(its, limit + 1) for at, its in places.items()}

    return (await filled_each({0: (limit, place)}, read_each))[0]


async def filled_each(
    pages: Mapping[int, tuple[int, int]], read: Callable[[Mapping[int, int]], Awaitable[Mapping[int, Rows[T]]]]
) -> dict[int, tuple[list[T], int | None]]:
    """As `filled` for pages (limit, place) by any keys, read together.

    `read` gives for each key of a place the rows after it, one more than the page's limit.
    """
    found: dict[int, list[tuple[int, T]]] = {key: [] for key in pages}
    going = {key: place for key, (_, place) in pages.items()}
    made: dict[int, tuple[list[T], int | None]] = {}
    for _ in range(MAX_READS):
        if not going:
            break
        for key, (row_ids, rows) in (await read(going)).items():
            limit, shown = pages[key][0], found[key]
            shown += [(row_id, rows[row_id]) for row_id in row_ids if row_id in rows]
            going[key] = row_ids[-1] if row_ids else 0
            if len(shown) > limit or len(row_ids) <= limit:
                made[key] = [row for _, row in shown[:limit]], shown[limit - 1][0] if len(shown) > limit else None
                del going[key]
    return made | {key: ([row for _, row in found[key]], place) for key, place in going.items()}


def most_posts(request: Any) -> int:
    """How many posts a page can hold that is asked for, rightly or not: 1 to 100."""
    return min(max(request.limit, 1), MAX_LIMIT) if request.HasField("limit") else DEFAULT_LIMIT


def require_fitting(posts: int) -> None:
    """Raises InvalidArgument when the items of a batch ask for more posts than an answer holds."""
    if posts > MAX_BATCH_POSTS:
        raise InvalidArgument(Violation("items", f"must not ask for more than {MAX_BATCH_POSTS} posts in all"))


def encode(sealed: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
