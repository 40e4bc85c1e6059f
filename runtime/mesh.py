"""The mesh's policy: how calls are balanced, tried again, bounded and kept alive, in one place. No code of a service.

gRPC itself carries it out, by a channel's service config and arguments, so there are no sidecars. What surrounds each
call (deadline, request id, caller) is runtime/client.py's; what surrounds it at the server runtime/interceptors.py's.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from feedmesh.options.v1 import options_pb2

MAX_MESSAGE_BYTES = 32 * 2**20
"""Of a request or an answer, at either end."""
GATEWAY = "gateway"
"""The caller of every RPC that has a route."""

Options = tuple[tuple[str, Any], ...]


DEFAULT_DEADLINE_S = 10.0
"""For a caller that set none: no call may hold its resources for ever."""
MAX_DEADLINE_S = 60.0
"""However much later a caller's deadline is."""
MAX_STREAM_S = 600.0
"""The same for a call that streams its answer, from its first message to its last, and what it gets from a caller that
set no deadline. Far longer than any other: it ends when all is sent, and that goes at its reader's pace."""
SHAVE_S = 0.010
"""What each hop keeps of its deadline: to answer, degraded or with an error, when the hop beyond does not."""


class Retries(NamedTuple):
    """Of reads that fail with UNAVAILABLE (gRFC A6). A write is not tried again here: without an idempotency key a
    second try could take effect twice. Nor is a stream, which may fail when much of it is used already."""

    attempts: int = 3
    first_backoff_s: float = 0.05
    most_backoff_s: float = 0.5
    multiplier: float = 3
    budget_tokens: int = 100
    """A failure takes one, and below half of them nothing is tried again: a mesh that is down is not held down."""
    budget_ratio: float = 0.1
    """What a success gives back."""


class Outliers(NamedTuple):
    """Replicas that fail nearly every call, while others do not, are left out for a while (gRFC A50).

    NOT_FOUND and the like count as failures there, so only what nearly always fails is an outlier; and half of the
    replicas stay whatever they answer.
    """

    interval_s: float = 5
    first_ejection_s: float = 5
    """Times how often it was left out before."""
    most_ejection_s: float = 60
    most_ejected_percent: int = 50
    failure_percent: int = 90
    least_replicas: int = 2
    least_calls: int = 20
    """Of a replica in an interval, to be judged by."""


class Connections(NamedTuple):
    """How connections are made, kept alive and ended."""

    first_backoff_s: float = 0.05
    most_backoff_s: float = 1.0
    """A service that restarts is found again within a second; the default waits up to two minutes."""
    connect_s: float = 5.0
    """How long an attempt to connect may take at least. A busy server shakes hands in its time, and callers wait for
    that within their deadlines; where the attempt fails, they fail at once."""
    ping_s: float = 10
    """Without an answer within `ping_timeout_s` the connection is broken, whatever TCP says."""
    ping_timeout_s: float = 5
    age_s: float = 15
    """After about so long a connection ends in peace, and its client asks DNS anew: so that new replicas get their
    share within seconds."""
    resolve_s: float = 1
    """How soon DNS may be asked again; the default is half a minute."""


RETRIES, OUTLIERS, CONNECTIONS = Retries(), Outliers(), Connections()


