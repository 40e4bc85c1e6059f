"""Notifications: each tells of what others did that is still so and that may be seen, in groups, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from launch.valkey import Running as Valkey
from runtime import errors, ids
from services.timeline import notifications as module
from services.timeline import store
from services.timeline.notifications import Notifications
from tests.fakes.databases import Databases
from tests.integration.mesh_world import World, mesh
from tests.integration.timeline_stores import notifications

ANN, BOB, EVE, KIM, MAX = range(5)


@dataclass
class Scene:
    """Some people, and their notifications."""

    world: World
    people: list[int]
    notes: Notifications

    async def page(self, person: int, limit: int = 100, cursor: str = "") -> pb.ListNotificationsResponse:
        """A page of somebody's."""
        request = pb.ListNotificationsRequest(user_id=self.people[person], limit=limit, cursor=cursor)
        [page] = await self.notes.pages([request])
        if isinstance(page, errors.Error):
            raise page
        return page

    async def told(self, person: int) -> list[tuple[str, list[int], int]]:
        """What somebody is told: what, by whom, and of which post; newest first."""
        return [self.short(each) for each in (await self.page(person)).notifications]

    def short(self, note: pb.Notification) -> tuple[str, list[int], int]:
        """A notification in short, its actors by their places."""
        kind = pb.NotificationKind.Name(note.kind).removeprefix("NOTIFICATION_KIND_").lower()
        assert all(actor.username for actor in note.actors)
        return kind, [self.people.index(actor.user_id) for actor in note.actors], note.post.post_id

    async def name(self, person: int) -> str:
        """A username."""
        users = await self.world.mesh.post.CreatePost(
            post_pb2.CreatePostRequest(user_id=self.people[person], content="who am I")
        )
        return users.post.username


@pytest_asyncio.fixture
async def scene(databases: Databases, valkey: Valkey) -> AsyncIterator[Scene]:
    """Five people."""
    async with mesh(databases, valkey) as whole, whole.world() as world:
        people = [await world.join() for _ in range(5)]
        yield Scene(world, people, notifications(world.replicas[0]))


async def test_each_kind_is_told_and_alike_ones_as_one(scene: Scene) -> None:
    world, (ann, bob, eve, kim, max_) = scene.world, scene.people
    name = await scene.name(ANN)
    one, two = await world.write(ann), await world.write(ann)
    for liker in (ann, bob, eve, kim, max_):
        await world.like(liker, one)
    await world.like(bob, two)
    await world.comment(eve, one)
    await world.comment(eve, one)
    await world.share(kim, two)
    quote = int(await world.share(max_, two, "look"))
    mentioning = (
        await world.mesh.post.CreatePost(post_pb2.CreatePostRequest(user_id=bob, content=f"hello @{name}"))
    ).post.post_id
    await world.pass_time(1)
    await world.follow(bob, ann)
    await world.follow(eve, ann)
    await world.set_private(ann, True)
    await world.follow(kim, ann)
    page = await scene.page(ANN)
    assert [scene.short(each) for each in page.notifications] == [
        ("follow_requested", [KIM], 0),
        ("followed", [EVE, BOB], 0),
        ("mentioned", [BOB], mentioning),
        ("quoted", [MAX], quote),
        ("shared", [KIM], two),
        ("commented", [EVE], one),
        ("liked", [BOB], two),
        ("liked", [MAX, KIM, EVE], one),
    ]
    assert [each.actor_count for each in page.notifications] == [1, 2, 1, 1, 1, 1, 1, 4]
    assert all(each.unread for each in page.notifications)
    assert page.unread == 8
    assert not page.HasField("next_cursor")
    assert await scene.told(BOB) == []


async def test_what_is_taken_back_or_may_not_be_seen_is_told_no_more(scene: Scene) -> None:
    world, (ann, bob, eve, kim, _) = scene.world, scene.people
    name = await scene.name(ANN)
    own = await world.write(ann)
    await world.follow(ann, bob)
    await world.like(bob, own)
    await world.like(eve, own)
    hidden = (
        await world.mesh.post.CreatePost(
            post_pb2.CreatePostRequest(user_id=bob, content=f"@{name}", visibility=post_pb2.VISIBILITY_FOLLOWERS)
        )
    ).post.post_id
    assert await scene.told(ANN) == [("mentioned", [BOB], hidden), ("liked", [EVE, BOB], own)]
    await world.unfollow(ann, bob)
    assert await scene.told(ANN) == [("liked", [EVE, BOB], own)]
    await world.mute(ann, eve)
    assert await scene.told(ANN) == [("liked", [BOB], own)]
    await world.unmute(ann, eve)
    await world.block(bob, ann)
    assert await scene.told(ANN) == [("liked", [EVE], own)]
    await world.unlike(eve, own)
    assert await scene.told(ANN) == []
    await world.comment(kim, own)
    assert await scene.told(ANN) == [("commented", [KIM], own)]
    await world.delete(ann, own)
    assert await scene.told(ANN) == []
    assert (await scene.page(ANN)).unread == 0


