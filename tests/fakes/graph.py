"""The graph service in dictionaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from feedmesh.graph.v1 import graph_pb2 as pb
from feedmesh.graph.v1 import graph_pb2_grpc
from runtime import errors, ids
from runtime.clock import Clock, wall_clock
from runtime.paging import DEFAULT_LIMIT, Cursors
from tests.fakes.idempotency import Answers
from tests.fakes.ids import NextId

Pairs: TypeAlias = dict[tuple[int, int], int]
"""What one person did about another: the id of each, by who acted and whom they meant."""


@dataclass
class Person:
    """A user; `version` rises with every change of whom they follow, block and mute, and of who blocks them."""

    user_id: int
    username: str
    email: str
    private: bool = False
    version: int = 1


class FakeGraph(graph_pb2_grpc.GraphServiceServicer):
    """GraphService as its contract says."""

    def __init__(self, *, max_following: int = 5000, clock: Clock = wall_clock) -> None:
        self.people: dict[int, Person] = {}
        self.erased: set[int] = set()
        self.follows: Pairs = {}
        self.requests: Pairs = {}
        self.blocks: Pairs = {}
        self.mutes: Pairs = {}
        self.changed: list[int] = []
        """Who changed as others see it, one for each version."""
        self._max_following = max_following
        self._next_id = NextId(clock)
        self._answers = Answers()
        self._cursors = Cursors("the secret of the fake graph, which is long enough")

    def username(self, user_id: int) -> str:
        """A person's name. Raises NotFound (USER_NOT_FOUND)."""
        return self._person(user_id).username

    def separated(self, user_id: int, other_id: int) -> bool:
        """Whether one of two people blocks the other."""
        return (user_id, other_id) in self.blocks or (other_id, user_id) in self.blocks

    def shown(self, user_id: int, viewer_id: int) -> Person:
        """A person whom no block hides from the viewer; 0 is a stranger. Raises NotFound (USER_NOT_FOUND)."""
        if self.separated(user_id, viewer_id):
            raise not_found(user_id)
        return self._person(user_id)

    # People.

    async def CreateUser(self, request: pb.CreateUserRequest, context: Any) -> pb.CreateUserResponse:
        def work() -> pb.CreateUserResponse:
            self._require_free(request.username, request.email, among=self.people.values())
            person = Person(self._next_id(), request.username, request.email)
            self.people[person.user_id] = person
            return pb.CreateUserResponse(user=self._present(person.user_id, viewer_id=person.user_id))

        return self._answers.once(request, 0, work)

    async def GetUser(self, request: pb.GetUserRequest, context: Any) -> pb.GetUserResponse:
        self.shown(request.user_id, request.viewer_id)
        return pb.GetUserResponse(user=self._present(request.user_id, request.viewer_id))

    async def UpdateUser(self, request: pb.UpdateUserRequest, context: Any) -> pb.UpdateUserResponse:
        def work() -> pb.UpdateUserResponse:
            person = self._person(request.user_id)
            username = request.username if request.HasField("username") else person.username
            email = request.email if request.HasField("email") else person.email
            self._require_free(username, email, among=[p for p in self.people.values() if p is not person])
            private = request.private if request.HasField("private") else person.private
            if (username, private) != (person.username, person.private):
                self.changed.append(person.user_id)
            person.username, person.email, person.private = username, email, private
            return pb.UpdateUserResponse(user=self._present(request.user_id, viewer_id=request.user_id))

        return self._answers.once(request, request.user_id, work)

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: Any) -> pb.DeleteUserResponse:
        def work() -> pb.DeleteUserResponse:
            if request.user_id not in self.erased:
                self._person(request.user_id)
                for pairs in (self.follows, self.requests, self.blocks, self.mutes):
                    for pair in [pair for pair in pairs if request.user_id in pair]:
                        self._end(pairs, *pair)
                del self.people[request.user_id]
                self.erased.add(request.user_id)
                self.changed.append(request.user_id)
            return pb.DeleteUserResponse()

        return self._answers.once(request, request.user_id, work)

    # Follows and requests to follow.

    async def Follow(self, request: pb.FollowRequest, context: Any) -> pb.FollowResponse:
        edge = (request.follower_id, request.following_id)
        if request.follower_id == request.following_id:
            raise errors.InvalidArgument(errors.Violation("following_id", "is follower_id"), reason="SELF_FOLLOW")

        def work() -> pb.FollowResponse:
            self._person(request.follower_id)
            followee = self.shown(request.following_id, request.follower_id)
            if edge not in self.follows | self.requests:
                taken = meant_by(request.follower_id, self.follows) + meant_by(request.follower_id, self.requests)
                if len(taken) >= self._max_following:
                    raise errors.Refused("FOLLOW_LIMIT")
            if followee.private and edge not in self.follows:
                self._begin(self.requests, *edge)
                return pb.FollowResponse(status=pb.FOLLOW_STATUS_REQUESTED)
            self._end(self.requests, *edge)
            self._begin(self.follows, *edge)
            return pb.FollowResponse(status=pb.FOLLOW_STATUS_FOLLOWING)

        return self._answers.once(request, request.follower_id, work)

    async def Unfollow(self, request: pb.UnfollowRequest, context: Any) -> pb.UnfollowResponse:
        def work() -> pb.UnfollowResponse:
            self._require(request.follower_id, request.following_id)
            for pairs in (self.follows, self.requests):
                self._end(pairs, request.follower_id, request.following_id)
            return pb.UnfollowResponse(status=pb.FOLLOW_STATUS_NOT_FOLLOWING)

        return self._answers.once(request, request.follower_id, work)

    async def AcceptFollowRequest(
        self, request: pb.AcceptFollowRequestRequest, context: Any
    ) -> pb.AcceptFollowRequestResponse:
        edge = (request.follower_id, request.user_id)

        def work() -> pb.AcceptFollowRequestResponse:
            self._require(request.user_id, request.follower_id)
            if edge not in self.follows | self.requests:
                raise errors.NotFound("FOLLOW_REQUEST_NOT_FOUND")
            self._end(self.requests, *edge)
            self._begin(self.follows, *edge)
            return pb.AcceptFollowRequestResponse(status=pb.FOLLOW_STATUS_FOLLOWING)

        return self._answers.once(request, request.user_id, work)

    async def RejectFollowRequest(
        self, request: pb.RejectFollowRequestRequest, context: Any
    ) -> pb.RejectFollowRequestResponse:
        edge = (request.follower_id, request.user_id)

        def work() -> pb.RejectFollowRequestResponse:
            self._require(request.user_id, request.follower_id)
            self._end(self.requests, *edge)
            follows = edge in self.follows
            return pb.RejectFollowRequestResponse(
                status=pb.FOLLOW_STATUS_FOLLOWING if follows else pb.FOLLOW_STATUS_NOT_FOLLOWING
            )

        return self._answers.once(request, request.user_id, work)

    async def ListFollowRequests(
        self, request: pb.ListFollowRequestsRequest, context: Any
    ) -> pb.ListFollowRequestsResponse:
        users, cursor = self._own_page("requests", request, meaning(request.user_id, self.requests))
        return pb.ListFollowRequestsResponse(users=users, next_cursor=cursor)

    # Blocks and mutes.

    async def Block(self, request: pb.BlockRequest, context: Any) -> pb.BlockResponse:
        pair = (request.user_id, request.target_id)
        require_another(request)

        def work() -> pb.BlockResponse:
            self._require(*pair)
            for pairs in (self.follows, self.requests):
                self._end(pairs, *pair)
                self._end(pairs, *reversed(pair))
            self._begin(self.blocks, *pair)
            return pb.BlockResponse()

        return self._answers.once(request, request.user_id, work)

    async def Unblock(self, request: pb.UnblockRequest, context: Any) -> pb.UnblockResponse:
        def work() -> pb.UnblockResponse:
            self._require(request.user_id, request.target_id)
            self._end(self.blocks, request.user_id, request.target_id)
            return pb.UnblockResponse()

        return self._answers.once(request, request.user_id, work)

    async def ListBlocks(self, request: pb.ListBlocksRequest, context: Any) -> pb.ListBlocksResponse:
        users, cursor = self._own_page("blocks", request, meant_by(request.user_id, self.blocks))
        return pb.ListBlocksResponse(users=users, next_cursor=cursor)

    async def Mute(self, request: pb.MuteRequest, context: Any) -> pb.MuteResponse:
        require_another(request)

        def work() -> pb.MuteResponse:
            self._require(request.user_id, request.target_id)
            self._begin(self.mutes, request.user_id, request.target_id)
            return pb.MuteResponse()

        return self._answers.once(request, request.user_id, work)

    async def Unmute(self, request: pb.UnmuteRequest, context: Any) -> pb.UnmuteResponse:
        def work() -> pb.UnmuteResponse:
            self._require(request.user_id, request.target_id)
            self._end(self.mutes, request.user_id, request.target_id)
            return pb.UnmuteResponse()

        return self._answers.once(request, request.user_id, work)

    async def ListMutes(self, request: pb.ListMutesRequest, context: Any) -> pb.ListMutesResponse:
        users, cursor = self._own_page("mutes", request, meant_by(request.user_id, self.mutes))
        return pb.ListMutesResponse(users=users, next_cursor=cursor)

    # Who follows whom.

    async def ListFollowers(self, request: pb.ListFollowersRequest, context: Any) -> pb.ListFollowersResponse:
        users, cursor = self._shown_page("followers", request, meaning(request.user_id, self.follows))
        return pb.ListFollowersResponse(users=users, next_cursor=cursor)

    async def ListFollowing(self, request: pb.ListFollowingRequest, context: Any) -> pb.ListFollowingResponse:
        users, cursor = self._shown_page("following", request, meant_by(request.user_id, self.follows))
        return pb.ListFollowingResponse(users=users, next_cursor=cursor)

    # The batches.

    async def BatchGetUsers(self, request: pb.BatchGetUsersRequest, context: Any) -> pb.BatchGetUsersResponse:
        known = [self.people[user_id] for user_id in set(request.user_ids) & self.people.keys()]
        return pb.BatchGetUsersResponse(
            users=[pb.User(user_id=p.user_id, username=p.username, private=p.private) for p in known]
        )

    async def ListUserChanges(self, request: pb.ListUserChangesRequest, context: Any) -> pb.ListUserChangesResponse:
        version = 1 + len(self.changed)
        changed = self.changed[max(request.after_version - 1, 0) :]
        many = version - request.after_version > 1000
        return pb.ListUserChangesResponse(version=version, user_ids=[] if many else set(changed), many=many)

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
                follows = meant_by(person.user_id, self.follows)
                blocks = meant_by(person.user_id, self.blocks) + meaning(person.user_id, self.blocks)
                response.items.add(
                    version=person.version,
                    packed_following_ids=packed(user_id for _, user_id in follows),
                    packed_follow_ids=packed(follow_id for follow_id, _ in follows),
                    blocked_ids={user_id for _, user_id in blocks},
                    muted_ids=[user_id for _, user_id in meant_by(person.user_id, self.mutes)],
                )
        return response

    async def BatchListFollowerIds(
        self, request: pb.BatchListFollowerIdsRequest, context: Any
    ) -> pb.BatchListFollowerIdsResponse:
        response = pb.BatchListFollowerIdsResponse()
        for item in request.items:
            before = item.before_follow_id or ids.MAX_ID + 1
            left = [edge for edge in meaning(item.user_id, self.follows) if edge[0] < before]
            page = left[: item.limit]
            response.items.add(
                packed_follower_ids=packed(user_id for _, user_id in page),
                next_follow_id=page[-1][0] if len(left) > item.limit else 0,
                followers=0 if item.before_follow_id else len(left),
            )
        return response

    async def BatchGetUserIds(self, request: pb.BatchGetUserIdsRequest, context: Any) -> pb.BatchGetUserIdsResponse:
        known = {person.username.lower(): person.user_id for person in self.people.values()}
        return pb.BatchGetUserIdsResponse(user_ids=[known.get(name.lower(), 0) for name in request.usernames])

    async def BatchListFollowActs(
        self, request: pb.BatchListFollowActsRequest, context: Any
    ) -> pb.BatchListFollowActsResponse:
        response = pb.BatchListFollowActsResponse()
        for item in request.items:
            acts = [(*act, False) for act in meaning(item.user_id, self.follows)]
            acts += [(*act, True) for act in meaning(item.user_id, self.requests)]
            left = sorted((act for act in acts if act[0] < item.before_id), reverse=True)
            answer = response.items.add()
            for act_id, user_id, requested in left[: item.limit]:
                answer.acts.add(act_id=act_id, user_id=user_id, requested=requested)
        return response

    async def BatchGetFollowerCounts(
        self, request: pb.BatchGetFollowerCountsRequest, context: Any
    ) -> pb.BatchGetFollowerCountsResponse:
        return pb.BatchGetFollowerCountsResponse(
            followers=[len(meaning(user_id, self.follows)) for user_id in request.user_ids]
        )

    async def ListFollowerCounts(
        self, request: pb.ListFollowerCountsRequest, context: Any
    ) -> pb.ListFollowerCountsResponse:
        counts = Counter(followee for _, followee in self.follows)
        many = [user_id for user_id, count in counts.items() if count >= request.min_followers]
        page = sorted(user_id for user_id in many if user_id > request.after_user_id)[: request.limit]
        return pb.ListFollowerCountsResponse(user_ids=page, followers=[counts[user_id] for user_id in page])

    # The same for all.

    async def ExportUser(self, request: pb.ExportUserRequest, context: Any) -> AsyncIterator[pb.ExportUserResponse]:
        yield pb.ExportUserResponse(account=self._present(request.user_id, viewer_id=request.user_id))
        for kind, pairs, mine in (
            (pb.TIE_KIND_FOLLOWING, self.follows, 0),
            (pb.TIE_KIND_FOLLOWER, self.follows, 1),
            (pb.TIE_KIND_ASKED_TO_FOLLOW, self.requests, 0),
            (pb.TIE_KIND_ASKED_BY, self.requests, 1),
            (pb.TIE_KIND_BLOCKED, self.blocks, 0),
            (pb.TIE_KIND_MUTED, self.mutes, 0),
        ):
            own = {pair_id: pair[1 - mine] for pair, pair_id in pairs.items() if pair[mine] == request.user_id}
            for pair_id, other in sorted(own.items(), reverse=True):
                tie = pb.Tie(kind=kind, user_id=other, username=self.username(other), created_at=ids.timestamp(pair_id))
                yield pb.ExportUserResponse(tie=tie)

    async def CountTraces(self, request: pb.CountTracesRequest, context: Any) -> pb.CountTracesResponse:
        pairs = (self.follows, self.requests, self.blocks, self.mutes)
        found = {
            "users": request.user_id in self.people,
            "ties": sum(request.user_id in pair for kind in pairs for pair in kind),
        }
        return pb.CountTracesResponse(
            traces=[pb.CountTracesResponse.Trace(place=place, count=count) for place, count in found.items()]
        )

    def _person(self, user_id: int) -> Person:
        if user_id not in self.people:
            raise not_found(user_id)
        return self.people[user_id]

    def _require(self, *user_ids: int) -> None:
        """Raises NotFound (USER_NOT_FOUND) unless they all exist."""
        for user_id in user_ids:
            self._person(user_id)

    def _require_free(self, username: str, email: str, *, among: Collection[Person]) -> None:
        """Raises Conflict (USERNAME_TAKEN, EMAIL_TAKEN) when one of these people has it, letter case aside."""
        if username.lower() in {person.username.lower() for person in among}:
            raise errors.Conflict("USERNAME_TAKEN")
        if email.lower() in {person.email.lower() for person in among}:
            raise errors.Conflict("EMAIL_TAKEN")

    def _begin(self, pairs: Pairs, actor_id: int, target_id: int) -> None:
        """Adds a pair unless it is there."""
        if (actor_id, target_id) not in pairs:
            pairs[actor_id, target_id] = self._next_id()
            self._raise_versions(pairs, actor_id, target_id)

    def _end(self, pairs: Pairs, actor_id: int, target_id: int) -> None:
        """Takes a pair away if it is there."""
        if pairs.pop((actor_id, target_id), None) is not None:
            self._raise_versions(pairs, actor_id, target_id)

    def _raise_versions(self, pairs: Pairs, actor_id: int, target_id: int) -> None:
        """Of those to whose relations a pair belongs: a request to follow to nobody's, a block to those of both."""
        if pairs is not self.requests:
            self.people[actor_id].version += 1
        if pairs is self.blocks:
            self.people[target_id].version += 1

    def _present(self, user_id: int, viewer_id: int) -> pb.User:
        person = self._person(user_id)
        return pb.User(
            user_id=user_id,
            username=person.username,
            email=person.email if viewer_id == user_id else "",
            created_at=ids.timestamp(user_id),
            followers=len(meaning(user_id, self.follows)),
            following=len(meant_by(user_id, self.follows)),
            private=person.private,
        )

    def _shown_page(
        self, listing: str, request: pb.ListFollowersRequest | pb.ListFollowingRequest, edges: list[tuple[int, int]]
    ) -> tuple[Sequence[pb.User], str | None]:
        """A page of who follows a person or whom they follow, as far as the viewer may see it."""
        viewer_id = request.viewer_id
        person = self.shown(request.user_id, viewer_id)
        open_to = viewer_id == person.user_id or (viewer_id, person.user_id) in self.follows
        shown = [edge for edge in edges if not self.separated(edge[1], viewer_id)]
        scope = (listing, request.user_id, viewer_id)
        return self._page(scope, request, shown if open_to or not person.private else [], viewer_id)

    def _own_page(
        self,
        listing: str,
        request: pb.ListFollowRequestsRequest | pb.ListBlocksRequest | pb.ListMutesRequest,
        pairs: list[tuple[int, int]],
    ) -> tuple[Sequence[pb.User], str | None]:
        """A page of what is one's own to see."""
        self._person(request.user_id)
        return self._page((listing, request.user_id), request, pairs, request.user_id)

    def _page(
        self, scope: tuple[str | int, ...], request: Any, pairs: list[tuple[int, int]], viewer_id: int
    ) -> tuple[Sequence[pb.User], str | None]:
        before = self._cursors.open_id(scope, request.cursor, first=ids.MAX_ID + 1)
        limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        left = [pair for pair in pairs if pair[0] < before]
        page = left[:limit]
        return (
            [self._present(user_id, viewer_id) for _, user_id in page],
            self._cursors.seal_id(scope, page[-1][0]) if len(left) > limit else None,
        )


