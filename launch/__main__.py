"""`python -m launch`: reads the settings, starts the mesh, waits until it is ready, stops it. Wiring only."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from typing import Any

from psycopg.conninfo import make_conninfo

from launch import certificates, datadir, postgres, settings, sockets, valkey
from launch.leash import die_with_parent
from launch.processes import FEEDMESH, Database, Mesh, Stage
from launch.screen import Screen
from launch.settings import HOST, Addresses, Refused, Settings
from launch.supervise import LAST_LINES, Child, Command, StartFailed, describe, run, stop

READY_SECONDS = 180.0
SECOND_SIGNAL_SECONDS = 0.5  # a closed terminal sends several at once: those are one wish

HELP = f"""\
Starts the whole mesh on this machine, every process a process of its own: an embedded PostgreSQL 18, the databases
and their migrations, an embedded Valkey 9, the services, their workers and the gateway. Shows all logs on one screen,
starts again what dies, and prints `feedmesh is ready on http://{HOST}:PORT` once it answers. Listens on {HOST}
only. Linux only.

settings, from the environment:
  FEEDMESH_HTTP_PORT      where the gateway listens (default 8080)
  FEEDMESH_DATA_DIR       what must survive: the Postgres cluster, media, secrets; made if absent (default .data)
  FEEDMESH_POSTGRES_DSN   a Postgres server of yours instead of the embedded one; the databases are named after the
                          one it names: <dbname>_graph, <dbname>_post, <dbname>_timeline
  FEEDMESH_REDIS_URL      a Redis (7 or later) or Valkey of yours instead of the embedded one, for this mesh alone:
                          redis://, rediss:// or unix://; nothing in it has to be kept
  FEEDMESH_LOG_LEVEL      {", ".join(settings.LEVELS)} (default info)
  FEEDMESH_TLS            1 for mutual TLS between the processes, with certificates of an authority that it makes
  FEEDMESH_REPLICAS_NAME  how many to run of the process NAME, 1 to {settings.MAX_REPLICAS} (default 1); TIMELINE_FANOUT
                          is timeline-fanout. Further gateways listen on the ports after the first one's
"""
EPILOG = """\
Ctrl-C (SIGINT), SIGTERM and SIGHUP stop it in order: the gateway, the services, the workers, the stores, each given
10 seconds; a second signal hurries. Killed outright, it takes all its processes with it.

