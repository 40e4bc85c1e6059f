"""The place in a feed, as a cursor carries it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import ids
from runtime.errors import InvalidArgument
from runtime.paging import Cursors
from services.timeline import scroll

CURSORS = Cursors("a secret of at least 32 characters")
some_ids = st.integers(0, ids.MAX_ID)
id_sets = st.frozensets(some_ids, max_size=300)
scrolls = st.builds(scroll.Scroll, some_ids, some_ids, st.none() | some_ids, id_sets, id_sets, st.booleans())


@given(scrolls, some_ids, st.integers(1, 2))
def test_a_cursor_carries_the_whole_place(place: scroll.Scroll, user_id: int, order: int) -> None:
    assert scroll.unseal(CURSORS, user_id, order, scroll.seal(CURSORS, user_id, order, place)) == place


@given(scrolls, st.integers(1, 2))
def test_a_cursor_is_good_for_one_viewer_and_one_order(place: scroll.Scroll, order: int) -> None:
    cursor = scroll.seal(CURSORS, 7, order, place)
    for user_id, other in ((8, order), (7, 3 - order)):
        with pytest.raises(InvalidArgument, match="cursor"):
            scroll.unseal(CURSORS, user_id, other, cursor)


def test_no_cursor_is_the_beginning() -> None:
    assert scroll.unseal(CURSORS, 7, 1, "") == scroll.Scroll()


@given(scrolls)
def test_the_next_window_begins_below_and_remembers_only_what_could_come_again(place: scroll.Scroll) -> None:
    following = place.past_window()
    if not place.low:
        assert following is None
    else:
        assert following is not None
        assert (following.bound, following.high, following.low) == (place.bound, place.low - 1, None)
        could_come_again = {post_id for post_id in place.shown | place.earlier if post_id < place.low}
        assert following.shown == frozenset()
        assert following.earlier <= could_come_again
        assert following.forgot == (place.forgot or following.earlier != could_come_again)


def test_a_cursor_has_a_bound_and_says_when_it_forgot() -> None:
    place = scroll.Scroll(ids.MAX_ID, ids.MAX_ID, 10**9, frozenset(range(1, 201)), frozenset(range(201, 1001)))
    following = place.past_window()
    assert following is not None
    assert following.forgot
    # The newest are kept: the scroll comes to them first.
    assert following.earlier == frozenset(range(601, 1001))
    full = following.showing(range(10**6, 10**6 + 300))
    assert len(scroll.seal(CURSORS, 7, 1, full)) < 7_000
