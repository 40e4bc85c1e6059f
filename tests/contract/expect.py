"""What the suites share: expecting a refusal, reading a listing to its end, bad cursors, sending a write twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from google.protobuf.message import Message

from runtime import errors

MAX_ID = 2**53 - 1
OUT_OF_RANGE = (0, -1, MAX_ID + 1, -(2**63), 2**63 - 1)
"""What is no id."""

BAD_CURSORS = ("x", "AAAA", "A" * 31, "ä", "=", "\x00", "A" * 10_000, "0", "null", "-", "+/+/")


@contextmanager
def refusal(kind: type[errors.Error], reason: str, *fields: str) -> Iterator[None]:
    """Expects that the block is refused: with this kind of error and reason, and with exactly these fields named."""
    with pytest.raises(errors.Error) as caught:
        yield
    error = caught.value
    assert (type(error), error.reason, tuple(field for field, _ in error.fields)) == (kind, reason, fields)
    assert all(detail for _, detail in error.fields)
    assert error.message


class Page(NamedTuple):
    """A page of a listing."""

    rows: Sequence[int]
    next_cursor: str | None


def page_of(response: Any, field: str, key: str) -> Page:
    """The ids in a listing's response."""
    rows = [int(getattr(row, key)) for row in getattr(response, field)]
    return Page(rows, response.next_cursor if response.HasField("next_cursor") else None)


async def read_to_end(
    read: Callable[[str], Awaitable[Page]], limit: int, meanwhile: Callable[[], Awaitable[Any]] | None = None
) -> list[int]:
    """All rows of a listing, page by page; something may happen between two pages, at most ten times."""
    rows: list[int] = []
    cursor = ""
    for turn in range(1_000):
        page = await read(cursor)
        assert len(page.rows) <= limit
        rows += page.rows
        if page.next_cursor is None:
            return rows
        assert len(page.rows) == limit, "a page before the last is full"
        cursor = page.next_cursor
        if meanwhile is not None and turn < 10:
            await meanwhile()
    raise AssertionError("the listing does not end")


def damaged(cursor: str) -> list[str]:
    """What is left of a cursor after it was cut or changed, and what never was one."""
    at = range(0, len(cursor) - 1, 5)
    forged = [cursor[:n] + ("A" if cursor[n] != "A" else "B") + cursor[n + 1 :] for n in at]
    return [*(cursor[:n] for n in at if n), *forged, *BAD_CURSORS]


async def both(call: Callable[[Any], Awaitable[Message]], request: Message) -> list[Message]:
    """Sends one request with a key twice at the same time: the answers; one of them may have met the other running."""
    answers = await asyncio.gather(call(request), call(request), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            assert isinstance(answer, errors.Conflict), answer
            assert answer.reason == "REQUEST_IN_PROGRESS"
    given = [answer for answer in answers if isinstance(answer, Message)]
    assert given, "one of the two is answered"
    return given
