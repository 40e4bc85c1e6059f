"""The gateway as a process: how it starts, what it refuses to start with, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.serving import MESH_SECRET

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 20.0
NOBODY = {f"FEEDMESH_{name}_TARGET": "127.0.0.1:1" for name in ("GRAPH", "POST", "RANKING", "TIMELINE")} | {
    "FEEDMESH_MESH_SECRET": MESH_SECRET,
    "FEEDMESH_REDIS_URL": "redis://127.0.0.1:1/0",
    "FEEDMESH_MEDIA_URL": "s3://nowhere",
    "FEEDMESH_MEDIA_SECRET": "s" * 32,
}


def environment(**settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEEDMESH_")}
    return inherited | NOBODY | {f"FEEDMESH_{name}": value for name, value in settings.items()}


def refused(**settings: str) -> str:
    """Standard error of a gateway that must end with exit code 2."""
    ended = subprocess.run(
        [sys.executable, "-m", "gateway"],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert ended.returncode == 2, ended
    return ended.stderr


@contextlib.contextmanager
def started(**settings: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A running gateway, its origin, and the log lines until it served."""
    with subprocess.Popen(
        [sys.executable, "-m", "gateway"],
        cwd=ROOT,
        env=environment(HTTP_PORT="0", **settings),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            lines: list[str] = []
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if address := json.loads(line).get("address"):
                    yield process, f"http://{address}", lines
                    break
            else:
                pytest.fail("".join(lines))
        finally:
            process.kill()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.com", ""])
def test_it_listens_on_loopback_only(host: str) -> None:
    said = refused(HTTP_HOST=host)
    assert len(said.splitlines()) == 1
    assert "FEEDMESH_HTTP_HOST" in said
    assert "loopback" in said


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        said = refused(HTTP_PORT=str(other.getsockname()[1]))
    assert re.fullmatch(r"FEEDMESH_HTTP_PORT: cannot listen on 127\.0\.0\.1:\d+: Address already in use\n", said)


def test_every_wrong_setting_is_named() -> None:
    said = refused(
        HTTP_PORT="99999",
        REQUEST_TIMEOUT_MS="soon",
        COLOUR="red",
        POST_TARGET="",
        LIMIT_READ="600",
        LIMIT_LIKE="0/60",
        LIMIT_WRITE="9999999/1",
        TRUSTED_PROXIES="10.0.0.0/8, here",
    )
    assert [line.split(":")[0] for line in said.splitlines()] == [
        "FEEDMESH_COLOUR",
        "FEEDMESH_HTTP_PORT",
        "FEEDMESH_LIMIT_LIKE",
        "FEEDMESH_LIMIT_READ",
        "FEEDMESH_LIMIT_WRITE",
        "FEEDMESH_POST_TARGET",
        "FEEDMESH_REQUEST_TIMEOUT_MS",
        "FEEDMESH_TRUSTED_PROXIES",
    ]
    assert "as in 600/60" in said


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_it_serves_warns_and_ends(host: str) -> None:
    with started(HTTP_HOST=host) as (process, origin, lines):
        assert any(json.loads(line)["level"] == "warning" and "local mode" in line for line in lines)
        assert httpx.get(f"{origin}/healthz").json() == {"alive": True}
        ready = httpx.get(f"{origin}/readyz")
        assert ready.status_code == 503
        assert set(ready.json()["parts"].values()) == {"unavailable"}
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(BOUND_S) == 0
        assert time.monotonic() - begun < 3


def test_a_request_without_its_service_is_answered_in_time() -> None:
    with started(REQUEST_TIMEOUT_MS="500") as (_, origin, _lines):
        begun = time.monotonic()
        response = httpx.get(f"{origin}/feed?user_id=1")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert time.monotonic() - begun < 2
