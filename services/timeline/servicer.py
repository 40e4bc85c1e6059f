"""The RPCs of TimelineService: each hands its request to the feed and answers with what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feedmesh.timeline.v1 import timeline_pb2 as pb
from feedmesh.timeline.v1 import timeline_pb2_grpc
from runtime import errors
from runtime.paging import DEFAULT_LIMIT, require_fitting
from services.timeline.explain import explain
from services.timeline.feed import Parts, get_feeds

SERVICE = pb.DESCRIPTOR.services_by_name["TimelineService"]


@dataclass(frozen=True)
class TimelineServicer(timeline_pb2_grpc.TimelineServiceServicer):
    """TimelineService on the other services."""

    parts: Parts

    async def GetFeed(self, request: pb.GetFeedRequest, context: Any) -> pb.GetFeedResponse:
        [result] = await get_feeds(self.parts, [request])
        if isinstance(result, errors.Error):
            raise result
        return result

    async def ExplainPost(self, request: pb.ExplainPostRequest, context: Any) -> pb.ExplainPostResponse:
        return await explain(self.parts, request)

    async def BatchGetFeed(self, request: pb.BatchGetFeedRequest, context: Any) -> pb.BatchGetFeedResponse:
        require_fitting(sum(item.limit or DEFAULT_LIMIT for item in request.items))
        response = pb.BatchGetFeedResponse()
        for result in await get_feeds(self.parts, request.items):
            if isinstance(result, errors.Error):
                response.items.add(error=result.status())
            else:
                response.items.add(feed=result)
        return response
