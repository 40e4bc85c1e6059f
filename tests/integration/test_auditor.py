"""The auditor on a real mesh: it finds what was damaged by hand, repairs that, and leaves alone what is well."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import REGISTRY

from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceStub, add_TimelineServiceServicer_to_server
from launch.valkey import Running as Valkey
from runtime import client
from runtime.relations import Relation
from services.post.sight import Sight
from services.timeline import auditor as worker
from services.timeline.audit import FEED, KINDS, LIST
from services.timeline.auditor import Auditor, Look
from services.timeline.epoch import Guard
from services.timeline.servicer import SERVICE
from services.timeline.timelines import Timeline, author_key, home_key, user_of
from tests.fakes.databases import Databases
from tests.fakes.serving import CALLER, serving
from tests.integration.mesh_world import LIMITS, World, mesh
from tests.integration.timeline_stores import timeline_servicer

if TYPE_CHECKING:
    from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceAsyncStub

SETTLE_S = 10.0
Member = tuple[int, int, int]
Tamper = Callable[[pb.GetFeedResponse], None]
Act = Callable[[], Awaitable[Any]]


class Patient(Auditor):
    """An auditor between whose looks the clock of the mesh goes on, and something happens."""

    between: Act

    async def look(self, viewer_id: int) -> Look:
        found = await super().look(viewer_id)
        await self.between()
        return found


@dataclass
class Serving:
    """The timeline service, with what comes in between its answers and whoever asks."""

    stub: TimelineServiceAsyncStub
    tamper: Tamper | None = None

    async def GetFeed(self, request: pb.GetFeedRequest) -> pb.GetFeedResponse:
        """A page."""
        page = await self.stub.GetFeed(request)
        if self.tamper is not None:
            self.tamper(page)
        return page


@dataclass
class Audited:
    """A world with an auditor."""

    world: World
    serving: Serving
    auditor: Patient
    people: list[int] = field(default_factory=list)

    async def join(self, number: int) -> list[int]:
        """More people."""
        self.people += [await self.world.join() for _ in range(number)]
        return self.people[-number:]

    async def rest(self) -> None:
        """Everything comes to rest, and nothing counts as in flight any more."""
        await self.world.settle()
        await self.world.pass_time(SETTLE_S + 1)

    async def audit(self, viewer: int) -> tuple[str, dict[str, float]]:
        """The outcome of an audit, and the ratios that it alone makes, where they are not zero."""
        self.auditor._latest.clear()
        self.auditor._set_ratios()
        outcome = await self.auditor.audit(viewer)
        shown = {
            f"{of} {kind}": REGISTRY.get_sample_value("feedmesh_audit_ratio", {"of": of, "kind": kind})
            for of, kinds in KINDS.items()
            for kind in kinds
        }
        return outcome, {what: ratio for what, ratio in shown.items() if ratio}

    async def stored(self, key: str) -> Timeline:
        """A list as it is stored."""
        timeline = await self.world.stores.timelines.read(key, renewed=False)
        assert timeline is not None
        return timeline

    async def held(self, key: str) -> list[Member]:
        """A list's members, newest first."""
        return [(post, author, original) for post, author, original in (await self.stored(key)).rows.tolist()]

    async def remove(self, key: str, *removed: Member) -> None:
        """Somebody removes members by hand."""
        await self._mend(key, removed, ())

    async def add(self, key: str, *added: Member) -> None:
        """Somebody adds members by hand."""
        await self._mend(key, (), added)

    async def _mend(self, key: str, removed: Sequence[Member], added: Sequence[Member]) -> None:
        incarnation = (await self.stored(key)).incarnation
        assert await self.world.stores.timelines.mend(key, incarnation, removed=removed, added=added)


Meshes = Callable[[], AbstractAsyncContextManager[Audited]]


@pytest.fixture(scope="session")
def audited(databases: Databases, valkey: Valkey) -> Meshes:
    """Makes worlds with an auditor."""

    @asynccontextmanager
    async def make() -> AsyncIterator[Audited]:
        async with mesh(databases, valkey) as whole, whole.world() as world:
            servicer = timeline_servicer(world.replicas[0])
            async with (
                serving(lambda s: add_TimelineServiceServicer_to_server(servicer, s), services=(SERVICE,)) as served,
                client.connect(served.target, CALLER, SERVICE) as channel,
            ):
                between = Serving(TimelineServiceStub(channel))
                guard = Guard(world.stores.pool, world.stores.client)
                await guard.look()
                auditor = Patient(
                    world.stores.pool,
                    guard,
                    world.stores.timelines,
                    whole.graph,
                    whole.post,
                    cast(Any, between),
                    SETTLE_S,
                    whole.clock,
                )
                auditor.between = lambda: world.pass_time(1)
                yield Audited(world, between, auditor)

    return make


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "AGAIN_S", 0.0)


