"""Acts of several services as one listing: none is passed over, whichever service had more to tell."""

from __future__ import annotations

import itertools

import pytest

from services.timeline.notifications import Act, Kind, grouped, merged

LIKED, FOLLOWED = Kind.NOTIFICATION_KIND_LIKED, Kind.NOTIFICATION_KIND_FOLLOWED


def acts(kind: Kind.ValueType, *act_ids: int) -> list[Act]:
    return [Act(act_id, kind, act_id, 1, 0) for act_id in act_ids]


@pytest.mark.parametrize("asked", [1, 2, 3, 5, 100])
def test_page_by_page_each_act_comes_once_in_order(asked: int) -> None:
    # Ids of two services may be the same.
    sources = [acts(LIKED, *range(40, 0, -1)), acts(FOLLOWED, 90, 80, 70, 40, 39, 20, 3)]
    found: list[Act] = []
    below = 1_000
    for _ in itertools.count():
        page, reached = merged(asked, *([act for act in source if act.act_id < below][:asked] for source in sources))
        found += page
        if not reached:
            break
        assert reached < below
        below = reached
    assert found == sorted(sources[0] + sources[1], reverse=True)


def test_alike_acts_are_one_and_mentions_each_their_own() -> None:
    mentioned = Kind.NOTIFICATION_KIND_MENTIONED
    groups = grouped(
        [
            Act(9, LIKED, 1, 5, 0),
            Act(8, mentioned, 1, 5, 0),
            Act(7, mentioned, 1, 5, 0),
            Act(6, LIKED, 2, 5, 0),
            Act(5, LIKED, 1, 5, 0),
            Act(4, LIKED, 3, 6, 0),
        ]
    )
    assert [(group.newest.act_id, list(group.actors)) for group in groups] == [
        (9, [1, 2]),
        (8, [1]),
        (7, [1]),
        (4, [3]),
    ]
