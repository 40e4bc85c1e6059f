"""A service that calls the stubs as docs/grpc.md says: the page's own example, against a whole mesh."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e import mesh as meshes
from tests.e2e.mesh import Mesh

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How the example ended."""

    code: int
    out: list[str]
    err: str


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    [program] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/grpc.md").read_text(), re.MULTILINE | re.DOTALL)
    file = tmp_path_factory.mktemp("caller") / "read_feed.py"
    file.write_text(program)
    return file


async def run(example: Path, mesh: Mesh, user_id: int, secret: str | None = None) -> Ended:
    """Runs it with what `make run` printed and keeps."""
    address = re.findall(r"^  gRPC +(\S+)  timeline$", mesh.log.read_text(), re.MULTILINE)[-1]
    kept = (mesh.log.parent / "data" / "mesh-secret").read_text().strip()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, example.name, address, str(user_id)),
        cwd=example.parent,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "FEEDMESH_MESH_SECRET": secret or kept},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Ended(process.returncode or 0, out.decode().splitlines(), err.decode())


async def test_the_example_reads_a_feed_to_its_end(mesh: Mesh, example: Path) -> None:
    reader, writer = await mesh.user("stubs.reader"), await mesh.user("stubs.writer")
    await mesh.post("/follow", {"follower_id": reader, "following_id": writer})
    # More than a page of the example's.
    posts = [
        (await mesh.post("/posts", {"user_id": writer, "content": f"words {n}"}, 201))["post_id"] for n in range(60)
    ]
    await mesh.shows(reader, posts)
    ended = await run(example, mesh, reader)
    expected = [f"{post_id} stubs.writer words {n}" for n, post_id in reversed(list(enumerate(posts)))]
    assert ended == Ended(0, expected, "")


async def test_the_example_says_why_there_is_no_feed(mesh: Mesh, example: Path) -> None:
    assert (await run(example, mesh, 99)).err.split()[:2] == ["NOT_FOUND", "USER_NOT_FOUND"]
    ended = await run(example, mesh, 0)
    assert ended.err.startswith("INVALID_ARGUMENT INVALID_ARGUMENT user_id: ")
    assert (ended.code, ended.out) == (1, [])


async def test_the_example_with_another_secret_is_refused(mesh: Mesh, example: Path) -> None:
    ended = await run(example, mesh, 99, secret="x" * 64)
    assert (ended.code, ended.out) == (1, [])
    assert ended.err.split()[:2] == ["UNAUTHENTICATED", "UNKNOWN_CALLER"]
    meshes.until(lambda: "unknown caller" in mesh.log.read_text(), 10, "the service to say so")
