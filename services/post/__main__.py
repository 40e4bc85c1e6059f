"""The post server: `python -m services.post`. Wiring only."""

from __future__ import annotations

import asyncio
from functools import partial

from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub
from feedmesh.post.v1.post_pb2_grpc import add_PostServiceServicer_to_server
from runtime import callers, client, config, migrate, postgres, process, server
from runtime.media import MediaUrls
from runtime.paging import Cursors
from services.post.config import PostSettings
from services.post.hot import LOOK_S
from services.post.servicer import SERVICE, PostServicer
from services.post.sight import Sights


async def serve(settings: PostSettings, running: process.Process) -> None:
    """Serves until the process is asked to stop."""
    me = callers.of(running.name, settings)
    graph = graph_pb2.DESCRIPTOR.services_by_name["GraphService"]
    async with postgres.connect(settings) as pool, client.connect(settings.graph_target, me, graph) as channel:
        await migrate.require(pool, "services.post")
        sights = Sights(GraphServiceStub(channel), MediaUrls(settings.media_secret, settings.media_base_url))
        servicer = PostServicer(pool, sights, Cursors(settings.cursor_secret), settings.max_media_bytes)
        await asyncio.gather(
            running.every(LOOK_S, "heed_changes", servicer.hot.keep_up),
            server.serve(
                running,
                settings,
                [lambda s: add_PostServiceServicer_to_server(servicer, s)],
                [SERVICE],
                watch=partial(postgres.watch, settings),
            ),
        )


if __name__ == "__main__":
    settings = config.load(PostSettings)
    process.run("post", settings, lambda running: serve(settings, running))
