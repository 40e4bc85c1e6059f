"""Mutual TLS: who is let in, whom callers take for a service, and certificates that change while calls go on."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from feedmesh.graph.v1 import graph_pb2 as pb
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub, add_GraphServiceServicer_to_server
from feedmesh.post.v1 import post_pb2
from launch.certificates import MESH, RENEWED, Authority
from launch.settings import free_port
from runtime import callers, client, config, errors, process, tls
from tests.fakes.graph import FakeGraph
from tests.fakes.serving import serving

GRAPH = pb.DESCRIPTOR.services_by_name["GraphService"]
POST = post_pb2.DESCRIPTOR.services_by_name["PostService"]
SOMEBODY = pb.GetUserRequest(user_id=1)


class Graph(FakeGraph):
    """Answers, and streams until it is told to end."""

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.certificate = b""
        """The certificate of whoever called last."""

    async def GetUser(self, request: pb.GetUserRequest, rpc: Any) -> pb.GetUserResponse:
        [self.certificate] = rpc.auth_context()["x509_pem_cert"]
        return pb.GetUserResponse(user=pb.User(user_id=request.user_id))

    async def ExportUser(self, request: pb.ExportUserRequest, rpc: Any) -> AsyncIterator[pb.ExportUserResponse]:
        yield pb.ExportUserResponse()
        await self.end.wait()
        yield pb.ExportUserResponse()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The certificates of a mesh."""
    Authority(tmp_path / "tls").issue(["graph", "gateway", "post", "timeline-webhook"])
    yield tmp_path / "tls"
    tls.keeper.cache_clear()


def who(folder: Path, name: str) -> callers.Caller:
    return callers.of(name, config.MeshSettings(tls_dir=folder / name))


@asynccontextmanager
async def graph_of(folder: Path, graph: Graph | None = None, more_callers: tuple[str, ...] = ()) -> AsyncIterator[str]:
    """The graph's server with its certificate; where it is."""
    servicer = graph or Graph()
    registration = partial(add_GraphServiceServicer_to_server, servicer)
    async with serving(
        registration, services=(GRAPH,), name="graph", tls_dir=folder / "graph", more_callers=more_callers
    ) as served:
        yield served.target


async def call(folder: Path, name: str, target: str, service: Any = GRAPH) -> str:
    """What comes of a call by a process: "" or why not."""
    async with client.connect(target, who(folder, name), service) as channel:
        try:
            await GraphServiceStub(channel).GetUser(SOMEBODY, timeout=5)
        except errors.Error as error:
            return error.reason
        return ""


async def test_who_is_among_the_callers_of_an_rpc_may_call_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with graph_of(folder) as target:
        assert await call(folder, "gateway", target) == ""
        assert await call(folder, "timeline-webhook", target) == "NOT_A_CALLER"
        with pytest.raises(errors.Forbidden, match="timeline-webhook is not among the callers"):
            async with client.connect(target, who(folder, "timeline-webhook"), GRAPH) as channel:
                await GraphServiceStub(channel).GetUser(SOMEBODY)


async def test_one_more_caller_may_call_everything_and_nobody_else_may(folder: Path) -> None:
    Authority(folder).issue(["reader"])
    async with graph_of(folder) as target:
        assert await call(folder, "reader", target) == "NOT_A_CALLER"
    async with graph_of(folder, more_callers=("reader",)) as target:
        assert await call(folder, "reader", target) == ""
        assert await call(folder, "timeline-webhook", target) == "NOT_A_CALLER"


async def test_who_is_called_nearly_as_a_caller_is_none(folder: Path) -> None:
    Authority(folder).issue(["gateway-of-others", "gate"])
    async with graph_of(folder) as target:
        for name in ("gateway-of-others", "gate"):
            assert await call(folder, name, target) == "NOT_A_CALLER"


@pytest.mark.parametrize("how", ["in plain", "without a certificate", "by the mesh's secret"])
async def test_who_has_no_certificate_is_refused(folder: Path, how: str) -> None:
    async with graph_of(folder) as target:
        if how == "without a certificate":
            roots = grpc.ssl_channel_credentials((folder / "ca.crt").read_bytes())
            channel = grpc.aio.secure_channel(target, roots, options=[("grpc.ssl_target_name_override", "graph")])
        else:
            channel = grpc.aio.insecure_channel(target)
        shown = callers.caller("gateway", "x" * 32).metadata if how == "by the mesh's secret" else ()
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await GraphServiceStub(channel).GetUser(SOMEBODY, timeout=5, metadata=shown)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("fault", ["of another authority", "expired", "of another mesh"])
async def test_a_certificate_that_does_not_count_is_refused(folder: Path, tmp_path: Path, fault: str) -> None:
    async with graph_of(folder) as target:
        mine = folder
        if fault == "of another authority":
            mine = tmp_path / "others"
            Authority(mine).issue(["gateway"])
            shutil.copy(folder / "ca.crt", mine / "gateway" / "ca.crt")
        elif fault == "expired":
            Authority(folder).issue(["gateway"], lifetime=timedelta(seconds=3))
        else:
            Authority(folder).issue(["gateway"], mesh=MESH.replace("/ns/feedmesh/", "/ns/staging/"))
        me = who(mine, "gateway")
        if fault == "expired":
            assert me.tls is not None
            await asyncio.sleep((me.tls.current.expires - datetime.now(UTC)).total_seconds() + 0.1)
        async with client.connect(target, me, GRAPH) as channel:
            with pytest.raises(errors.Error) as refused:
                await GraphServiceStub(channel).GetUser(SOMEBODY, timeout=3)
        wanted = "UNKNOWN_CALLER" if fault == "of another mesh" else "UNAVAILABLE"
        assert refused.value.reason == wanted


