"""Tokens of live updates: where a watcher is in what happened. The format is the contract's (timeline.proto)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from runtime import streams

Numbers = tuple[int, ...]
"""How many events of each partition there were."""

NAME_BYTES = 8
"""Of what names the store that the events are of."""
LAYOUT = struct.Struct(f">{NAME_BYTES}s{streams.PARTITIONS}Q")
NUMBER = struct.Struct(">Q")


def pack(store: bytes, numbers: Sequence[int]) -> bytes:
    """A token."""
    return LAYOUT.pack(store, *numbers)


def unpack(token: bytes) -> tuple[bytes, Numbers] | None:
    """The store's name and the numbers; None of what is no token."""
    if len(token) != LAYOUT.size:
        return None
    store, *numbers = LAYOUT.unpack(token)
    return store, tuple(numbers)


def moved(token: bytes, partition: int, number: int) -> bytes:
    """The token of who was told, besides, up to this number of a partition. Of what is no token, the same."""
    at = NAME_BYTES + NUMBER.size * partition
    end = at + NUMBER.size
    if len(token) < end or NUMBER.unpack_from(token, at)[0] >= number:
        return token
    return token[:at] + NUMBER.pack(number) + token[end:]
