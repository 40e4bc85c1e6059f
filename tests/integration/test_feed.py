"""The home feed, stage by stage, on small windows and small lists: the real timeline and ranking, a real Redis and a
real database of modes; the post and graph services in memory (they pass the contract suites of the real ones)."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

import pytest
from google.rpc import status_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub, add_GraphServiceServicer_to_server
from feedmesh.post.v1 import post_pb2
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub, add_PostServiceServicer_to_server
from feedmesh.ranking.v1.ranking_pb2_grpc import (
    RankingServiceStub,
    add_RankingServiceServicer_to_server,
)
from feedmesh.timeline.v1 import timeline_pb2 as pb
from launch.valkey import Running as Valkey
from runtime import client, errors
from runtime.clock import wall_clock
from runtime.paging import Cursors
from runtime.relations import Relations
from services.graph.servicer import SERVICE as GRAPH
from services.post.servicer import SERVICE as POST
from services.ranking.servicer import SERVICE as RANKING
from services.ranking.servicer import RankingServicer
from services.timeline import authors, scroll, skeleton
from services.timeline.deliver import Fanout
from services.timeline.feed import Parts
from tests.fakes.databases import Databases
from tests.fakes.graph import FakeGraph
from tests.fakes.post import FakePost
from tests.fakes.serving import CALLER, Served, serving
from tests.integration.timeline_stores import feeds, timeline_servicer, timeline_stores

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

PEOPLE = 4
READER = 0
Worlds = Callable[[int], AbstractAsyncContextManager["World"]]
ORDERS = (pb.FEED_ORDER_RANKED, pb.FEED_ORDER_LATEST)


@dataclass(frozen=True)
class World:
    """A mesh around a feed, and the people in it."""

    parts: Parts
    graph: GraphServiceAsyncStub
    people: list[int]
    ranking: Served
    fanout: Fanout

    async def post(self, author: int) -> int:
        """A post; its id."""
        request = post_pb2.CreatePostRequest(user_id=self.people[author], content="words")
        return await self.delivered((await self.parts.post.CreatePost(request)).post)

    async def share(self, sharer: int, post_id: int, content: str = "") -> int:
        """A plain share or a quote; its id."""
        request = post_pb2.SharePostRequest(user_id=self.people[sharer], post_id=post_id, content=content)
        return await self.delivered((await self.parts.post.SharePost(request)).post)

    async def delivered(self, post: post_pb2.Post) -> int:
        """Hands a post's event to fan-out; the post's id."""
        original_id = post.shared_post.post_id if post.HasField("shared_post") and not post.content else post.post_id
        made = event_pb2.PostCreated(post_id=post.post_id, author_id=post.user_id, original_id=original_id)
        await self.fanout.post_events([event_pb2.Event(event_id=post.post_id, post_created=made)])
        return post.post_id

    async def delete(self, post_id: int) -> None:
        """Deletes a post, whoever wrote it."""
        post = (await self.parts.post.GetPost(post_pb2.GetPostRequest(post_id=post_id))).post
        await self.parts.post.DeletePost(post_pb2.DeletePostRequest(post_id=post_id, user_id=post.user_id))

    async def follow(self, *followees: int) -> None:
        """The reader follows people."""
        for followee in followees:
            await self.graph.Follow(
                graph_pb2.FollowRequest(follower_id=self.people[READER], following_id=self.people[followee])
            )

    async def unfollow(self, followee: int) -> None:
        """The reader unfollows someone."""
        await self.graph.Unfollow(
            graph_pb2.UnfollowRequest(follower_id=self.people[READER], following_id=self.people[followee])
        )

    async def page(self, order: pb.FeedOrder.ValueType, limit: int, cursor: str = "") -> pb.GetFeedResponse:
        """A page of the reader's feed."""
        request = pb.GetFeedRequest(user_id=self.people[READER], limit=limit, cursor=cursor, order=order)
        [answer] = await feeds(self.parts, [request])
        assert isinstance(answer, pb.GetFeedResponse), answer
        assert len(answer.posts) <= limit
        assert "redis" not in answer.degraded
        return answer

    async def scroll(self, order: pb.FeedOrder.ValueType, limits: Sequence[int], cursor: str = "") -> list[int]:
        """The ids of the reader's feed to its end."""
        shown = []
        for limit in itertools.cycle(limits):
            page = await self.page(order, limit, cursor)
            shown += [post.post_id for post in page.posts]
            if not page.HasField("next_cursor"):
                return shown
            cursor = page.next_cursor
        raise AssertionError("unreachable")


