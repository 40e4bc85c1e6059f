"""Rows by post id: a hash table in numpy arrays, so that a few steps look up thousands of ids at once.

Open addressing with linear probing and deletion by moving back what comes after (D. Knuth, "The Art of Computer
Programming", vol. 3, 6.4, algorithms L and R); multiplicative hashing, so that ids of one moment lie far apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio."""
WORD = 2**64 - 1
FREE = 0
"""No id."""


class Places:
    """A row, at least 0 and below 2^31, for each of at most `capacity` ids."""

    def __init__(self, capacity: int) -> None:
        # At most half of the slots are taken: then a search looks at two or three.
        bits = (2 * capacity).bit_length() + 1
        self._shift = 64 - bits
        self._last = 2**bits - 1
        self._ids: Ids = np.full(2**bits, FREE, dtype=np.int64)
        self._rows = np.zeros(2**bits, dtype=np.int32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def find(self, post_ids: Ids, nowhere: int) -> npt.NDArray[np.int32]:
        """The rows of ids, in their order; `nowhere` for those without one."""
        slots = ((post_ids.astype(np.uint64) * np.uint64(GOLDEN)) >> np.uint64(self._shift)).astype(np.intp)
        there = self._ids[slots]
        rows = np.where(there == post_ids, self._rows[slots], np.int32(nowhere))
        left = np.flatnonzero((there != post_ids) & (there != FREE))
        slots, sought = slots[left], post_ids[left]
        while len(left):
            slots = (slots + 1) & self._last
            there = self._ids[slots]
            found = there == sought
            rows[left[found]] = self._rows[slots[found]]
            on = ~found & (there != FREE)
            left, slots, sought = left[on], slots[on], sought[on]
        return rows

    def get(self, post_id: int) -> int | None:
        """The row of an id."""
        slot = self._slot(post_id)
        return int(self._rows[slot]) if self._ids[slot] == post_id else None

    def put(self, post_id: int, row: int) -> None:
        """Gives an id a row that has none."""
        slot = self._slot(post_id)
        self._ids[slot], self._rows[slot] = post_id, row
        self._count += 1

    def pop(self, post_id: int) -> int | None:
        """Takes an id out; the row that it had."""
        slot = self._slot(post_id)
        if self._ids[slot] != post_id:
            return None
        row = int(self._rows[slot])
        gap = after = slot
        while (other := int(self._ids[after := (after + 1) & self._last])) != FREE:
            # What a search would not find beyond the gap, because it begins at it or before, fills it.
            if (after - self._first(other)) & self._last >= (after - gap) & self._last:
                self._ids[gap], self._rows[gap] = other, self._rows[after]
                gap = after
        self._ids[gap] = FREE
        self._count -= 1
        return row

    def ids(self) -> Ids:
        """All ids, in no order."""
        taken: Ids = self._ids[self._ids != FREE]
        return taken

    def _first(self, post_id: int) -> int:
        """Where the search for an id begins."""
        return (post_id * GOLDEN & WORD) >> self._shift

    def _slot(self, post_id: int) -> int:
        """Where an id is, or the free slot where it would be."""
        slot = self._first(post_id)
        while (there := self._ids[slot]) != post_id and there != FREE:
            slot = (slot + 1) & self._last
        return slot
