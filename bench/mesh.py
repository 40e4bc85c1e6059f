"""The mesh that the demo uses: one that is running already, or one of its own that it starts and stops."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
from rich.console import Console
from yarl import URL

from bench.client import DemoError

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
READY_LINE = "feedmesh is ready on "
METRICS_LINE = re.compile(r"^  metrics +(http://\S+)", re.MULTILINE)
START_S = 180.0
"""Making the database included. The launcher itself gives up much earlier where it can tell."""
OTHERS_START_S = 60.0
STOP_S = 60.0
LOG = "demo-mesh.log"


@dataclass(frozen=True)
class Log:
    """What a mesh of ours says: the end of a file, which it may share with an earlier one, or one that still runs."""

    path: Path
    begin: int

    def text(self) -> str:
        """All of it so far."""
        with self.path.open("rb") as file:
            file.seek(self.begin)
            return file.read().decode(errors="replace")


@dataclass
class Mesh:
    """A mesh that answers. `process` and `log` are those of one that we started."""

    base: str
    process: asyncio.subprocess.Process | None = None
    log: Log | None = None

    def hurry(self) -> None:
        """A second wish to stop: the launcher then stops waiting for what is under way."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)

    def metrics(self) -> list[URL]:
        """Where each process's metrics are. Only a mesh of ours says so, and right after it is ready."""
        return [URL(address) for address in METRICS_LINE.findall(self.log.text())] if self.log else []

    async def died(self) -> DemoError:
        """Waits for our mesh to end by itself, and says so. Never returns for one that is not ours."""
        if self.process is None:
            await asyncio.Event().wait()
        assert self.process is not None
        await self.process.wait()
        return _failure("the mesh stopped during the run", self.log)


def port() -> int:
    """FEEDMESH_HTTP_PORT. Raises DemoError."""
    text = os.environ.get("FEEDMESH_HTTP_PORT") or "8080"
    number = int(text) if re.fullmatch("[0-9]{1,5}", text) else 0
    if not 1 <= number <= 65535:
        raise DemoError(f"FEEDMESH_HTTP_PORT is {text!r}: give a port from 1 to 65535")
    return number


def data_dir() -> Path:
    """FEEDMESH_DATA_DIR, absolute."""
    return Path(os.environ.get("FEEDMESH_DATA_DIR") or ".data").expanduser().absolute()


@asynccontextmanager
async def find_or_start(console: Console, hold: list[Mesh]) -> AsyncIterator[Mesh]:
    """The mesh on FEEDMESH_HTTP_PORT for the block. It is in `hold` from the moment it has a process of ours."""
    number = port()
    base = f"http://{HOST}:{number}"
    if await _serves(base):
        console.print(f"using the mesh that is running on {base}")
        yield Mesh(base)
        return
    async with started(console, hold, number, data_dir()) as mesh:
        yield mesh


@asynccontextmanager
async def started(console: Console, hold: list[Mesh], number: int, directory: Path) -> AsyncIterator[Mesh]:
    """A mesh of ours on this port for the block. It is in `hold` from the moment it has a process. Raises DemoError."""
    base = f"http://{HOST}:{number}"
    console.print(f"starting a mesh on {base}, data in {directory}")
    log = _log_in(directory)
    environment = {**os.environ, "FEEDMESH_HTTP_PORT": str(number), "FEEDMESH_DATA_DIR": str(directory)}
    with log.path.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "launch", "--die-with-parent"),
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
    mesh = Mesh(base, process, log)
    hold.append(mesh)
    try:
        await _until_ready(mesh)
        yield mesh
    finally:
        if process.returncode is None:
            console.print("stopping the mesh")
            await _stop(mesh)


async def _serves(base: str) -> bool:
    """Whether a mesh is ready there; waits for one that is starting. False: nobody is there. Raises DemoError."""
    foreign = f"the port of {base} is taken by something that is no feedmesh; set FEEDMESH_HTTP_PORT to another"
    loop = asyncio.get_running_loop()
    until = loop.time() + OTHERS_START_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        while True:
            try:
                async with session.get(f"{base}/readyz", allow_redirects=False) as response:
                    answer = orjson.loads(await response.read())
            except aiohttp.ClientConnectorError:
                return False
            except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError):
                raise DemoError(foreign) from None
            if not isinstance(answer, dict) or "ready" not in answer:
                raise DemoError(foreign)
            if answer["ready"] is True:
                return True
            if loop.time() > until:
                raise DemoError(f"the mesh on {base} is not ready: {orjson.dumps(answer.get('parts')).decode()}")
            await asyncio.sleep(0.5)


def _log_in(directory: Path) -> Log:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        log = directory / LOG
        log.touch()
        return Log(log, log.stat().st_size)
    except OSError as error:
        raise DemoError(f"the data directory {directory} cannot be used: {error.strerror}") from None


async def _until_ready(mesh: Mesh) -> None:
    assert mesh.process is not None
    assert mesh.log is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            while mesh.process.returncode is None:
                if READY_LINE in mesh.log.text():
                    return
                await asyncio.sleep(0.1)
    raise _failure("the mesh did not start", mesh.log)


async def _stop(mesh: Mesh) -> None:
    assert mesh.process is not None
    mesh.process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await mesh.process.wait()
    except TimeoutError:
        mesh.process.kill()  # it takes all its processes with it
        await mesh.process.wait()


def _failure(what: str, log: Log | None) -> DemoError:
    """The launcher's own words for it, if it had any, and where to read on."""
    assert log is not None  # only one of ours fails
    prefix = "feedmesh: "
    said = [line.removeprefix(prefix) for line in log.text().splitlines() if line.startswith(prefix)]
    return DemoError(f"{what}{': ' + said[-1] if said else ''} (its log: {log.path})")
