"""Clients of a cluster, who try idempotent calls again, and what they do while it is rolled."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.cluster import Cluster

PASSWORD = "correct horse battery staple"
PATIENCE_S = 30.0
READERS, WRITERS = 8, 4
PEOPLE = itertools.count(1)


@dataclass
class Client:
    """A client that tries idempotent calls again: on 503, and where a connection breaks."""

    cluster: Cluster
    stack: AsyncExitStack
    http: httpx.AsyncClient
    headers: dict[str, str] = field(default_factory=dict)
    again: int = 0
    """Tries that failed and were made again."""

    async def ask(self, method: str, path: str, **more: Any) -> Any:
        """The answer to a request that must succeed in the end."""
        headers = self.headers | {"Idempotency-Key": str(uuid.uuid4())} | more.pop("headers", {})
        end = time.monotonic() + PATIENCE_S
        while True:
            said = "no gateway is ready"
            if addresses := self.cluster.addresses("gateway"):
                try:
                    # As a balancer does: any that is ready, a connection each time, so that all are asked.
                    url = f"http://{random.choice(addresses)}:8080{path}"
                    answer = await self.http.request(method, url, headers=headers, **more)
                    if answer.status_code < 400:
                        return answer.json()
                    said = f"{answer.status_code} {answer.text}"
                    assert answer.status_code in (409, 503), said
                except httpx.TransportError as error:
                    said = repr(error)
            assert time.monotonic() < end, f"{method} {path}: {said}"
            self.again += 1
            await asyncio.sleep(0.05)

    async def signed_up(self, name: str) -> tuple[int, Client]:
        """A new person, and a client of theirs, at an address of their own: limits count by that, too."""
        self = Client(self.cluster, self.stack, await self.stack.enter_async_context(connections()))
        body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
        user_id = (await self.ask("POST", "/users", json=body))["user_id"]
        session = await self.ask("POST", "/sessions", json={"username": name, "password": PASSWORD})
        headers = {"authorization": f"Bearer {session['access_token']}"}
        return user_id, Client(self.cluster, self.stack, self.http, headers)

    async def shows(self, wanted: set[int]) -> None:
        """Waits until the feed is these posts, each once."""
        end = time.monotonic() + PATIENCE_S
        while True:
            shown: list[int] = []
            query: dict[str, Any] = {"limit": 100, "order": "latest"}
            while True:
                page = await self.ask("GET", "/feed", params=query)
                shown += [post["post_id"] for post in page["posts"]]
                if page["next_cursor"] is None:
                    break
                query["cursor"] = page["next_cursor"]
            assert len(shown) == len(set(shown))
            if set(shown) == wanted:
                return
            assert time.monotonic() < end, (len(shown), len(wanted))
            await asyncio.sleep(0.1)


def connections() -> httpx.AsyncClient:
    """Of one client: a connection each time, so that a balancer would choose each time."""
    number = next(PEOPLE)
    transport = httpx.AsyncHTTPTransport(
        local_address=f"127.90.{number >> 8}.{number & 255}", limits=httpx.Limits(max_keepalive_connections=0)
    )
    return httpx.AsyncClient(timeout=20, transport=transport)


@asynccontextmanager
async def client_of(made: Cluster) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        yield Client(made, stack, await stack.enter_async_context(connections()))


async def goes_round(made: Cluster, mark: str) -> None:
    """People sign up, follow, post, like and comment, and see it."""
    async with client_of(made) as anybody:
        _, as_ada = await anybody.signed_up(f"ada{mark}")
        grace, as_grace = await anybody.signed_up(f"grace{mark}")
        await as_ada.ask("POST", "/follow", json={"following_id": grace})
        await as_ada.shows(set())
        post = await as_grace.ask("POST", "/posts", json={"content": f"hello @ada{mark}"})
        await as_ada.shows({post["post_id"]})
        await as_ada.ask("POST", "/like", json={"post_id": post["post_id"]})
        await as_ada.ask("POST", "/comments", json={"post_id": post["post_id"], "content": "hello"})
        [shown] = (await as_ada.ask("GET", "/feed"))["posts"]
        assert (shown["likes"], shown["comments"], shown["liked"]) == (1, 1, True)
        end = time.monotonic() + PATIENCE_S
        while len(told := (await as_grace.ask("GET", "/notifications"))["notifications"]) < 3:
            assert time.monotonic() < end, told
            await asyncio.sleep(0.1)
        assert {each["kind"] for each in told} == {"followed", "liked", "commented"}


@dataclass
class Load:
    """What clients do meanwhile, and what came of it."""

    readers: list[Client]
    writers: list[Client]
    posted: set[int] = field(default_factory=set)
    reads: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, reader: Client) -> None:
        """Reads a feed again and again, as fast as limits allow."""
        while not self.stopping.is_set():
            await reader.ask("GET", "/feed", params={"limit": 20})
            self.reads += 1
            await asyncio.sleep(0.1)

    async def write(self, writer: Client) -> None:
        """Posts again and again, likewise."""
        for number in itertools.count():
            if self.stopping.is_set():
                return
            post = await writer.ask("POST", "/posts", json={"content": f"post {number}"})
            self.posted.add(post["post_id"])
            await asyncio.sleep(1)

    @property
    def again(self) -> int:
        """Tries that were made again."""
        return sum(client.again for client in (*self.readers, *self.writers))


@asynccontextmanager
async def loaded(made: Cluster, mark: str) -> AsyncIterator[Load]:
    """Clients that read and write for the block. None of their requests may fail, nor any post be lost."""
    async with client_of(made) as anybody:
        people = [await anybody.signed_up(f"{mark}{number}") for number in range(READERS + WRITERS)]
        readers, writers = people[:READERS], people[READERS:]
        for _, reader in readers:
            for author, _ in writers:
                await reader.ask("POST", "/follow", json={"following_id": author})
        load = Load([client for _, client in readers], [client for _, client in writers])
        async with asyncio.TaskGroup() as group:
            for client in load.readers:
                group.create_task(load.read(client))
            for client in load.writers:
                group.create_task(load.write(client))
            try:
                yield load
            finally:
                load.stopping.set()
        for client in load.readers:
            await client.shows(load.posted)
