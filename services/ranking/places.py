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
LEAST_BITS = 10


class Places:
    """A row, at least 0, for each of any number of ids. Grows with them: small tables stay in caches."""

    def __init__(self) -> None:
        self._clear(LEAST_BITS)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def find(self, post_ids: Ids, nowhere: int) -> Ids:
        """The rows of ids, in their order; `nowhere` for those without one."""
        slots = self._firsts(post_ids)
        # Id and row lie side by side, so that memory is waited for once.
        there = self._slots.take(slots, axis=0)
        is_there = there[:, 0] == post_ids
        rows = np.where(is_there, there[:, 1], nowhere)
        left = np.flatnonzero(~is_there & (there[:, 0] != FREE))
        slots, sought = slots[left], post_ids[left]
        while len(left):
            slots = (slots + 1) & self._last
            there = self._slots.take(slots, axis=0)
            is_there = there[:, 0] == sought
            rows[left[is_there]] = there[is_there, 1]
            on = ~is_there & (there[:, 0] != FREE)
            left, slots, sought = left[on], slots[on], sought[on]
        return rows

    def get(self, post_id: int) -> int | None:
        """The row of an id."""
        slot = self._slot(post_id)
        return int(self._slots[slot, 1]) if self._slots[slot, 0] == post_id else None

    def put(self, post_id: int, row: int) -> None:
        """Gives an id a row that has none."""
        # At most half of the slots are taken: then a search looks at two or three.
        if 2 * self._count >= len(self._slots):
            self._grow()
        self._slots[self._slot(post_id)] = post_id, row
        self._count += 1

    def pop(self, post_id: int) -> int | None:
        """Takes an id out; the row that it had."""
        slot = self._slot(post_id)
        if self._slots[slot, 0] != post_id:
            return None
        row = int(self._slots[slot, 1])
        gap = after = slot
        while (other := int(self._slots[after := (after + 1) & self._last, 0])) != FREE:
            # What a search would not find beyond the gap, because it begins at it or before, fills it.
            if (after - self._first(other)) & self._last >= (after - gap) & self._last:
                self._slots[gap] = self._slots[after]
                gap = after
        self._slots[gap, 0] = FREE
        self._count -= 1
        return row

    def ids(self) -> Ids:
        """All ids, in no order."""
        return self._taken()[:, 0]

    def _taken(self) -> Ids:
        taken: Ids = self._slots[self._slots[:, 0] != FREE]
        return taken

    def _clear(self, bits: int) -> None:
        self._shift = 64 - bits
        self._last = 2**bits - 1
        self._slots: Ids = np.full((2**bits, 2), FREE, dtype=np.int64)

    def _grow(self) -> None:
        left = self._taken()
        self._clear(len(self._slots).bit_length())
        slots = self._firsts(left[:, 0])
        while len(left):
            # Of those that come to one free slot the first takes it; the others go on, as one by one they would.
            free = np.flatnonzero(self._slots[slots, 0] == FREE)
            taken, first = np.unique(slots[free], return_index=True)
            self._slots[taken] = left[free[first]]
            on = np.ones(len(left), dtype=bool)
            on[free[first]] = False
            left, slots = left[on], (slots[on] + 1) & self._last

    def _firsts(self, post_ids: Ids) -> npt.NDArray[np.intp]:
        return ((post_ids.astype(np.uint64) * np.uint64(GOLDEN)) >> np.uint64(self._shift)).astype(np.intp)

    def _first(self, post_id: int) -> int:
        """Where the search for an id begins."""
        return (post_id * GOLDEN & WORD) >> self._shift

    def _slot(self, post_id: int) -> int:
        """Where an id is, or the free slot where it would be."""
        slot = self._first(post_id)
        while (there := self._slots[slot, 0]) != post_id and there != FREE:
            slot = (slot + 1) & self._last
        return slot
