"""A population for measuring: people, follows, posts and what was liked, as numbers from one seed, put into Postgres.

Straight into the tables, by COPY, as they are after the services' migrations: through the API it would take an hour.
What the services hold true of their tables holds of it: counts equal rows, and ids carry their times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import psycopg
from psycopg import sql

from bench import community, words
from bench.client import DemoError
from runtime import ids

Ints = npt.NDArray[np.int64]

TEXTS = 2_000
"""Different texts; a post has one of them."""
POSTED_DAYS = 6
"""How far posts reach back, if the month does: partitions of earlier months are not there."""
SKEW = 1.5
"""How unequal people's followers are: the i-th of n has about i^(1/SKEW - 1) of them."""
LIKES_A_POST, COMMENTS_A_POST = 3.0, 0.5
ROWS = 50_000
"""Rows that go to Postgres at once."""
NULL = "\\N"
SHARED = 0.03
"""The share of posts that are plain shares of another."""


@dataclass(frozen=True)
class Plan:
    """What a population is made from: the same plan makes the same one."""

    users: int
    """Ordinary people. With them come `stars`, and with `reed` the people of the demo's graph."""
    follows: int
    """Whom each ordinary one follows, besides all stars."""
    writers: int
    """How many of the ordinary people write; only these are followed."""
    posts: int
    """By each who writes."""
    stars: int = 0
    """People whom all ordinary ones follow, and who follow nobody."""
    reed: bool = False
    now_ms: int = 0
    seed: int = 99
    """Another one whenever this file makes something else of the same plan."""


@dataclass(frozen=True)
class Follows:
    """Who follows whom, by index; shape (n,) each, ordered by follower, each pair once."""

    follower: Ints
    following: Ints


