"""The contract of GraphService (protos/feedmesh/graph/v1/graph.proto), held against the fake and the real service."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable
from functools import partial
from typing import Any

import pytest

from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import errors, ids, members
from tests.contract.expect import MAX_ID, OUT_OF_RANGE, Page, both, damaged, page_of, read_to_end, refusal
from tests.fakes.serving import GraphService

NOBODY = 4_096
"""The id of no user."""
names = itertools.count(1)


@pytest.fixture(params=["fake", "real"])
def graph(request: pytest.FixtureRequest) -> GraphService:
    found: GraphService = request.getfixturevalue(
        {"fake": "fake_graph_service", "real": "graph_service"}[request.param]
    )
    return found


async def join(graph: GraphService) -> int:
    """A new person's id."""
    name = f"person{next(names)}"
    response = await graph.stub.CreateUser(pb.CreateUserRequest(username=name, email=f"{name}@example.org"))
    return response.user.user_id


async def join_all(graph: GraphService, count: int) -> list[int]:
    return list(await asyncio.gather(*(join(graph) for _ in range(count))))


async def get(graph: GraphService, user_id: int, viewer_id: int | None = None) -> pb.User:
    return (await graph.stub.GetUser(pb.GetUserRequest(user_id=user_id, viewer_id=viewer_id))).user


async def counts(graph: GraphService, user_id: int) -> tuple[int, int]:
    user = await get(graph, user_id)
    return user.followers, user.following


PAIRS: dict[str, tuple[Any, str, str]] = {
    "Follow": (pb.FollowRequest, "follower_id", "following_id"),
    "Unfollow": (pb.UnfollowRequest, "follower_id", "following_id"),
    "AcceptFollowRequest": (pb.AcceptFollowRequestRequest, "user_id", "follower_id"),
    "RejectFollowRequest": (pb.RejectFollowRequestRequest, "user_id", "follower_id"),
    "Block": (pb.BlockRequest, "user_id", "target_id"),
    "Unblock": (pb.UnblockRequest, "user_id", "target_id"),
    "Mute": (pb.MuteRequest, "user_id", "target_id"),
    "Unmute": (pb.UnmuteRequest, "user_id", "target_id"),
}
"""What one person does about another: the request, and which of its fields name the two."""
LISTINGS: dict[str, Any] = {
    "ListFollowers": pb.ListFollowersRequest,
    "ListFollowing": pb.ListFollowingRequest,
    "ListFollowRequests": pb.ListFollowRequestsRequest,
    "ListBlocks": pb.ListBlocksRequest,
    "ListMutes": pb.ListMutesRequest,
}
OTHERS = ("ListFollowers", "ListFollowing")
"""The listings that one may ask of another."""


async def act(graph: GraphService, rpc: str, actor_id: int, other_id: int, request_id: str = "") -> Any:
    """One of PAIRS."""
    request, actor, other = PAIRS[rpc]
    return await getattr(graph.stub, rpc)(request(**{actor: actor_id, other: other_id}, request_id=request_id))


async def follow(graph: GraphService, follower_id: int, following_id: int) -> pb.FollowResponse:
    return await graph.stub.Follow(pb.FollowRequest(follower_id=follower_id, following_id=following_id))


async def unfollow(graph: GraphService, follower_id: int, following_id: int) -> pb.UnfollowResponse:
    return await graph.stub.Unfollow(pb.UnfollowRequest(follower_id=follower_id, following_id=following_id))


async def update(graph: GraphService, user_id: int, **changes: Any) -> pb.User:
    return (await graph.stub.UpdateUser(pb.UpdateUserRequest(user_id=user_id, **changes))).user


async def erase(graph: GraphService, user_id: int) -> None:
    await graph.stub.DeleteUser(pb.DeleteUserRequest(user_id=user_id))


async def listed(
    graph: GraphService,
    rpc: str,
    user_id: int,
    cursor: str = "",
    limit: int | None = None,
    viewer_id: int | None = None,
) -> Page:
    """A page of one of LISTINGS."""
    request = LISTINGS[rpc](user_id=user_id, limit=limit, cursor=cursor)
    if viewer_id is not None:
        request.viewer_id = viewer_id
    return page_of(await getattr(graph.stub, rpc)(request), "users", "user_id")


async def followers(graph: GraphService, user_id: int, cursor: str = "", limit: int | None = None) -> Page:
    return await listed(graph, "ListFollowers", user_id, cursor, limit)


async def following(graph: GraphService, user_id: int, cursor: str = "", limit: int | None = None) -> Page:
    return await listed(graph, "ListFollowing", user_id, cursor, limit)


async def relations(graph: GraphService, *items: tuple[int, int]) -> list[pb.BatchGetRelationsResponse.Item]:
    request = pb.BatchGetRelationsRequest(
        items=[pb.BatchGetRelationsRequest.Item(viewer_id=viewer, known_version=version) for viewer, version in items]
    )
    return list((await graph.stub.BatchGetRelations(request)).items)


def follows_of(item: pb.BatchGetRelationsResponse.Item) -> list[int]:
    found: list[int] = members.unpack_ids(item.packed_following_ids).tolist()
    return found


async def versions(graph: GraphService, *user_ids: int) -> list[int]:
    return [item.version for item in await relations(graph, *((user_id, 0) for user_id in user_ids))]


async def follower_pages(graph: GraphService, *items: tuple[int, int, int]) -> list[tuple[list[int], int]]:
    """Pages of followers for each (user, before, limit): the followers, and where the next page begins.

    And sees to it that first pages tell how many there are.
    """
    request = pb.BatchListFollowerIdsRequest(
        items=[
            pb.BatchListFollowerIdsRequest.Item(user_id=user_id, before_follow_id=before, limit=limit)
            for user_id, before, limit in items
        ]
    )
    answers = (await graph.stub.BatchListFollowerIds(request)).items
    counts = await follower_counts(graph, *(user_id for user_id, _, _ in items))
    told = [0 if before else count for (_, before, _), count in zip(items, counts, strict=True)]
    assert [answer.followers for answer in answers] == told
    return [(members.unpack_ids(answer.packed_follower_ids).tolist(), answer.next_follow_id) for answer in answers]


async def follower_counts(graph: GraphService, *user_ids: int) -> list[int]:
    request = pb.BatchGetFollowerCountsRequest(user_ids=user_ids)
    return list((await graph.stub.BatchGetFollowerCounts(request)).followers)


async def followed_by_many(graph: GraphService, least: int, after: int = 0, limit: int = 10_000) -> dict[int, int]:
    request = pb.ListFollowerCountsRequest(after_user_id=after, min_followers=least, limit=limit)
    response = await graph.stub.ListFollowerCounts(request)
    assert list(response.user_ids) == sorted(set(response.user_ids))
    return dict(zip(response.user_ids, response.followers, strict=True))


# CreateUser and GetUser.


async def test_a_new_user_is_answered_whole_and_read_back(graph: GraphService) -> None:
    before_ms = time.time_ns() // 1_000_000
    request = pb.CreateUserRequest(username="Ann.B-c_9", email="Ann@Example.org")
    user = (await graph.stub.CreateUser(request)).user
    assert (user.username, user.email, user.followers, user.following) == ("Ann.B-c_9", "Ann@Example.org", 0, 0)
    assert not user.private
    assert 0 < user.user_id <= MAX_ID
    assert user.created_at == ids.timestamp(user.user_id)
    assert before_ms - 1 <= user.created_at.ToMilliseconds() <= time.time_ns() // 1_000_000 + 1
    assert await get(graph, user.user_id, viewer_id=user.user_id) == user


