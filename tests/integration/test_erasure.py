"""Erasing a person from the databases: rows, counts and traces, with writes in flight."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from functools import partial

import pytest

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2 as pb
from feedmesh.timeline.v1 import timeline_pb2
from launch.valkey import Running as Valkey
from runtime import errors, postgres
from runtime.blobs import Blobs
from services.graph import upkeep as graph_upkeep
from services.post import eraser, people, store
from services.post import upkeep as post_upkeep
from tests.conftest import keep_up
from tests.fakes.databases import Databases
from tests.fakes.serving import MESH_SECRET, GraphService, RealPostService
from tests.integration.whole_mesh import WholeMesh, whole_mesh

WORDS = "a secret that nobody shall find"


@pytest.fixture(autouse=True)
def _people_are_asked_for_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "FRESH_S", 0.0)


async def person(service: RealPostService, name: str) -> int:
    request = graph_pb2.CreateUserRequest(username=name, email=f"{name}@example.org", request_id=name)
    return (await service.graph.CreateUser(request)).user.user_id


async def post(service: RealPostService, author: int) -> int:
    request = pb.CreatePostRequest(user_id=author, content=WORDS, request_id="post")
    return (await service.stub.CreatePost(request)).post.post_id


async def erase(service: RealPostService, user_id: int) -> None:
    """What the graph does at once, and the eraser with the event."""
    await service.graph.DeleteUser(graph_pb2.DeleteUserRequest(user_id=user_id))
    event = event_pb2.Event(event_id=1, user_erased=event_pb2.UserErased(user_id=user_id))
    for _ in range(2):  # it may come twice
        await eraser.note(service.pool, [event])
    await run(service)


async def run(service: RealPostService) -> None:
    while await eraser.erase(service.pool):
        pass
    await service.upkeep()


async def a_minute_passes(service: RealPostService) -> None:
    async with service.pool.connection() as connection:
        await connection.execute("UPDATE posts SET deleted_at = deleted_at - interval '2 minutes'")
        await connection.execute("UPDATE erased_users SET erased_at = erased_at - interval '2 minutes'")


async def traces(service: RealPostService, user_id: int) -> dict[str, int]:
    graph = await service.graph.CountTraces(graph_pb2.CountTracesRequest(user_id=user_id))
    own = await service.stub.CountTraces(pb.CountTracesRequest(user_id=user_id))
    return {trace.place: trace.count for answer in (graph, own) for trace in answer.traces if trace.count}


async def holds_words(pool: postgres.Pool) -> bool:
    """Whether the words are anywhere in the database's tables, stored answers included."""
    tables = await postgres.fetch(
        pool, "SELECT format('%I', relname) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    found = 0
    for (table,) in tables:
        [row] = await postgres.fetch(
            pool,
            f"SELECT count(*) FROM {table} AS t WHERE t::text LIKE %(text)s OR t::text LIKE %(hex)s",
            {"text": f"%{WORDS}%", "hex": f"%{WORDS.encode().hex()}%"},
        )
        found += row[0]
    return found > 0


async def test_nothing_is_left_of_an_erased_person(post_service: RealPostService, graph_service: GraphService) -> None:
    service = post_service
    ann, bob, cid = [await person(service, name) for name in ("ann", "bob", "cid")]
    await service.graph.UpdateUser(graph_pb2.UpdateUserRequest(user_id=cid, private=True))
    for follower, followee in ((ann, bob), (bob, ann), (ann, cid), (cid, ann)):
        await service.graph.Follow(graph_pb2.FollowRequest(follower_id=follower, following_id=followee))
    await service.graph.Mute(graph_pb2.MuteRequest(user_id=bob, target_id=ann))
    await service.graph.Block(graph_pb2.BlockRequest(user_id=ann, target_id=await person(service, "dan")))
    own, other = await post(service, ann), await post(service, bob)
    for user_id, post_id in ((ann, other), (bob, own), (cid, other)):
        await service.stub.LikePost(pb.LikePostRequest(user_id=user_id, post_id=post_id))
        request = pb.CreateCommentRequest(user_id=user_id, post_id=post_id, content=WORDS, request_id=f"{post_id}")
        comment = (await service.stub.CreateComment(request)).comment.comment_id
        if user_id == ann:
            await service.stub.CreateComment(pb.CreateCommentRequest(user_id=ann, post_id=other, content=WORDS))
            await service.stub.DeleteComment(pb.DeleteCommentRequest(user_id=ann, comment_id=comment))
    await service.stub.SharePost(pb.SharePostRequest(user_id=ann, post_id=other))
    await service.stub.SharePost(pb.SharePostRequest(user_id=ann, post_id=other, content=WORDS))
    # Somebody else's stored answer about ann's post must not keep its text.
    await service.stub.SharePost(pb.SharePostRequest(user_id=cid, post_id=own, content="look", request_id="share"))

    await erase(service, ann)
    await graph_service.upkeep()

    for viewer in (bob, ann):
        with pytest.raises(errors.NotFound):
            await service.stub.GetPost(pb.GetPostRequest(post_id=own, viewer_id=viewer))
    left = (await service.stub.GetPost(pb.GetPostRequest(post_id=other, viewer_id=bob))).post
    assert (left.likes, left.comments, left.shares) == (1, 1, 0)
    seen = (await service.graph.GetUser(graph_pb2.GetUserRequest(user_id=bob))).user
    assert (seen.followers, seen.following) == (0, 0)

    await a_minute_passes(service)
    await service.upkeep()
    await run(service)
    assert await traces(service, ann) == {}
    assert await traces(service, bob) != {}
    rows = await postgres.fetch(service.pool, "SELECT count(*) FROM comments WHERE content = %(w)s", {"w": WORDS})
    assert rows == [(1,)]


async def test_the_words_of_an_erased_person_are_nowhere(post_service: RealPostService) -> None:
    service = post_service
    ann, bob = await person(service, "ann"), await person(service, "bob")
    own = await post(service, ann)
    await service.stub.SharePost(pb.SharePostRequest(user_id=bob, post_id=own, request_id="plain"))
    await service.stub.SharePost(pb.SharePostRequest(user_id=bob, post_id=own, content="look", request_id="quote"))
    await service.stub.CreateComment(
        pb.CreateCommentRequest(user_id=ann, post_id=own, content=WORDS, request_id="comment")
    )
    assert await holds_words(service.pool)
    await erase(service, ann)
    await a_minute_passes(service)
    await service.upkeep()
    await run(service)
    assert not await holds_words(service.pool)


async def test_what_a_transaction_under_way_still_writes_goes_too(
    post_service: RealPostService, graph_service: GraphService
) -> None:
    service = post_service
    ann, bob = await person(service, "ann"), await person(service, "bob")
    other = await post(service, bob)
    await erase(service, ann)
    # As a transaction would that began before and commits only now.
    async with service.pool.connection() as connection, connection.transaction():
        await store.insert_likes(connection, [store.Like(ann, other, bob)])
        await store.insert_comments(connection, [store.NewComment(ann, other, bob, WORDS)])
        [late] = await store.insert_posts(connection, [store.NewPost(ann, WORDS, "", 1)])
    shown = await service.stub.ListComments(pb.ListCommentsRequest(post_id=other, viewer_id=bob))
    assert list(shown.comments) == []
    with pytest.raises(errors.NotFound):
        await service.stub.GetPost(pb.GetPostRequest(post_id=late, viewer_id=bob))
    await run(service)
    await a_minute_passes(service)
    await service.upkeep()
    await run(service)
    await graph_service.upkeep()
    assert await traces(service, ann) == {}
    left = (await service.stub.GetPost(pb.GetPostRequest(post_id=other, viewer_id=bob))).post
    assert (left.likes, left.comments) == (0, 0)


async def test_an_erasure_is_not_through_before_a_minute_and_then_says_so_once(post_service: RealPostService) -> None:
    service = post_service
    ann = await person(service, "ann")
    await erase(service, ann)
    for aged in (False, True, True):
        if aged:
            await a_minute_passes(service)
        await run(service)
        events = [
            event_pb2.Event.FromString(row[0])
            for row in await postgres.fetch(service.pool, "SELECT event FROM outbox ORDER BY event_id")
        ]
        assert [event.author_erased.user_id for event in events if event.HasField("author_erased")] == [ann] * aged


async def test_what_is_erased_goes_in_bounded_steps(
    post_service: RealPostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eraser, "ROWS", 2)
    service = post_service
    ann = await person(service, "ann")
    for _ in range(5):
        request = pb.CreatePostRequest(user_id=ann, content=WORDS)
        post_id = (await service.stub.CreatePost(request)).post.post_id
        await service.stub.LikePost(pb.LikePostRequest(user_id=ann, post_id=post_id))
    await service.graph.DeleteUser(graph_pb2.DeleteUserRequest(user_id=ann))
    event = event_pb2.Event(event_id=1, user_erased=event_pb2.UserErased(user_id=ann))
    await eraser.note(service.pool, [event])
    left = []
    while await eraser.erase(service.pool):
        [row] = await postgres.fetch(
            service.pool, "SELECT count(*) FROM posts WHERE user_id = %(user)s AND deleted_at IS NULL", {"user": ann}
        )
        left.append(row[0])
    assert left == [3, 1, 0]


async def ask_for_traces(mesh: WholeMesh, user_id: int) -> tuple[int, dict[str, int]]:
    """The operator's command: its exit code, and what it found, by place."""
    asked = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.timeline.admin", "erased", str(user_id), "--json"),
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("FEEDMESH_")},
            **{f"FEEDMESH_{name.upper()}_TARGET": target for name, target in mesh.targets.items() if name != "session"},
            "FEEDMESH_MESH_SECRET": MESH_SECRET,
            "FEEDMESH_POSTGRES_DSN": mesh.stores.dsn,
            "FEEDMESH_REDIS_URL": mesh.stores.url,
        },
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asked.communicate()
    return asked.returncode or 0, {found["place"]: found["count"] for found in json.loads(said) if found["count"]}


