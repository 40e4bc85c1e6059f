"""A whole mesh with certificates (`make run TLS=1`): they change under load, and no call is lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import sys
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from launch.certificates import Authority
from tests.e2e import mesh as meshes
from tests.e2e.mesh import ROOT, Mesh

EVERY_S, FOR_S = (float(part) for part in os.environ.get("TEST_ROTATION", "2/24").split("/"))
"""How often certificates change, and for how long."""
READERS, WRITERS = 6, 2


@pytest_asyncio.fixture(scope="module")
async def certified(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh with certificates, and two timelines."""
    folder = tmp_path_factory.mktemp("certified")
    with meshes.running(folder, FEEDMESH_TLS="1", FEEDMESH_AUTH="local", FEEDMESH_REPLICAS_TIMELINE="2") as own:
        yield own
        await own.http.aclose()


@pytest.mark.timeout(FOR_S + 300)
async def test_certificates_change_under_load_and_no_call_fails(certified: Mesh) -> None:
    tls = certified.log.parent / "data" / "tls"
    names = [each.name for each in tls.iterdir() if each.is_dir()]
    assert {"graph", "post", "ranking", "timeline", "timeline-fanout", "gateway", "admin"} <= set(names)
    author, reader = [await certified.user(name) for name in ("author", "reader")]
    await certified.post("/follow", {"follower_id": reader, "following_id": author})
    posted: list[int] = []
    answers = 0
    until = time.monotonic() + FOR_S

    async def write(number: int) -> None:
        nonlocal answers
        for n in itertools.count():
            if time.monotonic() > until:
                return
            post = await certified.post("/posts", {"user_id": author, "content": f"{number}/{n}"}, 201)
            posted.append(post["post_id"])
            answers += 1
            await asyncio.sleep(0.1)

    async def read() -> None:
        nonlocal answers
        while time.monotonic() < until:
            # Without retries of its own, and none is degraded: every call behind it succeeded.
            response = await certified.http.get("/feed", params={"user_id": reader, "limit": 20})
            assert response.status_code == 200, response.text
            assert "feed-degraded" not in response.headers
            answers += 1

    async def change() -> int:
        authority = Authority(tls)
        for count in itertools.count():
            if time.monotonic() > until - EVERY_S:
                return count
            await asyncio.sleep(EVERY_S)
            authority.issue(names)
        raise AssertionError

    async with asyncio.TaskGroup() as group:
        changing = group.create_task(change())
        for each in [*(write(number) for number in range(WRITERS)), *(read() for _ in range(READERS))]:
            group.create_task(each)
    await certified.shows(reader, posted)
    log = certified.log.read_text()
    taken = [line for line in log.splitlines() if "another certificate" in line]
    logging.getLogger(__name__).info("%d requests, %d changes, taken %d times", answers, changing.result(), len(taken))
    assert changing.result() >= FOR_S / EVERY_S - 2
    # By each process of the mesh each time; two may have come between two of its looks.
    assert len(taken) >= 0.8 * (len(names) - 1) * changing.result()
    assert not re.findall("unknown caller|not for ", log)


async def test_a_stranger_reaches_no_service(certified: Mesh) -> None:
    [address] = re.findall(r"gRPC +(\S+)  graph\b", certified.log.read_text())
    host, _, port = address.rpartition(":")
    reading, writing = await asyncio.open_connection(host, int(port))
    writing.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
    assert not await asyncio.wait_for(reading.read(1), 10)  # closed without a word of HTTP/2
    writing.close()


async def test_the_operators_command_line_has_a_certificate_too(certified: Mesh) -> None:
    log = certified.log.read_text()
    environ = meshes.environment_of(certified.pids()["services.timeline"])
    author = await certified.user("asked")
    post = (await certified.post("/posts", {"user_id": author, "content": "explain me"}, 201))["post_id"]
    targets = {
        f"FEEDMESH_{name.upper()}_TARGET": re.findall(rf"gRPC +(\S+)  {name}(?:-1)?\b", log)[-1]
        for name in ("graph", "post", "timeline")
    }
    own = {name: environ[name] for name in ("FEEDMESH_POSTGRES_DSN", "FEEDMESH_REDIS_URL")}
    own |= targets | {"FEEDMESH_TLS_DIR": str(certified.log.parent / "data" / "tls" / "admin")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.timeline.admin", "explain", str(author), str(post)),
        cwd=ROOT,
        env={**os.environ, **own},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
