"""Lists in Redis: what each function does in one step, and that no crossing of builders, pushes, merges loses posts."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import numpy as np
import pytest
import pytest_asyncio
from redis.exceptions import ResponseError

from launch.valkey import Running as Valkey
from runtime import redis
from runtime.members import Members
from services.timeline.timelines import NOTHING, Timeline, Timelines, author_key, home_key
from tests.integration.timeline_stores import ACTIVE_S, settings

EPOCH = 7
READER = 64
KEY = home_key(READER)
AUTHOR = 5
HORIZON = 100


@pytest_asyncio.fixture
async def timelines(valkey: Valkey) -> AsyncIterator[Timelines]:
    """The functions, on an empty Redis, with lists of ten."""
    async with redis.connect(settings(valkey.url)) as client:
        await client.flushall()
        yield Timelines(client, ACTIVE_S, cap=10, slack=3)


def rows(post_ids: Iterable[int]) -> Members:
    """Posts of one author."""
    return np.array([(post_id, AUTHOR, post_id) for post_id in post_ids], dtype=np.int64).reshape(-1, 3)


def falling(first: int, last: int) -> Members:
    """Posts with these ids, newest first."""
    return rows(range(first, last - 1, -1))


async def held(timelines: Timelines, key: str = KEY) -> tuple[list[int], int]:
    """What a list holds, which must be newest first, each once, and above the floor; and the floor."""
    timeline = await timelines.read(key)
    assert timeline is not None
    assert timeline.whole
    found = timeline.rows[:, 0].tolist()
    assert found == sorted(set(found), reverse=True)
    assert not found or found[-1] > timeline.floor
    return found, timeline.floor


async def length(timelines: Timelines) -> int:
    """How many members there are, of whatever list."""
    timeline = await timelines.read(KEY)
    return len(timeline.rows) if timeline is not None else 0


async def make(timelines: Timelines, of: Members, floor: int = 0, horizon: int = HORIZON) -> int:
    """A list that covers all above the floor; its incarnation."""
    made = await timelines.create(KEY, EPOCH)
    assert await timelines.fill(KEY, made.incarnation, of, floor, horizon)
    return made.incarnation


async def test_a_push_reaches_only_lists_that_are_there(timelines: Timelines) -> None:
    await make(timelines, rows([]))
    others = range(1000, 1100)
    assert await timelines.push("home", [([*others, READER], rows([3, 4]))]) == 2
    assert await timelines.push("author", [([READER], rows([5]))]) == 0
    assert await held(timelines) == ([4, 3], 0)
    assert not any(await timelines.read_all(dict.fromkeys(map(home_key, others))))


async def test_what_is_not_read_expires_and_reading_renews_it(timelines: Timelines) -> None:
    await make(timelines, rows([1]))
    assert ACTIVE_S - 5 <= await timelines.client.ttl(KEY) <= ACTIVE_S
    await timelines.client.expire(KEY, 10)
    await timelines.push("home", [([READER], rows([2]))])
    assert await timelines.client.ttl(KEY) <= 10
    await timelines.read(KEY)
    assert await timelines.client.ttl(KEY) > 10
    await timelines.client.expire(KEY, 10)
    await timelines.push("home", [([READER], rows(range(3, 30)))])
    assert await timelines.client.ttl(KEY) <= 10, "a trim keeps the time to live"


async def test_a_list_keeps_the_newest_and_says_what_it_cut_off(timelines: Timelines) -> None:
    await make(timelines, rows([]))
    for post_id in range(1, 40):
        await timelines.push("home", [([READER], rows([post_id]))])
        found, floor = await held(timelines)
        assert len(found) <= 13
        assert found == list(range(post_id, floor, -1))
    assert floor > 0


async def test_a_trim_of_an_unordered_list_leaves_no_hole(timelines: Timelines) -> None:
    chance = random.Random(1)
    for _ in range(50):
        await timelines.client.flushall()
        await make(timelines, rows([]))
        pushed: set[int] = set()
        for _ in range(40):
            batch = [chance.randrange(1, 60) for _ in range(chance.randrange(1, 4))]
            pushed.update(batch)
            await timelines.push("home", [([READER], rows(batch))])
            found, floor = await held(timelines)
            assert found == sorted((post_id for post_id in pushed if post_id > floor), reverse=True)
            assert len(found) <= 13


async def test_a_list_that_is_being_built_takes_pushes_and_covers_nothing(timelines: Timelines) -> None:
    made = await timelines.create(KEY, EPOCH)
    assert made.covers_nothing
    await timelines.push("home", [([READER], rows([9, 8]))])
    between = await timelines.read(KEY)
    assert between is not None
    assert between.covers_nothing
    assert await timelines.fill(KEY, made.incarnation, falling(8, 5), 4, HORIZON)
    assert await held(timelines) == ([9, 8, 7, 6, 5], 4)


async def test_a_builder_that_dies_leaves_a_list_that_the_next_reader_builds(timelines: Timelines) -> None:
    died = await timelines.create(KEY, EPOCH)
    await timelines.push("home", [([READER], rows([9]))])
    found = await timelines.read(KEY)
    assert found is not None
    assert found.covers_nothing
    taken_over = await timelines.create(KEY, EPOCH)
    assert taken_over.incarnation == died.incarnation
    assert await timelines.fill(KEY, taken_over.incarnation, rows([9, 8, 7]), 0, HORIZON)
    assert await held(timelines) == ([9, 8, 7], 0)


async def test_a_slow_builder_changes_nothing_where_another_was_faster(timelines: Timelines) -> None:
    slow = await timelines.create(KEY, EPOCH)
    await make(timelines, falling(9, 1))
    for post_id in range(10, 30):
        await timelines.push("home", [([READER], rows([post_id]))])
    before = await held(timelines)
    # It read Postgres before 10 to 29 were written, and some of those were cut off since.
    assert not await timelines.fill(KEY, slow.incarnation, falling(9, 1), 0, HORIZON)
    assert await held(timelines) == before


async def test_a_slow_builder_fills_no_later_list(timelines: Timelines) -> None:
    slow = await timelines.create(KEY, EPOCH)
    await timelines.client.delete(KEY)  # expired
    await timelines.create(KEY, EPOCH)
    assert not await timelines.fill(KEY, slow.incarnation, falling(9, 1), 0, HORIZON)
    found = await timelines.read(KEY)
    assert found is not None
    assert found.covers_nothing


async def test_a_list_that_takes_too_many_pushes_while_it_is_built_is_given_up(timelines: Timelines) -> None:
    made = await timelines.create(KEY, EPOCH)
    for post_id in range(1, 40):
        await timelines.push("home", [([READER], rows([post_id]))])
    assert await length(timelines) <= 30
    assert not await timelines.fill(KEY, made.incarnation, rows([]), 0, HORIZON)
    assert await timelines.read(KEY) is None


async def test_lists_of_an_earlier_epoch_are_made_anew_and_later_ones_left(timelines: Timelines) -> None:
    await make(timelines, falling(5, 1))
    later = await timelines.create(KEY, EPOCH + 1)
    assert (later.covers_nothing, later.epoch) == (True, EPOCH + 1)
    earlier = await timelines.create(KEY, EPOCH)
    assert (earlier.incarnation, earlier.epoch) == (later.incarnation, EPOCH + 1)


async def test_one_incarnation_is_replaced_once(timelines: Timelines) -> None:
    incarnation = await make(timelines, falling(5, 1))
    first = await timelines.create(KEY, EPOCH, replaced=incarnation)
    second = await timelines.create(KEY, EPOCH, replaced=incarnation)
    assert first.covers_nothing
    assert second.incarnation == first.incarnation


async def test_a_merge_adds_above_the_floor_and_raises_the_horizon(timelines: Timelines) -> None:
    incarnation = await make(timelines, rows([20, 18, 16]), floor=10)
    assert await timelines.merge([KEY], rows([19, 17, 9]), 0, incarnation=incarnation, horizon=HORIZON + 1) == 1
    found = await timelines.read(KEY)
    assert found is not None
    assert found.rows[:, 0].tolist() == [20, 19, 18, 17, 16]
    assert (found.floor, found.horizon, found.incarnation) == (10, HORIZON + 1, incarnation)


async def test_a_merge_of_part_of_what_an_author_wrote_raises_the_floor(timelines: Timelines) -> None:
    await make(timelines, rows([20, 18, 12]), floor=10)
    await timelines.merge([KEY], rows([19, 17]), 15)
    assert await held(timelines) == ([20, 19, 18, 17], 15)


async def test_a_merge_that_overfills_a_list_cuts_it(timelines: Timelines) -> None:
    await make(timelines, rows(range(40, 20, -2)))
    await timelines.merge([KEY], rows(range(41, 21, -2)), 0)
    assert await held(timelines) == (list(range(41, 31, -1)), 31)


async def test_a_merge_into_another_incarnation_does_nothing(timelines: Timelines) -> None:
    incarnation = await make(timelines, rows([20]), floor=10)
    await timelines.client.delete(KEY)
    await make(timelines, rows([20]), floor=5)
    assert await timelines.merge([KEY], rows([19]), 0, incarnation=incarnation, horizon=HORIZON + 1) == 0
    found = await timelines.read(KEY)
    assert found is not None
    assert found.horizon == HORIZON
    assert await held(timelines) == ([20], 5)


async def test_a_merge_into_a_list_that_is_being_built_is_in_it_once_it_is_built(timelines: Timelines) -> None:
    # An author came back from pull after the builder had read Postgres: only the merge knows of their post.
    made = await timelines.create(KEY, EPOCH)
    await timelines.merge([KEY], rows([30, 3]), 0)
    assert await timelines.fill(KEY, made.incarnation, rows([20]), 10, HORIZON)
    assert await held(timelines) == ([30, 20], 10)


async def test_a_list_that_nobody_builds_takes_a_bounded_number_of_merges(timelines: Timelines) -> None:
    await timelines.create(KEY, EPOCH)
    for author in range(10):
        await timelines.merge([KEY], rows(range(author * 10 + 1, author * 10 + 10)), 0)
        assert await length(timelines) <= 30
    await timelines.merge([KEY], rows([200]), 0)
    assert await timelines.read(KEY) is None


async def test_a_partial_merge_into_a_list_that_is_being_built_has_it_built_again(timelines: Timelines) -> None:
    made = await timelines.create(KEY, EPOCH)
    await timelines.merge([KEY], rows([30]), 25)
    assert not await timelines.fill(KEY, made.incarnation, rows([20]), 10, HORIZON)


async def test_a_server_that_lost_its_functions_gets_them_again(timelines: Timelines) -> None:
    await make(timelines, rows([1]))
    await timelines.client.function_flush()
    assert await held(timelines) == ([1], 0)
    await timelines.client.function_flush()
    assert [each is not None for each in await timelines.read_all(dict.fromkeys((KEY, author_key(1))))] == [True, False]


@pytest.mark.parametrize("post_id", [1, 2**41, NOTHING - 1])
async def test_ids_of_every_size_go_through_the_functions_unharmed(timelines: Timelines, post_id: int) -> None:
    await make(timelines, rows([post_id]), floor=post_id - 1, horizon=post_id)
    for number in range(post_id - 20, post_id):
        if number > 0:
            await timelines.push("home", [([READER], rows([number]))])
    found = await timelines.read(KEY)
    assert found is not None
    assert (found.floor, found.horizon, found.epoch) == (post_id - 1, post_id, EPOCH)
    assert post_id in found.rows[:, 0]


async def test_the_newest_of_a_list_say_down_to_where_they_are_all(timelines: Timelines) -> None:
    await make(timelines, falling(29, 20), floor=10)
    whole = await timelines.read(KEY)
    assert whole is not None
    assert (whole.whole, whole.covered_above) == (True, 10)
    keys = [home_key(1), KEY, author_key(READER)]
    for newest, covered_above in ((1, 28), (4, 25), (9, 20), (10, 10), (11, 10)):
        absent, cut, other = await timelines.read_all(dict.fromkeys(keys, newest))
        assert absent is other is None
        assert cut is not None
        assert cut.rows.tolist() == whole.rows[:newest].tolist()
        assert (cut.whole, cut.covered_above, cut.floor) == (newest >= 10, covered_above, 10)


async def test_the_newest_of_what_covers_nothing_cover_nothing(timelines: Timelines) -> None:
    await timelines.create(KEY, EPOCH)
    await timelines.push("home", [([READER], rows([9, 8, 7]))])
    found = await timelines.read(KEY, newest=1)
    assert found is not None
    assert found.covers_nothing
    assert found.covered_above == NOTHING


@pytest.mark.parametrize("cap", [10, 100])
async def test_members_come_newest_first_and_once_in_whatever_order_they_came(timelines: Timelines, cap: int) -> None:
    chance = random.Random(cap)
    own = Timelines(timelines.client, ACTIVE_S, cap=cap, slack=cap // 4)
    for _ in range(10):
        await own.client.flushall()
        floor = chance.randrange(2**40)
        made = await own.create(KEY, EPOCH)
        known = {floor + chance.randrange(1, 1000) for _ in range(cap // 2)}
        assert await own.fill(KEY, made.incarnation, rows(known), floor, HORIZON)
        for _ in range(40):
            around = chance.choice([max(known), floor + 500, floor])
            batch = [max(1, around + chance.randrange(-20, 20)) for _ in range(chance.randrange(1, 5))]
            known.update(batch)
            if chance.random() < 0.2:
                await own.merge([KEY], rows(batch), 0)
            else:
                await own.push("home", [([READER], rows(batch))])
            found, floor = await held(own)
            assert found == sorted((each for each in known if each > floor), reverse=True)
            assert len(found) <= cap + cap // 4
            known = set(found)


async def test_pushes_that_go_together_reach_each_list_and_no_other(timelines: Timelines) -> None:
    followers = {5: range(64, 64 * 700, 64), 6: range(64, 164), 7: [READER], 8: []}
    users = range(64, 64 * 700, 64)
    for at in range(0, len(users), 100):
        made = [await timelines.create(home_key(user), EPOCH) for user in users[at : at + 100]]
        for user, each in zip(users[at : at + 100], made, strict=True):
            await timelines.fill(home_key(user), each.incarnation, rows([]), 0, HORIZON)
    posts = {author: [(author, author, author), (author + 10, author, author + 10)] for author in followers}
    pushed = await timelines.push("home", [(followers[author], posts[author]) for author in followers])
    there = {author: set(followers[author]).intersection(users) for author in followers}
    assert pushed == 2 * sum(map(len, there.values()))
    found = await timelines.read_all(dict.fromkeys(map(home_key, users)))
    for user, timeline in zip(users, found, strict=True):
        assert timeline is not None
        own = sorted((row for author in followers if user in there[author] for row in posts[author]), reverse=True)
        assert [tuple(row) for row in timeline.rows.tolist()] == own


async def test_a_refusal_leaves_no_answer_for_the_next_command(timelines: Timelines) -> None:
    await make(timelines, rows([1]))
    await timelines.client.rpush(home_key(READER + 1), "what is no timeline")
    for _ in range(3):
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await timelines.push("home", [([READER, READER + 1], rows([2]))])
        assert await held(timelines) == ([2, 1], 0)


async def test_a_list_that_is_as_it_is_known_is_not_sent(timelines: Timelines) -> None:
    known: dict[str, Timeline] = {}

    async def read() -> Timeline:
        [found] = await timelines.read_all({KEY: 4}, known=known)
        assert found is not None
        return found

    made = await timelines.create(KEY, EPOCH)
    changes: list[Callable[[], Awaitable[object]]] = [
        lambda: timelines.push("home", [([READER], rows([2]))]),
        lambda: timelines.fill(KEY, made.incarnation, rows([3, 1]), 0, HORIZON),
        lambda: timelines.push("home", [([READER], rows([9]))]),
        lambda: timelines.push("home", [([READER], rows([7]))]),
        lambda: timelines.merge([KEY], rows([4]), 0),
        lambda: timelines.merge([KEY], rows([]), 0, horizon=HORIZON + 1),
        lambda: timelines.push("home", [([READER], rows(range(20, 30)))]),
    ]
    for change in changes:
        before = known[KEY] = await read()
        assert await read() is before
        await change()
        after, anew = await read(), await timelines.read(KEY, newest=4)
        assert anew is not None
        assert after is not before
        assert after.rows.tolist() == anew.rows.tolist()
    # As many members as before, with the same ends: another list all the same.
    before = known[KEY] = await read()
    taken = before.rows[1:2].tolist()
    assert await timelines.mend(KEY, before.incarnation, removed=taken, added=[(15, AUTHOR, 15)])
    assert await read() is not before
    # What is pushed twice changes nothing.
    known[KEY] = await read()
    await timelines.push("home", [([READER], rows([29]))])
    assert await read() is known[KEY]
