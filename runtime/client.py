"""Channels to other services: where gRPC's own mesh policy is set, and what surrounds every unary call at the client.

A call through a `Channel` takes the deadline of the request that it serves (less a little, so that there is time to
answer without it), carries the request's id, and fails with an `Error` of runtime/errors.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from runtime import context, errors, metrics
from runtime.interceptors import DEFAULT_DEADLINE_S, MAX_MESSAGE_BYTES, REQUEST_ID_KEY

SHAVE_S = 0.010
"""What each hop keeps of its deadline: to answer, degraded or with an error, when the hop beyond does not."""
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A service that restarts is found again within a second; the default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.enable_retries", 1),
)


def connect(target: str, *services: ServiceDescriptor) -> Channel:
    """A channel to `target` (see `config.Target`) for calls to these services."""
    if "," in target:
        target = f"ipv4:{target}"
    options = (*OPTIONS, ("grpc.service_config", json.dumps(service_config(services))))
    return Channel(grpc.aio.insecure_channel(target, options=options))


def service_config(services: tuple[ServiceDescriptor, ...]) -> dict[str, Any]:
    """gRPC's service config: round robin over healthy replicas, and retries of reads with a budget.

    A write is what takes a request_id. It is not tried again here: without an idempotency key a second try could take
    effect twice. No `timeout` either: grpcio fires it far too early, so deadlines are set on each call.
    """
    reads = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if "request_id" not in method.input_type.fields_by_name
    ]
    retry = {
        "maxAttempts": 3,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [{"name": reads, "retryPolicy": retry}] if reads else [],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }


class Channel(grpc.aio.Channel):
    """A gRPC channel whose unary calls carry the request's deadline and id, are counted, and raise our errors.

    A wrapper rather than grpc.aio's client interceptors, which wrap each call in a task of its own.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The callable of a unary method, as the generated stubs ask for it."""
        return around(method, self._channel.unary_unary(method, *args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """The callable of a streaming method, as it is."""
        return self._channel.unary_stream(*args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """The callable of a streaming method, as it is."""
        return self._channel.stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """The callable of a streaming method, as it is."""
        return self._channel.stream_stream(*args, **kwargs)

    async def close(self, grace: float | None = None) -> None:
        """Closes the channel; calls under way get `grace` seconds."""
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The channel's connectivity."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits until the connectivity is another."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Waits until the channel is connected."""
        await self._channel.channel_ready()

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def around(method: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A unary method's callable with what surrounds every call."""
    service, _, name = method.removeprefix("/").partition("/")
    handled = metrics.GRPC_CLIENT_HANDLED
    ok = handled.labels("unary", service, name, "OK")

    async def invoke(request: Any, *, timeout: float | None = None) -> Any:
        at = context.deadline.get()
        left_s = DEFAULT_DEADLINE_S if at is None else at - time.monotonic() - SHAVE_S
        if left_s <= 0:
            raise errors.Unavailable("the deadline has passed")
        metadata = ((REQUEST_ID_KEY, context.request_id.get()),)
        try:
            response = await call(
                request, timeout=left_s if timeout is None else min(timeout, left_s), metadata=metadata
            )
        except grpc.aio.AioRpcError as exception:
            handled.labels("unary", service, name, exception.code().name).inc()
            raise errors.from_rpc(exception, service.rpartition(".")[2]) from None
        ok.inc()
        return response

    return invoke
