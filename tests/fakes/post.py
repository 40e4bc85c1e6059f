"""The post service in dictionaries, on the people of a fake graph."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2 as pb
from feedmesh.post.v1 import post_pb2_grpc
from runtime import errors, ids, members, validation
from runtime.clock import Clock, wall_clock
from runtime.media import MediaUrls, path
from runtime.paging import DEFAULT_LIMIT, Cursors, most_posts, require_fitting
from services.post.mentions import names
from tests.fakes.graph import FakeGraph
from tests.fakes.idempotency import Answers
from tests.fakes.ids import NextId

M = TypeVar("M", bound=Message)
HOUR_MS = 3_600_000
MAX_SHARERS = 20
MAX_UNATTACHED = 100
AFFINITY_DEPTH = 200


@dataclass
class Entry:
    """A post, quote (it has `shared_post_id` and content) or plain share (no content)."""

    post_id: int
    user_id: int
    content: str = ""
    media_url: str = ""
    visibility: pb.Visibility.ValueType = pb.VISIBILITY_PUBLIC
    shared_post_id: int | None = None
    deleted: bool = False

    @property
    def original_id(self) -> int:
        """The post that a plain share repeats; the post itself otherwise."""
        return self.shared_post_id if self.shared_post_id is not None and not self.content else self.post_id


@dataclass
class Remark:
    """A comment."""

    comment_id: int
    post_id: int
    user_id: int
    content: str
    deleted: bool = False


@dataclass
class Mention:
    """Whom a post or comment mentions, or whose post it quotes."""

    mention_id: int
    user_id: int
    actor_id: int
    post_id: int
    comment_id: int = 0
    is_quote: bool = False


class FakePost(post_pb2_grpc.PostServiceServicer):
    """PostService as its contract says."""

    def __init__(self, graph: FakeGraph, *, clock: Clock = wall_clock) -> None:
        self.posts: dict[int, Entry] = {}
        self.likes: dict[tuple[int, int], int] = {}
        """The id of each like, by post and user."""
        self.comments: dict[int, Remark] = {}
        self.mentions: list[Mention] = []
        self._transactions = 1
        self._wrote: dict[int, int] = {}
        """In which transaction someone last wrote, shared or deleted something."""
        self._graph = graph
        self._clock = clock
        self._next_id = NextId(clock)
        self._answers = Answers()
        self._cursors = Cursors("the secret of the fake posts, which is long enough")
        self._urls = MediaUrls("the secret of the fake posts, which is long enough", clock=clock)
        self._media: dict[tuple[int, str], pb.Media] = {}
        """What each person uploaded, its media_url without a signature."""

    # What is there to be seen.

    def there(self, post_id: int) -> Entry | None:
        """A post that is not gone and repeats none that is."""
        entry = self.posts.get(post_id)
        return entry if entry and not self._gone(entry) and not self._gone(self.posts[entry.original_id]) else None

    def seen(self, post_id: int, viewer_id: int) -> Entry | None:
        """A post that is there and that the viewer (0: a stranger) may see, and what it repeats too."""
        entry = self.there(post_id)
        if entry and self._open_to(entry, viewer_id) and self._open_to(self.posts[entry.original_id], viewer_id):
            return entry
        return None

    def entries(self) -> list[Entry]:
        """All posts that are there, newest first."""
        return sorted(filter(None, map(self.there, self.posts)), key=lambda entry: -entry.post_id)

    def likes_of(self, post_id: int) -> list[int]:
        """The ids of a post's likes."""
        return [
            like_id
            for (liked, user_id), like_id in self.likes.items()
            if liked == post_id and user_id not in self._graph.erased
        ]

    def comments_of(self, post_id: int) -> list[Remark]:
        """A post's comments, oldest first."""
        there = [remark for remark in self.comments.values() if remark.post_id == post_id and not self._gone(remark)]
        return sorted(there, key=lambda remark: remark.comment_id)

    def shares_of(self, post_id: int) -> list[int]:
        """The ids of a post's plain shares and quotes."""
        return [e.post_id for e in self.posts.values() if e.shared_post_id == post_id and not self._gone(e)]

    # Posts.

    async def CreatePost(self, request: pb.CreatePostRequest, context: Any) -> pb.CreatePostResponse:
        self._graph.username(request.user_id)

        def work() -> pb.CreatePostResponse:
            visibility = request.visibility or pb.VISIBILITY_PUBLIC
            media_url = request.media_url
            if media_id := self._urls.media_id(media_url):
                if (request.user_id, media_id) not in self._media:
                    raise errors.InvalidArgument(errors.Violation("media_url", "is no media of the author's"))
                media_url = self._media[request.user_id, media_id].media_url
            entry = self._add(Entry(self._next_id(), request.user_id, request.content, media_url, visibility))
            self._mention(request.user_id, request.content, entry.post_id)
            return pb.CreatePostResponse(post=self._present(entry, request.user_id))

        return self._answers.once(request, request.user_id, work)

    async def GetPost(self, request: pb.GetPostRequest, context: Any) -> pb.GetPostResponse:
        entry = self._found(request.post_id, request.viewer_id)
        return pb.GetPostResponse(post=self._present(entry, request.viewer_id))

    async def DeletePost(self, request: pb.DeletePostRequest, context: Any) -> pb.DeletePostResponse:
        def work() -> pb.DeletePostResponse:
            entry = self.posts.get(request.post_id)
            if entry is None or (entry.user_id != request.user_id and not self.seen(entry.post_id, request.user_id)):
                raise not_found(request.post_id)
            if entry.user_id != request.user_id:
                raise errors.Forbidden("NOT_OWNER")
            entry.deleted = True
            self._note(entry)
            return pb.DeletePostResponse()

        return self._answers.once(request, request.user_id, work)

    async def ListUserPosts(self, request: pb.ListUserPostsRequest, context: Any) -> pb.ListUserPostsResponse:
        scope = ("posts", request.user_id, request.viewer_id)
        before = self._cursors.open_id(scope, request.cursor, first=ids.MAX_ID + 1)
        self._graph.shown(request.user_id, request.viewer_id)
        limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        own = [entry for entry in self.entries() if entry.user_id == request.user_id and entry.post_id < before]
        left = [entry for entry in own if self.seen(entry.post_id, request.viewer_id)]
        page = left[:limit]
        return pb.ListUserPostsResponse(
            posts=[self._present(entry, request.viewer_id) for entry in page],
            next_cursor=self._cursors.seal_id(scope, page[-1].post_id) if len(left) > limit else None,
        )

    async def SharePost(self, request: pb.SharePostRequest, context: Any) -> pb.SharePostResponse:
        self._graph.username(request.user_id)

        def work() -> pb.SharePostResponse:
            original_id = self._target(request.post_id, request.user_id).post_id
            content = request.content if request.content.strip() else ""
            mine = (e for e in self._plain_shares(original_id) if e.user_id == request.user_id and not content)
            share = next(mine, None) or self._add(
                Entry(self._next_id(), request.user_id, content, shared_post_id=original_id)
            )
            if content:
                author_id = self.posts[original_id].user_id
                self._mention(request.user_id, content, share.post_id, but=author_id)
                if author_id != request.user_id:
                    quote = Mention(self._next_id(), author_id, request.user_id, share.post_id, is_quote=True)
                    self.mentions.append(quote)
            return pb.SharePostResponse(post=self._present(share, request.user_id))

        answer = pb.SharePostResponse()
        answer.CopyFrom(self._answers.once(request, request.user_id, work))
        # Of the original no answer is kept.
        original_id = answer.post.shared_post.post_id
        answer.post.ClearField("shared_post")
        if original := self.seen(original_id, request.user_id):
            answer.post.shared_post.CopyFrom(self._present(original, request.user_id, nested=True))
        return answer

    # Likes and comments.

    async def LikePost(self, request: pb.LikePostRequest, context: Any) -> pb.LikePostResponse:
        self._graph.username(request.user_id)

        def work() -> pb.LikePostResponse:
            post_id = self._target(request.post_id, request.user_id).post_id
            self.likes.setdefault((post_id, request.user_id), self._next_id())
            return pb.LikePostResponse(post_id=post_id, liked=True, likes=len(self.likes_of(post_id)))

        return self._answers.once(request, request.user_id, work)

    async def UnlikePost(self, request: pb.UnlikePostRequest, context: Any) -> pb.UnlikePostResponse:
        self._graph.username(request.user_id)

        def work() -> pb.UnlikePostResponse:
            post_id = self._target(request.post_id, request.user_id).post_id
            self.likes.pop((post_id, request.user_id), None)
            return pb.UnlikePostResponse(post_id=post_id, liked=False, likes=len(self.likes_of(post_id)))

        return self._answers.once(request, request.user_id, work)

    async def CreateComment(self, request: pb.CreateCommentRequest, context: Any) -> pb.CreateCommentResponse:
        self._graph.username(request.user_id)

        def work() -> pb.CreateCommentResponse:
            post_id = self._target(request.post_id, request.user_id).post_id
            remark = Remark(self._next_id(), post_id, request.user_id, request.content)
            self.comments[remark.comment_id] = remark
            self._mention(request.user_id, request.content, post_id, remark.comment_id)
            return pb.CreateCommentResponse(comment=self._present_comment(remark))

        return self._answers.once(request, request.user_id, work)

    async def ListComments(self, request: pb.ListCommentsRequest, context: Any) -> pb.ListCommentsResponse:
        scope = ("comments", request.post_id, request.viewer_id)
        after = self._cursors.open_id(scope, request.cursor, first=0)
        limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        under = self._target(request.post_id, request.viewer_id).post_id
        shown = (c for c in self.comments_of(under) if not self._graph.separated(c.user_id, request.viewer_id))
        left = [remark for remark in shown if remark.comment_id > after]
        page = left[:limit]
        return pb.ListCommentsResponse(
            comments=[self._present_comment(remark) for remark in page],
            next_cursor=self._cursors.seal_id(scope, page[-1].comment_id) if len(left) > limit else None,
        )

    async def DeleteComment(self, request: pb.DeleteCommentRequest, context: Any) -> pb.DeleteCommentResponse:
        def work() -> pb.DeleteCommentResponse:
            remark = self.comments.get(request.comment_id)
            post = self.there(remark.post_id) if remark else None
            if remark is None or post is None:
                raise errors.NotFound("COMMENT_NOT_FOUND")
            own = request.user_id in (remark.user_id, post.user_id)
            if not own and (self._gone(remark) or not self.seen(post.post_id, request.user_id)):
                raise errors.NotFound("COMMENT_NOT_FOUND")
            if not own:
                raise errors.Forbidden("NOT_OWNER")
            remark.deleted = True
            return pb.DeleteCommentResponse()

        return self._answers.once(request, request.user_id, work)

    # Batches of these.

    async def BatchCreatePosts(self, request: pb.BatchCreatePostsRequest, context: Any) -> pb.BatchCreatePostsResponse:
        return await each(self.CreatePost, request.items, pb.BatchCreatePostsResponse())

    async def BatchListUserPosts(
        self, request: pb.BatchListUserPostsRequest, context: Any
    ) -> pb.BatchListUserPostsResponse:
        require_fitting(sum(map(most_posts, request.items)))
        return await each(self.ListUserPosts, request.items, pb.BatchListUserPostsResponse())

    async def BatchLikePosts(self, request: pb.BatchLikePostsRequest, context: Any) -> pb.BatchLikePostsResponse:
        return await each(self.LikePost, request.items, pb.BatchLikePostsResponse())

    async def BatchUnlikePosts(self, request: pb.BatchUnlikePostsRequest, context: Any) -> pb.BatchUnlikePostsResponse:
        return await each(self.UnlikePost, request.items, pb.BatchUnlikePostsResponse())

    async def BatchCreateComments(
        self, request: pb.BatchCreateCommentsRequest, context: Any
    ) -> pb.BatchCreateCommentsResponse:
        return await each(self.CreateComment, request.items, pb.BatchCreateCommentsResponse())

    # Media.

    async def CreateMedia(self, request: pb.CreateMediaRequest, context: Any) -> pb.CreateMediaResponse:
        self._graph.username(request.user_id)
        key = (request.user_id, request.media_id)
        shown = {(entry.user_id, entry.media_url) for entry in self.posts.values() if not self._gone(entry)}
        waiting = [
            media
            for (user_id, _), media in self._media.items()
            if user_id == request.user_id and (user_id, media.media_url) not in shown
        ]
        if key not in self._media and len(waiting) >= MAX_UNATTACHED:
            raise errors.Refused("MEDIA_LIMIT")
        media = pb.Media(
            media_id=request.media_id,
            media_url=path(request.media_id, request.size),
            width=request.width,
            height=request.height,
            duration_ms=request.duration_ms,
            bytes=request.bytes,
            created_at=ids.timestamp(self._next_id()),
        )
        return pb.CreateMediaResponse(media=self._present_media(self._media.setdefault(key, media)))

    async def BatchGetPublicMedia(
        self, request: pb.BatchGetPublicMediaRequest, context: Any
    ) -> pb.BatchGetPublicMediaResponse:
        public = {self._urls.media_id(entry.media_url) for entry in self.entries() if self._is_public(entry)}
        return pb.BatchGetPublicMediaResponse(media_ids=sorted(public.intersection(request.media_ids)))

    def _present_media(self, media: pb.Media) -> pb.Media:
        presented = pb.Media.FromString(media.SerializeToString())
        presented.media_url = self._urls.shown(media.media_url, public=False)
        return presented

    # What feeds are made of.

    async def BatchGetPosts(self, request: pb.BatchGetPostsRequest, context: Any) -> pb.BatchGetPostsResponse:
        require_fitting(sum(len(item.post_ids) for item in request.items))
        response = pb.BatchGetPostsResponse()
        for item in request.items:
            entries = [e for post_id in item.post_ids if (e := self.seen(post_id, item.viewer_id))]
            if item.only_alike:
                entries = [
                    entry
                    for entry in entries
                    if entry.visibility == pb.VISIBILITY_PUBLIC
                    and entry.shared_post_id is None
                    and not self._graph.people[entry.user_id].private
                ]
            posts = [self._present(entry, item.viewer_id) for entry in entries]
            page = response.items.add(page=pb.PostPage(posts=posts))
            page.members = packed(entries)
            if item.HasField("sharers_up_to"):
                muted = {target for user_id, target in self._graph.mutes if user_id == item.viewer_id}
                self._add_sharers(page, item.viewer_id, item.sharers_up_to, muted)
            if item.HasField("own_as_of"):
                page.own_changed = self._wrote.get(item.viewer_id, 0) >= item.own_as_of
        response.as_of = self._transactions
        return response

    def _add_sharers(
        self, page: pb.BatchGetPostsResponse.Item, viewer_id: int, up_to: int, muted: Collection[int]
    ) -> None:
        """Adds what the page of a feed has besides."""
        read = {followee for follower, followee in self._graph.follows if follower == viewer_id} - set(muted)
        shares = []
        for post in page.page.posts:
            own = (e for e in self.entries() if e.original_id == post.post_id != e.post_id and e.post_id <= up_to)
            newest = [e for e in own if e.user_id in read | {viewer_id}][:MAX_SHARERS]
            shares += newest
            post.shared_by.extend(
                pb.Sharer(user_id=e.user_id, username=self._graph.username(e.user_id)) for e in newest
            )
            if post.shared_post.user_id in muted:
                post.ClearField("shared_post")
        page.shares = packed(sorted(shares, key=lambda share: -share.post_id))

    async def BatchListActs(self, request: pb.BatchListActsRequest, context: Any) -> pb.BatchListActsResponse:
        response = pb.BatchListActsResponse()
        for item in request.items:
            whose = {post_id: entry.user_id for post_id, entry in self.posts.items()}
            acts = [
                pb.Act(kind=pb.ACT_KIND_LIKED, act_id=like_id, user_id=user_id, post_id=post_id)
                for (post_id, user_id), like_id in self.likes.items()
            ]
            acts += [
                pb.Act(
                    kind=pb.ACT_KIND_COMMENTED,
                    act_id=each.comment_id,
                    user_id=each.user_id,
                    post_id=each.post_id,
                    comment_id=each.comment_id,
                )
                for each in self.comments.values()
                if not each.deleted
            ]
            acts += [
                pb.Act(kind=pb.ACT_KIND_SHARED, act_id=each.post_id, user_id=each.user_id, post_id=each.original_id)
                for each in self.posts.values()
                if each.original_id != each.post_id and not each.deleted
            ]
            acts = [act for act in acts if whose[act.post_id] == item.user_id != act.user_id]
            acts += [
                pb.Act(
                    kind=pb.ACT_KIND_QUOTED if each.is_quote else pb.ACT_KIND_MENTIONED,
                    act_id=each.mention_id,
                    user_id=each.actor_id,
                    post_id=each.post_id,
                    comment_id=each.comment_id,
                )
                for each in self.mentions
                if each.user_id == item.user_id
                and not self.posts[each.post_id].deleted
                and not (each.comment_id and self.comments[each.comment_id].deleted)
            ]
            left = sorted((act for act in acts if act.act_id < item.before_id), key=lambda act: -act.act_id)
            response.items.add(acts=left[: item.limit])
        return response

    def _mention(self, actor_id: int, text: str, post_id: int, comment_id: int = 0, *, but: int = 0) -> None:
        """Notes whom a text mentions."""
        known = {person.username.lower(): person.user_id for person in self._graph.people.values()}
        for name in names(text):
            if (user_id := known.get(name, 0)) and user_id not in (actor_id, but):
                self.mentions.append(Mention(self._next_id(), user_id, actor_id, post_id, comment_id))

    async def BatchListNewest(self, request: pb.BatchListNewestRequest, context: Any) -> pb.BatchListNewestResponse:
        response = pb.BatchListNewestResponse()
        for item in request.items:
            wanted = [
                entry
                for entry in self.entries()
                if entry.user_id in item.author_ids and item.min_post_id <= entry.post_id <= item.max_post_id
            ]
            response.items.add(members=packed(wanted[: item.limit]))
        if any(len(item.author_ids) == 1 for item in request.items):
            response.as_of = self._transactions
        return response

    async def BatchListSharers(self, request: pb.BatchListSharersRequest, context: Any) -> pb.BatchListSharersResponse:
        response = pb.BatchListSharersResponse()
        for item in request.items:
            named: Counter[int] = Counter()
            wanted = []
            for entry in self.entries():
                original_id = entry.original_id
                if (
                    original_id != entry.post_id
                    and original_id in item.original_ids
                    and entry.user_id in item.sharer_ids
                    and entry.post_id <= item.max_post_id
                    and named[original_id] < MAX_SHARERS
                ):
                    named[original_id] += 1
                    wanted.append(entry)
            response.items.add(members=packed(wanted))
        return response

    async def BatchGetEngagement(
        self, request: pb.BatchGetEngagementRequest, context: Any
    ) -> pb.BatchGetEngagementResponse:
        response = pb.BatchGetEngagementResponse()
        for item in request.items:
            there = [post_id if self.there(post_id) else 0 for post_id in item.post_ids]
            affinities = self._affinities(item.viewer_id)
            response.items.add(
                likes=[len(self.likes_of(post_id)) for post_id in there],
                comments=[len(self.comments_of(post_id)) for post_id in there],
                shares=[len(self.shares_of(post_id)) for post_id in there],
                heat=[self._heat(post_id) for post_id in there],
                affinity_author_ids=affinities.keys(),
                affinities=affinities.values(),
            )
        return response

    async def ListEngagement(self, request: pb.ListEngagementRequest, context: Any) -> pb.ListEngagementResponse:
        before = request.before_post_id or ids.MAX_ID + 1
        engaged = [entry.post_id for entry in self.entries() if entry.post_id < before and self._acts(entry.post_id)]
        page = engaged[: request.limit]
        return pb.ListEngagementResponse(
            post_ids=page,
            likes=[len(self.likes_of(post_id)) for post_id in page],
            comments=[len(self.comments_of(post_id)) for post_id in page],
            shares=[len(self.shares_of(post_id)) for post_id in page],
            heat=[self._heat(post_id) for post_id in page],
        )

    async def ListPostCounts(self, request: pb.ListPostCountsRequest, context: Any) -> pb.ListPostCountsResponse:
        left = (entry for entry in self.posts.values() if not self._gone(entry))
        posts = Counter(entry.user_id for entry in left if entry.post_id >= request.min_post_id)
        page = sorted(user_id for user_id in posts if user_id > request.after_user_id)[: request.limit]
        return pb.ListPostCountsResponse(user_ids=page, posts=[posts[user_id] for user_id in page])

    async def ListPostRows(self, request: pb.ListPostRowsRequest, context: Any) -> pb.ListPostRowsResponse:
        rows = [
            self._row(entry)
            for entry in sorted(self.posts.values(), key=lambda entry: -entry.post_id)
            if entry.user_id in request.author_ids
            and request.min_post_id <= entry.post_id <= request.max_post_id
            and not entry.deleted
        ]
        return pb.ListPostRowsResponse(rows=rows[: request.limit])

    async def GetPostRows(self, request: pb.GetPostRowsRequest, context: Any) -> pb.GetPostRowsResponse:
        return pb.GetPostRowsResponse(
            rows=[self._row(self.posts[post_id]) for post_id in set(request.post_ids) & self.posts.keys()]
        )

    async def ExportUser(self, request: pb.ExportUserRequest, context: Any) -> AsyncIterator[pb.ExportUserResponse]:
        records = 0
        async for record in self._exported(request.user_id):
            records += 1
            yield record
        yield pb.ExportUserResponse(end=pb.ExportEnd(records=records))

    async def _exported(self, user_id: int) -> AsyncIterator[pb.ExportUserResponse]:
        async for known in self._graph.ExportUser(graph_pb2.ExportUserRequest(user_id=user_id), None):
            yield pb.ExportUserResponse.FromString(known.SerializeToString())
        for entry in self.entries():
            if entry.user_id == user_id:
                post = pb.ExportedPost(
                    post_id=entry.post_id,
                    content=entry.content,
                    media_url=entry.media_url,
                    visibility=entry.visibility,
                    shared_post_id=entry.shared_post_id or 0,
                    created_at=ids.timestamp(entry.post_id),
                )
                yield pb.ExportUserResponse(post=post)
        for comment_id, remark in sorted(self.comments.items(), reverse=True):
            if remark.user_id == user_id and not self._gone(remark) and self.there(remark.post_id):
                comment = pb.ExportedComment(
                    comment_id=comment_id,
                    post_id=remark.post_id,
                    content=remark.content,
                    created_at=ids.timestamp(comment_id),
                )
                yield pb.ExportUserResponse(comment=comment)
        for (post_id, liker), like_id in sorted(self.likes.items(), key=lambda like: -like[1]):
            if liker == user_id and self.there(post_id):
                like = pb.ExportedLike(post_id=post_id, created_at=ids.timestamp(like_id))
                yield pb.ExportUserResponse(like=like)
        for (owner, _), media in sorted(self._media.items(), key=lambda item: -item[1].created_at.ToNanoseconds()):
            if owner == user_id:
                yield pb.ExportUserResponse(media=self._present_media(media))

    async def CountTraces(self, request: pb.CountTracesRequest, context: Any) -> pb.CountTracesResponse:
        # What the service clears away in steps is nothing here as soon as the person is gone.
        posts = (
            0 if request.user_id in self._graph.erased else sum(e.user_id == request.user_id for e in self.entries())
        )
        return pb.CountTracesResponse(traces=[pb.CountTracesResponse.Trace(place="posts", count=posts)])

    def _row(self, entry: Entry) -> pb.PostRow:
        original = self.posts[entry.original_id]
        return pb.PostRow(
            post_id=entry.post_id,
            author_id=entry.user_id,
            original_id=original.post_id,
            deleted=entry.deleted,
            original_author_id=original.user_id,
            original_visibility=original.visibility,
            original_deleted=original.deleted,
        )

    def _acts(self, post_id: int) -> list[tuple[int, int]]:
        """What people did with a post: how much each act weighs, and its id."""
        comments = [remark.comment_id for remark in self.comments_of(post_id)]
        acts = ((1, self.likes_of(post_id)), (2, comments), (3, self.shares_of(post_id)))
        return [(weight, act_id) for weight, of in acts for act_id in of]

    def _heat(self, post_id: int) -> float:
        now = self._clock()
        return sum(weight * math.pow(0.5, (now - ids.time_ms(i)) / HOUR_MS) for weight, i in self._acts(post_id))

    def _affinities(self, viewer_id: int) -> Counter[int]:
        likes = [(like_id, post_id) for (post_id, user_id), like_id in self.likes.items() if user_id == viewer_id]
        comments = [
            (c.comment_id, c.post_id) for c in self.comments.values() if c.user_id == viewer_id and not c.deleted
        ]
        shares = [
            (e.post_id, e.original_id) for e in self.entries() if e.user_id == viewer_id and e.original_id != e.post_id
        ]
        found: Counter[int] = Counter()
        for weight, acts in ((1, likes), (2, comments), (3, shares)):
            for _, post_id in sorted(acts, reverse=True)[:AFFINITY_DEPTH]:
                found[self.posts[post_id].user_id] += weight
        return found

    # The same for all.

    def _gone(self, written: Entry | Remark) -> bool:
        """Whether it is deleted, or its writer is erased."""
        return written.deleted or written.user_id in self._graph.erased

    def _open_to(self, entry: Entry, viewer_id: int) -> bool:
        """Whether the viewer (0: a stranger) may see what an author wrote or shared; of a share, its original aside."""
        author = self._graph.people[entry.user_id]
        if viewer_id == author.user_id:
            return True
        if self._graph.separated(viewer_id, author.user_id):
            return False
        return self._is_public(entry) or (viewer_id, author.user_id) in self._graph.follows

    def _is_public(self, entry: Entry) -> bool:
        return entry.visibility == pb.VISIBILITY_PUBLIC and not self._graph.people[entry.user_id].private

    def _add(self, entry: Entry) -> Entry:
        self.posts[entry.post_id] = entry
        self._note(entry)
        return entry

    def _note(self, entry: Entry) -> None:
        self._wrote[entry.user_id] = self._transactions
        self._transactions += 1

    def _found(self, post_id: int, viewer_id: int) -> Entry:
        entry = self.seen(post_id, viewer_id)
        if entry is None:
            raise not_found(post_id)
        return entry

    def _target(self, post_id: int, viewer_id: int) -> Entry:
        """The post that an act on a post goes to: a plain share stands for its original."""
        return self.posts[self._found(post_id, viewer_id).original_id]

    def _plain_shares(self, original_id: int) -> list[Entry]:
        return [e for e in self.entries() if e.original_id == original_id and e.post_id != original_id]

    def _present(self, entry: Entry, viewer_id: int, *, nested: bool = False) -> pb.Post:
        original = None if nested else self.seen(entry.shared_post_id or 0, viewer_id)
        return pb.Post(
            post_id=entry.post_id,
            user_id=entry.user_id,
            username=self._graph.username(entry.user_id),
            content=entry.content,
            media_url=self._urls.shown(entry.media_url, public=self._is_public(entry)),
            created_at=ids.timestamp(entry.post_id),
            visibility=entry.visibility,
            likes=len(self.likes_of(entry.original_id)),
            comments=len(self.comments_of(entry.original_id)),
            shares=len(self.shares_of(entry.original_id)),
            liked=(entry.original_id, viewer_id) in self.likes,
            shared_post=self._present(original, viewer_id, nested=True) if original else None,
        )

    def _present_comment(self, remark: Remark) -> pb.Comment:
        return pb.Comment(
            comment_id=remark.comment_id,
            post_id=remark.post_id,
            user_id=remark.user_id,
            username=self._graph.username(remark.user_id),
            content=remark.content,
            created_at=ids.timestamp(remark.comment_id),
        )


async def each(handle: Any, requests: Iterable[Message], answer: M) -> M:
    """The answer of a batch's RPC: what one RPC gives for each of the requests."""

    async def attempt(request: Message) -> Any:
        try:
            if wrong := validation.violations(request):
                raise errors.InvalidArgument(*wrong)
            return await handle(request, None)
        except errors.Error as error:
            return error

    items: Any = answer.items  # type: ignore[attr-defined]
    for outcome in await asyncio.gather(*map(attempt, requests)):
        if isinstance(outcome, errors.Error):
            items.add(error=outcome.status())
        else:
            items.add(result=outcome)
    return answer


def packed(entries: Iterable[Entry]) -> bytes:
    """Posts as the contract packs them."""
    return members.pack((entry.post_id, entry.user_id, entry.original_id) for entry in entries)


def not_found(post_id: int) -> errors.NotFound:
    """There is no such post, or it may not be seen."""
    return errors.NotFound("POST_NOT_FOUND", f"there is no post {post_id}")
