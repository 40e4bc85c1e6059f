"""The launcher's settings: read from the environment, all faults found at once. And each child's environment.

Not the settings of a service: those are the service's own, and only pass through here by name.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import random
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import TypeAdapter, ValidationError
from redis import ConnectionPool

from launch.processes import Mesh, Process

PREFIX = "FEEDMESH_"  # services find theirs in any case, so that is how far it is looked for here too
HOST = "127.0.0.1"
MAX_NAME_BYTES = 63  # of a database
MAX_REPLICAS = 16
LEVELS = ("debug", "info", "warning", "error")
OWN = ("FEEDMESH_HTTP_PORT", "FEEDMESH_DATA_DIR", "FEEDMESH_POSTGRES_DSN", "FEEDMESH_REDIS_URL", "FEEDMESH_LOG_LEVEL",
       "FEEDMESH_TLS")  # fmt: skip


class Refused(Exception):
    """The mesh cannot start as asked. `lines` are for the person who asked: one fault each, no trace."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


@dataclass(frozen=True)
class Settings:
    """What the environment said, checked."""

    http_port: int
    data_dir: Path  # absolute
    postgres_dsn: str | None  # None: the embedded server
    redis_url: str | None  # likewise
    log_level: str
    passed: Mapping[str, str]  # optional settings of the services, by name
    replicas: Mapping[str, int] = field(default_factory=dict)  # by process name, where said: see count
    tls: bool = False  # whether processes call each other by mutual TLS

    def certificates(self, name: str) -> Path:
        """The folder of a process's certificate."""
        return self.data_dir / "tls" / name

    def count(self, process: Process) -> int:
        """How many replicas of a process there are, from 1 to 16; 0 of one that needs a setting which is not set."""
        if process.needs and process.needs not in self.passed:
            return 0
        return self.replicas.get(process.name, 1)

    def names(self, process: Process) -> list[str]:
        """What its replicas are called: as the process if it is one, `<name>-1` and so on of several."""
        count = self.count(process)
        return [process.name] if count == 1 else [f"{process.name}-{number}" for number in range(1, count + 1)]

    def http_ports(self, mesh: Mesh) -> list[int]:
        """Where the gateways listen: one on `http_port`, further ones on the ports after it."""
        return [self.http_port + replica for each in mesh.processes if each.http for replica in range(self.count(each))]


def read(environ: Mapping[str, str], mesh: Mesh) -> Settings:
    """Reads the settings. Raises Refused with a line for each wrong one. An empty value counts as unset."""
    given = {name: value for name, value in environ.items() if name.upper().startswith(PREFIX) and value}
    faults = _unknown(given, mesh)

    port_text = given.get("FEEDMESH_HTTP_PORT", "8080")
    port = int(port_text) if re.fullmatch("[0-9]{1,5}", port_text) else 0
    if not 1 <= port <= 65535:
        faults.append(f"FEEDMESH_HTTP_PORT is {port_text!r}: give a port from 1 to 65535")

    level = given.get("FEEDMESH_LOG_LEVEL", "info")
    if level not in LEVELS:
        faults.append(f"FEEDMESH_LOG_LEVEL is {level!r}: give one of {', '.join(LEVELS)}")

    tls = given.get("FEEDMESH_TLS", "0")
    if tls not in ("0", "1"):
        faults.append(f"FEEDMESH_TLS is {tls!r}: give 1 for mutual TLS between the processes, or 0")

    dsn = given.get("FEEDMESH_POSTGRES_DSN")
    if dsn:
        # The text may hold a password, and so may psycopg's complaint about it: neither is repeated.
        try:
            if not conninfo_to_dict(dsn).get("dbname"):
                faults.append("FEEDMESH_POSTGRES_DSN names no database: the mesh's databases are named after it")
            faults += _too_long(dsn, mesh)
        except psycopg.ProgrammingError:
            faults.append("FEEDMESH_POSTGRES_DSN is no Postgres connection string (postgresql://user@host:5432/name)")

    url = given.get("FEEDMESH_REDIS_URL")
    if url and not _names_a_redis(url):  # it may hold a password, and is not repeated either
        faults.append(
            "FEEDMESH_REDIS_URL is no Redis URL (redis://user:password@host:6379/0, rediss://… or unix:///path/of/socket)"
        )

    faults += _wrong(given, mesh)
    replicas = {}
    for process in mesh.processes:
        text = given.get(process.replicas_setting, "1")
        count = int(text) if re.fullmatch("[0-9]{1,2}", text) else 0
        if not 1 <= count <= MAX_REPLICAS:
            faults.append(f"{process.replicas_setting} is {text!r}: give a number from 1 to {MAX_REPLICAS}")
        elif process.http and port + count - 1 > 65535:
            faults.append(f"{process.replicas_setting} is {text!r}: port {port} has not so many ports after it")
        if count != 1:
            replicas[process.name] = count
    if "FEEDMESH_WEBHOOK_URL" in given and "FEEDMESH_WEBHOOK_SECRET" not in given:
        faults.append("FEEDMESH_WEBHOOK_SECRET is needed with FEEDMESH_WEBHOOK_URL: what notifications are signed with")
    if faults:
        raise Refused(*faults)
    return Settings(
        http_port=port,
        data_dir=Path(given.get("FEEDMESH_DATA_DIR", ".data")).expanduser().absolute(),
        postgres_dsn=dsn,
        redis_url=url,
        log_level=level,
        passed={name: given[name] for name in mesh.settings if name in given},
        replicas=replicas,
        tls=tls == "1",
    )


