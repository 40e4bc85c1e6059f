"""What happens around every unary call at a server, outermost first: see `STACK`.

Streaming calls (health, reflection) pass untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_status import rpc_status

from runtime import context, errors, metrics, validation

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Call = Callable[[Any, Context], Awaitable[Any]]
Interceptor = Callable[[str, Call], Call]
"""Takes a method's full name (`/feedmesh.post.v1.PostService/GetPost`) and the call within; gives that around."""

REQUEST_ID_KEY = "x-request-id"
MAX_MESSAGE_BYTES = 32 * 2**20
"""Of a request or an answer, at either end."""
DEFAULT_DEADLINE_S = 10.0
"""For a caller that set none: no call may hold its resources for ever."""
MAX_DEADLINE_S = 60.0
"""However much later a caller's deadline is."""


def answer_errors(method: str, call: Call) -> Call:
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


def observe(method: str, call: Call) -> Call:
    """Counts and times the call under the names that gRPC dashboards know."""
    service, _, name = method.removeprefix("/").partition("/")
    started = metrics.GRPC_SERVER_STARTED.labels("unary", service, name)
    handling = metrics.GRPC_SERVER_HANDLING.labels("unary", service, name)

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
            metrics.GRPC_SERVER_HANDLED.labels("unary", service, name, code).inc()

    return around


def carry_context(method: str, call: Call) -> Call:
    """Takes the request's id and deadline over from the caller, for the logs and for the next hop."""

    async def around(request: Any, rpc: Context) -> Any:
        received = {key: value for key, value in rpc.invocation_metadata() or () if key == REQUEST_ID_KEY}
        request_id = received.get(REQUEST_ID_KEY) or uuid.uuid4().hex
        context.request_id.set(request_id if isinstance(request_id, str) else "")
        left_s = rpc.time_remaining()
        context.deadline.set(time.monotonic() + (DEFAULT_DEADLINE_S if left_s is None else min(left_s, MAX_DEADLINE_S)))
        return await call(request, rpc)

    return around


def validate(method: str, call: Call) -> Call:
    """Refuses a request that breaks a rule of its contract, before any code of the service sees it."""

    async def around(request: Any, rpc: Context) -> Any:
        if wrong := validation.violations(request):
            raise errors.InvalidArgument(*wrong)
        return await call(request, rpc)

    return around


STACK: tuple[Interceptor, ...] = (carry_context, answer_errors, observe, validate)


class Chain(grpc.aio.ServerInterceptor):
    """Puts the stack around each unary method, once a method."""

    def __init__(self, stack: tuple[Interceptor, ...] = STACK) -> None:
        self._stack = stack
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler with the stack around it."""
        method = handler_call_details.method
        with contextlib.suppress(KeyError):
            return self._wrapped[method]
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None or not method.startswith("/feedmesh."):
            return handler
        call: Any = handler.unary_unary
        for interceptor in reversed(self._stack):
            call = interceptor(method, call)
        wrapped = grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )
        self._wrapped[method] = wrapped
        return wrapped