async def test_a_command_proves_that_somebody_is_erased_everywhere(
    databases: Databases, valkey: Valkey, blobs: Blobs
) -> None:
    async with whole_mesh(databases, valkey) as mesh:
        ann, bob = await mesh.person(), await mesh.person()
        fanout = await mesh.stores.fanout(mesh.graph, mesh.post, limit=0)
        await mesh.follow(bob, ann)
        await mesh.follow(ann, bob)
        made = (await mesh.post.CreatePost(pb.CreatePostRequest(user_id=ann, content=WORDS))).post.post_id
        for reader in (ann, bob):
            await mesh.timeline.GetFeed(timeline_pb2.GetFeedRequest(user_id=reader))
        fact = event_pb2.PostCreated(post_id=made, author_id=ann, original_id=made)
        # Ann goes to pull, so that she has a mode and an author timeline.
        await fanout.post_events([event_pb2.Event(event_id=made, post_created=fact)])
        await mesh.timeline.GetFeed(timeline_pb2.GetFeedRequest(user_id=bob))

        code, found = await ask_for_traces(mesh, ann)
        assert code == 1
        assert {
            "users",
            "followers",
            "posts",
            "author_modes",
            "their timelines",
            "members of others' timelines",
        } <= found.keys()

        await mesh.graph.DeleteUser(graph_pb2.DeleteUserRequest(user_id=ann))
        event = event_pb2.Event(event_id=1, user_erased=event_pb2.UserErased(user_id=ann))
        await eraser.note(mesh.post_pool, [event])
        for _ in range(2):
            await keep_up(graph_upkeep.tasks, mesh.graph_pool)
            await keep_up(partial(post_upkeep.tasks, blobs), mesh.post_pool)
            while await eraser.erase(mesh.post_pool):
                pass
            async with mesh.post_pool.connection() as connection:
                await connection.execute("UPDATE posts SET deleted_at = deleted_at - interval '2 minutes'")
                await connection.execute("UPDATE erased_users SET erased_at = erased_at - interval '2 minutes'")
        await eraser.erase(mesh.post_pool)
        while await eraser.erase(mesh.post_pool):
            pass
        gone = event_pb2.AuthorErased(user_id=ann)
        await fanout.post_events([event_pb2.Event(event_id=2, author_erased=gone)] * 2)
        assert await ask_for_traces(mesh, ann) == (0, {})
        assert (await ask_for_traces(mesh, bob))[0] == 1