@asynccontextmanager
async def world(databases: Databases, valkey: Valkey, window: int) -> AsyncIterator[World]:
    """A mesh with four people and nothing else, whose windows hold so many posts and whose lists hold ten."""
    graph_servicer = FakeGraph()
    post_servicer = FakePost(graph_servicer)
    async with (
        serving(lambda s: add_GraphServiceServicer_to_server(graph_servicer, s), services=(GRAPH,)) as graph,
        serving(lambda s: add_PostServiceServicer_to_server(post_servicer, s), services=(POST,)) as post,
        client.connect(graph.target, CALLER, GRAPH) as graph_channel,
        client.connect(post.target, CALLER, POST) as post_channel,
        timeline_stores(databases, valkey) as stores,
    ):
        ranking_servicer = RankingServicer(PostServiceStub(post_channel), wall_clock)
        async with (
            serving(
                lambda s: add_RankingServiceServicer_to_server(ranking_servicer, s), services=(RANKING,)
            ) as ranking,
            client.connect(ranking.target, CALLER, RANKING) as ranking_channel,
        ):
            graph_stub, post_stub = GraphServiceStub(graph_channel), PostServiceStub(post_channel)
            people = [
                (
                    await graph_stub.CreateUser(
                        graph_pb2.CreateUserRequest(username=f"person{n}", email=f"person{n}@example.org")
                    )
                ).user.user_id
                for n in range(PEOPLE)
            ]
            parts = Parts(
                Relations(graph_stub),
                Cursors("a secret of at least 32 characters"),
                await stores.sources(post_stub),
                post_stub,
                RankingServiceStub(ranking_channel),
                window,
            )
            fanout = await stores.fanout(graph_stub, post_stub, limit=2)
            yield World(parts, graph_stub, people, ranking, fanout)


@pytest.fixture(scope="session")
def worlds(databases: Databases, valkey: Valkey) -> Worlds:
    """Makes worlds whose windows hold so many posts."""
    return lambda window: world(databases, valkey, window)


@dataclass
class Entry:
    """What the model knows of a post."""

    post_id: int
    author: int
    original: int
    deleted: bool = False


def acts_of(kinds: str) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """What people do: p(ost), s(hare), q(uote), d(elete a post), u(nshare), f(ollow), l(eave, that is unfollow)."""
    act = st.tuples(st.sampled_from(kinds), st.integers(0, PEOPLE - 1), st.integers(0, 10**6))
    return st.lists(act, min_size=1, max_size=40)


acts = acts_of("ppppssqdu")


async def perform(world: World, acts: list[tuple[str, int, int]], entries: list[Entry]) -> None:
    """Does as the acts say, and notes posts, shares and deletes in the model."""
    for act, person, number in acts:
        there = [entry for entry in entries if entry.post_id == entry.original and not entry.deleted]
        shares = [entry for entry in entries if entry.post_id != entry.original and not entry.deleted]
        shares = [share for share in shares if any(entry.post_id == share.original for entry in there)]
        aim = there[number % len(there)] if there else None
        if act == "f":
            await world.follow(*{person} - {READER})
        elif act == "l":
            await world.unfollow(person)
        elif act == "u":
            if shares:
                share = shares[number % len(shares)]
                await world.delete(share.post_id)
                share.deleted = True
        elif act == "p" or aim is None:
            post_id = await world.post(person)
            entries.append(Entry(post_id, person, post_id))
        elif act == "s":
            share_id = await world.share(person, aim.post_id)
            if share_id not in {entry.post_id for entry in entries}:
                entries.append(Entry(share_id, person, aim.post_id))
        elif act == "q":
            post_id = await world.share(person, aim.post_id, "quoted")
            entries.append(Entry(post_id, person, post_id))
        else:
            await world.delete(aim.post_id)
            aim.deleted = True


