"""The RPCs of GraphService: each hands its request to a use case and answers with what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feedmesh.graph.v1 import graph_pb2 as pb
from feedmesh.graph.v1 import graph_pb2_grpc
from runtime.paging import Cursors
from runtime.postgres import Pool
from services.graph import follows, store, users

SERVICE = pb.DESCRIPTOR.services_by_name["GraphService"]


@dataclass(frozen=True)
class GraphServicer(graph_pb2_grpc.GraphServiceServicer):
    """GraphService on its database."""

    pool: Pool
    cursors: Cursors
    max_following: int

    async def CreateUser(self, request: pb.CreateUserRequest, context: Any) -> pb.CreateUserResponse:
        return await users.create_user(self.pool, request)

    async def GetUser(self, request: pb.GetUserRequest, context: Any) -> pb.GetUserResponse:
        return pb.GetUserResponse(user=await users.get_user(self.pool, request.user_id, request.viewer_id))

    async def Follow(self, request: pb.FollowRequest, context: Any) -> pb.FollowResponse:
        return await follows.follow(self.pool, request, self.max_following)

    async def Unfollow(self, request: pb.UnfollowRequest, context: Any) -> pb.UnfollowResponse:
        return await follows.unfollow(self.pool, request)

    async def ListFollowers(self, request: pb.ListFollowersRequest, context: Any) -> pb.ListFollowersResponse:
        return await follows.list_followers(self.pool, self.cursors, request)

    async def ListFollowing(self, request: pb.ListFollowingRequest, context: Any) -> pb.ListFollowingResponse:
        return await follows.list_following(self.pool, self.cursors, request)

    async def BatchGetUsers(self, request: pb.BatchGetUsersRequest, context: Any) -> pb.BatchGetUsersResponse:
        rows = await store.usernames(self.pool, list(request.user_ids))
        return pb.BatchGetUsersResponse(users=[pb.User(user_id=user_id, username=name) for user_id, name in rows])

    async def BatchGetRelations(
        self, request: pb.BatchGetRelationsRequest, context: Any
    ) -> pb.BatchGetRelationsResponse:
        return await follows.get_relations(self.pool, request)

    async def BatchListFollowerIds(
        self, request: pb.BatchListFollowerIdsRequest, context: Any
    ) -> pb.BatchListFollowerIdsResponse:
        return await follows.list_follower_ids(self.pool, request)

    async def BatchGetFollowerCounts(
        self, request: pb.BatchGetFollowerCountsRequest, context: Any
    ) -> pb.BatchGetFollowerCountsResponse:
        return await follows.get_follower_counts(self.pool, request)

    async def ListFollowerCounts(
        self, request: pb.ListFollowerCountsRequest, context: Any
    ) -> pb.ListFollowerCountsResponse:
        return await follows.list_follower_counts(self.pool, request)
