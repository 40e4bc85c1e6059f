"""The manifests say what launch/processes.py says: rendered as they are applied, without a cluster."""

from __future__ import annotations

import base64
import importlib
import ipaddress
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import yaml
from kubernetes_validate.utils import validate

from gateway import server as gateway_server
from launch.processes import FEEDMESH, Process
from runtime import config, server, streams, tls
from services.graph import relay as graph_relay
from services.post import eraser
from services.post import relay as post_relay
from services.timeline import admin, fanout
from services.timeline.config import AdminSettings
from tests.manifests import lacking, rendered

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "tests" / "k8s_schemas"
OVERLAYS = ("dev", "prod", "aws")
VERSION = "1.37"
CHECKOV = Path(os.environ.get("CHECKOV", ROOT / ".venv" / "checkov" / "bin" / "checkov")).absolute()
PROCESSES = {process.name: process for process in FEEDMESH.processes}
WEBHOOK = "timeline-webhook"
"""The one process that an overlay may go without."""
JOBS = {f"migrate-{database.name}": database for database in FEEDMESH.databases}
GRPC, HEALTH, METRICS, HTTP, POSTGRES, REDIS, HTTPS = 50051, 50052, 9090, 8080, 5432, 6379, 443
PODS = {"Deployment", "StatefulSet", "Job"}
Document = dict[str, Any]

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def documents(overlay: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(rendered(overlay)) if document]


def of_kind(overlay: str, *kinds: str) -> dict[str, Document]:
    """By name."""
    found = [each for each in documents(overlay) if each["kind"] in kinds]
    named = {each["metadata"]["name"]: each for each in found}
    assert len(named) == len(found), "two of one name"
    return named


def processes(overlay: str) -> dict[str, Process]:
    """Those that this overlay runs."""
    runs = of_kind(overlay, "Deployment")
    return {name: process for name, process in PROCESSES.items() if name != WEBHOOK or name in runs}


def pod_of(document: Document) -> Any:
    return document["spec"]["template"]["spec"]


def container_of(document: Document) -> Any:
    [container] = pod_of(document)["containers"]
    return container


def env_of(document: Document) -> dict[str, Any]:
    named = {each["name"]: each for each in container_of(document).get("env", ())}
    assert len(named) == len(container_of(document).get("env", ())), "a variable twice"
    return named


# What Kubernetes says to them.


def test_everything_is_valid(overlay: str) -> None:
    for document in [*documents(overlay), *documents(f"{overlay}/admin")]:
        group, _, version = document["apiVersion"].rpartition("/")
        schema = SCHEMAS / f"{group}_{version}_{document['kind'].lower()}.json"
        if schema.exists():
            jsonschema.validate(document, json.loads(schema.read_text()), jsonschema.Draft202012Validator)
        else:  # one of Kubernetes' own, or an error
            validate(document, VERSION, strict=True)


def test_nothing_is_outside_the_namespace(overlay: str) -> None:
    namespaces = {each["metadata"].get("namespace") for each in documents(overlay) if each["kind"] != "Namespace"}
    assert namespaces == {"feedmesh"}
    labels = of_kind(overlay, "Namespace")["feedmesh"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_pods_may_do_as_little_as_can_be(overlay: str) -> None:
    for name, document in of_kind(overlay, *PODS).items():
        pod, container = pod_of(document), container_of(document)
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["enableServiceLinks"] is False, name
        # The collector alone asks the cluster's API something.
        assert pod["automountServiceAccountToken"] is (name == "collector"), name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert {*container["resources"]["requests"]} >= {"cpu", "memory"}, name
        assert {*container["resources"]["limits"]} >= {"cpu", "memory"}, name
        kinds = {kind for volume in pod.get("volumes", ()) for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "csi", "emptyDir", "persistentVolumeClaim", "secret"}, name


def test_service_accounts_are_called_as_their_processes(overlay: str) -> None:
    accounts = of_kind(overlay, "ServiceAccount")
    for name, document in of_kind(overlay, *PODS).items():
        # Who somebody is in the mesh is the name of the account.
        assert pod_of(document)["serviceAccountName"] == ("migrate" if name in JOBS else name)
        assert pod_of(document)["serviceAccountName"] in accounts


def test_checkov_finds_nothing(overlay: str, tmp_path: Path) -> None:
    """Exceptions stand in the manifests, each with its reason."""
    if not CHECKOV.exists():
        lacking("checkov")
    (tmp_path / "overlay.yaml").write_text(rendered(overlay))
    (tmp_path / "admin.yaml").write_text(rendered(f"{overlay}/admin"))
    shutil.copy(ROOT / "Dockerfile", tmp_path)
    command = f"{CHECKOV} --directory . --framework kubernetes dockerfile --skip-download --quiet --output json"
    result = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True, check=False)
    reports = {each["check_type"]: each for each in json.loads(result.stdout)}
    assert set(reports) == {"kubernetes", "dockerfile"}, result.stderr
    for report in reports.values():
        failed = [f"{each['check_id']} {each['resource']}" for each in report["results"]["failed_checks"]]
        assert not failed
        assert report["summary"]["passed"] > 10
        assert not report["summary"]["parsing_errors"]
    assert result.returncode == 0


