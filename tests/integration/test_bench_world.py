"""The population in Postgres, as the services' migrations and invariants want it; and the floor on the same people."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import psycopg
import pytest
from rich.console import Console

from bench import textbook, world
from bench.client import DemoError
from bench.figures import WRONG_COUNTS
from bench.population import Plan, Population
from launch import postgres
from runtime import migrate

PLAN = Plan(users=300, follows=40, writers=300, posts=10, stars=2)
WRONG_FOLLOWS = """
    SELECT count(*) FROM user_counts c
    WHERE followers <> (SELECT count(*) FROM followers WHERE following_id = c.user_id)
       OR following <> (SELECT count(*) FROM followers WHERE follower_id = c.user_id)"""
WRONG_POST_COUNTS = """
    SELECT count(*) FROM posts p LEFT JOIN post_counts c USING (post_id)
    WHERE coalesce(c.comments, 0) <> (SELECT count(*) FROM comments WHERE post_id = p.post_id)
       OR coalesce(c.shares, 0) <> (SELECT count(*) FROM posts WHERE shared_post_id = p.post_id)
       OR coalesce(c.shares, 0) <> (SELECT count(*) FROM shares WHERE post_id = p.post_id)"""
INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname"
console = Console(quiet=True)


def asked(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Population]:
    folder = tmp_path_factory.mktemp("bench")
    return folder, world.prepare(console, folder, PLAN)


def test_what_services_hold_true_holds(people: tuple[Path, Population]) -> None:
    folder, population = people
    with postgres.running(folder, durable=False) as server:
        graph, post = server.dsn("feedmesh_graph"), server.dsn("feedmesh_post")
        assert asked(graph, "SELECT count(*) FROM users") == [(population.count,)]
        assert asked(graph, "SELECT count(*) FROM followers") == [(len(population.follows.follower),)]
        assert asked(post, "SELECT count(*) FROM posts") == [(len(population.authors),)]
        assert asked(graph, WRONG_FOLLOWS) == asked(post, WRONG_COUNTS) == asked(post, WRONG_POST_COUNTS) == [(0,)]
        assert asked(post, "SELECT count(*) FROM posts WHERE created_at > now()") == [(0,)]
        for name, dsn in (("graph", graph), ("post", post)):
            fresh = server.dsn(f"fresh_{name}")
            asyncio.run(postgres.create_databases(dsn, [f"fresh_{name}"]))
            asyncio.run(migrate.migrate(fresh, f"services.{name}"))
            assert asked(dsn, INDEXES) == asked(fresh, INDEXES), "an index is not as the migrations made it"


def test_a_folder_is_filled_once_and_for_one_plan(people: tuple[Path, Population]) -> None:
    folder, population = people
    assert world.prepare(console, folder, PLAN).plan == population.plan
    with pytest.raises(DemoError, match="another population"):
        world.prepare(console, folder, Plan(users=301, follows=40, writers=301, posts=10))


def test_the_floor_serves_the_newest_posts_of_the_same_people(people: tuple[Path, Population], tmp_path: Path) -> None:
    _, population = people
    with world.flooring(console, tmp_path, population) as floor:
        for person in (0, 150, 299):
            with urllib.request.urlopen(f"{floor.base}/feed?user_id={population.user_ids[person]}") as response:
                page = json.load(response)
            newest = population.original[population.newest(person, 20)][::-1]
            assert [post["post_id"] for post in page["posts"]] == population.post_ids[newest].tolist()
        keys = textbook.fill(floor.socket, population)
        assert textbook.deliveries_a_second(floor.socket, keys, [2**53 - 1], followers=700) > 0
