"""What ranking remembers: which posts the columns answer for, and what they say of them; affinities; what is asked."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedmesh.event.v1 import event_pb2
from feedmesh.post.v1 import post_pb2
from runtime import ids
from services.ranking import affinities as affinities_module
from services.ranking.affinities import Affinities, affinity
from services.ranking.affinities import weights as affinity_weights
from services.ranking.columns import NOTHING, Columns, Table
from services.ranking.features import gather
from services.ranking.follow import concerns
from services.ranking.memory import FRESH_S, Memory
from tests.fakes.graph import FakeGraph
from tests.fakes.post import Entry, FakePost

NOW = 1_800_000_000_000
HOUR = 3_600_000
VIEWER = 7

Batches = list[dict[int, int]]
batches: st.SearchStrategy[Batches] = st.lists(st.dictionaries(st.integers(1, 40), st.integers(0, 3), max_size=12))


def likes(*counts: float) -> Table:
    """Engagement of nothing but likes."""
    return np.array([(count, 0, 0, 0) for count in counts], dtype=np.float64).reshape(-1, 4)


@given(batches)
def test_columns_know_all_above_the_horizon_and_nothing_below(stored: Batches) -> None:
    columns, truth, horizon = Columns(capacity=8), dict.fromkeys(range(1, 41), 0), 0
    for batch in stored:
        columns.store(list(batch), likes(*batch.values()), NOW)
        truth.update(batch)
        assert columns.horizon >= horizon
        assert len(columns) <= 8
        horizon = columns.horizon
    found, unknown = columns.gather(np.array(list(truth)), NOW)
    assert unknown.tolist() == [post_id <= horizon for post_id in truth]
    assert found[:, 0].tolist() == [0 if post_id <= horizon else count for post_id, count in truth.items()]


def test_the_oldest_go_first() -> None:
    columns = Columns(capacity=3)
    columns.store([10, 30, 20], likes(1, 3, 2), NOW)
    columns.store([40], likes(4), NOW)
    found, unknown = columns.gather(np.array([40, 30, 20, 10, 5, 35]), NOW)
    assert columns.horizon == 10
    assert found[:, 0].tolist() == [4, 3, 2, 0, 0, 0]
    assert unknown.tolist() == [False, False, False, True, True, False]
    # What has no engagement any more makes room.
    columns.store([30], likes(0), NOW)
    columns.store([50], likes(5), NOW)
    assert columns.horizon == 10


def test_heat_halves_every_hour_and_never_grows() -> None:
    columns = Columns()
    columns.store([1, 2], np.array([(1, 2, 3, 8), (4, 5, 6, 0)], dtype=np.float64), NOW)
    assert columns.gather(np.array([2, 1]), NOW + 2 * HOUR)[0].tolist() == [[4, 5, 6, 0], [1, 2, 3, 2]]
    assert columns.gather(np.array([1]), NOW - HOUR)[0][0, 3] == 8
    # Gathering changes nothing.
    assert columns.gather(np.array([1]), NOW)[0][0, 3] == 8


def test_nothing_covers_nothing() -> None:
    found, unknown = NOTHING.gather(np.array([1, ids.MAX_ID]), NOW)
    assert not found.any()
    assert unknown.all()


def answer(weights: dict[int, float]) -> post_pb2.BatchGetEngagementResponse.Item:
    """An answer with affinities only."""
    return post_pb2.BatchGetEngagementResponse.Item(affinity_author_ids=weights, affinities=weights.values())


@given(st.dictionaries(st.integers(1, 30), st.integers(1, 9)), st.lists(st.integers(1, 30)))
def test_affinities_by_author(weights: dict[int, float], authors: list[int]) -> None:
    others = [affinity(answer(dict.fromkeys(range(1, 9), 7.0))), affinity(answer({}))]
    places = np.full(len(authors), 1)
    found = affinity_weights(
        [others[0], affinity(answer(weights)), others[1]], places, np.array(authors, dtype=np.int64)
    )
    assert found.tolist() == [weights.get(author, 0) for author in authors]


def test_an_answer_is_kept_unless_the_viewer_did_something_meanwhile() -> None:
    known = Affinities()
    ticket = known.ask(VIEWER)
    assert known.get(VIEWER) is None
    kept = affinity(answer({1: 1}))
    known.keep(VIEWER, ticket, kept)
    assert known.get(VIEWER) is kept

    for forget in (lambda: known.drop(VIEWER), known.clear, lambda: known.ask(VIEWER)):
        ticket = known.ask(VIEWER)
        forget()
        known.keep(VIEWER, ticket, affinity(answer({1: 2})))
        assert known.get(VIEWER) is None


def test_affinities_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinities_module, "CAPACITY", 100)
    known = Affinities()
    for viewer_id in (1, 2, 3):
        known.keep(viewer_id, known.ask(viewer_id), affinity(answer({1: 1})))
    assert [known.get(viewer_id) is not None for viewer_id in (1, 2, 3)] == [False, True, True]


@dataclass
class Asked:
    """The post service in memory, and what ranking asked it: viewers and posts."""

    post: FakePost
    items: list[tuple[int, list[int]]] = field(default_factory=list)

    async def BatchGetEngagement(
        self, request: post_pb2.BatchGetEngagementRequest
    ) -> post_pb2.BatchGetEngagementResponse:
        self.items += [(item.viewer_id, list(item.post_ids)) for item in request.items]
        return await self.post.BatchGetEngagement(request, None)


def liked_posts() -> FakePost:
    """Posts 10, 20, 30 and 55 with 1, 2, 3 and 5 likes; viewers 7 and 8 like five other posts of author 1."""
    post = FakePost(FakeGraph(), clock=lambda: NOW)
    for post_id, author_id in ((10, 1), (20, 1), (30, 2), (55, 1)):
        post.posts[post_id] = Entry(post_id, author_id, "words")
        post.likes |= {(post_id, 100 + liker): 1 for liker in range(post_id // 10)}
    for post_id in range(1, 6):
        post.posts[post_id] = Entry(post_id, 1, "words")
        post.likes |= {(post_id, VIEWER): 1, (post_id, 8): 1}
    return post


CANDIDATES = np.array([(55, 1, 55), (41, 2, 30), (20, 1, 20), (10, 1, 10), (30, 2, 30)])
"""Of two viewers: three, then two."""
VIEWERS = [(VIEWER, slice(0, 3)), (8, slice(3, 5))]


async def features(memory: Memory) -> tuple[list[float], list[float], list[tuple[int, list[int]]]]:
    """Likes and affinities of the candidates, and what was asked for them."""
    post = Asked(liked_posts())
    found = await gather(cast(Any, post), lambda: NOW, memory, VIEWERS, CANDIDATES)
    assert found.age_h.tolist() == [(NOW - ids.time_ms(post_id)) / HOUR for post_id in CANDIDATES[:, 0].tolist()]
    return found.likes.tolist(), found.affinity.tolist(), post.items


async def test_only_what_the_memory_does_not_know_is_asked() -> None:
    truth = [5, 3, 2, 1, 3], [5, 0, 5, 5, 0]
    everything = [(VIEWER, [55, 30, 20]), (8, [10, 30])]

    # A memory that nobody fills, as where there is no Redis.
    assert await features(Memory()) == (*truth, everything)

    columns = Columns(capacity=2)
    columns.store([20, 30, 55], likes(2, 3, 5), NOW)
    assert columns.horizon == 20
    memory = Memory(columns, looked_at=time.monotonic())
    assert await features(memory) == (*truth, [(VIEWER, [20]), (8, [10])])
    # The affinities are known now, so only older posts are asked for.
    assert await features(memory) == (*truth, [(0, [20]), (0, [10])])
    memory.affinities.drop(8)
    assert await features(memory) == (*truth, [(0, [20]), (8, [10])])

    # What is not up to date is not used, and not added to.
    memory.looked_at -= FRESH_S
    assert await features(memory) == (*truth, everything)
    assert await features(memory) == (*truth, everything)

    memory.looked_at = time.monotonic()
    memory.columns = NOTHING
    assert await features(memory) == (*truth, [(0, [55, 30, 20]), (0, [10, 30])])


async def test_nothing_is_asked_for_nobody() -> None:
    post = Asked(liked_posts())
    found = await gather(cast(Any, post), lambda: NOW, Memory(), [], np.empty((0, 3), np.int64))
    assert len(found.affinity) == len(found.likes) == 0
    assert not post.items


@pytest.mark.parametrize(
    ("event", "posts", "user"),
    [
        (event_pb2.Event(like_changed=event_pb2.LikeChanged(post_id=1, author_id=2, user_id=3)), {1}, 3),
        (event_pb2.Event(comment_created=event_pb2.CommentCreated(post_id=1, author_id=2, user_id=3)), {1}, 3),
        (event_pb2.Event(comment_deleted=event_pb2.CommentDeleted(comment_id=4, post_id=1, user_id=3)), {1}, 3),
        (event_pb2.Event(post_created=event_pb2.PostCreated(post_id=1, author_id=2, original_id=1)), set(), 0),
        (
            event_pb2.Event(
                post_created=event_pb2.PostCreated(post_id=1, author_id=2, original_id=5, shared_post_id=5)
            ),
            {5},
            2,
        ),
        (event_pb2.Event(post_deleted=event_pb2.PostDeleted(post_id=1, author_id=2)), {1}, 0),
        (event_pb2.Event(post_deleted=event_pb2.PostDeleted(post_id=1, author_id=2, shared_post_id=5)), {1, 5}, 2),
        (event_pb2.Event(user_created=event_pb2.UserCreated(user_id=1)), set(), 0),
        (event_pb2.Event(), set(), 0),
    ],
)
def test_what_an_event_concerns(event: event_pb2.Event, posts: set[int], user: int) -> None:
    post_ids, user_id = concerns(event)
    assert set(post_ids) - {0} == posts
    assert user_id == user
