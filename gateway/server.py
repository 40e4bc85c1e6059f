"""The HTTP server under the app: uvicorn, ended by the process's own event, with bounds that uvicorn has not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.app import BREAK_OFF, App
from runtime import config

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

MAX_HELD_BYTES = 64 * 2**10
"""Of an answer, written in one turn of the event loop, before they are sent."""


class HeadTooLarge(Exception):
    """Ends the parsing of a request; uvicorn answers 400 and closes."""


class Corked:
    """A transport that sends what is written in one turn of the event loop together.

    uvicorn writes head and body of an answer one after the other: that would be two system calls.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._held_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Holds data until the end of this turn, unless it is much."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > MAX_HELD_BYTES:
            self._send()

    def close(self) -> None:
        """Sends what is held, and closes once it has gone out."""
        self._send()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        """What waits to be taken, in bytes."""
        return self._held_bytes + self._transport.get_write_buffer_size()

    def _send(self) -> None:
        data, self._held, self._held_bytes = b"".join(self._held), [], 0
        # The client may have left since, or the connection been cut.
        if data and not self._transport.is_closing():
            self._transport.write(data)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with bounds on both ends of a request.

    On its head: its bytes, and how long it may take to arrive; and on how long the client may leave the answer lying.
    """

    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _untaken_bytes = 0
    _taking: asyncio.TimerHandle | None = None
    _is_upgrade = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected: its first request must come."""
        corked: Any = Corked(transport, self.loop)
        super().connection_made(corked)
        self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._head_came()
        self._taken()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request begins. Between requests uvicorn's own keep-alive timer runs."""
        self._head_bytes = 0
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self._give_up)
        super().on_message_begin()
        self.scope["extensions"] = {BREAK_OFF: {"close": self.break_off}}

    def data_received(self, data: bytes) -> None:
        """Bytes from the client.

        A request to upgrade is declined by reading it as if it had not asked. httptools takes all that follows such a
        head for the other protocol, so that the body would be lost; Java's client asks for h2c by default.
        """
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":  # asks for a tunnel, whatever its headers
                    self.send_400_response("This is no proxy.")
                    return
                data = self._plain_head() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                # As uvicorn sets it: what follows a request that closes is ignored, not answered by 400.
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return

    def on_headers_complete(self) -> None:
        """A request's head is here."""
        self._is_upgrade = self.parser.should_upgrade()
        if not self._is_upgrade:
            self._head_came()
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request's body is here."""
        if not self._is_upgrade:
            super().on_message_complete()

    def _plain_head(self) -> bytes:
        """The head that has just been parsed, without its wish to upgrade."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection" and b"close" in value.lower():
                lines.append(b"connection: close")
            elif name not in (b"connection", b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _head_came(self) -> None:
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

    def break_off(self) -> None:
        """Closes the connection though the answer is not whole; what was sent before it may still get there."""
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
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or trailer."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge


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


async def serve(app: App, listener: socket.socket, stopping: asyncio.Event) -> None:
    """Serves until `stopping`; then accepts nothing more and gives requests under way 5 s to end."""
    protocol: Any = BoundedProtocol
    settings = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = Server(settings)

    async def stop() -> None:
        await stopping.wait()
        log.info("draining")
        server.should_exit = True

    stopper = asyncio.create_task(stop())
    log.info("serving", extra={"address": name(listener)})
    try:
        await server.serve(sockets=[listener])
    finally:
        stopper.cancel()
