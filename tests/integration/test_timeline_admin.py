"""The operator's commands, as processes with an environment, on real stores and real graph and post services."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import pytest_asyncio

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2
from launch.valkey import Running as Valkey
from runtime import consumer, postgres
from runtime.consumer import Consumer
from runtime.streams import EVENT, PARTITIONS, create_group, groups_of, stream_key
from services.graph import upkeep as graph_upkeep
from services.timeline import admin, modes, store
from services.timeline.deliver import Fanout
from services.timeline.fanout import GROUP
from services.timeline.timelines import author_key, home_key
from tests.fakes.databases import Databases
from tests.fakes.serving import MESH_SECRET
from tests.integration.timeline_stores import TimelineStores
from tests.integration.whole_mesh import whole_mesh

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub
    from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceAsyncStub

ROOT = Path(__file__).resolve().parents[2]
SETTING = 5
BOUND_S = 60.0
NOWHERE = {
    "POSTGRES_DSN": "postgresql://nobody@127.0.0.1:1/nothing",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "GRAPH_TARGET": "127.0.0.1:1",
    "POST_TARGET": "127.0.0.1:1",
    "MESH_SECRET": MESH_SECRET,
}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


async def command(told: dict[str, str], *arguments: str, module: str = "services.timeline.admin") -> Ended:
    """Runs a command to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEEDMESH_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        cwd=ROOT,
        env=inherited | {f"FEEDMESH_{name}": value for name, value in told.items()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), BOUND_S)
    except TimeoutError:
        process.kill()
        raise
    return Ended(process.returncode or 0, out.decode(), err.decode())


def without(told: dict[str, str], name: str) -> dict[str, str]:
    """What a process is told that does not take one of the settings."""
    return {each: value for each, value in told.items() if each != name}


@dataclass
class Operated:
    """A mesh, and what its operator's commands are told."""

    graph: GraphServiceAsyncStub
    post: PostServiceAsyncStub
    timeline: TimelineServiceAsyncStub
    graph_pool: postgres.Pool
    stores: TimelineStores
    fanout: Fanout
    told: dict[str, str]
    people: list[int] = field(default_factory=list)
    follows: set[tuple[int, int]] = field(default_factory=set)
    posts: dict[int, int] = field(default_factory=dict)

    async def admin(self, *arguments: str) -> str:
        """What a command prints that must succeed."""
        ended = await command(self.told, *arguments)
        assert (ended.code, ended.err) == (0, ""), ended
        return ended.out

    async def figures(self, *arguments: str) -> Any:
        """What a command gives with --json."""
        return json.loads(await self.admin(*arguments, "--json"))

    async def join(self, number: int) -> None:
        """More people."""
        for n in range(number):
            request = graph_pb2.CreateUserRequest(username=f"person{n}", email=f"person{n}@example.org")
            self.people.append((await self.graph.CreateUser(request)).user.user_id)

    async def follow(self, follower: int, followee: int) -> None:
        """A follow; what counts it, counts it."""
        if follower != followee:
            await self.graph.Follow(graph_pb2.FollowRequest(follower_id=follower, following_id=followee))
            self.follows.add((follower, followee))
            for task in graph_upkeep.tasks(self.graph_pool):
                while await task.work():
                    pass

    async def write(self, author: int) -> int:
        """A post; its id."""
        created = await self.post.CreatePost(post_pb2.CreatePostRequest(user_id=author, content="words"))
        self.posts[author] = self.posts.get(author, 0) + 1
        return created.post.post_id

    async def read(self, reader: int) -> list[int]:
        """A reader's feed."""
        request = timeline_pb2.GetFeedRequest(user_id=reader, order=timeline_pb2.FEED_ORDER_LATEST)
        return [post.post_id for post in (await self.timeline.GetFeed(request)).posts]

    def followers(self, author: int) -> int:
        """How many follow somebody."""
        return sum(followee == author for _, followee in self.follows)

    async def settle(self) -> None:
        """What the workers do once a limit was set."""
        await self.fanout.transitions.reconcile()
        while await self.fanout.transitions.advance():
            pass

    async def modes(self) -> dict[int, str]:
        """Who is not in mode push."""
        return await store.modes(self.stores.pool, self.people)


