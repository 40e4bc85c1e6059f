"""The launcher as its users see it: starts a mesh (of stand-ins), heals it, stops it, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
import redis

from launch import settings

ROOT = Path(__file__).parents[2]
MARK = "LAUNCH_TEST_MARK"

STANDINS = r'''
import sys
from launch.__main__ import main
from launch.processes import Database, Mesh, Process, Stage

MIGRATE = """
import os, psycopg
with psycopg.connect(os.environ["FEEDMESH_POSTGRES_DSN"]) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS kept (number int)")
"""
IDLE = """
import json, os, signal, sys
def stop(*_):
    print(json.dumps({"level": "info", "message": "drained"}))
    sys.exit()
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, stop)
print(json.dumps({"level": "info", "message": "up", "pid": os.getpid()}))
while True:
    signal.pause()
"""
GATEWAY = """
import http.server, json, os
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode())
    def log_message(self, *_):
        pass
address = os.environ["FEEDMESH_HTTP_HOST"], int(os.environ["FEEDMESH_HTTP_PORT"])
http.server.ThreadingHTTPServer(address, Ready).serve_forever()
"""
graph = IDLE
if "fail" in sys.argv:
    sys.argv.remove("fail")
    graph = "print('no such table'); raise SystemExit(3)"
deaf = ()
if "deaf" in sys.argv:
    sys.argv.remove("deaf")
    deaf = ("deaf",)
mesh = Mesh(
    (Database("graph", ("-c", MIGRATE)), Database("post", ("-c", MIGRATE))),
    (
        Process("graph", ("-c", graph, *deaf), Stage.SERVICE, grpc=True, database="graph",
                settings=("FEEDMESH_MAX_X",)),
        Process("worker", ("-c", IDLE), Stage.WORKER, database="graph"),
        Process("gateway", ("-c", GATEWAY), Stage.EDGE, http=True, redis=True, calls=("graph",)),
    ),
)
sys.exit(main(mesh=mesh))
'''


@dataclass
class Launched:
    """A launcher under test; its output goes to a file, so that it never waits for the test."""

    process: subprocess.Popen[bytes]
    output: Path
    errors: Path
    port: int
    mark: str
    environ: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        return self.output.read_text() + self.errors.read_text()

    def wait_for(self, what: str, times: int = 1) -> None:
        until(lambda: len(re.findall(what, self.text())) >= times, lambda: f"no {what!r} in:\n{self.text()}")

    def ready(self) -> Launched:
        self.wait_for(f"(?m)^feedmesh is ready on http://127.0.0.1:{self.port}$")
        return self

    def members(self) -> dict[int, str]:
        """Every living process that was started from this launcher, itself too, by its command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it ended meanwhile; another user's; no process
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def postmaster(self) -> int:
        (pid,) = [pid for pid, line in self.members().items() if "/bin/postgres -D" in line]
        return pid

    def dsn(self) -> str:
        found = re.findall(r"Postgres +(host=.*)", self.text())
        return str(found[-1]).replace("dbname=postgres", "dbname=feedmesh_graph")

    def redis_url(self) -> str:
        return str(re.findall(r"Valkey +(unix://.*)", self.text())[-1])

    def end(self, which: signal.Signals) -> int:
        self.process.send_signal(which)
        return self.process.wait(40)


def until(condition: Callable[[], bool], otherwise: Callable[[], str] = str, seconds: float = 30) -> None:
    bound = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < bound, otherwise()
        time.sleep(0.02)


