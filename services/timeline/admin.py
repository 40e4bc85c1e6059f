"""The operator's commands: `python -m services.timeline.admin limit|dead-letters|rebuild|explain|erased …`.

docs/operating.md explains them. Settings come from the environment, as the fan-out worker takes them. Exit code 0; 1
where something cannot be reached or is not there; 2 for wrong usage or settings; each with one line on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import psycopg
from google.protobuf.message import DecodeError
from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub
from feedmesh.post.v1 import post_pb2
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.ranking.v1.ranking_pb2_grpc import RankingServiceStub
from feedmesh.timeline.v1 import timeline_pb2
from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceStub
from runtime import callers, client, config, consumer, errors, ids, migrate, postgres, redis, streams
from runtime.clock import wall_clock
from services.timeline import limits, store
from services.timeline.config import AdminSettings
from services.timeline.fanout import GROUP
from services.timeline.timelines import ALL, Timelines, author_key, home_key

NAME = "admin"
"""As a caller."""
MAX_LIMIT = 1_000_000_000
DEFAULT = "default"
TOPICS = ("post", "graph")
GROUPS = {"post": (GROUP,), "graph": (GROUP, "post")}
"""Who consumes each topic: fan-out, and the eraser as the group `post`."""
DAYS = 7.0
DAY_S = 86_400
CONNECT_S = 5
"""How long the database may take to answer."""
ERROR_SHOWN = 100
"""Characters of a dead letter's error in the table; --json has all."""
DROPPED = 200
"""Keys of Redis that are looked at between two pauses of `rebuild --all`: 2,000 lists a second at the most, so that
readers need not build them all at once."""
PAUSE_S = 0.1
SOURCES = {
    timeline_pb2.FEED_SOURCE_OWN: "it is the viewer's own, and read from Postgres",
    timeline_pb2.FEED_SOURCE_PUSHED: "it is in the home timeline",
    timeline_pb2.FEED_SOURCE_PULLED: "it is taken from the author's timeline",
    timeline_pb2.FEED_SOURCE_STORED: "it is read from Postgres: below what timelines cover, or these cannot be used",
    timeline_pb2.FEED_SOURCE_IN_FLIGHT: "it will be pushed to the home timeline shortly",
}
FILTERS = {
    timeline_pb2.FEED_FILTER_NOT_FOLLOWED: "the viewer follows neither the author nor anybody who shared it",
    timeline_pb2.FEED_FILTER_MUTED: "the viewer mutes the author",
    timeline_pb2.FEED_FILTER_SHARER_MUTED: "the viewer mutes everybody they follow who wrote or shared it",
}


class FailedError(Exception):
    """What the operator asked for cannot be done, or is not so; the text says why."""

    def __init__(self, why: str, said: str = "") -> None:
        super().__init__(why)
        self.said = said
        """What is printed all the same."""


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line."""

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong and ends with exit code 2."""
        config.fail(f"{self.prog}: {message}")


# The limit.


@dataclass(frozen=True)
class State:
    """The limit as of now, and where authors are."""

    limit: int
    set_by_operator: bool
    setting: int
    """FEEDMESH_PUSH_MAX_FOLLOWERS as this command was told."""
    looked_at_with: int | None
    """The limit that all authors were last looked at with."""
    pull: int
    both_to_pull: int
    both_to_push: int

    @property
    def done(self) -> bool:
        """Whether all authors were looked at with the limit as of now."""
        return self.looked_at_with == self.limit


async def state(pool: postgres.Pool, setting: int) -> State:
    """What the mesh goes by. Raises psycopg.Error."""
    at_run_time, looked_at_with = await store.limit(pool)
    counts = await store.mode_counts(pool)
    return State(
        limit=setting if at_run_time is None else at_run_time,
        set_by_operator=at_run_time is not None,
        setting=setting,
        looked_at_with=looked_at_with,
        pull=counts.get(("pull", "pull"), 0),
        both_to_pull=counts.get(("both", "pull"), 0),
        both_to_push=counts.get(("both", "push"), 0),
    )


