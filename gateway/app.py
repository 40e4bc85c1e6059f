"""The gateway as an ASGI application: request in, one gRPC call, answer out. What a route is, the contracts say.

A request passes, outermost first: id and metrics → route and method → host and origin → who asks → limits → room →
body → transcoding → call → encoding → validator → compression.
Whatever fails on the way raises an Error of runtime/errors.py and is answered by problems.py. Where the service streams
its answer, each of its messages goes out as it comes; what fails then breaks the connection off.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message

from gateway import metrics, problems
from gateway.access import Access, acting, stranger
from gateway.addresses import Addresses
from gateway.exchange import (
    CLIENT,
    Answer,
    Body,
    ClientGone,
    Receive,
    Request,
    Scope,
    Send,
    Sent,
    break_off,
    own_or_new_id,
    respond,
    unless_gone,
)
from gateway.hub import Hub
from gateway.limits import READ, WRITE, Limits
from gateway.live import PATH, LiveEvents, LiveSocket
from gateway.media import Downloads, Uploads
from gateway.origins import Origins
from gateway.pages import UNLIMITED, Page
from gateway.representation import compressed, validated
from gateway.routes import LINES, Call, Route, Stream, Table, allow
from runtime import context
from runtime.errors import Error, Unauthenticated, Unavailable, from_exception
from runtime.mesh import MAX_STREAM_S

log = logging.getLogger(__name__)

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
JSON = (b"content-type", b"application/json")
NOT_KEPT = (b"cache-control", b"no-store")
LINES_HEADERS = [(b"content-type", LINES.encode()), NOT_KEPT]


class App:
    """Answers every HTTP request of this process."""

    def __init__(
        self,
        routes: Iterable[tuple[Route, Call | Stream]],
        pages: Mapping[str, Page],
        hub: Hub | None = None,
        access: Access | None = None,
        media: Iterable[tuple[str, str, Uploads | Downloads]] = (),
        *,
        origins: Origins | None = None,
        timeout_s: float,
        max_requests: int,
        limits: Limits | None = None,
        addresses: Addresses = Addresses(),  # noqa: B008 - it is never changed
    ) -> None:
        """`access` lets requests in; without it everybody is believed.

        `timeout_s` bounds a whole request, `max_requests` how many API requests are under way at once.

        Of an answer that is streamed `timeout_s` bounds the wait for each message, and MAX_STREAM_S the whole.
        `origins` are the web pages that may use the API: none but our own if not given.
        """
        entries: list[tuple[str, str, Any]] = [
            (route.template, route.method, (route.limit_class, (route, call))) for route, call in routes
        ]
        entries += [(path, "GET", ("" if path in UNLIMITED else READ, page)) for path, page in pages.items()]
        entries += [(path, method, (READ if method == "GET" else WRITE, target)) for path, method, target in media]
        self._origins = origins or Origins()
        self._access = access or Access(None)
        self._socket = LiveSocket(hub, self._let_in, self._access.counts) if hub is not None else None
        if hub is not None:
            entries.append((PATH, "GET", (READ, LiveEvents(hub, self._access.counts))))
        self._table = Table(entries)
        self._limits = limits
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._max_requests = max_requests
        self._under_way = 0
        metrics.UNDER_WAY.set_function(lambda: self._under_way)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "websocket" and self._socket is not None:
            await self._socket(self._incoming(scope, receive), scope.get("subprotocols", ()), receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway serves no {scope['type']}")
        begun = time.perf_counter()
        request = self._incoming(scope, receive)
        context.request_id.set(request.id)
        context.deadline.set(time.monotonic() + self._timeout_s)
        template, status = "none", metrics.CLIENT_GONE
        try:
            template, answer = await self._answer(request, send)
            status = answer.status
            if isinstance(answer, Answer):
                await respond(send, await compressed(answer, request), request)
            elif not answer.whole:
                await break_off(request)
        except ClientGone:
            log.debug("the client left")
        finally:
            label = request.method if request.method in METHODS else "OTHER"
            requests, seconds = metrics.answered(template, label, status)
            requests.inc()
            seconds.observe(time.perf_counter() - begun)

    def _incoming(self, scope: Scope, receive: Receive) -> Request:
        """The request that an ASGI server hands over; one for a WebSocket is GET."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        client = scope.get("extensions", {}).get(CLIENT, {}).get("client")
        peer = scope.get("client")
        request_id = own_or_new_id(headers.get(b"x-request-id"))
        return Request(
            id=request_id,
            method=scope.get("method", "GET"),
            raw_path=scope["raw_path"],
            query=scope["query_string"],
            headers=headers,
            all_headers=scope["headers"],
            body=Body(receive, headers, client),
            receive=receive,
            client=client,
            address=self._addresses(peer and peer[0], scope["headers"]),
            answered_with=[(b"x-request-id", request_id.encode()), *self._origins.headers(headers)],
        )

    async def _answer(self, request: Request, send: Send) -> tuple[str, Answer | Sent]:
        """The route's template and the answer."""
        found = self._table.find(request.raw_path)
        if found is None:
            return "none", problems.answer(Error("ROUTE_NOT_FOUND", "there is nothing at this path"), request.id)
        template, methods, path = found
        target = methods.get("GET" if request.is_head else request.method)
        if target is None:
            allowed = [(b"allow", allow(methods))]
            if request.method == "OPTIONS":
                preflight = self._origins.preflight(request.headers, allowed[0][1])
                return template, Answer(204, headers=[*allowed, *preflight])
            error = Error("METHOD_NOT_ALLOWED", f"this path takes {allowed[0][1].decode()}")
            return template, problems.answer(error, request.id, headers=allowed)
        limit_class, target = target
        try:
            self._origins.check(request.headers, changes=request.method not in SAFE)
            await self._admit(limit_class, request)
            if isinstance(target, tuple):
                route, call = target
                return template, await self._serve(route, call, path, request, send)
            if isinstance(target, LiveEvents):
                return template, await target(request, send)
            if isinstance(target, (Uploads, Downloads)):
                return template, await target(path, request, send)
            return template, await target(request.headers.get(b"host", b"").decode("latin-1"))
        except Error as error:
            log.log(severity(error), "%s %s: %s: %s", request.method, template, error.reason, error.message)
            return template, problems.answer(error, request.id)
        except ClientGone:
            raise
        except Exception:
            log.exception("%s %s failed", request.method, template)
            return template, problems.answer(problems.INTERNAL, request.id)

    async def _let_in(self, request: Request, offered: Sequence[str]) -> None:
        """Lets somebody in who asks for a WebSocket, which may change something by what it says."""
        self._origins.check(request.headers, changes=True)
        await self._admit(READ, request, offered)

    async def _admit(self, limit_class: str, request: Request, offered: Sequence[str] = ()) -> None:
        """Finds out who asks and lets them in, or raises why not. Of the class "" there is nothing to find out."""
        if not limit_class:
            return
        try:
            request.identity = await self._access(request.headers, offered)
        except Unauthenticated:
            await self._count(limit_class, request)
            raise
        await self._count(limit_class, request)

    async def _count(self, limit_class: str, request: Request) -> None:
        if self._limits is not None:
            user_id = request.identity.user_id if request.identity else 0
            await self._limits(limit_class, user_id, request.address, request.answered_with)

    async def _serve(
        self, route: Route, call: Any, path: Mapping[str, str], request: Request, send: Send
    ) -> Answer | Sent:
        """The answer of the service behind a route."""
        if self._under_way >= self._max_requests:
            raise Unavailable("the gateway has as many requests under way as it takes")
        self._under_way += 1
        try:
            identity = request.identity
            if identity is not None and not identity.user_id and route.transcoder.needs_actor:
                raise stranger(identity)
            content = b""
            if route.transcoder.has_body:
                expect_json(request.headers)
                content = await request.body.read(self._timeout_s)
            else:
                await request.body.skip()
            message = route.transcoder(path, request.query, request.all_headers, content, acting(identity))
            self._access.complete(message, route, identity)
            if route.streams:
                return await unless_gone(self._stream(route, call, message, request, send), request.client)
            under_way = call(message)
            # Only reads end with their client: whether a write that is cut off took effect, nobody could tell.
            response = await (unless_gone(under_way, request.client) if route.is_read else under_way)
            if route.is_cacheable:
                is_anonymous = b"authorization" not in request.headers and not getattr(message, "viewer_id", 0)
                return validated(Answer(route.status, route.encoder(response), [JSON]), request, shared=is_anonymous)
            headers = [JSON, NOT_KEPT, *route.encoder.header_values(response)]
            return Answer(route.status, route.encoder(response), headers)
        finally:
            self._under_way -= 1

    async def _stream(self, route: Route, call: Stream, message: Message, request: Request, send: Send) -> Sent:
        """Sends the answer of a service that streams it. Raises what fails before its first message, as any call."""
        # Not this request's: it ends when all is sent, and that goes at the client's pace.
        context.deadline.set(time.monotonic() + MAX_STREAM_S)
        async with aclosing(call(message)) as records:
            record = await self._next(records)
            headers = [*LINES_HEADERS, *request.answered_with]
            await send({"type": "http.response.start", "status": route.status, "headers": headers})
            try:
                async with asyncio.timeout(MAX_STREAM_S):
                    while record is not None and not request.is_head:
                        # Waits while the client takes nothing; for how long, the server bounds.
                        line = route.encoder(record) + b"\n"
                        await send({"type": "http.response.body", "body": line, "more_body": True})
                        record = await self._next(records)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            except Exception as exception:
                error = from_exception(exception) or problems.INTERNAL
                log.log(
                    severity(error),
                    "%s %s broke off: %s: %s",
                    request.method,
                    route.template,
                    error.reason,
                    error.message,
                    exc_info=exception if error is problems.INTERNAL else None,
                )
                return Sent(problems.answer(error, request.id).status, whole=False)
        return Sent(route.status, whole=True)

    async def _next(self, records: AsyncGenerator[Message, None]) -> Message | None:
        """The next message of a stream, None at its end. Raises Unavailable when it does not come in time."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await anext(records, None)
        except TimeoutError:
            raise Unavailable("the service took too long") from None


def severity(error: Error) -> int:
    """The level at which an error is logged: whose fault it is."""
    if error.reason == "INTERNAL" or error.reason not in problems.STATUS:
        return logging.ERROR
    return logging.WARNING if isinstance(error, Unavailable) else logging.DEBUG


def expect_json(headers: Mapping[bytes, bytes]) -> None:
    """Raises Error (UNSUPPORTED_MEDIA_TYPE) unless the request says that its body is plain JSON."""
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise Error("UNSUPPORTED_MEDIA_TYPE", "the body must be application/json")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Error("UNSUPPORTED_MEDIA_TYPE", "the body must not be compressed")
