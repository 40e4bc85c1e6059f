"""The launcher's settings, ports and what each child is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from launch import settings
from launch.datadir import held, secret
from launch.processes import FEEDMESH
from launch.settings import HOST, Addresses, Refused


def faults(**environ: str) -> tuple[str, ...]:
    with pytest.raises(Refused) as caught:
        settings.read(environ, FEEDMESH)
    return caught.value.lines


def test_defaults() -> None:
    chosen = settings.read({"PATH": "/bin", "FEEDMESH_DATA_DIR": ""}, FEEDMESH)
    assert chosen == settings.Settings(8080, Path(".data").absolute(), None, None, "info", {})


def test_every_fault_is_one_line() -> None:
    lines = faults(
        FEEDMESH_HTTP_PORT="0",
        FEEDMESH_LOG_LEVEL="loud",
        FEEDMESH_POSTGRES_DSN="postgresql://u:secret@h/",
        FEEDMESH_REDIS_URL="redis://u:secret@h:x",
        FEEDMESH_DATA_DIRECTORY="x",
        FEEDMESH_GRPC_ADDRESS="127.0.0.1:1",
        feedmesh_http_port="1",
    )
    assert len(lines) == 7
    assert not any("\n" in line or "secret" in line for line in lines)
    assert any("FEEDMESH_DATA_DIRECTORY is no setting: did you mean FEEDMESH_DATA_DIR?" in line for line in lines)
    assert any("feedmesh_http_port is no setting: did you mean FEEDMESH_HTTP_PORT?" in line for line in lines)
    assert any("FEEDMESH_GRPC_ADDRESS is not for you to set" in line for line in lines)


@pytest.mark.parametrize("port", ["65536", "-1", "8080.0", "http", "٨٠٨٠", " 80", "0x50", "999999999999"])
def test_a_port_is_a_number_from_1_to_65535(port: str) -> None:
    assert "FEEDMESH_HTTP_PORT" in faults(FEEDMESH_HTTP_PORT=port)[0]


@pytest.mark.parametrize("dsn", ["postgresql://u:hush@h:x y/d", "password=hush user", "hush"])
def test_a_wrong_dsn_is_not_repeated(dsn: str) -> None:
    (line,) = faults(FEEDMESH_POSTGRES_DSN=dsn)
    assert "hush" not in line


@pytest.mark.parametrize(
    "url",
    [
        "redis://example.org",
        "redis://u:p%40ss@[::1]:6379/15",
        "redis://:hush@10.0.0.1:6379/?protocol=3",
        "rediss://u:hush@h.example:6380/2?ssl_cert_reqs=none",
        "unix:///run/a place/redis.sock?db=1",
        "unix://u:hush@/redis.sock",
    ],
)
def test_a_redis_url_is_taken_as_it_stands(url: str) -> None:
    assert settings.read({"FEEDMESH_REDIS_URL": url}, FEEDMESH).redis_url == url


@pytest.mark.parametrize(
    "url",
    [
        *(
            "hush",
            "h:6379",
            "http://:hush@h",
            "valkey://:hush@h",
            "REDIS://h",
            "redis://",
            "redis://:hush@",
            "redis://hush h",
        ),
        *("redis://:hush@h:x", "redis://:hush@h:0", "redis://:hush@h:65536", "redis://:hush@[::1", "redis://h\nhush"),
        *("redis://h/hush", "redis://h/-1", "redis://h/1/2", "redis://h?db=hush", "redis://h?hush=1"),
        *("redis://:hu#sh@h", "redis://:hu/sh@h", "unix://", "unix:///", "unix://hush/redis.sock"),
    ],
)
def test_a_wrong_redis_url_is_not_repeated(url: str) -> None:
    (line,) = faults(FEEDMESH_REDIS_URL=url)
    assert line.startswith("FEEDMESH_REDIS_URL is no Redis URL")
    assert "hush" not in line


def test_settings_that_are_passed_on_are_checked_before_anything_starts() -> None:
    given = {"FEEDMESH_MAX_FOLLOWING": "x", "FEEDMESH_POSTGRES_POOL_SIZE": "0", "FEEDMESH_REQUEST_TIMEOUT_MS": "1"}
    with pytest.raises(Refused) as caught:
        settings.read(given, FEEDMESH)
    assert [line.partition(":")[0] for line in caught.value.lines] == sorted(given)


def test_a_webhook_needs_a_secret() -> None:
    (line,) = faults(FEEDMESH_WEBHOOK_URL="https://push.example/hook")
    assert line.startswith("FEEDMESH_WEBHOOK_SECRET is needed")
    (line,) = faults(FEEDMESH_WEBHOOK_URL="push.example", FEEDMESH_WEBHOOK_SECRET="x" * 32)
    assert line.startswith("FEEDMESH_WEBHOOK_URL")


def test_a_database_name_that_postgres_would_cut_short_is_refused() -> None:
    longest = max(len(database.name) for database in FEEDMESH.databases)
    settings.read({"FEEDMESH_POSTGRES_DSN": f"dbname={'x' * (62 - longest)}"}, FEEDMESH)
    with pytest.raises(Refused, match="too long"):
        settings.read({"FEEDMESH_POSTGRES_DSN": f"dbname={'x' * (63 - longest)}"}, FEEDMESH)


def test_a_child_gets_exactly_its_own() -> None:
    chosen = settings.read({"FEEDMESH_MAX_FOLLOWING": "7", "FEEDMESH_LOG_LEVEL": "debug"}, FEEDMESH)
    servers = [process.name for process in FEEDMESH.processes if process.grpc and chosen.count(process)]
    at = Addresses(
        grpc={name: ((HOST, 10 + number),) for number, name in enumerate(servers)}
        | {"ranking": ((HOST, 8), (HOST, 9)), "session": ()},
        metrics={process.name: (HOST, 20) for process in FEEDMESH.processes},
    )
    told = {
        process.name: settings.told(
            process,
            chosen,
            at,
            dsn="dsn",
            redis="redis",
            secrets={"CURSOR_SECRET": "cursors", "MESH_SECRET": "mesh", "MEDIA_SECRET": "signs"},
        )
        for process in FEEDMESH.processes
        if chosen.count(process)
    }
    assert "timeline-webhook" not in told
    common = {"FEEDMESH_LOG_LEVEL": "debug", "FEEDMESH_METRICS_ADDRESS": "127.0.0.1:20"}
    assert told["graph"] == common | {
        "FEEDMESH_GRPC_ADDRESS": "127.0.0.1:10",
        "FEEDMESH_POSTGRES_DSN": "dsn",
        "FEEDMESH_CURSOR_SECRET": "cursors",
        "FEEDMESH_MESH_SECRET": "mesh",
        "FEEDMESH_MAX_FOLLOWING": "7",
    }
    assert told["graph-upkeep"] == common | {"FEEDMESH_POSTGRES_DSN": "dsn"}
    assert told["graph-relay"] == common | {"FEEDMESH_POSTGRES_DSN": "dsn", "FEEDMESH_REDIS_URL": "redis"}
    assert told["ranking"] == common | {
        "FEEDMESH_GRPC_ADDRESS": "127.0.0.1:8",
        "FEEDMESH_MESH_SECRET": "mesh",
        "FEEDMESH_REDIS_URL": "redis",
        "FEEDMESH_POST_TARGET": "127.0.0.1:11",
    }
    media_url = f"file://{Path.cwd()}/.data/media"
    assert told["post-upkeep"] == common | {"FEEDMESH_POSTGRES_DSN": "dsn", "FEEDMESH_MEDIA_URL": media_url}
    assert told["gateway"] == common | {
        "FEEDMESH_MEDIA_URL": media_url,
        "FEEDMESH_MEDIA_SECRET": "signs",
        "FEEDMESH_HTTP_HOST": "127.0.0.1",
        "FEEDMESH_HTTP_PORT": "8080",
        "FEEDMESH_REDIS_URL": "redis",
        "FEEDMESH_MESH_SECRET": "mesh",
        "FEEDMESH_GRAPH_TARGET": "127.0.0.1:10",
        "FEEDMESH_POST_TARGET": "127.0.0.1:11",
        "FEEDMESH_RANKING_TARGET": "127.0.0.1:8,127.0.0.1:9",
        "FEEDMESH_TIMELINE_TARGET": "127.0.0.1:13",
    }
    inherited = {"HOME": "/h", "FEEDMESH_DATA_DIR": "x", "feedmesh_x": "y"}
    assert settings.environment(inherited, {"FEEDMESH_A": "1"}) == {
        "HOME": "/h",
        "PYTHONUNBUFFERED": "1",
        "FEEDMESH_A": "1",
    }


@pytest.mark.parametrize("count", ["0", "17", "-1", "two", "2.0", " 2", "٢", "100"])
def test_replicas_are_a_number_from_1_to_16(count: str) -> None:
    (line,) = faults(FEEDMESH_REPLICAS_TIMELINE_FANOUT=count)
    assert line == f"FEEDMESH_REPLICAS_TIMELINE_FANOUT is {count!r}: give a number from 1 to 16"


def test_replicas_are_of_a_process_and_have_room_for_their_ports() -> None:
    (line,) = faults(FEEDMESH_REPLICAS_FANOUT="2")
    assert line.startswith("FEEDMESH_REPLICAS_FANOUT is no setting")
    (line,) = faults(FEEDMESH_REPLICAS_GATEWAY="3", FEEDMESH_HTTP_PORT="65534")
    assert line == "FEEDMESH_REPLICAS_GATEWAY is '3': port 65534 has not so many ports after it"


def test_each_replica_has_a_name_and_ports_of_its_own_and_is_called_by_all() -> None:
    counts = {process.name: number % 3 + 1 for number, process in enumerate(FEEDMESH.processes)}
    given = {process.replicas_setting: str(counts[process.name]) for process in FEEDMESH.processes}
    chosen = settings.read(given, FEEDMESH)
    # Nothing runs without what it needs.
    assert all(chosen.count(each) == 0 for each in FEEDMESH.processes if each.needs)
    given |= {"FEEDMESH_AUTH": "builtin"}
    given |= {"FEEDMESH_WEBHOOK_URL": "https://push.example/hook", "FEEDMESH_WEBHOOK_SECRET": "x" * 32}
    chosen = settings.read(given, FEEDMESH)
    assert {process.name: chosen.count(process) for process in FEEDMESH.processes} == counts
    at = settings.allocate(FEEDMESH, chosen)
    names, ports = [], []
    for process in FEEDMESH.processes:
        names += chosen.names(process)
        for replica, name in enumerate(chosen.names(process)):
            own = settings.told(
                process, chosen, at, dsn="", redis="", secrets=dict.fromkeys(process.all_secrets, ""), replica=replica
            )
            ports += [own[key] for key in ("FEEDMESH_GRPC_ADDRESS", "FEEDMESH_METRICS_ADDRESS") if key in own]
            assert own["FEEDMESH_METRICS_ADDRESS"] == f"{HOST}:{at.metrics[name][1]}"
            if process.http:
                ports.append(f"{HOST}:{own['FEEDMESH_HTTP_PORT']}")
            for callee in process.calls:
                assert own[f"FEEDMESH_{callee.upper()}_TARGET"].count(",") == counts[callee] - 1
    assert len(set(names)) == len(names) == sum(counts.values())
    assert len(set(ports)) == len(ports)
    assert chosen.http_ports(FEEDMESH) == [8080 + replica for replica in range(counts["gateway"])]


def test_every_call_and_database_of_the_table_exists() -> None:
    servers = {process.name for process in FEEDMESH.processes if process.grpc}
    databases = {database.name for database in FEEDMESH.databases}
    assert len({process.name for process in FEEDMESH.processes}) == len(FEEDMESH.processes)
    for process in FEEDMESH.processes:
        assert set(process.calls) <= servers
        assert process.database is None or process.database in databases


def test_reserved_ports_are_distinct_outside_the_ephemeral_range_and_for_who_reserved_them() -> None:
    low, high = settings.ephemeral_range()
    reserved = settings.reserve(200, taken=12345, ephemeral=(low, high))
    ports = [each.getsockname()[1] for each in reserved]
    assert len(set(ports)) == 200
    assert 12345 not in ports
    if high - low < 45_000:
        assert not any(low <= port <= high for port in ports)
    with socket.socket() as another, pytest.raises(OSError, match="in use"):
        another.bind((HOST, ports[0]))
    with socket.create_server((HOST, ports[0])):  # with SO_REUSEADDR, as servers do
        assert settings.port_fault(ports[0]) == "is taken by another program"
    for each in reserved:
        each.close()


def test_reserved_ports_fall_back_on_the_ephemeral_range() -> None:
    reserved = settings.reserve(3, taken=1, ephemeral=(1024, 65535))
    assert len({each.getsockname() for each in reserved}) == 3
    for each in reserved:
        each.close()


def test_a_port_with_a_listener_is_taken() -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert settings.port_fault(port) == "is taken by another program"
    assert settings.port_fault(port) is None


def test_a_data_directory_has_one_holder(tmp_path: Path) -> None:
    with (
        held(tmp_path / "a b"),
        pytest.raises(Refused, match=r"in use by another mesh \(process \d+\)"),
        held(tmp_path / "a b"),
    ):
        pass
    with held(tmp_path / "a b"):
        pass


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Refused, match="not a directory"), held(place):
            pass


def test_a_secret_is_made_once_and_private(tmp_path: Path) -> None:
    (tmp_path / "cursor-secret.new").write_text("half")
    made = secret(tmp_path, "CURSOR_SECRET")
    assert len(bytes.fromhex(made)) == 32
    assert (tmp_path / "cursor-secret").stat().st_mode & 0o777 == 0o600
    assert secret(tmp_path, "CURSOR_SECRET") == made
    assert secret(tmp_path, "MESH_SECRET") != made
    (tmp_path / "cursor-secret").write_text("short\n")
    with pytest.raises(Refused, match="64 hexadecimal digits"):
        secret(tmp_path, "CURSOR_SECRET")
