"""The overlay for trying out, run: each container as its manifest says. A wrong one is told by a line that says why."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.e2e import cluster as clusters
from tests.e2e.clients import client_of, goes_round
from tests.e2e.cluster import Cluster, ClusterError, Document, Stores, cluster

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f64540"
    "0000000049454e44ae426082"
)


@pytest_asyncio.fixture(scope="module")
async def dev(tmp_path_factory: pytest.TempPathFactory, stores: Stores) -> AsyncIterator[Cluster]:
    """The overlay for trying out, all of it."""
    async with cluster("dev", tmp_path_factory.mktemp("dev"), stores) as made:
        await made.migrate()
        await made.up()
        yield made


# As they are.


@pytest.mark.timeout(600)
async def test_the_overlay_for_trying_out_works(dev: Cluster) -> None:
    assert {pod.name for pod in dev.pods} == set(dev.deployments)
    await goes_round(dev, "")
    async with client_of(dev) as anybody:
        _, as_ada = await anybody.signed_up("photographer")
        media = await as_ada.ask("POST", "/media", content=PIXEL, headers={"content-type": "image/png"})
        await as_ada.ask("POST", "/posts", json={"content": "look", "media_url": media["media_url"]})
    assert [pod.name for pod in dev.pods if pod.restarts] == []


# Wrong ones.


def env_of(container: Document, name: str) -> Document:
    [found] = [each for each in container["env"] if each["name"] == name]
    return found  # type: ignore[no-any-return]


def other_secret(container: Document) -> None:
    env_of(container, "FEEDMESH_CURSOR_SECRET")["valueFrom"]["secretKeyRef"]["key"] = "cursor-secrte"


def other_port_of_probe(container: Document) -> None:
    container["startupProbe"]["grpc"]["port"] = 50099


def other_service_of_probe(container: Document) -> None:
    container["livenessProbe"]["grpc"]["service"] = "alive"


def other_container_port(container: Document) -> None:
    container["ports"][0]["containerPort"] = 50061


def other_name(container: Document) -> None:
    env_of(container, "FEEDMESH_GRAPH_TARGET")["name"] = "FEEDMESH_GRAF_TARGET"


def other_target(container: Document) -> None:
    env_of(container, "FEEDMESH_GRAPH_TARGET")["value"] = "dns:///graph:50061"


def other_command(container: Document) -> None:
    container["command"][-1] = "services.posts"


def no_plaintext(container: Document) -> None:
    container["env"].remove(env_of(container, "FEEDMESH_PLAINTEXT"))


def address_before_it_is_known(container: Document) -> None:
    pod_ip = env_of(container, "POD_IP")
    container["env"].remove(pod_ip)
    container["env"].append(pod_ip)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (other_secret, "post: FEEDMESH_CURSOR_SECRET: the Secret feedmesh has no key cursor-secrte"),
        (other_port_of_probe, "post: its startupProbe at port 50099 is answered UNAVAILABLE"),
        (other_service_of_probe, "post: its livenessProbe at port 50052 is answered NOT_FOUND"),
        (other_container_port, "post: nobody listens on port 50061"),
        (other_name, "post: it ended with exit code 2: .*FEEDMESH_GRAF_TARGET: unknown setting"),
        (other_target, "post: FEEDMESH_GRAPH_TARGET: the Service graph has no port 50061"),
        (other_command, "post: it ended with exit code 1: .*No module named services.posts"),
        (no_plaintext, "post: it ended with exit code 2: .*calls would leave this machine without TLS"),
        (address_before_it_is_known, r"post: it ended with exit code 2: .*FEEDMESH_\w+_ADDRESS"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
async def test_a_wrong_manifest_says_what_is_wrong(dev: Cluster, fault: Callable[[Document], None], line: str) -> None:
    document = copy.deepcopy(dev.deployments["post"])
    [container] = document["spec"]["template"]["spec"]["containers"]
    fault(container)
    before = [*dev.pods]
    try:
        with pytest.raises(ClusterError, match=line):
            await dev.until_ready(await dev.start("post", document), within_s=15)
    finally:
        await dev.stop(*(pod for pod in [*dev.pods] if pod not in before))


async def test_a_process_waits_for_a_migration_that_is_half_done(
    tmp_path_factory: pytest.TempPathFactory, stores: Stores
) -> None:
    async with cluster("dev", tmp_path_factory.mktemp("half"), stores) as made:
        await made.migrate()
        async with await clusters.connected(made.dsn("graph")) as connection:
            await connection.execute("DELETE FROM migrations WHERE area = 'services.graph' AND number = 4")
        pod = await made.start("graph")
        with pytest.raises(
            ClusterError, match=r"graph: it ended with exit code 2: .*the database lacks services.graph 0004"
        ):
            await made.until_ready(pod)
        async with await clusters.connected(made.dsn("graph")) as connection:
            await connection.execute("DROP TABLE IF EXISTS sessions, credentials, identities, signing_keys CASCADE")
        pod.restarts = 0
        await made.migrate()
        pod.restarts = 0
        await made.until_ready(pod)