@pytest_asyncio.fixture
async def mesh(databases: Databases, valkey: Valkey) -> AsyncIterator[Operated]:
    """A mesh with nobody in it."""
    async with whole_mesh(databases, valkey, cap=10, slack=3) as whole:
        told = {
            "POSTGRES_DSN": whole.stores.dsn,
            "REDIS_URL": whole.stores.url,
            "GRAPH_TARGET": whole.targets["graph"],
            "POST_TARGET": whole.targets["post"],
            "TIMELINE_TARGET": whole.targets["timeline"],
            "MESH_SECRET": MESH_SECRET,
            "PUSH_MAX_FOLLOWERS": str(SETTING),
        }
        fanout = await whole.stores.fanout(whole.graph, whole.post, limit=SETTING)
        yield Operated(whole.graph, whole.post, whole.timeline, whole.graph_pool, whole.stores, fanout, told)


@pytest.fixture(autouse=True)
def _nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads, so that an author need not be in both for long; and what fails is tried again at once."""
    monkeypatch.setattr(modes, "BOTH_S", 0.0)
    monkeypatch.setattr(consumer, "FIRST_BACKOFF_S", 0.0)


# The limit.


async def test_a_limit_is_set_for_all_workers_and_taken_back(mesh: Operated) -> None:
    await mesh.join(4)
    star, *others = mesh.people
    for other in others:
        await mesh.follow(other, star)
    assert await mesh.figures("limit") == {
        "limit": SETTING,
        "set_by_operator": False,
        "setting": SETTING,
        "looked_at_with": None,
        "pull": 0,
        "both_to_pull": 0,
        "both_to_push": 0,
        "done": False,
    }
    await mesh.settle()
    assert (await mesh.figures("limit"))["done"]

    said = await mesh.admin("limit", "2")
    assert "2  followers; set by the operator" in said
    assert "last with 5" in said
    await mesh.fanout.transitions.reconcile()
    assert await mesh.modes() == {star: "both"}
    assert (await mesh.figures("limit"))["both_to_pull"] == 1
    await mesh.settle()
    assert await mesh.modes() == {star: "pull"}
    now = await mesh.figures("limit")
    assert (now["limit"], now["set_by_operator"], now["pull"], now["done"]) == (2, True, 1, True)

    said = await mesh.admin("limit", "default")
    assert "5  followers; FEEDMESH_PUSH_MAX_FOLLOWERS" in said
    await mesh.settle()
    assert await mesh.modes() == {}
    assert (await mesh.figures("limit"))["pull"] == 0


@pytest.mark.parametrize("seed", range(3))
async def test_a_dry_run_says_what_the_limit_then_comes_to(mesh: Operated, seed: int) -> None:
    chance = random.Random(seed)
    await mesh.join(14)
    for _ in range(90):
        # The earlier somebody joined, the more follow them.
        await mesh.follow(chance.choice(mesh.people), mesh.people[chance.randrange(chance.randrange(1, 15))])
    for _ in range(40):
        await mesh.write(chance.choice(mesh.people))
    await mesh.admin("limit", str(chance.randrange(2, 8)))
    await mesh.settle()
    limit, wanted = (await mesh.figures("limit"))["limit"], chance.randrange(1, 9)
    before = await mesh.modes()
    compared = await mesh.figures("limit", str(wanted), "--dry-run", "--days", "2")
    shown = await mesh.admin("limit", str(wanted), "--dry-run", "--days", "2")

    assert await mesh.modes() == before
    assert (await mesh.figures("limit"))["limit"] == limit
    await store.set_limit(mesh.stores.pool, wanted)
    await mesh.settle()
    after = await mesh.modes()
    assert set(after.values()) <= {"pull"}

    cause = {author: mesh.followers(author) * mesh.posts.get(author, 0) for author in mesh.people}
    for side, its_limit, pulled in (("now", limit, before), ("then", wanted, after)):
        figures = compared[side]
        pushed = sum(of for author, of in cause.items() if author not in pulled)
        most = max(mesh.followers(author) for author in mesh.people if author not in pulled)
        assert figures["limit"] == its_limit
        assert figures["authors_pulled"] == len(pulled)
        assert figures["deliveries_per_s"] == pytest.approx(pushed / (2 * 86_400))
        assert figures["deliveries_saved"] == pytest.approx(1 - pushed / sum(cause.values()))
        assert figures["follows_pulled"] == pytest.approx(sum(map(mesh.followers, pulled)) / len(mesh.follows))
        assert figures["largest_pushed"]["followers"] == most
        assert mesh.followers(figures["largest_pushed"]["user_id"]) == most
        assert f"{figures['deliveries_saved']:.1%}" in shown
    assert compared["to_pull"] == len(after.keys() - before.keys())
    assert compared["to_push"] == len(before.keys() - after.keys())
    assert compared["follows"] == len(mesh.follows)


async def test_a_dry_run_without_anybody_and_without_a_post_in_its_days(mesh: Operated) -> None:
    empty = await mesh.figures("limit", "0", "--dry-run")
    assert empty["then"] == {
        "limit": 0,
        "authors_pulled": 0,
        "deliveries_per_s": 0.0,
        "deliveries_saved": 0.0,
        "follows_pulled": 0.0,
        "largest_pushed": None,
    }
    await mesh.join(2)
    await mesh.follow(*mesh.people)
    await mesh.write(mesh.people[1])
    # Starting the command takes longer than these days are.
    nothing = await mesh.figures("limit", "0", "--dry-run", "--days", "1e-7")
    assert nothing["now"]["deliveries_per_s"] == 0.0
    assert (await mesh.figures("limit", "default", "--dry-run"))["then"]["deliveries_per_s"] > 0
    assert "-" in await mesh.admin("limit", "0", "--dry-run")


# Timelines.


async def test_timelines_are_dropped_and_built_anew_by_the_next_reads(mesh: Operated) -> None:
    await mesh.join(3)
    reader, author, other = mesh.people
    await mesh.follow(reader, author)
    written = [await mesh.write(author) for _ in range(3)]
    feeds = {each: await mesh.read(each) for each in mesh.people}
    assert feeds == {reader: written[::-1], author: written[::-1], other: []}
    await mesh.stores.timelines.create(author_key(author), 1)
    stores = mesh.stores.client
    await mesh.stores.timelines.push("home", [([reader], [(written[-1] + 1, author, written[-1] + 1)])])
    held = await stores.dbsize()

    assert await mesh.admin("rebuild", str(author)) == "2 timelines dropped; the next reads build them anew\n"
    assert await mesh.admin("rebuild", str(author)) == "0 timelines dropped; the next reads build them anew\n"
    assert await mesh.admin("rebuild", "--all") == "2 timelines dropped; the next reads build them anew\n"
    assert await stores.dbsize() == held - 4, "and nothing else"
    assert {each: await mesh.read(each) for each in mesh.people} == feeds
    timeline = await mesh.stores.timelines.read(home_key(reader))
    assert timeline is not None
    assert timeline.rows[:, 0].tolist() == written[::-1]


async def test_all_timelines_are_dropped_however_many_there_are(
    mesh: Operated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "PAUSE_S", 0.0)
    for user in range(1, 1000):
        await mesh.stores.timelines.create(home_key(user), 1)
    assert await admin.drop_all(mesh.stores.timelines) == 999


async def test_why_a_post_is_in_a_feed_or_is_not_is_explained(mesh: Operated) -> None:
    await mesh.join(3)
    reader, author, stranger = mesh.people
    await mesh.follow(reader, author)
    post_id, hidden = await mesh.write(author), await mesh.write(stranger)
    aim = await mesh.write(stranger)
    shared = (await mesh.post.SharePost(post_pb2.SharePostRequest(user_id=author, post_id=aim))).post.post_id
    await mesh.read(reader)
    found = await mesh.figures("explain", str(reader), str(post_id))
    assert found.pop("rank")["score"] > 0
    assert found == {
        "post_id": post_id,
        "in_feed": True,
        "filter": None,
        "source": "pushed",
        "place_id": post_id,
        "shared_by": [],
        "degraded": [],
    }
    lines = (await mesh.admin("explain", str(reader), str(shared))).splitlines()
    assert [line.split()[0] for line in lines] == ["post", "in", "comes", "place", "shared", "score"]
    assert f"the original of the share {shared}" in lines[0]
    assert str(shared) in lines[3]
    assert "person1" in lines[4]
    lines = (await mesh.admin("explain", str(reader), str(hidden))).splitlines()
    assert lines[1:] == [
        "in the feed  no",
        f"kept out     not_followed{' ' * (len(str(hidden)) - 12)}  "
        "the viewer follows neither the author nor anybody who shared it",
    ]
    assert (await mesh.figures("explain", str(reader), str(hidden)))["rank"] is None

    await mesh.graph.Block(graph_pb2.BlockRequest(user_id=stranger, target_id=reader))
    ended = await command(mesh.told, "explain", str(reader), str(hidden))
    assert ended == Ended(1, "", f"there is no post {hidden}\n")
    ended = await command(mesh.told, "explain", "1", str(hidden))
    assert ended == Ended(1, "", "there is no user 1\n")


# A worker with --once.


async def test_the_auditor_audits_every_feed_once_and_ends(mesh: Operated) -> None:
    await mesh.join(3)
    reader, author, other = mesh.people
    await mesh.follow(reader, author)
    written = [await mesh.write(author) for _ in range(3)]
    for each in (reader, other):
        await mesh.read(each)
    timelines, key = mesh.stores.timelines, home_key(reader)
    before = await timelines.read(key, renewed=False)
    assert before is not None
    lost = [(written[1], author, written[1])]
    assert await timelines.mend(key, before.incarnation, removed=lost, added=())
    told = without(mesh.told, "PUSH_MAX_FOLLOWERS") | {"AUDIT_SETTLE_S": "0"}
    for finds in (1, 0):
        ended = await command(told, "--once", module="services.timeline.auditor")
        assert ended.code == 0, ended
        found = [json.loads(line) for line in ended.out.splitlines() if "a feed differs" in line]
        assert [(line["viewer_id"], line["feed_missing"]) for line in found] == [(reader, [written[1]])] * finds
    after = await timelines.read(key, renewed=False)
    assert after is not None
    assert after.rows.tolist() == before.rows.tolist()


async def test_a_worker_that_comes_before_any_relay_does_what_there_is_and_ends(mesh: Operated) -> None:
    await mesh.join(1)
    unfollowed = event_pb2.FollowChanged(follower_id=1, following_id=mesh.people[0])
    event = event_pb2.Event(event_id=1, follow_changed=unfollowed).SerializeToString()
    await mesh.stores.client.xadd(stream_key("graph", 1), {EVENT: event})
    ended = await command(without(mesh.told, "TIMELINE_TARGET"), "--once", module="services.timeline.fanout")
    assert ended.code == 0, ended
    [group] = await groups_of(mesh.stores.client, stream_key("graph", 1))
    assert (group.name, group.pending, group.lag) == (GROUP, 0, 0)


# Dead letters.


async def bury(mesh: Operated, topic: str, partition: int, payloads: Sequence[bytes]) -> None:
    """Has a worker that can handle nothing give up on entries."""

    async def fail(events: Sequence[event_pb2.Event]) -> None:
        raise ValueError("this release\nis bad")

    stream = stream_key(topic, partition)
    await create_group(mesh.stores.client, stream, GROUP)
    for payload in payloads:
        await mesh.stores.client.xadd(stream, {EVENT: payload})
    worker = Consumer(mesh.stores.client, topic, partition, GROUP, fail)
    while len(await consumer.dead_letters(mesh.stores.client, topic, partition, GROUP)) < len(payloads):
        await worker.step()


async def handle(mesh: Operated) -> None:
    """Has a worker handle what there is."""
    for topic, work in (("post", mesh.fanout.post_events), ("graph", mesh.fanout.graph_events)):
        for partition in range(PARTITIONS):
            await create_group(mesh.stores.client, stream_key(topic, partition), GROUP)
            worker = Consumer(mesh.stores.client, topic, partition, GROUP, work)
            while await worker.step():
                pass


async def test_dead_letters_are_listed_retried_and_dropped(mesh: Operated) -> None:
    await mesh.join(1)
    [author] = mesh.people
    made = event_pb2.PostCreated(post_id=77, author_id=author, original_id=77)
    unfollowed = event_pb2.FollowChanged(follower_id=1, following_id=author)
    assert await mesh.admin("dead-letters", "list") == "no dead letters\n"
    assert await mesh.admin("dead-letters", "retry", "--all") == "no dead letters\n"
    await bury(mesh, "post", 2, [event_pb2.Event(event_id=5, post_created=made).SerializeToString()])
    known = event_pb2.Event(event_id=6, follow_changed=unfollowed).SerializeToString()
    await bury(mesh, "graph", 1, [b"no event", known, event_pb2.Event(event_id=9).SerializeToString() + b"\x7a\x00"])

    [post] = await mesh.figures("dead-letters", "list", "--topic", "post")
    assert post["id"].startswith("post.2/")
    assert 0 <= post.pop("age_s") < BOUND_S
    assert {name: value for name, value in post.items() if name != "id"} == {
        "event_id": 5,
        "fact": "post_created",
        "of": {
            "post_id": 77,
            "author_id": author,
            "original_id": 77,
            "shared_post_id": 0,
            "shared_author_id": 0,
            "mentioned_ids": [],
        },
        "tries": consumer.MAX_TRIES,
        "error": r"ValueError('this release\nis bad')",
    }
    letters = await mesh.figures("dead-letters", "list")
    assert [letter["id"].split("/")[0] for letter in letters] == ["post.2", *["graph.1"] * 3]
    broken, unfollow, later = sorted(letters[1:], key=lambda letter: letter["event_id"] or 0)
    assert (broken["event_id"], broken["fact"], broken["of"]) == (None, None, {})
    assert unfollow["of"] == {"follower_id": 1, "following_id": author, "following": False}
    assert (later["event_id"], later["fact"]) == (9, None)
    lines = (await mesh.admin("dead-letters", "list")).splitlines()
    assert len(lines) == 5
    assert f"post_created post_id=77 author_id={author} original_id=77" in lines[1]

    timeline = await mesh.stores.timelines.create(author_key(author), 1)
    assert await mesh.admin("dead-letters", "retry", post["id"]) == f"{post['id']}  to be handled again\n"
    await handle(mesh)
    timeline = await mesh.stores.timelines.read(author_key(author)) or timeline
    assert timeline.rows[:, 0].tolist() == [77]
    assert len(await mesh.figures("dead-letters", "list")) == 3

    gone = await command(mesh.told, "dead-letters", "retry", post["id"])
    assert gone == Ended(1, "", f"there is no dead letter {post['id']}\n")
    assert await mesh.admin("dead-letters", "drop", broken["id"]) == f"{broken['id']}  dropped\n"
    assert len((await mesh.admin("dead-letters", "retry", "--all")).splitlines()) == 2
    await handle(mesh)
    assert len((await mesh.admin("dead-letters", "drop", "--all")).splitlines()) == 1
    assert await mesh.figures("dead-letters", "list") == []


async def test_a_dead_letter_that_is_not_there(mesh: Operated) -> None:
    for action, address in (("retry", "post.2/1795-0"), ("drop", "1795-0"), ("drop", "")):
        ended = await command(mesh.told, "dead-letters", action, address)
        assert ended == Ended(1, "", f"there is no dead letter {address}".rstrip() + "\n")


# What is wrong.


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("", "limit|dead-letters"),
        ("limits", "invalid choice"),
        ("limit -1", "must be 0 to 1,000,000,000"),
        ("limit 1000000001", "must be 0 to 1,000,000,000"),
        ("limit ten", "must be 0 to 1,000,000,000"),
        ("limit 1_0", "must be 0 to 1,000,000,000"),
        ("limit 1 2", "unrecognized arguments: 2"),
        ("limit --dry-run", "--dry-run needs"),
        ("limit 5 --days 3", "--days goes with --dry-run"),
        ("limit 5 --dry-run --days 0", "must be above 0"),
        ("limit 5 --dry-run --days nan", "must be above 0"),
        ("dead-letters", "list|retry|drop"),
        ("dead-letters retry", "required"),
        ("dead-letters drop post.2/1-0 --all", "not allowed"),
        ("dead-letters list --topic people", "invalid choice"),
        ("rebuild", "required"),
        ("rebuild 5 --all", "not allowed"),
        ("rebuild me", "must be an id"),
        ("rebuild 9007199254740992", "must be an id"),
        ("explain 5", "required: POST_ID"),
        ("explain 5 0", "must be an id"),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: str, why: str) -> None:
    with pytest.raises(SystemExit) as ended:
        admin.main(arguments.split())
    said = capsys.readouterr()
    assert (ended.value.code, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert why in said.err


@pytest.mark.parametrize(
    ("told", "lines"),
    [
        ({"COLOUR": "red"}, ["FEEDMESH_COLOUR: unknown setting"]),
        ({"REDIS_URL": "redis://127.0.0.1:port/0"}, ["FEEDMESH_REDIS_URL: is no address of a Redis"]),
        ({"REDIS_URL": "nowhere", "PUSH_MAX_FOLLOWERS": "-1"}, ["FEEDMESH_PUSH_MAX_FOLLOWERS: ", "FEEDMESH_REDIS_URL"]),
    ],
)
async def test_wrong_settings_are_a_line_each(told: dict[str, str], lines: list[str]) -> None:
    ended = await command(NOWHERE | told, "dead-letters", "list")
    assert (ended.code, ended.out) == (2, "")
    said = ended.err.splitlines()
    assert len(said) == len(lines)
    assert all(found.startswith(line) for found, line in zip(said, lines, strict=True)), said


async def test_a_connection_string_that_is_none_is_not_shown() -> None:
    ended = await command(NOWHERE | {"POSTGRES_DSN": "password of mine"}, "limit")
    assert ended == Ended(2, "", "FEEDMESH_POSTGRES_DSN: is no connection string\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("limit", "FEEDMESH_POSTGRES_DSN: "),
        ("limit 5", "FEEDMESH_POSTGRES_DSN: "),
        ("dead-letters list", "FEEDMESH_REDIS_URL: "),
        ("rebuild 5", "FEEDMESH_REDIS_URL: "),
        ("rebuild --all", "FEEDMESH_REDIS_URL: "),
    ],
)
async def test_a_store_that_cannot_be_reached_is_one_line(arguments: str, says: str) -> None:
    ended = await command(NOWHERE, *arguments.split())
    assert (ended.code, ended.out) == (1, "")
    assert len(ended.err.splitlines()) == 1
    assert ended.err.startswith(says)


async def test_a_service_that_cannot_be_reached_is_one_line(mesh: Operated) -> None:
    for target, name in (("GRAPH_TARGET", "GraphService"), ("POST_TARGET", "PostService")):
        ended = await command(mesh.told | {target: "127.0.0.1:1"}, "limit", "5", "--dry-run")
        assert (ended.code, ended.out) == (1, "")
        assert ended.err == f"{name} cannot be reached, is too slow or is full\n"
    ended = await command(mesh.told | {"TIMELINE_TARGET": "127.0.0.1:1"}, "explain", "1", "1")
    assert ended == Ended(1, "", "TimelineService cannot be reached, is too slow or is full\n")


async def test_only_explaining_needs_the_timeline_service() -> None:
    ended = await command(NOWHERE, "explain", "1", "1")
    assert ended == Ended(2, "", "FEEDMESH_TIMELINE_TARGET: Field required\n")