def ping(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as connection:
            return bool(connection.ping())
    except redis.ConnectionError:
        return False


Launch = Callable[..., Launched]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    started: list[Launched] = []
    (tmp_path / "standins.py").write_text(STANDINS)

    def start(*arguments: str, prefix: tuple[str, ...] = (), terminal: int | None = None, **environ: str) -> Launched:
        mark, port = uuid.uuid4().hex, int(environ.get("FEEDMESH_HTTP_PORT") or settings.free_port())
        output, errors = tmp_path / f"{mark}.out", tmp_path / f"{mark}.err"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEEDMESH_")}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {"PYTHONPATH": path, MARK: mark, "FEEDMESH_HTTP_PORT": str(port), "FEEDMESH_DATA_DIR": "a data dir"}
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                [*prefix, sys.executable, str(tmp_path / "standins.py"), *arguments],
                cwd=tmp_path,
                env={**inherited, **own, **environ},
                stdout=out if terminal is None else terminal,
                stderr=err,
            )
        started.append(Launched(process, output, errors, port, mark))
        return started[-1]

    yield start
    for launched in started:
        if launched.process.poll() is None:
            launched.process.kill()
            launched.process.wait()
        until(lambda launched=launched: not launched.members())  # type: ignore[misc]


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_mesh_starts_and_stops_in_order(launch: Launch, tmp_path: Path, which: signal.Signals) -> None:
    mesh = launch(FEEDMESH_MAX_X="5", PGPORT="1", PGDATA="/nowhere").ready()
    with urllib.request.urlopen(f"http://127.0.0.1:{mesh.port}/", timeout=5) as answer:
        told = {name: value for name, value in json.load(answer).items() if name.startswith("FEEDMESH_")}
    assert sorted(told) == [
        "FEEDMESH_GRAPH_TARGET",
        "FEEDMESH_HTTP_HOST",
        "FEEDMESH_HTTP_PORT",
        "FEEDMESH_LOG_LEVEL",
        "FEEDMESH_MESH_SECRET",
        "FEEDMESH_METRICS_ADDRESS",
        "FEEDMESH_REDIS_URL",
    ]
    assert told["FEEDMESH_REDIS_URL"] == mesh.redis_url()
    assert ping(mesh.redis_url())
    socket_dir = Path(mesh.redis_url().removeprefix("unix://")).parent
    host = Path(str(psycopg.conninfo.conninfo_to_dict(mesh.dsn())["host"]))
    assert host.exists()
    assert mesh.end(which) == 0
    assert mesh.members() == {}
    assert not host.exists()
    assert not socket_dir.exists()
    text = mesh.text()
    assert text.count("feedmesh is ready on") == 1
    service, worker, *stores = (
        text.index(x)
        for x in ("graph        info    drained", "worker       info    drained", "fast shutdown", "ready to exit")
    )
    assert service < worker < min(stores)
    assert "database system is shut down" in text


def test_what_dies_is_started_again(launch: Launch) -> None:
    mesh = launch().ready()
    with psycopg.connect(mesh.dsn()) as connection:
        connection.execute("INSERT INTO kept VALUES (7)")
    for what in ("-c \nimport json", "ThreadingHTTPServer", "/bin/postgres -D", "/valkey-server "):
        pids = [pid for pid, line in mesh.members().items() if what in line]
        assert pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    mesh.wait_for("was ended by SIGKILL; it starts again in 0.1 s", times=5)
    mesh.wait_for("info    up", times=4)

    def healed() -> bool:
        try:
            with psycopg.connect(mesh.dsn()) as connection:
                return connection.execute("SELECT number FROM kept").fetchall() == [(7,)]
        except psycopg.OperationalError:
            return False

    until(healed)
    until(lambda: ping(mesh.redis_url()))
    assert mesh.end(signal.SIGINT) == 0
    assert mesh.members() == {}


def test_backends_without_their_postmaster_do_not_stop_the_healing(launch: Launch) -> None:
    mesh = launch().ready()
    with psycopg.connect(mesh.dsn(), autocommit=True) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGSTOP)  # a backend that does not notice
        os.kill(mesh.postmaster(), signal.SIGKILL)
        mesh.wait_for("ready to accept connections", times=2)
    assert mesh.end(signal.SIGINT) == 0


def test_a_killed_launcher_leaves_nothing(launch: Launch, tmp_path: Path) -> None:
    mesh = launch().ready()
    with psycopg.connect(mesh.dsn()) as connection:
        connection.execute("INSERT INTO kept VALUES (7)")
    links = [tmp_path / "a data dir" / f"{store}-socket" for store in ("postgres", "valkey")]
    first = [link.readlink() for link in links]
    mesh.end(signal.SIGKILL)
    again = launch(FEEDMESH_HTTP_PORT=str(mesh.port)).ready()  # at once: the old Postgres may still be ending
    assert mesh.members() == {}
    assert not {link.readlink() for link in links} & set(first)
    assert not any(directory.exists() for directory in first)
    with psycopg.connect(again.dsn()) as connection:
        assert connection.execute("SELECT number FROM kept").fetchall() == [(7,)]
    assert again.end(signal.SIGTERM) == 0


def test_a_launcher_killed_at_any_moment_leaves_nothing(launch: Launch) -> None:
    for moment in ("", "LOG:", "ready to accept", "message"):
        mesh = launch("--json")
        if moment:
            mesh.wait_for(moment)
        mesh.end(signal.SIGKILL)
        until(lambda mesh=mesh: not mesh.members(), lambda mesh=mesh: str(mesh.members()))  # type: ignore[misc]
    assert launch().ready().end(signal.SIGINT) == 0


