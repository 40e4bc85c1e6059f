"""What a limit comes to: streams that are joined page by page give what a table held as a whole gives."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.timeline import limits
from services.timeline.limits import Read

Stream = dict[int, int]


def paged(stream: Stream, reads: list[int] | None = None) -> Read:
    """A stream, as the services list it."""

    async def read(after: int, page: int) -> tuple[Sequence[int], Sequence[int]]:
        found = sorted(user_id for user_id in stream if user_id > after)[:page]
        if reads is not None:
            reads.append(after)
        return found, [stream[user_id] for user_id in found]

    return read


async def blocks(streams: Sequence[Stream], page: int) -> list[list[int]]:
    """Rows of a join: id, then a value of each stream."""
    found = [block async for block in limits.joined([paged(stream) for stream in streams], page)]
    assert all(0 < block.shape[1] <= page * len(streams) for block in found)
    return [row for block in found for row in block.T.tolist()]


@given(
    st.lists(st.dictionaries(st.integers(1, 40), st.integers(1, 9), max_size=30), min_size=1, max_size=3),
    st.integers(1, 7),
)
async def test_a_join_has_every_id_once_with_the_values_of_all_streams(streams: list[Stream], page: int) -> None:
    everyone = sorted(set().union(*streams))
    expected = [[user_id, *(stream.get(user_id, 0) for stream in streams)] for user_id in everyone]
    assert await blocks(streams, page) == expected


async def test_a_stream_is_read_once_page_by_page() -> None:
    reads: list[int] = []
    found = limits.joined([paged({n: n for n in range(1, 8)}, reads), paged({50: 1})], 3)
    assert sum([block.shape[1] async for block in found]) == 8
    assert reads == [0, 3, 6]


@pytest.mark.parametrize(
    ("followers", "pulled", "then"),
    [
        (100, False, False),
        (101, False, True),
        (101, True, True),
        (100, True, True),
        (90, True, True),
        (89, True, False),
    ],
)
def test_who_is_pulled_stays_pulled_down_to_nine_tenths_of_the_limit(followers: int, pulled: bool, then: bool) -> None:
    assert limits.pulled_with(100, np.array([followers]), np.array([pulled])).tolist() == [then]


@pytest.mark.parametrize("seed", range(20))
async def test_the_figures_are_those_of_a_count_author_by_author(seed: int) -> None:
    chance = random.Random(seed)
    followers = {user_id: chance.randrange(1, 30) for user_id in range(1, 60) if chance.random() < 0.7}
    posts = {user_id: chance.randrange(1, 50) for user_id in range(1, 60) if chance.random() < 0.5}
    pulled = {user_id for user_id in range(1, 60) if chance.random() < 0.3}
    then = chance.choice([0, 5, 10, 20, 100])
    after = {
        user_id
        for user_id in range(1, 60)
        if (followers.get(user_id, 0) >= 0.9 * then if user_id in pulled else followers.get(user_id, 0) > then)
    }

    compared = await limits.compare(
        10, then, paged(followers), paged(posts), paged(dict.fromkeys(pulled, 1)), page=chance.randrange(1, 9)
    )

    def deliveries(without: set[int]) -> int:
        return sum(count * posts.get(user_id, 0) for user_id, count in followers.items() if user_id not in without)

    assert (compared.authors, compared.follows) == (len(followers), sum(followers.values()))
    assert compared.deliveries == deliveries(set())
    assert (compared.to_pull, compared.to_push) == (len(after - pulled), len(pulled - after))
    for figures, limit, whom in ((compared.now, 10, pulled), (compared.then, then, after)):
        assert figures.limit == limit
        assert figures.pulled_authors == len(whom)
        assert figures.pushed_deliveries == deliveries(whom)
        assert figures.pulled_follows == sum(followers.get(user_id, 0) for user_id in whom)
        pushed = [(count, -user_id) for user_id, count in followers.items() if user_id not in whom]
        assert figures.largest_pushed == ((-max(pushed)[1], max(pushed)[0]) if pushed else None)


async def test_nobody_at_all() -> None:
    compared = await limits.compare(10, 5, paged({}), paged({}), paged({}))
    assert compared.deliveries == compared.authors == 0
    assert compared.then.largest_pushed is None


async def test_large_counts_do_not_overflow() -> None:
    compared = await limits.compare(10**9, 10**9, paged({7: 10**9}), paged({7: 10**6}), paged({}))
    assert compared.now.pushed_deliveries == 10**15
    assert compared.now.largest_pushed == (7, 10**9)
