"""What tests stand on: one embedded Postgres for the session, databases of the services, and the services themselves.

Fixtures are made when a test first asks for them, so a unit test starts nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub, add_GraphServiceServicer_to_server
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub, add_PostServiceServicer_to_server
from launch import postgres as embedded
from launch import valkey as embedded_valkey
from runtime import client, postgres, upkeep
from runtime.blobs import Blobs
from runtime.media import MediaUrls
from runtime.paging import Cursors
from services.graph import servicer as graph
from services.graph import upkeep as graph_upkeep
from services.post import servicer as post
from services.post import upkeep as post_upkeep
from services.post.sight import Sights
from tests.fakes.databases import Databases, settings_of
from tests.fakes.graph import FakeGraph
from tests.fakes.post import FakePost
from tests.fakes.serving import CALLER, GraphService, PostService, RealPostService, nothing_to_keep_up, serving

SECRET = "a secret of at least 32 characters"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[embedded.Server]:
    """A Postgres for the session; it gives up crash safety for speed."""
    with (
        tempfile.TemporaryDirectory() as directory,
        embedded.running(Path(directory) / "data", durable=False) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def databases(postgres_server: embedded.Server) -> Databases:
    """Databases on it."""
    return Databases(postgres_server)


@pytest.fixture(scope="session")
def valkey() -> Iterator[embedded_valkey.Running]:
    """A Valkey for the session. Its contents are everybody's: a test clears or prefixes what it uses."""
    with tempfile.TemporaryDirectory() as directory, embedded_valkey.running(Path(directory) / "data") as server:
        yield server


@pytest_asyncio.fixture
async def graph_pool(databases: Databases) -> AsyncIterator[postgres.Pool]:
    """A database of the graph service, empty."""
    async with databases.lend("services.graph") as dsn, postgres.connect(settings_of(dsn)) as pool:
        yield pool


@pytest_asyncio.fixture
async def post_pool(databases: Databases) -> AsyncIterator[postgres.Pool]:
    """A database of the post service, empty."""
    async with databases.lend("services.post") as dsn, postgres.connect(settings_of(dsn)) as pool:
        yield pool


@pytest.fixture
def max_following() -> int:
    """FEEDMESH_MAX_FOLLOWING; a test parametrizes it where it matters."""
    return 5000


@pytest_asyncio.fixture
async def graph_service(graph_pool: postgres.Pool, max_following: int) -> AsyncIterator[GraphService]:
    """The graph service on its database."""
    servicer = graph.GraphServicer(graph_pool, Cursors(SECRET), max_following)
    async with (
        serving(lambda s: add_GraphServiceServicer_to_server(servicer, s), services=(graph.SERVICE,)) as served,
        client.connect(served.target, CALLER, graph.SERVICE) as channel,
    ):
        yield GraphService(served.target, GraphServiceStub(channel), lambda: keep_up(graph_upkeep.tasks, graph_pool))


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """A folder of media."""
    return Blobs(f"file://{tmp_path}/media")


@pytest_asyncio.fixture
async def post_service(
    post_pool: postgres.Pool, graph_service: GraphService, blobs: Blobs
) -> AsyncIterator[RealPostService]:
    """The post service on its database and on the graph service."""
    servicer = post.PostServicer(post_pool, Sights(graph_service.stub, MediaUrls(SECRET)), Cursors(SECRET))
    async with (
        serving(lambda s: add_PostServiceServicer_to_server(servicer, s), services=(post.SERVICE,)) as served,
        client.connect(served.target, CALLER, post.SERVICE) as channel,
    ):
        yield RealPostService(
            PostServiceStub(channel),
            graph_service.stub,
            lambda: keep_up(partial(post_upkeep.tasks, blobs), post_pool),
            post_pool,
        )


@pytest_asyncio.fixture
async def fake_graph_service(max_following: int) -> AsyncIterator[GraphService]:
    """The graph service in memory."""
    async with serve_fake_graph(FakeGraph(max_following=max_following)) as service:
        yield service


@pytest_asyncio.fixture
async def fake_post_service(max_following: int) -> AsyncIterator[PostService]:
    """The post service in memory, with a graph service in memory."""
    people = FakeGraph(max_following=max_following)
    servicer = FakePost(people)
    async with (
        serve_fake_graph(people) as graph_service,
        serving(lambda s: add_PostServiceServicer_to_server(servicer, s), services=(post.SERVICE,)) as served,
        client.connect(served.target, CALLER, post.SERVICE) as channel,
    ):
        yield PostService(PostServiceStub(channel), graph_service.stub, nothing_to_keep_up)


@asynccontextmanager
async def serve_fake_graph(servicer: FakeGraph) -> AsyncIterator[GraphService]:
    """Serves a fake graph for the block."""
    async with (
        serving(lambda s: add_GraphServiceServicer_to_server(servicer, s), services=(graph.SERVICE,)) as served,
        client.connect(served.target, CALLER, graph.SERVICE) as channel,
    ):
        yield GraphService(served.target, GraphServiceStub(channel), nothing_to_keep_up)


async def keep_up(tasks: Callable[[postgres.Pool], tuple[upkeep.Task, ...]], pool: postgres.Pool) -> None:
    """Does what `--once` does."""
    for task in tasks(pool):
        while await task.work():
            pass
