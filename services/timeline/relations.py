"""Whom viewers follow: cached with a version, and asked of the graph on every read, which mostly answers "unchanged".

So a follow or unfollow shows in the very next read, and costs one row of the graph's when nothing changed. While the
graph cannot be reached, what it said within the last minute goes on to be used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import errors

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

CACHED_IDS = 8_000_000
"""Ids of followees and of follows kept in memory at the most, over all viewers: 64 MB."""
ENTRY_IDS = 64
"""What an entry weighs besides its ids, in ids: 0.5 KB."""
TIMEOUT_S = 1.0
KEPT_S = 60.0
"""How old relations may be while the graph cannot be reached."""


@dataclass
class Relation:
    """Whom one viewer follows."""

    version: int
    following: npt.NDArray[np.int64]
    """Shape (n,), rising."""
    follow_ids: npt.NDArray[np.int64]
    """Shape (n,), one for each of `following`: the follows. The later has the higher id."""
    confirmed: float
    """When the graph last said so, in seconds of `time.monotonic()`."""

    def weight(self) -> int:
        """What it takes of the cache, in ids."""
        return ENTRY_IDS + 2 * len(self.following)


class Relations:
    """The relations of viewers, as of now."""

    def __init__(self, graph: GraphServiceAsyncStub) -> None:
        self._graph = graph
        self._known: LRUCache[int, Relation] = LRUCache(CACHED_IDS, getsizeof=Relation.weight)

    async def of(self, viewer_ids: Sequence[int]) -> tuple[dict[int, Relation], bool]:
        """The relations of those viewers that exist, and whether these are from before the graph was gone.

        Raises Unavailable where the graph is gone and none of them is known from the last minute.
        """
        known = {viewer_id: self._known.get(viewer_id) for viewer_id in viewer_ids}
        asked = time.monotonic()
        try:
            response = await self._graph.BatchGetRelations(
                pb.BatchGetRelationsRequest(
                    items=[
                        pb.BatchGetRelationsRequest.Item(viewer_id=viewer_id, known_version=held.version if held else 0)
                        for viewer_id, held in known.items()
                    ]
                ),
                # Who can go on without need not wait until the request's end.
                timeout=TIMEOUT_S if any(held and asked - held.confirmed < KEPT_S for held in known.values()) else None,
            )
        except errors.Unavailable:
            kept = {viewer: held for viewer, held in known.items() if held and asked - held.confirmed < KEPT_S}
            if not kept:
                raise
            return kept, True
        found = {}
        for (viewer_id, held), item in zip(known.items(), response.items, strict=True):
            if held is not None and item.unchanged:
                found[viewer_id] = held
                held.confirmed = max(held.confirmed, asked)
            elif item.version:
                following = np.array(item.following_ids, dtype=np.int64)
                order = np.argsort(following)
                follows = np.array(item.follow_ids, dtype=np.int64)
                found[viewer_id] = Relation(item.version, following[order], follows[order], asked)
                self._known[viewer_id] = found[viewer_id]
        return found, False
