"""What is measured: a mesh, and the floor, each with the same population in it. Prepared, started, warmed up."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import uvloop
from redis.asyncio import Redis
from rich.console import Console

from bench import cpu, floor, population
from bench.client import DemoError
from bench.mesh import HOST, ROOT, Mesh, started
from bench.population import Plan, Population
from launch import postgres, settings, valkey
from launch.processes import FEEDMESH
from launch.settings import Refused

T = TypeVar("T")

STATE = "serving.json"
WARMERS = 16
"""Feeds that are read at once while lists are made."""
LIST_ONLY = "limit=1&order=latest"
"""A page of which little more is made than its reader's list."""
FLOOR_START_S = 10.0


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it; SIGTERM ends it in order, as Ctrl-C does, and then the program. Call it from the main thread."""
    before = signal.getsignal(signal.SIGTERM)

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return uvloop.run(main())
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder for the block, which ends with SIGTERM too. Call it from the main thread."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="feedmesh-bench-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - Postgres may run as somebody else, who must get there
        yield Path(folder)


@dataclass(frozen=True)
class World:
    """A mesh with a population in it."""

    base: str
    launcher: int
    """Its process id."""
    postgres: str
    """A connection string, of any of its databases."""
    redis: str
    """The URL."""
    metrics: dict[str, str]
    """Where each process's metrics are, by the launcher's name of it."""
    list_bytes: int
    """By how much Redis grew when everybody's lists were made."""
    people: Population

    def dsn(self, database: str) -> str:
        """The connection string of one service's database."""
        return f"{self.postgres} dbname={settings.database_name(None, database)}"

    def processes(self) -> dict[int, str]:
        """The mesh's processes, stores included."""
        return cpu.tree(self.launcher)


@dataclass(frozen=True)
class Floor:
    """The floor, running."""

    base: str
    socket: str
    """Of its Valkey."""
    processes: dict[int, str]


def prepare(console: Console, folder: Path, plan: Plan) -> Population:
    """Databases with this population in a data directory, made unless they are there. Call it outside of a loop.

    Raises DemoError.
    """
    if done := population.made_before(folder, plan):
        return Population(done)
    begun = time.perf_counter()
    people = Population(replace(plan, now_ms=int(time.time() * 1000)))
    console.print(
        f"filling {folder}: {people.count:,} people, {len(people.follows.follower):,} follows,"
        f" {len(people.authors):,} posts"
    )
    try:
        with postgres.running(folder, durable=False) as server:
            dsns = {each.name: server.dsn(settings.database_name(None, each.name)) for each in FEEDMESH.databases}
            asyncio.run(postgres.create_databases(server.dsn(), [settings.database_name(None, each) for each in dsns]))
            for database in FEEDMESH.databases:
                own = {"FEEDMESH_POSTGRES_DSN": dsns[database.name], "FEEDMESH_LOG_LEVEL": "warning"}
                environment = settings.environment(os.environ, own)
                subprocess.run((sys.executable, *database.migrate), cwd=ROOT, env=environment, check=True)
            population.fill(people, dsns["graph"], dsns["post"])
    except Refused as refused:
        raise DemoError(" ".join(refused.lines)) from None
    population.mark(folder, people.plan)
    console.print(f"filled in {time.perf_counter() - begun:.0f} s")
    return people


@asynccontextmanager
async def serving(
    console: Console, folder: Path, people: Population, *, readers: Sequence[int] | None = None
) -> AsyncIterator[World]:
    """The mesh that serves from this folder, or one that is started for the block. Raises DemoError.

    These readers have lists; all ordinary people where nothing is said, and always the people of Reed.
    """
    if world := served(folder, people):
        console.print(f"using the mesh that is running on {world.base}")
        yield world
        return
    port = settings.free_port()
    async with started(console, [], port, folder) as mesh:
        world = _world(mesh, people)
        state = folder / STATE
        try:
            used = await used_memory(world.redis)
            await warm_up(console, world.base, [*(people.readers if readers is None else readers), *people.reed])
            world = replace(world, list_bytes=await used_memory(world.redis) - used)
            state.write_text(json.dumps({**_facts(world), "people": asdict(people.plan)}))
            yield world
        finally:
            state.unlink(missing_ok=True)


