"""People and relations at the post service: how fresh they are, and what is left of them while the graph is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub, add_GraphServiceServicer_to_server
from feedmesh.post.v1 import post_pb2
from runtime import client, errors
from runtime.media import MediaUrls
from runtime.relations import Relations
from services.graph.servicer import SERVICE
from services.post import people
from services.post.people import People
from services.post.sight import Sights, Viewer
from tests.fakes.graph import FakeGraph
from tests.fakes.serving import CALLER, Served, serving

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub


@dataclass
class Setting:
    """People on a graph in memory, with two persons in it, and a clock that the test moves."""

    graph: Served
    stub: GraphServiceAsyncStub
    ann: int
    bob: int
    now_s: float = 1_000.0

    def people(self) -> People:
        """Nothing known yet."""
        return People(self.stub, timer=lambda: self.now_s)


@pytest_asyncio.fixture
async def at() -> AsyncIterator[Setting]:
    servicer = FakeGraph()
    async with (
        serving(lambda s: add_GraphServiceServicer_to_server(servicer, s), services=(SERVICE,)) as graph,
        client.connect(graph.target, CALLER, SERVICE) as channel,
    ):
        stub = GraphServiceStub(channel)
        ids = [
            (await stub.CreateUser(graph_pb2.CreateUserRequest(username=name, email=f"{name}@e.org"))).user.user_id
            for name in ("ann", "bob")
        ]
        yield Setting(graph, stub, *ids)


async def names(known: People, *user_ids: int) -> dict[int, str | None]:
    return {user_id: person and person.name for user_id, person in (await known.of(user_ids)).items()}


def stale_names() -> float:
    return REGISTRY.get_sample_value("feedmesh_post_stale_names_total") or 0


async def test_names_are_fresh_for_half_a_second(at: Setting) -> None:
    known = at.people()
    assert await names(known, at.ann, 1) == {at.ann: "ann", 1: None}
    await at.graph.stop()
    at.now_s += people.FRESH_S - 0.01
    before = stale_names()
    assert await known.require(at.ann) == "ann"
    assert await names(known, at.ann) == {at.ann: "ann"}
    assert stale_names() == before


async def test_without_the_graph_names_of_the_last_minute_are_shown_and_the_others_lack(at: Setting) -> None:
    known = at.people()
    await names(known, at.ann)
    await at.graph.stop()
    before = stale_names()
    at.now_s += people.STALE_S - 0.01
    assert await names(known, at.ann, at.bob) == {at.ann: "ann"}
    assert stale_names() == before + 1
    at.now_s += 0.02
    assert await names(known, at.ann, at.bob) == {}


async def test_whoever_acts_must_be_known_by_now(at: Setting) -> None:
    known = at.people()
    assert await known.require(at.ann) == "ann"
    with pytest.raises(errors.NotFound):
        await known.require(1)
    await at.graph.stop()
    at.now_s += people.FRESH_S + 0.01
    for user_id in (at.ann, at.bob):
        with pytest.raises(errors.Unavailable):
            await known.require(user_id)


async def test_a_defect_of_the_graph_is_no_absence() -> None:
    class Broken(FakeGraph):
        async def BatchGetUsers(self, request: object, context: object) -> NoReturn:
            raise ValueError("a defect")

    async with (
        serving(lambda s: add_GraphServiceServicer_to_server(Broken(), s), services=(SERVICE,)) as graph,
        client.connect(graph.target, CALLER, SERVICE) as channel,
    ):
        with pytest.raises(errors.Error, match="internal"):
            await People(GraphServiceStub(channel)).of([1])


async def test_names_kept_have_a_bound(at: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "CACHED_PEOPLE", 1)
    known = at.people()
    assert len(await names(known, at.ann, at.bob)) == 2
    await at.graph.stop()
    at.now_s += 1
    assert len(await names(known, at.ann, at.bob)) == 1


async def test_whoever_was_told_the_version_asks_only_for_a_later_one(at: Setting) -> None:
    relations = Relations(at.stub)
    version = (await relations.of([at.ann]))[0][at.ann].version
    await at.graph.stop()
    for told in (version - 1, version):
        found, kept = await relations.of([at.ann], {at.ann: told})
        assert (found[at.ann].version, kept) == (version, False)
    found, kept = await relations.of([at.ann], {at.ann: version + 1})
    assert (found[at.ann].version, kept) == (version, True)
    with pytest.raises(errors.Unavailable):
        await relations.of([at.bob], {at.bob: version})


async def test_while_the_graph_is_gone_what_only_followers_may_see_is_withheld(at: Setting) -> None:
    sights = Sights(at.stub, MediaUrls("a secret of at least 32 characters"))
    await at.stub.Follow(graph_pb2.FollowRequest(follower_id=at.ann, following_id=at.bob))

    async def sees(viewer: Viewer) -> tuple[bool, bool]:
        [sight] = await sights.of([viewer], [at.bob])
        return sight.sees(at.bob, post_pb2.VISIBILITY_PUBLIC), sight.sees(at.bob, post_pb2.VISIBILITY_FOLLOWERS)

    assert await sees(Viewer(at.ann)) == (True, True)
    asked = graph_pb2.BatchGetRelationsRequest(items=[graph_pb2.BatchGetRelationsRequest.Item(viewer_id=at.ann)])
    version = (await at.stub.BatchGetRelations(asked)).items[0].version
    await at.graph.stop()
    for viewer in (Viewer(at.ann), Viewer(at.ann, version, relations_kept=True)):
        assert await sees(viewer) == (True, False)
    with pytest.raises(errors.Unavailable):
        await sees(Viewer(at.bob))
