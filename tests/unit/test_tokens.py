"""Tokens of live updates: what was told moves them on, and never back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.hub import as_text, token_of
from runtime import streams, tokens

NUMBERS = tuple(10 * partition for partition in range(streams.PARTITIONS))
TOKEN = tokens.pack(b"store-id", NUMBERS)


def test_a_token_says_what_it_was_made_of() -> None:
    assert tokens.unpack(TOKEN) == (b"store-id", NUMBERS)
    for strange in (b"", b"?", TOKEN[:-1], TOKEN + b"x"):
        assert tokens.unpack(strange) is None
        assert tokens.moved(strange, streams.PARTITIONS - 1, 99) in (strange, tokens.moved(TOKEN, 3, 99) + b"x")


def test_an_event_moves_the_number_of_its_partition_alone_and_an_old_one_none() -> None:
    for partition, number in enumerate(NUMBERS):
        moved = tokens.unpack(tokens.moved(TOKEN, partition, number + 5))
        assert moved == (b"store-id", (*NUMBERS[:partition], number + 5, *NUMBERS[partition + 1 :]))
        for old in (number, max(number - 1, 0)):
            assert tokens.moved(TOKEN, partition, old) == TOKEN


@given(st.binary(max_size=60), st.integers(0, streams.PARTITIONS - 1), st.integers(0, 2**64 - 1))
def test_any_bytes_are_a_token_or_none(token: bytes, partition: int, number: int) -> None:
    unpacked = tokens.unpack(token)
    assert unpacked is None or tokens.pack(*unpacked) == token
    assert len(tokens.moved(token, partition, number)) == len(token)


@given(st.text(max_size=100))
def test_any_text_of_a_client_is_a_token_of_bounded_length(text: str) -> None:
    assert len(token_of(text)) <= 64
    assert token_of(as_text(TOKEN).decode()) == TOKEN
