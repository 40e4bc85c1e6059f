"""A gRPC server: interceptors, health, reflection, drain. Knows no service.

Health is NOT_SERVING until everything is up, and again from the moment the process is asked to stop, so that callers go
elsewhere before the drain begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from runtime import callers, config, mesh
from runtime.interceptors import Chain
from runtime.process import Process

log = logging.getLogger(__name__)

NOTICE_S = 0.2
"""How long callers have to hear that the health is NOT_SERVING and go elsewhere, before new calls are refused."""
DRAIN_S = 5.0
"""How long calls under way may take to end once the process is asked to stop."""
Report = Callable[[bool], Awaitable[None]]
"""Takes whether the services can serve."""
Registration = Callable[[grpc.aio.Server], Any]
"""Adds one servicer, as in `lambda server: add_PostServiceServicer_to_server(servicer, server)`."""


async def serve(
    process: Process,
    settings: config.ServerSettings,
    registrations: Iterable[Registration],
    services: Iterable[ServiceDescriptor],
    watch: Callable[[Report], Awaitable[None]] | None = None,
    notice_s: float = NOTICE_S,
) -> None:
    """Serves until the process is asked to stop, then drains for at most 5 s.

    `watch` reports again and again whether what the services need is there (`postgres.watch`): while it is not, health
    is NOT_SERVING, so that callers hear it at once. Ends the process with one clear line when the address is taken.
    """
    services = tuple(services)
    keeper = callers.certificate(process.name, settings)
    known = callers.Known(keeper or str(settings.mesh_secret), services, settings.more_callers)
    server = grpc.aio.server(
        interceptors=[Chain(known)],
        options=mesh.server_options(),
        maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
    )
    health_pb2_grpc.add_HealthServicer_to_server(process.health, server)
    names = [service.full_name for service in services]
    for register in registrations:
        register(server)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)

    async def report(serving: bool) -> None:
        for name in ("", *names):
            await process.report(name, serving)

    await report(False)
    try:
        if keeper is None:
            port = server.add_insecure_port(settings.grpc_address)
        else:
            port = server.add_secure_port(settings.grpc_address, keeper.server_credentials())
    except RuntimeError:
        config.fail(f"{config.PREFIX}GRPC_ADDRESS: cannot listen on {settings.grpc_address}")
    await server.start()
    await report(True)
    watcher = asyncio.ensure_future(watch(report)) if watch else None
    log.info("serving", extra={"port": port})
    await process.stopping.wait()
    log.info("draining")
    if watcher is not None:
        watcher.cancel()
    await process.health.enter_graceful_shutdown()
    await asyncio.sleep(notice_s)
    await server.stop(DRAIN_S)