def _names_a_redis(url: str) -> bool:
    """Whether a Redis client takes it, and whole: clients ignore a missing host and a database that is no number."""
    try:
        parts = urlsplit(url)
        ConnectionPool.from_url(url).make_connection()  # connects to nothing
    except (ValueError, TypeError):
        return False
    if not url.isprintable() or not url.startswith(("redis://", "rediss://", "unix://")):
        return False
    if parts.scheme == "unix":
        return not parts.hostname and len(parts.path) > 1
    host = re.fullmatch("[A-Za-z0-9._:-]+", parts.hostname or "")
    database = re.fullmatch("/?[0-9]{0,5}", parts.path)
    return bool(host and database and parts.port != 0)


def _too_long(dsn: str, mesh: Mesh) -> list[str]:
    """Postgres cuts longer names short, and two services would share a database."""
    names = [database_name(dsn, database.name) for database in mesh.databases]
    return [
        f"FEEDMESH_POSTGRES_DSN: the database's name is too long: {name} would have more than {MAX_NAME_BYTES} bytes"
        for name in names
        if len(name.encode()) > MAX_NAME_BYTES
    ][:1]


def database_name(dsn: str | None, name: str) -> str:
    """What a mesh's database is called: feedmesh_<name>, or after the database that an outside `dsn` names."""
    prefix = conninfo_to_dict(dsn).get("dbname", "") if dsn else "feedmesh"
    return f"{prefix}_{name}"


def _wrong(given: Mapping[str, str], mesh: Mesh) -> list[str]:
    """What the processes would say of the settings that are passed on to them, before any of them starts."""
    faults = set()
    for process in mesh.processes:
        for name in set(process.settings) & given.keys() if process.config else ():
            module, _, kind = process.config.partition(":")
            field = getattr(importlib.import_module(module), kind).model_fields[name.removeprefix(PREFIX).lower()]
            try:
                TypeAdapter(field.rebuild_annotation()).validate_python(given[name])
            except ValidationError as error:
                faults.add(f"{name}: {error.errors()[0]['msg']}")
    return sorted(faults)


def _unknown(given: Iterable[str], mesh: Mesh) -> list[str]:
    known = {*OWN, *mesh.settings, *(process.replicas_setting for process in mesh.processes)}
    faults = []
    for name in sorted(set(given) - known):
        if name in _told(mesh):
            faults.append(f"{name} is not for you to set: the launcher gives each process its own")
        else:
            near = difflib.get_close_matches(name.upper(), sorted(known), n=1)
            faults.append(f"{name} is no setting" + (f": did you mean {near[0]}?" if near else ""))
    return faults


def _told(mesh: Mesh) -> set[str]:
    """Every name that the launcher itself gives to some process."""
    addresses = {process.name: ((HOST, 1),) for process in mesh.processes}
    at = Addresses(addresses, dict.fromkeys(addresses, (HOST, 1)))
    nothing = Settings(1, Path(), None, None, "info", {})
    running = (process for process in mesh.processes if nothing.count(process))
    names = (
        told(process, nothing, at, dsn="", redis="", secrets=dict.fromkeys(process.all_secrets, ""))
        for process in running
    )
    return {name for own in names for name in own} - set(OWN)


@dataclass(frozen=True)
class Addresses:
    """Where the processes listen."""

    grpc: Mapping[str, tuple[tuple[str, int], ...]]  # by process, one for each replica
    metrics: Mapping[str, tuple[str, int]]  # by replica
    held: Sequence[socket.socket] = ()  # keep others from taking these ports, also while a process starts again


