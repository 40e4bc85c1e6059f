"""Taking one's data away, end to end: HTTP, the gateway, and the post and graph services on their databases."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio

from feedmesh.graph.v1 import graph_pb2 as graph_pb
from feedmesh.post.v1 import post_pb2 as pb
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub, add_PostServiceServicer_to_server
from gateway import server
from gateway.app import App
from gateway.encode import timestamp
from gateway.routes import of_contracts
from runtime import client, errors, ids, postgres
from runtime.media import MediaUrls
from runtime.paging import Cursors
from services.graph import export as graph_export
from services.graph import store as graph_store
from services.post import export as post_export
from services.post import servicer
from services.post.sight import Sights
from tests.contract.expect import refusal
from tests.fakes.serving import CALLER, GraphService, serving

SECRET = "a secret of at least 32 characters"
Record = dict[str, Any]


@dataclass
class Mesh:
    """The services behind a gateway."""

    graph: Any
    post: Any
    graph_service: GraphService
    graph_pool: postgres.Pool
    http: httpx.AsyncClient

    async def user(self, name: str, *, private: bool = False) -> int:
        request = graph_pb.CreateUserRequest(username=name, email=f"{name}@secret.example")
        user_id: int = (await self.graph.CreateUser(request)).user.user_id
        if private:
            await self.graph.UpdateUser(graph_pb.UpdateUserRequest(user_id=user_id, private=True))
        return user_id

    async def write(self, user_id: int, content: str, **more: Any) -> int:
        response = await self.post.CreatePost(pb.CreatePostRequest(user_id=user_id, content=content, **more))
        return int(response.post.post_id)

    async def follow(self, follower_id: int, following_id: int) -> None:
        await self.graph.Follow(graph_pb.FollowRequest(follower_id=follower_id, following_id=following_id))

    async def export(self, user_id: int) -> list[Record]:
        response = await self.http.get(f"/users/{user_id}/export")
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]


@pytest_asyncio.fixture
async def mesh(graph_service: GraphService, graph_pool: postgres.Pool, post_pool: postgres.Pool) -> AsyncIterator[Mesh]:
    posts = servicer.PostServicer(post_pool, Sights(graph_service.stub, MediaUrls(SECRET)), Cursors(SECRET))
    listener = server.listen("127.0.0.1", 0)
    stopping = asyncio.Event()
    async with (
        serving(lambda s: add_PostServiceServicer_to_server(posts, s), services=(servicer.SERVICE,)) as served,
        client.connect(served.target, CALLER, servicer.SERVICE) as channel,
        httpx.AsyncClient(base_url=f"http://{server.name(listener)}") as http,
    ):
        routes = [(route, route.call(channel)) for route in of_contracts() if route.service == "post"]
        app = App(routes, {}, timeout_s=5, max_requests=8)
        task = asyncio.create_task(server.serve(app, listener, stopping))
        yield Mesh(graph_service.stub, PostServiceStub(channel), graph_service, graph_pool, http)
        await http.aclose()
        stopping.set()
        await task


@pytest.fixture(params=[1, 2, 3, 500])
def page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many rows a page."""
    size: int = request.param
    monkeypatch.setattr(graph_export, "PAGE", size)
    monkeypatch.setattr(post_export, "PAGE", size)
    return size


def of_kind(records: list[Record], kind: str) -> list[Record]:
    return [record[kind] for record in records if kind in record]


def newest_first(records: list[Record]) -> bool:
    times = [datetime.fromisoformat(record["created_at"]) for record in records]
    return times == sorted(times, reverse=True)


