"""The floor: what this machine can do at best in Python. `python -m bench.floor PORT VALKEY_SOCKET`.

One process behind the gateway's own HTTP server: no mesh, no ranking, no filters, no validation, and answers that were
written as JSON beforehand. Of concurrent requests it reads the lists (200 members each) in one round trip, takes the
newest 20 of each, and fetches these posts in another.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import numpy as np
import uvloop

from bench.population import Population
from gateway import server
from runtime import members

WINDOW, PAGE = 200, 20
BATCH = 256
"""Requests of one round trip, at the most."""
HOME, POST = b"home:", b"post:"
MEMBER = members.MEMBER_BYTES
CURSOR = b'],"next_cursor":"' + 180 * b"x" + b'"}'
"""As long as the mesh's."""
Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Valkey(asyncio.Protocol):
    """A connection that sends commands and takes strings for answers: just what the floor needs of the protocol.

    A client library's own share would be the greater part of the whole.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._waiting: deque[tuple[int, list[bytes], asyncio.Future[list[bytes]]]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, commands: bytes, strings: int) -> asyncio.Future[list[bytes]]:
        """Sends commands that are answered with so many strings in all; the heads of arrays are passed over."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((strings, [], future))
        self._transport.write(commands)
        return future

    def data_received(self, data: bytes) -> None:
        """Pieces of answers."""
        self._buffer += data
        buffer, at, end = bytes(self._buffer), 0, len(self._buffer)
        while self._waiting:
            wanted, found, future = self._waiting[0]
            while len(found) < wanted:
                line = buffer.find(b"\r\n", at)
                if line < 0:
                    break
                kind = buffer[at]
                if kind == 0x2A:  # *n, an array's head
                    at = line + 2
                    continue
                if kind != 0x24:  # $n, a string
                    raise ValueError(buffer[at:line].decode())
                size = int(buffer[at + 1 : line])
                if size < 0:
                    raise ValueError("a string is not there")
                if line + 4 + size > end:
                    break
                found.append(buffer[line + 2 : line + 2 + size])
                at = line + 4 + size
            if len(found) < wanted:
                break
            self._waiting.popleft()
            future.set_result(found)
        del self._buffer[:at]


class Floor:
    """The ASGI app."""

    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey
        self._pending: list[tuple[bytes, asyncio.Future[bytes]]] = []
        self._working = False

    async def __call__(self, scope: Scope, _: object, send: Send) -> None:
        """Answers GET /feed?user_id=N."""
        found = re.search(rb"user_id=(\d+)", scope["query_string"])
        assert found is not None
        body = await self._page(found[1])
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _page(self, user_id: bytes) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pending.append((user_id, future))
        if not self._working:
            self._working = True
            self._task = asyncio.create_task(self._work())
        return future

    async def _work(self) -> None:
        while self._pending:
            batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
            keys = [HOME + user_id for user_id, _ in batch]
            lists = await self._valkey.ask(
                b"".join(
                    b"*4\r\n$8\r\nGETRANGE\r\n$%d\r\n%b\r\n$5\r\n-4200\r\n$2\r\n-1\r\n" % (len(key), key)
                    for key in keys
                ),
                len(keys),
            )
            newest = [key for each in lists for key in newest_of(each)]
            posts = await self._valkey.ask(
                b"*%d\r\n$4\r\nMGET\r\n" % (1 + len(newest))
                + b"".join([b"$12\r\npost:%b\r\n" % post_id for post_id in newest]),
                len(newest),
            )
            at = 0
            for (_, future), held in zip(batch, lists, strict=True):
                count = min(PAGE, len(held) // MEMBER)
                if not future.done():
                    future.set_result(b'{"posts":[' + b",".join(posts[at : at + count]) + CURSOR)
                at += count
        self._working = False


def newest_of(packed: bytes) -> list[bytes]:
    """The 20 highest post ids of packed members, highest first, as they are packed."""
    rows = np.frombuffer(packed, dtype=np.uint8).reshape(-1, MEMBER)
    wide = np.zeros((len(rows), 8), dtype=np.uint8)
    wide[:, 1:] = rows[:, :7]
    post_ids = wide.view(">i8").reshape(-1).astype(np.int64)
    order = np.argsort(post_ids)[: -PAGE - 1 : -1].tolist()
    return [packed[at * MEMBER : at * MEMBER + 7] for at in order]


def commands(people: Population, viewers: Sequence[int]) -> list[tuple[bytes, ...]]:
    """What fills the floor's Valkey: the lists of these people, and every post in them."""
    made: list[tuple[bytes, ...]] = []
    needed = np.zeros(len(people.authors), dtype=bool)
    for person in viewers:
        posts = people.newest(person, WINDOW)
        originals = people.original[posts]
        rows = np.stack(
            [people.post_ids[posts], people.user_ids[people.authors[posts]], people.post_ids[originals]], axis=1
        )
        needed[posts] = True
        made.append((b"SET", HOME + str(people.user_ids[person]).encode(), members.pack(rows)))
    for post in np.flatnonzero(needed).tolist():
        key = POST + int(people.post_ids[post]).to_bytes(7, "big")
        made.append((b"SET", key, people.posts_json[people.original[post]]))
    return made


async def _serve(port: int, socket: str) -> None:
    loop = asyncio.get_running_loop()
    _, valkey = await loop.create_unix_connection(Valkey, socket)
    listener = server.listen("127.0.0.1", port)
    await server.serve(cast("Any", Floor(valkey)), listener, asyncio.Event())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.floor")
    parser.add_argument("port", type=int)
    parser.add_argument("socket")
    chosen = parser.parse_args()
    uvloop.run(_serve(chosen.port, chosen.socket))
