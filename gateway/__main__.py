"""The gateway process: wiring only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import NoReturn

from feedmesh.post.v1.post_pb2_grpc import PostServiceStub
from gateway import media, openapi, server
from gateway.access import Access
from gateway.addresses import Addresses, networks
from gateway.app import App
from gateway.config import Settings
from gateway.health import Readiness
from gateway.hub import Hub
from gateway.issuers import OidcIssuer, OwnIssuer
from gateway.limits import TIMEOUT_S, Limits
from gateway.origins import Origins
from gateway.pages import pages
from gateway.routes import CONTRACTS, of_contracts
from runtime import callers, client, config, process, redis
from runtime.blobs import Blobs
from runtime.media import MediaUrls

log = logging.getLogger(__name__)


async def serve(settings: Settings, running: process.Process) -> None:
    """Serves HTTP until the process is asked to stop."""
    me = callers.of(running.name, settings)
    listener = server.listen(settings.http_host, settings.http_port)
    targets = {name: getattr(settings, f"{name}_target") for name in CONTRACTS}
    channels = {
        name: client.connect(target, me, *CONTRACTS[name].services_by_name.values())
        for name, target in targets.items()
        if target
    }
    issuer = issuer_of(settings, channels)
    routes = [route for route in of_contracts() if route.service != "session" or settings.auth == "builtin"]
    hub = Hub(channels["timeline"])
    async with redis.connect(settings, timeout_s=TIMEOUT_S) as store:
        if settings.limits:
            await redis.require_fit(store)
        app = App(
            [(route, route.call(channels[route.service])) for route in routes],
            pages(
                openapi.document(routes, signed=issuer is not None),
                Readiness(channels, {route.service for route in routes}),
                server.name(listener),
                local=issuer is None,
            ),
            hub,
            Access(issuer),
            media.routes(
                PostServiceStub(channels["post"]),
                Blobs(settings.media_url),
                MediaUrls(settings.media_secret),
                media.Bounds(settings.max_image_bytes, settings.max_video_bytes, settings.media_workers),
            ),
            origins=Origins(settings.cors_origins, local=issuer is None),
            timeout_s=settings.request_timeout_ms / 1000,
            max_requests=settings.max_concurrent_requests,
            limits=Limits(store, settings.quotas) if settings.limited else None,
            addresses=Addresses(networks(settings.trusted_proxies)),
        )
        if issuer is None:
            log.warning(
                "local mode: every request is believed about who is acting; only this machine can reach the gateway"
            )
        tasks = [asyncio.create_task(each.run()) for each in (hub, issuer) if each is not None]
        await server.serve(app, listener, running.stopping, hub.drain, max_connections=settings.max_connections)
        for task in tasks:
            task.cancel()
    for channel in channels.values():
        await channel.close()


def issuer_of(settings: Settings, channels: Mapping[str, client.Channel]) -> OwnIssuer | OidcIssuer | None:
    """Whose tokens count; None where whoever asks is believed."""
    if settings.auth == "builtin":
        return OwnIssuer(channels["session"])
    if settings.auth == "oidc":
        issuer, audience = str(settings.oidc_issuer), str(settings.oidc_audience)  # there, say the settings
        cognito = settings.oidc_tokens == "cognito"
        return OidcIssuer(channels["session"], issuer, audience, settings.oidc_types.split(","), cognito=cognito)
    return None


def main() -> NoReturn:
    """Runs the process."""
    settings = config.load(Settings)
    process.run("gateway", settings, partial(serve, settings))


if __name__ == "__main__":
    main()