async def test_a_certificate_without_a_process_makes_nobody_of_who_says_a_name(folder: Path) -> None:
    Authority(folder).issue(["stranger"], mesh="https://feedmesh.internal/")
    key, chain = [(folder / "stranger" / name).read_bytes() for name in ("tls.key", "tls.crt")]
    credentials = grpc.ssl_channel_credentials((folder / "ca.crt").read_bytes(), key, chain)
    as_graph = [("grpc.ssl_target_name_override", "graph")]
    async with (
        graph_of(folder) as target,
        grpc.aio.secure_channel(target, credentials, options=as_graph) as channel,
    ):
        # A proof by no secret, which anybody can make, and by what is none.
        for secret in ("", "None"):
            shown = callers.caller("gateway", secret).metadata
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await GraphServiceStub(channel).GetUser(SOMEBODY, timeout=5, metadata=shown)
            assert errors.from_rpc(refused.value, "").reason == "UNKNOWN_CALLER"


async def test_authorities_may_be_between_a_certificate_and_the_one_that_counts(tmp_path: Path) -> None:
    root, between = tmp_path / "root", tmp_path / "between"
    root.mkdir()
    between.mkdir()
    top = ec.generate_private_key(ec.SECP256R1())
    (root / "ca.crt").write_bytes(authority("root", top, "root", top))
    own = ec.generate_private_key(ec.SECP256R1())
    (between / "ca.crt").write_bytes(authority("between", own, "root", top))
    (between / "ca.key").write_bytes(
        own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    Authority(between).issue(["graph", "gateway"])
    for name in ("graph", "gateway"):
        with (between / name / "tls.crt").open("ab") as chain:
            chain.write((between / "ca.crt").read_bytes())
        shutil.copy(root / "ca.crt", between / name / "ca.crt")
    async with graph_of(between) as target:
        assert await call(between, "gateway", target) == ""


def authority(name: str, key: ec.EllipticCurvePrivateKey, by: str, signing: ec.EllipticCurvePrivateKey) -> bytes:
    """The certificate of an authority."""
    subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, by))
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return builder.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_certificates_of_the_launcher_are_renewed_in_time_and_nobody_elses_to_read(folder: Path) -> None:
    left = tls.read(folder / "graph").expires - datetime.now(UTC)
    assert left > 2 * RENEWED  # one that is late does no harm
    for secret in (folder / "ca.key", folder / "graph" / "tls.key"):
        assert secret.stat().st_mode & 0o777 == 0o600


async def test_a_service_that_is_another_is_not_called(folder: Path) -> None:
    async with graph_of(folder) as target:
        assert await call(folder, "gateway", target, service=POST) == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("no folder", "tls.key cannot be read"),
        ("no key", "tls.key is no private key"),
        ("no certificate", "tls.crt is no certificate"),
        ("no authority", "ca.crt is no certificate"),
        ("another's key", "tls.key is not the key of tls.crt"),
        ("expired", "tls.crt has expired"),
        ("no SPIFFE ID", "tls.crt must have one URI"),
        ("another's", "tls.crt is of post, and this is graph"),
    ],
)
def test_a_process_does_not_start_with_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], fault: str, line: str
) -> None:
    own = folder / "graph"
    match fault:
        case "no folder":
            shutil.rmtree(own)
        case "no key":
            (own / "tls.key").write_text("nothing")
        case "no certificate":
            (own / "tls.crt").write_text("nothing")
        case "no authority":
            (own / "ca.crt").write_text("nothing")
        case "another's key":
            shutil.copy(folder / "post" / "tls.key", own / "tls.key")
        case "expired":
            Authority(folder).issue(["graph"], lifetime=timedelta(seconds=-1))
        case "no SPIFFE ID":
            Authority(folder).issue(["graph"], mesh="https://feedmesh.internal/")
        case "another's":
            own = folder / "post"
    with pytest.raises(SystemExit):
        callers.of("graph", config.MeshSettings(tls_dir=own))
    assert line in capsys.readouterr().err


