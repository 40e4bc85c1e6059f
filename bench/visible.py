"""How soon a post is seen: while the load runs, posts of its own, each looked for in the feed of a follower."""

from __future__ import annotations

import asyncio
from itertools import accumulate, count
from random import Random
from time import perf_counter

from bench.client import Client
from bench.community import Community
from bench.drive import ABSENT, CHECKS, POST, Measured, Operation, check_page, look, new_post

A_SECOND = 4.0
"""Probes begun a second; fewer when they take long, for only AT_ONCE are under way."""
AT_ONCE = 4
POLL_S = 0.01
"""Between an answer without the post and the next question."""
LATE_S = 10.0
"""A post that is not seen within this time counts as lost."""
LIMIT = 20
"""Posts on the page that is looked at, as people read it."""


async def probe(
    client: Client, community: Community, user_ids: list[int], rng: Random, *, seconds: float, run: str
) -> Measured:
    """Begins probes for so many seconds. Measures from the receipt of the 201 to that of the first feed with the post.

    So it is never less than one `GET /feed` takes. Who is more active writes and reads more, as in the load.
    """
    measured = Measured()
    until = perf_counter() + seconds
    authors = [person for person, followers in enumerate(community.friends) if followers]
    activity = list(accumulate(community.activity[person] for person in authors))

    async def prober(number: int) -> None:
        await asyncio.sleep(number / A_SECOND)
        for turn in count():
            begun = perf_counter()
            if begun >= until:
                return
            [author] = rng.choices(authors, cum_weights=activity)
            followers = community.friends[author]
            [follower] = rng.choices(followers, [community.activity[person] for person in followers])
            post = new_post(client, user_ids[author], rng)
            fault = await seen(client, post, user_ids[follower], f"demo-{run}-probe-{number}-{turn}", measured)
            measured.requests += 1
            if fault is not None:
                measured.errors += 1
                client.failed(f"from 201 to a follower's feed: {fault}")
            await asyncio.sleep(begun + AT_ONCE / A_SECOND - perf_counter())

    async with asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(prober(number))
    return measured


async def seen(client: Client, post: Operation, follower_id: int, key: str, measured: Measured) -> str | None:
    """One probe: what went wrong, or None and a value more."""
    # The follower becomes somebody who reads, if they are not yet: posts are pushed to those only.
    feed = client.url(f"/feed?user_id={follower_id}&order=latest&limit={LIMIT}")
    if fault := check_page(await client.get(feed), LIMIT)[1]:
        return f"the feed before: {fault}"
    reply = await client.post(post.url, post.body, key)
    acknowledged = perf_counter()
    if fault := CHECKS[POST](reply, post):
        return f"the post: {fault}"
    while (fault := await look(client, follower_id, reply.json()["post_id"], LIMIT)) == ABSENT:
        if perf_counter() > acknowledged + LATE_S:
            return f"not seen within {LATE_S:.0f} s"
        await asyncio.sleep(POLL_S)
    if fault is None:
        measured.seconds.append(perf_counter() - acknowledged)
    return fault