# What launch/processes.py says.


def test_every_process_has_one_deployment(overlay: str) -> None:
    assert set(of_kind(overlay, "Deployment")) - {"collector"} == set(processes(overlay))
    assert overlay != "prod" or WEBHOOK in processes(overlay)


def test_every_database_is_migrated(overlay: str) -> None:
    jobs = of_kind(overlay, "Job")
    assert set(jobs) == set(JOBS)
    for name, database in JOBS.items():
        assert container_of(jobs[name])["command"] == ["python", *database.migrate]
        assert secret_of(env_of(jobs[name])["FEEDMESH_POSTGRES_DSN"]) == (f"{database.name}-db-app", "uri")


def test_commands_are_those_of_the_launcher(overlay: str) -> None:
    deployments = of_kind(overlay, "Deployment")
    for name, process in processes(overlay).items():
        assert container_of(deployments[name])["command"] == ["python", *process.argv]
        assert "args" not in container_of(deployments[name])


SAMPLES = {
    "uri": "postgresql://somebody:secret@graph-db-rw.feedmesh:5432/graph",
    "url": "rediss://somebody:secret@redis.example.com:6379/0",
    "webhook-url": "https://push.example.com/feedmesh",
}


def secret_of(variable: Mapping[str, Any]) -> tuple[str, str]:
    reference = variable["valueFrom"]["secretKeyRef"]
    return reference["name"], reference["key"]


def secrets_of(overlay: str) -> dict[tuple[str, str], str]:
    """Those that the overlay makes itself."""
    return {
        (name, key): base64.b64decode(value).decode()
        for name, document in of_kind(overlay, "Secret").items()
        for key, value in document["data"].items()
    }


def environment(overlay: str, document: Document) -> dict[str, str]:
    """What a container is started with, as the kubelet makes it of `env`."""
    made = secrets_of(overlay)
    values: dict[str, str] = {}
    for name, variable in env_of(document).items():
        if "value" in variable:
            # A variable knows only those before it.
            value = re.sub(r"\$\(([A-Z_]+)\)", lambda match: values.get(match[1], match[0]), variable["value"])
        elif "fieldRef" in variable["valueFrom"]:
            assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
            value = "10.1.2.3"
        else:
            reference = secret_of(variable)
            if variable["valueFrom"]["secretKeyRef"].get("optional") and made and reference not in made:
                continue
            value = made.get(reference) or SAMPLES.get(reference[1], f"sample-of-{reference[1]}-that-is-long-enough")
        values[name] = value
    return values


def test_processes_take_what_they_are_told(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith(config.PREFIX)]:
        monkeypatch.delenv(name)
    kinds = {name: process.config for name, process in processes(overlay).items()}
    kinds |= dict.fromkeys(JOBS, "runtime.migrate:MigrateSettings")
    for name, document in of_kind(overlay, "Deployment", "Job").items():
        if name not in kinds:
            continue
        module, _, kind = kinds[name].partition(":")
        settings = getattr(importlib.import_module(module), kind)
        told = environment(overlay, document)
        assert not [value for value in told.values() if "$(" in value], name
        assert config.unknown(settings, set(told)) == [], name
        with monkeypatch.context() as patch:
            for variable, value in told.items():
                patch.setenv(variable, value)
            settings()