async def test_an_email_address_is_shown_to_its_owner_alone(graph: GraphService) -> None:
    ann, bob = await join_all(graph, 2)
    await follow(graph, ann, bob)
    await follow(graph, bob, ann)
    assert (await get(graph, ann, viewer_id=ann)).email
    assert (await get(graph, ann, viewer_id=bob)).email == ""
    assert (await get(graph, ann)).email == ""
    for viewer, expected in ((ann, True), (bob, False), (None, False)):
        listed = await graph.stub.ListFollowers(pb.ListFollowersRequest(user_id=bob, viewer_id=viewer))
        assert [bool(user.email) for user in listed.users] == [expected]
        followed = await graph.stub.ListFollowing(pb.ListFollowingRequest(user_id=bob, viewer_id=viewer))
        assert [bool(user.email) for user in followed.users] == [expected]
    assert [user.email for user in (await graph.stub.BatchGetUsers(pb.BatchGetUsersRequest(user_ids=[ann]))).users] == [
        ""
    ]


async def test_a_username_is_taken_whatever_its_letter_case(graph: GraphService) -> None:
    await graph.stub.CreateUser(pb.CreateUserRequest(username="Ann", email="ann@example.org"))
    for username in ("Ann", "ann", "ANN"):
        with refusal(errors.Conflict, "USERNAME_TAKEN"):
            await graph.stub.CreateUser(pb.CreateUserRequest(username=username, email="other@example.org"))
    await graph.stub.CreateUser(pb.CreateUserRequest(username="Ann_", email="other@example.org"))


async def test_an_email_address_is_taken_whatever_its_letter_case(graph: GraphService) -> None:
    await graph.stub.CreateUser(pb.CreateUserRequest(username="ann", email="Ann@example.org"))
    for email in ("Ann@example.org", "ann@EXAMPLE.org"):
        with refusal(errors.Conflict, "EMAIL_TAKEN"):
            await graph.stub.CreateUser(pb.CreateUserRequest(username="other", email=email))


async def test_of_many_who_want_one_name_at_once_one_gets_it(graph: GraphService) -> None:
    requests = [pb.CreateUserRequest(username="Wanted", email=f"n{n}@example.org") for n in range(8)]
    answers = await asyncio.gather(*map(graph.stub.CreateUser, requests), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(refused) == 7
    assert {getattr(error, "reason", error) for error in refused} == {"USERNAME_TAKEN"}


@pytest.mark.parametrize(
    ("username", "email", "field"),
    [
        ("", "a@example.org", "username"),
        (".a", "a@example.org", "username"),
        ("a.", "a@example.org", "username"),
        ("-a", "a@example.org", "username"),
        ("a-", "a@example.org", "username"),
        ("a b", "a@example.org", "username"),
        ("a\n", "a@example.org", "username"),
        ("\na", "a@example.org", "username"),
        ("a\x00b", "a@example.org", "username"),
        ("ä", "a@example.org", "username"),
        ("a" * 65, "a@example.org", "username"),
        ("ann", "", "email"),
        ("ann", "ann", "email"),
        ("ann", "ann@", "email"),
        ("ann", "ann@exa mple.org", "email"),
        ("ann", "ann\x00@example.org", "email"),
        ("ann", "ann@example.org\n", "email"),
        ("ann", "a@" + ".".join(["b" * 60] * 5), "email"),
    ],
)
async def test_a_user_needs_a_name_and_an_address_in_form(
    graph: GraphService, username: str, email: str, field: str
) -> None:
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", field):
        await graph.stub.CreateUser(pb.CreateUserRequest(username=username, email=email))


async def test_every_wrong_field_is_named_at_once(graph: GraphService) -> None:
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "username", "email", "request_id"):
        await graph.stub.CreateUser(pb.CreateUserRequest(request_id="k" * 256))


@pytest.mark.parametrize("username", ["a", "_", "_a_", "9", "a" * 64, "A.b-C_9"])
async def test_a_name_at_the_edge_of_its_form_is_taken(graph: GraphService, username: str) -> None:
    user = (await graph.stub.CreateUser(pb.CreateUserRequest(username=username, email="a@example.org"))).user
    assert user.username == username


async def test_an_unknown_user_is_not_found(graph: GraphService) -> None:
    ann, gone = await join_all(graph, 2)
    await erase(graph, gone)
    for user_id in (NOBODY, MAX_ID, gone):
        for call in (
            get(graph, user_id),
            get(graph, user_id, viewer_id=user_id),
            update(graph, user_id, private=True),
            *(listed(graph, rpc, user_id) for rpc in LISTINGS),
            *(act(graph, rpc, *pair) for rpc in PAIRS for pair in ((ann, user_id), (user_id, ann))),
        ):
            with refusal(errors.NotFound, "USER_NOT_FOUND"):
                await call
    assert await counts(graph, ann) == (0, 0)
    for user_id in (NOBODY, MAX_ID):
        with refusal(errors.NotFound, "USER_NOT_FOUND"):
            await erase(graph, user_id)


@pytest.mark.parametrize("wrong", OUT_OF_RANGE)
async def test_what_is_no_id_is_refused_by_field(graph: GraphService, wrong: int) -> None:
    calls: list[tuple[Awaitable[Any], tuple[str, ...]]] = [
        (get(graph, wrong, viewer_id=wrong), ("user_id", "viewer_id")),
        (update(graph, wrong), ("user_id",)),
        (erase(graph, wrong), ("user_id",)),
        *((act(graph, rpc, wrong, wrong), PAIRS[rpc][1:]) for rpc in PAIRS),
        *((listed(graph, rpc, wrong, viewer_id=wrong), ("user_id", "viewer_id")) for rpc in OTHERS),
        *((listed(graph, rpc, wrong), ("user_id",)) for rpc in LISTINGS),
        (relations(graph, (NOBODY, 0), (wrong, 0)), ("items[1].viewer_id",)),
    ]
    for call, fields in calls:
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", *fields):
            await call


@pytest.mark.parametrize("limit", [0, 101, -1, 2**31 - 1])
async def test_a_page_holds_1_to_100(graph: GraphService, limit: int) -> None:
    ann = await join(graph)
    for rpc in LISTINGS:
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "limit"):
            await listed(graph, rpc, ann, limit=limit)


async def test_a_batch_has_a_bound(graph: GraphService) -> None:
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "items"):
        await relations(graph, *[(1, 0)] * 201)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "user_ids"):
        await graph.stub.BatchGetUsers(pb.BatchGetUsersRequest(user_ids=[1] * 10_001))
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "items"):
        await follower_pages(graph, *[(1, 0, 1)] * 65)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "user_ids"):
        await follower_counts(graph, *[1] * 1_001)
    for limit in (0, 10_001, -1):
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "items[1].limit"):
            await follower_pages(graph, (1, 0, 1), (1, 0, limit))
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "limit"):
            await followed_by_many(graph, 1, limit=limit)
    for least in (0, -1):
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "min_followers"):
            await followed_by_many(graph, least)


async def test_a_batch_that_is_wrong_in_every_item_is_answered_with_some_of_them(graph: GraphService) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        await relations(graph, *[(0, 0)] * 200)
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert 0 < len(caught.value.fields) <= errors.MAX_FIELDS
    assert caught.value.fields[0].field == "items[0].viewer_id"