class Population:
    """A plan's people and what they did, as arrays. People are numbered: ordinary, then stars, then those of Reed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._rng = np.random.default_rng(plan.seed)
        random = Random(plan.seed)  # noqa: S311 - the same every time
        self.texts = [words.post(random)[1:] for _ in range(TEXTS)]
        """(content, media_url)"""
        self.replies = [words.reply(random.choice(words.TOPICS), random) for _ in range(100)]
        edges = np.array(community.read_edges(), dtype=np.int64) if plan.reed else np.empty((0, 2), dtype=np.int64)
        self.first_star = plan.users
        self.first_reed = plan.users + plan.stars
        self.count = self.first_reed + (int(edges.max()) + 1 if plan.reed else 0)
        born = ids.lowest_at(plan.now_ms - 30 * 86_400_000)
        self.user_ids: Ints = born + np.arange(self.count)
        """Rising with the number: a person's number is their id less the first."""
        self.follows = self._follow(edges + self.first_reed)
        self.follow_ids: Ints = born + self.count + self._rng.permutation(len(self.follows.follower))
        self._write()
        self._engage()

    @property
    def readers(self) -> Ints:
        """The ids of the ordinary people."""
        return self.user_ids[: self.plan.users]

    @property
    def stars(self) -> Ints:
        """The ids of those whom all ordinary people follow."""
        return self.user_ids[self.first_star : self.first_reed]

    @property
    def reed(self) -> Ints:
        """The ids of the people of the demo's graph."""
        return self.user_ids[self.first_reed :]

    def name(self, person: int) -> str:
        """A username."""
        return f"{words.FIRST_NAMES[person % len(words.FIRST_NAMES)]}.{person}"

    def _follow(self, reed: npt.NDArray[np.int64]) -> Follows:
        plan, rng = self.plan, self._rng
        # Some more than wanted, as the same one may be drawn twice.
        draws = plan.follows + plan.follows // 4 + 8
        self._writers = rng.permutation(plan.users)[: plan.writers]
        parts: list[tuple[Ints, Ints]] = []
        for begin in range(0, plan.users, 100_000):
            people = np.arange(begin, min(begin + 100_000, plan.users))
            drawn = self._writers[(plan.writers * rng.random((len(people), draws)) ** SKEW).astype(np.int64)]
            drawn.sort(axis=1)
            fresh = np.ones(drawn.shape, dtype=bool)
            fresh[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
            fresh &= drawn != people[:, None]
            # Of the different ones any `follows`, not the lowest.
            order = np.where(fresh, rng.random(drawn.shape), 2).argsort(axis=1)[:, : plan.follows]
            chosen = np.take_along_axis(drawn, order, axis=1)
            kept = np.take_along_axis(fresh, order, axis=1)
            parts.append((np.repeat(people, kept.sum(axis=1)), chosen[kept]))
        everybody = np.arange(plan.users)
        parts += [(everybody, np.full(plan.users, star)) for star in range(self.first_star, self.first_reed)]
        parts += [(reed[:, 0], reed[:, 1]), (reed[:, 1], reed[:, 0])]
        follower, following = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.lexsort((following, follower))
        return Follows(follower[order], following[order])

    def _write(self) -> None:
        plan, rng = self.plan, self._rng
        ordinary = np.repeat(self._writers, plan.posts)
        others = np.repeat(np.arange(self.first_star, self.count), 4)
        self.authors: Ints = rng.permutation(np.concatenate([ordinary, others]))
        """By post, oldest first."""
        month = time.gmtime(plan.now_ms / 1000)
        month_ms = 1000 * int(np.datetime64(f"{month.tm_year}-{month.tm_mon:02}-01", "s").astype(np.int64))
        oldest = max(month_ms, plan.now_ms - POSTED_DAYS * 86_400_000)
        oldest_id, newest_id = ids.lowest_at(oldest), ids.lowest_at(plan.now_ms)
        count = len(self.authors)
        self.post_ids: Ints = oldest_id + np.sort(
            rng.choice(newest_id - oldest_id, count, replace=False, shuffle=False)
        )
        self.text_of: Ints = rng.integers(0, TEXTS, count)
        self.original: Ints = np.arange(count)
        """By post, the post that it plainly shares, or itself."""
        of = (np.arange(count) * rng.random(count)).astype(np.int64)
        shares = np.flatnonzero((rng.random(count) < SHARED) & (self.authors != self.authors[of]))
        shares = shares[~np.isin(of[shares], shares)]
        _, first = np.unique(self.authors[shares] * count + of[shares], return_index=True)
        self.original[shares[first]] = of[shares[first]]
        # By author, the posts from oldest to newest: those of person i are written[begins[i] : begins[i + 1]].
        self.written: Ints = np.argsort(self.authors, kind="stable")
        self.begins: Ints = np.searchsorted(self.authors[self.written], np.arange(self.count + 1))

    def _engage(self) -> None:
        """Likes and comments, by followers of the author."""
        posts = len(self.authors)
        self.likes = self._engaged(int(LIKES_A_POST * posts), once=True)
        """(person, post, id) by like; each person likes a post once."""
        self.comments = self._engaged(int(COMMENTS_A_POST * posts), once=False)
        self.like_counts, self.comment_counts = (
            np.bincount(each[1], minlength=posts) for each in (self.likes, self.comments)
        )
        shared = self.original[self.original != np.arange(posts)]
        self.share_counts = np.bincount(shared, minlength=posts)

    def _engaged(self, count: int, *, once: bool) -> tuple[Ints, Ints, Ints]:
        rng = self._rng
        edges = rng.integers(0, len(self.follows.follower), count)
        person, author = self.follows.follower[edges], self.follows.following[edges]
        has = self.begins[author + 1] - self.begins[author]
        person, author, has = (each[has > 0] for each in (person, author, has))
        post = self.original[self.written[self.begins[author] + (has * rng.random(len(author))).astype(np.int64)]]
        kept = np.flatnonzero(self.authors[post] != person)
        if once:
            kept = kept[np.unique(post[kept] * self.count + person[kept], return_index=True)[1]]
        person, post = person[kept], post[kept]
        begun = self.post_ids[post]
        made = begun + ((ids.lowest_at(self.plan.now_ms) - begun) * rng.random(len(post))).astype(np.int64)
        _, different = np.unique(made, return_index=True)
        return person[different], post[different], made[different]

    @cached_property
    def posts_json(self) -> list[bytes]:
        """Each post as the gateway writes it."""
        times = [
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ids.time_ms(int(each)) // 1000)) for each in self.post_ids
        ]
        return [
            orjson.dumps(
                {
                    "post_id": int(self.post_ids[post]),
                    "user_id": int(self.user_ids[author]),
                    "username": self.name(int(author)),
                    "content": self.texts[self.text_of[post]][0],
                    "media_url": self.texts[self.text_of[post]][1],
                    "created_at": times[post],
                    "visibility": "public",
                    "likes": int(self.like_counts[post]),
                    "comments": int(self.comment_counts[post]),
                    "shares": int(self.share_counts[post]),
                    "liked": False,
                    "shared_post": None,
                    "shared_by": [],
                }
            )
            for post, author in enumerate(self.authors)
        ]

    def newest(self, person: int, count: int) -> Ints:
        """The newest posts of those whom somebody follows, oldest first."""
        begin, end = np.searchsorted(self.follows.follower, (person, person + 1))
        parts = [
            self.written[self.begins[each] : self.begins[each + 1]][-count:]
            for each in self.follows.following[begin:end]
        ]
        # Posts are numbered by age.
        return np.sort(np.concatenate([*parts, np.empty(0, dtype=np.int64)]))[-count:]


MARK = "population.json"


def made_before(folder: Path, plan: Plan) -> Plan | None:
    """The plan, with its time, where `fill` has finished there with such a one. Raises DemoError after another one."""
    try:
        done = Plan(**json.loads((folder / MARK).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        done = None
    if done is None or asdict(done) != {**asdict(plan), "now_ms": done.now_ms}:
        raise DemoError(f"{folder} holds another population: remove it, or name another folder")
    return done


def mark(folder: Path, plan: Plan) -> None:
    """Remembers that the databases in this folder hold the plan's population."""
    (folder / MARK).write_text(json.dumps(asdict(plan)))


def fill(people: Population, graph_dsn: str, post_dsn: str) -> None:
    """Puts a population into the migrated, empty databases of the graph and of posts."""
    _fill_graph(people, graph_dsn)
    _fill_posts(people, post_dsn)


def _fill_graph(people: Population, dsn: str) -> None:
    follower, following = people.follows.follower, people.follows.following
    names = (people.name(person) for person in range(people.count))
    with _bulk(dsn, "followers") as connection:
        _copy_lines(
            connection,
            "users (user_id, username, email)",
            (
                f"{user_id}\t{name}\t{name}@bench.example\n"
                for user_id, name in zip(people.user_ids.tolist(), names, strict=True)
            ),
        )
        _copy_numbers(
            connection,
            "user_counts",
            user_id=people.user_ids,
            followers=np.bincount(following, minlength=people.count),
            following=np.bincount(follower, minlength=people.count),
        )
        _copy_numbers(
            connection,
            "followers",
            follower_id=people.user_ids[follower],
            following_id=people.user_ids[following],
            follow_id=people.follow_ids,
        )


def _fill_posts(people: Population, dsn: str) -> None:
    with _bulk(dsn, "likes", "comments") as connection:
        own = people.original == np.arange(len(people.authors))
        rows = zip(
            people.post_ids.tolist(),
            people.user_ids[people.authors].tolist(),
            np.where(own, people.text_of, TEXTS).tolist(),
            people.post_ids[people.original].tolist(),
            strict=True,
        )
        # Content and picture; the last is a plain share's, which has none.
        texts = [f"{_escaped(content)}\t{_escaped(url)}" for content, url in people.texts] + ["\t"]
        _copy_lines(
            connection,
            "posts (post_id, user_id, content, media_url, original_id, shared_post_id)",
            (
                f"{post_id}\t{user_id}\t{texts[text]}\t{original}\t{NULL if post_id == original else original}\n"
                for post_id, user_id, text, original in rows
            ),
        )
        shares = np.flatnonzero(~own)
        _copy_numbers(
            connection,
            "shares",
            share_id=people.post_ids[shares],
            user_id=people.user_ids[people.authors[shares]],
            post_id=people.post_ids[people.original[shares]],
            author_id=people.user_ids[people.authors[people.original[shares]]],
        )
        person, post, like_ids = people.likes
        _copy_numbers(
            connection,
            "likes",
            like_id=like_ids,
            user_id=people.user_ids[person],
            post_id=people.post_ids[post],
            author_id=people.user_ids[people.authors[post]],
        )
        person, post, comment_ids = people.comments
        replies = [_escaped(people.replies[number % len(people.replies)]) for number in comment_ids.tolist()]
        _copy_lines(
            connection,
            "comments (comment_id, post_id, user_id, author_id, content)",
            (
                f"{comment_id}\t{post_id}\t{user_id}\t{author_id}\t{reply}\n"
                for comment_id, post_id, user_id, author_id, reply in zip(
                    comment_ids.tolist(),
                    people.post_ids[post].tolist(),
                    people.user_ids[person].tolist(),
                    people.user_ids[people.authors[post]].tolist(),
                    replies,
                    strict=True,
                )
            ),
        )
        counted = np.flatnonzero(people.like_counts + people.comment_counts + people.share_counts)
        likes, comments, shares = (
            each[counted] for each in (people.like_counts, people.comment_counts, people.share_counts)
        )
        # As hot as if all of it had happened in one hour, halved for each hour of the post's age.
        age_ms = people.plan.now_ms - ((people.post_ids[counted] >> ids.SEQUENCE_BITS) + ids.EPOCH_MS)
        heat = (likes + 2 * comments + 3 * shares) * 0.5 ** np.minimum(age_ms / 3_600_000, 100)
        _copy_numbers(
            connection,
            "post_counts",
            post_id=people.post_ids[counted],
            likes=likes,
            comments=comments,
            shares=shares,
            heat=heat.astype(">f4"),
        )


@contextmanager
def _bulk(dsn: str, *tables: str) -> Iterator[psycopg.Connection]:
    """A transaction without checks of foreign keys, in which these tables have no indexes but their keys'."""
    with psycopg.connect(dsn) as connection:
        connection.execute("SET session_replication_role = replica; SET maintenance_work_mem = '512MB'")
        found = connection.execute(
            "SELECT i.indexname, i.indexdef FROM pg_indexes i WHERE i.tablename = ANY(%s)"
            " AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conname = i.indexname)",
            (list(tables),),
        ).fetchall()
        for name, _ in found:
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
        yield connection
        for _, definition in found:
            connection.execute(definition.encode())
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


def _copy_numbers(connection: psycopg.Connection, table: str, **columns: npt.NDArray[Any]) -> None:
    """Adds rows of bigint and real columns; arrays of one length, real ones of type `>f4`."""
    kinds = {name: ">f4" if values.dtype == np.dtype(">f4") else ">i8" for name, values in columns.items()}
    # Postgres's binary format: the number of fields, then each with its length before it.
    layout: list[tuple[str, str]] = [("fields", ">i2")]
    for name, kind in kinds.items():
        layout += [(f"{name} size", ">i4"), (name, kind)]
    names = ", ".join(columns)
    count = len(next(iter(columns.values())))
    with connection.cursor().copy(f"COPY {table} ({names}) FROM STDIN (FORMAT binary)".encode()) as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for begin in range(0, count, ROWS):
            rows = np.empty(min(ROWS, count - begin), dtype=layout)
            rows["fields"] = len(columns)
            for name, values in columns.items():
                rows[f"{name} size"] = np.dtype(kinds[name]).itemsize
                rows[name] = values[begin : begin + ROWS]
            copy.write(rows.tobytes())
        copy.write(b"\xff\xff")


def _copy_lines(connection: psycopg.Connection, target: str, lines: Iterable[str]) -> None:
    """Adds rows in Postgres's text format."""
    with connection.cursor().copy(f"COPY {target} FROM STDIN".encode()) as copy:
        rest = iter(lines)
        while together := list(islice(rest, ROWS)):
            copy.write("".join(together).encode())


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
