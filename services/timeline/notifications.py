"""Notifications: what others did that concerns somebody, made from what the post service and the graph hold now.

    acts (post) ┐
                ├─ merged by id ─ without whom one blocks or mutes ─ grouped ─ without posts one may not see ─ a page
    acts (graph)┘

Nothing is stored but how far somebody has read (store.py). So nothing is lost, what was taken back is gone, and of what
may not be seen nothing is told (docs/decisions/0013).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from runtime import errors, ids, validation
from runtime.paging import MAX_BATCH_POSTS, Cursors, most_posts
from runtime.postgres import Pool
from runtime.relations import Relation, Relations
from services.timeline import store

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

SCANNED = 1_000
"""Acts that one page looks at."""
GROUPS = 200
"""Groups of which it is looked whether their posts may be seen."""
NAMED = 3
"""Actors of one notification who are named."""
NEWEST = ids.MAX_ID + 1
ID_BYTES = 7

Kind = pb.NotificationKind
GROUPED = {
    Kind.NOTIFICATION_KIND_LIKED,
    Kind.NOTIFICATION_KIND_COMMENTED,
    Kind.NOTIFICATION_KIND_SHARED,
    Kind.NOTIFICATION_KIND_FOLLOWED,
    Kind.NOTIFICATION_KIND_FOLLOW_REQUESTED,
}
"""Those that are one for the same post; each of the others is one of its own."""
OF_ACTS = {
    post_pb2.ActKind.Value(f"ACT_KIND_{name}"): Kind.Value(f"NOTIFICATION_KIND_{name}")
    for name in ("LIKED", "COMMENTED", "SHARED", "QUOTED", "MENTIONED")
}


class Place(NamedTuple):
    """Where a page begins."""

    below: int = NEWEST
    """Acts below this id are looked at."""
    before: int = NEWEST
    """Of what they make, those are shown whose newest act is before this one, by id,"""
    kind: int = 0
    """and by kind: ids are unique only within a service."""


class Act(NamedTuple):
    """Something that somebody did."""

    act_id: int
    kind: Kind.ValueType
    user_id: int
    post_id: int
    comment_id: int


@dataclass
class Group:
    """Alike acts."""

    newest: Act
    actors: dict[int, None] = field(default_factory=dict)
    """Newest first."""


@dataclass
class Page:
    """A page in the making."""

    request: pb.ListNotificationsRequest
    place: Place
    relation: Relation
    mark: int = 0
    groups: list[Group] = field(default_factory=list)
    next_below: int = 0
    """Below which further acts may be; 0 for none."""
    posts: Mapping[int, post_pb2.Post] = field(default_factory=dict)

    @property
    def is_first(self) -> bool:
        """Whether it is the one that says how many are unread."""
        return not self.request.cursor

    def seen(self) -> list[Group]:
        """The groups that may be seen, newest first."""
        return [each for each in self.groups if not each.newest.post_id or each.newest.post_id in self.posts]


@dataclass(frozen=True)
class Notifications:
    """Everybody's notifications."""

    pool: Pool
    relations: Relations
    graph: GraphServiceAsyncStub
    post: PostServiceAsyncStub
    cursors: Cursors

    async def pages(
        self, requests: Sequence[pb.ListNotificationsRequest]
    ) -> list[pb.ListNotificationsResponse | errors.Error]:
        """A page for each, or why there is none: InvalidArgument (INVALID_CURSOR), NotFound (USER_NOT_FOUND).

        Raises Unavailable.
        """
        results: dict[int, pb.ListNotificationsResponse | errors.Error] = {}
        places: dict[int, Place] = {}
        for at, request in enumerate(requests):
            try:
                if wrong := validation.violations(request):
                    raise errors.InvalidArgument(*wrong)
                places[at] = self._open(request)
            except errors.InvalidArgument as error:
                results[at] = error
        relations, _ = await self.relations.of(list({requests[at].user_id for at in places}))
        pages: dict[int, Page] = {}
        for at, place in places.items():
            if (relation := relations.get(requests[at].user_id)) is not None:
                pages[at] = Page(requests[at], place, relation)
            else:
                results[at] = not_found(requests[at].user_id)
        if pages:
            await self._read(list(pages.values()))
            results |= zip(pages, await self._answers(list(pages.values())), strict=True)
        return [results[at] for at in range(len(requests))]

    async def read(self, request: pb.ReadNotificationsRequest) -> pb.ReadNotificationsResponse:
        """Notes what somebody has read. Raises NotFound (USER_NOT_FOUND), Unavailable."""
        relations, _ = await self.relations.of([request.user_id])
        if request.user_id not in relations:
            raise not_found(request.user_id)
        await store.mark_read(self.pool, request.user_id, request.notification_id)
        [page] = await self.pages([pb.ListNotificationsRequest(user_id=request.user_id, limit=1)])
        if isinstance(page, errors.Error):
            raise page
        return pb.ReadNotificationsResponse(unread=page.unread)

    async def _read(self, pages: Sequence[Page]) -> None:
        """Fills in groups, posts and marks."""
        acts = post_pb2.BatchListActsRequest()
        follows = graph_pb2.BatchListFollowActsRequest()
        for page in pages:
            acts.items.add(user_id=page.request.user_id, before_id=page.place.below, limit=SCANNED)
            follows.items.add(user_id=page.request.user_id, before_id=page.place.below, limit=SCANNED)
        of_posts, of_people, marks = await asyncio.gather(
            self.post.BatchListActs(acts),
            self.graph.BatchListFollowActs(follows),
            store.read_marks(self.pool, [page.request.user_id for page in pages]),
        )
        for page, did, followed in zip(pages, of_posts.items, of_people.items, strict=True):
            page.mark = marks.get(page.request.user_id, 0)
            found, page.next_below = merged(
                [Act(act.act_id, OF_ACTS[act.kind], act.user_id, act.post_id, act.comment_id) for act in did.acts],
                [Act(act.act_id, kind_of(act), act.user_id, 0, 0) for act in followed.acts],
            )
            hidden = {*page.relation.blocked.tolist(), *page.relation.muted.tolist(), page.request.user_id}
            groups = grouped(act for act in found if act.user_id not in hidden)
            before = (page.place.before, page.place.kind)
            page.groups = [group for group in groups if group.newest[:2] < before][: GROUPS + 1]
        await self._see(pages)

    async def _see(self, pages: Sequence[Page]) -> None:
        """Reads the posts that the groups are about, as each viewer sees them."""
        waiting = [
            (page, list(dict.fromkeys(each.newest.post_id for each in page.groups[:GROUPS] if each.newest.post_id)))
            for page in pages
        ]
        while waiting:
            together, room = [], MAX_BATCH_POSTS
            while waiting and len(waiting[-1][1]) <= room:
                together.append(waiting.pop())
                room -= len(together[-1][1])
            request = post_pb2.BatchGetPostsRequest()
            for page, post_ids in together:
                request.items.add(
                    viewer_id=page.request.user_id, post_ids=post_ids, relations_version=page.relation.version
                )
            if room == MAX_BATCH_POSTS:
                continue
            answer = await self.post.BatchGetPosts(request)
            for (page, _), item in zip(together, answer.items, strict=True):
                page.posts = {post.post_id: post for post in item.page.posts}

    async def _answers(self, pages: Sequence[Page]) -> list[pb.ListNotificationsResponse]:
        chosen = [page.seen()[: most_posts(page.request)] for page in pages]
        wanted = {user_id for groups in chosen for group in groups for user_id in list(group.actors)[:NAMED]}
        names: dict[int, str] = {}
        if wanted:
            users = await self.graph.BatchGetUsers(graph_pb2.BatchGetUsersRequest(user_ids=wanted))
            names = {user.user_id: user.username for user in users.users}
        return [self._answer(page, groups, names) for page, groups in zip(pages, chosen, strict=True)]

    def _answer(self, page: Page, groups: Sequence[Group], names: Mapping[int, str]) -> pb.ListNotificationsResponse:
        response = pb.ListNotificationsResponse()
        for group in groups:
            actors = [
                post_pb2.Sharer(user_id=user_id, username=names[user_id])
                for user_id in list(group.actors)[:NAMED]
                if user_id in names
            ]
            if not actors:
                continue  # who did it was erased a moment ago
            newest = group.newest
            note = response.notifications.add(
                notification_id=newest.act_id,
                kind=newest.kind,
                created_at=ids.timestamp(newest.act_id),
                actors=actors,
                actor_count=len(group.actors),
                unread=newest.act_id > page.mark,
            )
            if newest.post_id:
                note.post.CopyFrom(page.posts[newest.post_id])
            if newest.comment_id:
                note.comment_id = newest.comment_id
        seen = page.seen()
        if page.is_first:
            response.unread = sum(group.newest.act_id > page.mark for group in seen[:GROUPS])
        newest_id = page.groups[0].newest.act_id if page.groups else 0
        below = min(page.place.below, newest_id + 1) if page.is_first and newest_id else page.place.below
        looked = page.groups[:GROUPS]
        if len(groups) < len(seen):
            response.next_cursor = self._seal(page, Place(below, *groups[-1].newest[:2]))
        elif len(page.groups) > GROUPS:
            response.next_cursor = self._seal(page, Place(below, *looked[-1].newest[:2]))
        elif page.next_below:
            response.next_cursor = self._seal(page, Place(page.next_below))
        return response

    def _open(self, request: pb.ListNotificationsRequest) -> Place:
        if not request.cursor:
            return Place()
        payload = self.cursors.open(scope(request), request.cursor)
        return Place(*(int.from_bytes(payload[at : at + ID_BYTES], "big") for at in range(0, len(payload), ID_BYTES)))

    def _seal(self, page: Page, place: Place) -> str:
        return self.cursors.seal(scope(page.request), b"".join(each.to_bytes(ID_BYTES, "big") for each in place))


