"""All four services within a test, real and on real stores, behind gRPC and behind the gateway. No worker runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub, add_GraphServiceServicer_to_server
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub, add_PostServiceServicer_to_server
from feedmesh.ranking.v1.ranking_pb2_grpc import RankingServiceStub, add_RankingServiceServicer_to_server
from feedmesh.session.v1.session_pb2_grpc import add_SessionServiceServicer_to_server
from feedmesh.timeline.v1.timeline_pb2_grpc import TimelineServiceStub, add_TimelineServiceServicer_to_server
from gateway.access import Access
from gateway.app import App
from gateway.issuers import OwnIssuer
from gateway.routes import of_contracts
from launch.valkey import Running as Valkey
from runtime import client, postgres
from runtime.clock import wall_clock
from runtime.media import MediaUrls
from runtime.paging import Cursors
from runtime.relations import Relations
from services.graph.passwords import Passwords
from services.graph.servicer import SERVICE as GRAPH
from services.graph.servicer import GraphServicer
from services.graph.session import SERVICE as SESSION
from services.graph.session import SessionServicer
from services.graph.signing import Signer
from services.post.servicer import SERVICE as POST
from services.post.servicer import PostServicer
from services.post.sight import Sights
from services.ranking.servicer import SERVICE as RANKING
from services.ranking.servicer import RankingServicer
from services.timeline.feed import Parts
from services.timeline.servicer import SERVICE as TIMELINE
from tests.fakes.databases import Databases, settings_of
from tests.fakes.serving import CALLER, serving
from tests.integration.timeline_stores import TimelineStores, timeline_servicer, timeline_stores

SECRET = "a secret of at least 32 characters"


@dataclass
class WholeMesh:
    """All services, asked by gRPC and by HTTP, and their stores."""

    graph: Any
    post: Any
    timeline: Any
    http: httpx.AsyncClient
    """Of a gateway that believes whoever is named."""
    strict: httpx.AsyncClient
    """Of one that takes tokens of the session service."""
    signer: Signer
    graph_pool: postgres.Pool
    post_pool: postgres.Pool
    stores: TimelineStores
    targets: dict[str, str]
    channels: dict[str, client.Channel]
    people: int = 0

    async def person(self) -> int:
        """A new person."""
        self.people += 1
        name = f"person{self.people}"
        request = graph_pb2.CreateUserRequest(username=name, email=f"{name}@example.org")
        return int((await self.graph.CreateUser(request)).user.user_id)

    async def bearer(self, user_id: int) -> dict[str, str]:
        """The headers of somebody who has signed in; of nobody for 0."""
        return {"authorization": f"Bearer {await self.signer.access_token(1, user_id)}"} if user_id else {}

    async def follow(self, follower: int, followee: int) -> None:
        """A follow, or a request for it."""
        await self.graph.Follow(graph_pb2.FollowRequest(follower_id=follower, following_id=followee))


@asynccontextmanager
async def whole_mesh(
    databases: Databases, valkey: Valkey, *, cap: int = 800, slack: int = 200
) -> AsyncIterator[WholeMesh]:
    """The mesh for the block, on empty stores."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        graph_pool = await enter(postgres.connect(settings_of(await enter(databases.lend("services.graph")))))
        post_pool = await enter(postgres.connect(settings_of(await enter(databases.lend("services.post")))))
        stores = await enter(timeline_stores(databases, valkey, cap=cap, slack=slack))
        cursors = Cursors(SECRET)
        targets: dict[str, str] = {}
        channels: dict[str, client.Channel] = {}

        async def serve(name: str, service: Any, add: Callable[[Any, Any], None], servicer: Any) -> client.Channel:
            served = await enter(serving(lambda s: add(servicer, s), services=(service,)))
            targets[name] = served.target
            channels[name] = await enter(client.connect(served.target, CALLER, service))
            return channels[name]

        graph = GraphServiceStub(
            await serve("graph", GRAPH, add_GraphServiceServicer_to_server, GraphServicer(graph_pool, cursors, 5000))
        )
        post = PostServiceStub(
            await serve(
                "post",
                POST,
                add_PostServiceServicer_to_server,
                PostServicer(post_pool, Sights(graph, MediaUrls(SECRET)), cursors),
            )
        )
        ranking = RankingServiceStub(
            await serve("ranking", RANKING, add_RankingServiceServicer_to_server, RankingServicer(post, wall_clock))
        )
        parts = Parts(Relations(graph), cursors, await stores.sources(post), post, ranking)
        servicer = timeline_servicer(parts)
        timeline = TimelineServiceStub(
            await serve("timeline", TIMELINE, add_TimelineServiceServicer_to_server, servicer)
        )
        signer = Signer(graph_pool, SECRET, wall_clock, key_days=30)
        sessions = SessionServicer(graph_pool, signer, Passwords())
        issuer = OwnIssuer(await serve("session", SESSION, add_SessionServiceServicer_to_server, sessions))

        async def edge(access: Access) -> httpx.AsyncClient:
            calls = [(route, route.call(channels[route.service])) for route in of_contracts()]
            app = App(calls, {}, None, access, timeout_s=10, max_requests=10)
            return await enter(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mesh"))

        http, strict = await edge(Access(None)), await edge(Access(issuer))
        yield WholeMesh(graph, post, timeline, http, strict, signer, graph_pool, post_pool, stores, targets, channels)
