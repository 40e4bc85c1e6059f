"""Relations of viewers (follows, blocks, mutes): cached with a version, and asked of the graph service on every read.

It mostly answers "unchanged", which costs it one row; and a follow or a block shows in the very next read. Whoever is
called in the course of such a read is told the version and need not ask again. While the graph cannot be reached, what
it said within the last minute goes on to be used.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import errors, members

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

Ids = npt.NDArray[np.int64]

CACHED_IDS = 24_000_000
"""Ids kept in memory at the most, over all viewers: 192 MB, 50,000 viewers who follow 200. Who has more is not kept."""
ENTRY_IDS = 64
"""What an entry weighs besides its ids, in ids: 0.5 KB."""
ASKED = 200
"""Viewers that one question is about, as many as its contract allows."""
TIMEOUT_S = 1.0
KEPT_S = 60.0
"""How old relations may be while the graph cannot be reached."""

NONE: Ids = np.empty(0, dtype=np.int64)


@dataclass
class Relation:
    """One viewer's relations to others."""

    version: int
    following: Ids
    """Shape (n,), rising."""
    follow_ids: Ids
    """Shape (n,), one for each of `following`: the follows. The later has the higher id."""
    blocked: Ids
    """Shape (m,), rising: whom a block separates from the viewer, either way."""
    muted: Ids
    """Shape (k,), rising: whom the viewer mutes."""
    confirmed: float
    """When the graph last said so, in seconds of `time.monotonic()`."""

    def weight(self) -> int:
        """What it takes of the cache, in ids."""
        return ENTRY_IDS + 2 * len(self.following) + len(self.blocked) + len(self.muted)

    @cached_property
    def latest_follow(self) -> int:
        """The id of the viewer's latest follow; 0 without any."""
        return int(self.follow_ids.max(initial=0))

    @cached_property
    def followees(self) -> Ids:
        """Whose posts the viewer reads besides their own: follows without mutes. Shape (n,), rising."""
        return np.setdiff1d(self.following, self.muted, assume_unique=True) if len(self.muted) else self.following

    def follows(self, user_id: int) -> bool:
        """Whether the viewer follows someone."""
        return holds(self.following, user_id)

    def blocks(self, user_id: int) -> bool:
        """Whether a block separates the viewer from someone."""
        return user_id in self._blocked

    def mutes(self, user_id: int) -> bool:
        """Whether the viewer mutes someone."""
        return user_id in self._muted

    # Mostly empty, and asked for every post of every page.

    @cached_property
    def _blocked(self) -> frozenset[int]:
        return frozenset(self.blocked.tolist())

    @cached_property
    def _muted(self) -> frozenset[int]:
        return frozenset(self.muted.tolist())


def holds(rising: Ids, user_id: int) -> bool:
    """Whether an id is among rising ones."""
    if not len(rising):
        return False
    at = int(rising.searchsorted(user_id))
    return at < len(rising) and int(rising[at]) == user_id


def array(ids: Sequence[int]) -> Ids:
    """Ids of an answer as an array. Mostly there are none: these share one."""
    return np.array(ids, dtype=np.int64) if ids else NONE


class Relations:
    """The relations of viewers, as of now."""

    def __init__(self, graph: GraphServiceAsyncStub) -> None:
        self.graph = graph
        self._known: LRUCache[int, Relation] = LRUCache(CACHED_IDS, getsizeof=Relation.weight)

    async def of(
        self, viewer_ids: Sequence[int], told: Mapping[int, int] = MappingProxyType({})
    ) -> tuple[dict[int, Relation], bool]:
        """The relations of those viewers that exist, and whether these are from before the graph was gone.

        `told` gives versions that the graph gave in the course of this very request: who is known of that version or a
        later one is not asked for. Raises Unavailable where the graph is gone and none of those to be asked for is
        known from the last minute.
        """
        current: dict[int, Relation] = {}
        known: dict[int, Relation | None] = {}
        for viewer_id in viewer_ids:
            held = self._known.get(viewer_id)
            if held is not None and held.version >= told.get(viewer_id, held.version + 1):
                current[viewer_id] = held
            else:
                known[viewer_id] = held
        if not known:
            return current, False
        any_kept = False
        waiting = iter(known.items())
        while some := dict(itertools.islice(waiting, ASKED)):
            found, kept = await self._ask(some)
            current |= found
            any_kept |= kept
        return current, any_kept

    async def _ask(self, known: Mapping[int, Relation | None]) -> tuple[dict[int, Relation], bool]:
        asked = time.monotonic()
        try:
            response = await self.graph.BatchGetRelations(
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
                following = members.unpack_ids(item.packed_following_ids)
                order = np.argsort(following)
                relation = found[viewer_id] = Relation(
                    item.version,
                    following[order],
                    members.unpack_ids(item.packed_follow_ids)[order],
                    np.sort(array(item.blocked_ids)),
                    np.sort(array(item.muted_ids)),
                    asked,
                )
                if relation.weight() <= CACHED_IDS:
                    self._known[viewer_id] = relation
        return found, False