def test_processes_are_told_where_everything_is(overlay: str) -> None:
    services = of_kind(overlay, "Service")
    tls = "FEEDMESH_TLS_DIR" in env_of(of_kind(overlay, "Deployment")["graph"])
    assert tls == (overlay != "dev")
    for name, process in processes(overlay).items():
        told = environment(overlay, of_kind(overlay, "Deployment")[name])
        targets = {key: value for key, value in told.items() if key.endswith("_TARGET")}
        assert targets == {f"FEEDMESH_{each.upper()}_TARGET": f"dns:///{each}:{GRPC}" for each in process.calls}
        for each in process.calls:
            assert services[each]["spec"]["clusterIP"] == "None"
            # A name without any address gRPC asks for ever more seldom.
            assert services[each]["spec"]["publishNotReadyAddresses"] is True
            assert [port["port"] for port in services[each]["spec"]["ports"]] == [GRPC]
        meshed = process.grpc or bool(process.calls)
        assert ("FEEDMESH_TLS_DIR" in told) == (meshed and tls)
        assert ("FEEDMESH_MESH_SECRET" in told) == (meshed and not tls)
        assert ("FEEDMESH_PLAINTEXT" in told) == (meshed and not tls)
        if process.database:
            reference = env_of(of_kind(overlay, "Deployment")[name])["FEEDMESH_POSTGRES_DSN"]
            assert secret_of(reference) == (f"{process.database}-db-app", "uri")


def test_certificates_are_as_processes_take_them(overlay: str) -> None:
    """What runtime/tls.py asks of them, and that whoever runs as the process can read them."""
    own = [*of_kind(overlay, *PODS).values(), *of_kind(f"{overlay}/admin", *PODS).values()]
    holders = [each for each in own if "FEEDMESH_TLS_DIR" in env_of(each)]
    assert bool(holders) == (overlay != "dev")
    for document in holders:
        pod = pod_of(document)
        [volume] = [each for each in pod["volumes"] if "csi" in each]
        [mount] = [each for each in container_of(document)["volumeMounts"] if each["name"] == volume["name"]]
        assert mount["mountPath"] == env_of(document)["FEEDMESH_TLS_DIR"]["value"]
        said = {key.partition("/")[2]: value for key, value in volume["csi"]["volumeAttributes"].items()}
        assert said["uri-sans"] == f"{tls.SCHEME}feedmesh.internal/ns/${{POD_NAMESPACE}}/sa/${{SERVICE_ACCOUNT_NAME}}"
        assert said["dns-names"] == "${SERVICE_ACCOUNT_NAME}"
        assert {"server auth", "client auth"} <= set(said["key-usages"].split(","))
        assert int(said["fs-group"]) == pod["securityContext"]["runAsGroup"]
        issuer = of_kind(overlay, said["issuer-kind"])[said["issuer-name"]]
        made = {each["spec"]["secretName"]: each["spec"] for each in of_kind(overlay, "Certificate").values()}
        authority = made[issuer["spec"]["ca"]["secretName"]]
        assert authority["isCA"] is True
        # With another key at once, processes of before and after would not take each other's.
        assert authority["privateKey"]["rotationPolicy"] == "Never"


def test_every_key_of_a_secret_is_made_or_documented(overlay: str) -> None:
    made = set(secrets_of(overlay))
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.+?) \|", (ROOT / "docs/kubernetes.md").read_text(), re.MULTILINE)
    known = {(name, key) for name, keys in rows for key in re.findall(r"`([a-z-]+)`", keys)}
    clusters = {(f"{name}-app", "uri") for name in of_kind(overlay, "Cluster")}
    copied = {each["spec"]["target"]["name"] for each in of_kind(overlay, "ExternalSecret").values()}
    used = {
        secret_of(variable)
        for document in of_kind(overlay, *PODS).values()
        for variable in env_of(document).values()
        if "secretKeyRef" in variable.get("valueFrom", {}) and not variable["valueFrom"]["secretKeyRef"].get("optional")
    }
    for each in of_kind(overlay, "TriggerAuthentication").values():
        used |= {(target["name"], target["key"]) for target in each["spec"]["secretTargetRef"]}
    assert used
    assert used - clusters <= (made or known)
    assert used <= known
    if copied:
        assert {name for name, _ in used} == copied


def test_ports_and_probes_are_there(overlay: str) -> None:
    for name, process in processes(overlay).items():
        document = of_kind(overlay, "Deployment")[name]
        container, told = container_of(document), environment(overlay, document)
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        expected = {"metrics": METRICS} | ({"grpc": GRPC} if process.grpc else {})
        expected |= {"http": HTTP} if process.http else {"health": HEALTH}
        assert ports == expected
        listening = {
            int(value.rpartition(":")[2])
            for key, value in told.items()
            if key.endswith("_ADDRESS") or key == "FEEDMESH_HTTP_PORT"
        }
        assert listening == set(ports.values())
        probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
        if process.http:
            paths = {kind: probe["httpGet"] for kind, probe in probes.items()}
            assert paths["readiness"] == {"path": "/healthz", "port": "http"}
            # What lives is not started again because something else does not.
            assert paths["startup"] == paths["liveness"] == {"path": "/healthz", "port": "http"}
        else:
            assert probes["startup"]["grpc"] == probes["readiness"]["grpc"] == {"port": HEALTH}
            assert probes["liveness"]["grpc"] == {"port": HEALTH, "service": "live"}