def client_options(services: tuple[ServiceDescriptor, ...]) -> Options:
    """The arguments of a channel for calls to these services."""
    return (
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", ms(CONNECTIONS.first_backoff_s)),
        ("grpc.max_reconnect_backoff_ms", ms(CONNECTIONS.most_backoff_s)),
        ("grpc.min_reconnect_backoff_ms", ms(CONNECTIONS.connect_s)),  # whatever its name says
        ("grpc.keepalive_time_ms", ms(CONNECTIONS.ping_s)),
        ("grpc.keepalive_timeout_ms", ms(CONNECTIONS.ping_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.dns_min_time_between_resolutions_ms", ms(CONNECTIONS.resolve_s)),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps(service_config(services))),
    )


def server_options() -> Options:
    """The arguments of a server."""
    return (
        # Without this, two servers bind one port and each silently gets half of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_connection_age_ms", ms(CONNECTIONS.age_s)),
        # Not before what is under way on them has ended: a stream takes the longest.
        ("grpc.max_connection_age_grace_ms", ms(MAX_STREAM_S + 5)),
        ("grpc.keepalive_time_ms", ms(3 * CONNECTIONS.ping_s)),
        ("grpc.keepalive_timeout_ms", ms(CONNECTIONS.ping_timeout_s)),
        # What clients ping with must be allowed here.
        ("grpc.http2.min_ping_interval_without_data_ms", ms(CONNECTIONS.ping_s / 2)),
        ("grpc.keepalive_permit_without_calls", 1),
    )


def service_config(services: tuple[ServiceDescriptor, ...]) -> dict[str, Any]:
    """gRPC's service config: round robin over healthy replicas without outliers, and retries of reads with a budget.

    No `timeout`: grpcio fires it far too early, so deadlines are set on each call.
    """
    reads = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if not is_write(method) and not method.server_streaming
    ]
    retry = {
        "maxAttempts": RETRIES.attempts,
        "initialBackoff": f"{RETRIES.first_backoff_s}s",
        "maxBackoff": f"{RETRIES.most_backoff_s}s",
        "backoffMultiplier": RETRIES.multiplier,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    outliers = {
        "interval": f"{OUTLIERS.interval_s}s",
        "baseEjectionTime": f"{OUTLIERS.first_ejection_s}s",
        "maxEjectionTime": f"{OUTLIERS.most_ejection_s}s",
        "maxEjectionPercent": OUTLIERS.most_ejected_percent,
        "failurePercentageEjection": {
            "threshold": OUTLIERS.failure_percent,
            "enforcementPercentage": 100,
            "minimumHosts": OUTLIERS.least_replicas,
            "requestVolume": OUTLIERS.least_calls,
        },
        "childPolicy": [{"round_robin": {}}],
    }
    return {
        "loadBalancingConfig": [{"outlier_detection_experimental": outliers}],
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [{"name": reads, "retryPolicy": retry}] if reads else [],
        "retryThrottling": {"maxTokens": RETRIES.budget_tokens, "tokenRatio": RETRIES.budget_ratio},
    }


def is_write(method: MethodDescriptor) -> bool:
    """Whether an RPC changes something: then it takes a request_id, or items that do, or has a route that is no GET."""
    fields = method.input_type.fields_by_name
    item = fields["items"].message_type if "items" in fields else None
    return (
        route_of(method) not in (None, "get")
        or "request_id" in fields
        or (item is not None and "request_id" in item.fields_by_name)
    )


def route_of(method: MethodDescriptor) -> str | None:
    """The HTTP verb of an RPC's route, as its contract writes it; None without a route."""
    options: Any = method.GetOptions()
    return options.Extensions[annotations_pb2.http].WhichOneof("pattern")  # type: ignore[no-any-return]


def callers_of(service: ServiceDescriptor) -> dict[str, frozenset[str]]:
    """The processes that may call each RPC of a service, by its path as in `/feedmesh.post.v1.PostService/GetPost`.

    The gateway calls what has a route, and what takes many of such at once (`batch`); everybody else is named in the
    contract (`callers`).
    """
    options: dict[str, Any] = {method.name: method.GetOptions().Extensions for method in service.methods}
    routed = {method.name for method in service.methods if route_of(method)}
    routed |= {options[name][options_pb2.batch] for name in routed}
    return {
        f"/{service.full_name}/{name}": frozenset(own[options_pb2.callers]) | ({GATEWAY} if name in routed else set())
        for name, own in options.items()
    }


def ms(seconds: float) -> int:
    """Milliseconds, as gRPC's arguments have it."""
    return int(seconds * 1000)
