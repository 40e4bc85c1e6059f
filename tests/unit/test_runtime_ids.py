"""Ids carry their time and sort by it."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from runtime import ids

identifiers = st.integers(0, ids.MAX_ID)


@given(identifier=identifiers)
def test_an_id_carries_its_time_in_milliseconds(identifier: int) -> None:
    assert ids.timestamp(identifier).ToMilliseconds() == ids.time_ms(identifier)
    assert ids.time_ms(identifier) >= ids.EPOCH_MS


@given(one=identifiers, other=identifiers)
def test_ids_sort_by_time(one: int, other: int) -> None:
    if one <= other:
        assert ids.time_ms(one) <= ids.time_ms(other)


def test_the_first_and_the_last_id() -> None:
    assert ids.timestamp(0).ToDatetime(UTC) == datetime(2024, 1, 1, tzinfo=UTC)
    assert ids.timestamp(1 << ids.SEQUENCE_BITS).ToDatetime(UTC) == datetime(2024, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)
    assert ids.timestamp(ids.MAX_ID).ToDatetime(UTC).year == 2093
