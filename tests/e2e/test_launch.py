"""The launcher with the whole mesh: two side by side, and nothing left however it ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launch.processes import FEEDMESH
from tests.e2e import mesh as meshes
from tests.e2e.mesh import Mesh


async def test_two_meshes_side_by_side_do_not_touch_each_other(mesh: Mesh, tmp_path: Path) -> None:
    with meshes.running(tmp_path) as other:
        here, there = await mesh.user("side.by.side"), await other.user("side.by.side")
        await other.post("/posts", {"user_id": there, "content": "there"}, 201)
        assert (await mesh.http.get("/feed", params={"user_id": there})).status_code == 404
        assert (await mesh.get("/feed", user_id=here))["posts"] == []
        assert len((await other.get("/feed", user_id=there))["posts"]) == 1
        assert not set(mesh.pids().values()) & set(other.pids().values())
        await other.http.aclose()
    assert (await mesh.get("/readyz"))["ready"] is True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_nothing_is_left_of_a_stopped_mesh(tmp_path: Path, number: signal.Signals) -> None:
    with meshes.running(tmp_path) as own:
        await own.http.aclose()
        pids = descendants(own.launcher.pid)
        assert len(pids) > len(FEEDMESH.processes) + 2, "every process, Valkey, and Postgres with its own"
        code = meshes.stop(own.launcher, number)
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
        meshes.until(lambda: not any(meshes.alive(pid) for pid in pids), 15, "every process to be gone")


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    return [found for child in meshes.children(pid) for found in (child, *descendants(child))]
