"""The demo's plan and its report: readable, skewed, the same for the same seed."""

from __future__ import annotations

import math
import re
from collections import Counter
from random import Random

import pytest

from bench import community, report, words
from bench.counters import CANDIDATES, DELIVERED, FANNED_OUT, TRIED, Counters
from bench.drive import AUTHOR, HOME, POST, Drive, Measured


@pytest.fixture(scope="module")
def plan() -> community.Community:
    return community.build(community.read_edges(), Random(98))


def test_the_graph_is_reed_college(plan: community.Community) -> None:
    assert len(plan.usernames) == len(set(plan.usernames)) == 962
    assert len(plan.follows) == len(set(plan.follows)) == 37_624
    assert all((followee, follower) in set(plan.follows) for follower, followee in plan.follows[:100])
    assert all(follower != followee for follower, followee in plan.follows)


def test_the_same_seed_gives_the_same_plan(plan: community.Community) -> None:
    assert community.build(community.read_edges(), Random(98)) == plan


def test_the_plan_has_the_promised_sizes(plan: community.Community) -> None:
    sizes = [len(part) for part in (plan.posts, plan.likes, plan.comments, plan.shares)]
    assert sizes == [community.POSTS, community.LIKES, community.COMMENTS, community.SHARES]


@pytest.mark.parametrize("part", ["likes", "shares"])
def test_nobody_likes_or_shares_a_post_twice_or_their_own(plan: community.Community, part: str) -> None:
    reactions: list[community.Reaction] = getattr(plan, part)
    assert len({(each.person, each.post) for each in reactions}) == len(reactions)
    assert all(each.person != plan.posts[each.post].author for each in reactions)


def test_engagement_has_a_heavy_tail_and_comes_from_followers(plan: community.Community) -> None:
    likes = sorted(Counter(like.post for like in plan.likes).values(), reverse=True)
    assert sum(likes[: community.POSTS // 10]) > 0.4 * community.LIKES
    written = sorted(Counter(post.author for post in plan.posts).values(), reverse=True)
    assert sum(written[:96]) > 0.3 * community.POSTS
    by_followers = sum(like.person in plan.friends[plan.posts[like.post].author] for like in plan.likes)
    assert by_followers > 0.85 * community.LIKES


def test_texts_are_whole_sentences(plan: community.Community) -> None:
    for text in [post.content for post in plan.posts] + [share.content for share in plan.shares if share.content]:
        assert "{" not in text
        assert re.match(r"[A-ZÀ-Ž\d]", text), text
        assert re.search(r"[.!?”]$", text), text
        assert len(text) < 300
    assert all(comment.content for comment in plan.comments)
    assert any(post.media_url for post in plan.posts)


def test_every_slot_of_the_grammar_is_there() -> None:
    templates = [text for topic in words.TOPICS for text in topic.posts] + [*words.ASIDES, *words.SHARE_NOTES]
    assert {slot for text in templates for slot in re.findall(r"\{(\w+)\}", text)} == set(words.SLOTS)


def test_usernames_are_accepted_by_the_contract(plan: community.Community) -> None:
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+", name) for name in plan.usernames)


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (report.percentile(values, 0.5), report.percentile(values, 0.99)) == (50, 99)
    assert report.percentile([7.0], 0.99) == 7
    assert math.isnan(report.percentile([], 0.5))


def test_the_table_is_markdown() -> None:
    by_kind = {
        HOME: Measured(requests=1_200, seconds=[0.001] * 1_200),
        AUTHOR: Measured(requests=600, seconds=[0.002] * 600),
        POST: Measured(requests=3, errors=3),
    }
    assert report.table(Drive(seconds=2.0, by_kind=by_kind, cpu_seconds=1.0)) == [
        "| operation               | requests | requests/s | p50 ms | p99 ms | errors |",
        "|-------------------------|---------:|-----------:|-------:|-------:|-------:|",
        "| `GET /feed`             |    1,200 |        600 |    1.0 |    1.0 |      0 |",
        "| `GET /users/{id}/posts` |      600 |        300 |    2.0 |    2.0 |      0 |",
        "| `POST /posts`           |        3 |          2 |      – |      – |      3 |",
        "| total                   |    1,803 |        902 |    1.0 |    2.0 |      3 |",
    ]


def test_the_other_table_says_how_posts_came_into_feeds() -> None:
    visible = Measured(requests=3, errors=1, seconds=[0.02, 0.01])
    values = Counter({(DELIVERED,): 3_000, (TRIED,): 4_000, (FANNED_OUT, "push"): 9, (FANNED_OUT, "pull"): 1})
    values[CANDIDATES, "home"] = 5
    assert report.facts(visible, Counters(2.0, values), Counter({"redis": 2})) == [
        "| from a post to the feeds                             |                       |",
        "|------------------------------------------------------|----------------------:|",
        "| from 201 to visible in a follower's feed, p50 ms     |                  10.0 |",
        "| from 201 to visible in a follower's feed, p99 ms     |                  20.0 |",
        "| posts that were looked for so                        |                     3 |",
        "| of these failed, lost or late                        |                     1 |",
        "| deliveries/s: posts × active followers               |                 1,500 |",
        "| active, of the followers of posts                    |                75.0 % |",
        "| posts pushed, pushed and pulled, pulled              | 90.0 %, 0.0 %, 10.0 % |",
        "| candidates from home lists, pulled authors, Postgres | 100.0 %, 0.0 %, 0.0 % |",
        "| degraded feeds                                       |           2 (redis 2) |",
    ]


def test_counters_that_are_unknown_are_dashes_with_a_reason() -> None:
    rows = report.facts(Measured(), None, Counter())
    assert [row.count("–") for row in rows] == [0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0]
    assert sum("not a mesh of the demo's own" in row for row in rows) == 4


def test_the_hardware_is_one_line() -> None:
    assert re.fullmatch(r"\d+ cores? of .+, \d+ GiB of memory, CPython 3\.\d+\.\d+, .+", report.hardware())