# UpdateUser and DeleteUser.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"private": True},
        {"username": "Bob"},
        {"email": "bob@example.org"},
        {"private": True, "username": "Bob", "email": "bob@example.org"},
        {"private": False, "username": "ANN", "email": "ann@EXAMPLE.org"},
    ],
    ids=", ".join,
)
async def test_an_update_changes_what_is_given_and_leaves_the_rest(
    graph: GraphService, changes: dict[str, Any]
) -> None:
    user = (await graph.stub.CreateUser(pb.CreateUserRequest(username="Ann", email="Ann@example.org"))).user
    other = await join(graph)
    await follow(graph, other, user.user_id)
    expected = await get(graph, user.user_id, viewer_id=user.user_id)
    for _ in range(2):
        expected.MergeFrom(pb.User(**changes))
        assert await update(graph, user.user_id, **changes) == expected
        assert await get(graph, user.user_id, viewer_id=user.user_id) == expected
        await update(graph, user.user_id, private=False)
        expected.private = False
        assert await get(graph, user.user_id, viewer_id=user.user_id) == expected


async def test_a_name_or_address_of_another_is_taken_and_ones_former_one_is_free(graph: GraphService) -> None:
    ann = (await graph.stub.CreateUser(pb.CreateUserRequest(username="Ann", email="Ann@example.org"))).user
    bob = (await graph.stub.CreateUser(pb.CreateUserRequest(username="Bob", email="Bob@example.org"))).user
    for taken, reason in (
        ({"username": "ANN", "email": "new@example.org"}, "USERNAME_TAKEN"),
        ({"username": "New", "email": "ann@EXAMPLE.org"}, "EMAIL_TAKEN"),
    ):
        with refusal(errors.Conflict, reason):
            await update(graph, bob.user_id, private=True, **taken)
        assert await get(graph, bob.user_id, viewer_id=bob.user_id) == bob
    await update(graph, ann.user_id, username="Cid", email="cid@example.org")
    renamed = await update(graph, bob.user_id, username="ann", email="ann@example.org")
    assert (renamed.username, renamed.email) == ("ann", "ann@example.org")


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"username": ""}, ["username"]),
        ({"username": "a."}, ["username"]),
        ({"username": "a" * 65}, ["username"]),
        ({"email": ""}, ["email"]),
        ({"email": "ann"}, ["email"]),
        ({"username": "a b", "email": "ann@", "request_id": "k" * 256}, ["username", "email", "request_id"]),
    ],
)
async def test_an_update_needs_a_name_and_an_address_in_form(
    graph: GraphService, changes: dict[str, Any], fields: list[str]
) -> None:
    ann = await join(graph)
    before = await get(graph, ann, viewer_id=ann)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", *fields):
        await update(graph, ann, private=True, **changes)
    assert await get(graph, ann, viewer_id=ann) == before


async def test_whoever_is_private_is_shown_as_such_everywhere(graph: GraphService) -> None:
    ann, hidden = await join_all(graph, 2)
    await follow(graph, ann, hidden)
    await follow(graph, hidden, ann)
    await act(graph, "Mute", ann, hidden)
    for private in (True, False):
        await update(graph, hidden, private=private)
        assert [(await get(graph, hidden, viewer)).private for viewer in (ann, hidden, None)] == [private] * 3
        for rpc in (*OTHERS, "ListMutes"):
            users = (await getattr(graph.stub, rpc)(LISTINGS[rpc](user_id=ann))).users
            assert [(user.user_id, user.private) for user in users] == [(hidden, private)], rpc
        users = (await graph.stub.BatchGetUsers(pb.BatchGetUsersRequest(user_ids=[hidden, ann]))).users
        assert {user.user_id: user.private for user in users} == {hidden: private, ann: False}


async def test_of_whoever_is_erased_nothing_is_left(graph: GraphService) -> None:
    gone, ann, bob, cid = await join_all(graph, 4)
    await update(graph, ann, private=True)
    for rpc, actor, other in (
        ("Follow", bob, gone),
        ("Follow", gone, bob),
        ("Follow", cid, bob),
        ("Follow", gone, ann),
        ("Follow", bob, ann),
        ("Block", cid, gone),
        ("Mute", cid, gone),
        ("Mute", cid, ann),
        ("Block", cid, ann),
    ):
        await act(graph, rpc, actor, other)
    for _ in range(2):
        await erase(graph, gone)
        for rpc, user_id, left in (
            ("ListFollowers", bob, [cid]),
            ("ListFollowing", bob, []),
            ("ListFollowRequests", ann, [bob]),
            ("ListBlocks", cid, [ann]),
            ("ListMutes", cid, [ann]),
        ):
            assert await listed(graph, rpc, user_id) == Page(left, None), rpc
        users = (await graph.stub.BatchGetUsers(pb.BatchGetUsersRequest(user_ids=[gone, bob]))).users
        assert [user.user_id for user in users] == [bob]
        assert await relations(graph, (gone, 0)) == [pb.BatchGetRelationsResponse.Item()]
    for _ in range(2):  # what is cleared away is folded into the counts the next time
        await graph.upkeep()
    assert await counts(graph, bob) == (1, 0)
    assert await follower_counts(graph, gone, bob) == [0, 1]
    assert await followed_by_many(graph, 1) == {bob: 1}
    assert await follower_pages(graph, (gone, 0, 9), (bob, 0, 9)) == [([], 0), ([cid], 0)]
    [of_bob, of_cid] = await relations(graph, (bob, 0), (cid, 0))
    assert (follows_of(of_bob), list(of_cid.blocked_ids), list(of_cid.muted_ids)) == ([], [ann], [ann])


async def test_a_page_is_full_whoever_on_it_is_erased(graph: GraphService) -> None:
    star, *others = await join_all(graph, 9)
    for other in others:
        await follow(graph, other, star)
    for gone in others[2:7:2]:
        await erase(graph, gone)
    expected = [others[n] for n in (7, 5, 3, 1, 0)]
    assert await read_to_end(lambda cursor: followers(graph, star, cursor, 2), 2) == expected


async def test_a_name_and_an_address_are_free_once_their_owner_is_erased(graph: GraphService) -> None:
    request = pb.CreateUserRequest(username="Ann", email="ann@example.org")
    seen = set()
    for _ in range(3):
        user = (await graph.stub.CreateUser(request)).user
        assert (user.username, user.followers) == ("Ann", 0)
        seen.add(user.user_id)
        await follow(graph, await join(graph), user.user_id)
        await erase(graph, user.user_id)
    await graph.upkeep()
    assert len(seen) == 3


async def test_whoever_is_erased_while_others_follow_is_gone(graph: GraphService) -> None:
    gone, *others = await join_all(graph, 7)
    await asyncio.gather(
        *(follow(graph, *pair) for other in others for pair in ((other, gone), (gone, other))),
        erase(graph, gone),
        erase(graph, gone),
        return_exceptions=True,
    )
    await graph.upkeep()
    assert [await counts(graph, other) for other in others] == [(0, 0)] * 6
    assert [follows_of(item) for item in await relations(graph, *((o, 0) for o in others))] == [[]] * 6


# Follow and Unfollow.


async def test_follow_and_unfollow_take_effect_once_each(graph: GraphService) -> None:
    ann, bob = await join_all(graph, 2)
    assert (await unfollow(graph, ann, bob)).status == pb.FOLLOW_STATUS_NOT_FOLLOWING
    assert await counts(graph, ann) == await counts(graph, bob) == (0, 0)
    for _ in range(2):
        for _ in range(2):
            assert (await follow(graph, ann, bob)).status == pb.FOLLOW_STATUS_FOLLOWING
            assert (await counts(graph, ann), await counts(graph, bob)) == ((0, 1), (1, 0))
            assert (await followers(graph, bob), await following(graph, ann)) == (Page([ann], None), Page([bob], None))
        await graph.upkeep()
        assert (await counts(graph, ann), await counts(graph, bob)) == ((0, 1), (1, 0))
        for _ in range(2):
            assert (await unfollow(graph, ann, bob)).status == pb.FOLLOW_STATUS_NOT_FOLLOWING
            assert await counts(graph, ann) == await counts(graph, bob) == (0, 0)
            assert await followers(graph, bob) == await following(graph, ann) == Page([], None)
        await graph.upkeep()
        assert await counts(graph, ann) == await counts(graph, bob) == (0, 0)