async def test_of_who_is_erased_nothing_is_told_nor_kept(scene: Scene) -> None:
    world, (ann, bob, eve, _, _) = scene.world, scene.people
    own = await world.write(ann)
    await world.like(bob, own)
    await world.like(eve, own)
    await scene.notes.read(pb.ReadNotificationsRequest(user_id=bob, notification_id=5))
    assert await store.has_mark(scene.notes.pool, bob)
    await world.erase(bob)
    assert await scene.told(ANN) == [("liked", [EVE], own)]
    with pytest.raises(errors.NotFound):
        await scene.page(BOB)
    await world.fanouts[0].forget(bob)
    assert not await store.has_mark(scene.notes.pool, bob)


async def test_what_was_read_is_read_from_then_on(scene: Scene) -> None:
    world, (ann, bob, eve, _, _) = scene.world, scene.people
    posts = [await world.write(ann) for _ in range(4)]
    for post_id in posts:
        await world.like(bob, post_id)
    notes = (await scene.page(ANN)).notifications
    read = await scene.notes.read(pb.ReadNotificationsRequest(user_id=ann, notification_id=notes[2].notification_id))
    assert read.unread == 2
    assert [each.unread for each in (await scene.page(ANN)).notifications] == [True, True, False, False]
    # What is older changes nothing.
    for older in (notes[3].notification_id, 1):
        await scene.notes.read(pb.ReadNotificationsRequest(user_id=ann, notification_id=older))
        assert (await scene.page(ANN)).unread == 2
    # One that was read comes back with somebody else.
    await world.like(eve, posts[0])
    page = await scene.page(ANN)
    assert [each.unread for each in page.notifications] == [True, True, True, False]
    assert scene.short(page.notifications[0]) == ("liked", [EVE, BOB], posts[0])
    newest = pb.ReadNotificationsRequest(user_id=ann, notification_id=page.notifications[0].notification_id)
    assert (await scene.notes.read(newest)).unread == 0
    # What is still to come cannot have been read.
    await scene.notes.read(pb.ReadNotificationsRequest(user_id=ann, notification_id=ids.MAX_ID))
    await world.pass_time(1)
    await world.like(eve, posts[1])
    assert (await scene.page(ANN)).unread == 1
    with pytest.raises(errors.NotFound):
        await scene.notes.read(pb.ReadNotificationsRequest(user_id=99, notification_id=1))


@pytest.mark.parametrize(("scanned", "groups"), [(1_000, 200), (7, 200), (1_000, 3), (6, 2)])
@pytest.mark.parametrize("limit", [1, 2, 5, 100])
async def test_pages_show_everything_once_while_more_happens(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, limit: int, scanned: int, groups: int
) -> None:
    monkeypatch.setattr(module, "SCANNED", scanned)
    monkeypatch.setattr(module, "GROUPS", groups)
    world, (ann, bob, eve, kim, _) = scene.world, scene.people
    posts = [await world.write(ann) for _ in range(5)]
    for post_id in posts:
        await world.comment(bob, post_id)
    for post_id in posts:
        await world.like(eve, post_id)
    await world.follow(bob, ann)
    await world.like(kim, posts[2])
    expected = {("commented", post_id) for post_id in posts} | {("liked", post_id) for post_id in posts}
    expected |= {("followed", 0)}
    seen: list[tuple[str, int]] = []
    cursor, pages, deleted = "", 0, False
    while True:
        page = await scene.page(ANN, limit, cursor)
        pages += 1
        assert len(page.notifications) <= limit
        found = [scene.short(each) for each in page.notifications]
        seen += [(kind, post_id) for kind, _, post_id in found]
        if not page.HasField("next_cursor"):
            break
        assert pages < 50
        cursor = page.next_cursor
        # What is new belongs to the first page; what goes meanwhile moves nothing else.
        await world.like(kim, posts[pages % 5])
        if not deleted:
            deleted = True
            await world.unfollow(bob, ann)
    if scanned >= 100:
        assert len(seen) == len(set(seen))
    assert set(seen) >= expected - {("followed", 0)}
    assert set(seen) <= expected


async def test_a_batch_fails_one_by_one(scene: Scene) -> None:
    ann = scene.people[ANN]
    own = await scene.world.write(ann)
    await scene.world.like(scene.people[BOB], own)
    first, nobody, forged, wrong = await scene.notes.pages(
        [
            pb.ListNotificationsRequest(user_id=ann),
            pb.ListNotificationsRequest(user_id=99),
            pb.ListNotificationsRequest(user_id=ann, cursor="AAAA"),
            pb.ListNotificationsRequest(user_id=ann, limit=101),
        ]
    )
    assert isinstance(first, pb.ListNotificationsResponse)
    assert [scene.short(each) for each in first.notifications] == [("liked", [BOB], own)]
    assert isinstance(nobody, errors.NotFound)
    assert isinstance(forged, errors.InvalidArgument)
    assert forged.reason == "INVALID_CURSOR"
    assert isinstance(wrong, errors.InvalidArgument)
    assert wrong.fields[0].field == "limit"
