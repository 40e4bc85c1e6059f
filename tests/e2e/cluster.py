"""A cluster on this machine: the pods of rendered manifests as processes, each on a loopback address of its own.

What a container is told (command, environment, ports, probes) is taken as it stands, and what Kubernetes does around it
is done here: secrets, the pod's address (127.x.y.z), the DNS of services, probes as the kubelet sends them, a new start
of what ended, rolling updates with a surge of one. Other is only what is not ours: Postgres and Redis are the embedded
ones, whatever their images, and a volume is a folder.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import logging
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import psycopg
import yaml
from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from grpc_health.v1 import health_pb2, health_pb2_grpc

from launch import certificates, postgres, valkey
from tests.e2e.mesh import ROOT
from tests.manifests import rendered

log = logging.getLogger(__name__)
Document = dict[str, Any]
LOOK_S = 0.5
"""How often pods are probed, whatever their period: as often as it takes to see it soon."""
UNWELL = 3
"""After how many failures of its liveness Kubernetes would kill a pod."""
START_S = 120.0
AGAIN_S = 1.0
"""After how long what ended is started again."""
TTL_S = 1
ADDRESSES = itertools.count((64 << 16) + ((os.getpid() & 0x1FFF) << 9) + 1)
"""Of pods, within 127.0.0.0/8; tests that run at the same time have others."""
DATABASE = re.compile(r"postgresql://.*/(\w+)")
TARGET = re.compile(r"dns:///([a-z-]+):([0-9]+)")


class ClusterError(Exception):
    """A pod does not come up; says which and why."""


class Dns(asyncio.DatagramProtocol):
    """The DNS of services: a name's first label is the service."""

    def __init__(self, addresses: Callable[[str], list[str] | None]) -> None:
        self._addresses = addresses
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """It listens."""
        self._transport = transport

    def datagram_received(self, data: bytes, sender: Any) -> None:
        """Answers a question."""
        question = DNSRecord.parse(data)
        answer = question.reply()
        found = self._addresses(str(question.q.qname).partition(".")[0])
        if found is None:
            answer.header.rcode = RCODE.NXDOMAIN
        elif question.q.qtype == QTYPE.A:
            for address in found:
                answer.add_answer(RR(question.q.qname, QTYPE.A, rdata=A(address), ttl=TTL_S))
        self._transport.sendto(answer.pack(), sender)


