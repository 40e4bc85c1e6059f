"""The formula of relevance: what docs/ranking.md promises of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ranking.formula import Features, score

count = st.floats(0, 1e12)
NOBODY = Features(*(np.zeros(1) for _ in dataclasses.fields(Features)))


def of(**columns: float) -> float:
    """The score of one post of which only this is known."""
    return float(score(dataclasses.replace(NOBODY, **{name: np.array([value]) for name, value in columns.items()}))[0])


@given(st.floats(-1e6, 1e6), count, count, count, count, count)
def test_every_score_is_finite_and_above_zero(
    age_h: float, likes: float, comments: float, shares: float, heat: float, affinity: float
) -> None:
    value = of(age_h=age_h, likes=likes, comments=comments, shares=shares, heat=heat, affinity=affinity)
    assert np.isfinite(value)
    assert value > 0


@pytest.mark.parametrize("feature", ["likes", "comments", "shares", "heat", "affinity"])
def test_more_of_a_good_thing_is_better(feature: str) -> None:
    scores = [of(**{feature: value}) for value in (0, 1, 10, 1000)]
    assert scores == sorted(set(scores))


def test_the_documented_examples() -> None:
    assert of() == 1
    assert of(age_h=8) == pytest.approx(0.35, abs=0.005)
    assert of(age_h=24) == pytest.approx(0.13, abs=0.006)
    assert of(likes=100, age_h=9.5) > 1 > of(likes=100, age_h=10.5)
    assert of(affinity=50, age_h=5.5) > 1 > of(affinity=50, age_h=6.5)


def test_a_clock_that_is_behind_makes_no_post_better_than_new() -> None:
    assert of(age_h=-5) == of()