async def limit(settings: AdminSettings, arguments: argparse.Namespace) -> str:
    """Shows the limit, sets it, or says what another would come to."""
    wanted = arguments.limit
    async with database(settings) as pool:
        if arguments.dry_run:
            before = await state(pool, settings.push_max_followers)
            then = settings.push_max_followers if wanted == DEFAULT else wanted
            days = arguments.days or DAYS
            compared = await compare(settings, pool, before.limit, then, days)
            figures = as_figures(compared, days)
            return json.dumps(figures) if arguments.json else comparison_table(compared, figures, before)
        if wanted is not None:
            await store.set_limit(pool, None if wanted == DEFAULT else wanted)
        now = await state(pool, settings.push_max_followers)
    return json.dumps({**asdict(now), "done": now.done}) if arguments.json else state_table(now)


def state_table(now: State) -> str:
    """A state as people read it."""
    source = "set by the operator" if now.set_by_operator else "FEEDMESH_PUSH_MAX_FOLLOWERS"
    with_another = "not by any" if now.looked_at_with is None else f"last with {now.looked_at_with:,}"
    return table(
        [
            ["limit", f"{now.limit:,}", f"followers; {source}"],
            ["authors in pull", f"{now.pull:,}", ""],
            [
                "authors in both",
                f"{now.both_to_pull + now.both_to_push:,}",
                f"{now.both_to_pull:,} on the way to pull, {now.both_to_push:,} to push",
            ],
            ["all looked at", "yes" if now.done else "no", "" if now.done else with_another],
        ],
        "<><",
    )


async def compare(settings: AdminSettings, pool: postgres.Pool, now: int, then: int, days: float) -> limits.Comparison:
    """What another limit comes to. Raises Unavailable, psycopg.Error."""
    me = callers.of(NAME, settings)
    async with (
        client.connect(
            settings.graph_target, me, graph_pb2.DESCRIPTOR.services_by_name["GraphService"]
        ) as graph_channel,
        client.connect(settings.post_target, me, post_pb2.DESCRIPTOR.services_by_name["PostService"]) as post_channel,
    ):
        graph, post = GraphServiceStub(graph_channel), PostServiceStub(post_channel)
        first_post = max(0, ids.lowest_at(wall_clock() - int(days * DAY_S * 1000)))

        async def followers(after: int, page: int) -> tuple[Sequence[int], Sequence[int]]:
            request = graph_pb2.ListFollowerCountsRequest(after_user_id=after, min_followers=1, limit=page)
            answer = await graph.ListFollowerCounts(request)
            return answer.user_ids, answer.followers

        async def posts(after: int, page: int) -> tuple[Sequence[int], Sequence[int]]:
            request = post_pb2.ListPostCountsRequest(after_user_id=after, min_post_id=first_post, limit=page)
            answer = await post.ListPostCounts(request)
            return answer.user_ids, answer.posts

        async def pulled(after: int, page: int) -> tuple[Sequence[int], Sequence[int]]:
            author_ids = await store.going_to_pull(pool, after, page)
            return author_ids, [1] * len(author_ids)

        return await limits.compare(now, then, followers, posts, pulled)


def as_figures(compared: limits.Comparison, days: float) -> dict[str, Any]:
    """A comparison as --json gives it."""
    seconds = days * DAY_S

    def one(figures: limits.Figures) -> dict[str, Any]:
        saved = compared.deliveries - figures.pushed_deliveries
        return {
            "limit": figures.limit,
            "authors_pulled": figures.pulled_authors,
            "deliveries_per_s": figures.pushed_deliveries / seconds,
            "deliveries_saved": saved / compared.deliveries if compared.deliveries else 0.0,
            "follows_pulled": figures.pulled_follows / compared.follows if compared.follows else 0.0,
            "largest_pushed": (
                dict(zip(("user_id", "followers"), figures.largest_pushed, strict=True))
                if figures.largest_pushed
                else None
            ),
        }

    return {
        "now": one(compared.now),
        "then": one(compared.then),
        "to_pull": compared.to_pull,
        "to_push": compared.to_push,
        "authors_followed": compared.authors,
        "follows": compared.follows,
        "days": days,
    }