def served(folder: Path, people: Population) -> World | None:
    """The mesh that another process keeps running in this folder."""
    try:
        facts = json.loads((folder / STATE).read_text())
        os.kill(facts["launcher"], 0)
    except (OSError, ValueError, KeyError):
        return None
    if facts.pop("people") != asdict(people.plan):
        raise DemoError(f"the mesh that is running in {folder} has another population")
    return World(**facts, people=people)


def _world(mesh: Mesh, people: Population) -> World:
    assert mesh.process is not None
    assert mesh.log is not None
    text = mesh.log.text()
    said = dict(re.findall(r"^  (Postgres|Valkey) +(\S.*)$", text, re.MULTILINE))
    metrics = {name: url for url, name in re.findall(r"^  metrics +(\S+)  (\S+)$", text, re.MULTILINE)}
    return World(mesh.base, mesh.process.pid, said["Postgres"], said["Valkey"], metrics, 0, people)


def _facts(world: World) -> dict[str, object]:
    return {each.name: getattr(world, each.name) for each in fields(World) if each.name != "people"}


async def used_memory(url: str) -> int:
    """What a Redis's data takes, in bytes, with what it needs to hold them."""
    async with Redis.from_url(url) as client:
        return int((await client.info("memory"))["used_memory"])


async def warm_up(console: Console, base: str, user_ids: Sequence[int], page: str = LIST_ONLY) -> None:
    """Reads everybody's feed once, so that their lists are there. Raises DemoError where one cannot be read."""
    begun = time.perf_counter()
    waiting = iter(user_ids)

    async def reader(session: aiohttp.ClientSession) -> None:
        for user_id in waiting:
            async with session.get(f"{base}/feed?user_id={user_id}&{page}") as response:
                body = await response.read()
            if response.status != 200:
                raise DemoError(f"the feed of {user_id} cannot be read: {response.status} {body[:300]!r}")

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(reader(session) for _ in range(WARMERS)))
    console.print(f"read the feeds of {len(user_ids):,} people in {time.perf_counter() - begun:.0f} s")


@contextmanager
def flooring(console: Console, folder: Path, people: Population) -> Iterator[Floor]:
    """The floor with the same people's lists. Call it outside of a loop.

    Raises DemoError.
    """
    begun = time.perf_counter()
    port = settings.free_port()
    try:
        with valkey.running(folder) as store:
            socket = store.url.removeprefix("unix://")
            asyncio.run(_load(socket, floor.commands(people, range(people.plan.users))))
            console.print(f"filled the floor's Valkey in {time.perf_counter() - begun:.0f} s")
            process = subprocess.Popen((sys.executable, "-m", "bench.floor", str(port), socket), cwd=ROOT)
            try:
                base = f"http://{HOST}:{port}"
                asyncio.run(_answers(base, int(people.user_ids[0])))
                yield Floor(base, socket, {process.pid: "floor", store.process.pid: "valkey-server"})
            finally:
                process.kill()
                process.wait()
    except Refused as refused:
        raise DemoError(" ".join(refused.lines)) from None


async def _load(socket: str, commands: Sequence[tuple[bytes, ...]]) -> None:
    reader, writer = await asyncio.open_unix_connection(socket)
    for begin in range(0, len(commands), 1_000):
        some = commands[begin : begin + 1_000]
        for command in some:
            writer.write(b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in command))
        await writer.drain()
        await reader.readexactly(len(b"+OK\r\n") * len(some))
    writer.close()


async def _answers(base: str, user_id: int) -> None:
    async with aiohttp.ClientSession() as session:
        until = time.monotonic() + FLOOR_START_S
        while True:
            try:
                async with session.get(f"{base}/feed?user_id={user_id}") as response:
                    await response.json()
                    return
            except aiohttp.ClientConnectorError:
                if time.monotonic() > until:
                    raise DemoError("the floor did not start") from None
            await asyncio.sleep(0.05)
