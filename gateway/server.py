"""The HTTP server under the app: uvicorn, ended by the process's own event, with bounds that uvicorn has not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway import problems
from gateway.app import App
from gateway.exchange import CLIENT, SECURITY, own_or_new_id
from gateway.live import SOCKET
from runtime import config
from runtime.errors import Error, Unavailable

log = logging.getLogger(__name__)

DRAIN_S = 5
"""How long requests under way may take to end once the process is asked to stop."""
KEEP_ALIVE_S = 75
"""How long an idle connection stays: longer than clients and proxies keep theirs, so that it is they who close it."""
BACKLOG = 2_048
HEAD_S = 10.0
"""How long a request's head may take to arrive."""
TAKE_S = 30.0
"""How long a client may take nothing of an answer before the connection is cut. Not shorter: what it takes first comes
out of the system's buffers, which may be megabytes ahead."""
MAX_HEAD_BYTES = 64 * 2**10
"""Request line and headers, and the trailers of a chunked body, together."""
MAX_HEADERS = 100
"""Headers of one request, with the trailers of its body."""
SPARE = 1.05
"""How many connections there may be for each that is answered: those above it are told why they are closed."""
KEPT_FILES = 256
"""Open files that the process needs besides its connections."""

PING_S = 20.0
"""How often the client of a WebSocket is asked whether it is there, and how long it may take to answer."""
MAX_SAID_BYTES = 4 * 2**10
"""Of a message that it says."""

MAX_LATE_BYTES = 64 * 2**10
"""That it says once the socket is closed."""

MAX_HELD_BYTES = 64 * 2**10
"""Of an answer, written in one turn of the event loop, before they are sent."""


SECURITY_LINES = b"".join(b"%b: %b\r\n" % header for header in SECURITY.items())


class HeadTooLarge(Exception):
    """Ends the parsing of a request, which is answered 431."""


