"""What happens around every call at a server, outermost first: see `stack`.

A call that streams its answer is handled within the same stack: see `sending`. Health and reflection pass untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, NamedTuple

import grpc
from grpc_status import rpc_status

from runtime import callers, context, errors, metrics, validation
from runtime.mesh import DEFAULT_DEADLINE_S, MAX_DEADLINE_S, MAX_STREAM_S

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Call = Callable[[Any, Context], Awaitable[Any]]
UNARY, SERVER_STREAMING, BIDI_STREAMING = "unary", "server_streaming", "bidi_streaming"
"""What an RPC takes and gives: one message for one, any number for one, any number for any number."""

REQUEST_ID_KEY = "x-request-id"


class Method(NamedTuple):
    """An RPC, as interceptors know it."""

    service: str
    """As in `feedmesh.post.v1.PostService`."""
    name: str
    kind: str
    """UNARY, SERVER_STREAMING or BIDI_STREAMING."""

    def __str__(self) -> str:
        return f"/{self.service}/{self.name}"


RECEIVED: ContextVar[Any] = ContextVar("RECEIVED", default=())
"""The metadata of the call, as pairs. gRPC gives it to `Chain` anyway; to ask its context again costs 8 µs."""

Interceptor = Callable[[Method, Call], Call]
"""Takes a method and the call within; gives that around."""


def answer_errors(method: Method, call: Call) -> Call:
    """Turns what a handler raises into a status. A defect is logged whole and answered as INTERNAL alone."""

    async def around(request: Any, rpc: Context) -> Any:
        try:
            async with asyncio.timeout(context.remaining_s()):
                return await call(request, rpc)
        except Exception as exception:
            error = errors.from_exception(exception)
            if error is None:
                log.exception("%s failed", method)
                error = errors.Error("INTERNAL", "internal error")
            elif isinstance(error, errors.Unavailable):
                log.warning("%s: %s", method, error.message, extra={"cause": repr(exception)})
            status: Any = rpc_status.to_status(error.status())
        return await rpc.abort(status.code, status.details, status.trailing_metadata)

    return around


def observe(method: Method, call: Call) -> Call:
    """Counts and times the call under the names that gRPC dashboards know."""
    labels = (method.kind, method.service, method.name)
    started = metrics.GRPC_SERVER_STARTED.labels(*labels)
    handling = metrics.GRPC_SERVER_HANDLING.labels(*labels)

    async def around(request: Any, rpc: Context) -> Any:
        started.inc()
        begun = time.perf_counter()
        code = "OK"
        try:
            return await call(request, rpc)
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception as exception:
            error = errors.from_exception(exception)
            code = error.code.name if error else "INTERNAL"
            raise
        finally:
            handling.observe(time.perf_counter() - begun)
            metrics.GRPC_SERVER_HANDLED.labels(*labels, code).inc()

    return around


def carry_context(method: Method, call: Call) -> Call:
    """Takes the request's id and deadline over from the caller, for the logs and for the next hop."""
    unasked_s, most_s = (DEFAULT_DEADLINE_S, MAX_DEADLINE_S) if method.kind == UNARY else (MAX_STREAM_S, MAX_STREAM_S)

    async def around(request: Any, rpc: Context) -> Any:
        received = {key: value for key, value in RECEIVED.get() if key == REQUEST_ID_KEY}
        request_id = received.get(REQUEST_ID_KEY) or uuid.uuid4().hex
        context.request_id.set(request_id if isinstance(request_id, str) else "")
        left_s = rpc.time_remaining()
        context.deadline.set(time.monotonic() + (unasked_s if left_s is None else min(left_s, most_s)))
        return await call(request, rpc)

    return around


