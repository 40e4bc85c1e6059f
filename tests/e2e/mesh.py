"""A whole mesh for tests: `python -m launch` as its users start it, on a free port and a data directory of its own."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from launch import settings

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]


class NotNowError(AssertionError):
    """The mesh cannot answer now: a client tries again."""


@dataclass
class Mesh:
    """A running mesh."""

    url: str
    launcher: subprocess.Popen[str]
    log: Path
    http: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        # Retries by hand, where a test is about them: this client makes none.
        self.http = httpx.AsyncClient(base_url=self.url, timeout=20, limits=httpx.Limits(max_connections=64))

    def pids(self) -> dict[str, int]:
        """The processes that the launcher started, by their module (`services.post`, `gateway`) or program."""
        found = {}
        for pid in children(self.launcher.pid):
            with suppress(FileNotFoundError, ProcessLookupError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                found[words[words.index("-m") + 1] if "-m" in words else Path(words[0]).name] = pid
        return found

    async def user(self, username: str) -> int:
        """Registers a person; their id."""
        body = {"username": username, "email": f"{username}@example.org"}
        return int((await self.post("/users", body, 201))["user_id"])

    async def post(self, path: str, body: Json, status: int = 200, headers: dict[str, str] | None = None) -> Json:
        """A POST that must be answered with `status`; the answer."""
        response = await self.http.post(path, json=body, headers=headers)
        assert response.status_code == status, response.text
        return dict(response.json())

    async def get(self, path: str, **query: Any) -> Json:
        """A GET that must succeed; the answer."""
        response = await self.http.get(path, params=query)
        if response.status_code == 503:
            raise NotNowError(response.text)
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def shows(self, user_id: int, post_ids: Iterable[int], seconds: float = 30) -> float:
        """Waits until someone's feed is these posts, newest first, and nothing else; how many seconds that took.

        Fails when it shows a post twice, at any time.
        """
        wanted = sorted(post_ids, reverse=True)
        begun = time.monotonic()
        while True:
            try:
                posts = await self.scroll("/feed", itertools.cycle([100]), user_id=user_id, order="latest")
            except NotNowError:
                if time.monotonic() > begun + seconds:
                    raise
                await asyncio.sleep(0.05)
                continue
            shown = [post["post_id"] for post in posts]
            assert len(shown) == len(set(shown)), "a post was shown twice"
            if shown == wanted:
                return time.monotonic() - begun
            missing, extra = set(wanted) - set(shown), set(shown) - set(wanted)
            assert time.monotonic() < begun + seconds, f"missing: {sorted(missing)}, extra: {sorted(extra)}"
            await asyncio.sleep(0.05)

    async def scroll(self, path: str, limits: Iterator[int], **query: Any) -> list[Json]:
        """Every post of a listing, page by page to its end."""
        posts: list[Json] = []
        while True:
            limit = next(limits)
            page = await self.get(path, limit=limit, **query)
            assert len(page["posts"]) <= limit
            posts += page["posts"]
            if page["next_cursor"] is None:
                return posts
            query["cursor"] = page["next_cursor"]


def start(folder: Path, **told: str) -> Mesh:
    """Starts a mesh whose data is in `folder` and waits until it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "launch.log"
    port = told.pop("FEEDMESH_HTTP_PORT", "") or str(settings.free_port())
    launcher = subprocess.Popen(
        [sys.executable, "-m", "launch", "--die-with-parent"],
        cwd=ROOT,
        env={**os.environ, "FEEDMESH_DATA_DIR": str(folder / "data"), "FEEDMESH_HTTP_PORT": port, **told},
        stdout=log.open("a"),
        stderr=subprocess.STDOUT,
        text=True,
    )
    ready = f"feedmesh is ready on http://127.0.0.1:{port}"
    try:
        # The launcher itself gives up where something does not come up.
        until(lambda: ready in log.read_text() or launcher.poll() is not None, 300, f"the mesh to be ready: {log}")
        assert launcher.poll() is None, log.read_text()
    except BaseException:
        stop(launcher)
        raise
    return Mesh(f"http://127.0.0.1:{port}", launcher, log)


def stop(launcher: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> int:
    """Sends a signal to the launcher and waits for its end; its exit code."""
    if launcher.poll() is None:
        launcher.send_signal(number)
    return launcher.wait(30)


@contextmanager
def running(folder: Path, **told: str) -> Iterator[Mesh]:
    """A mesh for the block."""
    mesh = start(folder, **told)
    try:
        yield mesh
    finally:
        stop(mesh.launcher)


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits until something holds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def environment_of(pid: int) -> dict[str, str]:
    """What a process was told."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def parent(pid: int) -> int:
    """The parent of a process; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def children(pid: int) -> list[int]:
    """The processes that one has started."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and parent(int(name)) == pid]


def alive(pid: int) -> bool:
    """Whether a process runs: not gone, and not dead and unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
