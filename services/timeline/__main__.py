"""The timeline server: `python -m services.timeline`. Wiring only."""

from __future__ import annotations

import asyncio

from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub
from feedmesh.post.v1 import post_pb2
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.ranking.v1.ranking_pb2_grpc import RankingServiceStub
from feedmesh.timeline.v1.timeline_pb2_grpc import add_TimelineServiceServicer_to_server
from runtime import callers, client, config, migrate, postgres, process, redis, server
from runtime.paging import Cursors
from runtime.relations import Relations
from services.timeline.authors import Authors
from services.timeline.config import TimelineSettings
from services.timeline.epoch import LOOK_S, Guard
from services.timeline.feed import Parts
from services.timeline.modes import Modes
from services.timeline.news import STEP_S, News
from services.timeline.notifications import Concerns, Notifications
from services.timeline.servicer import SERVICE, TimelineServicer
from services.timeline.skeleton import Sources
from services.timeline.timelines import Timelines
from services.timeline.watch import COUNTS_S, FOLLOWS_S, HERE_S, Watches

DAY_S = 86_400


async def serve(settings: TimelineSettings, running: process.Process) -> None:
    """Serves until the process is asked to stop."""
    me = callers.of(running.name, settings)
    async with (
        postgres.connect(settings) as pool,
        redis.connect(settings) as probe,
        client.connect(
            settings.graph_target, me, graph_pb2.DESCRIPTOR.services_by_name["GraphService"]
        ) as graph_channel,
        client.connect(settings.post_target, me, post_pb2.DESCRIPTOR.services_by_name["PostService"]) as post_channel,
        client.connect(
            settings.ranking_target, me, ranking_pb2.DESCRIPTOR.services_by_name["RankingService"]
        ) as ranking_channel,
    ):
        await migrate.require(pool, "services.timeline")
        await redis.require_fit(probe)
        guard = Guard(pool, probe)
        await guard.look()
        async with redis.connect(settings, on_connect=guard.admit) as stores:
            post = PostServiceStub(post_channel)
            timelines = Timelines(stores, int(settings.active_days * DAY_S))
            sources = Sources(post, guard, timelines, Authors(timelines, post), Modes(pool))
            graph, cursors = GraphServiceStub(graph_channel), Cursors(settings.cursor_secret)
            parts = Parts(
                Relations(graph),
                cursors,
                sources,
                post,
                RankingServiceStub(ranking_channel),
            )
            news = News(probe, parts.own)
            watches = Watches(news, parts.relations, probe)
            notifications = Notifications(Concerns(parts.relations, graph, post), pool, cursors, probe)
            servicer = TimelineServicer(parts, watches, notifications)
            await asyncio.gather(
                running.every(LOOK_S, "look_at_redis", guard.look),
                running.every(STEP_S, "follow_posts", news.step),
                running.every(FOLLOWS_S, "follow_follows", watches.follow),
                running.every(COUNTS_S, "tell_changes", watches.tell_changes),
                running.every(HERE_S, "say_where", watches.say_where),
                server.serve(
                    running, settings, [lambda s: add_TimelineServiceServicer_to_server(servicer, s)], [SERVICE]
                ),
            )


if __name__ == "__main__":
    settings = config.load(TimelineSettings)
    process.run("timeline", settings, lambda running: serve(settings, running))
