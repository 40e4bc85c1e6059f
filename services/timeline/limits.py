"""What a limit of followers costs and saves, from streams by author: followers, posts, who is pulled.

The streams are joined page by page, so that memory is bounded however many authors there are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.timeline.modes import RETURN

Read = Callable[[int, int], Awaitable[tuple[Sequence[int], Sequence[int]]]]
"""A page of a stream: the ids above the first argument, rising, at most as many as the second, and a value for each.
Fewer than asked for are the last."""
Ints = npt.NDArray[np.int64]

PAGE = 10_000


@dataclass
class Figures:
    """What pushing and pulling come to with a limit. Deliveries are those of the whole time that posts were counted."""

    limit: int
    pulled_authors: int = 0
    pushed_deliveries: int = 0
    """At most: as if all followers were active."""
    pulled_follows: int = 0
    """Follows of pulled authors."""
    largest_pushed: tuple[int, int] | None = None
    """Who of those pushed has the most followers, and how many."""

    def add(self, user_ids: Ints, followers: Ints, posts: Ints, pulled: npt.NDArray[np.bool_]) -> None:
        """Counts authors in."""
        self.pulled_authors += int(np.count_nonzero(pulled))
        self.pulled_follows += int(followers[pulled].sum())
        self.pushed_deliveries += int((followers * posts)[~pulled].sum())
        reach = np.where(pulled, 0, followers)
        most = int(reach.argmax())
        if reach[most] > (self.largest_pushed[1] if self.largest_pushed else 0):
            self.largest_pushed = int(user_ids[most]), int(reach[most])


@dataclass
class Comparison:
    """Two limits, held against each other on all authors."""

    now: Figures
    """As authors are pushed and pulled now; one on the way counts as arrived."""
    then: Figures
    authors: int = 0
    """Those whom anybody follows."""
    follows: int = 0
    deliveries: int = 0
    """Pushed ones, and those that pulling saves."""
    to_pull: int = 0
    to_push: int = 0

    def add(self, user_ids: Ints, followers: Ints, posts: Ints, pulled: npt.NDArray[np.bool_]) -> None:
        """Counts authors in: at least one, with who of them is pulled now."""
        after = pulled_with(self.then.limit, followers, pulled)
        self.authors += int(np.count_nonzero(followers))
        self.follows += int(followers.sum())
        self.deliveries += int((followers * posts).sum())
        self.to_pull += int(np.count_nonzero(after & ~pulled))
        self.to_push += int(np.count_nonzero(pulled & ~after))
        self.now.add(user_ids, followers, posts, pulled)
        self.then.add(user_ids, followers, posts, after)


def pulled_with(limit: int, followers: Ints, pulled: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Who is pulled once all were looked at with a limit, by who is now: as modes.Transitions.consider decides."""
    return np.where(pulled, ~(followers < limit * RETURN), followers > limit)


async def compare(now: int, then: int, followers: Read, posts: Read, pulled: Read, page: int = PAGE) -> Comparison:
    """Holds a limit against the present one. `pulled` has a value of 1 for each author who is. Raises what these do."""
    compared = Comparison(Figures(now), Figures(then))
    async for block in joined((followers, posts, pulled), page):
        compared.add(block[0], block[1], block[2], block[3] > 0)
    return compared


async def joined(reads: Sequence[Read], page: int) -> AsyncIterator[Ints]:
    """The full outer join of streams by id, in blocks of shape (1 + streams, n): ids, then values, 0 where none is.

    Holds one page of each stream.
    """
    held: list[Ints] = [np.empty((2, 0), dtype=np.int64) for _ in reads]
    after, more = [0] * len(reads), [True] * len(reads)
    while True:
        for at, read in enumerate(reads):
            if more[at] and not held[at].size:
                ids, values = await read(after[at], page)
                held[at] = np.array((ids, values), dtype=np.int64)
                more[at] = len(ids) == page
                after[at] = ids[-1] if ids else after[at]
        if not any(each.size for each in held):
            return
        # Beyond the end of a page that is not the last, a stream may have ids that are not known yet.
        known_to = min((int(each[0, -1]) for each, goes_on in zip(held, more, strict=True) if goes_on), default=None)
        cuts = [
            each.shape[1] if known_to is None else int(np.searchsorted(each[0], known_to, side="right"))
            for each in held
        ]
        ids_here = np.unique(np.concatenate([each[0, :cut] for each, cut in zip(held, cuts, strict=True)]))
        block = np.zeros((1 + len(reads), len(ids_here)), dtype=np.int64)
        block[0] = ids_here
        for at, cut in enumerate(cuts):
            block[1 + at, np.searchsorted(ids_here, held[at][0, :cut])] = held[at][1, :cut]
            held[at] = held[at][:, cut:]
        yield block
