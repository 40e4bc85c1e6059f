"""Coalescing: what goes together, what does not, and that no member takes anything from another."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Sequence

import pytest

from runtime import coalesce, context, errors
from runtime.coalesce import Coalescer


class Batches:
    """Records what is sent together; holds batches up until it is let."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.surroundings: list[tuple[str, float | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, items: Sequence[int]) -> list[int | errors.Error]:
        self.sent.append(list(items))
        self.surroundings.append((context.request_id.get(), context.deadline.get()))
        await self.gate.wait()
        if 13 in items:
            raise ValueError("a defect")
        return [errors.NotFound("POST_NOT_FOUND") if item < 0 else 10 * item for item in items]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.sent) < count:
                await asyncio.sleep(0)


@pytest.fixture
def batches() -> Batches:
    return Batches()


async def test_alone_it_goes_at_once_and_together_what_comes_at_once(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=8)
    assert await call(1) == 10
    assert await asyncio.gather(*map(call, range(5))) == [0, 10, 20, 30, 40]
    assert batches.sent == [[1], [0, 1, 2, 3, 4]]


async def test_what_comes_while_as_many_are_under_way_as_may_be_goes_together_afterwards(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=64, in_flight=2)
    few, many = list(range(1, coalesce.BESIDE)), list(range(100, 100 + 3 * coalesce.BESIDE))
    batches.gate.clear()
    calls = [asyncio.create_task(call(0))]
    await batches.until(1)
    calls += [asyncio.create_task(call(item)) for item in few]
    for _ in range(3):
        await asyncio.sleep(0)
    assert batches.sent == [[0]]
    calls.append(asyncio.create_task(call(coalesce.BESIDE)))
    await batches.until(2)
    calls += [asyncio.create_task(call(item)) for item in many]
    for _ in range(3):
        await asyncio.sleep(0)
    together = [[0], [*few, coalesce.BESIDE]]
    assert batches.sent == together
    batches.gate.set()
    assert await asyncio.gather(*calls) == [10 * item for item in (0, *few, coalesce.BESIDE, *many)]
    assert batches.sent == [*together, many]


async def test_what_fills_a_batch_need_not_be_many(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=10, in_flight=2, weigh=lambda item: item)
    batches.gate.clear()
    calls = [asyncio.create_task(call(1))]
    await batches.until(1)
    gone = asyncio.create_task(call(5))
    calls.append(asyncio.create_task(call(4)))
    for _ in range(3):
        await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    assert batches.sent == [[1]]
    calls.append(asyncio.create_task(call(6)))
    await batches.until(2)
    batches.gate.set()
    assert await asyncio.gather(*calls) == [10, 40, 60]
    assert batches.sent == [[1], [4, 6]]


async def test_a_batch_is_bounded_by_weight_unless_one_item_alone_is_heavier(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=10, weigh=lambda item: item)
    assert await asyncio.gather(*map(call, [4, 6, 1, 99, 2])) == [40, 60, 10, 990, 20]
    assert batches.sent == [[4, 6], [1], [99], [2]]


async def test_one_item_fails_alone_and_a_batch_as_a_whole(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=2)
    results = await asyncio.gather(*map(call, [1, -1, 13, 2, 3]), return_exceptions=True)
    assert results[0] == 10
    assert isinstance(results[1], errors.NotFound)
    assert isinstance(results[2], ValueError)
    assert isinstance(results[3], ValueError)
    assert results[4] == 30


async def test_who_gives_up_takes_nothing_from_the_others(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=8, in_flight=1)
    batches.gate.clear()
    first, gone, late = (asyncio.create_task(call(item)) for item in (1, 2, 3))
    await batches.until(1)
    waiting, never = (asyncio.create_task(call(item)) for item in (4, 5))
    await asyncio.sleep(0)
    for task in (gone, never):
        task.cancel()
    await asyncio.wait([gone, never])
    batches.gate.set()
    assert list(await asyncio.gather(first, late, waiting)) == [10, 30, 40]
    assert batches.sent == [[1, 2, 3], [4]]


