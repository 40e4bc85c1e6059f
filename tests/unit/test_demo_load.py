"""Loading against a gateway in memory: everything arrives once, and a count that is wrong is noticed."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from bench import community, load
from bench.client import Client, connect


class Gateway:
    """As much of a gateway as loading needs. `lost` likes are acknowledged and forgotten."""

    def __init__(self, lost: int = 0, taken: frozenset[str] = frozenset()) -> None:
        self.lost, self.taken = lost, taken
        self.names: list[str] = []
        self.edges: set[tuple[int, int]] = set()
        self.posts: list[dict[str, object]] = []
        self.counts: dict[str, Counter[int]] = {"likes": Counter(), "comments": Counter(), "shares": Counter()}
        self.app = web.Application()
        self.app.add_routes(
            [
                web.post("/users", self.user),
                web.post("/follow", self.follow),
                web.post("/posts", self.post),
                web.post("/{act:like|comments|share}", self.act),
                web.get("/users/{user_id}", self.profile),
                web.get("/users/{user_id}/posts", self.page),
            ]
        )

    async def user(self, request: web.Request) -> web.Response:
        name = (await request.json())["username"]
        if name in self.taken:
            return web.json_response({"code": "username_taken"}, status=409)
        self.names.append(name)
        return web.json_response({"user_id": len(self.names)}, status=201)

    async def follow(self, request: web.Request) -> web.Response:
        edge = await request.json()
        self.edges.add((edge["follower_id"], edge["following_id"]))
        return web.json_response({"status": "following"})

    async def post(self, request: web.Request) -> web.Response:
        self.posts.append(await request.json() | {"post_id": len(self.posts) + 1, "shared_post": None})
        return web.json_response(self.posts[-1], status=201)

    async def act(self, request: web.Request) -> web.Response:
        act, value = request.match_info["act"], await request.json()
        kind = {"like": "likes", "share": "shares"}.get(act, act)
        if kind == "likes" and self.lost:
            self.lost -= 1
            return web.json_response({"liked": True})
        self.counts[kind][value["post_id"]] += 1
        if kind == "shares":
            original = self.posts[value["post_id"] - 1]
            self.posts.append(value | {"post_id": len(self.posts) + 1, "shared_post": original})
        return web.json_response({}, status=200 if kind == "likes" else 201)

    async def profile(self, request: web.Request) -> web.Response:
        user_id = int(request.match_info["user_id"])
        followers = sum(followee == user_id for _, followee in self.edges)
        following = sum(follower == user_id for follower, _ in self.edges)
        return web.json_response({"followers": followers, "following": following})

    async def page(self, request: web.Request) -> web.Response:
        user_id, begin = int(request.match_info["user_id"]), int(request.query.get("cursor", "0"))
        posts = [self.shown(post) for post in self.posts if post["user_id"] == user_id]
        end = begin + 2  # short pages are allowed: the loader must follow the cursor
        return web.json_response({"posts": posts[begin:end], "next_cursor": str(end) if end < len(posts) else None})

    def shown(self, post: dict[str, object]) -> dict[str, object]:
        counted = post["shared_post"] if post["shared_post"] and not post["content"] else post
        assert isinstance(counted, dict)
        original = post["shared_post"]
        counts = {kind: count[counted["post_id"]] for kind, count in self.counts.items()}
        return post | counts | {"shared_post": self.shown(original) if isinstance(original, dict) else None}


async def loaded(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(load, "COUNTS_S", 0.0)
    for name, size in (("POSTS", 40), ("LIKES", 100), ("COMMENTS", 30), ("SHARES", 20)):
        monkeypatch.setattr(community, name, size)
    plan = community.build([(one, other) for other in range(12) for one in range(other)], Random(1))
    async with TestServer(gateway.app) as server, connect(str(server.make_url("")).rstrip("/"), 4) as client:
        await load.Loader(client, Console(quiet=True), plan, 4, "run1").load()
    return client


async def test_everything_arrives_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    client = await loaded(gateway, monkeypatch)
    assert not client.errors
    assert (len(gateway.names), len(gateway.edges), len(gateway.posts)) == (12, 132, 60)
    assert {kind: count.total() for kind, count in gateway.counts.items()} == {
        "likes": 100,
        "comments": 30,
        "shares": 20,
    }


async def test_a_lost_like_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    client = await loaded(Gateway(lost=1), monkeypatch)
    assert client.errors
    assert all("likes, not" in what for what in client.errors)


async def test_names_that_are_taken_get_the_runs_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Gateway()
    await loaded(first, monkeypatch)
    second = Gateway(taken=frozenset(first.names))
    await loaded(second, monkeypatch)
    assert sorted(second.names) == sorted(f"{name}.run1" for name in first.names)


async def test_one_name_that_is_taken_changes_only_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Gateway()
    await loaded(first, monkeypatch)
    taken = first.names[-1]
    second = Gateway(taken=frozenset({taken}))
    await loaded(second, monkeypatch)
    assert set(second.names) ^ set(first.names) == {taken, f"{taken}.run1"}