def test_pods_have_the_time_to_drain(overlay: str) -> None:
    for name, process in processes(overlay).items():
        pod = pod_of(of_kind(overlay, "Deployment")[name])
        sleep = container_of(of_kind(overlay, "Deployment")[name]).get("lifecycle", {}).get("preStop", {}).get("sleep")
        assert (sleep is not None) == process.http
        drain = gateway_server.DRAIN_S + sleep["seconds"] if sleep else server.NOTICE_S + server.DRAIN_S
        assert pod["terminationGracePeriodSeconds"] > 1.5 * drain


def test_services_and_budgets_find_their_pods(overlay: str) -> None:
    pods = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in of_kind(overlay, *PODS).items()}
    for kind in ("Service", "PodDisruptionBudget"):
        for name, each in of_kind(overlay, kind).items():
            selector = each["spec"]["selector"]
            selector = selector.get("matchLabels", selector)
            assert [pod for pod, labels in pods.items() if selector.items() <= labels.items()] == [name]
    for budget in of_kind(overlay, "PodDisruptionBudget").values():
        assert budget["spec"]["maxUnavailable"] == 1  # with none no node could be emptied
    for name, process in processes(overlay).items():
        assert (name in of_kind(overlay, "Service")) == (process.grpc or process.http)
        rolling = of_kind(overlay, "Deployment")[name]["spec"]["strategy"]["rollingUpdate"]
        assert rolling == {"maxUnavailable": 0, "maxSurge": 1}


def test_each_deployment_has_one_that_scales_it(overlay: str) -> None:
    scalers = [*of_kind(overlay, "HorizontalPodAutoscaler").items(), *of_kind(overlay, "ScaledObject").items()]
    scaled = [each["spec"]["scaleTargetRef"]["name"] for _, each in scalers]
    assert len(scaled) == len(set(scaled))
    assert all(name == each["spec"]["scaleTargetRef"]["name"] for name, each in scalers)
    assert set(scaled) <= set(processes(overlay))
    for name in processes(overlay):
        # Otherwise each release would set the number back.
        fixed = "replicas" in of_kind(overlay, "Deployment")[name]["spec"]
        assert fixed == (name not in scaled)


def test_consumers_are_scaled_by_all_of_their_streams(overlay: str) -> None:
    groups = {graph_relay.TOPIC: graph_relay.GROUPS, post_relay.TOPIC: post_relay.GROUPS}
    consumers = {"timeline-fanout": fanout.GROUP, "post-eraser": eraser.GROUP}
    objects = of_kind(overlay, "ScaledObject")
    assert set(objects) == (set() if overlay == "dev" else set(consumers))
    for name, each in objects.items():
        triggers = [trigger["metadata"] for trigger in each["spec"]["triggers"]]
        assert {trigger["consumerGroup"] for trigger in triggers} == {consumers[name]}
        assert [trigger["stream"] for trigger in triggers] == [
            key
            for topic in sorted(groups, reverse=True)
            if consumers[name] in groups[topic]
            for key in streams.stream_keys(topic)
        ]


def test_databases_take_the_connections_of_all_replicas(overlay: str) -> None:
    scalers = [*of_kind(overlay, "HorizontalPodAutoscaler").values(), *of_kind(overlay, "ScaledObject").values()]
    most = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"].get("maxReplicas") or each["spec"]["maxReplicaCount"]
        for each in scalers
    }
    needed = {database.name: 0 for database in FEEDMESH.databases}
    for name, process in processes(overlay).items():
        if process.database:
            replicas = most.get(name) or of_kind(overlay, "Deployment")[name]["spec"]["replicas"]
            needed[process.database] += 8 * (replicas + 1)  # one more while a release rolls out
    if overlay == "dev":
        [setting] = [arg for arg in container_of(of_kind(overlay, "StatefulSet")["postgres"])["args"] if "=" in arg]
        assert sum(needed.values()) < int(setting.removeprefix("max_connections="))
    for name, cluster in of_kind(overlay, "Cluster").items():
        connections = int(cluster["spec"]["postgresql"]["parameters"]["max_connections"])
        assert needed[name.removesuffix("-db")] < connections
    # Those of RDS the docs say.
    said = re.search(r"`max_connections` of at least ([0-9]+)", (ROOT / "docs/aws.md").read_text())
    assert said
    assert overlay != "aws" or max(needed.values()) < int(said[1])


