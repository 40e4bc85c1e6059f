"""A home timeline is never wrong: whatever people do, whatever breaks, and in whichever order things come about.

Hypothesis chooses what happens, step by step: people act, the mesh takes a step of its work, something breaks, somebody
reads. All of it happens in the real services (mesh_world.py) and, where people act, in a model (feed_model.py). Reads
are held against the model: at rest they equal it; while events are in flight nothing repeats, nothing is shown that
must not be seen, and nothing lacks but what is on its way; and the actor's next read is right at once.

A failure is printed as the shortest sequence of steps that leads to it, and is met again by the same steps.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import sys
from collections.abc import Collection, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from launch.valkey import Running as Valkey
from tests.fakes.databases import Databases
from tests.integration.feed_model import STRANGER, Model, assert_windows
from tests.integration.mesh_world import GRAPH, LIMITS, POST, REPLICAS, WINDOW, WORKERS, Mesh, World, answered, mesh

T = TypeVar("T")

SOAK = "FEEDMESH_SOAK_STEPS"
"""How many random steps to take, instead of the same 3,000; `make soak` sets it."""
STEPS, EXAMPLES = 1_000, 10
FIRST, MOST = 4, 7
"""People at the beginning, and at the most."""
FORGETFUL_S = 0.6
"""After this long nobody goes by what somebody's account was."""
CALM = 12
"""What people do at the least before everything comes to rest."""
WHOLE = (50,)
"""Limits of pages: everything on one."""

WHO = st.integers(0, MOST - 1)
WHICH = st.integers(0, 30)
"""One of the posts: the newest is 0."""
REPLICA = st.integers(0, REPLICAS - 1)
WORKER = st.integers(0, WORKERS - 1)
TOPIC = st.sampled_from((POST, GRAPH))
ORDER = st.sampled_from((pb.FEED_ORDER_LATEST, pb.FEED_ORDER_RANKED))
PAGES = st.lists(st.integers(2, 9), min_size=1, max_size=3)
RELATIONS = (*["follow"] * 5, *["unfollow"] * 2, *["accept"] * 2, "reject", "block", "unblock", "mute", "unmute")
WORK = (
    *["advance"] * 4, "relay", "consume", "reconcile", *["consume_slowly"] * 2, *["advance_slowly"] * 2, "fold",
    "sweep_graph", "sweep_posts", "notice", *["pass_time"] * 2,
)  # fmt: skip


@dataclass
class Scroll:
    """Somebody between two pages."""

    claims: set[int]
    """Rows that were there at the first page, and put a post into the feed ever since."""
    newest: int
    """The newest row of that moment."""
    cursor: str = ""
    shown: list[int] = field(default_factory=list)