def merged(*sources: Sequence[Act]) -> tuple[list[Act], int]:
    """The newest acts of sources, each newest first, and the id below which there may be more; 0 where there are none.

    Of a source that gave as many as were asked for it is not known what comes below its last.
    """
    reached = max((source[-1].act_id for source in sources if len(source) >= SCANNED), default=0)
    acts = sorted((act for source in sources for act in source if act.act_id >= reached), reverse=True)
    if len(acts) > SCANNED:
        reached = acts[SCANNED - 1].act_id
        acts = [act for act in acts if act.act_id >= reached]
    return acts, reached


def grouped(acts: Iterable[Act]) -> list[Group]:
    """Acts, newest first, as groups, those with the newest act first."""
    found: dict[tuple[int, ...], Group] = {}
    for act in acts:
        key = (act.kind, act.post_id) if act.kind in GROUPED else (act.kind, act.post_id, act.act_id)
        group = found.setdefault(key, Group(act))
        group.actors.setdefault(act.user_id)
    return list(found.values())


def kind_of(act: graph_pb2.FollowAct) -> Kind.ValueType:
    """What a follow or a wish to follow is."""
    return Kind.NOTIFICATION_KIND_FOLLOW_REQUESTED if act.requested else Kind.NOTIFICATION_KIND_FOLLOWED


def scope(request: pb.ListNotificationsRequest) -> tuple[str | int, ...]:
    """What a page's cursor is bound to."""
    return ("notifications", request.user_id)


def not_found(user_id: int) -> errors.NotFound:
    """There is no such person."""
    return errors.NotFound("USER_NOT_FOUND", f"there is no user {user_id}")