exit codes: 0 stopped as asked, 1 a process did not come up, 2 a setting, the port, the data directory or a store
cannot be used as asked (each in one line on stderr).
"""


def main(argv: Sequence[str] | None = None, mesh: Mesh = FEEDMESH) -> int:
    """Runs a mesh until it is told to stop; returns the exit code. Tests give a mesh of stand-ins."""
    arguments = _arguments(argv, mesh)
    if arguments.die_with_parent:
        die_with_parent(signal.SIGTERM, os.getppid())
    with ExitStack() as stack:
        try:
            chosen = settings.read(os.environ, mesh)
            _claim(chosen, mesh, stack)
            screen = Screen(sys.stdout.fileno(), raw=arguments.json, level=chosen.log_level)
            stack.callback(screen.close)
            return asyncio.run(_serve(chosen, mesh, screen))
        except KeyboardInterrupt:
            return 0  # before anything was started
        except Refused as refused:
            stack.close()  # the logs first, then what they came to
            for line in refused.lines:
                print(line if line.startswith(" ") else f"feedmesh: {line}", file=sys.stderr)
            return 1 if isinstance(refused, StartFailed) else 2


def _arguments(argv: Sequence[str] | None, mesh: Mesh) -> argparse.Namespace:
    passed = "".join(f"  {name}\n" for name in sorted(mesh.settings))
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description=HELP + (f"\nand, passed on to the service that knows it:\n{passed}" if passed else ""),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--die-with-parent", action="store_true", help="stop when the process that started this one (make) is gone"
    )
    parser.add_argument(
        "--json", action="store_true", help="show the logs as they are written: JSON, one object a line"
    )
    return parser.parse_args(argv)


def _claim(chosen: Settings, mesh: Mesh, stack: ExitStack) -> None:
    """Takes what the mesh needs from this machine. Raises Refused with every fault found."""
    faults = []
    if sys.platform != "linux":
        faults.append("`python -m launch` needs Linux")
    patience = time.monotonic() + 1.0  # a mesh that was killed a moment ago may still be letting go of it
    for port in chosen.http_ports(mesh):
        while (fault := settings.port_fault(port)) and time.monotonic() < patience:
            time.sleep(0.05)
        if fault:
            faults.append(f"FEEDMESH_HTTP_PORT: port {port} {fault}")
    try:
        stack.enter_context(datadir.held(chosen.data_dir))
    except Refused as refused:
        faults.extend(refused.lines)
    for outside, find in ((chosen.postgres_dsn, postgres.find_programs), (chosen.redis_url, valkey.find_program)):
        if outside is None:
            try:
                find()
            except Refused as refused:
                faults.extend(refused.lines)
    if faults:
        raise Refused(*faults)


async def _serve(chosen: Settings, mesh: Mesh, screen: Screen) -> int:
    asked, hurry = asyncio.Event(), asyncio.Event()
    _on_signals(asked, hurry, screen)
    children: list[tuple[Stage, Child]] = []
    life = asyncio.create_task(_live(chosen, mesh, screen, children))
    wish = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({life, wish}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.is_set():
            await life  # it only ends by failing
        return 0
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        for _, child in children:
            child.no_more()
        await stop(([child for stage, child in children if stage == this] for this in Stage), hurry)
        for store in ("postgres", "valkey"):
            sockets.remove(chosen.data_dir, store)
        if children:
            screen.say("info", "everything is stopped")


def _on_signals(asked: asyncio.Event, hurry: asyncio.Event, screen: Screen) -> None:
    loop = asyncio.get_running_loop()
    first = 0.0

    def received(name: str) -> None:
        nonlocal first
        if not asked.is_set():
            first = loop.time()
            asked.set()
            screen.say("info", f"{name}: stopping; once more to hurry")
        elif loop.time() - first > SECOND_SIGNAL_SECONDS:
            hurry.set()

    loop.add_signal_handler(signal.SIGINT, received, "SIGINT")
    loop.add_signal_handler(signal.SIGTERM, received, "SIGTERM")
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return  # nohup
    loop.add_signal_handler(signal.SIGHUP, received, "SIGHUP")
    if sys.stdout.isatty():
        # When the terminal goes, the kernel tells its session's leader only. If that is make, it waits for us.
        terminal = select.epoll()
        terminal.register(sys.stdout, 0)

        def hung_up() -> None:
            loop.remove_reader(terminal)
            received("the terminal is gone")

        loop.add_reader(terminal, hung_up)


async def _live(chosen: Settings, mesh: Mesh, screen: Screen, children: list[tuple[Stage, Child]]) -> None:
    """Starts everything in order, says so, and lasts. Adds what it starts to `children`. Raises Refused."""

    def start(stage: Stage, command: Command) -> None:
        children.append((stage, Child(command, screen)))

    dsn_of: Callable[[str], str]
    wanted = {name for process in mesh.processes for name in process.all_secrets if chosen.count(process)}
    secrets = {name: datadir.secret(chosen.data_dir, name) for name in wanted}
    at = settings.allocate(mesh, chosen)
    if chosen.tls:
        _certify(chosen, mesh)
    if chosen.postgres_dsn is None:
        server = await postgres.prepare(
            chosen.data_dir, lambda line: screen.line("initdb", line), replicas=max(map(chosen.count, mesh.processes))
        )
        start(Stage.STORE, server.command())
        any_dsn, dsn_of = server.dsn(), server.dsn
        await _unless_one_ends(children, postgres.accepting(any_dsn))
    else:
        any_dsn, dsn_of = chosen.postgres_dsn, functools.partial(_database_of, chosen.postgres_dsn)
    called = {database.name: settings.database_name(chosen.postgres_dsn, database.name) for database in mesh.databases}
    dsns = {name: dsn_of(database) for name, database in called.items()}
    await _unless_one_ends(children, postgres.create_databases(any_dsn, called.values()))
    await _unless_one_ends(children, _migrate(mesh.databases, dsns, chosen.log_level, screen))
    redis = chosen.redis_url
    if redis is None:
        embedded = valkey.prepare(chosen.data_dir)
        start(Stage.STORE, embedded.command())
        redis = embedded.url
        await _unless_one_ends(children, valkey.accepting(embedded))

    for process in mesh.processes:
        dsn = dsns.get(process.database or "", "")
        for replica, name in enumerate(chosen.names(process)):
            own = settings.told(process, chosen, at, dsn=dsn, redis=redis, secrets=secrets, replica=replica)
            start(process.stage, Command(name, (sys.executable, *process.argv), settings.environment(os.environ, own)))
    for port in chosen.http_ports(mesh):
        await _unless_one_ends(children, _ready(port))
    for _, child in children:
        child.settled = True
    _announce(chosen, mesh, at, any_dsn, redis, screen)
    renewal = asyncio.create_task(_renew_certificates(chosen, mesh))
    try:
        await asyncio.wait({child.task for _, child in children})  # not gather: cancelling that would cancel them
    finally:
        renewal.cancel()


def _certify(chosen: Settings, mesh: Mesh) -> None:
    """Makes the certificate of each process, and of the operator's command line. Raises Refused."""
    names = [process.name for process in mesh.processes if process.is_of_mesh and chosen.count(process)]
    certificates.Authority(chosen.certificates("")).issue([*names, "admin"])


