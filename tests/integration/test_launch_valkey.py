"""The embedded Valkey: starts anywhere, is killed and started again at one place, keeps nothing, leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from launch import valkey
from launch.settings import Refused

ROOT = Path(__file__).parents[2]

PARENT = """
import sys, time
from pathlib import Path
from launch import valkey
with valkey.running(Path(sys.argv[1])) as server:
    print(server.process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "name", ["plain", "a space, a ' and a \" quote", "long-" * 40], ids=["plain", "quoted", "long"]
)
def test_it_starts_anywhere_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    data = tmp_path / name
    with valkey.running(data) as server:
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            assert client.ping()
            assert client.set("name", "é")
            settings = ("dir", "save", "appendonly", "maxmemory-policy", "port")
            shown = {name: client.config_get(name)[name] for name in settings}
        assert shown == {
            "dir": str(data / "valkey"),
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "port": "0",
        }
        sock = Path(server.url.removeprefix("unix://"))
        assert sock.parent.stat().st_mode & 0o777 == 0o700
        assert sock.stat().st_mode & 0o777 == 0o700
    assert not sock.parent.exists()
    assert server.process.returncode is not None
    assert {path.name for path in data.rglob("*")} == {"lock", "valkey", "valkey.log"}


def test_a_killed_one_starts_again_at_its_place_empty(tmp_path: Path) -> None:
    with valkey.running(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("name", "value")
        url, first = server.url, server.process.pid
        os.kill(first, signal.SIGKILL)  # its socket stays behind
        server.process.wait()
        server.restart()
        assert (server.url, client.get("name")) == (url, None)
        assert server.process.pid != first
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.restart()
        assert client.ping()


def test_an_old_snapshot_is_loaded(tmp_path: Path) -> None:
    with valkey.running(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("name", "old")
        client.save()
        client.set("name", "new")
        server.restart()
        assert client.get("name") == b"old"
        server.snapshot.unlink()
        server.restart()
        assert client.get("name") is None


def test_one_that_ends_of_itself_saves_nothing(tmp_path: Path) -> None:
    with valkey.running(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("name", "value")
        server.process.terminate()
        assert server.process.wait(10) == 0
        assert list((tmp_path / "valkey").iterdir()) == []


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environ
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        first = (tmp_path / "valkey-socket").readlink()
        parent.kill()
    end = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert first.exists()
    with valkey.running(tmp_path):  # which takes away what the killed one could not
        assert not first.exists()


def test_one_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "dump.rdb").write_bytes(b"no snapshot")
    with pytest.raises(Refused, match=r"valkey\.log"), valkey.running(tmp_path):
        pass
    assert "Wrong signature" in (tmp_path / "valkey.log").read_text()
    assert not (tmp_path / "valkey-socket").is_symlink()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "valkey").write_text("mine")
    with pytest.raises(Refused, match="cannot be used"), valkey.running(tmp_path):
        pass
    assert (tmp_path / "valkey").read_text() == "mine"


async def test_a_restart_works_within_an_event_loop(tmp_path: Path) -> None:
    with valkey.running(tmp_path) as server:
        server.restart()
        async with redis.asyncio.Redis.from_url(server.url) as client:
            assert await client.ping()


def alive(pid: int) -> bool:
    """Whether a process runs: not gone, and not dead and unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