@dataclass(eq=False)
class Pod:
    """One replica of a Deployment."""

    name: str
    """The Deployment's."""
    address: str
    container: Document
    grace_s: float
    env: dict[str, str]
    log: Path
    process: asyncio.subprocess.Process
    code: Path
    """Where the code is that it runs."""
    ready: bool = False
    started: bool = False
    """Whether its startup probe was answered."""
    leaving: bool = False
    why: str = "it was not probed yet"
    restarts: int = 0
    unwell: int = 0
    """How many liveness probes one after the other have failed."""
    task: asyncio.Task[None] | None = None

    @property
    def last_words(self) -> str:
        """Of what it printed."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return " / ".join(lines[-3:])


@dataclass
class Cluster:
    """What runs."""

    folder: Path
    documents: list[Document]
    secrets: dict[tuple[str, str], str]
    """By the Secret's name and the key."""
    dsn: Callable[[str], str]
    redis_url: str
    authority: certificates.Authority
    dns_port: int = 0
    pods: list[Pod] = field(default_factory=list)

    def of_kind(self, kind: str) -> dict[str, Document]:
        """Documents by name."""
        return {each["metadata"]["name"]: each for each in self.documents if each["kind"] == kind}

    @property
    def deployments(self) -> dict[str, Document]:
        """Those of our image."""
        found = self.of_kind("Deployment")
        return {name: each for name, each in found.items() if "feedmesh" in container_of(each)["image"]}

    def addresses(self, service: str) -> list[str] | None:
        """Of the pods of a Service, that are ready unless it says otherwise; None where there is none of the name."""
        if (document := self.of_kind("Service").get(service)) is None:
            return None
        spec = document["spec"]
        pods = [pod for pod in self.pods if pod.name == spec["selector"]["app.kubernetes.io/name"]]
        all_of_them = spec.get("publishNotReadyAddresses", False)
        return [pod.address for pod in pods if all_of_them or (pod.ready and not pod.leaving)]

    # What Kubernetes makes of a container's description.

    def env(self, name: str, container: Document, address: str) -> dict[str, str]:
        """The whole environment of a container. Raises ClusterError for a secret that there is not."""
        env: dict[str, str] = {}
        for each in container.get("env", ()):
            said = each.get("valueFrom")
            if said is None:
                value = re.sub(r"\$\((\w+)\)", lambda m: env.get(m[1], m[0]), each["value"])
            elif "fieldRef" in said:
                value = {"status.podIP": address}[said["fieldRef"]["fieldPath"]]
            else:
                ref = said["secretKeyRef"]
                if (ref["name"], ref["key"]) not in self.secrets:
                    if ref.get("optional"):
                        continue
                    raise ClusterError(f"{name}: {each['name']}: the Secret {ref['name']} has no key {ref['key']}")
                value = self.secrets[ref["name"], ref["key"]]
            if target := TARGET.fullmatch(value):
                ports = {port["port"] for port in self.of_kind("Service")[target[1]]["spec"]["ports"]}
                if int(target[2]) not in ports:
                    raise ClusterError(f"{name}: {each['name']}: the Service {target[1]} has no port {target[2]}")
            env[each["name"]] = value
        return env

    def mapped(self, env: Mapping[str, str], container: Document, volumes: Path) -> dict[str, str]:
        """The environment with names of services, stores and volumes as they are on this machine."""
        mounts = {mount["mountPath"]: volumes / mount["name"] for mount in container.get("volumeMounts", ())}
        found = {}
        for name, value in env.items():
            if database := DATABASE.fullmatch(value):
                found[name] = self.dsn(database[1])
            elif value == self.secrets.get(("redis", "url")):
                found[name] = self.redis_url
            else:
                found[name] = value.replace("dns:///", f"dns://127.0.0.1:{self.dns_port}/")
                for path in sorted(mounts, key=len, reverse=True):
                    if path in value:
                        found[name] = value.replace(path, str(mounts[path]))
                        break
        return found

    async def start(self, name: str, document: Document | None = None, code: Path = ROOT) -> Pod:
        """One more pod of a Deployment; it is probed from now on. `code` is a release's."""
        document = document or self.deployments[name]
        container = container_of(document)
        number = next(ADDRESSES)
        address = f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        volumes = self.folder / f"{name}-{number}"
        volumes.mkdir()
        for volume in document["spec"]["template"]["spec"].get("volumes", ()):
            place = volumes / volume["name"]
            if "persistentVolumeClaim" in volume:
                place.symlink_to(self.folder / volume["persistentVolumeClaim"]["claimName"])
                (self.folder / volume["persistentVolumeClaim"]["claimName"]).mkdir(exist_ok=True)
            elif "csi" in volume:
                place.symlink_to(self.certify(document, volume["csi"]))
            else:
                place.mkdir()
        env = self.mapped(self.env(name, container, address), container, volumes)
        spec = document["spec"]["template"]["spec"]
        grace_s = spec.get("terminationGracePeriodSeconds", 30)
        log = self.folder / f"{name}-{number}.log"
        pod = Pod(name, address, container, grace_s, env, log, await self.run(container, env, log, code), code)
        pod.task = asyncio.create_task(self.keep(pod))
        self.pods.append(pod)
        return pod

    def certify(self, document: Document, csi: Document) -> Path:
        """The folder of a certificate as cert-manager's driver makes it for the pod's service account."""
        assert csi["driver"] == "csi.cert-manager.io"
        account: str = document["spec"]["template"]["spec"]["serviceAccountName"]
        said = csi["volumeAttributes"]
        uri = said["csi.cert-manager.io/uri-sans"].replace("${POD_NAMESPACE}", "feedmesh")
        assert said["csi.cert-manager.io/dns-names"] == "${SERVICE_ACCOUNT_NAME}"
        self.authority.issue([account], mesh=uri.removesuffix("${SERVICE_ACCOUNT_NAME}"))
        return self.folder / "tls" / account

    async def run(
        self, container: Document, env: Mapping[str, str], log: Path, code: Path = ROOT
    ) -> asyncio.subprocess.Process:
        """Starts a container's command; "python" is ours."""
        program, *arguments = container["command"]
        assert program == "python"
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        with log.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                sys.executable, *arguments, cwd=code, env={**kept, **env}, stdout=output, stderr=output
            )

    async def keep(self, pod: Pod) -> None:
        """Probes a pod, and starts it again when it ended."""
        async with Prober(pod) as probed:
            while not pod.leaving:
                if pod.process.returncode is not None:
                    pod.ready = pod.started = False
                    pod.why = f"it ended with exit code {pod.process.returncode}: {pod.last_words}"
                    await asyncio.sleep(AGAIN_S)
                    if pod.leaving:
                        return
                    pod.restarts += 1
                    pod.process = await self.run(pod.container, pod.env, pod.log, pod.code)
                if not pod.started:
                    fault = await probed("startupProbe")
                    pod.started = not fault
                elif fault := await probed("livenessProbe"):
                    pod.unwell += 1
                else:
                    pod.unwell = 0
                    fault = await probed("readinessProbe")
                    pod.ready = not fault and pod.process.returncode is None
                if fault:
                    pod.ready = False
                    if pod.process.returncode is None and not pod.restarts:
                        pod.why = fault  # what it ended with says more
                await asyncio.sleep(LOOK_S)

    async def until_ready(self, *pods: Pod, within_s: float = START_S) -> None:
        """Waits for pods. Raises ClusterError, which says of each that is not ready why."""
        end = time.monotonic() + within_s
        while not all(pod.ready for pod in pods):
            late = time.monotonic() > end
            if late or any(pod.restarts > 1 or pod.unwell >= UNWELL for pod in pods):
                raise ClusterError("; ".join(f"{pod.name}: {pod.why}" for pod in pods if not pod.ready))
            await asyncio.sleep(0.05)
        for pod in pods:
            for port in pod.container["ports"]:
                try:
                    _, writer = await asyncio.open_connection(pod.address, port["containerPort"])
                    writer.close()
                except OSError:
                    raise ClusterError(
                        f"{pod.name}: nobody listens on port {port['containerPort']} ({port['name']})"
                    ) from None

    async def stop(self, *pods: Pod) -> None:
        """Ends pods as Kubernetes does: no longer ready, preStop, SIGTERM, and in the end SIGKILL."""
        await asyncio.gather(*(self._stop(pod) for pod in pods))

    async def _stop(self, pod: Pod) -> None:
        pod.leaving = True
        sleep_s = pod.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        await asyncio.sleep(sleep_s)
        with contextlib.suppress(ProcessLookupError):
            pod.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(pod.grace_s - sleep_s):
                await pod.process.wait()
        except TimeoutError:
            pod.process.kill()
            await pod.process.wait()
            raise ClusterError(f"{pod.name} did not end within its grace of {pod.grace_s} s") from None
        finally:
            self.pods.remove(pod)
            if pod.task is not None:
                pod.task.cancel()

    async def roll(self, name: str) -> None:
        """Replaces the pods of a Deployment one by one, as a rolling update with no pod missing and a surge of one."""
        for old in [pod for pod in self.pods if pod.name == name]:
            await self.until_ready(await self.start(name))
            await self.stop(old)

    async def migrate(self) -> None:
        """Runs the Jobs to their end. Raises ClusterError."""
        for name, job in self.of_kind("Job").items():
            container = container_of(job)
            env = self.mapped(self.env(name, container, "127.0.0.1"), container, self.folder)
            log = self.folder / f"{name}.log"
            process = await self.run(container, env, log)
            if await process.wait():
                raise ClusterError(f"{name}: {log.read_text()}")

    async def up(self, replicas: Mapping[str, int] | None = None) -> None:
        """Starts all Deployments, with one pod each where nothing else is said."""
        wanted = [name for name in self.deployments for _ in range((replicas or {}).get(name, 1))]
        pods = [await self.start(name) for name in wanted]
        await self.until_ready(*pods)


