"""The ranking server: `python -m services.ranking`. Wiring only."""

from __future__ import annotations

import asyncio

from feedmesh.post.v1 import post_pb2
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub
from feedmesh.ranking.v1.ranking_pb2_grpc import add_RankingServiceServicer_to_server
from runtime import callers, client, config, process, redis, server
from runtime.clock import wall_clock
from services.ranking import follow
from services.ranking.config import RankingSettings
from services.ranking.memory import Memory
from services.ranking.servicer import SERVICE, RankingServicer


async def serve(settings: RankingSettings, running: process.Process) -> None:
    """Serves until the process is asked to stop."""
    me = callers.of(running.name, settings)
    async with (
        client.connect(settings.post_target, me, post_pb2.DESCRIPTOR.services_by_name["PostService"]) as channel,
        redis.connect(settings) as events,
        asyncio.TaskGroup() as tasks,
    ):
        await redis.require_fit(events)
        post, memory = PostServiceStub(channel), Memory()
        follower = follow.Follower(events, post, wall_clock, memory)
        tasks.create_task(running.every(follow.INTERVAL_S, "follow_posts", follower.step))
        servicer = RankingServicer(post, wall_clock, memory)
        await server.serve(running, settings, [lambda s: add_RankingServiceServicer_to_server(servicer, s)], [SERVICE])


if __name__ == "__main__":
    settings = config.load(RankingSettings)
    process.run("ranking", settings, lambda running: serve(settings, running))
