"""`GET /live` and `GET /live/events`: a client's connection, by a WebSocket or Server-Sent Events.

What it is told comes from hub.py. A client with a socket may say which posts are on its screen.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import orjson

from feedmesh.timeline.v1 import timeline_pb2 as pb
from gateway import problems
from gateway.access import PROTOCOL, acting
from gateway.auth import Identity
from gateway.exchange import SECURITY, Receive, Request, Send, Sent, unless_gone
from gateway.hub import Hub, Subscriber, cancelled, token_of
from gateway.transcode import Transcoder
from runtime import context, errors

log = logging.getLogger(__name__)

SOCKET, PATH = "/live", "/live/events"
MEDIA_TYPE = b"text/event-stream"
SAID_A_SECOND, SAID_AT_ONCE = 10, 50
"""What a client may say, in the long run and of what it has not said before."""
RECONNECT_MS = (500, 5_000)
"""How long clients wait before they come back: each another time within these, so that not all come at once."""
UNAUTHORIZED = 3000
"""The close code of who may not stay, as IANA has it."""
MAX_REASON = 123
"""Bytes of why a socket is closed, as WebSockets have it."""
HEADERS = [
    (b"content-type", MEDIA_TYPE),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


LetIn = Callable[[Request, Sequence[str]], Awaitable[None]]
"""Takes also the subprotocols of the WebSocket that is asked for."""


class LiveSocket:
    """`GET /live?user_id=&token=`: a WebSocket, of which each message is an event. The client may say what is on its
    screen."""

    def __init__(self, hub: Hub, let_in: LetIn, counts: Callable[[Identity | None], bool]) -> None:
        """`let_in` raises why a request is not let in, `counts` says whether who was may stay."""
        self._hub = hub
        self._let_in = let_in
        self._counts = counts
        self._said = Transcoder(pb.LiveScreen.DESCRIPTOR, (), has_body=True)
        self._transcoder = Transcoder(pb.LiveRequest.DESCRIPTOR, (), has_body=False)

    async def __call__(self, request: Request, offered: Sequence[str], receive: Receive, send: Send) -> None:
        """One connection, until the client leaves, says what is not understood, may not stay, or this gateway ends.

        `offered` are the subprotocols that the client speaks.
        """
        await receive()  # what is connected
        context.request_id.set(request.id)
        try:
            await self._let_in(request, offered)
            asked: Any = self._transcoder({}, request.query, request.all_headers, b"", acting(request.identity))
            may_stay = partial(self._counts, request.identity)
            subscriber = self._hub.join(asked.user_id, token_of(asked.token), may_stay)
        except errors.Error as error:
            await refuse(send, error, request)
            return
        protocol = PROTOCOL if PROTOCOL in offered else None
        telling = asyncio.create_task(self._tell(subscriber, request, protocol, send))
        listening = asyncio.create_task(self._listen(subscriber, receive))
        try:
            await asyncio.wait((telling, listening), return_when=asyncio.FIRST_COMPLETED)
            if not telling.done() and (wrong := listening.result()):
                await cancelled(telling)
                await send({"type": "websocket.close", "code": 1008, "reason": wrong})
        finally:
            self._hub.leave(subscriber)
            await cancelled(telling, listening)
        if not telling.cancelled():
            telling.result()

    async def _listen(self, subscriber: Subscriber, receive: Receive) -> str:
        """Heeds what a client says until it leaves, or says what is not understood: then what is wrong with it."""
        left, then_s = float(SAID_AT_ONCE), time.monotonic()
        while (message := await receive())["type"] == "websocket.receive":
            now_s = time.monotonic()
            left, then_s = min(left + SAID_A_SECOND * (now_s - then_s), SAID_AT_ONCE) - 1, now_s
            if left < 0:
                return f"more than {SAID_A_SECOND} messages a second"
            said = message.get("text")
            if said is None:
                return "messages are text"
            try:
                screen: Any = self._said({}, b"", [], said.encode())
            except errors.Error as error:
                return error.message.encode()[:MAX_REASON].decode(errors="ignore")
            self._hub.put_on_screen(subscriber, screen.post_ids)
        return ""

    async def _tell(self, subscriber: Subscriber, request: Request, protocol: str | None, send: Send) -> None:
        async with aclosing(self._hub.events(subscriber)) as events:
            try:
                event = await self._hub.first(events)
            except errors.Error as error:
                await refuse(send, error, request)
                return
            await send({"type": "websocket.accept", "headers": request.answered_with, "subprotocol": protocol})
            code = 1011
            try:
                await send({"type": "websocket.send", "text": event.data.decode()})
                async for event in events:
                    await send({"type": "websocket.send", "text": event.data.decode()})
                if not subscriber.may_stay():
                    await send({"type": "websocket.close", "code": UNAUTHORIZED, "reason": "sign in again"})
                    return
                code = 1012
                after_ms = random.randint(*RECONNECT_MS)  # noqa: S311
                text = orjson.dumps({"type": "reconnect", "after_ms": after_ms}).decode()
                await send({"type": "websocket.send", "text": text})
            except errors.Error as error:
                # The client comes back with the last token that it has.
                log.debug("live updates break off: %s", error.message)
            await send({"type": "websocket.close", "code": code})


class LiveEvents:
    """`GET /live/events?user_id=`: a stream of Server-Sent Events."""

    def __init__(self, hub: Hub, counts: Callable[[Identity | None], bool]) -> None:
        """`counts` says whether who was let in may stay."""
        self._hub = hub
        self._counts = counts
        self._transcoder = Transcoder(pb.LiveEventsRequest.DESCRIPTOR, (), has_body=False)

    async def __call__(self, request: Request, send: Send) -> Sent:
        """Answers until the client leaves or this gateway ends. Raises what goes wrong before the first event."""
        asked: Any = self._transcoder({}, request.query, request.all_headers, b"", acting(request.identity))
        await request.body.skip()
        subscriber = self._hub.join(
            asked.user_id, token_of(asked.last_event_id), partial(self._counts, request.identity)
        )
        context.deadline.set(None)
        try:
            return await unless_gone(self._stream(subscriber, request, send), request.client)
        finally:
            self._hub.leave(subscriber)

    async def _stream(self, subscriber: Subscriber, request: Request, send: Send) -> Sent:
        async with aclosing(self._hub.events(subscriber)) as events:
            event = await self._hub.first(events)
            headers = [*HEADERS, *request.answered_with]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                if not request.is_head:
                    await self._send(send, b"retry: %d\n" % random.randint(*RECONNECT_MS) + event.sent())  # noqa: S311
                    async for event in events:
                        await self._send(send, event.sent())
            except errors.Error as error:
                # The client comes back with the last token that it has.
                log.debug("live updates break off: %s", error.message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        return Sent(200, whole=True)

    async def _send(self, send: Send, event: bytes) -> None:
        # Waits while the client takes nothing; for how long, the server bounds.
        await send({"type": "http.response.body", "body": event, "more_body": True})


async def refuse(send: Send, error: errors.Error, request: Request) -> None:
    """Answers a wish for a WebSocket as any request that is refused."""
    answer = problems.answer(error, request.id)
    headers = [*answer.headers, *SECURITY.items(), *request.answered_with]
    headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "websocket.http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": answer.body, "more_body": False})