async def test_nobody_follows_themselves(graph: GraphService) -> None:
    ann = await join(graph)
    with refusal(errors.InvalidArgument, "SELF_FOLLOW", "following_id"):
        await follow(graph, ann, ann)
    assert await counts(graph, ann) == (0, 0)


async def test_follows_both_ways_at_once_all_take_effect(graph: GraphService) -> None:
    people = await join_all(graph, 6)
    pairs = list(itertools.permutations(people, 2))
    random.Random(6).shuffle(pairs)
    await asyncio.gather(*(follow(graph, a, b) for a, b in pairs + pairs))
    assert [await counts(graph, user_id) for user_id in people] == [(5, 5)] * 6
    await asyncio.gather(graph.upkeep(), *(unfollow(graph, a, b) for a, b in pairs + pairs))
    assert [await counts(graph, user_id) for user_id in people] == [(0, 0)] * 6


@pytest.mark.parametrize("max_following", [3])
async def test_one_follows_only_so_many(graph: GraphService, max_following: int) -> None:
    ann, *others = await join_all(graph, 7)
    answers = await asyncio.gather(*(follow(graph, ann, other) for other in others), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert [getattr(error, "reason", error) for error in refused] == ["FOLLOW_LIMIT"] * 3
    followed = (await following(graph, ann)).rows
    assert len(followed) == max_following
    [fourth, *_] = set(others) - set(followed)
    with refusal(errors.Refused, "FOLLOW_LIMIT"):
        await follow(graph, ann, fourth)
    assert await counts(graph, fourth) == (0, 0)
    await follow(graph, ann, followed[0])
    await unfollow(graph, ann, followed[0])
    await follow(graph, ann, fourth)
    assert await counts(graph, ann) == (0, max_following)


# Requests to follow.

NONE, ASKED, FOLLOWS = pb.FOLLOW_STATUS_NOT_FOLLOWING, pb.FOLLOW_STATUS_REQUESTED, pb.FOLLOW_STATUS_FOLLOWING
STATES = (NONE, ASKED, FOLLOWS)
STEPS: dict[tuple[str, str], tuple[int | None, ...]] = {
    ("Follow", "private"): (ASKED, ASKED, FOLLOWS),
    ("Follow", "public"): (FOLLOWS, FOLLOWS, FOLLOWS),
    ("Unfollow", "private"): (NONE, NONE, NONE),
    ("Unfollow", "public"): (NONE, NONE, NONE),
    ("AcceptFollowRequest", "private"): (None, FOLLOWS, FOLLOWS),
    ("AcceptFollowRequest", "public"): (None, FOLLOWS, FOLLOWS),
    ("RejectFollowRequest", "private"): (NONE, NONE, FOLLOWS),
    ("RejectFollowRequest", "public"): (NONE, NONE, FOLLOWS),
}
"""What becomes of each of STATES by an RPC, on an account that is private or public: None where it is refused."""


async def state(graph: GraphService, follower_id: int, user_id: int) -> int:
    """Where a follow stands, as everything tells it that shows it."""
    asked = follower_id in (await listed(graph, "ListFollowRequests", user_id)).rows
    [known] = await relations(graph, (follower_id, 0))
    follows = user_id in follows_of(known)
    assert not (asked and follows)
    assert (follower_id in (await listed(graph, "ListFollowers", user_id, viewer_id=user_id)).rows) == follows
    assert await counts(graph, user_id) == (int(follows), 0)
    assert await counts(graph, follower_id) == (0, int(follows))
    return FOLLOWS if follows else ASKED if asked else NONE


@pytest.mark.parametrize(("rpc", "account"), STEPS, ids="-".join)
async def test_a_follow_of_a_private_account_is_a_request_until_it_is_accepted(
    graph: GraphService, rpc: str, account: str
) -> None:
    for before, after in zip(STATES, STEPS[rpc, account], strict=True):
        owner, other = await join_all(graph, 2)
        await update(graph, owner, private=True)
        if before != NONE:
            await act(graph, "Follow", other, owner)
        if before == FOLLOWS:
            await act(graph, "AcceptFollowRequest", owner, other)
        await update(graph, owner, private=account == "private")
        assert await state(graph, other, owner) == before
        pair = (owner, other) if PAIRS[rpc][1] == "user_id" else (other, owner)
        end = before if after is None else after
        for start in (before, end):
            known = await versions(graph, other)
            if after is None:
                with refusal(errors.NotFound, "FOLLOW_REQUEST_NOT_FOUND"):
                    await act(graph, rpc, *pair)
            else:
                assert (await act(graph, rpc, *pair)).status == after
            assert await state(graph, other, owner) == end
            if start == end:
                assert await versions(graph, other) == known
            elif FOLLOWS in (start, end):
                assert await versions(graph, other) > known
            await graph.upkeep()


@pytest.mark.parametrize("max_following", [3])
async def test_follows_and_requests_are_bounded_together(graph: GraphService, max_following: int) -> None:
    ann, open_to_all, *private = await join_all(graph, 5)
    for user_id in private:
        await update(graph, user_id, private=True)
        await follow(graph, ann, user_id)
    for refused in (open_to_all, await join(graph)):
        with refusal(errors.Refused, "FOLLOW_LIMIT"):
            await follow(graph, ann, refused)
    assert (await follow(graph, ann, private[0])).status == ASKED
    await act(graph, "AcceptFollowRequest", private[0], ann)
    await update(graph, private[1], private=False)
    assert (await follow(graph, ann, private[1])).status == FOLLOWS
    with refusal(errors.Refused, "FOLLOW_LIMIT"):
        await follow(graph, ann, open_to_all)
    await act(graph, "RejectFollowRequest", private[2], ann)
    await follow(graph, ann, open_to_all)
    assert await counts(graph, ann) == (0, max_following)


async def test_a_request_that_is_taken_back_while_it_is_accepted_ends_in_one_of_the_two(graph: GraphService) -> None:
    owner, other = await join_all(graph, 2)
    await update(graph, owner, private=True)
    for _ in range(8):
        await follow(graph, other, owner)
        steps = [
            ("AcceptFollowRequest", owner, other),
            ("RejectFollowRequest", owner, other),
            ("Unfollow", other, owner),
        ]
        answers = await asyncio.gather(*(act(graph, *step) for step in steps * 2), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                assert getattr(answer, "reason", answer) == "FOLLOW_REQUEST_NOT_FOUND"
        assert await state(graph, other, owner) in (NONE, FOLLOWS)
        await unfollow(graph, other, owner)


# Blocks and mutes.


@pytest.mark.parametrize("rpc", ["Block", "Mute"])
async def test_nobody_blocks_or_mutes_themselves(graph: GraphService, rpc: str) -> None:
    ann = await join(graph)
    with refusal(errors.InvalidArgument, "SELF_TARGET", "target_id"):
        await act(graph, rpc, ann, ann)
    assert await get(graph, ann, viewer_id=ann)


async def test_a_block_ends_what_there_was_and_hides_each_from_the_other(graph: GraphService) -> None:
    ann, bob, cid = await join_all(graph, 3)
    for follower, followee in ((ann, bob), (bob, ann), (cid, ann), (cid, bob)):
        await follow(graph, follower, followee)
    await act(graph, "Block", ann, bob)
    for viewer, other in ((ann, bob), (bob, ann)):
        for hidden in (
            get(graph, other, viewer),
            follow(graph, viewer, other),
            *(listed(graph, rpc, other, viewer_id=viewer) for rpc in OTHERS),
        ):
            with refusal(errors.NotFound, "USER_NOT_FOUND"):
                await hidden
        assert await counts(graph, viewer) == (1, 0)
    for seen_by in (cid, None):
        for user_id in (ann, bob):
            assert (await get(graph, user_id, seen_by)).user_id == user_id
            assert await listed(graph, "ListFollowers", user_id, viewer_id=seen_by) == Page([cid], None)
    await act(graph, "Unblock", ann, bob)
    await graph.upkeep()
    for viewer, other in ((ann, bob), (bob, ann)):
        assert await listed(graph, "ListFollowers", other, viewer_id=viewer) == Page([cid], None)
        assert await counts(graph, viewer) == (1, 0)
    for viewer, other in ((ann, bob), (bob, ann)):
        assert (await follow(graph, viewer, other)).status == FOLLOWS


async def test_a_block_ends_requests_both_ways(graph: GraphService) -> None:
    ann, bob = await join_all(graph, 2)
    for user_id, other in ((ann, bob), (bob, ann)):
        await update(graph, user_id, private=True)
        await follow(graph, other, user_id)
        assert await state(graph, other, user_id) == ASKED
    for blocker, blocked in ((ann, bob), (bob, ann)):
        await act(graph, "Block", blocker, blocked)
        for user_id in (ann, bob):
            assert await listed(graph, "ListFollowRequests", user_id) == Page([], None)


async def test_two_blocks_are_each_taken_back_by_their_own(graph: GraphService) -> None:
    ann, bob = await join_all(graph, 2)
    await act(graph, "Block", ann, bob)
    for user_id, other in ((bob, ann), (ann, bob)):
        await act(graph, "Block", user_id, other)
        await act(graph, "Unblock", other, user_id)
        for viewer, hidden in ((ann, bob), (bob, ann)):
            with refusal(errors.NotFound, "USER_NOT_FOUND"):
                await get(graph, hidden, viewer)
        assert await listed(graph, "ListBlocks", user_id) == Page([other], None)
        assert await listed(graph, "ListBlocks", other) == Page([], None)
    await act(graph, "Unblock", ann, bob)
    assert (await get(graph, ann, bob)).user_id == ann


async def test_a_mute_hides_nobody(graph: GraphService) -> None:
    ann, bob = await join_all(graph, 2)
    await follow(graph, ann, bob)
    before = await get(graph, bob, ann)
    await act(graph, "Mute", ann, bob)
    assert await get(graph, bob, ann) == before
    assert await listed(graph, "ListFollowing", ann, viewer_id=ann) == Page([bob], None)
    assert (await follow(graph, bob, ann)).status == FOLLOWS


async def test_blocks_and_mutes_are_relations_of_those_whom_they_concern(graph: GraphService) -> None:
    ann, bob = await join_all(graph, 2)
    known = await versions(graph, ann, bob)
    # By whom, the RPC, whose version rises, and whom ann and bob then block or are blocked by, and mute.
    for actor, rpc, rises, of_ann, of_bob in (
        (ann, "Unmute", (), ([], []), ([], [])),
        (ann, "Unblock", (), ([], []), ([], [])),
        (ann, "Mute", (ann,), ([], [bob]), ([], [])),
        (ann, "Mute", (), ([], [bob]), ([], [])),
        (ann, "Block", (ann, bob), ([bob], [bob]), ([ann], [])),
        (ann, "Block", (), ([bob], [bob]), ([ann], [])),
        (bob, "Unblock", (), ([bob], [bob]), ([ann], [])),
        (ann, "Unmute", (ann,), ([bob], []), ([ann], [])),
        (ann, "Unblock", (ann, bob), ([], []), ([], [])),
        (ann, "Unblock", (), ([], []), ([], [])),
        (bob, "Block", (ann, bob), ([bob], []), ([ann], [])),
    ):
        await act(graph, rpc, actor, bob if actor == ann else ann)
        now = await versions(graph, ann, bob)
        assert [new > old for new, old in zip(now, known, strict=True)] == [ann in rises, bob in rises]
        known = now
        found = await relations(graph, (ann, 0), (bob, 0))
        assert [(list(item.blocked_ids), list(item.muted_ids)) for item in found] == [of_ann, of_bob]
    await act(graph, "Block", ann, bob)
    [both_ways, *_] = await relations(graph, (ann, 0))
    assert list(both_ways.blocked_ids) == [bob]
    [same] = await relations(graph, (ann, both_ways.version))
    assert same == pb.BatchGetRelationsResponse.Item(version=both_ways.version, unchanged=True)


async def test_a_block_outlasts_follows_that_come_at_once(graph: GraphService) -> None:
    people = await join_all(graph, 5)
    await update(graph, people[0], private=True)
    pairs = list(itertools.permutations(people, 2))
    random.Random(5).shuffle(pairs)
    await asyncio.gather(
        *(act(graph, rpc, *pair) for pair in pairs for rpc in ("Follow", "Block", "Mute", "Follow", "Unmute")),
        return_exceptions=True,
    )
    for user_id in people:
        others = sorted(set(people) - {user_id})
        [known] = await relations(graph, (user_id, 0))
        assert (sorted(known.blocked_ids), follows_of(known)) == (others, [])
        assert sorted((await listed(graph, "ListBlocks", user_id)).rows) == others
        assert (await listed(graph, "ListFollowRequests", user_id)).rows == []
        assert await counts(graph, user_id) == (0, 0)


# Idempotency keys.


async def test_a_request_with_a_key_takes_effect_once_and_is_answered_alike(graph: GraphService) -> None:
    request = pb.CreateUserRequest(username="ann", email="ann@example.org", request_id="key")
    first = await graph.stub.CreateUser(request)
    assert await graph.stub.CreateUser(request) == first
    ann, bob = first.user.user_id, await join(graph)
    followed = await graph.stub.Follow(pb.FollowRequest(follower_id=ann, following_id=bob, request_id="follow"))
    await unfollow(graph, ann, bob)
    again = await graph.stub.Follow(pb.FollowRequest(follower_id=ann, following_id=bob, request_id="follow"))
    assert again == followed
    assert await counts(graph, bob) == (0, 0), "the replay had no effect"
    gone = await graph.stub.Unfollow(pb.UnfollowRequest(follower_id=ann, following_id=bob, request_id="unfollow"))
    await follow(graph, ann, bob)
    await graph.stub.Unfollow(pb.UnfollowRequest(follower_id=ann, following_id=bob, request_id="unfollow"))
    assert gone.status == pb.FOLLOW_STATUS_NOT_FOLLOWING
    assert await counts(graph, bob) == (1, 0), "the replay had no effect"


REVERSED = {
    "Follow": "Unfollow",
    "Unfollow": "Follow",
    "AcceptFollowRequest": "RejectFollowRequest",
    "RejectFollowRequest": "AcceptFollowRequest",
    "Block": "Unblock",
    "Unblock": "Block",
    "Mute": "Unmute",
    "Unmute": "Mute",
}
"""For each of PAIRS, by which what it did can be undone."""


@pytest.mark.parametrize("rpc", PAIRS)
async def test_what_was_done_with_a_key_and_undone_is_not_done_again(graph: GraphService, rpc: str) -> None:
    ann, bob = await join_all(graph, 2)

    async def effects() -> list[Any]:
        return [
            *[follows_of(item) for item in await relations(graph, (ann, 0), (bob, 0))],
            *[await listed(graph, listing, user_id) for listing in LISTINGS for user_id in (ann, bob)],
        ]

    await update(graph, ann, private=True)
    for undo in ("Unfollow", "Follow"):
        await act(graph, undo, bob, ann)
    if rpc in ("Unfollow", "Unblock", "Unmute"):
        await act(graph, REVERSED[rpc], ann, bob)
    before = await effects()
    answer = await act(graph, rpc, ann, bob, "key")
    assert await effects() != before
    if "FollowRequest" in rpc:
        await act(graph, "Unfollow", bob, ann)
        await act(graph, "Follow", bob, ann)
    else:
        await act(graph, REVERSED[rpc], ann, bob)
    undone = await effects()
    assert await act(graph, rpc, ann, bob, "key") == answer
    assert await effects() == undone


async def test_an_update_with_a_key_is_answered_again_as_it_was(graph: GraphService) -> None:
    ann = await join(graph)
    first = await update(graph, ann, private=True, username="Ann", request_id="key")
    await update(graph, ann, private=False)
    assert await update(graph, ann, private=True, username="Ann", request_id="key") == first
    assert not (await get(graph, ann)).private
    with refusal(errors.Refused, "REQUEST_ID_REUSED"):
        await update(graph, ann, private=False, username="Ann", request_id="key")
    for _ in range(2):
        await graph.stub.DeleteUser(pb.DeleteUserRequest(user_id=ann, request_id="erase"))


async def test_another_request_with_the_key_is_refused(graph: GraphService) -> None:
    ann, bob, cid = await join_all(graph, 3)
    await graph.stub.CreateUser(pb.CreateUserRequest(username="dan", email="dan@example.org", request_id="key"))
    with refusal(errors.Refused, "REQUEST_ID_REUSED"):
        await graph.stub.CreateUser(pb.CreateUserRequest(username="dan", email="d@example.org", request_id="key"))
    await graph.stub.Follow(pb.FollowRequest(follower_id=ann, following_id=bob, request_id="key"))
    with refusal(errors.Refused, "REQUEST_ID_REUSED"):
        await graph.stub.Follow(pb.FollowRequest(follower_id=ann, following_id=cid, request_id="key"))
    for rpc in PAIRS.keys() - {"Follow"}:
        with refusal(errors.Refused, "REQUEST_ID_REUSED"):
            await act(graph, rpc, ann, bob, "key")
    with refusal(errors.Refused, "REQUEST_ID_REUSED"):
        await update(graph, ann, private=True, request_id="key")
    assert await following(graph, ann) == Page([bob], None)


async def test_a_key_is_its_actors_own(graph: GraphService) -> None:
    ann, bob, cid = await join_all(graph, 3)
    await graph.stub.Follow(pb.FollowRequest(follower_id=ann, following_id=cid, request_id="key"))
    await graph.stub.Follow(pb.FollowRequest(follower_id=bob, following_id=cid, request_id="key"))
    assert await counts(graph, cid) == (2, 0)


async def test_a_write_that_was_refused_leaves_its_key_free(graph: GraphService) -> None:
    await graph.stub.CreateUser(pb.CreateUserRequest(username="ann", email="ann@example.org"))
    with refusal(errors.Conflict, "USERNAME_TAKEN"):
        await graph.stub.CreateUser(pb.CreateUserRequest(username="ann", email="bob@example.org", request_id="key"))
    await graph.stub.CreateUser(pb.CreateUserRequest(username="bob", email="bob@example.org", request_id="key"))


async def test_two_at_once_with_a_key_have_one_effect(graph: GraphService) -> None:
    for n in range(5):
        request = pb.CreateUserRequest(username=f"ann{n}", email=f"ann{n}@example.org", request_id=f"key{n}")
        answers = await both(graph.stub.CreateUser, request)
        assert await graph.stub.CreateUser(request) == answers[0]
        assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("bad", ["k" * 256, "k\x00"], ids=["256", "NUL"])
async def test_a_key_has_at_most_255_characters_and_no_nul(graph: GraphService, bad: str) -> None:
    ann, bob = await join_all(graph, 2)
    await act(graph, "Follow", ann, bob, "ä" * 255)
    calls: list[Awaitable[Any]] = [
        graph.stub.CreateUser(pb.CreateUserRequest(username="x", email="x@example.org", request_id=bad)),
        update(graph, ann, private=True, request_id=bad),
        graph.stub.DeleteUser(pb.DeleteUserRequest(user_id=ann, request_id=bad)),
        *(act(graph, rpc, ann, bob, bad) for rpc in PAIRS),
    ]
    for call in calls:
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "request_id"):
            await call


# Listings.


@pytest.mark.parametrize("limit", [1, 2, 5, 11, 12, 100])
async def test_listings_page_to_the_end_newest_first_while_follows_come(graph: GraphService, limit: int) -> None:
    star, *others = await join_all(graph, 12)
    for other in others:
        await follow(graph, other, star)
        await follow(graph, star, other)

    async def come() -> None:
        new = await join(graph)
        await follow(graph, new, star)
        await follow(graph, star, new)

    expected = others[::-1]
    assert await read_to_end(lambda cursor: followers(graph, star, cursor, limit), limit, come) == expected
    newest = (await following(graph, star, limit=100)).rows
    assert await read_to_end(lambda cursor: following(graph, star, cursor, limit), limit, come) == newest
    assert list(newest)[-11:] == expected


async def test_a_page_holds_20_where_the_request_does_not_say(graph: GraphService) -> None:
    star, *others = await join_all(graph, 22)
    await asyncio.gather(*(follow(graph, other, star) for other in others))
    assert len((await followers(graph, star)).rows) == 20


async def test_a_listing_shows_people_with_their_counts(graph: GraphService) -> None:
    ann, bob = await join_all(graph, 2)
    await follow(graph, ann, bob)
    response = await graph.stub.ListFollowers(pb.ListFollowersRequest(user_id=bob))
    assert list(response.users) == [await get(graph, ann)]
    assert list((await graph.stub.ListFollowing(pb.ListFollowingRequest(user_id=ann))).users) == [await get(graph, bob)]


async def test_one_who_unfollows_between_two_pages_is_not_shown_and_nobody_else_is_lost(graph: GraphService) -> None:
    star, *others = await join_all(graph, 7)
    for other in others:
        await follow(graph, other, star)
    first = await followers(graph, star, limit=2)
    await unfollow(graph, others[-2], star)
    await unfollow(graph, others[-4], star)
    assert first.next_cursor
    second = await followers(graph, star, first.next_cursor, limit=100)
    assert [*first.rows, *second.rows] == [others[5], others[4], others[3], others[1], others[0]]


ADDS = {"ListFollowRequests": "Follow", "ListBlocks": "Block", "ListMutes": "Mute"}
"""By which RPC the listings of one's own grow, and shrink."""
ENDS = {"ListFollowRequests": "Unfollow", "ListBlocks": "Unblock", "ListMutes": "Unmute"}


@pytest.mark.parametrize("rpc", ADDS)
async def test_ones_own_listings_page_to_the_end_newest_first(graph: GraphService, rpc: str) -> None:
    ann, *others = await join_all(graph, 12)
    await update(graph, ann, private=True)

    async def change(step: str, other: int) -> None:
        await act(graph, step, *((other, ann) if rpc == "ListFollowRequests" else (ann, other)))

    async def come() -> None:
        await change(ADDS[rpc], await join(graph))

    for other in others:
        await change(ADDS[rpc], other)
    await change(ADDS[rpc], others[0])  # changes nothing, its place neither
    for limit in (1, 5, 11, 100):
        everything = (await listed(graph, rpc, ann, limit=100)).rows
        assert list(everything)[-11:] == others[::-1]
        assert await read_to_end(partial(listed, graph, rpc, ann, limit=limit), limit, come) == everything
    assert len((await listed(graph, rpc, ann)).rows) == 20
    for other in others[1:9:3]:
        await change(ENDS[rpc], other)
    await change(ENDS[rpc], others[10])
    await change(ADDS[rpc], others[10])
    left = [others[n] for n in (10, 9, 8, 6, 5, 3, 2, 0)]
    everything = (await listed(graph, rpc, ann, limit=100)).rows
    assert [other for other in everything if other in others] == left
    assert everything[0] == others[10]
    users = (await getattr(graph.stub, rpc)(LISTINGS[rpc](user_id=ann, limit=1))).users
    assert list(users) == [await get(graph, others[10])]


async def test_of_a_private_account_only_followers_see_who_follows_whom(graph: GraphService) -> None:
    hidden, follower, asked, other, followee = await join_all(graph, 5)
    await follow(graph, follower, hidden)
    await follow(graph, hidden, followee)
    await update(graph, hidden, private=True)
    await follow(graph, asked, hidden)
    for viewer, sees in ((hidden, True), (follower, True), (asked, False), (other, False), (followee, False)):
        for private in (True, False):
            await update(graph, hidden, private=private)
            for rpc, people in (("ListFollowers", [follower]), ("ListFollowing", [followee])):
                expected = people if sees or not private else []
                assert await listed(graph, rpc, hidden, viewer_id=viewer) == Page(expected, None), (viewer, private)
                assert await listed(graph, rpc, hidden) == Page([] if private else people, None)
            assert (await get(graph, hidden, viewer)).followers == 1


@pytest.mark.parametrize("rpc", OTHERS)
async def test_listings_leave_out_whom_a_block_separates_from_the_viewer(graph: GraphService, rpc: str) -> None:
    star, viewer, *others = await join_all(graph, 12)
    for other in others:
        await act(graph, "Follow", *((other, star) if rpc == "ListFollowers" else (star, other)))
    for n, other in enumerate(others):
        if n % 5 in (1, 2):
            await act(graph, "Block", *((viewer, other) if n % 5 == 1 else (other, viewer)))
    expected = [other for n, other in enumerate(others) if n % 5 not in (1, 2)][::-1]
    for limit in (1, 2, 3, 100):
        read = partial(listed, graph, rpc, star, limit=limit, viewer_id=viewer)
        assert await read_to_end(read, limit) == expected
    for sees_all in (None, star, others[3]):
        assert (await listed(graph, rpc, star, viewer_id=sees_all)).rows == others[::-1]


async def test_only_a_cursor_of_this_listing_and_viewer_is_taken(graph: GraphService) -> None:
    star, bob, cid, dan = await join_all(graph, 4)
    await update(graph, star, private=True)
    await update(graph, bob, private=True)
    for user_id, other in itertools.permutations((star, bob, cid), 2):
        await follow(graph, user_id, other)
        await act(graph, "Mute", user_id, other)
    for other in (bob, cid):
        await act(graph, "AcceptFollowRequest", star, other)
    for user_id in (star, bob):
        for _ in range(2):
            await act(graph, "Block", user_id, await join(graph))
            await follow(graph, await join(graph), user_id)
    await follow(graph, dan, cid)
    await act(graph, "AcceptFollowRequest", bob, star)
    cursors: dict[str, str] = {}
    for rpc in LISTINGS:
        viewer = star if rpc in OTHERS else None
        cursor = (await listed(graph, rpc, star, limit=1, viewer_id=viewer)).next_cursor
        assert cursor, rpc
        assert await listed(graph, rpc, star, cursor, viewer_id=viewer)
        cursors[rpc] = cursor
        foreign = [(bob, cursor, viewer), *((star, bad, viewer) for bad in damaged(cursor))]
        if rpc in OTHERS:
            foreign += [(star, cursor, None), (star, cursor, bob)]
        for user_id, bad, by in foreign:
            with refusal(errors.InvalidArgument, "INVALID_CURSOR", "cursor"):
                await listed(graph, rpc, user_id, bad, viewer_id=by)
    for one, another in itertools.permutations(LISTINGS, 2):
        with refusal(errors.InvalidArgument, "INVALID_CURSOR", "cursor"):
            await listed(graph, one, star, cursors[another], viewer_id=star if one in OTHERS else None)


# The batches.


async def test_many_users_are_read_at_once_without_the_unknown(graph: GraphService) -> None:
    people = await join_all(graph, 5)
    wanted = [*people, people[0], NOBODY, 0, -1, MAX_ID + 1]
    response = await graph.stub.BatchGetUsers(pb.BatchGetUsersRequest(user_ids=wanted))
    expected = {user_id: (await get(graph, user_id)).username for user_id in people}
    assert sorted((user.user_id, user.username) for user in response.users) == sorted(expected.items())
    assert list((await graph.stub.BatchGetUsers(pb.BatchGetUsersRequest())).users) == []


async def test_relations_are_answered_only_when_they_have_changed(graph: GraphService) -> None:
    ann, bob, cid = await join_all(graph, 3)
    [new] = await relations(graph, (ann, 0))
    assert (new.version >= 1, new.unchanged, follows_of(new)) == (True, False, [])
    version = new.version
    for act, other, expected in (
        (follow, bob, {bob}),
        (follow, cid, {bob, cid}),
        (unfollow, bob, {cid}),
        (unfollow, cid, set()),
    ):
        await act(graph, ann, other)
        [changed] = await relations(graph, (ann, version))
        assert (changed.version > version, changed.unchanged) == (True, False)
        assert sorted(follows_of(changed)) == sorted(expected)
        assert len(members.unpack_ids(changed.packed_follow_ids)) == len(expected)
        version = changed.version
        [same] = await relations(graph, (ann, version))
        assert same == pb.BatchGetRelationsResponse.Item(version=version, unchanged=True)


async def test_what_changes_nothing_leaves_the_version_of_relations(graph: GraphService) -> None:
    ann, bob, cid = await join_all(graph, 3)
    await follow(graph, ann, bob)
    [known] = await relations(graph, (ann, 0))
    await follow(graph, ann, bob)
    await unfollow(graph, ann, cid)
    await follow(graph, bob, ann)
    [same] = await relations(graph, (ann, known.version))
    assert same.unchanged


async def test_an_unknown_viewer_has_version_0(graph: GraphService) -> None:
    ann = await join(graph)
    nobody, somebody, stale = await relations(graph, (NOBODY, 0), (ann, 0), (NOBODY, 7))
    assert (nobody.version, follows_of(nobody)) == (0, [])
    assert somebody.version >= 1
    assert (stale.version, stale.unchanged, follows_of(stale)) == (0, False, [])


async def test_a_viewer_may_be_asked_for_twice(graph: GraphService) -> None:
    ann, bob = await join_all(graph, 2)
    await follow(graph, ann, bob)
    [whole] = await relations(graph, (ann, 0))
    assert await relations(graph, (ann, 0), (ann, 0)) == [whole, whole]
    unchanged = pb.BatchGetRelationsResponse.Item(version=whole.version, unchanged=True)
    assert await relations(graph, (ann, whole.version), (bob, 0), (ann, whole.version)) == [
        unchanged,
        *await relations(graph, (bob, 0)),
        unchanged,
    ]
    for versions in ((0, whole.version), (whole.version, 0), (whole.version, whole.version - 1, whole.version)):
        for version, item in zip(versions, await relations(graph, *((ann, v) for v in versions)), strict=True):
            # Whoever knows the version may be given the whole again; who does not know it must be.
            assert item == whole or (item == unchanged and version == whole.version)


async def test_the_later_of_a_viewers_follows_has_the_higher_id(graph: GraphService) -> None:
    ann, *others = await join_all(graph, 9)
    for other in others:
        await follow(graph, ann, other)
    for other in others[2:4]:
        await unfollow(graph, ann, other)
        await follow(graph, ann, other)
    expected = [*others[:2], *others[4:], *others[2:4]]
    [item] = await relations(graph, (ann, 0))
    follows = dict(zip(follows_of(item), members.unpack_ids(item.packed_follow_ids).tolist(), strict=True))
    assert sorted(follows, key=lambda other: follows[other]) == expected
    assert len(set(follows.values())) == len(expected)
    await follow(graph, others[0], ann)
    assert await relations(graph, (ann, 0)) == [item], "another's follow is none of these"


# What fan-out goes by.


async def test_followers_are_paged_newest_follow_first_each_item_for_itself(graph: GraphService) -> None:
    star, other, *people = await join_all(graph, 9)
    for user_id in people:
        await follow(graph, user_id, star)
    for user_id in people[:2]:
        await follow(graph, user_id, other)
    await follow(graph, star, other)
    newest = people[::-1]
    [(first, place), *others] = await follower_pages(
        graph, (star, 0, 3), (other, 0, 3), (NOBODY, 0, 5), (star, 0, 10_000), (star, 0, 7), (0, 0, 1), (-1, 0, 1)
    )
    assert first == newest[:3]
    assert others == [([star, people[1], people[0]], 0), ([], 0), (newest, 0), (newest, 0), ([], 0), ([], 0)]
    [(second, next_place), again, (head, _)] = await follower_pages(
        graph, (star, place, 3), (star, place, 4), (star, 0, 1)
    )
    assert (second, again, head) == (newest[3:6], (newest[3:], 0), newest[:1])
    assert 0 < next_place < place
    assert await follower_pages(graph, (star, next_place, 1)) == [(newest[6:], 0)]
    assert await follower_pages(graph, (star, 1, 5), (star, -1, 5)) == [([], 0), ([], 0)]
    assert await follower_pages(graph) == []


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
async def test_whoever_followed_before_the_first_page_and_still_does_is_on_one(graph: GraphService, limit: int) -> None:
    star, *people = await join_all(graph, 12)
    for user_id in people:
        await follow(graph, user_id, star)
    leaving = iter(people[::3])
    stayed = {user_id for n, user_id in enumerate(people) if n % 3}
    seen: list[int] = []
    place = 0
    while True:
        [(page, place)] = await follower_pages(graph, (star, place, limit))
        seen += page
        if not place:
            break
        assert len(page) == limit
        await follow(graph, await join(graph), star)
        if gone := next(leaving, None):
            await unfollow(graph, gone, star)
    assert len(seen) == len(set(seen))
    assert stayed <= set(seen) <= set(people)


async def test_counts_of_followers_are_exact_at_once(graph: GraphService) -> None:
    star, ann, bob = await join_all(graph, 3)
    await follow(graph, ann, star)
    for _ in range(2):
        await follow(graph, bob, star)
        assert await follower_pages(graph, (star, 0, 1)) != []
        await follow(graph, star, ann)
        assert await follower_counts(graph, ann, star, NOBODY, bob, star, 0, -1) == [1, 2, 0, 0, 2, 0, 0]
        await graph.upkeep()
        assert await follower_counts(graph, ann, star, NOBODY, bob, star, 0, -1) == [1, 2, 0, 0, 2, 0, 0]
        await unfollow(graph, bob, star)
        assert await follower_counts(graph, star) == [1]
    assert await follower_counts(graph) == []


async def test_those_with_many_followers_are_paged_by_id(graph: GraphService) -> None:
    people = await join_all(graph, 7)
    # The first has 0 followers, the second 1, and so on.
    for n, star in enumerate(people):
        for user_id in people[:n]:
            await follow(graph, user_id, star)
    await follow(graph, people[1], people[0])
    await unfollow(graph, people[1], people[0])
    await graph.upkeep()
    expected = {star: n for n, star in enumerate(people)}
    for least in (1, 3, 6):
        assert await followed_by_many(graph, least) == {s: n for s, n in expected.items() if n >= least}
    assert await followed_by_many(graph, 7) == {}
    order = sorted(star for star, n in expected.items() if n >= 2)
    found: list[int] = []
    while len(page := await followed_by_many(graph, 2, after=found[-1] if found else 0, limit=2)) == 2:
        found += page
    assert [*found, *page] == order


# ListUserChanges.


async def changes(graph: GraphService, after: int) -> tuple[int, set[int], bool]:
    answer = await graph.stub.ListUserChanges(pb.ListUserChangesRequest(after_version=after))
    return answer.version, set(answer.user_ids), answer.many


async def test_whoever_others_see_otherwise_is_told_of(graph: GraphService) -> None:
    ann, bob, cid, dora = await join_all(graph, 4)
    before, _, _ = await changes(graph, 0)
    assert await changes(graph, before) == (before, set(), False)
    await graph.stub.Follow(pb.FollowRequest(follower_id=ann, following_id=bob))
    await graph.stub.UpdateUser(pb.UpdateUserRequest(user_id=dora, email=f"another{dora}@example.org"))
    assert await changes(graph, before) == (before, set(), False)
    await graph.stub.UpdateUser(pb.UpdateUserRequest(user_id=ann, private=True))
    await graph.stub.UpdateUser(pb.UpdateUserRequest(user_id=bob, username=f"another{bob}"))
    await graph.stub.DeleteUser(pb.DeleteUserRequest(user_id=cid))
    version, told, many = await changes(graph, before)
    assert told == {ann, bob, cid}
    assert (version > before, many) == (True, False)
    assert await changes(graph, version) == (version, set(), False)


async def test_of_too_many_changes_none_is_told(graph: GraphService) -> None:
    ann = await join(graph)
    version, _, _ = await changes(graph, 0)
    await graph.stub.UpdateUser(pb.UpdateUserRequest(user_id=ann, private=True))
    assert await changes(graph, version - 1000) == (version + 1, set(), True)


# What concerns people.


async def test_follows_and_wishes_to_follow_are_listed_newest_first(graph: GraphService) -> None:
    ann, bob, eve = await join_all(graph, 3)
    await graph.stub.Follow(pb.FollowRequest(follower_id=bob, following_id=ann))
    await graph.stub.UpdateUser(pb.UpdateUserRequest(user_id=ann, private=True))
    await graph.stub.Follow(pb.FollowRequest(follower_id=eve, following_id=ann))

    async def acts(before_id: int = ids.MAX_ID, limit: int = 100) -> list[pb.FollowAct]:
        request = pb.BatchListFollowActsRequest()
        request.items.add(user_id=ann, before_id=before_id, limit=limit)
        request.items.add(user_id=bob, before_id=before_id, limit=limit)
        first, second = (await graph.stub.BatchListFollowActs(request)).items
        assert not second.acts
        return list(first.acts)

    found = await acts()
    assert [(act.user_id, act.requested) for act in found] == [(eve, True), (bob, False)]
    assert await acts(limit=1) == found[:1]
    assert await acts(before_id=found[0].act_id) == found[1:]
    await graph.stub.AcceptFollowRequest(pb.AcceptFollowRequestRequest(user_id=ann, follower_id=eve))
    await graph.stub.Unfollow(pb.UnfollowRequest(follower_id=bob, following_id=ann))
    assert [(act.user_id, act.requested) for act in await acts()] == [(eve, False)]


async def test_people_are_found_by_their_names_letter_case_aside(graph: GraphService) -> None:
    ann, bob = await join_all(graph, 2)
    names = [(await graph.stub.GetUser(pb.GetUserRequest(user_id=user_id))).user.username for user_id in (ann, bob)]
    request = pb.BatchGetUserIdsRequest(usernames=[names[1], "nobody.at.all", names[0].upper(), names[1]])
    assert list((await graph.stub.BatchGetUserIds(request)).user_ids) == [bob, 0, ann, bob]
