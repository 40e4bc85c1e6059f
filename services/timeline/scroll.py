"""Where a viewer stands in an endless feed, as it travels in the signed cursor. No server remembers a scroll.

The feed is cut into disjoint windows of ids, newest first. A window is ranked; a page takes the best of it that were
not served yet, and the next page ranks the rest of the window again. So nothing expires, and what is deleted or blocked
meanwhile is gone at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime import ids
from runtime.paging import Cursors

ID_BYTES = 7


@dataclass(frozen=True)
class Scroll:
    """A place in a feed, between two pages."""

    bound: int = ids.MAX_ID
    """The newest id of the first page's moment: whatever is newer waits for the next first page."""
    high: int = ids.MAX_ID
    """The window's highest id."""
    low: int | None = None
    """The window's lowest id; None for a window that was not looked at yet."""
    served: frozenset[int] = frozenset()
    """Ids of the window's entries that earlier pages showed."""

    def past_window(self) -> Scroll | None:
        """The place at the beginning of the next window; None at the end of the feed."""
        if not self.low:
            return None
        return Scroll(self.bound, self.low - 1, None, frozenset(i for i in self.served if i < self.low))


def seal(cursors: Cursors, user_id: int, order: int, scroll: Scroll) -> str:
    """The cursor for a place. `low` is one up, with 0 for None."""
    numbers = (scroll.bound, scroll.high, 0 if scroll.low is None else scroll.low + 1, *sorted(scroll.served))
    return cursors.seal(scope(user_id, order), b"".join(number.to_bytes(ID_BYTES, "big") for number in numbers))


def unseal(cursors: Cursors, user_id: int, order: int, cursor: str) -> Scroll:
    """The place of a cursor; the beginning for "". Raises InvalidArgument (INVALID_CURSOR)."""
    if not cursor:
        return Scroll()
    payload = cursors.open(scope(user_id, order), cursor)
    bound, high, low, *served = (
        int.from_bytes(payload[at : at + ID_BYTES], "big") for at in range(0, len(payload), ID_BYTES)
    )
    return Scroll(bound, high, low - 1 if low else None, frozenset(served))


def scope(user_id: int, order: int) -> tuple[str | int, ...]:
    """What a feed's cursor is bound to."""
    return ("feed", user_id, order)