async def reader_of(mesh: Audited, posts: int = 4) -> tuple[int, int, list[int]]:
    """Somebody who reads, somebody whom they follow, and what that one wrote; all at rest."""
    reader, author = await mesh.join(2)
    await mesh.world.follow(reader, author)
    written = [await mesh.world.write(author) for _ in range(posts)]
    await mesh.world.read(reader, 0)
    await mesh.rest()
    return reader, author, written


# What is well.


@pytest.mark.parametrize("seed", range(3))
async def test_on_a_healthy_mesh_all_ratios_are_zero_at_any_time(audited: Meshes, seed: int) -> None:
    chance = random.Random(seed)
    async with audited() as mesh:
        world = mesh.world
        outcomes: dict[str, int] = {}
        people = await mesh.join(6)
        posts: list[tuple[int, int]] = []

        def anybody() -> int:
            return chance.choice(people)

        async def write() -> None:
            author = anybody()
            posts.append((author, await world.write(author, followers_only=chance.random() < 0.2)))

        async def share(content: str = "") -> None:
            if posts:
                sharer = anybody()
                shared = await world.share(sharer, chance.choice(posts)[1], content)
                if isinstance(shared, int):
                    posts.append((sharer, shared))

        async def delete() -> None:
            if posts:
                await world.delete(*chance.choice(posts))

        async def deliver() -> None:
            await world.relay()
            await world.consume(0)

        async def time() -> None:
            # What no relay took for so long would be no healthy mesh; what no worker took waits in its stream.
            await world.relay()
            await world.pass_time(chance.choice((1, SETTLE_S, 2 * SETTLE_S)))

        async def flush() -> None:
            await world.flush()
            await world.notice()
            await mesh.auditor.guard.look()

        async def audit() -> None:
            outcome, ratios = await mesh.audit(anybody())
            assert (outcome in ("equal", "gone"), ratios) == (True, {})
            outcomes[outcome] = outcomes.get(outcome, 0) + 1

        acts: dict[Callable[[], Awaitable[Any]], int] = {
            write: 24,
            share: 8,
            lambda: share("quoted"): 3,
            delete: 3,
            lambda: world.follow(anybody(), anybody()): 10,
            lambda: world.unfollow(anybody(), anybody()): 3,
            lambda: world.mute(anybody(), anybody()): 2,
            lambda: world.unmute(anybody(), anybody()): 2,
            lambda: world.block(anybody(), anybody()): 1,
            lambda: world.unblock(anybody(), anybody()): 1,
            lambda: world.set_private(anybody(), chance.random() < 0.3): 2,
            lambda: world.read(anybody(), chance.randrange(2)): 10,
            lambda: world.set_limit(chance.choice(LIMITS)): 1,
            world.reconcile: 2,
            world.advance: 4,
            deliver: 16,
            time: 8,
            lambda: world.expire(anybody()): 1,
            lambda: world.half_build(anybody()): 1,
            flush: 1,
            audit: 10,
        }
        for act in chance.choices(list(acts), list(acts.values()), k=400):
            await act()
        await world.erase(people[0])
        for _ in range(3):
            await audit()
        await mesh.rest()
        for viewer in people[1:]:
            await world.read(viewer, 0)
        found = {viewer: await mesh.audit(viewer) for viewer in people[1:]}
        assert found == dict.fromkeys(people[1:], ("equal", {}))
        assert await mesh.audit(people[0]) == ("gone", {})
        assert outcomes["equal"] >= 5
        entries = {of: REGISTRY.get_sample_value("feedmesh_audit_entries_total", {"of": of}) or 0 for of in KINDS}
        assert min(entries.values()) > 0


async def test_what_is_in_flight_is_no_difference(audited: Meshes) -> None:
    async with audited() as mesh:
        reader, author, _ = await reader_of(mesh)
        await mesh.world.write(author)
        assert await mesh.audit(reader) == ("equal", {})
        # However long it waits in the stream.
        await mesh.world.relay()
        await mesh.world.pass_time(100 * SETTLE_S)
        assert await mesh.audit(reader) == ("equal", {})
        await mesh.world.deliver()
        assert await mesh.audit(reader) == ("equal", {})
        # What no relay took for too long is nothing that the auditor can tell from a loss.
        await mesh.world.write(author)
        await mesh.world.pass_time(2 * SETTLE_S)
        assert await mesh.audit(reader) == ("repaired", {"list missing": 1 / 6, "feed missing": 1 / 6})
        await mesh.world.deliver()
        assert await mesh.audit(reader) == ("equal", {})


