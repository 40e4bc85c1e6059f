"""The manifests, run: every container as they say, with a wrong one told by name, and rollouts that nobody notices."""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import random
import re
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.e2e import cluster as clusters
from tests.e2e.cluster import Cluster, ClusterError, Document, Stores, cluster
from tests.e2e.mesh import ROOT

PASSWORD = "correct horse battery staple"
PATIENCE_S = 30.0
READERS, WRITERS = 8, 4
PEOPLE = itertools.count(1)
SERVING = ("graph", "post", "ranking", "timeline", "session", "gateway")
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f64540"
    "0000000049454e44ae426082"
)


@dataclass
class Client:
    """A client that tries idempotent calls again: on 503, and where a connection breaks."""

    cluster: Cluster
    stack: AsyncExitStack
    http: httpx.AsyncClient
    headers: dict[str, str] = field(default_factory=dict)
    again: int = 0
    """Tries that failed and were made again."""

    async def ask(self, method: str, path: str, **more: Any) -> Any:
        """The answer to a request that must succeed in the end."""
        headers = self.headers | {"Idempotency-Key": str(uuid.uuid4())} | more.pop("headers", {})
        end = time.monotonic() + PATIENCE_S
        while True:
            said = "no gateway is ready"
            if addresses := self.cluster.addresses("gateway"):
                try:
                    # As a balancer does: any that is ready, a connection each time, so that all are asked.
                    url = f"http://{random.choice(addresses)}:8080{path}"
                    answer = await self.http.request(method, url, headers=headers, **more)
                    if answer.status_code < 400:
                        return answer.json()
                    said = f"{answer.status_code} {answer.text}"
                    assert answer.status_code in (409, 503), said
                except httpx.TransportError as error:
                    said = repr(error)
            assert time.monotonic() < end, f"{method} {path}: {said}"
            self.again += 1
            await asyncio.sleep(0.05)

    async def signed_up(self, name: str) -> tuple[int, Client]:
        """A new person, and a client of theirs, at an address of their own: limits count by that, too."""
        self = Client(self.cluster, self.stack, await self.stack.enter_async_context(connections()))
        body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
        user_id = (await self.ask("POST", "/users", json=body))["user_id"]
        session = await self.ask("POST", "/sessions", json={"username": name, "password": PASSWORD})
        headers = {"authorization": f"Bearer {session['access_token']}"}
        return user_id, Client(self.cluster, self.stack, self.http, headers)

    async def shows(self, wanted: set[int]) -> None:
        """Waits until the feed is these posts, each once."""
        end = time.monotonic() + PATIENCE_S
        while True:
            shown: list[int] = []
            query: dict[str, Any] = {"limit": 100, "order": "latest"}
            while True:
                page = await self.ask("GET", "/feed", params=query)
                shown += [post["post_id"] for post in page["posts"]]
                if page["next_cursor"] is None:
                    break
                query["cursor"] = page["next_cursor"]
            assert len(shown) == len(set(shown))
            if set(shown) == wanted:
                return
            assert time.monotonic() < end, (len(shown), len(wanted))
            await asyncio.sleep(0.1)


def connections() -> httpx.AsyncClient:
    """Of one client: a connection each time, so that a balancer would choose each time."""
    number = next(PEOPLE)
    transport = httpx.AsyncHTTPTransport(
        local_address=f"127.90.{number >> 8}.{number & 255}", limits=httpx.Limits(max_keepalive_connections=0)
    )
    return httpx.AsyncClient(timeout=20, transport=transport)


@asynccontextmanager
async def client_of(made: Cluster) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        yield Client(made, stack, await stack.enter_async_context(connections()))


@pytest.fixture(scope="module")
def dev_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with clusters.stores(tmp_path_factory.mktemp("dev-stores")) as own:
        yield own


@pytest.fixture(scope="module")
def prod_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with clusters.stores(tmp_path_factory.mktemp("prod-stores")) as own:
        yield own


@pytest_asyncio.fixture(scope="module")
async def dev(tmp_path_factory: pytest.TempPathFactory, dev_stores: Stores) -> AsyncIterator[Cluster]:
    """The overlay for trying out, all of it."""
    async with cluster("dev", tmp_path_factory.mktemp("dev"), dev_stores) as made:
        await made.migrate()
        await made.up()
        yield made


