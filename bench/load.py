"""Loads a planned community through the HTTP API, and checks that what was acknowledged is what the mesh counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

from rich.console import Console
from yarl import URL

from bench.client import Client, DemoError, Failed
from bench.community import Community, Post, Reaction
from bench.progress import phase

T = TypeVar("T")
Work = Callable[[T], Awaitable[None]]

PAGE = 100
CHECKED = 240
"""About how many people's counts and posts are compared with what was acknowledged."""
COUNTS_S = 10.0
"""How long counts may take to agree: they are eventual, though meant to be within a second."""


@dataclass
class Loaded:
    """What the mesh acknowledged. Keys are indexes into the plan."""

    user_ids: list[int] = field(default_factory=list)
    post_ids: dict[int, int] = field(default_factory=dict)
    written: Counter[int] = field(default_factory=Counter)
    """By user id: posts and shares."""
    followers: Counter[int] = field(default_factory=Counter)
    following: Counter[int] = field(default_factory=Counter)
    likes: Counter[int] = field(default_factory=Counter)
    """By post id, as comments and shares."""
    comments: Counter[int] = field(default_factory=Counter)
    shares: Counter[int] = field(default_factory=Counter)


class Loader:
    """One load. `run` is a short word of its own: it keeps keys, and names that are taken, apart from other runs'."""

    def __init__(self, client: Client, console: Console, community: Community, connections: int, run: str) -> None:
        self._client, self._console, self._community = client, console, community
        self._connections, self._run = connections, run
        self._keys = 0
        self._loaded = Loaded()
        self._follow, self._like = client.url("/follow"), client.url("/like")
        self._posts, self._comments, self._shares = (client.url(path) for path in ("/posts", "/comments", "/share"))

    async def load(self) -> Loaded:
        """Everything, phase by phase. Failures are counted by the client; raises DemoError when people fail."""
        plan, loaded = self._community, self._loaded
        await self._people()
        await self._phase("follows", "follows", plan.follows, self._one_follow)
        await self._phase("posts", "posts", list(enumerate(plan.posts)), self._one_post)
        await self._phase("likes", "likes", self._possible(plan.likes), self._one_like)
        await self._phase("comments", "comments", self._possible(plan.comments), self._one_comment)
        await self._phase("shares", "shares", self._possible(plan.shares), self._one_share)
        every = max(1, len(loaded.user_ids) // CHECKED)
        await self._phase("checks", "people and all their posts", loaded.user_ids[::every], self._check)
        return loaded

    async def _phase(self, name: str, unit: str, items: Sequence[T], work: Work[T]) -> None:
        async with phase(self._console, name, max(len(items), 1), unit) as current:
            waiting = iter(items)

            async def worker() -> None:
                for item in waiting:
                    try:
                        await work(item)
                    except Failed as failed:
                        self._client.failed(f"loading {name}: {failed}")
                    except (KeyError, TypeError) as unexpected:
                        self._client.failed(f"loading {name}: an answer of another shape: {unexpected!r}")
                    current.done += 1
                    current.count += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(self._connections):
                    group.create_task(worker())

    def _possible(self, reactions: list[Reaction]) -> list[Reaction]:
        """Those to posts that exist: a post that failed has been counted already."""
        return [reaction for reaction in reactions if reaction.post in self._loaded.post_ids]

    async def _write(self, url: URL, value: dict[str, Any]) -> dict[str, Any]:
        self._keys += 1
        return await self._client.write(url, value, f"demo-{self._run}-{self._keys}")

    async def _people(self) -> None:
        """Everybody gets their plain name if the first one does; a later run's people have a suffix."""
        users, names = self._client.url("/users"), self._community.usernames
        ids: dict[int, int] = {}
        first_choice = ""

        async def one(person: int) -> None:
            nonlocal first_choice
            if person in ids:
                return
            for suffix in dict.fromkeys((first_choice, f".{self._run}")):
                username = names[person] + suffix
                try:
                    user = await self._write(users, {"username": username, "email": f"{username}@reed.example"})
                    ids[person] = user["user_id"]
                    if person == 0:
                        first_choice = suffix
                    return
                except Failed as failed:
                    if failed.reply.code not in ("username_taken", "email_taken"):
                        raise DemoError(f"{username} could not be created: {failed}") from None
            raise DemoError(f"{names[person]} and {names[person]}.{self._run} are both taken; run again")

        await one(0)
        await self._phase("people", "people", range(len(names)), one)
        if len(ids) < len(names):
            raise DemoError("the answers to POST /users are none of feedmesh's")
        if first_choice:
            example = names[0] + first_choice
            self._console.print(
                f"the names of an earlier run are taken: this run's people are called {example} and so on"
            )
        self._loaded.user_ids = [ids[person] for person in range(len(names))]

    async def _one_follow(self, edge: tuple[int, int]) -> None:
        follower, followee = (self._loaded.user_ids[person] for person in edge)
        await self._write(self._follow, {"follower_id": follower, "following_id": followee})
        self._loaded.following[follower] += 1
        self._loaded.followers[followee] += 1

    async def _one_post(self, item: tuple[int, Post]) -> None:
        index, post = item
        author = self._loaded.user_ids[post.author]
        value = {"user_id": author, "content": post.content, "media_url": post.media_url}
        written = await self._write(self._posts, value)
        self._loaded.post_ids[index] = written["post_id"]
        self._loaded.written[author] += 1

    def _of(self, reaction: Reaction) -> dict[str, Any]:
        return {"user_id": self._loaded.user_ids[reaction.person], "post_id": self._loaded.post_ids[reaction.post]}

    async def _one_like(self, like: Reaction) -> None:
        value = self._of(like)
        await self._write(self._like, value)
        self._loaded.likes[value["post_id"]] += 1

    async def _one_comment(self, comment: Reaction) -> None:
        value = self._of(comment)
        await self._write(self._comments, value | {"content": comment.content})
        self._loaded.comments[value["post_id"]] += 1

    async def _one_share(self, share: Reaction) -> None:
        value = self._of(share)
        await self._write(self._shares, value | {"content": share.content})
        self._loaded.shares[value["post_id"]] += 1
        self._loaded.written[value["user_id"]] += 1

    async def _check(self, user_id: int) -> None:
        """Compares one user's counts, and those of all their posts, with what was acknowledged."""
        until = monotonic() + COUNTS_S
        while wrong := await self._wrong(user_id):
            if monotonic() > until:
                for what in wrong:
                    self._client.failed(f"check: {what}")
                return
            await asyncio.sleep(0.2)

    async def _wrong(self, user_id: int) -> list[str]:
        loaded = self._loaded
        user = await self._read(f"/users/{user_id}")
        posts: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = await self._read(f"/users/{user_id}/posts?viewer_id={user_id}&limit={PAGE}{cursor}")
            posts += page.get("posts", [])
            if not page.get("next_cursor"):
                break
            cursor = f"&cursor={page['next_cursor']}"
        written = loaded.written[user_id]
        wrong = [
            f"user {user_id} has {user.get(name)} {name}, not {expected[user_id]}"
            for name, expected in (("followers", loaded.followers), ("following", loaded.following))
            if user.get(name) != expected[user_id]
        ]
        if not len(posts) == len({post["post_id"] for post in posts}) == written:
            wrong.append(f"user {user_id} has {len(posts)} posts, not {written}")
        wrong += [
            f"post {post['post_id']} has {post[name]} {name}, not {expected[post['post_id']]}"
            for post in map(_counted, posts)
            for name, expected in (("likes", loaded.likes), ("comments", loaded.comments), ("shares", loaded.shares))
            if post[name] != expected[post["post_id"]]
        ]
        return wrong

    async def _read(self, path: str) -> dict[str, Any]:
        reply = await self._client.get(self._client.url(path))
        value = reply.json()
        if reply.status != 200 or not isinstance(value, dict):
            raise Failed(reply)
        return value


def _counted(post: dict[str, Any]) -> dict[str, Any]:
    """The post that this one's counts belong to: a share without text shows its original's."""
    original: dict[str, Any] | None = post["shared_post"]
    return post if original is None or post["content"] else original