def expected(entries: list[Entry], authors: set[int]) -> list[int]:
    """The posts of a feed, newest first: each once, at its newest plain share by one of the authors or at itself."""
    deleted = {entry.post_id for entry in entries if entry.deleted}
    place: dict[int, int] = {}
    for entry in entries:
        if entry.author in authors and entry.original not in deleted and not entry.deleted:
            place[entry.original] = max(place.get(entry.original, 0), entry.post_id)
    return sorted(place, key=lambda post_id: -place[post_id])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts, st.sets(st.integers(1, PEOPLE - 1)), st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1))
async def test_a_feed_is_what_the_posts_say(
    worlds: Worlds, acts: list[tuple[str, int, int]], followees: set[int], window: int, limits: list[int]
) -> None:
    async with worlds(window) as mesh:
        entries: list[Entry] = []
        await mesh.follow(*followees)
        await perform(mesh, acts, entries)
        wanted = expected(entries, followees | {READER})
        assert await mesh.scroll(pb.FEED_ORDER_LATEST, limits) == wanted
        ranked = await mesh.scroll(pb.FEED_ORDER_RANKED, limits)
        assert sorted(ranked) == sorted(wanted)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts, acts_of("pssquudffl"), st.integers(1, 9), st.integers(1, 8), st.sampled_from(ORDERS))
async def test_what_happens_in_mid_scroll_repeats_and_hides_nothing(
    worlds: Worlds,
    before: list[tuple[str, int, int]],
    between: list[tuple[str, int, int]],
    window: int,
    limit: int,
    order: pb.FeedOrder.ValueType,
) -> None:
    async with worlds(window) as mesh:
        entries: list[Entry] = []
        await mesh.follow(*range(1, PEOPLE))
        await perform(mesh, before, entries)
        eligible = set(expected(entries, set(range(PEOPLE))))
        first = await mesh.page(order, limit)
        await perform(mesh, between, entries)
        shown = [post.post_id for post in first.posts]
        if first.HasField("next_cursor"):
            shown += await mesh.scroll(order, [limit], first.next_cursor)
        assert len(shown) == len(set(shown))
        # Whatever was unfollowed or unshared meanwhile, what is written by those whom the reader followed all along and
        # was there before must come; and nothing that came after the first page.
        followed_all_along = {READER, *range(1, PEOPLE)} - {person for act, person, _ in between if act == "l"}
        gone = {entry.post_id for entry in entries if entry.deleted}
        own = {entry.post_id for entry in entries if entry.post_id == entry.original} - gone
        certain = {entry.post_id for entry in entries if entry.author in followed_all_along} & own & eligible
        assert certain <= set(shown) <= eligible


async def test_a_scroll_that_forgets_what_it_showed_still_repeats_nothing(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scroll, "MAX_EARLIER", 2)
    async with worlds(5) as mesh:
        await mesh.follow(1, 2, 3)
        posts = [await mesh.post(1) for _ in range(12)]
        for sharer in (2, 3):
            for post_id in posts:
                await mesh.share(sharer, post_id)
        assert await mesh.scroll(pb.FEED_ORDER_LATEST, [3, 4]) == posts[::-1]


async def test_what_is_unfollowed_in_mid_scroll_is_gone_from_the_next_page(worlds: Worlds) -> None:
    async with worlds(5) as mesh:
        await mesh.follow(1, 2)
        posts = [await mesh.post(1 + n % 2) for n in range(20)]
        first = await mesh.page(pb.FEED_ORDER_LATEST, 4)
        await mesh.unfollow(1)
        rest = await mesh.scroll(pb.FEED_ORDER_LATEST, [4], first.next_cursor)
        assert [post.post_id for post in first.posts] == posts[:15:-1]
        assert rest == posts[15::-2]


