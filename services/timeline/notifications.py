"""Notifications: what others did that concerns somebody, made from what the post service and the graph hold now.

    acts (post) ┐
                ├─ merged by id ─ without whom one blocks or mutes ─ grouped ─ without posts one may not see ─ a page
    acts (graph)┘

Nothing is stored but how far somebody has read (store.py). So nothing is lost, what was taken back is gone, and of what
may not be seen nothing is told (docs/decisions/0013).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

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
SCANNED_OF_ONE = 200
"""Acts that are looked at to find one: it is among the newest before its event, but for what was done meanwhile."""
GROUPS = 200
"""Groups of which it is looked whether their posts may be seen."""
NAMED = 3
"""Actors of one notification who are named."""
NEWEST = ids.MAX_ID + 1
READ_KEY, READ_KEPT = "feedmesh:read", 10_000
"""A stream of who read their notifications, and how long it is about: what is missed is told with the next change."""
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

    user_id: int
    """Whose."""
    relation: Relation
    place: Place
    scanned: int = SCANNED
    """Acts that it looks at."""
    groups: list[Group] = field(default_factory=list)
    next_below: int = 0
    """Below which further acts may be; 0 for none."""
    posts: Mapping[int, post_pb2.Post] = field(default_factory=dict)
    """Those of the groups that may be seen, by id."""

    def seen(self) -> list[Group]:
        """The groups that may be seen, newest first."""
        return [each for each in self.groups[:GROUPS] if not each.newest.post_id or each.newest.post_id in self.posts]


class Wanted(NamedTuple):
    """One act, that somebody is to be told of."""

    event_id: int
    """Of the event that told of it."""
    user_id: int
    """Whom it concerns."""
    kind: Kind.ValueType
    post_id: int
    """0 for a follow."""
    actor_id: int


class Told(NamedTuple):
    """What there is to tell of an act."""

    actor: str
    """A username."""
    content: str
    """Of the post; "" where there is none."""


@dataclass(frozen=True)
class Concerns:
    """What others did, read from the services that know it."""

    relations: Relations
    graph: GraphServiceAsyncStub
    post: PostServiceAsyncStub

    async def relations_of(self, user_ids: set[int]) -> dict[int, Relation]:
        """The relations of those people that exist, as of now. Raises Unavailable."""
        relations, kept = await self.relations.of(list(user_ids))
        if kept:
            raise errors.Unavailable("the graph cannot be reached")
        return relations

    async def read(self, pages: Sequence[Page]) -> None:
        """Fills in groups and the posts that may be seen. Raises Unavailable."""
        acts = post_pb2.BatchListActsRequest()
        follows = graph_pb2.BatchListFollowActsRequest()
        for page in pages:
            acts.items.add(user_id=page.user_id, before_id=page.place.below, limit=page.scanned)
            follows.items.add(user_id=page.user_id, before_id=page.place.below, limit=page.scanned)
        of_posts, of_people = await asyncio.gather(
            self.post.BatchListActs(acts), self.graph.BatchListFollowActs(follows)
        )
        for page, did, followed in zip(pages, of_posts.items, of_people.items, strict=True):
            found, page.next_below = merged(
                page.scanned,
                [Act(act.act_id, OF_ACTS[act.kind], act.user_id, act.post_id, act.comment_id) for act in did.acts],
                [Act(act.act_id, kind_of(act), act.user_id, 0, 0) for act in followed.acts],
            )
            hidden = {*page.relation.blocked.tolist(), *page.relation.muted.tolist(), page.user_id}
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
                request.items.add(viewer_id=page.user_id, post_ids=post_ids, relations_version=page.relation.version)
            if room == MAX_BATCH_POSTS:
                continue
            answer = await self.post.BatchGetPosts(request)
            for (page, _), item in zip(together, answer.items, strict=True):
                page.posts = {post.post_id: post for post in item.page.posts}

    async def names(self, user_ids: set[int]) -> dict[int, str]:
        """The usernames of those people that exist. Raises Unavailable."""
        if not user_ids:
            return {}
        users = await self.graph.BatchGetUsers(graph_pb2.BatchGetUsersRequest(user_ids=user_ids))
        return {user.user_id: user.username for user in users.users}

    async def of(self, wanted: Sequence[Wanted]) -> list[Told | None]:
        """What is to be told of acts, one for one; None of what was taken back or may not be seen. At most 64.

        Raises Unavailable.
        """
        relations = await self.relations_of({each.user_id for each in wanted})
        pages = {
            each: Page(each.user_id, relations[each.user_id], Place(after_ms(each.event_id)), SCANNED_OF_ONE)
            for each in wanted
            if each.user_id in relations
        }
        if pages:
            await self.read(list(pages.values()))
        names = await self.names({each.actor_id for each in wanted})
        return [
            told(pages[each], each, names[each.actor_id]) if each in pages and each.actor_id in names else None
            for each in wanted
        ]


@dataclass(frozen=True)
class Notifications:
    """Everybody's notifications."""

    concerns: Concerns
    pool: Pool
    cursors: Cursors
    stores: Redis
    """Where all replicas are told of what was read."""

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
        relations = await self.concerns.relations_of({requests[at].user_id for at in places})
        pages: dict[int, Page] = {}
        for at, place in places.items():
            user_id = requests[at].user_id
            if (relation := relations.get(user_id)) is not None:
                pages[at] = Page(user_id, relation, place)
            else:
                results[at] = not_found(user_id)
        if not pages:
            return [results[at] for at in range(len(requests))]
        _, marks = await asyncio.gather(
            self.concerns.read(list(pages.values())),
            store.read_marks(self.pool, [page.user_id for page in pages.values()]),
        )
        chosen = {at: page.seen()[: most_posts(requests[at])] for at, page in pages.items()}
        names = await self.concerns.names(
            {user_id for groups in chosen.values() for group in groups for user_id in list(group.actors)[:NAMED]}
        )
        for at, page in pages.items():
            results[at] = self._answer(requests[at], page, chosen[at], names, marks.get(page.user_id, 0))
        return [results[at] for at in range(len(requests))]

    async def read(self, request: pb.ReadNotificationsRequest) -> pb.ReadNotificationsResponse:
        """Notes what somebody has read, of what there is. Raises NotFound (USER_NOT_FOUND), Unavailable."""
        newest = (await self._newest(request.user_id)).notifications
        up_to = min(request.notification_id, newest[0].notification_id if newest else 0)
        await store.mark_read(self.pool, request.user_id, up_to)
        with suppress(RedisError, OSError):  # others who watch are told with the next change
            await self.stores.xadd(READ_KEY, {"user": request.user_id}, maxlen=READ_KEPT)
        return pb.ReadNotificationsResponse(unread=(await self._newest(request.user_id)).unread)

    async def _newest(self, user_id: int) -> pb.ListNotificationsResponse:
        [page] = await self.pages([pb.ListNotificationsRequest(user_id=user_id, limit=1)])
        if isinstance(page, errors.Error):
            raise page
        return page

    def _answer(
        self,
        request: pb.ListNotificationsRequest,
        page: Page,
        groups: Sequence[Group],
        names: Mapping[int, str],
        mark: int,
    ) -> pb.ListNotificationsResponse:
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
                unread=newest.act_id > mark,
            )
            if newest.post_id:
                note.post.CopyFrom(page.posts[newest.post_id])
            if newest.comment_id:
                note.comment_id = newest.comment_id
        seen = page.seen()
        below = page.place.below
        if not request.cursor:
            response.unread = sum(group.newest.act_id > mark for group in seen)
            # What comes after this page was made is not on the next.
            below = page.groups[0].newest.act_id + 1 if page.groups else below
        if len(groups) < len(seen):
            response.next_cursor = self._seal(request, Place(below, *groups[-1].newest[:2]))
        elif len(page.groups) > GROUPS:
            response.next_cursor = self._seal(request, Place(below, *page.groups[GROUPS - 1].newest[:2]))
        elif page.next_below:
            response.next_cursor = self._seal(request, Place(page.next_below))
        return response

    def _open(self, request: pb.ListNotificationsRequest) -> Place:
        if not request.cursor:
            return Place()
        payload = self.cursors.open(scope(request), request.cursor)
        return Place(*(int.from_bytes(payload[at : at + ID_BYTES], "big") for at in range(0, len(payload), ID_BYTES)))

    def _seal(self, request: pb.ListNotificationsRequest, place: Place) -> str:
        return self.cursors.seal(scope(request), b"".join(each.to_bytes(ID_BYTES, "big") for each in place))


