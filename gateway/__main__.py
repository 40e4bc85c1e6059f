"""The gateway process: wiring only."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import NoReturn

from feedmesh.post.v1.post_pb2_grpc import PostServiceStub
from gateway import media, openapi, server
from gateway.app import App
from gateway.config import Settings
from gateway.health import Readiness
from gateway.live import Hub
from gateway.pages import pages
from gateway.routes import CONTRACTS, of_contracts
from runtime import client, config, process
from runtime.blobs import Blobs
from runtime.media import MediaUrls

log = logging.getLogger(__name__)


async def serve(settings: Settings, running: process.Process) -> None:
    """Serves HTTP until the process is asked to stop."""
    listener = server.listen(settings.http_host, settings.http_port)
    channels = {
        name: client.connect(getattr(settings, f"{name}_target"), *contract.services_by_name.values())
        for name, contract in CONTRACTS.items()
    }
    routes, hub = of_contracts(), Hub(channels["timeline"])
    app = App(
        [(route, route.call(channels[route.service])) for route in routes],
        pages(
            openapi.document(routes), Readiness(channels, {route.service for route in routes}), server.name(listener)
        ),
        hub,
        media.routes(
            PostServiceStub(channels["post"]),
            Blobs(settings.media_url),
            MediaUrls(settings.media_secret),
            media.Bounds(settings.max_image_bytes, settings.max_video_bytes, settings.media_workers),
        ),
        timeout_s=settings.request_timeout_ms / 1000,
        max_requests=settings.max_concurrent_requests,
    )
    log.warning("local mode: every request is believed about who is acting; only this machine can reach the gateway")
    live = asyncio.create_task(hub.run())
    await server.serve(app, listener, running.stopping, hub.drain)
    live.cancel()
    for channel in channels.values():
        await channel.close()


def main() -> NoReturn:
    """Runs the process."""
    settings = config.load(Settings)
    process.run("gateway", settings, partial(serve, settings))


if __name__ == "__main__":
    main()
