"""The timeline server: `python -m services.timeline`. Wiring only."""

from __future__ import annotations

from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub
from feedmesh.post.v1 import post_pb2
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.ranking.v1.ranking_pb2_grpc import RankingServiceStub
from feedmesh.timeline.v1.timeline_pb2_grpc import add_TimelineServiceServicer_to_server
from runtime import client, config, process, server
from runtime.paging import Cursors
from services.timeline.config import TimelineSettings
from services.timeline.feed import Parts
from services.timeline.relations import Relations
from services.timeline.servicer import SERVICE, TimelineServicer


async def serve(settings: TimelineSettings, running: process.Process) -> None:
    """Serves until the process is asked to stop."""
    async with (
        client.connect(settings.graph_target, graph_pb2.DESCRIPTOR.services_by_name["GraphService"]) as graph_channel,
        client.connect(settings.post_target, post_pb2.DESCRIPTOR.services_by_name["PostService"]) as post_channel,
        client.connect(
            settings.ranking_target, ranking_pb2.DESCRIPTOR.services_by_name["RankingService"]
        ) as ranking_channel,
    ):
        graph = GraphServiceStub(graph_channel)
        post, ranking = PostServiceStub(post_channel), RankingServiceStub(ranking_channel)
        parts = Parts(Relations(graph), Cursors(settings.cursor_secret), graph, post, ranking)
        servicer = TimelineServicer(parts)
        await server.serve(running, settings, [lambda s: add_TimelineServiceServicer_to_server(servicer, s)], [SERVICE])


if __name__ == "__main__":
    settings = config.load(TimelineSettings)
    process.run("timeline", settings, lambda running: serve(settings, running))
