"""The webhook: each notification comes to the hook, signed and once it took it no more; whatever the hook does."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from pydantic import ValidationError

from feedmesh.post.v1 import post_pb2
from launch.valkey import Running as Valkey
from runtime import postgres
from services.timeline import store, webhook
from services.timeline.config import WebhookSettings
from services.timeline.notifications import Concerns
from services.timeline.webhook import Webhook
from tests.fakes.databases import Databases
from tests.integration.mesh_world import World, mesh

SECRET = "a secret of at least so many characters"
ANN, BOB, EVE = range(3)


@dataclass
class Hook:
    """A push provider: a real server, that does as it is told."""

    how: str = "takes"
    got: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.ids.append(request.headers["webhook-id"])
        signed = f"{self.ids[-1]}.{request.headers['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.digest(SECRET.encode(), signed, hashlib.sha256)).decode()
        assert request.headers["webhook-signature"] == f"v1,{digest}"
        if self.how == "hangs":
            await asyncio.sleep(30)
        elif self.how == "fails":
            return web.Response(status=500)
        elif self.how == "redirects":
            return web.Response(status=307, headers={"location": "/elsewhere"})
        elif self.how == "breaks":
            assert request.transport is not None
            request.transport.abort()
        elif self.how == "floods":
            answer = web.StreamResponse(status=500)
            await answer.prepare(request)
            while True:
                await answer.write(bytes(100_000))
        self.got.append(json.loads(body))
        return web.Response(text="<html>thank you" * 1_000)


@dataclass
class Scene:
    """Three people, a hook, and the worker that tells it."""

    world: World
    people: list[int]
    hook: Hook
    worker: Webhook
    pool: postgres.Pool

    async def told(self) -> list[tuple[str, int, int, int | None]]:
        """What the hook took since the last time: what, whom it concerns, who did it, of which post."""
        await self.world.deliver()
        while await self.worker.step():
            pass
        got, self.hook.got = self.hook.got, []
        assert all(each["type"] == "notification" and each["created_at"].endswith("Z") for each in got)
        return [(each["kind"], each["user_id"], each["actor"]["user_id"], each["post_id"]) for each in got]

    async def hurry(self) -> None:
        """What waits is due."""
        async with self.pool.connection() as connection:
            await connection.execute("UPDATE webhook_deliveries SET due_at = now()")


@pytest_asyncio.fixture
async def scene(databases: Databases, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """Everything, with nothing to tell."""
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.5)
    hook = Hook()
    app = web.Application()
    app.router.add_post("/{any:.*}", hook.handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    hook.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook?token=1"
    async with mesh(databases, valkey) as whole, whole.world() as world, webhook.connect() as session:
        world.fanouts[:] = [replace(each, notes_acts=True) for each in world.fanouts]
        world.workers = [world.worker(number) for number in range(len(world.workers))]
        people = [await world.join() for _ in range(3)]
        parts = world.replicas[0]
        concerns = Concerns(parts.relations, parts.relations.graph, parts.post)
        pool = parts.sources.modes.pool
        async with pool.connection() as connection:
            await connection.execute("DELETE FROM webhook_deliveries")
        yield Scene(world, people, hook, Webhook(pool, concerns, session, hook.url, SECRET), pool)
    await runner.cleanup()


async def test_each_act_is_told_once(scene: Scene) -> None:
    world, (ann, bob, eve) = scene.world, scene.people
    name = (await world.mesh.post.CreatePost(post_pb2.CreatePostRequest(user_id=ann, content="who am I"))).post.username
    post_id = await world.write(ann)
    assert await scene.told() == []
    await world.like(bob, post_id)
    await world.like(ann, post_id)
    assert await scene.told() == [("liked", ann, bob, post_id)]
    await world.comment(eve, post_id)
    await world.share(bob, post_id)
    quote = int(await world.share(eve, post_id, "look"))
    mentioning = (
        await world.mesh.post.CreatePost(post_pb2.CreatePostRequest(user_id=bob, content=f"hi @{name}" + "!" * 300))
    ).post.post_id
    await world.follow(bob, ann)
    await world.set_private(ann, True)
    await world.follow(eve, ann)
    assert sorted(await scene.told(), key=str) == sorted(
        [
            ("commented", ann, eve, post_id),
            ("shared", ann, bob, post_id),
            ("quoted", ann, eve, quote),
            ("mentioned", ann, bob, mentioning),
            ("followed", ann, bob, None),
            ("follow_requested", ann, eve, None),
        ],
        key=str,
    )
    assert len(set(scene.hook.ids)) == len(scene.hook.ids) == 7
    assert await scene.told() == []
    assert await store.count_deliveries(scene.pool) == 0


async def test_what_was_taken_back_or_hidden_meanwhile_is_not_told(scene: Scene) -> None:
    world, (ann, bob, eve) = scene.world, scene.people
    first, second, third = [await world.write(ann) for _ in range(3)]
    await world.like(bob, first)
    await world.unlike(bob, first)
    await world.like(eve, second)
    await world.block(ann, eve)
    await world.like(bob, third)
    await world.comment(bob, third)
    await world.delete(ann, third)
    assert await scene.told() == []
    assert await store.count_deliveries(scene.pool) == 0


@pytest.mark.parametrize("how", ["fails", "hangs", "redirects", "breaks", "floods"])
async def test_a_hook_that_does_not_take_it_gets_it_again(scene: Scene, how: str) -> None:
    world, (ann, bob, _) = scene.world, scene.people
    post_id = await world.write(ann)
    await world.like(bob, post_id)
    scene.hook.how = how
    begun = asyncio.get_running_loop().time()
    await scene.told()
    assert asyncio.get_running_loop().time() < begun + 20
    scene.hook.got.clear()
    # Not at once.
    assert await scene.told() == []
    assert len(scene.hook.ids) == 1
    scene.hook.how = "takes"
    await scene.hurry()
    assert await scene.told() == [("liked", ann, bob, post_id)]
    assert len(set(scene.hook.ids)) == 1
    assert await store.count_deliveries(scene.pool) == 0


async def test_an_act_is_found_though_its_event_has_a_lower_id_of_the_same_millisecond(scene: Scene) -> None:
    world, (ann, bob, _) = scene.world, scene.people
    post_id = await world.write(ann)
    await world.like(bob, post_id)
    await world.deliver()
    async with scene.pool.connection() as connection:
        # The sequence of ids began anew between the two.
        await connection.execute("UPDATE webhook_deliveries SET event_id = event_id >> 12 << 12")
    assert await scene.told() == [("liked", ann, bob, post_id)]


async def test_a_hook_that_never_takes_it_is_given_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "MAX_TRIES", 3)
    world, (ann, bob, _) = scene.world, scene.people
    await world.like(bob, await world.write(ann))
    scene.hook.how = "fails"
    for tries in range(3):
        assert await store.count_deliveries(scene.pool) == (1 if tries else 0)
        await scene.told()
        await scene.hurry()
    assert len(scene.hook.ids) == 3
    assert await store.count_deliveries(scene.pool) == 0


async def test_what_a_worker_took_that_died_is_taken_up_by_another(scene: Scene) -> None:
    world, (ann, bob, _) = scene.world, scene.people
    post_id = await world.write(ann)
    await world.like(bob, post_id)
    await world.deliver()
    [taken] = await store.take_deliveries(scene.pool, 10, 60)
    assert (taken.user_id, taken.actor_id, taken.post_id, taken.tries) == (ann, bob, post_id, 0)
    assert await scene.told() == []
    await scene.hurry()  # as if the lease were over
    assert await scene.told() == [("liked", ann, bob, post_id)]


async def test_the_oldest_give_way_where_too_many_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "MAX_WAITING", 5)
    for number in range(8):
        await store.note_deliveries(scene.pool, [(number, 1, 1, 1, 2)])
        await store.note_deliveries(scene.pool, [(number, 1, 1, 1, 2)])
    await scene.worker.upkeep()
    left = await postgres.fetch(scene.pool, "SELECT event_id FROM webhook_deliveries ORDER BY event_id")
    assert [row[0] for row in left] == [3, 4, 5, 6, 7]


async def test_of_who_is_erased_nothing_waits(scene: Scene) -> None:
    ann, bob, eve = scene.people
    await store.note_deliveries(scene.pool, [(1, ann, 1, 1, bob), (2, bob, 1, 1, ann), (3, bob, 1, 1, eve)])
    assert await store.deliveries_of(scene.pool, ann) == 2
    await scene.world.fanouts[0].forget(ann)
    assert await store.count_deliveries(scene.pool) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook_url", "ftp://example.org"),
        ("webhook_url", "https://"),
        ("webhook_url", "example.org/hook"),
        ("webhook_url", "https://user:password@example.org/hook"),
        ("webhook_secret", "short"),
        ("webhook_secret", "whsec_" + "!" * 40),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: str) -> None:
    right = {
        "webhook_url": "https://example.org/hook?a=b",
        "webhook_secret": "whsec_" + base64.b64encode(bytes(32)).decode(),
        "postgres_dsn": "dbname=x",
        "mesh_secret": "m" * 32,
        "graph_target": "127.0.0.1:1",
        "post_target": "127.0.0.1:2",
    }
    settings = WebhookSettings(**right)  # type: ignore[arg-type]
    assert webhook.key_of(settings.webhook_secret) == bytes(32)
    with pytest.raises(ValidationError, match=name):
        WebhookSettings(**{**right, name: value})  # type: ignore[arg-type]