def comparison_table(compared: limits.Comparison, figures: dict[str, Any], before: State) -> str:
    """A comparison as people read it."""
    sides = (figures["now"], figures["then"])
    largest = [side["largest_pushed"] or {"followers": 0, "user_id": "-"} for side in sides]
    rows = [
        ["", "now", "then"],
        ["limit, followers", *(f"{side['limit']:,}" for side in sides)],
        ["deliveries/s, at most", *(rate(side["deliveries_per_s"]) for side in sides)],
        ["deliveries saved by pulling", *(f"{side['deliveries_saved']:.1%}" for side in sides)],
        ["pulled of 100 followed", *(f"{side['follows_pulled'] * 100:.2f}" for side in sides)],
        ["authors pulled", *(f"{side['authors_pulled']:,}" for side in sides)],
        ["most followers of one pushed", *(f"{author['followers']:,}" for author in largest)],
        ["that author's id", *(f"{author['user_id']}" for author in largest)],
    ]
    notes = [
        f"{compared.to_pull:,} authors would go to pull, {compared.to_push:,} to push. Nothing was changed.",
        f"Deliveries: posts of the last {figures['days']:g} days times followers, as if all followers were active.",
        "Pulled of 100 followed: what a read pulls on the mean for each 100 people that the reader follows.",
    ]
    if not before.done or before.both_to_pull or before.both_to_push:
        notes.append("Authors are still changing their mode: the figures of now are those of where they are going.")
    return "\n".join([table(rows, "<>>"), "", *notes])


def rate(per_s: float) -> str:
    """A number of deliveries a second, to what matters of it."""
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"


# Dead letters.


@dataclass(frozen=True)
class Letter:
    """A dead letter."""

    topic: str
    partition: int
    group: str
    entry: bytes
    fields: dict[bytes, bytes]

    @property
    def address(self) -> str:
        """What it is called here: entry ids are unique in one stream only, and each group has its own."""
        group = "" if self.group == GROUP else f"@{self.group}"
        return f"{self.topic}.{self.partition}{group}/{self.entry.decode()}"


async def letters(stores: Redis, topics: Sequence[str]) -> list[Letter]:
    """The dead letters of topics, by stream, oldest first. Raises RedisError."""
    return [
        Letter(topic, partition, group, entry, fields)
        for topic in topics
        for group in GROUPS[topic]
        for partition in range(streams.PARTITIONS)
        for entry, fields in await consumer.dead_letters(stores, topic, partition, group)
    ]


async def dead_letters(settings: AdminSettings, arguments: argparse.Namespace) -> str:
    """Lists dead letters, retries or drops them."""
    async with connected(settings) as stores:
        if arguments.command == "list":
            found = await letters(stores, [arguments.topic] if arguments.topic else TOPICS)
            seconds, _ = await stores.time()
            rows = [described(letter, seconds) for letter in found]
            return json.dumps(rows) if arguments.json else letter_table(rows)
        found = [each for each in await letters(stores, TOPICS) if arguments.all or each.address == arguments.id]
        if not found and not arguments.all:
            raise FailedError(f"there is no dead letter {arguments.id}")
        for letter in found:
            place = (stores, letter.topic, letter.partition, letter.group, letter.entry)
            if arguments.command == "retry":
                await consumer.revive(*place, letter.fields.get(streams.EVENT, b""))
            else:
                await consumer.drop(*place)
    done = "to be handled again" if arguments.command == "retry" else "dropped"
    return "\n".join(f"{letter.address}  {done}" for letter in found) or "no dead letters"