def meant_by(user_id: int, pairs: Pairs) -> list[tuple[int, int]]:
    """Whom a person follows, asked to follow, blocks or mutes, newest first: the pair's id and the other's."""
    return sorted(((pair_id, target) for (actor, target), pair_id in pairs.items() if actor == user_id), reverse=True)


def meaning(user_id: int, pairs: Pairs) -> list[tuple[int, int]]:
    """Who follows, asked to follow, blocks or mutes a person, newest first: the pair's id and the other's."""
    return sorted(((pair_id, actor) for (actor, target), pair_id in pairs.items() if target == user_id), reverse=True)


def packed(user_ids: Iterable[int]) -> bytes:
    """Ids as answers hold them."""
    return b"".join(user_id.to_bytes(8, "big") for user_id in user_ids)


def require_another(request: pb.BlockRequest | pb.MuteRequest) -> None:
    """Raises InvalidArgument (SELF_TARGET) when somebody means themselves."""
    if request.user_id == request.target_id:
        raise errors.InvalidArgument(errors.Violation("target_id", "is user_id"), reason="SELF_TARGET")


def not_found(user_id: int) -> errors.NotFound:
    """There is no such person, or a block hides them."""
    return errors.NotFound("USER_NOT_FOUND", f"there is no user {user_id}")
