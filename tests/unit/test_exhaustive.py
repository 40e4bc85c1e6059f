"""Nothing is left out: every RPC has a route or is internal, every reason a status, every setting a line of docs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor

from feedmesh.error.v1.error_pb2 import ErrorReason
from feedmesh.graph.v1 import graph_pb2
from feedmesh.options.v1 import options_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.session.v1 import session_pb2
from feedmesh.timeline.v1 import timeline_pb2
from gateway import problems
from gateway.transcode import is_actor
from launch import processes
from launch import settings as launch_settings
from runtime import coalesce, config, errors, mesh

ROOT = Path(__file__).parents[2]
CONTRACTS = (graph_pb2, post_pb2, ranking_pb2, session_pb2, timeline_pb2)
METHODS = [
    method
    for contract in CONTRACTS
    for service in contract.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
CONFIGS = {process.name: process.config for process in processes.FEEDMESH.processes} | {
    "migrate": "runtime.migrate:MigrateSettings"
}
"""Where the settings of each process are declared."""


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.full_name))
def test_every_rpc_has_a_route_or_is_marked_internal(method: MethodDescriptor) -> None:
    options = method.GetOptions()
    assert options.HasExtension(annotations_pb2.http) != options.Extensions[options_pb2.internal]


NOBODY_ACTS = {"CreateUser", "CreateSession", "RenewSession"}
"""RPCs with a route that are answered as nobody: one comes to be somebody by them."""


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.full_name))
def test_every_request_with_a_route_says_in_one_field_who_acts(method: MethodDescriptor) -> None:
    if method.GetOptions().HasExtension(annotations_pb2.http):
        actors = [field.name for field in method.input_type.fields if is_actor(field)]
        assert len(actors) == (method.name not in NOBODY_ACTS)


def test_what_the_gateway_takes_besides_says_who_acts_too() -> None:
    for request in (timeline_pb2.LiveRequest, timeline_pb2.LiveEventsRequest):
        assert [field.name for field in request.DESCRIPTOR.fields if is_actor(field)] == ["user_id"]


def test_who_looks_is_marked_wherever_a_request_names_them() -> None:
    requests = [
        message
        for contract in CONTRACTS
        for top in contract.DESCRIPTOR.message_types_by_name.values()
        for message in (top, *top.nested_types)
    ]
    looking = [field for message in requests for field in message.fields if field.name == "viewer_id"]
    assert len(looking) > 10
    assert all(map(is_actor, looking))


IDEMPOTENT = {"ReadNotifications", "CreateSession", "RenewSession", "EndSession", "ChangePassword"}
"""Writes that have no more effect when they come again: a mark that only rises; of sessions nothing is stored that a
retry could be answered with."""


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.full_name))
def test_every_write_takes_an_idempotency_key_and_every_read_takes_none(method: MethodDescriptor) -> None:
    http = method.GetOptions().Extensions[annotations_pb2.http]
    writes = bool(http.post or http.delete or http.patch or http.put) and method.name not in IDEMPOTENT
    assert ("request_id" in method.input_type.fields_by_name) == writes


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.full_name))
def test_a_batch_takes_requests_of_its_rpc_and_gives_an_outcome_for_each(method: MethodDescriptor) -> None:
    options = method.GetOptions()
    many = coalesce.batch_of(method)
    assert (many is not None) == bool(options.Extensions[options_pb2.batch])
    if many is not None:
        assert many.GetOptions().Extensions[options_pb2.internal]
        requests, outcomes = (type_.fields_by_name["items"] for type_ in (many.input_type, many.output_type))
        assert requests.message_type is method.input_type
        item = descriptor_pb2.DescriptorProto()
        assert outcomes.message_type is not None
        outcomes.message_type.CopyToProto(item)
        types = {field.name: field.type_name for field in item.field if field.HasField("oneof_index")}
        assert types == {"result": f".{method.output_type.full_name}", "error": ".google.rpc.Status"}
        assert mesh.is_write(many) == mesh.is_write(method)


def test_every_contract_is_looked_at() -> None:
    services = {
        path for path in (ROOT / "protos").rglob("*.proto") if re.search(r"^service ", path.read_text(), re.MULTILINE)
    }
    assert {ROOT / "protos" / contract.DESCRIPTOR.name for contract in CONTRACTS} == services


@pytest.mark.parametrize("reason", [name for name, number in ErrorReason.items() if number])
def test_every_reason_has_an_http_status(reason: str) -> None:
    assert 400 <= problems.STATUS[reason.removeprefix("ERROR_REASON_")] < 600


def test_every_kind_of_error_has_a_status_of_its_own() -> None:
    kinds = errors.Error.__subclasses__()
    assert set(errors.KINDS.values()) == set(kinds)
    assert len(errors.KINDS) == len(kinds)


def test_every_reason_that_the_code_raises_is_in_the_contract() -> None:
    known = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118
    raised = set()
    for source in [*ROOT.glob("runtime/*.py"), *ROOT.glob("services/*/*.py"), *ROOT.glob("gateway/*.py")]:
        raised |= set(
            re.findall(r'(?:NotFound|Conflict|Refused|Forbidden|Unauthenticated)\(\s*"([A-Z_]+)"', source.read_text())
        )
        raised |= set(re.findall(r'reason(?:: str)?\s*=\s*"([A-Z_]+)"', source.read_text()))
    assert raised
    assert raised <= known


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_has_a_line_in_the_docs(name: str) -> None:
    documented = set(re.findall(r"^\| `(FEEDMESH_[A-Z_]+)`", (ROOT / "docs/settings.md").read_text(), re.MULTILINE))
    assert set(settings_of(name)) | set(launch_settings.OWN) <= documented


def test_every_line_of_the_docs_is_a_setting() -> None:
    documented = set(re.findall(r"^\| `(FEEDMESH_[A-Z_]+)`", (ROOT / "docs/settings.md").read_text(), re.MULTILINE))
    assert documented == {*launch_settings.OWN, *(setting for name in CONFIGS for setting in settings_of(name))}


@pytest.mark.parametrize("process", processes.FEEDMESH.processes, ids=lambda process: str(process.name))
def test_the_launcher_tells_each_process_what_it_takes(process: processes.Process) -> None:
    told = {"FEEDMESH_LOG_LEVEL", "FEEDMESH_METRICS_ADDRESS", *process.settings}
    told |= {"FEEDMESH_HEALTH_ADDRESS"}  # for clusters: nobody probes here
    told |= {"FEEDMESH_TLS_DIR", "FEEDMESH_PLAINTEXT"} if process.is_of_mesh else set()
    told |= {f"FEEDMESH_{name.upper()}_TARGET" for name in process.calls}
    told |= {"FEEDMESH_GRPC_ADDRESS"} if process.grpc else set()
    told |= {"FEEDMESH_HTTP_HOST", "FEEDMESH_HTTP_PORT"} if process.http else set()
    told |= {"FEEDMESH_POSTGRES_DSN"} if process.database else set()
    told |= {"FEEDMESH_REDIS_URL"} if process.redis else set()
    told |= {f"FEEDMESH_{name}" for name in process.all_secrets}
    assert told == set(settings_of(process.name))


def test_the_layers_hold() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def settings_of(name: str) -> list[str]:
    """The names of a process's settings."""
    module, _, kind = CONFIGS[name].partition(":")
    fields = getattr(importlib.import_module(module), kind).model_fields
    return [config.PREFIX + field.upper() for field in fields]


@pytest.mark.parametrize("module", [process.argv[-1] for process in processes.FEEDMESH.processes])
def test_every_process_sets_grpc_up_before_it_imports_it(module: str) -> None:
    """See runtime/__init__.py."""
    main = f"{module}.__main__" if ROOT.joinpath(*module.split(".")).is_dir() else module
    program = f"import sys, {main}; print([name for name in sys.modules if name in ('runtime', 'grpc')])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("['runtime', 'grpc']", "['runtime']")