def described(letter: Letter, now_s: int) -> dict[str, Any]:
    """A dead letter as --json gives it; without event and fact where this release cannot read them."""
    event = event_pb2.Event()
    with suppress(DecodeError):
        event = event_pb2.Event.FromString(letter.fields.get(streams.EVENT, b""))
    fact = event.WhichOneof("fact")
    told = getattr(event, fact) if fact else None
    return {
        "id": letter.address,
        "event_id": event.event_id or None,
        "fact": fact,
        "of": {each.name: plain(getattr(told, each.name)) for each in told.DESCRIPTOR.fields} if told else {},
        "tries": int(letter.fields.get(b"tries", b"0")),
        "error": letter.fields.get(b"error", b"").decode(errors="replace"),
        "age_s": max(0, now_s - streams.entry_id(letter.entry)[0] // 1000),
    }


def plain(value: Any) -> Any:
    """A field's value as JSON takes it."""
    return value if isinstance(value, (int, str)) else list(value)


def letter_table(rows: Sequence[dict[str, Any]]) -> str:
    """Dead letters as people read them."""
    if not rows:
        return "no dead letters"
    lines = [["id", "age", "tries", "event", "fact", "error"]]
    for row in rows:
        fact = (
            " ".join([row["fact"], *(f"{name}={value}" for name, value in row["of"].items())]) if row["fact"] else "?"
        )
        error = " ".join(row["error"].split())
        lines.append(
            [
                row["id"],
                age(row["age_s"]),
                str(row["tries"]),
                str(row["event_id"] or "?"),
                fact,
                error if len(error) <= ERROR_SHOWN else f"{error[: ERROR_SHOWN - 1]}…",
            ]
        )
    return table(lines, "<>>><<")


def age(seconds: int) -> str:
    """A length of time in its largest unit."""
    for unit, length in (("d", DAY_S), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds} s"


# Timelines.


async def rebuild(settings: AdminSettings, arguments: argparse.Namespace) -> str:
    """Drops somebody's timelines, or all, so that the next reads build them."""
    async with connected(settings) as stores:
        timelines = Timelines(stores)
        if arguments.all:
            dropped = await drop_all(timelines)
        else:
            dropped = await timelines.drop([home_key(arguments.user_id), author_key(arguments.user_id)])
    return f"{dropped:,} timelines dropped; the next reads build them anew"


async def drop_all(timelines: Timelines) -> int:
    """Drops all timelines, with pauses; how many. Raises RedisError."""
    dropped, cursor = 0, 0
    while True:
        cursor, keys = await timelines.scan(ALL, cursor, DROPPED)
        dropped += await timelines.drop(keys)
        if not cursor:
            return dropped
        await asyncio.sleep(PAUSE_S)


async def explain(settings: AdminSettings, arguments: argparse.Namespace) -> str:
    """Says whether a post is in somebody's feed, and why."""
    if settings.timeline_target is None:
        config.fail(f"{config.PREFIX}TIMELINE_TARGET: Field required")
    service = timeline_pb2.DESCRIPTOR.services_by_name["TimelineService"]
    request = timeline_pb2.ExplainPostRequest(user_id=arguments.viewer_id, post_id=arguments.post_id)
    me = callers.of(NAME, settings)
    async with client.connect(settings.timeline_target, me, service) as channel:
        explained = await TimelineServiceStub(channel).ExplainPost(request)
    return json.dumps(explanation(explained)) if arguments.json else explanation_table(explained, arguments.post_id)


def explanation(explained: timeline_pb2.ExplainPostResponse) -> dict[str, Any]:
    """An explanation as --json gives it: as GET /feed/explain does, and what it was made without."""
    return {
        "post_id": explained.post_id,
        "in_feed": explained.in_feed,
        "filter": filter_name(explained.filter) if explained.HasField("filter") else None,
        "source": source_name(explained.source) if explained.HasField("source") else None,
        "place_id": explained.place_id if explained.HasField("place_id") else None,
        "shared_by": [{"user_id": each.user_id, "username": each.username} for each in explained.shared_by],
        "rank": (
            {each.name: getattr(explained.rank, each.name) for each in explained.rank.DESCRIPTOR.fields}
            if explained.HasField("rank")
            else None
        ),
        "degraded": list(explained.degraded),
    }


def explanation_table(explained: timeline_pb2.ExplainPostResponse, asked_id: int) -> str:
    """An explanation as people read it."""
    original = "" if explained.post_id == asked_id else f"the original of the share {asked_id}"
    rows = [
        ["post", str(explained.post_id), original],
        ["in the feed", "yes" if explained.in_feed else "no", ""],
    ]
    if explained.filter:
        rows.append(["kept out", filter_name(explained.filter), FILTERS.get(explained.filter, "")])
    if explained.source:
        rows.append(["comes", source_name(explained.source), SOURCES.get(explained.source, "")])
    if explained.place_id:
        own = explained.place_id == explained.post_id
        rows.append(["place", str(explained.place_id), "its own" if own else "that of its newest share that counts"])
    if explained.shared_by:
        rows.append(["shared by", ", ".join(each.username or str(each.user_id) for each in explained.shared_by), ""])
    if explained.HasField("rank"):
        parts = {each.name: getattr(explained.rank, each.name) for each in explained.rank.DESCRIPTOR.fields}
        causes = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value:,}"
            for name, value in parts.items()
            if name != "score"
        )
        rows.append(["score", f"{explained.rank.score:.4g}", causes])
    if explained.degraded:
        rows.append(["without", ", ".join(explained.degraded), "which could not be reached"])
    return table(rows, "<<<")


