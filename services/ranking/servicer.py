"""The RPCs of RankingService."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from feedmesh.ranking.v1 import ranking_pb2 as pb
from feedmesh.ranking.v1 import ranking_pb2_grpc
from runtime.clock import Clock
from services.ranking.memory import Memory
from services.ranking.rank import explain, rank

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

SERVICE = pb.DESCRIPTOR.services_by_name["RankingService"]


@dataclass(frozen=True)
class RankingServicer(ranking_pb2_grpc.RankingServiceServicer):
    """RankingService on what it remembers, and otherwise on what the post service knows."""

    post: PostServiceAsyncStub
    clock: Clock
    memory: Memory = field(default_factory=Memory)
    """Without one, all is asked of the post service."""

    async def BatchRank(self, request: pb.BatchRankRequest, context: Any) -> pb.BatchRankResponse:
        return await rank(self.post, self.clock, self.memory, request)

    async def ExplainRank(self, request: pb.ExplainRankRequest, context: Any) -> pb.ExplainRankResponse:
        return await explain(self.post, self.clock, self.memory, request)

    async def CountTraces(self, request: pb.CountTracesRequest, context: Any) -> pb.CountTracesResponse:
        count = self.memory.affinities.traces(request.user_id)
        return pb.CountTracesResponse(traces=[pb.CountTracesResponse.Trace(place="affinities (memory)", count=count)])