@pytest.mark.usefixtures("page")
async def test_an_export_is_all_that_was_written_and_nothing_of_others(mesh: Mesh) -> None:
    ann = await mesh.user("ann", private=True)
    others = [await mesh.user(f"other{number}") for number in range(3)]
    shy = [await mesh.user(f"shy{number}", private=True) for number in range(3)]
    asking = [await mesh.user(f"asking{number}") for number in range(3)]
    fans = [await mesh.user(f"fan{number}") for number in range(3)]
    bad = [await mesh.user(f"bad{number}") for number in range(3)]
    loud = [await mesh.user(f"loud{number}") for number in range(3)]
    foe = await mesh.user("foe")
    for other in [*others, *shy]:
        await mesh.follow(ann, other)
    for other in [*asking, *fans]:
        await mesh.follow(other, ann)
    for fan in fans:
        await mesh.graph.AcceptFollowRequest(graph_pb.AcceptFollowRequestRequest(user_id=ann, follower_id=fan))
    for target in bad:
        await mesh.graph.Block(graph_pb.BlockRequest(user_id=ann, target_id=target))
    for target in loud:
        await mesh.graph.Mute(graph_pb.MuteRequest(user_id=ann, target_id=target))
    # Who blocks or mutes the person is not theirs to know.
    await mesh.graph.Block(graph_pb.BlockRequest(user_id=foe, target_id=ann))
    await mesh.graph.Mute(graph_pb.MuteRequest(user_id=fans[0], target_id=ann))

    theirs = [await mesh.write(others[0], f"theirs {number}") for number in range(3)]
    posts = [
        await mesh.write(ann, "public"),
        await mesh.write(ann, "for followers", visibility=pb.VISIBILITY_FOLLOWERS),
        await mesh.write(ann, "", media_url="https://example.com/cat.jpg"),
    ]
    expected_posts = {
        posts[0]: ("public", "", "public", 0),
        posts[1]: ("for followers", "", "followers", 0),
        posts[2]: ("", "https://example.com/cat.jpg", "public", 0),
    }
    for content in ("", "a quote"):
        request = pb.SharePostRequest(user_id=ann, post_id=theirs[0], content=content)
        shared = (await mesh.post.SharePost(request)).post.post_id
        expected_posts[shared] = (content, "", "public", theirs[0])
    deleted = await mesh.write(ann, "deleted")
    await mesh.post.DeletePost(pb.DeletePostRequest(post_id=deleted, user_id=ann))

    expected_comments = {}
    for on in (theirs[0], theirs[1], posts[0]):
        comment = pb.CreateCommentRequest(user_id=ann, post_id=on, content=f"on {on}")
        expected_comments[(await mesh.post.CreateComment(comment)).comment.comment_id] = (on, f"on {on}")
    gone = pb.CreateCommentRequest(user_id=ann, post_id=posts[0], content="gone")
    comment_id = (await mesh.post.CreateComment(gone)).comment.comment_id
    await mesh.post.DeleteComment(pb.DeleteCommentRequest(comment_id=comment_id, user_id=ann))
    await mesh.post.CreateComment(pb.CreateCommentRequest(user_id=fans[0], post_id=posts[0], content="a fan's"))
    for post_id in theirs:
        await mesh.post.LikePost(pb.LikePostRequest(user_id=ann, post_id=post_id))
    await mesh.post.LikePost(pb.LikePostRequest(user_id=fans[0], post_id=posts[0]))
    # What hung on someone's deleted post is gone with it.
    last = await mesh.write(others[1], "soon gone")
    await mesh.post.LikePost(pb.LikePostRequest(user_id=ann, post_id=last))
    await mesh.post.CreateComment(pb.CreateCommentRequest(user_id=ann, post_id=last, content="soon gone"))
    await mesh.post.SharePost(pb.SharePostRequest(user_id=ann, post_id=last))
    await mesh.post.DeletePost(pb.DeletePostRequest(post_id=last, user_id=others[1]))

    records = await mesh.export(ann)
    assert all(len(record) == 1 for record in records)
    assert [next(iter(record)) for record in records] == [
        "account",
        *["tie"] * 18,
        *["post"] * 5,
        *["comment"] * 3,
        *["like"] * 3,
        "end",
    ]
    account = records[0]["account"]
    assert (account["user_id"], account["username"], account["email"]) == (ann, "ann", "ann@secret.example")
    assert (account["followers"], account["following"], account["private"]) == (3, 3, True)
    names = [f"{name}{number}" for name in ("other", "fan", "shy", "asking", "bad", "loud") for number in (2, 1, 0)]
    kinds = ["following", "follower", "asked_to_follow", "asked_by", "blocked", "muted"]
    ties = of_kind(records, "tie")
    assert [(tie["kind"], tie["username"]) for tie in ties] == [
        (kind, name) for kind, name in zip([kind for kind in kinds for _ in range(3)], names, strict=True)
    ]
    people = [others, fans, shy, asking, bad, loud]
    assert [tie["user_id"] for tie in ties] == [user_id for group in people for user_id in reversed(group)]
    assert all(newest_first([tie for tie in ties if tie["kind"] == kind]) for kind in kinds)

    exported = of_kind(records, "post")
    assert [post["post_id"] for post in exported] == sorted(expected_posts, reverse=True)
    for post in exported:
        assert (
            post["content"],
            post["media_url"],
            post["visibility"],
            post["shared_post_id"],
        ) == expected_posts[post["post_id"]]
        assert post["created_at"] == timestamp(ids.timestamp(post["post_id"]))
    comments = of_kind(records, "comment")
    assert [comment["comment_id"] for comment in comments] == sorted(expected_comments, reverse=True)
    for each in comments:
        assert (each["post_id"], each["content"]) == expected_comments[each["comment_id"]]
        assert each["created_at"] == timestamp(ids.timestamp(each["comment_id"]))
    likes = of_kind(records, "like")
    assert [like["post_id"] for like in likes] == theirs[::-1]
    assert newest_first(likes)
    assert records[-1] == {"end": {"records": len(records) - 1}}
    text = json.dumps(records)
    assert text.count("@") == 1
    for alien in ("theirs", "a fan's", "foe", "gone", "deleted"):
        assert alien not in text