def filter_name(number: timeline_pb2.FeedFilter.ValueType) -> str:
    """What keeps a post out, as the API names it."""
    return timeline_pb2.FeedFilter.Name(number).removeprefix("FEED_FILTER_").lower()


def source_name(number: timeline_pb2.FeedSource.ValueType) -> str:
    """How a post comes in, as the API names it."""
    return timeline_pb2.FeedSource.Name(number).removeprefix("FEED_SOURCE_").lower()


# Erasures.


async def erased(settings: AdminSettings, arguments: argparse.Namespace) -> str:
    """Counts what is left of somebody, everywhere."""
    if settings.ranking_target is None:
        config.fail(f"{config.PREFIX}RANKING_TARGET: Field required")
    me = callers.of(NAME, settings)
    user_id = arguments.user_id
    found: list[tuple[str, str, int]] = []
    async with (
        database(settings) as pool,
        connected(settings) as stores,
        client.connect(settings.graph_target, me, graph_pb2.DESCRIPTOR.services_by_name["GraphService"]) as graph,
        client.connect(settings.post_target, me, post_pb2.DESCRIPTOR.services_by_name["PostService"]) as post,
        client.connect(
            settings.ranking_target, me, ranking_pb2.DESCRIPTOR.services_by_name["RankingService"]
        ) as ranking,
    ):
        answers: dict[str, Any] = {
            "graph": await GraphServiceStub(graph).CountTraces(graph_pb2.CountTracesRequest(user_id=user_id)),
            "post": await PostServiceStub(post).CountTraces(post_pb2.CountTracesRequest(user_id=user_id)),
            "ranking": await RankingServiceStub(ranking).CountTraces(ranking_pb2.CountTracesRequest(user_id=user_id)),
        }
        for part, answer in answers.items():
            found += [(part, trace.place, trace.count) for trace in answer.traces]
        found.append(("timeline", "author_modes", len(await store.modes(pool, [user_id]))))
        found.append(("timeline", "read_marks", int(await store.has_mark(pool, user_id))))
        found.append(("timeline", "webhook_deliveries", await store.deliveries_of(pool, user_id)))
        own = await stores.exists(home_key(user_id)) + await stores.exists(author_key(user_id))
        found.append(("timeline", "their timelines", own))
        named = 0
        async for _, timeline in Timelines(stores).homes():
            named += int((timeline.rows[:, 1] == user_id).sum())
        found.append(("timeline", "members of others' timelines", named))
    said = (
        json.dumps([{"part": part, "place": place, "count": count} for part, place, count in found])
        if arguments.json
        else table([["part", "place", "left"], *([part, place, f"{count:,}"] for part, place, count in found)], "<<>")
    )
    if left := sum(count for _, _, count in found):
        raise FailedError(f"{left:,} traces of user {user_id} are left", said)
    return said


# What surrounds them.


@asynccontextmanager
async def connected(settings: AdminSettings) -> AsyncIterator[Redis]:
    """The Redis."""
    try:
        parse_url(settings.redis_url)
    except ValueError:
        config.fail(f"{config.PREFIX}REDIS_URL: is no address of a Redis")
    async with redis.connect(settings, timeout_s=5) as stores:
        yield stores


@asynccontextmanager
async def database(settings: AdminSettings) -> AsyncIterator[postgres.Pool]:
    """The timeline's database. Raises psycopg.Error at once where it cannot be reached, unlike a pool's start."""
    try:
        async with await psycopg.AsyncConnection.connect(settings.postgres_dsn, connect_timeout=CONNECT_S):
            pass
    except psycopg.ProgrammingError:
        # Its text may hold the value, and that a password.
        config.fail(f"{config.PREFIX}POSTGRES_DSN: is no connection string")
    async with postgres.connect(settings) as pool:
        await migrate.require(pool, "services.timeline")
        yield pool


