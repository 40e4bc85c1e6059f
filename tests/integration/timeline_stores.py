"""What a timeline service stands on, within a test: a Redis, emptied, and a database of modes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from feedmesh.timeline.v1 import timeline_pb2 as pb
from launch.valkey import Running as Valkey
from runtime import errors, postgres, redis
from services.timeline.authors import Authors
from services.timeline.deliver import Fanout
from services.timeline.epoch import Guard
from services.timeline.feed import Parts, get_feeds
from services.timeline.modes import Modes, Transitions
from services.timeline.news import News
from services.timeline.notifications import Concerns, Notifications
from services.timeline.servicer import TimelineServicer
from services.timeline.skeleton import Sources
from services.timeline.timelines import Timelines
from services.timeline.watch import Watches
from tests.fakes.databases import Databases, settings_of

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

ACTIVE_S = 3600
PATIENCE_S = 10.0
"""How long Redis may take to answer on a machine that has much else to do."""


@dataclass(frozen=True)
class TimelineStores:
    """The stores, and the parts of the service that use them."""

    url: str
    dsn: str
    client: Redis
    """One that is not guarded."""
    pool: postgres.Pool
    timelines: Timelines
    stack: AsyncExitStack

    async def sources(self, post: PostServiceAsyncStub) -> Sources:
        """What one more replica reads from: a guard, a client and caches of its own."""
        guard = Guard(self.pool, self.client)
        await guard.look()
        own = await self.stack.enter_async_context(
            redis.connect(settings(self.url), timeout_s=PATIENCE_S, on_connect=guard.admit)
        )
        timelines = Timelines(own, ACTIVE_S, self.timelines.cap, self.timelines.slack)
        return Sources(post, guard, timelines, Authors(timelines, post), Modes(self.pool))

    async def fanout(self, graph: GraphServiceAsyncStub, post: PostServiceAsyncStub, *, limit: int) -> Fanout:
        """The handlers of one more fan-out worker."""
        guard = Guard(self.pool, self.client)
        await guard.look()
        transitions = Transitions(self.pool, self.timelines, graph, post, default_limit=limit)
        return Fanout(self.pool, guard, self.timelines, graph, transitions)


@asynccontextmanager
async def timeline_stores(
    databases: Databases, valkey: Valkey, *, cap: int = 10, slack: int = 3
) -> AsyncIterator[TimelineStores]:
    """Stores for the block, with lists that hold so little that their ends are met all the time."""
    async with (
        AsyncExitStack() as stack,
        databases.lend("services.timeline") as dsn,
        postgres.connect(settings_of(dsn)) as pool,
        redis.connect(settings(valkey.url), timeout_s=PATIENCE_S) as client,
    ):
        await client.flushall()
        yield TimelineStores(valkey.url, dsn, client, pool, Timelines(client, ACTIVE_S, cap, slack), stack)


def watches(parts: Parts) -> Watches:
    """Nobody watching yet; the test looks at the news for them."""
    stores = parts.sources.timelines.client
    return Watches(News(stores, parts.own), parts.relations, stores)


def notifications(parts: Parts) -> Notifications:
    """The notifications of a replica. It has the graph that its relations are of."""
    concerns = Concerns(parts.relations, parts.relations.graph, parts.post)
    return Notifications(concerns, parts.sources.modes.pool, parts.cursors, parts.sources.timelines.client)


def timeline_servicer(parts: Parts) -> TimelineServicer:
    """TimelineService on these parts."""
    return TimelineServicer(parts, watches(parts), notifications(parts))


def settings(url: str) -> redis.RedisSettings:
    """What a process with this Redis is told."""
    return redis.RedisSettings(redis_url=url)


async def feeds(parts: Parts, requests: Sequence[pb.GetFeedRequest]) -> list[pb.GetFeedResponse | errors.Error]:
    """What `get_feeds` gives, each page as the contract's message."""
    return [
        answer if isinstance(answer, errors.Error) else pb.GetFeedResponse.FromString(answer)
        for answer in await get_feeds(parts, requests)
    ]
