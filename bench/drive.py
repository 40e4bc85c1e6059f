"""Drives a loaded mesh for a while, as its people would use it, and checks every answer. Measures from the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, cycle
from random import Random
from time import perf_counter, process_time
from typing import Any

import orjson
from rich.console import Console
from yarl import URL

from bench import words
from bench.client import Client, Reply
from bench.community import Community
from bench.progress import phase

HOME, AUTHOR, POST = "GET /feed", "GET /users/{id}/posts", "POST /posts"
MIX = {HOME: 0.6, AUTHOR: 0.3, POST: 0.1}
LIMIT = 20
SCRIPT = 20_000
"""Operations thought out before the clock starts, then repeated: inventing them meanwhile would cost the client."""
SAMPLE = 20
"""One in so many posts is looked for in its author's next feed."""
OF_FOLLOWED = 0.9
"""The share of author pages that belong to somebody whom the viewer follows."""
ABSENT = "the post is missing"
TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class Operation:
    """One request, and what its answer is checked against."""

    kind: str
    url: URL
    user_id: int
    """Who reads or writes; of an author page the author."""
    body: bytes = b""
    content: str = ""


@dataclass
class Measured:
    """One kind of operation: how long each answered request took, in seconds, and how many went wrong."""

    requests: int = 0
    errors: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass
class Drive:
    """What a drive measured."""

    seconds: float
    by_kind: dict[str, Measured]
    cpu_seconds: float
    """What the client itself took."""


def script(
    client: Client, community: Community, user_ids: list[int], rng: Random, size: int = SCRIPT
) -> list[Operation]:
    """Operations in the proportions of MIX, more of them by people who are more active."""
    everybody = range(len(user_ids))
    activity = list(accumulate(community.activity))
    popularity = list(accumulate(1 + len(theirs) for theirs in community.friends))
    homes = [client.url(f"/feed?user_id={user_id}&limit={LIMIT}") for user_id in user_ids]
    kinds = rng.choices(list(MIX), list(MIX.values()), k=size)
    viewers = rng.choices(everybody, cum_weights=activity, k=size)

    def operation(kind: str, viewer: int) -> Operation:
        viewer_id = user_ids[viewer]
        if kind == HOME:
            return Operation(kind, homes[viewer], viewer_id)
        if kind == AUTHOR:
            followed = community.friends[viewer]
            author = rng.choice(followed) if followed and rng.random() < OF_FOLLOWED else -1
            if author < 0:
                [author] = rng.choices(everybody, cum_weights=popularity)
            author_id = user_ids[author]
            return Operation(kind, client.url(f"/users/{author_id}/posts?viewer_id={viewer_id}"), author_id)
        return new_post(client, viewer_id, rng)

    return [operation(kind, viewer) for kind, viewer in zip(kinds, viewers, strict=True)]


def new_post(client: Client, user_id: int, rng: Random) -> Operation:
    """Somebody's writing of something."""
    _, content, media_url = words.post(rng)
    body = orjson.dumps({"user_id": user_id, "content": content, "media_url": media_url})
    return Operation(POST, client.url("/posts"), user_id, body, content)


async def drive(
    client: Client, console: Console, operations: list[Operation], *, seconds: float, connections: int, run: str
) -> Drive:
    """A closed loop: each connection asks again as soon as it is answered. Answers under way at the end count."""
    measured = {kind: Measured() for kind in MIX}
    begun, cpu = perf_counter(), process_time()
    until = begun + seconds
    async with phase(console, "driving", seconds, "requests") as current:

        async def tick() -> None:
            while True:
                current.done = perf_counter() - begun
                current.count = sum(each.requests for each in measured.values())
                await asyncio.sleep(TICK_S)

        ticker = asyncio.create_task(tick())
        waiting = cycle(operations)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(connections):
                    group.create_task(_connection(client, waiting, measured, until, f"demo-{run}-{number}"))
        finally:
            ticker.cancel()
        current.count = sum(each.requests for each in measured.values())
        return Drive(perf_counter() - begun, measured, process_time() - cpu)


async def _connection(
    client: Client, waiting: Iterator[Operation], measured: dict[str, Measured], until: float, key: str
) -> None:
    asked = 0
    while (begun := perf_counter()) < until:
        operation = next(waiting)
        kind = operation.kind
        asked += 1
        if kind == POST:
            reply = await client.post(operation.url, operation.body, f"{key}-drive-{asked}")
        else:
            reply = await client.get(operation.url)
        took = perf_counter() - begun
        mine = measured[kind]
        mine.requests += 1
        if reply.status:
            mine.seconds.append(took)
        fault = CHECKS[kind](reply, operation)
        if fault is None and kind == POST and mine.requests % SAMPLE == 0:
            missed = await look(client, operation.user_id, reply.json()["post_id"])
            fault = missed and f"its author's next feed: {missed}"
        if fault is not None:
            mine.errors += 1
            client.failed(f"{kind}: {fault}")


def check_page(reply: Reply, limit: int = LIMIT) -> tuple[list[dict[str, Any]], str | None]:
    """The posts of a page, and what is wrong with it or None."""
    page = reply.json() if reply.status == 200 else None
    if not isinstance(page, dict):
        return [], reply.describe()
    posts, cursor = page.get("posts"), page.get("next_cursor", 0)
    if not isinstance(posts, list) or not (cursor is None or isinstance(cursor, str)):
        return [], "no page of posts"
    if len(posts) > limit:
        return [], f"{len(posts)} posts on a page of {limit}"
    try:
        ids = {post["post_id"] for post in posts}
        whole = all(type(post["user_id"]) is int and type(post["likes"]) is int and post["username"] for post in posts)
    except (KeyError, TypeError):
        return [], "a post without its fields"
    if len(ids) != len(posts) or not whole:
        return [], "a post twice on a page" if whole else "a post without its fields"
    return posts, None


def check_home(reply: Reply, _: Operation) -> str | None:
    """What is wrong with a home feed, or None."""
    return check_page(reply)[1]


def check_author(reply: Reply, operation: Operation) -> str | None:
    """What is wrong with an author's page, or None."""
    posts, fault = check_page(reply)
    if fault is None and any(post["user_id"] != operation.user_id for post in posts):
        return "a post of somebody else on an author's page"
    return fault


def check_post(reply: Reply, operation: Operation) -> str | None:
    """What is wrong with the answer to a new post, or None."""
    post = reply.json() if reply.status == 201 else None
    if not isinstance(post, dict):
        return reply.describe()
    if type(post.get("post_id")) is not int:
        return "a new post without its id"
    if post.get("user_id") != operation.user_id or post.get("content") != operation.content:
        return "another post than was written"
    return None


CHECKS: dict[str, Callable[[Reply, Operation], str | None]] = {HOME: check_home, AUTHOR: check_author, POST: check_post}


async def look(client: Client, user_id: int, post_id: int, limit: int = LIMIT) -> str | None:
    """Looks for a post in somebody's newest `limit`: ABSENT, another fault or None. Not counted as a request."""
    reply = await client.get(client.url(f"/feed?user_id={user_id}&order=latest&limit={limit}"))
    posts, fault = check_page(reply, limit)
    if fault is not None:
        return fault
    return None if any(post["post_id"] == post_id for post in posts) else ABSENT
