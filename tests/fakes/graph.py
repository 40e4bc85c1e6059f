"""The graph service in dictionaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from feedmesh.graph.v1 import graph_pb2 as pb
from feedmesh.graph.v1 import graph_pb2_grpc
from runtime import errors, ids
from runtime.clock import Clock, wall_clock
from runtime.paging import DEFAULT_LIMIT, Cursors
from tests.fakes.idempotency import Answers
from tests.fakes.ids import NextId


@dataclass
class Person:
    """A user; `version` rises with every change of whom they follow."""

    user_id: int
    username: str
    email: str
    version: int = 1


class FakeGraph(graph_pb2_grpc.GraphServiceServicer):
    """GraphService as its contract says."""

    def __init__(self, *, max_following: int = 5000, clock: Clock = wall_clock) -> None:
        self.people: dict[int, Person] = {}
        self.follows: dict[tuple[int, int], int] = {}
        """The id of each follow, by follower and followee."""
        self._max_following = max_following
        self._next_id = NextId(clock)
        self._answers = Answers()
        self._cursors = Cursors("the secret of the fake graph, which is long enough")

    def followees(self, user_id: int) -> list[tuple[int, int]]:
        """Whom a person follows, newest follow first: follow and followee."""
        return sorted(((follow_id, b) for (a, b), follow_id in self.follows.items() if a == user_id), reverse=True)

    def followers(self, user_id: int) -> list[tuple[int, int]]:
        """Who follows a person, newest follow first: follow and follower."""
        return sorted(((follow_id, a) for (a, b), follow_id in self.follows.items() if b == user_id), reverse=True)

    def username(self, user_id: int) -> str:
        """A person's name. Raises NotFound (USER_NOT_FOUND)."""
        return self._person(user_id).username

    async def CreateUser(self, request: pb.CreateUserRequest, context: Any) -> pb.CreateUserResponse:
        def work() -> pb.CreateUserResponse:
            if request.username.lower() in {person.username.lower() for person in self.people.values()}:
                raise errors.Conflict("USERNAME_TAKEN")
            if request.email.lower() in {person.email.lower() for person in self.people.values()}:
                raise errors.Conflict("EMAIL_TAKEN")
            person = Person(self._next_id(), request.username, request.email)
            self.people[person.user_id] = person
            return pb.CreateUserResponse(user=self._present(person.user_id, viewer_id=person.user_id))

        return self._answers.once(request, 0, work)

    async def GetUser(self, request: pb.GetUserRequest, context: Any) -> pb.GetUserResponse:
        return pb.GetUserResponse(user=self._present(request.user_id, request.viewer_id))

    async def Follow(self, request: pb.FollowRequest, context: Any) -> pb.FollowResponse:
        edge = (request.follower_id, request.following_id)
        if request.follower_id == request.following_id:
            raise errors.InvalidArgument(errors.Violation("following_id", "is follower_id"), reason="SELF_FOLLOW")

        def work() -> pb.FollowResponse:
            follower, _ = self._person(request.follower_id), self._person(request.following_id)
            if edge not in self.follows:
                if len(self.followees(request.follower_id)) >= self._max_following:
                    raise errors.Refused("FOLLOW_LIMIT")
                self.follows[edge] = self._next_id()
                follower.version += 1
            return pb.FollowResponse(status=pb.FOLLOW_STATUS_FOLLOWING)

        return self._answers.once(request, request.follower_id, work)

    async def Unfollow(self, request: pb.UnfollowRequest, context: Any) -> pb.UnfollowResponse:
        def work() -> pb.UnfollowResponse:
            follower, _ = self._person(request.follower_id), self._person(request.following_id)
            if self.follows.pop((request.follower_id, request.following_id), None) is not None:
                follower.version += 1
            return pb.UnfollowResponse(status=pb.FOLLOW_STATUS_NOT_FOLLOWING)

        return self._answers.once(request, request.follower_id, work)

    async def ListFollowers(self, request: pb.ListFollowersRequest, context: Any) -> pb.ListFollowersResponse:
        users, cursor = self._page("followers", request, self.followers(request.user_id))
        return pb.ListFollowersResponse(users=users, next_cursor=cursor)

    async def ListFollowing(self, request: pb.ListFollowingRequest, context: Any) -> pb.ListFollowingResponse:
        users, cursor = self._page("following", request, self.followees(request.user_id))
        return pb.ListFollowingResponse(users=users, next_cursor=cursor)

    async def BatchGetUsers(self, request: pb.BatchGetUsersRequest, context: Any) -> pb.BatchGetUsersResponse:
        known = [self.people[user_id] for user_id in set(request.user_ids) & self.people.keys()]
        return pb.BatchGetUsersResponse(users=[pb.User(user_id=p.user_id, username=p.username) for p in known])

    async def BatchGetRelations(
        self, request: pb.BatchGetRelationsRequest, context: Any
    ) -> pb.BatchGetRelationsResponse:
        response = pb.BatchGetRelationsResponse()
        for item in request.items:
            person = self.people.get(item.viewer_id)
            if person is None:
                response.items.add(version=0)
            elif person.version == item.known_version:
                response.items.add(version=person.version, unchanged=True)
            else:
                edges = self.followees(person.user_id)
                response.items.add(
                    version=person.version,
                    following_ids=[user_id for _, user_id in edges],
                    follow_ids=[follow_id for follow_id, _ in edges],
                )
        return response

    async def BatchListFollowerIds(
        self, request: pb.BatchListFollowerIdsRequest, context: Any
    ) -> pb.BatchListFollowerIdsResponse:
        response = pb.BatchListFollowerIdsResponse()
        for item in request.items:
            before = item.before_follow_id or ids.MAX_ID + 1
            left = [edge for edge in self.followers(item.user_id) if edge[0] < before]
            page = left[: item.limit]
            response.items.add(
                follower_ids=[user_id for _, user_id in page],
                next_follow_id=page[-1][0] if len(left) > item.limit else 0,
            )
        return response

    async def BatchGetFollowerCounts(
        self, request: pb.BatchGetFollowerCountsRequest, context: Any
    ) -> pb.BatchGetFollowerCountsResponse:
        return pb.BatchGetFollowerCountsResponse(
            followers=[len(self.followers(user_id)) for user_id in request.user_ids]
        )

    async def ListFollowerCounts(
        self, request: pb.ListFollowerCountsRequest, context: Any
    ) -> pb.ListFollowerCountsResponse:
        counts = Counter(followee for _, followee in self.follows)
        many = [user_id for user_id, count in counts.items() if count >= request.min_followers]
        page = sorted(user_id for user_id in many if user_id > request.after_user_id)[: request.limit]
        return pb.ListFollowerCountsResponse(user_ids=page, followers=[counts[user_id] for user_id in page])

    def _person(self, user_id: int) -> Person:
        if user_id not in self.people:
            raise errors.NotFound("USER_NOT_FOUND", f"there is no user {user_id}")
        return self.people[user_id]

    def _present(self, user_id: int, viewer_id: int) -> pb.User:
        person = self._person(user_id)
        return pb.User(
            user_id=user_id,
            username=person.username,
            email=person.email if viewer_id == user_id else "",
            created_at=ids.timestamp(user_id),
            followers=len(self.followers(user_id)),
            following=len(self.followees(user_id)),
        )

    def _page(
        self, listing: str, request: pb.ListFollowersRequest | pb.ListFollowingRequest, edges: list[tuple[int, int]]
    ) -> tuple[Sequence[pb.User], str | None]:
        scope = (listing, request.user_id, request.viewer_id)
        before = self._cursors.open_id(scope, request.cursor, first=ids.MAX_ID + 1)
        self._person(request.user_id)
        limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        left = [edge for edge in edges if edge[0] < before]
        page = left[:limit]
        return (
            [self._present(user_id, request.viewer_id) for _, user_id in page],
            self._cursors.seal_id(scope, page[-1][0]) if len(left) > limit else None,
        )