async def test_a_batch_that_nobody_waits_for_any_more_is_cancelled(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=8, in_flight=1)
    batches.gate.clear()
    gone = [asyncio.create_task(call(item)) for item in (1, 2)]
    await batches.until(1)
    gone[0].cancel()
    await asyncio.wait(gone[:1])
    later = asyncio.create_task(call(3))
    await asyncio.sleep(0)
    assert batches.sent == [[1, 2]]
    gone[1].cancel()
    await batches.until(2)
    batches.gate.set()
    assert await later == 30


async def test_each_has_its_own_deadline_and_the_batch_the_latest(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=8)
    batches.gate.clear()

    async def within(item: int, seconds: float) -> int:
        context.deadline.set(time.monotonic() + seconds)
        context.request_id.set(f"request-{item}")
        return await call(item)

    hasty, patient = (asyncio.create_task(within(item, seconds)) for item, seconds in ((1, 0.01), (2, 60)))
    with pytest.raises(errors.Unavailable, match="deadline"):
        await hasty
    batches.gate.set()
    assert await patient == 20
    assert batches.sent == [[1, 2]]
    [(request_id, deadline)] = batches.surroundings
    assert request_id == "request-1"
    assert deadline is not None
    assert deadline > time.monotonic() + 50


async def within(call: Coalescer[int, int], item: int, seconds: float) -> int:
    context.deadline.set(time.monotonic() + seconds)
    return await call(item)


async def test_deadlines_are_kept_in_whatever_order_they_come(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=2, in_flight=1)
    batches.gate.clear()
    begun = time.monotonic()

    async def until_late(item: int, seconds: float) -> None:
        with pytest.raises(errors.Unavailable, match="deadline"):
            await within(call, item, seconds)
        assert seconds - 0.001 <= time.monotonic() - begun < seconds + 2

    async with asyncio.timeout(5):
        await asyncio.gather(*(until_late(item, seconds) for item, seconds in enumerate((0.3, 0.1, 0.2, 0.1, -1.0))))
    batches.gate.set()
    assert await within(call, 5, 60) == 50


async def test_a_batch_whose_members_are_all_late_is_cancelled(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=2, in_flight=1)
    batches.gate.clear()
    late = [asyncio.create_task(within(call, item, 0.05 * item)) for item in (1, 2)]
    await batches.until(1)
    next_one = asyncio.create_task(within(call, 3, 60))
    await batches.until(2)
    assert all(isinstance(each, errors.Unavailable) for each in await asyncio.gather(*late, return_exceptions=True))
    batches.gate.set()
    assert await next_one == 30


async def test_what_has_been_handed_out_is_not_kept(batches: Batches) -> None:
    class Result:
        pass

    async def send(items: Sequence[int]) -> list[Result]:
        return [Result() for _ in items]

    call = Coalescer("test", send, max_weight=8)
    gc.collect()
    gc.disable()
    try:
        results = [weakref.ref(each) for each in await asyncio.gather(*map(call, range(3)))]
        await asyncio.sleep(0)
        assert [each() for each in results] == [None] * 3
    finally:
        gc.enable()


async def test_a_batch_that_is_ended_before_it_begins_leaves_its_room(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=1, in_flight=1)

    async def hurried(item: int) -> int:
        context.deadline.set(time.monotonic() + 0.01)
        return await call(item)

    async def stall() -> None:
        # The deadline passes in the very turn of the loop in which the batch is made.
        time.sleep(0.05)  # noqa: ASYNC251

    for item in range(5):
        late, _ = await asyncio.gather(hurried(item), stall(), return_exceptions=True)
        assert isinstance(late, errors.Unavailable) or late == 10 * item
        assert call._under_way == 0
    async with asyncio.timeout(5):
        assert await call(7) == 70


async def test_too_many_that_wait_are_refused(batches: Batches) -> None:
    call = Coalescer("test", batches.send, max_weight=1, in_flight=1, max_waiting=2)
    batches.gate.clear()
    under_way = asyncio.create_task(call(1))
    await batches.until(1)
    waiting = [asyncio.create_task(call(item)) for item in (2, 3)]
    await asyncio.sleep(0)
    with pytest.raises(errors.Unavailable, match="too many"):
        await call(4)
    batches.gate.set()
    assert await asyncio.gather(under_way, *waiting) == [10, 20, 30]
