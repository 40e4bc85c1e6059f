"""I2 on a whole mesh: scrolling to the end shows each post that was there exactly once, while others post."""

from __future__ import annotations

import asyncio
import itertools
import random
import time

import pytest

from tests.e2e.mesh import Mesh

AUTHORS = 12
POSTS = 700
"""More than three windows of 200."""


@pytest.mark.parametrize("order", ["ranked", "latest"])
async def test_scrolling_shows_each_post_once_while_others_post(mesh: Mesh, order: str) -> None:
    rng = random.Random(order)
    reader = await mesh.user(f"scroll.{order}.reader")
    authors = [await mesh.user(f"scroll.{order}.{n}") for n in range(AUTHORS)]
    for author in authors:
        await mesh.post("/follow", {"follower_id": reader, "following_id": author})
    written: list[int] = []

    async def write(count: int) -> None:
        for _ in range(count):
            author, dice = rng.choice(authors), rng.random()
            if dice < 0.1 and written:
                await mesh.post("/share", {"user_id": author, "post_id": rng.choice(written)}, 201)
            else:
                post = await mesh.post("/posts", {"user_id": author, "content": f"{dice}"}, 201)
                written.append(post["post_id"])
                if dice > 0.7:
                    await mesh.post("/like", {"user_id": reader, "post_id": post["post_id"]})

    await asyncio.gather(*(write(POSTS // 8) for _ in range(8)))
    eligible = set(written)
    await settled(mesh, reader, eligible)
    pages = itertools.cycle([7, 50, 1, 100, 20])
    going_on = asyncio.create_task(write(200))
    shown = [post["post_id"] for post in await mesh.scroll("/feed", pages, user_id=reader, order=order)]
    await going_on

    assert len(shown) == len(set(shown)), "a post was shown twice"
    assert eligible <= set(shown), "a post was not shown"
    if order == "ranked":
        await settled(mesh, reader, set(written))
        quiet = [post["post_id"] for post in await mesh.scroll("/feed", itertools.cycle([100]), user_id=reader)]
        assert set(quiet) == set(written)
        assert quiet != sorted(quiet, reverse=True), "ranked is not merely newest first"


async def settled(mesh: Mesh, reader: int, written: set[int]) -> None:
    """Waits until others' posts have come to the reader: that may take a moment."""
    end = time.monotonic() + 10
    while True:
        posts = await mesh.scroll("/feed", itertools.cycle([100]), user_id=reader, order="latest")
        if written <= {post["post_id"] for post in posts}:
            return
        assert time.monotonic() < end, "a post never came"


async def test_a_deleted_post_is_gone_from_the_next_page_and_the_page_is_filled(mesh: Mesh) -> None:
    reader = await mesh.user("deleted.reader")
    posts = [(await mesh.post("/posts", {"user_id": reader, "content": f"{n}"}, 201))["post_id"] for n in range(12)]
    first = await mesh.get("/feed", user_id=reader, order="latest", limit=4)
    for post_id in posts[3:7]:
        await mesh.http.delete(f"/posts/{post_id}", params={"user_id": reader})
    second = await mesh.get("/feed", user_id=reader, order="latest", limit=4, cursor=first["next_cursor"])
    assert [post["post_id"] for post in first["posts"]] == posts[:7:-1]
    assert [post["post_id"] for post in second["posts"]] == [posts[7], *posts[2::-1]]
