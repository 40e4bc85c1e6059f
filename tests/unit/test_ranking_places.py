"""Ranking's hash table: what a dict says, it says."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime import ids
from services.ranking.places import Places

MOST = 40
NOWHERE = 99
POST_IDS = st.one_of(st.integers(1, 40), st.integers(1, ids.MAX_ID))
"""Few enough to come again, and such as there are."""


@given(st.lists(st.tuples(st.booleans(), POST_IDS), max_size=200))
def test_rows_are_found_as_in_a_dict(steps: list[tuple[bool, int]]) -> None:
    places, model = Places(), dict[int, int]()
    places._clear(1)  # so that it grows soon
    for at, (is_put, post_id) in enumerate(steps):
        if not is_put:
            assert places.pop(post_id) == model.pop(post_id, None)
        elif post_id not in model and len(model) < MOST:
            places.put(post_id, at)
            model[post_id] = at
        assert places.get(post_id) == model.get(post_id)
    sought = np.array([*{post_id for _, post_id in steps}, 7], dtype=np.int64)
    assert places.find(sought, NOWHERE).tolist() == [model.get(post_id, NOWHERE) for post_id in sought.tolist()]
    assert len(places) == len(model)
    assert sorted(places.ids().tolist()) == sorted(model)


def test_a_full_table_finds_all() -> None:
    many = np.arange(1, 5_001, dtype=np.int64) << ids.SEQUENCE_BITS
    places = Places()
    for row, post_id in enumerate(many.tolist()):
        places.put(post_id, row)
    assert places.find(many, NOWHERE).tolist() == list(range(len(many)))
    for post_id in many[::2].tolist():
        places.pop(post_id)
    assert places.find(many, -1).tolist() == [row if row % 2 else -1 for row in range(len(many))]
