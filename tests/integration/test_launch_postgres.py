"""The embedded Postgres: starts anywhere, keeps what it was given, heals what a crash left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psycopg
import pytest

from launch import postgres
from launch.settings import Refused


def write(server: postgres.Server) -> None:
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("CREATE TABLE kept (name text)")
        connection.execute("INSERT INTO kept VALUES ('é')")


def read(server: postgres.Server) -> str:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("SELECT name FROM kept").fetchone()
        assert row is not None
        return str(row[0])


@pytest.mark.parametrize("name", ["plain", "a space, a ' quote", "long-" * 40], ids=["plain", "quoted", "long"])
def test_data_survives_a_restart(tmp_path: Path, name: str) -> None:
    data = tmp_path / name
    with postgres.running(data) as server:
        write(server)
        with psycopg.connect(server.dsn()) as connection:
            shown = {
                name: connection.execute(f"SHOW {name}").fetchone()
                for name in ("fsync", "synchronous_commit", "server_encoding", "listen_addresses")
            }
        assert shown == {
            "fsync": ("on",),
            "synchronous_commit": ("on",),
            "server_encoding": ("UTF8",),
            "listen_addresses": ("",),
        }
        assert server.socket.stat().st_mode & 0o777 == 0o700
    assert not server.socket.exists()
    with postgres.running(data) as server:
        assert read(server) == "é"


def test_leftovers_of_a_crash_are_cleared(tmp_path: Path) -> None:
    with postgres.running(tmp_path) as server:
        write(server)
        pid_file = tmp_path / "postgres" / "postmaster.pid"
        crashed = pid_file.read_text()
        os.kill(int(crashed.split("\n")[0]), signal.SIGKILL)
    # Its number now belongs to a process that lives and is no Postgres: us.
    lines = crashed.split("\n")
    pid_file.write_text("\n".join([str(os.getppid()), *lines[1:]]))
    (tmp_path / "postgres.new").mkdir()
    (tmp_path / "postgres-socket").symlink_to("/tmp/feedmesh-gone")
    with postgres.running(tmp_path) as server:
        assert read(server) == "é"


def test_an_initdb_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "postgres.new" / "base").mkdir(parents=True)
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
    with postgres.running(tmp_path, durable=False) as server:
        write(server)
    assert not (tmp_path / "postgres.new").exists()


def test_a_strange_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "diary.txt").write_text("mine")
    with pytest.raises(Refused, match="no Postgres cluster"), postgres.running(tmp_path):
        pass
    assert (tmp_path / "postgres" / "diary.txt").read_text() == "mine"


def test_a_cluster_of_another_version_is_refused(tmp_path: Path) -> None:
    with postgres.running(tmp_path, durable=False):
        pass
    (tmp_path / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(Refused, match=r"postgres\.log"), postgres.running(tmp_path):
        pass
    assert "incompatible" in (tmp_path / "postgres.log").read_text()
