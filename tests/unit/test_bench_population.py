"""The population that is measured: the same for the same plan, and in order with itself."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import orjson
import pytest

from bench import population
from bench.client import DemoError
from bench.population import Plan, Population
from runtime import ids

NOW_MS = int(datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp() * 1000)
PLAN = Plan(users=300, follows=20, writers=100, posts=12, stars=3, now_ms=NOW_MS)


@pytest.fixture(scope="module")
def people() -> Population:
    return Population(PLAN)


def test_the_same_plan_makes_the_same_population(people: Population) -> None:
    again = Population(PLAN)
    for name in ("user_ids", "follow_ids", "post_ids", "authors", "text_of", "original", "like_counts"):
        assert np.array_equal(getattr(people, name), getattr(again, name)), name


def test_everybody_follows_so_many_writers_and_all_stars(people: Population) -> None:
    pairs = set(zip(people.follows.follower.tolist(), people.follows.following.tolist(), strict=True))
    assert len(pairs) == len(people.follows.follower)
    assert all(follower != following for follower, following in pairs)
    for person in range(PLAN.users):
        followed = {following for follower, following in pairs if follower == person}
        assert set(range(people.first_star, people.first_reed)) <= followed
        assert len(followed) == PLAN.follows + PLAN.stars
    written = set(people.authors.tolist())
    assert len(written) == PLAN.writers + PLAN.stars
    assert {following for _, following in pairs} <= written


def test_ids_are_unique_and_of_their_time(people: Population) -> None:
    for each in (people.user_ids, people.follow_ids, people.post_ids, people.likes[2], people.comments[2]):
        assert len(np.unique(each)) == len(each)
        assert ids.time_ms(int(each.max())) <= NOW_MS
    assert (np.diff(people.post_ids) > 0).all()
    assert ids.time_ms(int(people.post_ids[0])) > NOW_MS - population.POSTED_DAYS * 86_400_000
    assert (people.likes[2] >= people.post_ids[people.likes[1]]).all()


def test_posts_are_of_this_month_for_others_have_no_partition() -> None:
    begun = datetime(2026, 11, 1, 1, tzinfo=UTC)
    people = Population(Plan(users=50, follows=5, writers=50, posts=4, now_ms=int(begun.timestamp() * 1000)))
    assert ids.time_ms(int(people.post_ids[0])) >= int(datetime(2026, 11, 1, tzinfo=UTC).timestamp() * 1000)


def test_a_post_is_liked_once_by_a_person_who_did_not_write_it(people: Population) -> None:
    person, post, _ = people.likes
    assert len(set(zip(person.tolist(), post.tolist(), strict=True))) == len(person) > len(people.authors)
    assert (people.authors[post] != person).all()
    assert (people.original[post] == post).all(), "a plain share is not liked, its original is"
    assert people.like_counts.sum() == len(person)


def test_shares_are_of_older_originals_by_others_once_each(people: Population) -> None:
    shares = np.flatnonzero(people.original != np.arange(len(people.authors)))
    originals = people.original[shares]
    assert len(shares)
    assert (originals < shares).all()
    assert (people.original[originals] == originals).all()
    assert (people.authors[originals] != people.authors[shares]).all()
    assert len(set(zip(people.authors[shares].tolist(), originals.tolist(), strict=True))) == len(shares)
    assert people.share_counts.sum() == len(shares)


def test_the_newest_are_those_of_whom_one_follows(people: Population) -> None:
    followed = people.follows.following[people.follows.follower == 7]
    theirs = np.flatnonzero(np.isin(people.authors, followed))
    assert people.newest(7, 50).tolist() == theirs[-50:].tolist()
    assert people.newest(people.first_star, 50).tolist() == []


def test_the_people_of_reed_follow_each_other_and_nobody_else() -> None:
    people = Population(Plan(users=20, follows=3, writers=10, posts=2, reed=True, now_ms=NOW_MS))
    of_reed = people.follows.follower >= people.first_reed
    assert of_reed.sum() == 37_624
    assert len(people.reed) == 962
    assert (people.follows.following[of_reed] >= people.first_reed).all()
    assert (people.follows.following[~of_reed] < people.plan.users).all()


def test_posts_are_written_as_json(people: Population) -> None:
    post = orjson.loads(people.posts_json[0])
    assert post["post_id"] == people.post_ids[0]
    assert post["created_at"].startswith(time.strftime("%Y-%m-%d", time.gmtime(ids.time_ms(post["post_id"]) / 1000)))


def test_a_folder_remembers_what_it_holds(tmp_path: Path) -> None:
    assert population.made_before(tmp_path, PLAN) is None
    population.mark(tmp_path, PLAN)
    assert population.made_before(tmp_path, Plan(**{**PLAN.__dict__, "now_ms": 0})) == PLAN
    with pytest.raises(DemoError, match="another population"):
        population.made_before(tmp_path, Plan(**{**PLAN.__dict__, "users": 301}))