def know_caller(known: callers.Known) -> Interceptor:
    """Refuses a call of whoever may not make it, before anything of the request is looked at."""

    def interceptor(method: Method, call: Call) -> Call:
        may_call = known.may_call(str(method))

        async def around(request: Any, rpc: Context) -> Any:
            try:
                name = known.named(RECEIVED.get(), rpc)
            except callers.Unknown:
                log.warning("%s: unknown caller", method, extra={"peer": rpc.peer()})
                raise errors.Unauthenticated("UNKNOWN_CALLER", "the caller is none of this mesh") from None
            if name not in may_call:
                log.warning("%s: not for %s", method, name, extra={"peer": rpc.peer()})
                raise errors.Forbidden("NOT_A_CALLER", f"{name} is not among the callers of this RPC")
            context.caller.set(name)
            return await call(request, rpc)

        return around

    return interceptor


def validate(method: Method, call: Call) -> Call:
    """Refuses a request that breaks a rule of its contract, before any code of the service sees it."""

    async def around(request: Any, rpc: Context) -> Any:
        if method.kind == BIDI_STREAMING:
            return await call(each(request), rpc)
        return await call(checked(request), rpc)

    async def each(requests: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
        async for request in requests:
            yield checked(request)

    def checked(request: Any) -> Any:
        if wrong := validation.violations(request):
            raise errors.InvalidArgument(*wrong)
        return request

    return around


def sending(answers: Callable[[Any, Context], AsyncGenerator[Any, None]]) -> Call:
    """A handler that yields its answers as a call that sends them: so the stack is one, whatever the kind.

    gRPC would iterate a generator too, but leaves it unclosed when the client goes away while a message is being sent:
    what it holds would be freed at some later time, in no context of the request (grpc/grpc#42295).
    """

    async def call(request: Any, rpc: Context) -> None:
        async with aclosing(answers(request, rpc)) as messages:
            async for message in messages:
                try:
                    # Waits while the client takes nothing, so that no more is made than it takes.
                    await rpc.write(message)
                except grpc.aio.InternalError:
                    # The call is over: its cancellation is on the way here, and comes later than this.
                    raise asyncio.CancelledError from None

    return call


def stack(known: callers.Known) -> tuple[Interceptor, ...]:
    """All of them."""
    return carry_context, answer_errors, observe, know_caller(known), validate


class Chain(grpc.aio.ServerInterceptor):
    """Puts the stack around each method of ours, once a method."""

    def __init__(self, known: callers.Known) -> None:
        self._stack = stack(known)
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler with the stack around it."""
        # The task that this runs in goes on to handle the call.
        RECEIVED.set(handler_call_details.invocation_metadata or ())
        path = handler_call_details.method
        with contextlib.suppress(KeyError):
            return self._wrapped[path]
        handler = await continuation(handler_call_details)
        if handler is None or not path.startswith("/feedmesh."):
            return handler
        self._wrapped[path] = wrapped = self._around(path, handler)
        return wrapped

    def _around(self, path: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler of ours with the stack around it.

        Raises TypeError for one that takes a stream of requests and answers once.
        """
        service, _, name = path.removeprefix("/").partition("/")
        makers: dict[tuple[bool, bool], tuple[str, Any, Any]] = {
            (False, False): (UNARY, handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (False, True): (SERVER_STREAMING, handler.unary_stream, grpc.unary_stream_rpc_method_handler),
            (True, True): (BIDI_STREAMING, handler.stream_stream, grpc.stream_stream_rpc_method_handler),
        }
        streams = (bool(handler.request_streaming), bool(handler.response_streaming))
        if streams not in makers:
            raise TypeError(f"{path}: no RPC of ours takes a stream of requests and answers once")
        kind, inner, make = makers[streams]
        method = Method(service, name, kind)
        call: Call = inner if kind == UNARY else sending(inner)
        for interceptor in reversed(self._stack):
            call = interceptor(method, call)
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=unless_serialized(handler.response_serializer),
        )
        return wrapped


def unless_serialized(serialize: Any) -> Callable[[Any], bytes]:
    """Lets a handler answer with a message or with its bytes."""
    return lambda answer: answer if isinstance(answer, bytes) else serialize(answer)
