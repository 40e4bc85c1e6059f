"""Channels to other services, and what surrounds every call at the client. The mesh's policy is runtime/mesh.py.

A call through a `Channel` takes the deadline of the request that it serves (less a little, so that there is time to
answer without it), says who calls, carries the request's id, and fails with an `Error` of runtime/errors.py. A call
whose answer is a stream does all of that too, and is never tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from runtime import context, errors, mesh, metrics
from runtime.callers import Caller
from runtime.interceptors import BIDI_STREAMING, REQUEST_ID_KEY, SERVER_STREAMING, UNARY
from runtime.mesh import DEFAULT_DEADLINE_S, MAX_STREAM_S, SHAVE_S

RENEW_S = 5.0
"""How long another channel may take to connect before it takes the place of the one before all the same."""
OLD_S = MAX_STREAM_S + 5
"""How long what is under way on the channel before may take to end."""


def connect(target: str, caller: Caller, *services: ServiceDescriptor) -> Channel:
    """A channel to `target` (see `config.Target`) for calls of `caller` to these services, all of one process.

    Where the caller has a certificate it is mutual TLS, with that process and no other.
    """
    if "," in target:
        target = f"ipv4:{target}"
    options = mesh.client_options(services)
    keeper = caller.tls
    if keeper is None:
        return Channel(lambda: grpc.aio.insecure_channel(target, options=options), caller)
    secure = (*options, ("grpc.ssl_target_name_override", process_of(services)))
    channel = Channel(lambda: grpc.aio.secure_channel(target, keeper.channel_credentials(), options=secure), caller)
    keeper.changed.append(channel.renew)
    return channel


def process_of(services: tuple[ServiceDescriptor, ...]) -> str:
    """The name of the process that has these services: `graph` has those of the package feedmesh.graph.v1."""
    [name] = {service.file.package.split(".")[1] for service in services}
    return name


class Call:
    """A method's callable on the channel of now."""

    __slots__ = ("make", "now")

    def __init__(self, make: Callable[[grpc.aio.Channel], Callable[..., Any]], channel: grpc.aio.Channel) -> None:
        self.make = make
        self.now = make(channel)


class Channel(grpc.aio.Channel):
    """A gRPC channel whose calls carry their caller, the request's deadline and id, are counted, and raise our errors.

    A wrapper rather than grpc.aio's client interceptors, which wrap each call in a task of its own.
    """

    def __init__(self, make: Callable[[], grpc.aio.Channel], caller: Caller) -> None:
        """`make` makes the channel beneath, and another one when the certificate is another (`renew`)."""
        self._make = make
        self._channel = make()
        self._caller = caller
        self._calls: list[Call] = []
        self._renewal: asyncio.Task[None] | None = None
        self._old: set[asyncio.Task[None]] = set()

    def _call(self, make: Callable[[grpc.aio.Channel], Callable[..., Any]]) -> Call:
        call = Call(make, self._channel)
        self._calls.append(call)
        return call

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The callable of a unary method, as the generated stubs ask for it. It is kept: make each once."""
        call = around(method, self._call(lambda channel: channel.unary_unary(method, *args, **kwargs)), self._caller)

        def read_by(parse: Callable[[bytes], Any]) -> Any:
            return self.unary_unary(method, *args, **(kwargs | {"response_deserializer": parse}))

        call.read_by = read_by  # type: ignore[attr-defined]
        return call

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The callable of a method that streams its answer, as the generated stubs ask for it. See `around_stream`."""
        call = self._call(lambda channel: channel.unary_stream(method, *args, **kwargs))
        return around_stream(method, call, SERVER_STREAMING, self._caller)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """The callable of a method that takes a stream, as it is: none of ours does."""
        return self._channel.stream_unary(*args, **kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The callable of a method that takes a stream and gives one. See `around_stream`; it takes an iterator."""
        call = self._call(lambda channel: channel.stream_stream(method, *args, **kwargs))
        return around_stream(method, call, BIDI_STREAMING, self._caller)

    def renew(self) -> None:
        """Another channel takes this one's place as soon as it is connected; what is under way ends on this one."""
        if self._renewal is not None:
            self._renewal.cancel()
        self._renewal = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        fresh = self._make()
        try:
            with contextlib.suppress(TimeoutError):  # whoever it is for is away, and for either channel
                async with asyncio.timeout(RENEW_S):
                    await fresh.channel_ready()
        except asyncio.CancelledError:
            await fresh.close()
            raise
        before, self._channel = self._channel, fresh
        for call in self._calls:
            call.now = call.make(fresh)
        closing = asyncio.create_task(before.close(OLD_S))
        self._old.add(closing)
        closing.add_done_callback(self._old.discard)

    async def close(self, grace: float | None = None) -> None:
        """Closes the channel; calls under way get `grace` seconds."""
        if self._caller.tls is not None and self.renew in self._caller.tls.changed:
            self._caller.tls.changed.remove(self.renew)
        for task in (self._renewal, *self._old):
            if task is not None:
                task.cancel()
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


def around(method: str, call: Call, caller: Caller) -> Callable[..., Awaitable[Any]]:
    """A unary method's callable with what surrounds every call."""
    service, _, name = method.removeprefix("/").partition("/")
    shown = caller.metadata
    handled = metrics.GRPC_CLIENT_HANDLED
    ok = handled.labels(UNARY, service, name, "OK")

    async def invoke(request: Any, *, timeout: float | None = None) -> Any:
        within_s = due_s(timeout, DEFAULT_DEADLINE_S)
        metadata = ((REQUEST_ID_KEY, context.request_id.get()), *shown)
        try:
            response = await call.now(request, timeout=within_s, metadata=metadata)
        except grpc.aio.AioRpcError as exception:
            handled.labels(UNARY, service, name, exception.code().name).inc()
            raise errors.from_rpc(exception, service.rpartition(".")[2]) from None
        ok.inc()
        return response

    return invoke


def around_stream(method: str, call: Call, kind: str, caller: Caller) -> Callable[..., AsyncGenerator[Any, None]]:
    """The callable of a method that streams its answer, with what surrounds every call.

    It gives a generator of the messages: the call begins with the first that is asked for, reads on only as they are
    taken, and is cancelled when the generator is closed. Who may stop early closes it (`contextlib.aclosing`).
    """
    service, _, name = method.removeprefix("/").partition("/")
    shown = caller.metadata

    async def invoke(request: Any, *, timeout: float | None = None) -> AsyncGenerator[Any, None]:
        metadata = ((REQUEST_ID_KEY, context.request_id.get()), *shown)
        stream = call.now(request, timeout=due_s(timeout, MAX_STREAM_S), metadata=metadata)
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
