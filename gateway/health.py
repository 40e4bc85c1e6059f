"""Whether every part serves: what `/readyz` says. Not whether this process lives: that is `/healthz`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping

import grpc
from grpc_health.v1 import health_pb2

from runtime.errors import Error

CHECK_S = 1.0
"""What one part may take to answer."""
SERVING = "serving"
Check = Callable[[health_pb2.HealthCheckRequest], Awaitable[health_pb2.HealthCheckResponse]]


class Readiness:
    """Asks every part at once; callers that come meanwhile share the answer, so that probes cost the mesh little."""

    def __init__(self, channels: Mapping[str, grpc.aio.Channel], needed: Collection[str]) -> None:
        """`needed` are the parts without which the gateway is not ready."""
        self.needed = needed
        self._parts = {name: check(channel) for name, channel in channels.items()}
        self._under_way: asyncio.Task[dict[str, str]] | None = None

    async def __call__(self) -> dict[str, str]:
        """Each part's state: "serving", or in a word why not. Takes at most a second."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(self._ask())
        return await asyncio.shield(self._under_way)

    async def _ask(self) -> dict[str, str]:
        states = await asyncio.gather(*(state(part) for part in self._parts.values()))
        return dict(zip(self._parts, states, strict=True))


def check(channel: grpc.aio.Channel) -> Check:
    """The call of gRPC's own health service."""
    call: Check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return call


async def state(part: Check) -> str:
    """One part's state."""
    try:
        async with asyncio.timeout(CHECK_S):
            answer = await part(health_pb2.HealthCheckRequest())
    except Error as error:
        return error.reason.lower()
    except TimeoutError:
        return "unavailable"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)).lower()
