"""Cursors: what was sealed opens, for its scope alone, and nothing else opens."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import InvalidArgument
from runtime.ids import MAX_ID
from runtime.paging import MAX_CURSOR_CHARACTERS, Cursors

CURSORS = Cursors("a secret of at least 32 characters")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
scopes = st.tuples(st.sampled_from(["posts", "comments", "posts', 1"]), st.integers(0, MAX_ID), st.integers(0, MAX_ID))
payloads = st.binary(max_size=300)


def refused(scope: tuple[str | int, ...], cursor: str, cursors: Cursors = CURSORS) -> None:
    with pytest.raises(InvalidArgument) as caught:
        cursors.open(scope, cursor)
    assert caught.value.reason == "INVALID_CURSOR"
    assert [field for field, _ in caught.value.fields] == ["cursor"]


@given(scope=scopes, payload=payloads)
def test_what_was_sealed_opens(scope: tuple[str, int, int], payload: bytes) -> None:
    cursor = CURSORS.seal(scope, payload)
    assert set(cursor) <= set(ALPHABET)
    assert CURSORS.open(scope, cursor) == payload


@given(last_id=st.integers(0, MAX_ID))
def test_an_id_comes_back(last_id: int) -> None:
    assert CURSORS.open_id(("posts",), CURSORS.seal_id(("posts",), last_id), first=-1) == last_id
    assert CURSORS.open_id(("posts",), "", first=7) == 7


@given(scope=scopes, other=scopes, payload=payloads)
def test_another_scope_does_not_open_it(
    scope: tuple[str, int, int], other: tuple[str, int, int], payload: bytes
) -> None:
    if scope != other:
        refused(other, CURSORS.seal(scope, payload))


@given(payload=payloads)
def test_another_secret_does_not_open_it(payload: bytes) -> None:
    refused(("posts",), CURSORS.seal(("posts",), payload), Cursors("b secret of at least 32 characters"))


@given(payload=payloads, data=st.data())
def test_any_flipped_bit_is_found(payload: bytes, data: st.DataObject) -> None:
    cursor = CURSORS.seal(("posts",), payload)
    sealed = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    refused(("posts",), base64.urlsafe_b64encode(sealed).rstrip(b"=").decode())


@given(payload=payloads, data=st.data())
def test_any_changed_character_is_found(payload: bytes, data: st.DataObject) -> None:
    cursor = CURSORS.seal(("posts",), payload)
    at = data.draw(st.integers(0, len(cursor) - 1))
    other = data.draw(st.sampled_from([*ALPHABET, *"+/= \n\0ä"]).filter(lambda character: character != cursor[at]))
    refused(("posts",), cursor[:at] + other + cursor[at + 1 :])


@pytest.mark.parametrize("length", range(1, 7))
def test_no_other_spelling_of_a_cursor_opens(length: int) -> None:
    cursor = CURSORS.seal(("posts",), b"\xff" * length)
    for last in ALPHABET:
        if last != cursor[-1]:
            refused(("posts",), cursor[:-1] + last)
    for spelling in (cursor + "=", cursor + "==", cursor.replace("_", "/")):
        refused(("posts",), spelling)


@given(payload=payloads, data=st.data())
def test_a_cut_cursor_does_not_open(payload: bytes, data: st.DataObject) -> None:
    cursor = CURSORS.seal(("posts",), payload)
    start = data.draw(st.integers(0, len(cursor)))
    end = data.draw(st.integers(start, len(cursor)))
    if end - start < len(cursor):
        refused(("posts",), cursor[start:end])


@given(payload=payloads, more=st.text(min_size=1, max_size=20))
def test_a_cursor_with_more_does_not_open(payload: bytes, more: str) -> None:
    cursor = CURSORS.seal(("posts",), payload)
    refused(("posts",), cursor + more)
    refused(("posts",), more + cursor)


@given(text=st.text(max_size=200))
def test_a_text_is_no_cursor(text: str) -> None:
    refused(("posts",), text)


def test_a_cursor_has_a_bound_that_the_largest_payload_keeps() -> None:
    largest = bytes(6_000)
    cursor = CURSORS.seal(("posts",), largest)
    assert len(cursor) <= MAX_CURSOR_CHARACTERS
    assert CURSORS.open(("posts",), cursor) == largest
    refused(("posts",), CURSORS.seal(("posts",), bytes(MAX_CURSOR_CHARACTERS)))