async def _renew_certificates(chosen: Settings, mesh: Mesh) -> None:
    """Makes them anew again and again, where there are any."""
    while chosen.tls:
        await asyncio.sleep(certificates.RENEWED.total_seconds())
        _certify(chosen, mesh)


def _database_of(dsn: str, name: str) -> str:
    return make_conninfo(dsn, dbname=name)


async def _unless_one_ends(children: list[tuple[Stage, Child]], work: Coroutine[Any, Any, None]) -> None:
    """Does the work while all children live. Raises what the work raises, and StartFailed when one ends first."""
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait(
            {task, *(child.task for _, child in children)}, return_when=asyncio.FIRST_COMPLETED
        )
        for ended in done:
            await ended
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _migrate(databases: Sequence[Database], dsns: dict[str, str], level: str, screen: Screen) -> None:
    async def one(database: Database) -> None:
        name = f"{database.name}-migrate"
        last: deque[str] = deque(maxlen=LAST_LINES)

        def show(line: str) -> None:
            last.append(line)
            screen.line(name, line)

        own = {"FEEDMESH_LOG_LEVEL": level, "FEEDMESH_POSTGRES_DSN": dsns[database.name]}
        command = Command(name, (sys.executable, *database.migrate), settings.environment(os.environ, own))
        code = await run(command, show)
        if code != 0:
            raise StartFailed(f"{name} {describe(code)}; its last lines:", *(f"    {line}" for line in last))

    try:
        async with asyncio.TaskGroup() as group:
            for database in databases:
                group.create_task(one(database))
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None


async def _ready(port: int) -> None:
    """Waits until the gateway says that everything is ready. Raises StartFailed after READY_SECONDS."""
    answer = "nothing"
    try:
        async with asyncio.timeout(READY_SECONDS):
            while True:
                with contextlib.suppress(OSError):
                    answer = await _readyz(port)
                    if answer.split()[1:2] == ["200"]:
                        return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise StartFailed(f"not ready after {READY_SECONDS:g} s; /readyz answered: {answer}") from None


async def _readyz(port: int) -> str:
    # By hand: a client library would bring proxies and settings of its own to this one question.
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(f"GET /readyz HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(5):
            answer = await reader.read(4096)
    finally:
        writer.close()
    return " ".join(answer.decode(errors="replace").split())[:500]


def _announce(chosen: Settings, mesh: Mesh, at: Addresses, dsn: str, redis: str, screen: Screen) -> None:
    url = f"http://{HOST}:{chosen.http_port}"
    screen.plain(f"feedmesh is ready on {url}")
    lines = [
        f"  start at   {url}/",
        f"  API        {url}/docs",
        *(f"  gateway    http://{HOST}:{port}" for port in chosen.http_ports(mesh)[1:]),
        f"  data       {chosen.data_dir}",
        # Those of the user's may hold a password.
        *([f"  Postgres   {dsn}"] if chosen.postgres_dsn is None else []),
        *([f"  Valkey     {redis}"] if chosen.redis_url is None else []),
        *(
            f"  gRPC       {host}:{port}  {name}"
            for process in mesh.processes
            if process.grpc
            for name, (host, port) in zip(chosen.names(process), at.grpc[process.name], strict=True)
        ),
        *(f"  metrics    http://{host}:{port}/metrics  {name}" for name, (host, port) in at.metrics.items()),
        "  Ctrl-C stops it",
    ]
    for line in lines:
        screen.plain(line)


if __name__ == "__main__":
    sys.exit(main())
