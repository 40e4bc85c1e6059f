"""The RPCs of PostService: each hands its request to a use case and answers with what comes back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from feedmesh.post.v1 import post_pb2 as pb
from feedmesh.post.v1 import post_pb2_grpc
from runtime import errors, wire
from runtime.coalesce import Coalescer, outcomes
from runtime.paging import MAX_BATCH_POSTS, Cursors, most_posts, require_fitting
from runtime.postgres import Pool
from services.post import audit, comments, export, likes, media, posts, skeleton
from services.post.acts import MAX_BATCH
from services.post.config import MAX_MEDIA_BYTES
from services.post.hot import HotPosts
from services.post.hydrate import hydrate_one
from services.post.sight import Sights

SERVICE = pb.DESCRIPTOR.services_by_name["PostService"]
PagesOf = wire.closed(pb.BatchListUserPostsResponse.DESCRIPTOR, [pb.ListUserPostsResponse.DESCRIPTOR])


@dataclass(frozen=True)
class PostServicer(post_pb2_grpc.PostServiceServicer):
    """PostService on its database and the graph service."""

    pool: Pool
    sights: Sights
    cursors: Cursors
    max_media_bytes: int = MAX_MEDIA_BYTES

    @cached_property
    def hot(self) -> HotPosts:
        """The posts that feeds showed last."""
        return HotPosts(self.pool)

    # What comes alone goes together with what else comes alone.

    @cached_property
    def _create_post(self) -> Coalescer[pb.CreatePostRequest, pb.CreatePostResponse]:
        return Coalescer("CreatePost", partial(posts.create_posts, self.pool, self.sights), max_weight=MAX_BATCH)

    @cached_property
    def _like_post(self) -> Coalescer[pb.LikePostRequest, pb.LikePostResponse]:
        return Coalescer("LikePost", partial(likes.like_posts, self.pool, self.sights), max_weight=MAX_BATCH)

    @cached_property
    def _unlike_post(self) -> Coalescer[pb.UnlikePostRequest, pb.UnlikePostResponse]:
        return Coalescer("UnlikePost", partial(likes.unlike_posts, self.pool, self.sights), max_weight=MAX_BATCH)

    @cached_property
    def _create_comment(self) -> Coalescer[pb.CreateCommentRequest, pb.CreateCommentResponse]:
        return Coalescer(
            "CreateComment", partial(comments.create_comments, self.pool, self.sights), max_weight=MAX_BATCH
        )

    @cached_property
    def _pages_of(self) -> Coalescer[pb.ListUserPostsRequest, Any]:
        work = partial(posts.list_user_posts, self.hot, self.sights, self.cursors)
        return Coalescer("ListUserPosts", work, max_weight=MAX_BATCH_POSTS, weigh=most_posts)

    async def CreatePost(self, request: pb.CreatePostRequest, context: Any) -> pb.CreatePostResponse:
        return await self._create_post(request)

    async def BatchCreatePosts(self, request: pb.BatchCreatePostsRequest, context: Any) -> pb.BatchCreatePostsResponse:
        return outcomes(pb.BatchCreatePostsResponse(), await posts.create_posts(self.pool, self.sights, request.items))

    async def GetPost(self, request: pb.GetPostRequest, context: Any) -> pb.GetPostResponse:
        return pb.GetPostResponse(post=await hydrate_one(self.pool, self.sights, request.post_id, request.viewer_id))

    async def DeletePost(self, request: pb.DeletePostRequest, context: Any) -> pb.DeletePostResponse:
        return await posts.delete_post(self.pool, self.sights, request)

    async def ListUserPosts(self, request: pb.ListUserPostsRequest, context: Any) -> bytes:  # type: ignore[override]
        return bytes((await self._pages_of(request)).SerializeToString())

    async def BatchListUserPosts(self, request: pb.BatchListUserPostsRequest, context: Any) -> bytes:  # type: ignore[override]
        require_fitting(sum(map(most_posts, request.items)))
        pages = await posts.list_user_posts(self.hot, self.sights, self.cursors, request.items)
        results = [page if isinstance(page, errors.Error) else page.SerializeToString() for page in pages]
        return bytes(outcomes(PagesOf(), results).SerializeToString())

    async def LikePost(self, request: pb.LikePostRequest, context: Any) -> pb.LikePostResponse:
        return await self._like_post(request)

    async def BatchLikePosts(self, request: pb.BatchLikePostsRequest, context: Any) -> pb.BatchLikePostsResponse:
        return outcomes(pb.BatchLikePostsResponse(), await likes.like_posts(self.pool, self.sights, request.items))

    async def UnlikePost(self, request: pb.UnlikePostRequest, context: Any) -> pb.UnlikePostResponse:
        return await self._unlike_post(request)

    async def BatchUnlikePosts(self, request: pb.BatchUnlikePostsRequest, context: Any) -> pb.BatchUnlikePostsResponse:
        return outcomes(pb.BatchUnlikePostsResponse(), await likes.unlike_posts(self.pool, self.sights, request.items))

    async def SharePost(self, request: pb.SharePostRequest, context: Any) -> pb.SharePostResponse:
        return await posts.share_post(self.pool, self.sights, request)

    async def CreateComment(self, request: pb.CreateCommentRequest, context: Any) -> pb.CreateCommentResponse:
        return await self._create_comment(request)

    async def BatchCreateComments(
        self, request: pb.BatchCreateCommentsRequest, context: Any
    ) -> pb.BatchCreateCommentsResponse:
        return outcomes(
            pb.BatchCreateCommentsResponse(), await comments.create_comments(self.pool, self.sights, request.items)
        )

    async def ListComments(self, request: pb.ListCommentsRequest, context: Any) -> pb.ListCommentsResponse:
        return await comments.list_comments(self.pool, self.sights, self.cursors, request)

    async def DeleteComment(self, request: pb.DeleteCommentRequest, context: Any) -> pb.DeleteCommentResponse:
        return await comments.delete_comment(self.pool, self.sights, request)

    async def BatchGetPosts(self, request: pb.BatchGetPostsRequest, context: Any) -> bytes:  # type: ignore[override]
        require_fitting(sum(len(item.post_ids) for item in request.items))
        return await skeleton.get_posts(self.hot, self.sights, request)

    async def BatchListActs(self, request: pb.BatchListActsRequest, context: Any) -> pb.BatchListActsResponse:
        return await skeleton.list_acts(self.pool, request)

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

    async def CreateMedia(self, request: pb.CreateMediaRequest, context: Any) -> pb.CreateMediaResponse:
        return await media.create_media(self.pool, self.sights, self.max_media_bytes, request)

    async def BatchGetPublicMedia(
        self, request: pb.BatchGetPublicMediaRequest, context: Any
    ) -> pb.BatchGetPublicMediaResponse:
        return await media.get_public(self.pool, self.sights, request.media_ids)

    def ExportUser(self, request: pb.ExportUserRequest, context: Any) -> AsyncGenerator[pb.ExportUserResponse, None]:
        return export.export_user(self.pool, self.sights, request.user_id)

    async def CountTraces(self, request: pb.CountTracesRequest, context: Any) -> pb.CountTracesResponse:
        return await audit.count_traces(self.pool, request.user_id)