async def test_who_has_done_nothing_has_an_account(mesh: Mesh) -> None:
    user_id = await mesh.user("ann")
    account, end = await mesh.export(user_id)
    assert account["account"]["email"] == "ann@secret.example"
    assert end == {"end": {"records": 1}}


async def test_who_is_not_there_is_not_found(mesh: Mesh) -> None:
    erased = await mesh.user("erased")
    await mesh.write(erased, "mine")
    await mesh.graph.DeleteUser(graph_pb.DeleteUserRequest(user_id=erased))
    for user_id in (erased, 2**53 - 1):
        response = await mesh.http.get(f"/users/{user_id}/export")
        assert (response.status_code, response.json()["code"]) == (404, "user_not_found")
        for stub, request in (
            (mesh.graph, graph_pb.ExportUserRequest(user_id=user_id)),
            (mesh.post, pb.ExportUserRequest(user_id=user_id)),
        ):
            with refusal(errors.NotFound, "USER_NOT_FOUND"):
                await anext(stub.ExportUser(request))
    assert (await mesh.http.get("/users/0/export")).status_code == 400


async def test_ties_to_the_erased_are_left_out(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_export, "PAGE", 2)
    ann = await mesh.user("ann")
    others = [await mesh.user(f"other{number}") for number in range(5)]
    for other in others:
        await mesh.follow(ann, other)
        await mesh.follow(other, ann)
    for other in others[1:4]:
        await mesh.graph.DeleteUser(graph_pb.DeleteUserRequest(user_id=other))
    ties = of_kind(await mesh.export(ann), "tie")
    assert Counter(tie["username"] for tie in ties) == {"other0": 2, "other4": 2}


async def test_without_the_graph_there_is_no_export(mesh: Mesh) -> None:
    user_id = await mesh.user("ann")

    async def broken(*_: object) -> object:
        raise TimeoutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_store, "tied", broken)
        with pytest.raises(httpx.RemoteProtocolError):  # after the account
            await mesh.export(user_id)
        patch.setattr(graph_store, "user", broken)
        assert (await mesh.http.get(f"/users/{user_id}/export")).status_code == 503
    assert len(await mesh.export(user_id)) == 2


async def test_no_connection_is_held_while_the_reader_takes_its_time(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_export, "PAGE", 1)
    ann = await mesh.user("ann")
    for number in range(3):
        await mesh.follow(ann, await mesh.user(f"other{number}"))
    records = graph_export.export_user(mesh.graph_pool, ann)
    async for _ in records:
        stats = mesh.graph_pool.get_stats()
        assert stats["pool_available"] == stats["pool_size"]
