"""The engagement of posts as numpy columns, in memory. Where it comes from and whether it is up to date: follow.py.

What it covers is explicit. Of a post above the `horizon` it knows all: one without a row has no engagement. Of a post
at or below the horizon it knows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from feedmesh.post.v1 import post_pb2
from runtime import ids
from runtime.counts import HALF_LIFE_S
from services.ranking.places import Ids, Places

Table = npt.NDArray[np.float64]
"""Shape (n, 4): likes, comments, shares, heat."""
Flags = npt.NDArray[np.bool_]

CAPACITY = 2_000_000
"""Posts; at some 90 bytes each. What is older than all of them is asked of the post service, page by page."""
EVICTED = 1 / 16
"""The part of the posts that goes at once when there are too many."""
WIDTH = 4


class Columns:
    """The engagement of at most `capacity` posts: the newest that have any. New, it says that no post has any."""

    def __init__(self, capacity: int = CAPACITY, horizon: int = 0) -> None:
        self.horizon = horizon
        """Posts up to this id are not covered."""
        self._capacity = capacity
        # Likes, comments, shares, heat, and the time in ms that heat is true for.
        self._table = np.zeros((capacity, WIDTH + 1))
        self._rows = Places()
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

    def gather(self, post_ids: Ids, now_ms: int) -> tuple[Table, Flags]:
        """The engagement of posts as of now, in their order, and of which of them nothing is known (their row is 0)."""
        nobody = self._capacity
        rows = self._rows.find(post_ids, nobody)
        known = rows != nobody
        found = self._table[rows[known]]
        # Clocks may step back; heat does not grow by that.
        found[:, 3] *= np.exp2(-np.maximum(now_ms - found[:, 4], 0) / (HALF_LIFE_S * 1000))
        table = np.zeros((len(rows), WIDTH))
        table[known] = found[:, :WIDTH]
        return table, ~known & (post_ids <= self.horizon)

    def store(self, post_ids: Sequence[int], engagement: Table, now_ms: int) -> None:
        """Notes what posts' engagement is as of now, in place of what was known of them.

        When there are too many, the oldest go and the horizon rises.
        """
        rows, kept = [], []
        total: list[float] = engagement.sum(axis=1).tolist()
        for place, post_id in enumerate(post_ids):
            if total[place] and len(self._rows) == self._capacity and self._rows.get(post_id) is None:
                self._evict()
            if total[place] and post_id > self.horizon:
                rows.append(self._row(post_id))
                kept.append(place)
            else:
                # Above the horizon, to have no row is to have no engagement.
                self._remove(post_id)
        # An eviction may have given a row to another post of these: numpy lets the later one have it.
        self._table[rows, :WIDTH] = engagement[kept]
        self._table[rows, WIDTH] = now_ms

    def _row(self, post_id: int) -> int:
        row = self._rows.get(post_id)
        if row is None:
            # Rows are handed out from 0 on; those given back come first.
            row = self._free.pop() if self._free else len(self._rows)
            self._rows.put(post_id, row)
        return row

    def _remove(self, post_id: int) -> None:
        row = self._rows.pop(post_id)
        if row is not None:
            self._free.append(row)

    def _evict(self) -> None:
        held = self._rows.ids()
        last = max(int(len(held) * EVICTED), 1) - 1
        self.horizon = int(np.partition(held, last)[last])
        for post_id in held[held <= self.horizon].tolist():
            self._remove(post_id)


NOTHING = Columns(capacity=0, horizon=ids.MAX_ID)
"""Columns that cover no post."""


def engagement(answer: post_pb2.BatchGetEngagementResponse.Item | post_pb2.ListEngagementResponse) -> Table:
    """The columns of an answer of the post service."""
    columns = (answer.likes, answer.comments, answer.shares, answer.heat)
    return np.stack([np.fromiter(column, np.float64, len(answer.likes)) for column in columns], axis=1)
