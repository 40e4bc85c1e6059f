"""The fan-out worker: `python -m services.timeline.fanout [--once]`. Wiring only.

Consumes the topics of posts and of the graph, and takes authors from mode to mode. Run as many as are needed.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub
from feedmesh.post.v1 import post_pb2
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub
from runtime import callers, client, config, migrate, postgres, process, redis
from runtime.coalesce import Coalescer
from runtime.consumer import BATCH, Consumer, Handle
from runtime.streams import PARTITIONS
from services.timeline.config import FanoutSettings
from services.timeline.deliver import Fanout
from services.timeline.epoch import LOOK_S, Guard
from services.timeline.modes import Transitions
from services.timeline.timelines import Timelines

GROUP = "timeline"


async def serve(settings: FanoutSettings, running: process.Process, *, once: bool) -> None:
    """Works until the process is asked to stop, or with `once` until there is nothing to do."""
    me = callers.of(running.name, settings)
    async with (
        postgres.connect(settings) as pool,
        redis.connect(settings, timeout_s=5) as stores,
        client.connect(
            settings.graph_target, me, graph_pb2.DESCRIPTOR.services_by_name["GraphService"]
        ) as graph_channel,
        client.connect(settings.post_target, me, post_pb2.DESCRIPTOR.services_by_name["PostService"]) as post_channel,
    ):
        await migrate.require(pool, "services.timeline")
        await redis.require_fit(stores)
        graph, timelines = GraphServiceStub(graph_channel), Timelines(stores)
        transitions = Transitions(pool, timelines, graph, PostServiceStub(post_channel), settings.push_max_followers)
        guard = Guard(pool, stores)
        await guard.look()
        fanout = Fanout(pool, guard, timelines, graph, transitions, notes_acts=settings.webhook_url is not None)
        consumers = [
            Consumer(stores, topic, partition, GROUP, handle)
            for topic, handle in (
                ("post", together("fanout_posts", fanout.post_events)),
                ("graph", together("fanout_follows", fanout.graph_events)),
            )
            for partition in range(PARTITIONS)
        ]
        if once:
            for consumer in consumers:
                await consumer.join()
            while sum([await consumer.step() for consumer in consumers]):
                pass
            await transitions.reconcile()
            while await transitions.advance():
                pass
            return
        await asyncio.gather(
            running.every(LOOK_S, "look_at_redis", guard.look),
            *(consumer.run(running) for consumer in consumers),
            running.every(1, "reconcile_modes", transitions.reconcile),
            running.every(0.25, "advance_modes", transitions.advance),
        )


def together(name: str, handle: Handle) -> Handle:
    """Handles what comes from several partitions at once in one step, as its round trips are the same for one event.

    A whole batch of a partition goes beside others: so reading, packing and pushing overlap where there is much to do.
    """

    async def all_of(batches: Sequence[Sequence[event_pb2.Event]]) -> list[None]:
        await handle([event for batch in batches for event in batch])
        return [None for _ in batches]

    return Coalescer(name, all_of, max_weight=BATCH, in_flight=PARTITIONS, weigh=len)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m services.timeline.fanout")
    parser.add_argument("--once", action="store_true", help="do what there is to do, then end")
    once = parser.parse_args().once
    settings = config.load(FanoutSettings)
    process.run("timeline-fanout", settings, lambda running: serve(settings, running, once=once))


if __name__ == "__main__":
    main()