async def test_without_ranking_a_page_is_newest_first_and_says_so(worlds: Worlds) -> None:
    async with worlds(5) as mesh:
        posts = [await mesh.post(READER) for _ in range(12)]
        await mesh.ranking.stop()
        page = await mesh.page(pb.FEED_ORDER_RANKED, 20)
        assert [post.post_id for post in page.posts] == posts[::-1]
        assert list(page.degraded) == ["ranking"]
        assert list((await mesh.page(pb.FEED_ORDER_LATEST, 20)).degraded) == []


async def test_what_one_writes_shows_in_the_next_read_of_a_feed_that_was_empty(worlds: Worlds) -> None:
    async with worlds(5) as mesh:
        written: list[int] = []
        for _ in range(3):
            for order in (pb.FEED_ORDER_RANKED, pb.FEED_ORDER_LATEST):
                page = await mesh.page(order, 20)
                assert sorted((post.post_id for post in page.posts), reverse=True) == written
            written.insert(0, await mesh.post(READER))
        gone = written.pop()
        await mesh.parts.post.DeletePost(post_pb2.DeletePostRequest(user_id=mesh.people[READER], post_id=gone))
        assert [post.post_id for post in (await mesh.page(pb.FEED_ORDER_LATEST, 20)).posts] == written


async def test_a_list_that_did_not_change_is_read_by_relations_that_did(worlds: Worlds) -> None:
    async with worlds(5) as mesh:

        async def shown(*expected: int) -> None:
            for _ in range(2):
                page = await mesh.page(pb.FEED_ORDER_LATEST, 20)
                assert [post.post_id for post in page.posts] == list(expected)

        reader, other = mesh.people[READER], mesh.people[1]
        await mesh.follow(1, 2)
        first, second = await mesh.post(1), await mesh.post(2)
        await shown(second, first)
        await mesh.unfollow(2)
        await shown(first)
        await mesh.graph.Mute(graph_pb2.MuteRequest(user_id=reader, target_id=other))
        await shown()
        await mesh.graph.Unmute(graph_pb2.UnmuteRequest(user_id=reader, target_id=other))
        await shown(first)
        await mesh.follow(2)
        await shown(second, first)


async def test_a_window_holds_more_of_ones_own_posts_than_are_read_ahead(worlds: Worlds) -> None:
    async with worlds(skeleton.WINDOW) as mesh:
        await mesh.follow(1)
        other = await mesh.post(1)
        own = [await mesh.post(READER) for _ in range(authors.OWN + 5)]
        page = await mesh.page(pb.FEED_ORDER_LATEST, 100)
        assert [post.post_id for post in page.posts] == [*own[::-1], other]


async def test_without_the_modes_a_page_is_read_from_postgres_and_says_so(worlds: Worlds) -> None:
    async with worlds(5) as mesh:
        await mesh.follow(1)
        posts = [await mesh.post(1) for _ in range(12)]
        await mesh.fanout.pool.close()
        request = pb.GetFeedRequest(user_id=mesh.people[READER], order=pb.FEED_ORDER_LATEST)
        [answer] = await feeds(mesh.parts, [request])
        assert isinstance(answer, pb.GetFeedResponse)
        assert [post.post_id for post in answer.posts] == posts[::-1]
        assert list(answer.degraded) == ["redis"]


async def test_a_ranking_that_fails_takes_no_feed_with_it(worlds: Worlds) -> None:
    class Broken(RankingServicer):
        async def BatchRank(self, request: object, context: object) -> NoReturn:
            raise ValueError("a defect")

    async with (
        worlds(5) as mesh,
        serving(
            lambda s: add_RankingServiceServicer_to_server(Broken(mesh.parts.post, wall_clock), s), services=(RANKING,)
        ) as ranking,
        client.connect(ranking.target, CALLER, RANKING) as channel,
    ):
        post_id = await mesh.post(READER)
        parts = replace(mesh.parts, ranking=RankingServiceStub(channel))
        [answer] = await feeds(parts, [pb.GetFeedRequest(user_id=mesh.people[READER])])
        assert isinstance(answer, pb.GetFeedResponse)
        assert ([post.post_id for post in answer.posts], list(answer.degraded)) == ([post_id], ["ranking"])


