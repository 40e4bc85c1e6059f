"""The overlay for production, run by mutual TLS: replicas come, die and are rolled under load, and nobody notices."""

from __future__ import annotations

import asyncio
import copy
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.e2e import cluster as clusters
from tests.e2e.clients import goes_round, loaded
from tests.e2e.cluster import Cluster, ClusterError, Stores, cluster
from tests.e2e.mesh import ROOT

SERVING = ("graph", "post", "ranking", "timeline", "session", "gateway")


@pytest_asyncio.fixture(scope="module")
async def prod(tmp_path_factory: pytest.TempPathFactory, stores: Stores) -> AsyncIterator[Cluster]:
    """The overlay for production, with two of each that serves: calls are mutual TLS."""
    async with cluster("prod", tmp_path_factory.mktemp("prod"), stores) as made:
        await made.migrate()
        await made.up(dict.fromkeys(SERVING, 2))
        yield made


@pytest.mark.timeout(600)
async def test_the_overlay_for_production_works_by_mutual_tls(prod: Cluster) -> None:
    assert {pod.name for pod in prod.pods} == set(prod.deployments)
    await goes_round(prod, "")
    of_mesh = [pod for pod in prod.pods if any(name.endswith("_TARGET") for name in pod.env)]
    assert of_mesh
    for pod in of_mesh:
        assert "FEEDMESH_TLS_DIR" in pod.env
        assert not {"FEEDMESH_MESH_SECRET", "FEEDMESH_PLAINTEXT"} & pod.env.keys()
    assert [pod.name for pod in prod.pods if pod.restarts] == []


async def test_a_pod_that_runs_as_another_process_says_so(prod: Cluster) -> None:
    document = copy.deepcopy(prod.deployments["graph"])
    document["spec"]["template"]["spec"]["serviceAccountName"] = "post"
    pod = await prod.start("graph", document)
    try:
        with pytest.raises(ClusterError, match=r"tls\.crt is of post, and this is graph"):
            await prod.until_ready(pod)
    finally:
        await prod.stop(pod)


async def calls_of(address: str) -> float:
    """How many calls a pod has been asked."""
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"http://{address}:9090/metrics")).text
    return sum(float(count) for count in re.findall(r"^grpc_server_started_total\{.*\} (\S+)$", text, re.MULTILINE))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["timeline", "post", "graph"])
async def test_a_new_replica_takes_its_share_within_seconds(prod: Cluster, name: str) -> None:
    async with loaded(prod, f"scale{name}") as load:
        pod = await prod.start(name)
        await prod.until_ready(pod)
        begun, before = time.monotonic(), load.reads
        while await calls_of(pod.address) < 20:
            assert time.monotonic() < begun + 40
            await asyncio.sleep(0.1)
        clusters.log.info("%s: a new replica has its share after %.1f s", name, time.monotonic() - begun)
        assert load.reads > before
        await prod.stop(pod)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["timeline", "post", "graph", "ranking", "gateway"])
async def test_a_replica_that_is_killed_is_missed_by_nobody(prod: Cluster, name: str) -> None:
    async with loaded(prod, f"kill{name}") as load:
        await asyncio.sleep(1)
        pod = next(pod for pod in prod.pods if pod.name == name)
        os.kill(pod.process.pid, signal.SIGKILL)
        while pod.ready:
            await asyncio.sleep(0.05)
        await prod.until_ready(pod)
        before = load.reads
        while load.reads < before + 20:
            await asyncio.sleep(0.05)
        clusters.log.info("%s killed: %d reads, %d tried again", name, load.reads, load.again)


@pytest.mark.timeout(900)
async def test_a_rolling_restart_of_everything_is_noticed_by_nobody(prod: Cluster) -> None:
    async with loaded(prod, "roll") as load:
        for name in prod.deployments:
            await prod.roll(name)
    clusters.log.info("%d reads, %d posts, %d tries again", load.reads, len(load.posted), load.again)
    assert load.reads > 100
    assert load.posted


@pytest.fixture(scope="module")
def release_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the commit before."""
    folder = tmp_path_factory.mktemp("before")
    archive = subprocess.run(
        ["git", "archive", "HEAD~1", "runtime", "services", "gateway", "feedmesh"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        pytest.skip(f"no commit before: {archive.stderr.decode()}")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


@pytest.mark.timeout(600)
async def test_replicas_of_the_release_before_run_beside(prod: Cluster, release_before: Path) -> None:
    async with loaded(prod, "before") as load:
        old = [await prod.start(name, code=release_before) for name in SERVING]
        await prod.until_ready(*old)
        before = load.reads
        while load.reads < before + 200 or not all(
            [await calls_of(pod.address) for pod in old if pod.name != "gateway"]
        ):
            await asyncio.sleep(0.5)
        await goes_round(prod, "both")
        await prod.stop(*old)
