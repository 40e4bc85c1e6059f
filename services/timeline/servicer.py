"""The RPCs of TimelineService: each hands its request to the feed and answers with what comes back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from feedmesh.timeline.v1 import timeline_pb2 as pb
from feedmesh.timeline.v1 import timeline_pb2_grpc
from runtime import errors, wire
from runtime.coalesce import Coalescer, outcomes
from runtime.paging import MAX_BATCH_POSTS, most_posts, require_fitting
from services.timeline.explain import explain
from services.timeline.feed import Parts, get_feeds
from services.timeline.notifications import Notifications
from services.timeline.show import show_live
from services.timeline.watch import Watches

SERVICE = pb.DESCRIPTOR.services_by_name["TimelineService"]
Feeds = wire.closed(pb.BatchGetFeedResponse.DESCRIPTOR, [pb.GetFeedResponse.DESCRIPTOR])


@dataclass(frozen=True)
class TimelineServicer(timeline_pb2_grpc.TimelineServiceServicer):
    """TimelineService on the other services."""

    parts: Parts
    watches: Watches
    notifications: Notifications

    @cached_property
    def _feeds(self) -> Coalescer[pb.GetFeedRequest, bytes]:
        """Pages that are asked for one by one, made together."""
        return Coalescer("feeds", partial(get_feeds, self.parts), max_weight=MAX_BATCH_POSTS, weigh=most_posts)

    async def GetFeed(self, request: pb.GetFeedRequest, context: Any) -> bytes:  # type: ignore[override]
        return await self._feeds(request)

    async def ExplainPost(self, request: pb.ExplainPostRequest, context: Any) -> pb.ExplainPostResponse:
        return await explain(self.parts, request)

    async def ListNotifications(
        self, request: pb.ListNotificationsRequest, context: Any
    ) -> pb.ListNotificationsResponse:
        [page] = await self.notifications.pages([request])
        if isinstance(page, errors.Error):
            raise page
        return page

    async def ReadNotifications(
        self, request: pb.ReadNotificationsRequest, context: Any
    ) -> pb.ReadNotificationsResponse:
        return await self.notifications.read(request)

    async def BatchListNotifications(
        self, request: pb.BatchListNotificationsRequest, context: Any
    ) -> pb.BatchListNotificationsResponse:
        return outcomes(pb.BatchListNotificationsResponse(), await self.notifications.pages(request.items))

    def WatchFeed(
        self, request_iterator: AsyncIterator[pb.WatchFeedRequest], context: Any
    ) -> AsyncGenerator[pb.WatchFeedResponse, None]:
        return self.watches.watch(request_iterator)

    async def BatchGetLivePosts(self, request: pb.BatchGetLivePostsRequest, context: Any) -> bytes:  # type: ignore[override]
        return await show_live(self.parts, request)

    async def BatchGetFeed(self, request: pb.BatchGetFeedRequest, context: Any) -> bytes:  # type: ignore[override]
        require_fitting(sum(map(most_posts, request.items)))
        return bytes(outcomes(Feeds(), await get_feeds(self.parts, request.items)).SerializeToString())