class FeedMachine(RuleBasedStateMachine):
    """Everything that can happen."""

    mesh: ClassVar[Mesh]
    runner: ClassVar[asyncio.Runner]
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.stack = AsyncExitStack()
        self.world: World = self.run(self.stack.enter_async_context(self.mesh.world()))
        self.model = Model()
        self.people: list[int] = []
        self.acts = 0
        """What people did since everything was at rest."""
        self.scrolls: dict[tuple[int, pb.FeedOrder.ValueType], Scroll] = {}

    def teardown(self) -> None:
        """At the end everything comes to rest; unless the end is a failure."""
        try:
            if sys.exception() is None:
                self.settle(0, (5, 3))
        finally:
            self.run(self.stack.aclose())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Lets the mesh do something."""
        return self.runner.run(work)

    # What people do.

    @initialize(strangers=st.lists(st.tuples(WHO, WHO), max_size=6, unique=True))
    def begin(self, strangers: Sequence[tuple[int, int]]) -> None:
        """Some people, who have lists and follow each other but for some."""
        for _ in range(FIRST):
            self.join()
        for one, other in itertools.permutations(range(FIRST), 2):
            if (one, other) not in strangers:
                self.relate("follow", one, other)

    @rule(one=WHO, posts=st.integers(1, 4), followers_only=st.booleans())
    def write(self, one: int, posts: int, followers_only: bool) -> None:
        """Somebody writes."""
        author = self.alive(one)
        for _ in range(posts):
            post_id = self.run(self.world.write(author, followers_only=followers_only))
            self.model.write(post_id, author, followers_only=followers_only)
        self.acted(author)

    @rule(one=WHO, posts=st.integers(1, 4), worker=WORKER)
    def publish(self, one: int, posts: int, worker: int) -> None:
        """Somebody writes, and all events are handled."""
        self.write(one, posts, False)
        self.flow(worker)

    @rule(one=WHO, post=WHICH, content=st.sampled_from(("", "", "words")))
    def share(self, one: int, post: int, content: str) -> None:
        """Somebody shares a post, or quotes it."""
        if self.model.rows:
            sharer, aim = self.alive(one), self.aim(one, post)
            original = self.model.rows[aim].original
            share = self.run(self.world.share(sharer, aim, content))
            if not self.model.may_see(sharer, aim):
                assert share == "POST_NOT_FOUND"
            elif content:
                self.model.write(int(share), sharer, quoted=original)
            else:
                assert share == (self.model.share_of(sharer, original) or share)
                self.model.write(int(share), sharer, original=original)
            self.acted(sharer)

    @rule(one=WHO, post=WHICH, own=st.sampled_from((True, True, True, False)))
    def delete(self, one: int, post: int, own: bool) -> None:
        """Somebody deletes a post or a share; now and then one that is not theirs."""
        there = [row for row in self.rows if not (row.deleted or self.model.rows[row.original].deleted)]
        if there:
            row = there[post % len(there)]
            actor = row.author if own and row.author in self.living else self.alive(one)
            self.be_sure(actor, row.post_id)
            assert self.run(self.world.delete(actor, row.post_id)) == self.model.delete(actor, row.post_id)
            self.acted(actor)

    @rule(act=st.sampled_from(("like", "comment", "unlike")), one=WHO, post=WHICH)
    def react(self, act: str, one: int, post: int) -> None:
        """Somebody likes or comments on a post, or takes a like back."""
        if self.model.rows:
            user, aim = self.alive(one), self.aim(one, post)
            original = self.model.rows[aim].original
            answer = self.run(getattr(self.world, act)(user, aim))
            if not self.model.may_see(user, aim):
                assert answer == "POST_NOT_FOUND"
            elif act == "comment":
                self.model.comments[answer] = (user, original)
            else:
                (self.model.likes.add if act == "like" else self.model.likes.discard)((user, original))
                counts = self.model.counts(original)
                assert counts.least[0] <= answer <= counts.most[0]

    @rule(act=st.sampled_from(RELATIONS), one=WHO, other=WHO)
    def relate(self, act: str, one: int, other: int) -> None:
        """Somebody follows somebody, or what else one may do about another. It is right in the next read of both.

        What a new followee wrote is in it whether or not its events were handled.
        """
        actor, target = self.who(one), self.who(other)
        before = set(self.model.follows)
        assert self.run(getattr(self.world, act)(actor, target)) == getattr(self.model, act)(actor, target)
        for user, followee in ((actor, target), (target, actor)):
            new = (user, followee) in self.model.follows - before
            self.acted(user, rows=[row.post_id for row in self.rows if new and row.author == followee])

    @rule(act=st.sampled_from(("be_private", "be_public", "be_private", "be_public", "join", "erase")), one=WHO)
    def change_account(self, act: str, one: int) -> None:
        """An account becomes private or public; somebody joins or erases themselves."""
        user = self.who(one)
        if act == "join":
            self.join()
        elif act != "erase":
            private = act == "be_private"
            assert self.run(self.world.set_private(user, private)) == self.model.set_private(user, private)
        elif len(self.living) > 2 or user not in self.living:
            assert self.run(self.world.erase(user)) == self.model.erase(user)
            self.scrolls = {of: scroll for of, scroll in self.scrolls.items() if of[0] != user}
            assert self.run(answered(self.page(user))) == "USER_NOT_FOUND"
        self.acted(user)

    def join(self) -> None:
        """One more person."""
        if len(self.people) < MOST:
            user = self.run(self.world.join())
            self.people.append(user)
            self.model.join(user)
            self.acted(user)

    # What the mesh does.

    @rule(worker=WORKER)
    def flow(self, worker: int) -> None:
        """Events come from the outboxes to a worker."""
        self.run(self.world.relay())
        self.run(self.world.consume(worker))

    @rule(act=st.sampled_from(WORK), worker=WORKER)
    def work(self, act: str, worker: int) -> None:
        """Some part of the mesh takes a step."""
        if act == "pass_time":
            self.pass_time()
        elif act in ("relay", "fold", "notice", "sweep_graph", "sweep_posts"):
            self.run(getattr(self.world, act)())
        else:
            self.run(getattr(self.world, act)(worker))
        if act.startswith("advance"):
            self.model.half_a_second_passes()
        elif act == "sweep_graph":
            self.model.sweep()

    @rule(limit=st.sampled_from(LIMITS), worker=WORKER)
    def set_limit(self, limit: int, worker: int) -> None:
        """Authors with more followers are to be pulled."""
        self.run(self.world.set_limit(limit))
        self.run(self.world.reconcile(worker))

    @rule(one=WHO, replica=REPLICA)
    def read_slowly(self, one: int, replica: int) -> None:
        """A read builds a list from what it has read, but only later."""
        self.run(self.world.read_slowly(self.alive(one), replica))

    @rule(number=st.integers(0, 2))
    def go_on(self, number: int) -> None:
        """Something slow comes to its end."""
        if self.world.held:
            self.run(self.world.go_on(number))

    # What breaks.

    @rule(act=st.sampled_from(("expire", "half_build")), one=WHO)
    def lose_list(self, act: str, one: int) -> None:
        """Somebody's list expires, or its builder dies."""
        self.run(getattr(self.world, act)(self.who(one)))

    @rule(worker=WORKER, survived=st.integers(0, 3))
    def die(self, worker: int, survived: int) -> None:
        """A worker dies with events that it took, some of which it handled; relays die that noted nothing."""
        self.run(self.world.publish_and_die())
        self.run(self.world.take_and_die(worker, survived))

    @rule(act=st.sampled_from(("repeat", "handle")), topic=TOPIC, number=WHICH)
    def disorder(self, act: str, topic: int, number: int) -> None:
        """Some event comes again, or before all others."""
        self.run(getattr(self.world, act)(topic, number))

    @rule(noticed=st.booleans())
    def flush(self, noticed: bool) -> None:
        """Redis loses everything."""
        self.run(self.world.flush())
        if noticed:
            self.run(self.world.notice())

    # Who reads what.

    @rule(one=WHO, replica=REPLICA, order=ORDER, limits=PAGES)
    def peek(self, one: int, replica: int, order: pb.FeedOrder.ValueType, limits: Sequence[int]) -> None:
        """Somebody reads, while events are in flight."""
        self.read(self.alive(one), replica, limits, order)

    @rule(one=WHO, replica=REPLICA, order=ORDER, limit=st.integers(1, 5))
    def scroll(self, one: int, replica: int, order: pb.FeedOrder.ValueType, limit: int) -> None:
        """Somebody reads one page, the first or the next one."""
        reader = self.alive(one)
        scroll = self.scrolls.setdefault((reader, order), Scroll(self.due(reader), max(self.model.rows, default=0)))
        page = self.run(self.page(reader, replica, limit, scroll.cursor, order))
        allowed = self.model.feed(self.model.rows_of(reader, perhaps=True))
        for post in page.posts:
            assert post.post_id in {entry.post_id for entry in allowed}, "it must not be seen"
            assert post.post_id <= scroll.newest, "it was not there at the first page"
            self.look_at(reader, post)
        scroll.shown += [post.post_id for post in page.posts]
        scroll.cursor = page.next_cursor
        assert len(scroll.shown) == len(set(scroll.shown)), "a post comes twice"
        if not scroll.cursor:
            del self.scrolls[reader, order]
            lacking = {self.model.rows[row].original for row in scroll.claims}.difference(scroll.shown)
            assert not lacking, "posts were skipped"

    @rule(one=st.one_of(st.just(STRANGER - 1), WHO), post=WHICH)
    def look(self, one: int, post: int) -> None:
        """Somebody, or a stranger, looks at a post, its comments and its author."""
        if self.model.rows:
            viewer = STRANGER if one < 0 else self.alive(one)
            self.look_around(viewer, self.rows[post % len(self.rows)].post_id)

    @precondition(lambda self: self.acts >= CALM)
    @rule(one=WHO, limits=PAGES)
    def settle(self, one: int, limits: Sequence[int]) -> None:
        """Everything comes to rest: then every feed is what was written, at every replica and in every order."""
        self.acts = 0
        self.run(self.world.settle())
        self.world.handled.update(self.model.rows)
        self.model.half_a_second_passes()
        self.model.clear()
        assert not self.run(self.world.left())
        ways = list(itertools.product(range(REPLICAS), (pb.FEED_ORDER_LATEST, pb.FEED_ORDER_RANKED)))
        for at, reader in enumerate(self.living, one):
            for way, (replica, order) in enumerate(ways):
                # Small pages cost much: each reader meets them one way, the next one another way.
                pages = limits if way == at % len(ways) else WHOLE
                assert not self.read(reader, replica, pages, order), "it is degraded"
        self.look_at_person(self.who(one))
        for row in self.rows[:3]:
            self.look_around(self.alive(one), row.post_id)

    # How it is held against the model.

    def acted(self, *users: int, rows: Collection[int] = ()) -> None:
        """After every act: the next read of those whom it concerned is right. These rows must be in it already."""
        self.acts += 1
        for (reader, _), scroll in self.scrolls.items():
            # What must not be shown for a moment, a scroll may pass by.
            scroll.claims &= self.model.rows_of(reader)
        for user in users:
            if user in self.living:
                self.read(user, self.people.index(user) % REPLICAS, WHOLE, pb.FEED_ORDER_LATEST, rows)

    def read(
        self,
        reader: int,
        replica: int,
        limits: Sequence[int],
        order: pb.FeedOrder.ValueType,
        rows: Collection[int] = (),
    ) -> set[str]:
        """Reads a feed to its end and holds it against the model; what it was degraded by."""
        posts, degraded = self.run(self.world.read(reader, replica, limits, order))
        assert degraded <= {"redis"}
        shown = [post.post_id for post in posts]
        allowed = self.model.feed(self.model.rows_of(reader, perhaps=True))
        due = self.model.feed(self.due(reader, rows))
        assert len(shown) == len(set(shown)), "a post comes twice"
        assert set(shown) <= {entry.post_id for entry in allowed}, "it must not be seen"
        assert {entry.post_id for entry in due} <= set(shown), "a post lacks"
        if due == allowed:
            wanted = [entry.post_id for entry in due]
            if order == pb.FEED_ORDER_RANKED:
                assert_windows(shown, wanted, WINDOW)
            else:
                assert shown == wanted
        for post in posts:
            self.look_at(reader, post)
            if due == allowed:
                assert [sharer.user_id for sharer in post.shared_by] == self.model.sharers(reader, post.post_id)
        return degraded

    def due(self, reader: int, rows: Collection[int] = ()) -> set[int]:
        """The rows that must be in somebody's feed now: all but those whose events are in flight."""
        own = {row.post_id for row in self.model.rows.values() if row.author == reader}
        return self.model.rows_of(reader) & self.world.handled.union(own, rows)

    def look_at(self, viewer: int, post: post_pb2.Post, *, in_feed: bool = True) -> None:
        """Holds what is shown of a post against the model."""
        row = self.model.rows[post.post_id]
        assert post.user_id == row.author
        assert (post.visibility == post_pb2.VISIBILITY_FOLLOWERS) == row.followers_only
        least, most = self.model.counts(row.original)
        counts = (post.likes, post.comments, post.shares)
        assert all(low <= count <= high for low, count, high in zip(least, counts, most, strict=True)), counts
        assert post.liked == ((viewer, row.original) in self.model.likes)
        quoted = row.quoted or (row.original if row.is_share else 0)
        if quoted and self.model.is_sure(viewer, quoted):
            muted = in_feed and (viewer, self.model.rows[quoted].author) in self.model.mutes
            assert post.HasField("shared_post") == (self.model.may_see(viewer, quoted) and not muted)
        assert not post.HasField("shared_post") or post.shared_post.post_id == quoted

    def look_around(self, viewer: int, post_id: int) -> None:
        """Reads a post, its comments and its author's page directly, and holds them against the model."""
        self.be_sure(viewer, post_id)
        stub, row = self.world.mesh.post, self.model.rows[post_id]
        of: dict[str, Any] = {"viewer_id": viewer} if viewer != STRANGER else {}
        post = self.run(answered(stub.GetPost(post_pb2.GetPostRequest(post_id=post_id, **of))))
        comments = self.run(answered(stub.ListComments(post_pb2.ListCommentsRequest(post_id=post_id, limit=100, **of))))
        page = self.run(
            answered(stub.ListUserPosts(post_pb2.ListUserPostsRequest(user_id=row.author, limit=100, **of)))
        )
        if self.model.may_see(viewer, post_id):
            self.look_at(viewer, post.post, in_feed=False)
            shown = [comment.comment_id for comment in comments.comments]
            assert shown == self.model.comments_under(viewer, row.original)
        else:
            assert post == comments == "POST_NOT_FOUND"
        if self.model.shows(viewer, row.author):
            assert [each.post_id for each in page.posts] == self.model.author_page(viewer, row.author)
            for each in page.posts:
                self.look_at(viewer, each, in_feed=False)
        else:
            assert page == "USER_NOT_FOUND"

    def look_at_person(self, user: int) -> None:
        """Holds somebody's counts against the model."""
        answer = self.run(answered(self.world.mesh.graph.GetUser(graph_pb2.GetUserRequest(user_id=user))))
        if user in self.living:
            followers = sum(followee == user for _, followee in self.model.follows)
            following = sum(follower == user for follower, _ in self.model.follows)
            assert (answer.user.followers, answer.user.following) == (followers, following)
        else:
            assert answer == "USER_NOT_FOUND"

    async def page(
        self,
        reader: int,
        replica: int = 0,
        limit: int = 20,
        cursor: str = "",
        order: pb.FeedOrder.ValueType = pb.FEED_ORDER_LATEST,
    ) -> pb.GetFeedResponse:
        """A page of a feed."""
        page = await self.world.page(reader, replica, limit=limit, cursor=cursor, order=order)
        if not isinstance(page, pb.GetFeedResponse):
            raise page
        assert len(page.posts) <= limit
        return page

    def pass_time(self) -> None:
        """The clock goes on, for as long as names are kept."""
        self.run(self.world.pass_time(FORGETFUL_S))
        self.model.half_a_second_passes()

    # Who and what is meant.

    @property
    def living(self) -> list[int]:
        """Who is not erased."""
        return [user for user in self.people if not self.model.people[user].erased]

    @property
    def rows(self) -> list[Any]:
        """All posts, the newest first."""
        return [self.model.rows[post_id] for post_id in sorted(self.model.rows, reverse=True)]

    def who(self, number: int) -> int:
        """Somebody, erased or not."""
        return self.people[number % len(self.people)]

    def alive(self, number: int) -> int:
        """Somebody who is not erased."""
        return self.living[number % len(self.living)]

    def aim(self, one: int, number: int) -> int:
        """A post for somebody to act on; it is sure what they may see of it."""
        post_id: int = self.rows[number % len(self.rows)].post_id
        self.be_sure(self.alive(one), post_id)
        return post_id

    def be_sure(self, viewer: int, post_id: int) -> None:
        """Lets time pass where it could be either way whether somebody may see a post."""
        row = self.model.rows[post_id]
        people = [self.model.people[user] for user in (row.author, self.model.rows[row.original].author)]
        if any(person.was_there or person.was_public or person.was_private for person in people):
            self.pass_time()


@pytest.fixture
def _mesh(databases: Databases, valkey: Valkey) -> Iterator[None]:
    """One mesh, and one loop that it lives on, for all that the machine does."""
    stack = AsyncExitStack()
    with asyncio.Runner() as FeedMachine.runner:
        FeedMachine.mesh = FeedMachine.runner.run(stack.enter_async_context(mesh(databases, valkey)))
        try:
            yield
        finally:
            FeedMachine.runner.run(stack.aclose())


def numbers() -> list[int]:
    """What decides over the steps, a thousand each: always the same, or for a soak others each time."""
    return [secrets.randbits(64) for _ in range(int(os.environ[SOAK]) // STEPS)] if SOAK in os.environ else [0, 1, 2]


@pytest.mark.usefixtures("_mesh")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", numbers())
def test_a_home_timeline_is_never_wrong(number: int) -> None:
    run_state_machine_as_test(
        seed(number)(FeedMachine),
        settings=settings(
            # Of more than ten examples, Hypothesis makes most by changing one a little, which finds less.
            max_examples=EXAMPLES,
            stateful_step_count=STEPS // EXAMPLES,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
