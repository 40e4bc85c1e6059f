"""The life of a process: logs, metrics port, event loop, signals, end. What it does in between is the caller's.

SIGTERM and SIGINT set `stopping`; whoever serves then drains and returns. A second signal ends the process at once.

How it is, probes are told at `health_address` (`grpc.health.v1`), without TLS: as LIVE whether its event loop goes
round, which looks at nothing that it depends on; as "" whether it can do its work, which a worker can while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NoReturn

import grpc
import prometheus_client
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from runtime import callers, config, logs, metrics, tls

log = logging.getLogger(__name__)

LIVE = "live"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Process:
    """A running process: its name, and the event that asks it to end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopping = asyncio.Event()
        self.health = health.aio.HealthServicer()

    def stop(self) -> None:
        """Asks the process to drain and end; asked twice, it ends at once with exit code 1."""
        if self.stopping.is_set():
            os._exit(1)
        self.stopping.set()

    async def report(self, name: str, serving: bool) -> None:
        """Says whether something of this process can serve: a service by its full name, or "" for all of it."""
        await self.health.set(name, SERVING if serving else NOT_SERVING)

    async def every(self, interval_s: float, task: str, work: Callable[[], Awaitable[bool]]) -> None:
        """Runs `work` again and again until the process stops.

        The next round comes at once when `work` says True (there is more), after `interval_s` when it says False, and
        after a second when it raised, which is logged and counted.
        """
        while not self.stopping.is_set():
            wait_s = interval_s
            try:
                wait_s = 0 if await work() else interval_s
                metrics.WORKER_ROUNDS.labels(task, "ok").inc()
            except Exception:
                log.exception("%s failed", task)
                metrics.WORKER_ROUNDS.labels(task, "failed").inc()
                wait_s = 1
            if wait_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):  # not wait_for: that makes a task each time
                        await self.stopping.wait()


def run(name: str, settings: config.Settings, serve: Callable[[Process], Awaitable[None]]) -> NoReturn:
    """Runs `serve` until it returns and ends the process: exit code 0, or 1 where it raised."""
    logs.configure(name, settings.log_level)
    host, port = split_address(settings.metrics_address)
    try:
        prometheus_client.start_http_server(port, host)
    except OSError as error:
        config.fail(f"{config.PREFIX}METRICS_ADDRESS: cannot listen on {settings.metrics_address}: {error.strerror}")

    async def main() -> None:
        process = Process(name)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, process.stop)
        await process.report(LIVE, True)
        await process.report("", not isinstance(settings, config.ServerSettings))
        async with answering_probes(process, settings.health_address), following_certificate(process, settings):
            await serve(process)

    # What was imported stays: the collector need not look at it again. Nor at caches, which a pass over all would, but
    # seldom; nor at new objects so often as it would by itself, which was a tenth of the timeline's CPU. All wait while
    # it looks: at 2,000 objects for a millisecond or two, at 50,000 it was 15 to 55.
    gc.freeze()
    gc.set_threshold(2_000, 10, 1_000)
    code = 0
    try:
        uvloop.run(main())
    except Exception:
        log.exception("%s failed", name)
        code = 1
    log.info("ended")
    logging.shutdown()
    # Threads of gRPC may outlive the loop and would hold the interpreter's end up.
    os._exit(code)


@contextlib.asynccontextmanager
async def answering_probes(process: Process, address: str | None) -> AsyncIterator[None]:
    """Says how the process is, for the block."""
    if address is None:
        yield
        return
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),), maximum_concurrent_rpcs=64)
    health_pb2_grpc.add_HealthServicer_to_server(process.health, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError:
        config.fail(f"{config.PREFIX}HEALTH_ADDRESS: cannot listen on {address}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def following_certificate(process: Process, settings: config.Settings) -> AsyncIterator[None]:
    """Takes the process's certificates as they come, for the block; where it has one."""
    keeper = callers.certificate(process.name, settings) if isinstance(settings, config.MeshSettings) else None
    if keeper is None:
        yield
        return
    looking = asyncio.create_task(process.every(tls.LOOK_S, "look_at_certificate", keeper.look))
    try:
        yield
    finally:
        looking.cancel()


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets) and port of `host:port`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