def told(
    process: Process,
    settings: Settings,
    at: Addresses,
    *,
    dsn: str,
    redis: str,
    secrets: Mapping[str, str],
    replica: int = 0,
) -> dict[str, str]:
    """All FEEDMESH_* variables of one replica: what its row asks for and nothing else.

    `dsn` is its database's, `secrets` are those of all.
    """
    metrics = at.metrics[settings.names(process)[replica]]
    env = {"FEEDMESH_LOG_LEVEL": settings.log_level, "FEEDMESH_METRICS_ADDRESS": _text(metrics)}
    if process.grpc:
        env["FEEDMESH_GRPC_ADDRESS"] = _text(at.grpc[process.name][replica])
    if process.http:
        env |= {"FEEDMESH_HTTP_HOST": HOST, "FEEDMESH_HTTP_PORT": str(settings.http_port + replica)}
    if process.database:
        env["FEEDMESH_POSTGRES_DSN"] = dsn
    if process.redis:
        env["FEEDMESH_REDIS_URL"] = redis
    env |= {f"FEEDMESH_{name}": secrets[name] for name in process.secrets}
    if process.is_of_mesh and settings.tls:
        env["FEEDMESH_TLS_DIR"] = str(settings.certificates(process.name))
    elif process.is_of_mesh:
        env["FEEDMESH_MESH_SECRET"] = secrets["MESH_SECRET"]
    if "FEEDMESH_MEDIA_URL" in process.settings:
        env["FEEDMESH_MEDIA_URL"] = f"file://{quote(str(settings.data_dir / 'media'))}"
    for callee in process.calls:
        if at.grpc[callee]:
            env[f"FEEDMESH_{callee.upper()}_TARGET"] = ",".join(map(_text, at.grpc[callee]))
    return env | {name: settings.passed[name] for name in process.settings if name in settings.passed}


def _text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def environment(inherited: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """A child's environment: everything inherited that is no FEEDMESH_* name, and its `own` ones."""
    kept = {name: value for name, value in inherited.items() if not name.upper().startswith(PREFIX)}
    return {"PYTHONUNBUFFERED": "1", **kept, **own}  # unbuffered: the last words of a process that dies arrive


def allocate(mesh: Mesh, settings: Settings) -> Addresses:
    """Free local ports for every replica, all distinct and none a gateway's. Raises Refused if there are none."""
    taken = settings.http_ports(mesh)
    count = sum(settings.count(process) * (1 + process.grpc) for process in mesh.processes) + len(taken)
    held = reserve(count, taken=settings.http_port, ephemeral=ephemeral_range())
    found = [each.getsockname() for each in held]
    addresses = (address for address in found if address[1] not in taken)
    return Addresses(
        grpc={each.name: tuple(next(addresses) for _ in settings.names(each)) for each in mesh.processes if each.grpc},
        metrics={name: next(addresses) for each in mesh.processes for name in settings.names(each)},
        held=held,
    )


def reserve(count: int, *, taken: int, ephemeral: tuple[int, int]) -> list[socket.socket]:
    """Sockets that hold `count` local ports, outside the kernel's `ephemeral` range where there is room.

    While they are open, only a server that sets SO_REUSEADDR can listen there, as ours do; another mesh that looks for
    ports passes them over. A port inside that range could become some outgoing connection's.
    """
    low, high = ephemeral
    outside = [port for port in range(10000, 65536) if not low <= port <= high and port != taken]
    others = [port for port in range(10000, 65536) if low <= port <= high and port != taken]
    held: list[socket.socket] = []
    for port in (*random.sample(outside, len(outside)), *random.sample(others, len(others))):
        one = socket.socket()
        try:
            one.bind((HOST, port))
        except OSError:
            one.close()
            continue
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.append(one)
        if len(held) == count:
            return held
    raise Refused(f"there are no {count} free local ports")


def free_port() -> int:
    """A port that a server can listen on now, as `reserve` finds one; nobody holds it."""
    [held] = reserve(1, taken=0, ephemeral=ephemeral_range())
    with held:
        return int(held.getsockname()[1])


def ephemeral_range() -> tuple[int, int]:
    """The ports that the kernel gives to outgoing connections, both ends included."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 32768, 60999


def port_fault(port: int) -> str | None:
    """Why a server cannot listen on this local port, or None. Told by trying."""
    with socket.socket() as probe:
        # As a server does: a port whose last connections are still in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            return "is taken by another program" if taken else f"cannot be used: {error.strerror}"
    return None
