"""Packed members: how candidates of a feed travel and are stored. The format is the contracts' (post.proto).

A member is 21 bytes: the ids of a post, of its author, and of the original that a plain share repeats (the post's own
id otherwise), each a big-endian unsigned integer of 7 bytes. Ids have 53 bits, so 7 bytes hold them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

MEMBER_BYTES = 21
Members = npt.NDArray[np.int64]
"""Shape (n, 3): post id, author id, original id."""


def pack(rows: Iterable[tuple[int, int, int]] | Members) -> bytes:
    """Packs rows of three ids, each 0 to 2^53-1, in their order."""
    # Number by number: numpy takes three times as long to look into rows.
    flat = rows if isinstance(rows, np.ndarray) else list(itertools.chain.from_iterable(rows))
    array = np.ascontiguousarray(flat, dtype=">i8").reshape(-1, 3)
    return array.view(np.uint8).reshape(-1, 3, 8)[:, :, 1:].tobytes()


def pack_one(post_id: int, author_id: int, original_id: int) -> bytes:
    """One packed member. Faster than `pack` for fewer than ten."""
    return post_id.to_bytes(7, "big") + author_id.to_bytes(7, "big") + original_id.to_bytes(7, "big")


def unpack(packed: bytes) -> Members:
    """The rows of packed members, in their order; an array of shape (n, 3).

    Raises ValueError when the length is no multiple of 21.
    """
    wide = np.zeros((len(packed) // MEMBER_BYTES, 3, 8), dtype=np.uint8)
    wide[:, :, 1:] = np.frombuffer(packed, dtype=np.uint8).reshape(-1, 3, 7)
    return wide.reshape(-1, 24).view(">i8").astype(np.int64)


def unpack_ids(packed: bytes) -> npt.NDArray[np.int64]:
    """Ids that are packed alone, 8 bytes each, big-endian, in their order. Raises ValueError for another length."""
    return np.frombuffer(packed, dtype=">i8").astype(np.int64)


def unpack_each(packed: Sequence[bytes]) -> list[Members]:
    """As `unpack` for each: in one step, which costs much the same as for one of them."""
    rows = unpack(b"".join(packed))
    ends = itertools.accumulate((len(each) // MEMBER_BYTES for each in packed), initial=0)
    return [rows[begin:end] for begin, end in itertools.pairwise(ends)]
