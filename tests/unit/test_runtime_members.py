"""Packed members: what goes in comes out, in the format of the contract."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import members
from runtime.ids import MAX_ID

identifiers = st.integers(0, MAX_ID)
rows = st.lists(st.tuples(identifiers, identifiers, identifiers), max_size=50)


@given(rows=rows)
def test_what_was_packed_is_unpacked(rows: list[tuple[int, int, int]]) -> None:
    packed = members.pack(rows)
    assert len(packed) == members.MEMBER_BYTES * len(rows)
    unpacked = members.unpack(packed)
    assert unpacked.shape == (len(rows), 3)
    assert unpacked.dtype == np.int64
    assert [tuple(row) for row in unpacked.tolist()] == rows
    assert members.pack(unpacked) == packed
    assert members.pack(row for row in rows) == packed


@given(rows=rows)
def test_a_member_is_three_big_endian_numbers_of_seven_bytes(rows: list[tuple[int, int, int]]) -> None:
    assert members.pack(rows) == b"".join(number.to_bytes(7, "big") for row in rows for number in row)
    assert members.pack(rows) == b"".join(members.pack_one(*row) for row in rows)


@given(rows=rows)
def test_an_array_is_packed_however_it_lies_in_memory(rows: list[tuple[int, int, int]]) -> None:
    array = np.array(rows, dtype=np.int64).reshape(-1, 3)
    expected = members.pack(rows)
    assert members.pack(array) == expected
    assert members.pack(np.asfortranarray(array)) == expected
    assert members.pack(array[::-1]) == members.pack(rows[::-1])
    assert members.pack(array[::2]) == members.pack(rows[::2])


def test_what_is_unpacked_can_be_changed() -> None:
    unpacked = members.unpack(members.pack([(1, 2, 3)]))
    unpacked[0, 0] = 7
    assert members.pack(unpacked) == members.pack([(7, 2, 3)])


@given(length=st.integers(1, 200).filter(lambda length: length % members.MEMBER_BYTES))
def test_a_broken_member_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"reshape|multiple"):
        members.unpack(bytes(length))
