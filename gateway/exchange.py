"""One HTTP exchange over ASGI: a body read within bounds, an answer that the client gets to read. Knows no route."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from gateway.auth import Identity
from runtime.errors import Error

Headers = Sequence[tuple[bytes, bytes]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 2**20
MAX_DRAINED_BYTES = 64 * 2**20
"""How much of a body that nobody wants is read, so that the client reads its answer rather than a reset."""
DRAIN_S = 5.0
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
SECURITY = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
"""Headers of every answer that does not set them itself; gateway/server.py adds them."""
CLIENT = "feedmesh.client"
"""The ASGI extension by which gateway/server.py hands a `Client` over: {"client": the client}."""

T = TypeVar("T")


class Client(Protocol):
    """What the server knows of the one who sent a request, and ASGI has no word for."""

    disconnected: bool
    """Whether they have left."""
    ends_request: bool
    """Whether the task that answers the request is cancelled when they leave."""

    @property
    def more_body(self) -> bool:
        """Whether some of the body of the request that is being answered is still to come."""

    def break_off(self) -> None:
        """Closes the connection in the middle of an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body and headers. Content-Length and what the connection needs are added when it is sent."""

    status: int
    body: bytes = b""
    headers: Headers = ()
    is_fixed: bool = False
    """Whether the body is always the same, so that what is made of it may be kept."""


@dataclass(frozen=True, slots=True)
class Sent:
    """An answer that has been sent already, as far as it went."""

    status: int
    """What it counts as: where it is not whole, the status of what broke it off."""
    whole: bool


@dataclass(slots=True)
class Request:
    """A request's head, and its body to come. Of a repeated header, `headers` holds the last."""

    id: str
    method: str
    raw_path: bytes
    query: bytes
    headers: dict[bytes, bytes]
    all_headers: list[tuple[bytes, bytes]]
    body: Body
    receive: Receive
    client: Client | None
    """None where the server is not gateway/server.py."""
    answered_with: list[tuple[bytes, bytes]]
    """Headers of every answer to it."""
    address: str
    """The client's (gateway/addresses.py)."""
    identity: Identity | None = None
    """Who asks; None where whoever is named is believed."""

    @property
    def is_head(self) -> bool:
        """Whether the answer is that of GET without its body."""
        return self.method == "HEAD"


class ClientGone(Exception):
    """The client has closed the connection."""


class Body:
    """A request's body as it arrives. `done` when nothing of it is still to come."""

    def __init__(self, receive: Receive, headers: dict[bytes, bytes], client: Client | None) -> None:
        self._receive = receive
        self._client = client
        self._expects_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        self._length = int(headers[b"content-length"]) if b"content-length" in headers else None
        self._seen = 0
        self._late = False
        self.done = b"transfer-encoding" not in headers and not self._length
        self._until = 0.0 if self.done else asyncio.get_running_loop().time() + DRAIN_S

    @property
    def length(self) -> int | None:
        """Its bytes, where the client says."""
        return self._length

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """It piece by piece, for who bounds its bytes and its time. Raises ClientGone."""
        try:
            while not self.done:
                yield await self._next()
        finally:
            # What is not wanted of it is drained as of a request that has just come.
            self._seen, self._late = 0, True
            self._until = asyncio.get_running_loop().time() + DRAIN_S

    @property
    def cheap(self) -> bool:
        """Whether it may be read to its end before answering: it is small, and most likely here already."""
        waited_for = self._expects_continue or self._late
        return not waited_for and self._length is not None and self._length <= MAX_BODY_BYTES

    async def read(self, timeout_s: float) -> bytes:
        """All of it, within `timeout_s`. Raises Error (BODY_TOO_LARGE above 1 MiB) or ClientGone."""
        if self._length is not None and self._length > MAX_BODY_BYTES:
            raise too_large(MAX_BODY_BYTES)
        if self._client is not None and not self._client.more_body:
            return await self._all()  # without a wait that would need a bound
        try:
            async with asyncio.timeout(timeout_s):
                return await self._all()
        except TimeoutError:
            self._late = True
            raise too_late() from None

    async def _all(self) -> bytes:
        content = bytearray()
        while not self.done:
            content += await self._next()
            if self._seen > MAX_BODY_BYTES:
                raise too_large(MAX_BODY_BYTES)
        return bytes(content)

    async def skip(self) -> None:
        """Reads and forgets a body that nobody asked for. Raises Error (BODY_TOO_LARGE above 64 MiB)."""
        if self._length is not None and self._length > MAX_DRAINED_BYTES:
            raise too_large(MAX_DRAINED_BYTES)
        if not self.done and not await self.drain():
            self._late = True
            raise too_large(MAX_DRAINED_BYTES) if self._seen > MAX_DRAINED_BYTES else too_late()

    async def drain(self) -> bool:
        """Reads and forgets the rest, up to 64 MiB or 5 s into the request. Returns whether it came to its end."""
        try:
            async with asyncio.timeout_at(self._until):
                while not self.done and self._seen <= MAX_DRAINED_BYTES:
                    await self._next()
        except (TimeoutError, ClientGone):
            pass
        return self.done

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        self._seen += len(chunk)
        self.done = not message.get("more_body", False)
        return chunk


def too_large(bound: int) -> Error:
    """The error for a body over its bound, in bytes."""
    return Error("BODY_TOO_LARGE", f"the body is over {bound} bytes")


def too_late() -> Error:
    """The error for a body that does not come."""
    return Error("REQUEST_TIMEOUT", "the body did not arrive in time")


async def respond(send: Send, answer: Answer, request: Request) -> None:
    """Sends the answer and sees to what is left of the request's body.

    HEAD gets the answer without its body, whose length is stated. A body still to come is drained first where that is
    cheap. Otherwise the answer goes out at once (a client may be waiting for it before it sends on) and the connection
    closes once the rest has been drained: closing with bytes unread would reset it, and the client would never see the
    answer.
    """
    body = request.body
    if not body.done and body.cheap:
        await body.drain()
    headers = [*answer.headers, *request.answered_with]
    if answer.status not in (204, 304):
        headers.append((b"content-length", b"%d" % len(answer.body)))
    if not body.done:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    content = b"" if request.is_head else answer.body
    if not body.done:
        await send({"type": "http.response.body", "body": content, "more_body": True})
        await body.drain()
        content = b""
    await send({"type": "http.response.body", "body": content, "more_body": False})


async def break_off(request: Request) -> None:
    """Ends an answer that cannot be whole, so that the client knows: the connection closes without the last chunk.

    Returns when it has closed. The server bounds how long what was sent before may take to get there.
    """
    if request.client is not None:
        request.client.break_off()
        await disconnected(request.receive)


async def unless_gone(call: Awaitable[T], client: Client | None) -> T:
    """The call's result. Cancels it and raises ClientGone when the client leaves first."""
    if client is None:
        return await call
    client.ends_request = True
    if client.disconnected:
        own_task().cancel()
    try:
        return await call
    except asyncio.CancelledError:
        if not client.disconnected:
            raise
        own_task().uncancel()
        raise ClientGone from None
    finally:
        client.ends_request = False


def own_task() -> asyncio.Task[Any]:
    """The task that runs this."""
    task = asyncio.current_task()
    assert task is not None  # a coroutine always runs in one
    return task


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def own_or_new_id(given: bytes | None) -> str:
    """The client's request id when it is 1 to 128 of A-Z, a-z, 0-9, ".", "_" and "-"; else a new one."""
    return given.decode() if given is not None and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
