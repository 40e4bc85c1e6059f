"""Channels to other services: where gRPC's own mesh policy is set, and what surrounds every call at the client.

A call through a `Channel` takes the deadline of the request that it serves (less a little, so that there is time to
answer without it), says who calls, carries the request's id, and fails with an `Error` of runtime/errors.py. A call
whose answer is a stream does all of that too, and is never tried again.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from runtime import context, errors, metrics
from runtime.callers import Caller
from runtime.interceptors import (
    BIDI_STREAMING,
    DEFAULT_DEADLINE_S,
    MAX_MESSAGE_BYTES,
    MAX_STREAM_S,
    REQUEST_ID_KEY,
    SERVER_STREAMING,
    UNARY,
)

SHAVE_S = 0.010
"""What each hop keeps of its deadline: to answer, degraded or with an error, when the hop beyond does not."""
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A service that restarts is found again within a second; the default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    # How long an attempt to connect may take at least, whatever its name says: a busy server shakes hands in its time.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.enable_retries", 1),
)


def connect(target: str, caller: Caller, *services: ServiceDescriptor) -> Channel:
    """A channel to `target` (see `config.Target`) for calls of `caller` to these services."""
    if "," in target:
        target = f"ipv4:{target}"
    options = (*OPTIONS, ("grpc.service_config", json.dumps(service_config(services))))
    return Channel(grpc.aio.insecure_channel(target, options=options), caller)


def service_config(services: tuple[ServiceDescriptor, ...]) -> dict[str, Any]:
    """gRPC's service config: round robin over healthy replicas, and retries of reads with a budget.

    A write is not tried again here: without an idempotency key a second try could take effect twice. Nor is a stream,
    which may fail when much of it is used already. No `timeout` either: grpcio fires it far too early, so deadlines are
    set on each call.
    """
    reads = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if not is_write(method) and not method.server_streaming
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


def is_write(method: MethodDescriptor) -> bool:
    """Whether an RPC changes something: then it takes a request_id, or items that do, or has a route that is no GET."""
    fields = method.input_type.fields_by_name
    item = fields["items"].message_type if "items" in fields else None
    options: Any = method.GetOptions()
    verb = options.Extensions[annotations_pb2.http].WhichOneof("pattern")
    return (
        verb not in (None, "get")
        or "request_id" in fields
        or (item is not None and "request_id" in item.fields_by_name)
    )


class Channel(grpc.aio.Channel):
    """A gRPC channel whose calls carry their caller, the request's deadline and id, are counted, and raise our errors.

    A wrapper rather than grpc.aio's client interceptors, which wrap each call in a task of its own.
    """

    def __init__(self, channel: grpc.aio.Channel, caller: Caller) -> None:
        self._channel = channel
        self._caller = caller

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The callable of a unary method, as the generated stubs ask for it."""
        call = around(method, self._channel.unary_unary(method, *args, **kwargs), self._caller)

        def read_by(parse: Callable[[bytes], Any]) -> Any:
            return self.unary_unary(method, *args, **(kwargs | {"response_deserializer": parse}))

        call.read_by = read_by  # type: ignore[attr-defined]
        return call

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The callable of a method that streams its answer, as the generated stubs ask for it. See `around_stream`."""
        return around_stream(
            method, self._channel.unary_stream(method, *args, **kwargs), SERVER_STREAMING, self._caller
        )

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """The callable of a method that takes a stream, as it is: none of ours does."""
        return self._channel.stream_unary(*args, **kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The callable of a method that takes a stream and gives one. See `around_stream`; it takes an iterator."""
        return around_stream(method, self._channel.stream_stream(method, *args, **kwargs), BIDI_STREAMING, self._caller)

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


def read_by(call: Any, parse: Callable[[bytes], Any]) -> Any:
    """A unary method of a stub as a callable whose answers are parsed by `parse`, as one of wire.closed."""
    return call.read_by(parse)


def around(method: str, call: Callable[..., Awaitable[Any]], caller: Caller) -> Callable[..., Awaitable[Any]]:
    """A unary method's callable with what surrounds every call."""
    service, _, name = method.removeprefix("/").partition("/")
    shown = caller.metadatum
    handled = metrics.GRPC_CLIENT_HANDLED
    ok = handled.labels(UNARY, service, name, "OK")

    async def invoke(request: Any, *, timeout: float | None = None) -> Any:
        within_s = due_s(timeout, DEFAULT_DEADLINE_S)
        metadata = ((REQUEST_ID_KEY, context.request_id.get()), shown)
        try:
            response = await call(request, timeout=within_s, metadata=metadata)
        except grpc.aio.AioRpcError as exception:
            handled.labels(UNARY, service, name, exception.code().name).inc()
            raise errors.from_rpc(exception, service.rpartition(".")[2]) from None
        ok.inc()
        return response

    return invoke


def around_stream(
    method: str, call: Callable[..., Any], kind: str, caller: Caller
) -> Callable[..., AsyncGenerator[Any, None]]:
    """The callable of a method that streams its answer, with what surrounds every call.

    It gives a generator of the messages: the call begins with the first that is asked for, reads on only as they are
    taken, and is cancelled when the generator is closed. Who may stop early closes it (`contextlib.aclosing`).
    """
    service, _, name = method.removeprefix("/").partition("/")
    shown = caller.metadatum

    async def invoke(request: Any, *, timeout: float | None = None) -> AsyncGenerator[Any, None]:
        metadata = ((REQUEST_ID_KEY, context.request_id.get()), shown)
        stream = call(request, timeout=due_s(timeout, MAX_STREAM_S), metadata=metadata)
        code = "CANCELLED"
        try:
            async for message in stream:
                yield message
            code = "OK"
        except grpc.aio.AioRpcError as exception:
            code = exception.code().name
            raise errors.from_rpc(exception, service.rpartition(".")[2]) from None
        finally:
            stream.cancel()
            metrics.GRPC_CLIENT_HANDLED.labels(kind, service, name, code).inc()

    return invoke


def due_s(timeout_s: float | None, unasked_s: float) -> float:
    """How many seconds a call may take: `timeout_s`, and no longer than the request that is being served has left.

    `unasked_s` is for a call outside of any request. Raises Unavailable when nothing is left.
    """
    at = context.deadline.get()
    left_s = unasked_s if at is None else at - time.monotonic() - SHAVE_S
    if left_s <= 0:
        raise errors.Unavailable("the deadline has passed")
    return left_s if timeout_s is None else min(timeout_s, left_s)
