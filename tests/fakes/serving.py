"""Servers within a test: the runtime's own bootstrap on a free port of the loopback, and what the fixtures hand out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import ServiceDescriptor

from runtime import callers, config, process, server

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub
    from runtime.postgres import Pool

MESH_SECRET = "what the processes of a test's mesh share"
CALLER = callers.caller("test", MESH_SECRET)
"""Whoever calls within a test."""

Upkeep = Callable[[], Awaitable[None]]
"""Does all that the service's upkeep worker has to do at this moment."""


@dataclass(frozen=True)
class GraphService:
    """A graph service that is served, and a client of it."""

    target: str
    stub: GraphServiceAsyncStub
    upkeep: Upkeep


@dataclass(frozen=True)
class PostService:
    """A post service that is served, a client of it, and one of the graph that it asks."""

    stub: PostServiceAsyncStub
    graph: GraphServiceAsyncStub
    upkeep: Upkeep


@dataclass(frozen=True)
class RealPostService(PostService):
    """The post service on its database."""

    pool: Pool


@dataclass(frozen=True)
class Served:
    """A server that runs in a task of this process."""

    target: str
    running: process.Process
    task: asyncio.Task[None]

    async def stop(self) -> None:
        """Asks the server to drain, and waits until it has ended."""
        self.running.stopping.set()
        await self.task


@asynccontextmanager
async def serving(
    *registrations: server.Registration,
    services: tuple[ServiceDescriptor, ...] = (),
    max_concurrent_rpcs: int = 1024,
    notice_s: float = 0,
    name: str = "test",
    tls_dir: Path | None = None,
    more_callers: tuple[str, ...] = (),
) -> AsyncIterator[Served]:
    """Serves for the block with `runtime.server.serve`, on a port of its own choice. For `notice_s` see there.

    With a certificate of the process `name` where there is one.
    """
    settings = config.ServerSettings(
        grpc_address="127.0.0.1:0",
        max_concurrent_rpcs=max_concurrent_rpcs,
        mesh_secret=None if tls_dir else MESH_SECRET,
        tls_dir=tls_dir,
        more_callers=more_callers if tls_dir else (CALLER.name, *more_callers),
    )
    running = process.Process(name)
    with announced_port() as port:
        task = asyncio.create_task(server.serve(running, settings, registrations, services, notice_s=notice_s))
        port.of = task
        ends: set[asyncio.Future[Any]] = {task, port.known}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
    served = Served(f"127.0.0.1:{port.known.result()}", running, task)
    try:
        yield served
    finally:
        await served.stop()


class Port(logging.Handler):
    """Learns from the log on which port a server listens."""

    def __init__(self) -> None:
        super().__init__()
        self.of: asyncio.Task[None] | None = None
        self.known: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def emit(self, record: logging.LogRecord) -> None:
        """Notes the port, if it is of our server."""
        port = getattr(record, "port", None)
        if port is not None and asyncio.current_task() is self.of and not self.known.done():
            self.known.set_result(port)


@contextmanager
def announced_port() -> Iterator[Port]:
    """Listens to the server's log for the block."""
    port = Port()
    level = server.log.level
    server.log.addHandler(port)
    server.log.setLevel(logging.INFO)
    try:
        yield port
    finally:
        server.log.removeHandler(port)
        server.log.setLevel(level)


async def nothing_to_keep_up() -> None:
    """The upkeep of a fake."""