def container_of(document: Document) -> Document:
    """The only container of a Deployment or Job."""
    [container] = document["spec"]["template"]["spec"]["containers"]
    return dict(container)


def port_of(container: Document, port: int | str) -> int:
    """A port's number. Raises ClusterError for a name that the container has not."""
    if isinstance(port, int):
        return port
    named = {each["name"]: each["containerPort"] for each in container["ports"]}
    if port not in named:
        raise ClusterError(f"there is no port {port}")
    return int(named[port])


class Prober:
    """Sends a pod's probes, over connections that stay."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._stack = contextlib.AsyncExitStack()
        self._http = httpx.AsyncClient()
        self._channels: dict[int, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Prober:
        await self._stack.enter_async_context(self._http)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def __call__(self, kind: str) -> str:
        """Sends a probe; "" or what is wrong."""
        pod = self._pod
        probe = pod.container.get(kind)
        if probe is None:
            return f"it has no {kind}"
        timeout_s = probe.get("timeoutSeconds", 1) + 4  # a machine of two cores starts them all at once
        if "httpGet" in probe:
            port = port_of(pod.container, probe["httpGet"]["port"])
            try:
                answer = await self._http.get(
                    f"http://{pod.address}:{port}{probe['httpGet']['path']}", timeout=timeout_s
                )
            except httpx.HTTPError as error:
                return f"its {kind} at port {port} finds nobody: {type(error).__name__}"
            said = f"its {kind} is answered {answer.status_code}: {answer.text[:200]}"
            return "" if answer.status_code == 200 else said
        port, service = port_of(pod.container, probe["grpc"]["port"]), probe["grpc"].get("service", "")
        if port not in self._channels:
            options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
            channel = grpc.aio.insecure_channel(f"{pod.address}:{port}", options=options)
            self._channels[port] = await self._stack.enter_async_context(channel)
        health: Any = health_pb2_grpc.HealthStub(self._channels[port])
        try:
            found = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return f"its {kind} at port {port} is answered {error.code().name}"
        serving = health_pb2.HealthCheckResponse.SERVING
        return "" if found.status == serving else f"its {kind} at port {port} is answered {found.status}"


class Stores(NamedTuple):
    """The embedded ones."""

    postgres: postgres.Server
    valkey: valkey.Running


@contextlib.contextmanager
def stores(folder: Path) -> Iterator[Stores]:
    """Postgres and Valkey for the block. Call it outside of a loop."""
    with postgres.running(folder / "postgres", durable=False) as server, valkey.running(folder / "valkey") as redis:
        yield Stores(server, redis)


@asynccontextmanager
async def cluster(overlay: str, folder: Path, own: Stores) -> AsyncIterator[Cluster]:
    """A cluster of an overlay, with empty databases and nothing that runs yet, for the block."""
    documents = [document for document in yaml.safe_load_all(rendered(overlay)) if document]

    def database(name: str) -> str:
        return f"{re.sub('[^a-z]', '_', folder.name)}_{name}"

    await postgres.create_databases(own.postgres.dsn(), map(database, ("graph", "post", "timeline")))
    secrets = {
        (each["metadata"]["name"], key): base64.b64decode(value).decode()
        for each in documents
        if each["kind"] == "Secret"
        for key, value in each["data"].items()
    }
    made = Cluster(
        folder,
        documents,
        secrets or stand_ins(),
        lambda name: own.postgres.dsn(database(name)),
        own.valkey.url,
        certificates.Authority(folder / "tls"),
    )
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Dns(made.addresses), local_addr=("127.0.0.1", 0)
    )
    made.dns_port = transport.get_extra_info("sockname")[1]
    try:
        yield made
    finally:
        for pod in made.pods:
            pod.container.pop("lifecycle", None)
        await made.stop(*made.pods)
        transport.close()


async def connected(dsn: str) -> psycopg.AsyncConnection:
    """A connection to a database."""
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True)


def stand_ins() -> dict[tuple[str, str], str]:
    """What the operator, CloudNativePG and others put into the Secrets that docs/kubernetes.md lists."""
    found = {
        ("feedmesh", key): f"{key} of a test, long enough for one"
        for key in ("cursor-secret", "media-secret", "session-secret", "webhook-secret")
    }
    found |= {
        (f"{name}-db-app", "uri"): f"postgresql://{name}:secret@{name}-db-rw/{name}"
        for name in ("graph", "post", "timeline")
    }
    found |= {("media-s3", key): "of a test" for key in ("access-key-id", "secret-access-key")}
    found["redis", "url"] = "rediss://user:secret@redis.example:6379/0"
    found["feedmesh", "webhook-url"] = "http://127.0.0.1:9/hook"
    return found