def told(page: Page, wanted: Wanted, actor: str) -> Told | None:
    """What a person's page tells of one act."""
    for group in page.seen():
        act = group.newest
        if (act.kind, act.post_id) == (wanted.kind, wanted.post_id) and wanted.actor_id in group.actors:
            return Told(actor, page.posts[act.post_id].content if act.post_id else "")
    return None


def merged(asked: int, *sources: Sequence[Act]) -> tuple[list[Act], int]:
    """The newest `asked` acts of sources that were asked for as many, and the id below which there may be more, or 0.

    Ids of two sources may be the same: then it is more than were asked for.
    """
    acts = sorted(itertools.chain.from_iterable(sources), reverse=True)
    if len(acts) < asked:
        return acts, 0
    reached = acts[asked - 1].act_id
    return [act for act in acts if act.act_id >= reached], reached


def grouped(acts: Iterable[Act]) -> list[Group]:
    """Acts, newest first, as groups, those with the newest act first."""
    found: dict[tuple[int, ...], Group] = {}
    for act in acts:
        key = (act.kind, act.post_id) if act.kind in GROUPED else (act.kind, act.post_id, act.act_id)
        group = found.setdefault(key, Group(act))
        group.actors.setdefault(act.user_id)
    return list(found.values())


def after_ms(event_id: int) -> int:
    """An id above all of the event's millisecond: within one, between act and event, the sequence may begin anew."""
    return ((event_id >> ids.SEQUENCE_BITS) + 1) << ids.SEQUENCE_BITS


def kind_of(act: graph_pb2.FollowAct) -> Kind.ValueType:
    """What a follow or a wish to follow is."""
    return Kind.NOTIFICATION_KIND_FOLLOW_REQUESTED if act.requested else Kind.NOTIFICATION_KIND_FOLLOWED


def scope(request: pb.ListNotificationsRequest) -> tuple[str | int, ...]:
    """What a page's cursor is bound to."""
    return ("notifications", request.user_id)


def not_found(user_id: int) -> errors.NotFound:
    """There is no such person."""
    return errors.NotFound("USER_NOT_FOUND", f"there is no user {user_id}")
