"""Feeds equal what was written: schedules made by hand, each for one way in which they could come to differ.

test_feed_machine.py takes all others, as they come. What a schedule is about is said by its test's name.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from feedmesh.timeline.v1 import timeline_pb2 as pb
from launch.valkey import Running as Valkey
from runtime import errors
from services.timeline import modes, store
from tests.fakes.databases import Databases
from tests.integration.feed_model import Model
from tests.integration.mesh_world import GRAPH, POST, World, mesh

PEOPLE = 5


@dataclass
class Story:
    """A world, and the model of what people did in it."""

    world: World
    people: list[int]
    model: Model = field(default_factory=Model)

    async def write(self, author: int) -> None:
        """A post."""
        self.model.write(await self.world.write(self.people[author]), self.people[author])

    async def share(self, sharer: int, post_id: int) -> None:
        """A plain share."""
        share = await self.world.share(self.people[sharer], post_id)
        self.model.write(int(share), self.people[sharer], original=post_id)

    async def relate(self, act: str, one: int, other: int) -> None:
        """What somebody does about somebody."""
        pair = self.people[one], self.people[other]
        assert await getattr(self.world, act)(*pair) == getattr(self.model, act)(*pair)

    async def everyone_follows_everyone(self) -> None:
        """And has a list."""
        for one, other in itertools.permutations(range(PEOPLE), 2):
            await self.relate("follow", one, other)
        for reader in range(PEOPLE):
            await self.read(reader)

    async def read(self, reader: int, replica: int = 0) -> tuple[list[int], set[str]]:
        """A feed, newest first, and what it was degraded by."""
        posts, degraded = await self.world.read(self.people[reader], replica)
        return [post.post_id for post in posts], degraded

    def feed(self, reader: int) -> list[int]:
        """The feed that it must be."""
        return [entry.post_id for entry in self.model.feed(self.model.rows_of(self.people[reader]))]

    async def is_exact(self, reader: int) -> bool:
        """Whether both replicas show what they must."""
        return all([await self.read(reader, replica) == (self.feed(reader), set()) for replica in (0, 1)])


@pytest_asyncio.fixture
async def story(databases: Databases, valkey: Valkey) -> AsyncIterator[Story]:
    """Five people on empty stores."""
    async with mesh(databases, valkey) as there, there.world() as world:
        story = Story(world, [await world.join() for _ in range(PEOPLE)])
        for user in story.people:
            story.model.join(user)
        yield story


async def test_an_unfollow_that_is_handled_after_the_next_follow_takes_nothing_away(story: Story) -> None:
    await story.relate("follow", 0, 1)
    await story.read(0)
    await story.relate("unfollow", 0, 1)
    await story.write(1)  # to nobody
    await story.read(0, 1)
    await story.relate("follow", 0, 1)
    await story.write(1)
    followed = [event for event in await story.world.events(GRAPH) if event.HasField("follow_changed")]
    assert [event.follow_changed.following for event in followed] == [True, False, True]
    for event in [followed[2], followed[0], followed[1]]:
        await story.world.fanouts[0].graph_events([event])
    await story.world.fanouts[0].post_events(await story.world.events(POST))
    assert await story.is_exact(0)
    assert len(story.feed(0)) == 2


@pytest.mark.parametrize("seed", range(3))
async def test_events_that_come_twice_and_in_any_order_change_nothing(story: Story, seed: int) -> None:
    chance = random.Random(seed)
    await story.everyone_follows_everyone()
    for _ in range(15):
        await story.write(chance.randrange(PEOPLE))
    for post_id in chance.sample(sorted(story.model.rows), 5):
        await story.share(chance.randrange(PEOPLE), post_id)
    for act in ("unfollow", "follow", "unfollow"):
        await story.relate(act, *chance.sample(range(PEOPLE), 2))
    for topic, handle in ((POST, story.world.fanouts[0].post_events), (GRAPH, story.world.fanouts[1].graph_events)):
        events = await story.world.events(topic) * 3
        chance.shuffle(events)
        for event in events:
            await handle([event])
    for reader in range(PEOPLE):
        assert await story.is_exact(reader)


async def test_posts_that_come_while_a_list_is_built_are_in_it(story: Story) -> None:
    await story.relate("follow", 0, 1)
    await story.world.read_slowly(story.people[0], 0)
    assert story.world.held
    await story.write(1)
    await story.world.relay()
    await story.world.consume(0)
    await story.world.go_on_all()
    assert await story.is_exact(0)


async def test_a_reader_who_knows_an_author_as_pushed_misses_nothing_that_is_written_on_the_way_to_pull(
    story: Story,
) -> None:
    await story.relate("follow", 0, 1)
    await story.read(0)  # its replica knows: nobody is pulled
    await story.world.set_limit(0)
    await story.world.reconcile()
    assert set((await store.modes(story.world.stores.pool, story.people)).values()) == {"both"}
    await story.write(1)
    await story.world.fanouts[0].post_events(await story.world.events(POST))
    assert await story.read(0) == (story.feed(0), set())


async def test_a_read_that_takes_longer_than_its_knowledge_of_the_modes_begins_again(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    await story.relate("follow", 0, 1)
    await story.write(1)
    await story.world.settle()
    monkeypatch.setattr(modes, "STALE_S", -1.0)
    assert await story.read(0) == (story.feed(0), {"redis"})


async def test_a_cursor_is_its_readers_own(story: Story) -> None:
    for _ in range(2):
        await story.write(0)
    page = await story.world.page(story.people[0], 0, limit=1)
    assert isinstance(page, pb.GetFeedResponse)
    assert page.next_cursor
    refused = await story.world.page(story.people[1], 0, cursor=page.next_cursor)
    assert isinstance(refused, errors.InvalidArgument)
    assert refused.reason == "INVALID_CURSOR"
