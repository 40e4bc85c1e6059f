"""How much viewers have to do with authors, in memory: asked for on demand, dropped when a viewer does something.

What happened while an answer was under way could be missing from it. So whoever asks takes a ticket first; what is
dropped takes the ticket with it, and without it the answer is not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cachetools import TTLCache

from feedmesh.post.v1 import post_pb2
from runtime import ids

CAPACITY = 8_000_000
"""Authors of all viewers together, at 16 bytes each, and VIEWER_COST for each viewer: 128 MB."""
VIEWER_COST = 32
"""What a viewer takes besides, in authors."""
PLACE_BITS = 54
"""Ids have 53 bits, and nobody's is one above."""
TTL_S = 600.0
"""Of some changes no event tells whose they are: likes that go with a post."""


@dataclass(frozen=True, eq=False)
class Affinity:
    """One viewer's affinities. As a ticket, an empty one stands for what is being asked for."""

    authors: npt.NDArray[np.int64]
    """Shape (m + 1,), rising; the last one is nobody."""
    weights: npt.NDArray[np.float64]
    """Shape (m + 1,), 0 for nobody."""
    ticket: bool = False


def weights(
    known: Sequence[Affinity], viewers: npt.NDArray[np.int64], author_ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """How much viewers have to do with authors, pair by pair; 0 for authors who are not known.

    `viewers` and `author_ids` have shape (n,); a viewer is a place in `known` (at most 256).
    """
    if not known:
        return np.empty(0)
    # One search for all: an author's id with the viewer's place above it.
    authors = np.concatenate([affinity.authors + (at << PLACE_BITS) for at, affinity in enumerate(known)])
    sought = author_ids + (viewers << PLACE_BITS)
    places = authors.searchsorted(sought)
    found = np.concatenate([affinity.weights for affinity in known])[places]
    found[authors[places] != sought] = 0
    return found


class Affinities:
    """The affinities of those viewers who read lately, as of at most ten minutes ago."""

    def __init__(self) -> None:
        self._known: TTLCache[int, Affinity] = TTLCache(
            CAPACITY, TTL_S, getsizeof=lambda affinity: VIEWER_COST + len(affinity.authors)
        )

    def get(self, viewer_id: int) -> Affinity | None:
        """A viewer's affinities, if they are known."""
        found = self._known.get(viewer_id)
        return None if found is None or found.ticket else found

    def ask(self, viewer_id: int) -> Affinity:
        """A ticket, to be taken before asking for a viewer's affinities."""
        ticket = Affinity(np.empty(0, np.int64), np.empty(0), ticket=True)
        self._known[viewer_id] = ticket
        return ticket

    def keep(self, viewer_id: int, ticket: Affinity, affinity: Affinity) -> None:
        """Keeps what was asked for, unless the ticket is no longer good."""
        if self._known.get(viewer_id) is ticket:
            self._known[viewer_id] = affinity

    def drop(self, viewer_id: int) -> None:
        """Forgets a viewer who did something."""
        self._known.pop(viewer_id, None)

    def forget(self, user_id: int) -> None:
        """Forgets all in whose affinities someone is who is gone. Looks through all of them."""
        for viewer_id in self._with(user_id):
            self.drop(viewer_id)

    def traces(self, user_id: int) -> int:
        """In how many viewers' affinities someone is, their own among them. Looks through all of them."""
        return len(self._with(user_id))

    def _with(self, user_id: int) -> list[int]:
        return [
            viewer_id
            for viewer_id, affinity in self._known.items()
            if viewer_id == user_id or user_id in affinity.authors
        ]

    def clear(self) -> None:
        """Forgets everyone."""
        self._known.clear()


def affinity(answer: post_pb2.BatchGetEngagementResponse.Item) -> Affinity:
    """The affinities of an answer of the post service."""
    count = len(answer.affinity_author_ids)
    authors = np.fromiter((*answer.affinity_author_ids, ids.MAX_ID + 1), np.int64, count + 1)
    weights = np.fromiter((*answer.affinities, 0.0), np.float64, count + 1)
    order = np.argsort(authors)
    return Affinity(authors[order], weights[order])
