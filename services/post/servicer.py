"""The RPCs of PostService: each hands its request to a use case and answers with what comes back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from feedmesh.post.v1 import post_pb2 as pb
from feedmesh.post.v1 import post_pb2_grpc
from runtime.paging import Cursors, require_fitting
from runtime.postgres import Pool
from services.post import audit, comments, export, likes, posts, skeleton
from services.post.hydrate import hydrate, hydrate_one
from services.post.sight import Sights, Viewer

SERVICE = pb.DESCRIPTOR.services_by_name["PostService"]


@dataclass(frozen=True)
class PostServicer(post_pb2_grpc.PostServiceServicer):
    """PostService on its database and the graph service."""

    pool: Pool
    sights: Sights
    cursors: Cursors

    async def CreatePost(self, request: pb.CreatePostRequest, context: Any) -> pb.CreatePostResponse:
        return await posts.create_post(self.pool, self.sights, request)

    async def GetPost(self, request: pb.GetPostRequest, context: Any) -> pb.GetPostResponse:
        return pb.GetPostResponse(post=await hydrate_one(self.pool, self.sights, request.post_id, request.viewer_id))

    async def DeletePost(self, request: pb.DeletePostRequest, context: Any) -> pb.DeletePostResponse:
        return await posts.delete_post(self.pool, self.sights, request)

    async def ListUserPosts(self, request: pb.ListUserPostsRequest, context: Any) -> pb.ListUserPostsResponse:
        return await posts.list_user_posts(self.pool, self.sights, self.cursors, request)

    async def LikePost(self, request: pb.LikePostRequest, context: Any) -> pb.LikePostResponse:
        return await likes.like_post(self.pool, self.sights, request)

    async def UnlikePost(self, request: pb.UnlikePostRequest, context: Any) -> pb.UnlikePostResponse:
        return await likes.unlike_post(self.pool, self.sights, request)

    async def SharePost(self, request: pb.SharePostRequest, context: Any) -> pb.SharePostResponse:
        return await posts.share_post(self.pool, self.sights, request)

    async def CreateComment(self, request: pb.CreateCommentRequest, context: Any) -> pb.CreateCommentResponse:
        return await comments.create_comment(self.pool, self.sights, request)

    async def ListComments(self, request: pb.ListCommentsRequest, context: Any) -> pb.ListCommentsResponse:
        return await comments.list_comments(self.pool, self.sights, self.cursors, request)

    async def DeleteComment(self, request: pb.DeleteCommentRequest, context: Any) -> pb.DeleteCommentResponse:
        return await comments.delete_comment(self.pool, self.sights, request)

    async def BatchGetPosts(self, request: pb.BatchGetPostsRequest, context: Any) -> pb.BatchGetPostsResponse:
        require_fitting(sum(len(item.post_ids) for item in request.items))
        pages = await hydrate(
            self.pool,
            self.sights,
            [
                (Viewer(item.viewer_id, item.relations_version, item.relations_kept), item.post_ids)
                for item in request.items
            ],
        )
        return pb.BatchGetPostsResponse(items=[pb.BatchGetPostsResponse.Item(posts=page) for page in pages])

    async def BatchListNewest(self, request: pb.BatchListNewestRequest, context: Any) -> pb.BatchListNewestResponse:
        return await skeleton.list_newest(self.pool, request)

    async def BatchListSharers(self, request: pb.BatchListSharersRequest, context: Any) -> pb.BatchListSharersResponse:
        return await skeleton.list_sharers(self.pool, request)

    async def BatchGetEngagement(
        self, request: pb.BatchGetEngagementRequest, context: Any
    ) -> pb.BatchGetEngagementResponse:
        return await skeleton.get_engagement(self.pool, request)

    async def ListEngagement(self, request: pb.ListEngagementRequest, context: Any) -> pb.ListEngagementResponse:
        return await skeleton.list_engagement(self.pool, request)

    async def ListPostCounts(self, request: pb.ListPostCountsRequest, context: Any) -> pb.ListPostCountsResponse:
        return await skeleton.list_post_counts(self.pool, request)

    async def ListPostRows(self, request: pb.ListPostRowsRequest, context: Any) -> pb.ListPostRowsResponse:
        return await audit.list_post_rows(self.pool, request)

    async def GetPostRows(self, request: pb.GetPostRowsRequest, context: Any) -> pb.GetPostRowsResponse:
        return await audit.get_post_rows(self.pool, request)

    def ExportUser(self, request: pb.ExportUserRequest, context: Any) -> AsyncGenerator[pb.ExportUserResponse, None]:
        return export.export_user(self.pool, self.sights.graph, request.user_id)

    async def CountTraces(self, request: pb.CountTracesRequest, context: Any) -> pb.CountTracesResponse:
        return await audit.count_traces(self.pool, request.user_id)
