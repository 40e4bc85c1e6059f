"""Where a viewer stands in an endless feed, as it travels in the signed cursor. No server remembers a scroll.

The feed is cut into disjoint windows of ids, newest first. A window is ranked; a page takes the best of it that were
not shown yet, and the next page ranks the rest of the window again. So nothing expires, and what is deleted or blocked
meanwhile is gone at once.

A post that someone shared can stand in more than one window: at the share, at older shares, at itself. It is shown
where the scroll meets it first, at its newest visible share, and the cursor carries it on until the scroll has passed
the post itself: nothing of it can come after that, as shares are newer than what they share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from runtime import ids
from runtime.paging import Cursors

ID_BYTES = 7
MAX_SHOWN = 400
"""Posts of one window that a cursor carries at the most. A window holds half as many; only who follows and unfollows
again and again in mid-scroll is shown more of it, and then goes on with the next one."""
MAX_EARLIER = 400
"""Posts older than the place that a cursor carries on at the most: 2.8 KB, which an address still holds."""


class Scroll(NamedTuple):
    """A place in a feed, between two pages."""

    bound: int = ids.MAX_ID
    """The newest id of the first page's moment: whatever is newer waits for the next first page."""
    high: int = ids.MAX_ID
    """The window's highest id."""
    low: int | None = None
    """The window's lowest id; None for a window that was not looked at yet."""
    shown: frozenset[int] = frozenset()
    """The posts that earlier pages showed from this window."""
    earlier: frozenset[int] = frozenset()
    """The posts that earlier windows showed, at a share, and that are older than this window's highest id."""
    forgot: bool = False
    """Whether there were more of those than a cursor carries. Then a newer share in an earlier window counts as shown;
    that is wrong only for what was shared, unshared or followed in the middle of this scroll."""

    def showing(self, post_ids: Iterable[int]) -> Scroll:
        """The place in the same window with these posts shown."""
        return self._replace(shown=self.shown.union(post_ids))

    def past_window(self) -> Scroll | None:
        """The place at the beginning of the next window; None at the end of the feed."""
        if not self.low:
            return None
        older = sorted((post_id for post_id in self.shown | self.earlier if post_id < self.low), reverse=True)
        return Scroll(
            self.bound,
            self.low - 1,
            earlier=frozenset(older[:MAX_EARLIER]),
            forgot=self.forgot or len(older) > MAX_EARLIER,
        )


def seal(cursors: Cursors, user_id: int, order: int, scroll: Scroll) -> str:
    """The cursor for a place: seven bytes a number. `low` is one up, with 0 for None."""
    low = 0 if scroll.low is None else scroll.low + 1
    head = (scroll.bound, scroll.high, low, int(scroll.forgot), len(scroll.shown))
    numbers = (*head, *sorted(scroll.shown), *sorted(scroll.earlier))
    return cursors.seal(scope(user_id, order), b"".join([number.to_bytes(ID_BYTES, "big") for number in numbers]))


def unseal(cursors: Cursors, user_id: int, order: int, cursor: str) -> Scroll:
    """The place of a cursor; the beginning for "". Raises InvalidArgument (INVALID_CURSOR)."""
    if not cursor:
        return Scroll()
    payload = cursors.open(scope(user_id, order), cursor)
    bound, high, low, forgot, shown, *posts = (
        int.from_bytes(payload[at : at + ID_BYTES], "big") for at in range(0, len(payload), ID_BYTES)
    )
    place = low - 1 if low else None
    return Scroll(bound, high, place, frozenset(posts[:shown]), frozenset(posts[shown:]), bool(forgot))


def scope(user_id: int, order: int) -> tuple[str | int, ...]:
    """What a feed's cursor is bound to."""
    return ("feed", user_id, order)
