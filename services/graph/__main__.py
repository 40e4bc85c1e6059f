"""The graph server: `python -m services.graph`. Wiring only."""

from __future__ import annotations

from functools import partial

from feedmesh.graph.v1.graph_pb2_grpc import add_GraphServiceServicer_to_server
from runtime import config, migrate, postgres, process, server
from runtime.paging import Cursors
from services.graph.config import GraphSettings
from services.graph.servicer import SERVICE, GraphServicer


async def serve(settings: GraphSettings, running: process.Process) -> None:
    """Serves until the process is asked to stop."""
    async with postgres.connect(settings) as pool:
        await migrate.require(pool, "services.graph")
        servicer = GraphServicer(pool, Cursors(settings.cursor_secret), settings.max_following)
        await server.serve(
            running,
            settings,
            [lambda s: add_GraphServiceServicer_to_server(servicer, s)],
            [SERVICE],
            watch=partial(postgres.watch, settings),
        )


if __name__ == "__main__":
    settings = config.load(GraphSettings)
    process.run("graph", settings, lambda running: serve(settings, running))
