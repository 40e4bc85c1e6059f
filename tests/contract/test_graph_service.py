"""The contract of GraphService (protos/feedmesh/graph/v1/graph.proto), held against the fake and the real service."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from typing import Any

import pytest

from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import errors, ids
from tests.contract.expect import BAD_CURSORS, MAX_ID, OUT_OF_RANGE, Page, both, page_of, read_to_end, refusal
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


async def follow(graph: GraphService, follower_id: int, following_id: int) -> pb.FollowResponse:
    return await graph.stub.Follow(pb.FollowRequest(follower_id=follower_id, following_id=following_id))


async def unfollow(graph: GraphService, follower_id: int, following_id: int) -> pb.UnfollowResponse:
    return await graph.stub.Unfollow(pb.UnfollowRequest(follower_id=follower_id, following_id=following_id))


async def followers(graph: GraphService, user_id: int, cursor: str = "", limit: int | None = None) -> Page:
    request = pb.ListFollowersRequest(user_id=user_id, limit=limit, cursor=cursor)
    return page_of(await graph.stub.ListFollowers(request), "users", "user_id")


async def following(graph: GraphService, user_id: int, cursor: str = "", limit: int | None = None) -> Page:
    request = pb.ListFollowingRequest(user_id=user_id, limit=limit, cursor=cursor)
    return page_of(await graph.stub.ListFollowing(request), "users", "user_id")


async def relations(graph: GraphService, *items: tuple[int, int]) -> list[pb.BatchGetRelationsResponse.Item]:
    request = pb.BatchGetRelationsRequest(
        items=[pb.BatchGetRelationsRequest.Item(viewer_id=viewer, known_version=version) for viewer, version in items]
    )
    return list((await graph.stub.BatchGetRelations(request)).items)


async def follower_pages(graph: GraphService, *items: tuple[int, int, int]) -> list[tuple[list[int], int]]:
    """Pages of followers for each (user, before, limit): the followers, and where the next page begins."""
    request = pb.BatchListFollowerIdsRequest(
        items=[
            pb.BatchListFollowerIdsRequest.Item(user_id=user_id, before_follow_id=before, limit=limit)
            for user_id, before, limit in items
        ]
    )
    answers = (await graph.stub.BatchListFollowerIds(request)).items
    return [(list(answer.follower_ids), answer.next_follow_id) for answer in answers]


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
    ann = await join(graph)
    for user_id in (NOBODY, MAX_ID):
        with refusal(errors.NotFound, "USER_NOT_FOUND"):
            await get(graph, user_id)
        with refusal(errors.NotFound, "USER_NOT_FOUND"):
            await followers(graph, user_id)
        with refusal(errors.NotFound, "USER_NOT_FOUND"):
            await following(graph, user_id)
        for act in (follow, unfollow):
            with refusal(errors.NotFound, "USER_NOT_FOUND"):
                await act(graph, ann, user_id)
            with refusal(errors.NotFound, "USER_NOT_FOUND"):
                await act(graph, user_id, ann)
    assert await counts(graph, ann) == (0, 0)


@pytest.mark.parametrize("wrong", OUT_OF_RANGE)
async def test_what_is_no_id_is_refused_by_field(graph: GraphService, wrong: int) -> None:
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "user_id", "viewer_id"):
        await get(graph, wrong, viewer_id=wrong)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "follower_id", "following_id"):
        await follow(graph, wrong, wrong)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "follower_id", "following_id"):
        await unfollow(graph, wrong, wrong)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "user_id", "viewer_id"):
        await graph.stub.ListFollowers(pb.ListFollowersRequest(user_id=wrong, viewer_id=wrong))
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "user_id", "viewer_id"):
        await graph.stub.ListFollowing(pb.ListFollowingRequest(user_id=wrong, viewer_id=wrong))
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "items[1].viewer_id"):
        await relations(graph, (NOBODY, 0), (wrong, 0))


@pytest.mark.parametrize("limit", [0, 101, -1, 2**31 - 1])
async def test_a_page_holds_1_to_100(graph: GraphService, limit: int) -> None:
    ann = await join(graph)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "limit"):
        await followers(graph, ann, limit=limit)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "limit"):
        await following(graph, ann, limit=limit)


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


async def test_another_request_with_the_key_is_refused(graph: GraphService) -> None:
    ann, bob, cid = await join_all(graph, 3)
    await graph.stub.CreateUser(pb.CreateUserRequest(username="dan", email="dan@example.org", request_id="key"))
    with refusal(errors.Refused, "REQUEST_ID_REUSED"):
        await graph.stub.CreateUser(pb.CreateUserRequest(username="dan", email="d@example.org", request_id="key"))
    await graph.stub.Follow(pb.FollowRequest(follower_id=ann, following_id=bob, request_id="key"))
    with refusal(errors.Refused, "REQUEST_ID_REUSED"):
        await graph.stub.Follow(pb.FollowRequest(follower_id=ann, following_id=cid, request_id="key"))
    with refusal(errors.Refused, "REQUEST_ID_REUSED"):
        await graph.stub.Unfollow(pb.UnfollowRequest(follower_id=ann, following_id=bob, request_id="key"))
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


async def test_a_key_has_at_most_255_characters(graph: GraphService) -> None:
    ann, bob = await join_all(graph, 2)
    await graph.stub.Follow(pb.FollowRequest(follower_id=ann, following_id=bob, request_id="ä" * 255))
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "request_id"):
        await graph.stub.Follow(pb.FollowRequest(follower_id=ann, following_id=bob, request_id="k" * 256))
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "request_id"):
        await graph.stub.Unfollow(pb.UnfollowRequest(follower_id=ann, following_id=bob, request_id="k" * 256))


async def test_a_key_holds_no_nul(graph: GraphService) -> None:
    ann, bob = await join_all(graph, 2)
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "request_id"):
        await graph.stub.CreateUser(pb.CreateUserRequest(username="x", email="x@example.org", request_id="k\x00"))
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "request_id"):
        await graph.stub.Follow(pb.FollowRequest(follower_id=ann, following_id=bob, request_id="k\x00"))
    with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "request_id"):
        await graph.stub.Unfollow(pb.UnfollowRequest(follower_id=ann, following_id=bob, request_id="k\x00"))


# ListFollowers and ListFollowing.


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


async def test_only_a_cursor_of_this_listing_and_viewer_is_taken(graph: GraphService) -> None:
    star, bob, cid = await join_all(graph, 3)
    for other in (bob, cid):
        await follow(graph, other, star)
        await follow(graph, star, other)
        await follow(graph, other, bob if other == cid else cid)
    cursor = (await followers(graph, star, limit=1)).next_cursor
    assert cursor
    foreign: list[Any] = [
        pb.ListFollowersRequest(user_id=bob, limit=1, cursor=cursor),
        pb.ListFollowersRequest(user_id=star, viewer_id=bob, limit=1, cursor=cursor),
    ]
    truncated = [cursor[:length] for length in range(1, len(cursor))]
    forged = [cursor[:at] + ("A" if cursor[at] != "A" else "B") + cursor[at + 1 :] for at in range(len(cursor) - 1)]
    foreign += [
        pb.ListFollowersRequest(user_id=star, limit=1, cursor=bad) for bad in (*truncated, *forged, *BAD_CURSORS)
    ]
    for request in foreign:
        with refusal(errors.InvalidArgument, "INVALID_CURSOR", "cursor"):
            await graph.stub.ListFollowers(request)
    with refusal(errors.InvalidArgument, "INVALID_CURSOR", "cursor"):
        await following(graph, star, cursor)


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
    assert (new.version >= 1, new.unchanged, list(new.following_ids)) == (True, False, [])
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
        assert sorted(changed.following_ids) == sorted(expected)
        assert len(changed.follow_ids) == len(expected)
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
    assert (nobody.version, list(nobody.following_ids)) == (0, [])
    assert somebody.version >= 1
    assert (stale.version, stale.unchanged, list(stale.following_ids)) == (0, False, [])


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
    follows = dict(zip(item.following_ids, item.follow_ids, strict=True))
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