def test_a_launcher_told_to_stop_while_starting_stops(launch: Launch) -> None:
    for moment in ("starting PostgreSQL", "ready to accept", "info    up"):
        mesh = launch()
        mesh.wait_for(moment)
        assert mesh.end(signal.SIGINT) == 0
        assert mesh.members() == {}
        assert "Traceback" not in mesh.text()


def test_it_dies_with_its_parent(launch: Launch) -> None:
    mesh = launch("--die-with-parent", prefix=("sh", "-c", '"$@"; true', "sh")).ready()
    mesh.end(signal.SIGKILL)  # the shell, as make would be
    mesh.wait_for("everything is stopped")
    until(lambda: not mesh.members())


def test_it_stops_when_its_terminal_is_gone(launch: Launch) -> None:
    master, terminal = os.openpty()
    mesh = launch(terminal=terminal)
    os.close(terminal)
    seen = b""
    while b"is ready on" not in seen:
        seen += os.read(master, 4096)
    os.close(master)
    assert mesh.process.wait(30) == 0
    assert mesh.members() == {}


def test_a_second_signal_hurries(launch: Launch) -> None:
    mesh = launch("deaf").ready()
    began = time.monotonic()
    mesh.process.send_signal(signal.SIGINT)
    mesh.wait_for("SIGINT: stopping")
    until(lambda: time.monotonic() - began > 1)
    assert mesh.end(signal.SIGINT) == 0
    assert time.monotonic() - began < 8
    assert mesh.members() == {}


def test_a_child_that_cannot_start_is_explained(launch: Launch) -> None:
    mesh = launch("fail")
    assert mesh.process.wait(40) == 1
    errors = mesh.errors.read_text()
    assert "graph ended with exit code 3 during start" in errors
    assert "no such table" in errors
    assert "Traceback" not in errors
    assert mesh.members() == {}


def test_faults_are_lines(launch: Launch, tmp_path: Path) -> None:
    mesh = launch().ready()
    (tmp_path / "file").touch()
    for environ, expected in (
        ({"FEEDMESH_HTTP_PORT": str(mesh.port)}, ["is taken by another program", "in use by another mesh"]),
        ({"FEEDMESH_DATA_DIR": "file"}, ["is not a directory"]),
        ({"FEEDMESH_DATA_DIR": "b", "FEEDMESH_POSTGRES_DSN": "host=/nowhere dbname=x"}, ["Postgres cannot be used"]),
        (
            {"FEEDMESH_MAX_Y": "1", "FEEDMESH_LOG_LEVEL": "x", "FEEDMESH_REDIS_URL": "x"},
            ["did you mean FEEDMESH_MAX_X?", "FEEDMESH_LOG_LEVEL is 'x'", "FEEDMESH_REDIS_URL is no Redis URL"],
        ),
    ):
        refused = launch(**environ)
        assert refused.process.wait(20) == 2
        lines = refused.errors.read_text().splitlines()
        assert len(lines) == len(expected), lines
        for fault in expected:
            assert any(fault in line and line.startswith("feedmesh: ") for line in lines), lines
        assert refused.output.read_text() == ""
    assert mesh.end(signal.SIGINT) == 0


def test_an_outside_postgres_replaces_the_embedded_one(launch: Launch, tmp_path: Path) -> None:
    store = launch().ready()
    outside = store.dsn().replace("feedmesh_graph", "other")
    mesh = launch(FEEDMESH_DATA_DIR="b", FEEDMESH_POSTGRES_DSN=outside).ready()
    with psycopg.connect(outside.replace("other", "other_graph")) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    assert not (tmp_path / "b" / "postgres").exists()
    assert mesh.end(signal.SIGINT) == 0
    assert store.end(signal.SIGINT) == 0


def test_an_outside_redis_replaces_the_embedded_one(launch: Launch, tmp_path: Path) -> None:
    outside = "redis://:hush@127.0.0.1:1/0"  # nobody is there: finding that out is up to who uses it
    mesh = launch(FEEDMESH_REDIS_URL=outside).ready()
    with urllib.request.urlopen(f"http://127.0.0.1:{mesh.port}/", timeout=5) as answer:
        assert json.load(answer)["FEEDMESH_REDIS_URL"] == outside
    assert not any("valkey-server" in line for line in mesh.members().values())
    assert not (tmp_path / "a data dir" / "valkey").exists()
    assert mesh.end(signal.SIGINT) == 0
    assert "hush" not in mesh.text()


def test_json_is_json(launch: Launch) -> None:
    mesh = launch("--json")
    mesh.wait_for("feedmesh is ready on")
    assert mesh.end(signal.SIGINT) == 0
    assert all("message" in json.loads(line) for line in mesh.output.read_text().splitlines())