async def test_what_is_well_again_at_the_second_look_does_not_count(audited: Meshes) -> None:
    async with audited() as mesh:
        reader, author, written = await reader_of(mesh)
        lost = (written[1], author, written[1])
        await mesh.remove(home_key(reader), lost)

        async def heal() -> None:
            await mesh.add(home_key(reader), lost)
            mesh.auditor.between = lambda: mesh.world.pass_time(1)

        mesh.auditor.between = heal
        assert await mesh.audit(reader) == ("equal", {})


async def test_leftovers_and_repetitions_are_no_difference_and_stay(audited: Meshes) -> None:
    async with audited() as mesh:
        reader, author, written = await reader_of(mesh)
        [former, sharer] = await mesh.join(2)
        for each in (former, sharer):
            await mesh.world.follow(reader, each)
        left = await mesh.world.write(former)
        shared = await mesh.world.share(sharer, written[0])
        assert isinstance(shared, int)
        await mesh.world.read(reader, 0)
        await mesh.world.unfollow(reader, former)
        await mesh.world.delete(author, written[0])
        await mesh.world.delete(author, written[2])
        await mesh.rest()
        key = home_key(reader)
        await mesh.add(key, (written[3], author, written[3]), (left, former, left), (written[2], author, written[2]))
        await mesh.add(key, (shared, sharer, written[0]))
        before = await mesh.held(key)
        assert await mesh.audit(reader) == ("equal", {})
        assert await mesh.held(key) == before


async def test_an_audit_keeps_no_list_alive(audited: Meshes) -> None:
    async with audited() as mesh:
        reader, author, written = await reader_of(mesh)
        redis, key = mesh.world.stores.client, home_key(reader)
        for lost in ([], [(written[1], author, written[1])]):
            await redis.expire(key, 100)
            await mesh.remove(key, *lost)
            ends = await redis.pexpiretime(key)
            await mesh.audit(reader)
            assert await redis.pexpiretime(key) == ends
        await mesh.world.read(reader, 0)
        assert await redis.pexpiretime(key) > ends, "a read does"
        # One that ended while it was read, and was built by that.
        await mesh.world.stores.timelines.end_at(key, 1)
        assert not await redis.exists(key)


# What was damaged in Redis.