def table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Rows in columns, each to the left (<) or right (>)."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(align))]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    )


def limit_of(text: str) -> int | str:
    """N or `default` of the command line."""
    if text == DEFAULT:
        return text
    if not (text.isascii() and text.isdigit()) or int(text) > MAX_LIMIT:
        raise argparse.ArgumentTypeError(f"must be 0 to {MAX_LIMIT:,} (without commas) or {DEFAULT}, not {text!r}")
    return int(text)


def days_of(text: str) -> float:
    """The days of the command line."""
    try:
        days = float(text)
    except ValueError:
        days = 0
    if not 0 < days <= 365:
        raise argparse.ArgumentTypeError(f"must be above 0 and up to 365, not {text!r}")
    return days


def id_of(text: str) -> int:
    """An id of the command line."""
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) <= ids.MAX_ID:
        raise argparse.ArgumentTypeError(f"must be an id, not {text!r}")
    return int(text)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Ends the process with exit code 2 where it is wrong."""
    parser = Parser(prog="python -m services.timeline.admin", description="The operator's commands.")
    commands = parser.add_subparsers(required=True, metavar="limit|dead-letters|rebuild|explain|erased")

    command = commands.add_parser("limit", help="up to how many followers an author's posts are pushed")
    command.add_argument("limit", nargs="?", type=limit_of, metavar="N|default", help="set it, for all workers")
    command.add_argument("--dry-run", action="store_true", help="change nothing, say what it would cost and save")
    command.add_argument("--days", type=days_of, help=f"of posts that a dry run goes by, {DAYS:g} if not given")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=limit, parser=command)

    command = commands.add_parser("dead-letters", help="events that could not be handled")
    actions = command.add_subparsers(required=True, dest="command", metavar="list|retry|drop")
    action = actions.add_parser("list")
    action.add_argument("--topic", choices=TOPICS)
    action.add_argument("--json", action="store_true")
    action.set_defaults(run=dead_letters)
    for name, what in (("retry", "put back to be handled again"), ("drop", "remove for good")):
        action = actions.add_parser(name, help=what)
        which = action.add_mutually_exclusive_group(required=True)
        which.add_argument("id", nargs="?", metavar="ID", help="as `list` says it, such as post.2/1795-0")
        which.add_argument("--all", action="store_true")
        action.set_defaults(run=dead_letters)

    command = commands.add_parser("rebuild", help="drop timelines, so that the next reads build them anew")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("user_id", nargs="?", type=id_of, metavar="USER_ID", help="those of one person")
    which.add_argument("--all", action="store_true", help="those of everybody, with pauses")
    command.set_defaults(run=rebuild)

    command = commands.add_parser("explain", help="whether a post is in somebody's feed, and why")
    command.add_argument("viewer_id", type=id_of, metavar="VIEWER_ID")
    command.add_argument("post_id", type=id_of, metavar="POST_ID")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=explain)

    command = commands.add_parser("erased", help="what is left of somebody who was erased")
    command.add_argument("user_id", type=id_of, metavar="USER_ID")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=erased)

    arguments = parser.parse_args(argv)
    if arguments.run is limit:
        if arguments.dry_run and arguments.limit is None:
            arguments.parser.error("--dry-run needs N or default")
        if arguments.days is not None and not arguments.dry_run:
            arguments.parser.error("--days goes with --dry-run")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = parsed(argv)
    settings = config.load(AdminSettings)
    try:
        said = asyncio.run(arguments.run(settings, arguments))
    except FailedError as error:
        if error.said:
            print(error.said)
        return failed(str(error))
    except psycopg.Error as error:
        return failed(f"{config.PREFIX}POSTGRES_DSN: {error}")
    except (RedisError, OSError) as error:
        return failed(f"{config.PREFIX}REDIS_URL: {error}")
    except errors.Error as error:
        return failed(error.message)
    print(said)
    return 0


def failed(why: str) -> int:
    """Says in one line why there is no answer; the exit code."""
    print(" ".join(why.split()), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