class Exchange(RequestResponseCycle):
    """A request and its answer: uvicorn's, but for how the answer is written.

    uvicorn writes head and body one after the other, and looks into every header. Here what is sent in one turn of the
    event loop goes out together (each write is a system call), and the app's headers are taken as they are.
    """

    def __init__(self, protocol: BoundedProtocol, *, keep_alive: bool) -> None:
        super().__init__(
            scope=protocol.scope,
            transport=protocol.transport,
            flow=protocol.flow,
            logger=protocol.logger,
            access_logger=protocol.access_logger,
            access_log=False,
            default_headers=protocol.server_state.default_headers[:1],  # the date, which caches go by
            message_event=asyncio.Event(),
            expect_100_continue=protocol.expect_100_continue,
            keep_alive=keep_alive,
            on_response=protocol.on_response_complete,
        )
        self._loop = protocol.loop
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_due = False

    async def send(self, message: Any) -> None:
        """A part of the answer, as ASGI has it: its head, then pieces of its body."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message["headers"])
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self.chunked_encoding:
            if body:
                self._hold(b"%x\r\n%b\r\n" % (len(body), body))
            if not more:
                self._hold(b"0\r\n\r\n")
        elif self.scope["method"] != "HEAD":
            self._hold(body)
        if not more:
            self.flush()
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()
        elif self._held_bytes > MAX_HELD_BYTES:
            self.flush()
        elif not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Writes what is held."""
        data, self._held, self._held_bytes, self._is_due = b"".join(self._held), [], 0, False
        # The client may have left since, or the connection been cut.
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        names = {name for name, _ in headers}
        lines = [b"%b: %b\r\n" % header for header in headers]
        lines += [b"%b: %b\r\n" % header for header in self.default_headers]
        if names.isdisjoint(SECURITY):
            lines.append(SECURITY_LINES)
        else:
            lines += [b"%b: %b\r\n" % header for header in SECURITY.items() if header[0] not in names]
        if b"connection" in names:  # the app has nothing to say of it but "close"
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if b"content-length" not in names and self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        self._hold(b"%b%b\r\n" % (STATUS_LINE[status], b"".join(lines)))

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with bounds on both ends of a request.

    On its head: its bytes, and how long it may take to arrive; and on how long the client may leave the answer lying.
    """

    _head_bytes = 0
    _head_count = 0
    _most = 0
    _is_surplus = False
    _timer: asyncio.TimerHandle | None = None
    _untaken_bytes = 0
    _taking: asyncio.TimerHandle | None = None
    _is_upgrade = False
    _is_in_head = False
    _idle_since_s = 0.0
    _served: Exchange | None = None
    # What gateway/exchange.py calls a Client.
    disconnected = False
    ends_request = False
    _task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected: its first request must come."""
        super().connection_made(transport)
        self._most = self.limit_concurrency or len(self.connections)
        self._is_surplus = len(self.connections) > self._most
        if len(self.connections) > self._most * SPARE:
            transport.abort()
        self._extensions = {CLIENT: {"client": self}}
        self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._head_came()
        self._taken()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self.disconnected = True
        if self._served is not None and not self._served.response_complete:
            self._served.disconnected = True  # uvicorn tells the last that came, which may be another
            self._served.message_event.set()
        if self.ends_request and self._task is not None:
            self._task.cancel()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head_bytes = self._head_count = 0
        self._is_in_head = True
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def data_received(self, data: bytes) -> None:
        """Bytes from the client.

        A request to upgrade is declined by reading it as if it had not asked. httptools takes all that follows such a
        head for the other protocol, so that the body would be lost; Java's client asks for h2c by default.
        """
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                if self.transport.is_closing():
                    return
                if self._get_upgrade() == b"websocket" and self.url.partition(b"?")[0] == SOCKET.encode():
                    self._become_socket(data[upgrade.args[0] :])
                    return
                if self.parser.get_method() == b"CONNECT":  # asks for a tunnel, whatever its headers
                    self._refuse(Error("MALFORMED_REQUEST", "this is no proxy"))
                    return
                data = self._plain_head() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                # As uvicorn sets it: what follows a request that closes is ignored, not answered by 400.
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except httptools.HttpParserError as error:
                if isinstance(error.__context__, HeadTooLarge):
                    self._refuse(Error("HEAD_TOO_LARGE", f"over {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers"))
                else:
                    self._refuse(Error("MALFORMED_REQUEST", "this is no HTTP/1.1 request"))
                return
        # Most heads come as a whole, and need no timer.
        if self._is_in_head and self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def on_headers_complete(self) -> None:
        """A request's head is here."""
        if self._is_surplus and len(self.connections) > self._most:
            self._refuse(Unavailable("this gateway has as many connections as it takes"))
            return
        self._is_upgrade = self.parser.should_upgrade()
        if self._is_upgrade:
            return
        self._head_came()
        url = httptools.parse_url(self.url)
        version = self.parser.get_http_version()
        path = url.path.decode("ascii")
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": "http",
            "method": self.parser.get_method().decode("ascii"),
            "root_path": "",
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "headers": self.headers,
            "extensions": self._extensions,
        }
        self.scope = scope
        before, exchange = self.cycle, Exchange(self, keep_alive=version != "1.0" and self.parser.should_keep_alive())
        self.cycle = exchange
        if before is None or before.response_complete:
            self._start_asgi_task(exchange, self.app)
        else:  # requests that were sent on without waiting are answered one after the other
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._served = cycle
        self._task = task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_response_complete(self) -> None:
        """A request is answered: the next of those that are here, or the wait for one."""
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wait_for_more(self.timeout_keep_alive)

    def _wait_for_more(self, within_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(within_s, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Closes a connection that was idle for long. Set once and not for each request, as a timer costs too much."""
        self.timeout_keep_alive_task = None
        if self._is_in_head or not self.cycle.response_complete:
            return  # set again with the next answer
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._wait_for_more(left_s)
        else:
            super().timeout_keep_alive_handler()

    def on_message_complete(self) -> None:
        """A request's body is here."""
        if not self._is_upgrade:
            super().on_message_complete()

    def _become_socket(self, data: bytes) -> None:
        """Hands the connection over to the protocol of WebSockets."""
        self._head_came()
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        head = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
        head += [name + b": " + value for name, value in self.headers]
        socket: Any = BoundedSocket(self.config, self.server_state, self.app_state, self.loop)
        socket.connection_made(self.transport)
        self.transport.set_protocol(socket)
        socket.data_received(b"\r\n".join([*head, b"", b""]) + data)

    def _plain_head(self) -> bytes:
        """The head that has just been parsed, without its wish to upgrade."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection" and b"close" in value.lower():
                lines.append(b"connection: close")
            elif name not in (b"connection", b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _refuse(self, error: Error) -> None:
        """Answers what reaches no route, and closes."""
        request_id = own_or_new_id(None)
        answer = problems.answer(error, request_id)
        lines = [b"%b: %b\r\n" % header for header in answer.headers]
        end = b"x-request-id: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (
            request_id.encode(),
            len(answer.body),
        )
        self.transport.write(b"".join([STATUS_LINE[answer.status], *lines, SECURITY_LINES, end, answer.body]))
        self.transport.close()

    def _head_came(self) -> None:
        self._is_in_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:  # the answer to the request before is still under way
            self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def pause_writing(self) -> None:
        """Much of an answer waits for the client to take it."""
        super().pause_writing()
        self._wait_to_be_taken()

    def resume_writing(self) -> None:
        """The client took most of what was waiting."""
        self._taken()
        super().resume_writing()

    @property
    def more_body(self) -> bool:
        """Whether some of the body of the request that is being answered is still to come."""
        return self._served is None or self._served.more_body

    def break_off(self) -> None:
        """Closes the connection though the answer is not whole; what was sent before it may still get there."""
        if self._served is not None:
            self._served.flush()
        self.transport.close()
        self.loop.call_later(TAKE_S, self.transport.abort)

    def _wait_to_be_taken(self) -> None:
        self._untaken_bytes = self.transport.get_write_buffer_size()
        self._taking = self.loop.call_later(TAKE_S, self._cut_unless_taken)

    def _cut_unless_taken(self) -> None:
        if self.transport.get_write_buffer_size() < self._untaken_bytes:
            self._wait_to_be_taken()
        else:
            self._taking = None
            # Closing would wait for the client to take what is left.
            self.transport.abort()

    def _taken(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def on_url(self, url: bytes) -> None:
        """A piece of the request line."""
        self._head_bytes += len(url)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or trailer."""
        self._head_bytes += len(name) + len(value)
        self._head_count += 1
        if self._head_bytes > MAX_HEAD_BYTES or self._head_count > MAX_HEADERS:
            raise HeadTooLarge
        super().on_header(name, value)


class BoundedSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol.

    Who does not answer pings is cut off, whatever they have not taken; and so is who goes on to talk once it is closed.
    """

    _late_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self.close_sent:
            # uvicorn waits for the client to close, and until then reads all that it says.
            self._late_bytes += len(data)
            if self._late_bytes > MAX_LATE_BYTES:
                self.transport.abort()
                return
        super().data_received(data)

    def keepalive_timeout(self) -> None:
        """No pong came."""
        super().keepalive_timeout()
        # Closing would wait for the client to take what is left.
        self.transport.abort()


# It tells of every WebSocket that comes and goes.
logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


class Server(uvicorn.Server):
    """uvicorn's server; signals are the process's business (runtime/process.py)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Ends the process with one line and exit code 2 where it cannot."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        config.fail(f"{config.PREFIX}HTTP_PORT: cannot listen on {host}:{port}: {error.strerror}")
    listener.setblocking(False)
    return listener


def name(listener: socket.socket) -> str:
    """host:port where a socket listens."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(
    app: App,
    listener: socket.socket,
    stopping: asyncio.Event,
    drain: Callable[[], None] | None = None,
    *,
    max_connections: int = 24_000,
) -> None:
    """Serves until `stopping`; then accepts nothing more and gives requests under way 5 s to end.

    `drain` is called as soon as it is to end, for those that would go on for ever. Of `max_connections` there are fewer
    where the process may not open as many files.
    """
    protocol: Any = BoundedProtocol
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY:
        max_connections = min(max_connections, max(int((files - KEPT_FILES) / SPARE), 1))
    settings = uvicorn.Config(
        app,
        http=protocol,
        ws="none",  # BoundedProtocol sees to it
        ws_max_size=MAX_SAID_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=max_connections,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = Server(settings)

    async def stop() -> None:
        await stopping.wait()
        log.info("draining")
        if drain is not None:
            drain()
        server.should_exit = True

    stopper = asyncio.create_task(stop())
    log.info("serving", extra={"address": name(listener)})
    try:
        await server.serve(sockets=[listener])
    finally:
        stopper.cancel()