async def test_it_rests_after_what_was_right_and_only_then(audited: Meshes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with audited() as mesh:
        reader, author, written = await reader_of(mesh)
        audits: list[int] = []
        audit = mesh.auditor.audit

        async def counted(viewer_id: int) -> str:
            audits.append(viewer_id)
            return await audit(viewer_id)

        monkeypatch.setattr(mesh.auditor, "audit", counted)
        monkeypatch.setattr(worker, "RESTS", 1_000_000)
        await mesh.remove(home_key(reader), (written[1], author, written[1]))
        while not audits:
            await mesh.auditor.paced_step()
        for _ in range(5):
            await mesh.auditor.paced_step()
        assert audits == [reader] * 2, "one that was repaired, one that was right, and no more"


async def test_what_was_removed_by_hand_is_found_and_put_back(audited: Meshes) -> None:
    async with audited() as mesh:
        reader, author, written = await reader_of(mesh)
        key = home_key(reader)
        before = await mesh.stored(key)
        lost = [(each, author, each) for each in (written[1], written[3])]
        await mesh.remove(key, *lost)
        # The last of the feed is no more known than what is below: what counts is what was looked at.
        assert await mesh.audit(reader) == ("repaired", {"list missing": 0.5, "feed missing": 0.5})
        after = await mesh.stored(key)
        assert after.rows.tolist() == before.rows.tolist()
        same = replace(after, rows=before.rows, incarnation=before.incarnation, head=before.head)
        assert same == before, "and its head, but for the incarnation"
        assert await mesh.audit(reader) == ("equal", {})
        shown, _ = await mesh.world.read(reader, 0)
        assert [post.post_id for post in shown] == written[::-1]


async def test_a_list_that_was_emptied_by_hand_is_filled(audited: Meshes) -> None:
    async with audited() as mesh:
        reader, _, written = await reader_of(mesh, posts=9)
        key = home_key(reader)
        before = await mesh.held(key)
        await mesh.remove(key, *before)
        outcome, ratios = await mesh.audit(reader)
        assert (outcome, ratios["list missing"]) == ("repaired", 1.0)
        assert await mesh.held(key) == before
        shown, _ = await mesh.world.read(reader, 0)
        assert [post.post_id for post in shown] == written[::-1]


async def test_what_was_added_by_hand_is_found_and_taken_out(audited: Meshes) -> None:
    async with audited() as mesh:
        reader, author, _ = await reader_of(mesh)
        [stranger] = await mesh.join(1)
        strange, filtered = [await mesh.world.write(stranger) for _ in range(2)]
        await mesh.rest()
        key = home_key(reader)
        before = await mesh.held(key)
        await mesh.add(
            key,
            (strange, author, strange),
            (filtered, stranger, filtered),  # by reads
            (filtered + 1, author, filtered + 1),
        )
        outcome, ratios = await mesh.audit(reader)
        assert (outcome, ratios["list extra"]) == ("repaired", 2 / 6)
        assert await mesh.held(key) == [(filtered, stranger, filtered), *before]
        assert await mesh.audit(reader) == ("equal", {})


async def test_a_member_that_was_replaced_by_hand_is_set_right(audited: Meshes) -> None:
    async with audited() as mesh:
        reader, author, written = await reader_of(mesh)
        key = home_key(reader)
        before = await mesh.held(key)
        await mesh.remove(key, (written[2], author, written[2]))
        await mesh.add(key, (written[2], author, written[1]))
        outcome, ratios = await mesh.audit(reader)
        assert (outcome, ratios["list missing"], ratios["list extra"]) == ("repaired", 0.2, 0.2)
        assert await mesh.held(key) == before


async def test_a_pulled_authors_list_that_was_damaged_is_made_anew(audited: Meshes) -> None:
    async with audited() as mesh:
        await mesh.world.set_limit(0)
        reader, author, _ = await reader_of(mesh)
        # What an author writes who is pulled already is in their list alone.
        written = [await mesh.world.write(author) for _ in range(4)]
        await mesh.world.read(reader, 0)
        await mesh.rest()
        assert await mesh.audit(reader) == ("equal", {})
        key = author_key(author)
        await mesh.remove(key, (written[2], author, written[2]))
        assert await mesh.audit(reader) == ("differs", {"feed missing": 1 / 8})
        assert not await mesh.world.stores.client.exists(key)
        await mesh.world.read(reader, 0)
        assert await mesh.audit(reader) == ("equal", {})


async def test_a_list_of_another_making_is_not_mended(audited: Meshes) -> None:
    async with audited() as mesh:
        reader, author, written = await reader_of(mesh)
        timelines, key = mesh.world.stores.timelines, home_key(reader)
        timeline = await timelines.read(key)
        assert timeline is not None
        gone = {"removed": [(written[0], author, written[0])], "added": [(1, author, 1)]}
        before = await mesh.held(key)
        assert not await timelines.mend(key, timeline.incarnation + 1, **gone)
        assert await mesh.held(key) == before
        made = await timelines.create(key, timeline.epoch, replaced=timeline.incarnation)
        assert await timelines.mend(key, made.incarnation, **gone)
        assert await mesh.audit(reader) == ("gone", {})


# What is served wrong.


@pytest.mark.parametrize("kind", ["muted", "blocked", "private", "followers", "quoted", "sharer"])
async def test_what_must_not_be_seen_is_counted(audited: Meshes, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with audited() as mesh:
        reader, author, _ = await reader_of(mesh)
        [hidden] = await mesh.join(1)
        await mesh.world.follow(author, hidden)
        aim = await mesh.world.write(hidden, followers_only=kind == "followers")
        if kind == "followers":
            # Nobody can share what only followers see; a fault of the service lets it through.
            monkeypatch.setattr(Sight, "sees", lambda *_: True)
        shared = await mesh.world.share(author, aim, "look" if kind == "quoted" else "")
        assert isinstance(shared, int)
        if kind in ("muted", "quoted"):
            await mesh.world.mute(reader, hidden)
        elif kind == "blocked":
            await mesh.world.block(hidden, reader)
        elif kind == "private":
            await mesh.world.set_private(hidden, True)
        await mesh.rest()
        assert await mesh.audit(reader) == ("equal", {}) or kind == "followers"
        # A filter that is applied when posts are pushed, and not when they are read.
        monkeypatch.setattr(Sight, "sees", lambda *_: True)
        monkeypatch.setattr(Relation, "mutes", lambda *_: False)
        if kind == "sharer":

            def name(page: pb.GetFeedResponse) -> None:
                next(post for post in page.posts if post.post_id == aim).shared_by.add(user_id=hidden)

            mesh.serving.tamper = name
        outcome, ratios = await mesh.audit(reader)
        assert (outcome, list(ratios)) == ("differs", ["feed must_not_see"])
        assert await mesh.world.stores.client.exists(home_key(reader)), "no list can help"


def swap(page: pb.GetFeedResponse) -> None:
    one, other = post_pb2.Post(), post_pb2.Post()
    one.CopyFrom(page.posts[0])
    other.CopyFrom(page.posts[1])
    page.posts[0].CopyFrom(other)
    page.posts[1].CopyFrom(one)


def repeat(page: pb.GetFeedResponse) -> None:
    page.posts.append(page.posts[1])


def forget(page: pb.GetFeedResponse) -> None:
    del page.posts[1]


@pytest.mark.parametrize(("tamper", "kind"), [(swap, "misordered"), (repeat, "duplicate"), (forget, "missing")])
async def test_what_no_list_explains_is_counted_and_the_list_dropped(
    audited: Meshes, tamper: Tamper, kind: str
) -> None:
    async with audited() as mesh:
        reader, _, _ = await reader_of(mesh)
        mesh.serving.tamper = tamper
        outcome, ratios = await mesh.audit(reader)
        assert (outcome, ratios.pop(f"feed {kind}")) == ("differs", 0.25)
        assert not ratios.keys() - {"feed misordered"}
        assert not await mesh.world.stores.client.exists(home_key(reader))
        mesh.serving.tamper = None
        assert await mesh.audit(reader) == ("gone", {})
        await mesh.world.read(reader, 0)
        assert await mesh.audit(reader) == ("equal", {})


async def test_a_post_that_nobody_who_is_read_wrote_is_extra(audited: Meshes) -> None:
    async with audited() as mesh:
        reader, _, _ = await reader_of(mesh)
        [stranger] = await mesh.join(1)
        strange = await mesh.world.write(stranger)
        await mesh.rest()
        mesh.serving.tamper = lambda page: page.posts.insert(0, post_pb2.Post(post_id=strange, user_id=stranger))
        assert await mesh.audit(reader) == ("differs", {"feed extra": 0.2})


async def test_a_degraded_answer_is_not_compared(audited: Meshes) -> None:
    async with audited() as mesh:
        reader, _, _ = await reader_of(mesh)

        def degrade(page: pb.GetFeedResponse) -> None:
            page.degraded.append("redis")
            del page.posts[:]

        mesh.serving.tamper = degrade
        assert await mesh.audit(reader) == ("degraded", {})
        assert not mesh.auditor._latest


# Whom it takes up.


async def test_every_feed_comes_in_turn_and_one_that_fails_stops_none(audited: Meshes) -> None:
    async with audited() as mesh:
        people = await mesh.join(5)
        for reader in people:
            await mesh.world.write(reader)
            await mesh.world.read(reader, 0)
        await mesh.world.stores.timelines.create(author_key(people[0]), 1)
        await mesh.rest()
        await mesh.auditor.guard.look()
        taken: list[int] = []

        def fail(page: pb.GetFeedResponse) -> None:
            taken.append(page.posts[0].user_id)
            if page.posts[0].user_id == people[2]:
                raise ConnectionError("gone")

        mesh.serving.tamper = fail
        for turn in (1, 2):
            while len(taken) < len(people) * turn:
                await mesh.auditor.step()
        assert sorted(taken) == sorted(2 * people)
        await mesh.auditor.audit_all()
        assert sorted(taken) == sorted(3 * people)
        assert {user_of(home_key(reader).encode()) for reader in people} == set(people)


async def test_the_ratios_are_of_the_latest_feeds(audited: Meshes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with audited() as mesh:
        reader, author, written = await reader_of(mesh)
        await mesh.remove(home_key(reader), (written[1], author, written[1]))
        _, ratios = await mesh.audit(reader)
        assert ratios["list missing"] == 0.25
        for _ in range(3):
            await mesh.auditor.audit(reader)
        assert REGISTRY.get_sample_value("feedmesh_audit_ratio", {"of": LIST, "kind": "missing"}) == 1 / 16
        for _ in range(worker.LATEST - 3):
            mesh.auditor._count(replace(mesh.auditor._latest[-1], entries={LIST: 4, FEED: 4}))
        assert REGISTRY.get_sample_value("feedmesh_audit_ratio", {"of": LIST, "kind": "missing"}) == 0