@pytest_asyncio.fixture(scope="module")
async def prod(tmp_path_factory: pytest.TempPathFactory, prod_stores: Stores) -> AsyncIterator[Cluster]:
    """The overlay for production, with two of each that serves: calls are mutual TLS."""
    async with cluster("prod", tmp_path_factory.mktemp("prod"), prod_stores) as made:
        await made.migrate()
        await made.up(dict.fromkeys(SERVING, 2))
        yield made


async def goes_round(made: Cluster, mark: str) -> None:
    """People sign up, follow, post, like and comment, and see it."""
    async with client_of(made) as anybody:
        _, as_ada = await anybody.signed_up(f"ada{mark}")
        grace, as_grace = await anybody.signed_up(f"grace{mark}")
        await as_ada.ask("POST", "/follow", json={"following_id": grace})
        await as_ada.shows(set())
        post = await as_grace.ask("POST", "/posts", json={"content": f"hello @ada{mark}"})
        await as_ada.shows({post["post_id"]})
        await as_ada.ask("POST", "/like", json={"post_id": post["post_id"]})
        await as_ada.ask("POST", "/comments", json={"post_id": post["post_id"], "content": "hello"})
        [shown] = (await as_ada.ask("GET", "/feed"))["posts"]
        assert (shown["likes"], shown["comments"], shown["liked"]) == (1, 1, True)
        end = time.monotonic() + PATIENCE_S
        while len(told := (await as_grace.ask("GET", "/notifications"))["notifications"]) < 3:
            assert time.monotonic() < end, told
            await asyncio.sleep(0.1)
        assert {each["kind"] for each in told} == {"followed", "liked", "commented"}


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


async def test_a_pod_that_runs_as_another_process_says_so(prod: Cluster) -> None:
    document = copy.deepcopy(prod.deployments["graph"])
    document["spec"]["template"]["spec"]["serviceAccountName"] = "post"
    pod = await prod.start("graph", document)
    try:
        with pytest.raises(ClusterError, match=r"tls\.crt is of post, and this is graph"):
            await prod.until_ready(pod)
    finally:
        await prod.stop(pod)


async def test_a_process_waits_for_a_migration_that_is_half_done(
    tmp_path_factory: pytest.TempPathFactory, dev_stores: Stores
) -> None:
    async with cluster("dev", tmp_path_factory.mktemp("half"), dev_stores) as made:
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


# Rollouts.


@dataclass
class Load:
    """What clients do meanwhile, and what came of it."""

    readers: list[Client]
    writers: list[Client]
    posted: set[int] = field(default_factory=set)
    reads: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, reader: Client) -> None:
        """Reads a feed again and again, as fast as limits allow."""
        while not self.stopping.is_set():
            await reader.ask("GET", "/feed", params={"limit": 20})
            self.reads += 1
            await asyncio.sleep(0.1)

    async def write(self, writer: Client) -> None:
        """Posts again and again, likewise."""
        for number in itertools.count():
            if self.stopping.is_set():
                return
            post = await writer.ask("POST", "/posts", json={"content": f"post {number}"})
            self.posted.add(post["post_id"])
            await asyncio.sleep(1)

    @property
    def again(self) -> int:
        """Tries that were made again."""
        return sum(client.again for client in (*self.readers, *self.writers))


@asynccontextmanager
async def loaded(made: Cluster, mark: str) -> AsyncIterator[Load]:
    """Clients that read and write for the block. None of their requests may fail, nor any post be lost."""
    async with client_of(made) as anybody:
        people = [await anybody.signed_up(f"{mark}{number}") for number in range(READERS + WRITERS)]
        readers, writers = people[:READERS], people[READERS:]
        for _, reader in readers:
            for author, _ in writers:
                await reader.ask("POST", "/follow", json={"following_id": author})
        load = Load([client for _, client in readers], [client for _, client in writers])
        async with asyncio.TaskGroup() as group:
            for client in load.readers:
                group.create_task(load.read(client))
            for client in load.writers:
                group.create_task(load.write(client))
            try:
                yield load
            finally:
                load.stopping.set()
        for client in load.readers:
            await client.shows(load.posted)


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