async def test_certificates_change_while_calls_go_on(folder: Path) -> None:
    graph = Graph()
    authority = Authority(folder)
    async with graph_of(folder, graph) as target:
        of_server = tls.keeper(folder / "graph")
        me = who(folder, "gateway")
        assert me.tls is not None
        more = who(folder, "post")
        async with client.connect(target, me, GRAPH) as channel, client.connect(target, more, GRAPH) as other:
            stub = GraphServiceStub(channel)
            export: Any = GraphServiceStub(other).ExportUser(pb.ExportUserRequest(user_id=1))
            await anext(export)
            done, stopping = 0, asyncio.Event()
            failed: list[errors.Error] = []

            async def ask() -> None:
                nonlocal done
                while not stopping.is_set():
                    try:
                        await stub.GetUser(SOMEBODY)
                    except errors.Error as error:
                        failed.append(error)
                    done += 1

            asking = [asyncio.create_task(ask()) for _ in range(4)]
            for _ in range(5):
                before = me.tls.current
                authority.issue(["graph", "gateway", "post"])
                for keeper in (of_server, me.tls, more.tls):
                    assert keeper is not None
                    await keeper.look()
                assert me.tls.current != before
                async with asyncio.timeout(10):
                    while graph.certificate != me.tls.current.chain:
                        await asyncio.sleep(0.01)
                assert await asyncio.to_thread(served_by, target, folder / "gateway") == of_server.current.chain
            stopping.set()
            await asyncio.gather(*asking)
            assert not failed
            graph.end.set()
            await anext(export)  # what began under the first certificate goes on


def served_by(target: str, mine: Path) -> bytes:
    """The certificate that a server shows now."""
    context = ssl.create_default_context(cafile=mine / "ca.crt")
    context.load_cert_chain(mine / "tls.crt", mine / "tls.key")
    context.set_alpn_protocols(["h2"])
    host, _, port = target.rpartition(":")
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname="graph") as tls_,
    ):
        shown = tls_.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown).encode()


async def test_other_authorities_count_as_soon_as_they_are_there(folder: Path, tmp_path: Path) -> None:
    Authority(tmp_path / "fresh").issue(["graph", "gateway"])
    async with graph_of(folder) as target:
        assert await call(tmp_path / "fresh", "gateway", target) == "UNAVAILABLE"
        shutil.copytree(tmp_path / "fresh" / "graph", folder / "graph", dirs_exist_ok=True)
        await tls.keeper(folder / "graph").look()
        assert await call(tmp_path / "fresh", "gateway", target) == ""
        assert await call(folder, "gateway", target) == "UNAVAILABLE"


async def test_a_channel_that_is_closed_is_not_renewed(folder: Path) -> None:
    me = who(folder, "gateway")
    assert me.tls is not None
    async with client.connect("127.0.0.1:1", me, GRAPH), client.connect("127.0.0.1:2", me, GRAPH) as other:
        await other.close()
        assert len(me.tls.changed) == 1
    assert me.tls.changed == []


async def test_what_is_half_written_changes_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper = tls.keeper(folder / "gateway")
    before = keeper.current
    shutil.copy(folder / "post" / "tls.key", folder / "gateway" / "tls.key")
    for _ in range(3):
        await keeper.look()
    assert keeper.current == before
    assert len([record for record in caplog.records if "stays as it was" in record.message]) == 1
    shutil.copy(folder / "post" / "tls.crt", folder / "gateway" / "tls.crt")
    await keeper.look()
    assert keeper.current == before  # another process's
    Authority(folder).issue(["gateway"])
    await keeper.look()
    assert keeper.current != before


async def test_probes_need_no_certificate_and_reach_nothing_else(folder: Path) -> None:
    running = process.Process("graph")
    await running.report(process.LIVE, True)
    await running.report("", False)
    address = f"127.0.0.1:{free_port()}"
    async with process.answering_probes(running, address), grpc.aio.insecure_channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            return int((await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status)

        assert await status("live") == process.SERVING
        assert await status("") == process.NOT_SERVING
        await running.report("", True)
        assert await status("") == process.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await GraphServiceStub(channel).GetUser(SOMEBODY, timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "FEEDMESH_TLS_DIR, FEEDMESH_MESH_SECRET: one of the two is needed"),
        ({"mesh_secret": "x" * 32, "tls_dir": "/tmp"}, "one of the two is needed, and not both"),
        ({"mesh_secret": "x" * 32, "grpc_address": "10.0.0.1:50051"}, "FEEDMESH_GRPC_ADDRESS: calls would leave"),
        ({"mesh_secret": "x" * 32, "grpc_address": "0.0.0.0:50051"}, "FEEDMESH_GRPC_ADDRESS: calls would leave"),
        ({"mesh_secret": "x" * 32, "grpc_address": "[::]:50051"}, "FEEDMESH_GRPC_ADDRESS: calls would leave"),
        ({"mesh_secret": "x" * 32, "more_callers": "Read Feed"}, "must be names of a-z, 0-9 and -"),
    ],
)
def test_settings_that_would_leave_the_machine_in_plain_are_refused(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line.replace("(", "\\(")):
        config.ServerSettings(**given)


def test_in_plain_it_goes_where_it_is_asked_for_or_on_this_machine() -> None:
    for address in ("127.0.0.1:1", "127.0.3.4:1", "[::1]:1", "localhost:1"):
        config.ServerSettings(mesh_secret="x" * 32, grpc_address=address)
    config.ServerSettings(mesh_secret="x" * 32, grpc_address="10.0.0.1:50051", plaintext=True)
    config.ServerSettings(tls_dir=Path(), grpc_address="10.0.0.1:50051")