def test_the_collector_sends_metrics_that_there_are(overlay: str) -> None:
    told = of_kind(overlay, "ConfigMap").get("collector")
    assert (told is not None) == (overlay == "aws")
    if told is None:
        return
    settings = yaml.safe_load(told["data"]["collector.yaml"])
    watched = re.findall(
        r"`([a-z_]+)(?:\{.*?\})?`", (ROOT / "docs/operating.md").read_text().partition("## What to watch")[2]
    )
    for declared in settings["exporters"]["awsemf"]["metric_declarations"]:
        for pattern in declared["metric_name_selectors"]:
            assert [name for name in watched if re.match(pattern, name)], pattern


def test_the_operator_has_a_pod_for_commands(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [(name, job)] = of_kind(f"{overlay}/admin", "Job").items()
    assert name == pod_of(job)["serviceAccountName"] == admin.NAME
    # It shows who it is as the others do, and has nothing that the overlay has not.
    told, others = env_of(job), env_of(of_kind(overlay, "Deployment")["timeline-fanout"])
    mesh = {"FEEDMESH_PLAINTEXT", "FEEDMESH_MESH_SECRET", "FEEDMESH_TLS_DIR", "FEEDMESH_POSTGRES_DSN"}
    assert {each: told.get(each) for each in mesh} == {each: others.get(each) for each in mesh}
    assert container_of(job)["image"] == container_of(of_kind(overlay, "Job")["migrate-timeline"])["image"]
    values = environment(overlay, job)
    assert config.unknown(AdminSettings, set(values)) == []
    for variable, value in values.items():
        monkeypatch.setenv(variable, value)
    settings = AdminSettings()
    called = {each: getattr(settings, f"{each}_target") for each in ("graph", "post", "ranking", "timeline")}
    assert called == {each: f"dns:///{each}:{GRPC}" for each in called}
    pod = Pod(name, job["spec"]["template"]["metadata"]["labels"])
    both = (overlay, f"{overlay}/admin")
    for other in pods(overlay):
        reached = any(allowed(each, "Egress", pod, GRPC, other) for each in both)
        assert reached == (other.name in called)
        assert any(allowed(each, "Ingress", other, GRPC, pod) for each in both) == reached


# Who may talk to whom.


class Pod(NamedTuple):
    name: str
    labels: Mapping[str, str]


OUTSIDE = Pod("outside", {})
ADDRESS = ipaddress.ip_address("10.0.5.5")
"""Of something outside the cluster, in a network of ours."""
PROMETHEUS = {"kubernetes.io/metadata.name": "monitoring"}


def pods(overlay: str) -> list[Pod]:
    own = [Pod(name, each["spec"]["template"]["metadata"]["labels"]) for name, each in of_kind(overlay, *PODS).items()]
    return [*own, *(Pod(name, {"cnpg.io/cluster": name}) for name in of_kind(overlay, "Cluster"))]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "Exists"
        if expression["key"] not in labels:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def peers(rules: Iterable[Mapping[str, Any]], direction: str, port: int, other: Pod) -> Iterator[None]:
    """Something for each rule that lets a pod talk by this port with another, or with something outside."""
    for rule in rules:
        assert rule["ports"], "a rule without ports"
        if port not in {each["port"] for each in rule["ports"]}:
            continue
        if direction not in rule:
            yield
        for peer in rule.get(direction, ()):
            if set(peer) == {"podSelector"} and other is not OUTSIDE and selects(peer["podSelector"], other.labels):
                yield
            if (
                set(peer) == {"ipBlock"}
                and other is OUTSIDE
                and ADDRESS in ipaddress.ip_network(peer["ipBlock"]["cidr"])
            ):
                yield


def allowed(overlay: str, kind: str, pod: Pod, port: int, other: Pod) -> bool:
    policies = [
        each["spec"]
        for each in of_kind(overlay, "NetworkPolicy").values()
        if kind in each["spec"]["policyTypes"] and selects(each["spec"]["podSelector"], pod.labels)
    ]
    assert policies or overlay.endswith("/admin"), f"nothing denies {kind} of {pod.name}"
    direction = {"Ingress": "from", "Egress": "to"}[kind]
    return any(True for each in policies for _ in peers(each.get(kind.lower(), ()), direction, port, other))


def expected_edges(overlay: str) -> set[tuple[str, str, int]]:
    """Caller, called and port, within the cluster."""
    runs = processes(overlay)
    edges = {(name, called, GRPC) for name, process in runs.items() for called in process.calls}
    databases = {name: process.database for name, process in runs.items() if process.database}
    databases |= {name: database.name for name, database in JOBS.items()}
    if overlay == "dev":
        edges |= {(name, "postgres", POSTGRES) for name in databases}
        edges |= {(name, "redis", REDIS) for name, process in runs.items() if process.redis}
    if overlay == "prod":
        edges |= {(name, f"{database}-db", POSTGRES) for name, database in databases.items()}
        # Instances replicate.
        edges |= {(f"{each.name}-db", f"{each.name}-db", POSTGRES) for each in FEEDMESH.databases}
    if overlay == "aws":
        edges |= {("collector", name, METRICS) for name in runs}
    return edges


def test_what_is_not_allowed_is_denied(overlay: str) -> None:
    assert of_kind(overlay, "NetworkPolicy")["deny"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }


def test_pods_may_call_whom_they_call_and_nobody_else(overlay: str) -> None:
    everyone, expected = pods(overlay), expected_edges(overlay)
    for port in (GRPC, HEALTH, METRICS, HTTP, POSTGRES, REDIS):
        wanted = {(caller, called) for caller, called, by in expected if by == port}
        pairs = [(caller, called) for caller in everyone for called in everyone]
        out = {(a.name, b.name) for a, b in pairs if allowed(overlay, "Egress", a, port, b)}
        into = {(a.name, b.name) for a, b in pairs if allowed(overlay, "Ingress", b, port, a)}
        assert out == wanted, f"egress by {port}"
        if port == HTTP and overlay == "dev":
            into = {(a, b) for a, b in into if b != "gateway"}  # it is open to all
        assert into == wanted, f"ingress by {port}"


def test_only_some_may_reach_what_is_outside(overlay: str) -> None:
    runs = processes(overlay)
    outside: dict[int, set[str]] = {GRPC: set(), POSTGRES: set(), REDIS: set(), HTTPS: set()}
    if overlay != "dev":
        outside[REDIS] = {name for name, process in runs.items() if process.redis}
        outside[HTTPS] = {"gateway", "post-upkeep"}  # media
    if overlay == "aws":
        outside[POSTGRES] = {name for name, process in runs.items() if process.database} | set(JOBS)
        outside[HTTPS] |= {"collector"}
    if overlay == "prod":
        outside[HTTPS] |= {WEBHOOK, *of_kind(overlay, "Cluster")}
    for port, names in outside.items():
        assert {pod.name for pod in pods(overlay) if allowed(overlay, "Egress", pod, port, OUTSIDE)} == names
    # From outside comes what a balancer sends; in prod it has a namespace.
    for port in (GRPC, HEALTH, METRICS, POSTGRES, REDIS):
        assert not [pod.name for pod in pods(overlay) if allowed(overlay, "Ingress", pod, port, OUTSIDE)]
    open_to_all = {pod.name for pod in pods(overlay) if allowed(overlay, "Ingress", pod, HTTP, OUTSIDE)}
    assert open_to_all == (set() if overlay == "prod" else {"gateway"})


def test_all_may_ask_dns(overlay: str) -> None:
    system = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    for pod in pods(overlay):
        asked = {
            (port["protocol"], port["port"])
            for each in of_kind(overlay, "NetworkPolicy").values()
            if "Egress" in each["spec"]["policyTypes"] and selects(each["spec"]["podSelector"], pod.labels)
            for rule in each["spec"].get("egress", ())
            if system in rule.get("to", ())
            for port in rule["ports"]
        }
        assert {("UDP", 53), ("TCP", 53)} <= asked, pod.name


def test_prometheus_may_read_all_metrics(overlay: str) -> None:
    for pod in pods(overlay):
        reads = any(
            {"namespaceSelector": {"matchLabels": PROMETHEUS}} in rule.get("from", ())
            and rule["ports"] == [{"protocol": "TCP", "port": METRICS}]
            for each in of_kind(overlay, "NetworkPolicy").values()
            if selects(each["spec"]["podSelector"], pod.labels)
            for rule in each["spec"].get("ingress", ())
        )
        assert reads == (pod.name in PROCESSES)
