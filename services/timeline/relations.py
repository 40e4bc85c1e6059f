"""Whom viewers follow: cached with a version, and asked of the graph on every read, which mostly answers "unchanged".

So a follow or unfollow shows in the very next read, and costs one row of the graph's when nothing changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from feedmesh.graph.v1 import graph_pb2 as pb

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

CACHED_IDS = 4_000_000
"""Followee ids kept in memory at the most, over all viewers: 32 MB."""
ENTRY_IDS = 64
"""What an entry weighs besides its ids, in ids: 0.5 KB."""


class Relation(NamedTuple):
    """Whom one viewer follows."""

    version: int
    following: npt.NDArray[np.int64]
    """Shape (n,), in no order."""


class Relations:
    """The relations of viewers, as of now."""

    def __init__(self, graph: GraphServiceAsyncStub) -> None:
        self._graph = graph
        self._known: LRUCache[int, Relation] = LRUCache(CACHED_IDS, getsizeof=lambda r: ENTRY_IDS + len(r.following))

    async def of(self, viewer_ids: Sequence[int]) -> dict[int, Relation]:
        """The relations of those viewers that exist. Raises Unavailable."""
        known = {viewer_id: self._known.get(viewer_id) for viewer_id in viewer_ids}
        response = await self._graph.BatchGetRelations(
            pb.BatchGetRelationsRequest(
                items=[
                    pb.BatchGetRelationsRequest.Item(viewer_id=viewer_id, known_version=held.version if held else 0)
                    for viewer_id, held in known.items()
                ]
            )
        )
        found = {}
        for (viewer_id, held), item in zip(known.items(), response.items, strict=True):
            if held is not None and item.unchanged:
                found[viewer_id] = held
            elif item.version:
                found[viewer_id] = Relation(item.version, np.array(item.following_ids, dtype=np.int64))
                self._known[viewer_id] = found[viewer_id]
        return found
