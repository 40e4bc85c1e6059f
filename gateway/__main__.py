"""The gateway process: wiring only."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import NoReturn

from gateway import openapi, server
from gateway.addresses import Addresses, networks
from gateway.app import App
from gateway.config import Settings
from gateway.health import Readiness
from gateway.limits import TIMEOUT_S, Limits
from gateway.live import Hub
from gateway.pages import pages
from gateway.routes import CONTRACTS, of_contracts
from runtime import client, config, process, redis

log = logging.getLogger(__name__)


async def serve(settings: Settings, running: process.Process) -> None:
    """Serves HTTP until the process is asked to stop."""
    listener = server.listen(settings.http_host, settings.http_port)
    channels = {
        name: client.connect(getattr(settings, f"{name}_target"), *contract.services_by_name.values())
        for name, contract in CONTRACTS.items()
    }
    routes, hub = of_contracts(), Hub(channels["timeline"])
    async with redis.connect(settings, timeout_s=TIMEOUT_S) as store:
        if settings.limits:
            await redis.require_fit(store)
        app = App(
            [(route, route.call(channels[route.service])) for route in routes],
            pages(
                openapi.document(routes),
                Readiness(channels, {route.service for route in routes}),
                server.name(listener),
            ),
            hub,
            timeout_s=settings.request_timeout_ms / 1000,
            max_requests=settings.max_concurrent_requests,
            limits=Limits(store, settings.quotas) if settings.limits else None,
            addresses=Addresses(networks(settings.trusted_proxies)),
        )
        log.warning(
            "local mode: every request is believed about who is acting; only this machine can reach the gateway"
        )
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