async def test_a_batch_asks_for_no_more_posts_than_an_answer_holds(worlds: Worlds) -> None:
    async with worlds(5) as mesh:
        request = pb.BatchGetFeedRequest(items=[pb.GetFeedRequest(user_id=mesh.people[READER], limit=100)] * 7)
        with pytest.raises(errors.InvalidArgument, match="640 posts"):
            await timeline_servicer(mesh.parts).BatchGetFeed(request, None)


async def test_a_cursor_stays_short_for_one_who_follows_and_unfollows_all_the_time(
    worlds: Worlds,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scroll, "MAX_SHOWN", 6)
    async with worlds(3) as mesh:
        for _ in range(12):
            for author in range(1, PEOPLE):
                await mesh.post(author)
        cursor, shown, longest = "", [], 0
        for turn in itertools.count():
            await mesh.unfollow(turn % 3 + 1)
            await mesh.follow((turn + 1) % 3 + 1)
            page = await mesh.page(pb.FEED_ORDER_RANKED, 2, cursor)
            shown += [post.post_id for post in page.posts]
            longest = max(longest, len(page.next_cursor))
            if not page.HasField("next_cursor"):
                break
            cursor = page.next_cursor
        assert len(shown) == len(set(shown))
        assert longest < 250


async def test_one_bad_page_of_a_batch_fails_alone(worlds: Worlds) -> None:
    async with worlds(5) as mesh:
        post_id = await mesh.post(READER)
        request = pb.BatchGetFeedRequest()
        request.items.add(user_id=mesh.people[READER])
        request.items.add(user_id=1)
        request.items.add(user_id=0)
        request.items.add(user_id=mesh.people[READER], cursor="forged")
        request.items.add(user_id=mesh.people[READER], limit=101)
        answer = pb.BatchGetFeedResponse.FromString(await timeline_servicer(mesh.parts).BatchGetFeed(request, None))
        assert [post.post_id for post in answer.items[0].result.posts] == [post_id]
        failed = [errors.from_status(status_pb2.Status.FromString(i.error.SerializeToString())) for i in answer.items]
        assert [error.reason for error in failed[1:]] == [
            "USER_NOT_FOUND",
            "INVALID_ARGUMENT",
            "INVALID_CURSOR",
            "INVALID_ARGUMENT",
        ]
        assert [error.fields[0].field for error in failed[2:]] == ["user_id", "cursor", "limit"]


async def test_relations_are_asked_for_once_and_then_only_whether_they_changed(worlds: Worlds) -> None:
    async with worlds(5) as mesh:
        relations = mesh.parts.relations
        reader = mesh.people[READER]
        first = (await relations.of([reader]))[0][reader]
        assert (await relations.of([reader]))[0][reader] is first
        await mesh.follow(1, 2)
        second = (await relations.of([reader]))[0][reader]
        assert second.version > first.version
        assert set(second.following.tolist()) == {mesh.people[1], mesh.people[2]}
        assert await relations.of([1]) == ({}, False)


async def test_a_page_looks_at_a_bounded_number_of_windows_and_the_next_one_goes_on(worlds: Worlds) -> None:
    async with worlds(2) as mesh:
        # A feed of nothing but posts that stand elsewhere: each original once, then shared by everyone.
        await mesh.follow(1, 2, 3)
        posts = [await mesh.post(1) for _ in range(40)]
        for post_id in posts:
            await mesh.share(2, post_id)
        first = await mesh.page(pb.FEED_ORDER_LATEST, 100)
        assert len(first.posts) < 40
        assert first.HasField("next_cursor")
        rest = await mesh.scroll(pb.FEED_ORDER_LATEST, [100], first.next_cursor)
        assert [post.post_id for post in first.posts] + rest == posts[::-1]


async def test_a_channel_to_nowhere_is_an_error_and_no_hang(worlds: Worlds) -> None:
    async with worlds(5) as mesh:
        nowhere = client.connect("127.0.0.1:1", CALLER, POST)
        parts = replace(mesh.parts, post=PostServiceStub(nowhere))
        [answer] = await feeds(parts, [pb.GetFeedRequest(user_id=mesh.people[READER])])
        assert isinstance(answer, errors.Unavailable)
        await nowhere.close()
