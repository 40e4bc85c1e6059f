"""The RPCs of GraphService: each hands its request to a use case and answers with what comes back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from feedmesh.graph.v1 import graph_pb2 as pb
from feedmesh.graph.v1 import graph_pb2_grpc
from runtime.paging import Cursors
from runtime.postgres import Pool
from services.graph import blocks, export, follows, relations, store, users
from services.graph.passwords import Passwords

SERVICE = pb.DESCRIPTOR.services_by_name["GraphService"]


@dataclass(frozen=True)
class GraphServicer(graph_pb2_grpc.GraphServiceServicer):
    """GraphService on its database."""

    pool: Pool
    cursors: Cursors
    max_following: int
    passwords: Passwords = field(default_factory=Passwords)

    async def CreateUser(self, request: pb.CreateUserRequest, context: Any) -> pb.CreateUserResponse:
        return await users.create_user(self.pool, self.passwords, request)

    async def GetUser(self, request: pb.GetUserRequest, context: Any) -> pb.GetUserResponse:
        return pb.GetUserResponse(user=await users.get_user(self.pool, request.user_id, request.viewer_id))

    async def UpdateUser(self, request: pb.UpdateUserRequest, context: Any) -> pb.UpdateUserResponse:
        return await users.update_user(self.pool, request)

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: Any) -> pb.DeleteUserResponse:
        return await users.delete_user(self.pool, request)

    async def Follow(self, request: pb.FollowRequest, context: Any) -> pb.FollowResponse:
        return await follows.follow(self.pool, request, self.max_following)

    async def Unfollow(self, request: pb.UnfollowRequest, context: Any) -> pb.UnfollowResponse:
        return await follows.unfollow(self.pool, request)

    async def AcceptFollowRequest(
        self, request: pb.AcceptFollowRequestRequest, context: Any
    ) -> pb.AcceptFollowRequestResponse:
        return await follows.accept(self.pool, request)

    async def RejectFollowRequest(
        self, request: pb.RejectFollowRequestRequest, context: Any
    ) -> pb.RejectFollowRequestResponse:
        return await follows.reject(self.pool, request)

    async def ListFollowRequests(
        self, request: pb.ListFollowRequestsRequest, context: Any
    ) -> pb.ListFollowRequestsResponse:
        return await follows.list_requests(self.pool, self.cursors, request)

    async def Block(self, request: pb.BlockRequest, context: Any) -> pb.BlockResponse:
        return await blocks.block(self.pool, request)

    async def Unblock(self, request: pb.UnblockRequest, context: Any) -> pb.UnblockResponse:
        return await blocks.unblock(self.pool, request)

    async def ListBlocks(self, request: pb.ListBlocksRequest, context: Any) -> pb.ListBlocksResponse:
        return await blocks.list_blocks(self.pool, self.cursors, request)

    async def Mute(self, request: pb.MuteRequest, context: Any) -> pb.MuteResponse:
        return await blocks.mute(self.pool, request)

    async def Unmute(self, request: pb.UnmuteRequest, context: Any) -> pb.UnmuteResponse:
        return await blocks.unmute(self.pool, request)

    async def ListMutes(self, request: pb.ListMutesRequest, context: Any) -> pb.ListMutesResponse:
        return await blocks.list_mutes(self.pool, self.cursors, request)

    async def ListFollowers(self, request: pb.ListFollowersRequest, context: Any) -> pb.ListFollowersResponse:
        return await follows.list_followers(self.pool, self.cursors, request)

    async def ListFollowing(self, request: pb.ListFollowingRequest, context: Any) -> pb.ListFollowingResponse:
        return await follows.list_following(self.pool, self.cursors, request)

    async def BatchGetUsers(self, request: pb.BatchGetUsersRequest, context: Any) -> pb.BatchGetUsersResponse:
        rows = await store.people(self.pool, list(request.user_ids))
        return pb.BatchGetUsersResponse(
            users=[pb.User(user_id=user_id, username=name, private=private) for user_id, name, private in rows]
        )

    async def ListUserChanges(self, request: pb.ListUserChangesRequest, context: Any) -> pb.ListUserChangesResponse:
        return await users.list_changes(self.pool, request)

    async def BatchGetRelations(
        self, request: pb.BatchGetRelationsRequest, context: Any
    ) -> pb.BatchGetRelationsResponse:
        return await relations.get_relations(self.pool, request)

    async def BatchListFollowerIds(
        self, request: pb.BatchListFollowerIdsRequest, context: Any
    ) -> pb.BatchListFollowerIdsResponse:
        return await relations.list_follower_ids(self.pool, request)

    async def BatchGetUserIds(self, request: pb.BatchGetUserIdsRequest, context: Any) -> pb.BatchGetUserIdsResponse:
        return await relations.get_user_ids(self.pool, request)

    async def BatchListFollowActs(
        self, request: pb.BatchListFollowActsRequest, context: Any
    ) -> pb.BatchListFollowActsResponse:
        return await relations.list_follow_acts(self.pool, request)

    async def BatchGetFollowerCounts(
        self, request: pb.BatchGetFollowerCountsRequest, context: Any
    ) -> pb.BatchGetFollowerCountsResponse:
        return await relations.get_follower_counts(self.pool, request)

    async def ListFollowerCounts(
        self, request: pb.ListFollowerCountsRequest, context: Any
    ) -> pb.ListFollowerCountsResponse:
        return await relations.list_follower_counts(self.pool, request)

    def ExportUser(self, request: pb.ExportUserRequest, context: Any) -> AsyncGenerator[pb.ExportUserResponse, None]:
        return export.export_user(self.pool, request.user_id)

    async def CountTraces(self, request: pb.CountTracesRequest, context: Any) -> pb.CountTracesResponse:
        return await users.count_traces(self.pool, request.user_id)
