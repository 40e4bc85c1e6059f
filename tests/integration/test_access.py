"""Who may do what: every RPC of every service, called by everybody that there is, against protos/ACCESS.md.

All services are real, and what is not in the table is wrong: the test is made from the descriptors and the table, and
builds the requests from the names of their fields.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from feedmesh.graph.v1 import graph_pb2
from feedmesh.options.v1 import options_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.session.v1 import session_pb2
from feedmesh.timeline.v1 import timeline_pb2
from launch.valkey import Running as Valkey
from runtime import callers, errors, ids, members, mesh, postgres
from services.graph import session_store
from services.post import people
from tests.fakes.databases import Databases
from tests.fakes.serving import CALLER, MESH_SECRET
from tests.integration.whole_mesh import WholeMesh, whole_mesh

TABLE = Path(__file__).parents[2] / "protos" / "ACCESS.md"
METHODS = {
    f"{service.name}.{method.name}": method
    for contract in (graph_pb2, post_pb2, ranking_pb2, session_pb2, timeline_pb2)
    for service in contract.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
COLUMNS = ("unknown caller", "nobody", "owner", "other", "blocked", "follower", "admin")
ADMIN = callers.caller("admin", MESH_SECRET)
STRANGER = callers.caller("gateway", "what another mesh's processes share")
SECRET_TEXT = "words that only followers may read"
NUMBERS = itertools.count()
QUIET_S = 1.0
"""How long a stream is listened to that is to tell nothing."""
REFUSED_S = 10.0
"""And one that is to be refused."""


def rows() -> Iterator[tuple[str, list[str]]]:
    """The table's rows: an RPC, and its cell of each column."""
    service = ""
    for line in TABLE.read_text().splitlines():
        if heading := re.fullmatch(r"## `(\w+)`", line):
            service = heading[1]
        elif service and (row := re.fullmatch(r"\| `(\w+)` +\|(.*)\|", line)):
            yield f"{service}.{row[1]}", [cell.strip().strip("`") for cell in row[2].split("|")]


EXPECTED = {name: cells[1:] for name, cells in rows()}
CALLERS = {name: cells[0] for name, cells in rows()}


def test_the_table_has_the_callers_of_the_contracts() -> None:
    services = {method.containing_service.full_name: method.containing_service for method in METHODS.values()}
    found = {path: names for service in services.values() for path, names in mesh.callers_of(service).items()}
    assert all(found.values())
    assert {
        path.rpartition(".")[2].replace("/", "."): ", ".join(sorted(names)) for path, names in found.items()
    } == CALLERS


def test_the_table_has_each_rpc_once_and_nothing_else() -> None:
    assert [name for name, _ in rows()] == list(METHODS)


def test_the_table_has_each_column() -> None:
    heads = re.findall(r"^\| RPC +\|(.*)\|$", TABLE.read_text(), re.MULTILINE)
    assert heads
    assert {tuple(cell.strip() for cell in head.split("|")) for head in heads} == {("callers", *COLUMNS)}
    assert {len(cells) for cells in EXPECTED.values()} == {len(COLUMNS)}


@dataclass
class Scene:
    """A private account with all that hangs on it, and those who ask for it."""

    mesh: WholeMesh
    owner: int
    post: int
    comment: int
    friend: int
    """Who follows and is followed, and likes and shares the post."""
    asker: int
    """Who asked to follow."""
    enemy: int
    """Whom the owner blocks and mutes; beside the one who calls."""
    session: int
    username: str
    email: str
    """The owner's, both."""
    columns: dict[str, int]
    """Who acts, by column; nobody in the others."""

    @property
    def private(self) -> set[Any]:
        """What shows that an answer holds something of the owner's."""
        return {SECRET_TEXT, self.email, self.post, self.comment, self.friend, self.asker, self.enemy, self.session}

    async def of_the_owner(self, actor: int) -> Any:
        """All that the owner has, but for ties with the one who acts; the reason, where the owner is not there."""
        graph, post, owner = self.mesh.graph, self.mesh.post, self.owner
        try:
            user = (await graph.GetUser(graph_pb2.GetUserRequest(user_id=owner, viewer_id=owner))).user
            ties = (
                await graph.ListFollowers(graph_pb2.ListFollowersRequest(user_id=owner, viewer_id=owner)),
                await graph.ListFollowing(graph_pb2.ListFollowingRequest(user_id=owner, viewer_id=owner)),
                await graph.ListFollowRequests(graph_pb2.ListFollowRequestsRequest(user_id=owner)),
                await graph.ListBlocks(graph_pb2.ListBlocksRequest(user_id=owner)),
                await graph.ListMutes(graph_pb2.ListMutesRequest(user_id=owner)),
            )
            return (
                (user.username, user.email, user.private),
                [[other.user_id for other in page.users if other.user_id != actor] for page in ties],
                await post.ListUserPosts(post_pb2.ListUserPostsRequest(user_id=owner, viewer_id=owner)),
                await post.ListComments(post_pb2.ListCommentsRequest(post_id=self.post, viewer_id=owner)),
                await session_store.sessions_of(self.mesh.graph_pool, owner),
            )
        except errors.Error as error:
            return error.reason

    def values(self, actor: int) -> dict[str, Any]:
        """What fields hold that say whom or what a request is about."""
        return {
            "user_id": self.owner,
            "user_ids": [self.owner],
            "usernames": [self.username],
            "following_id": self.owner,
            "target_id": self.owner,
            "follower_id": self.asker,
            "author_ids": [self.owner],
            "post_id": self.post,
            "post_ids": [self.post],
            "original_ids": [self.post],
            "sharer_ids": [self.friend],
            "comment_id": self.comment,
            "session_id": self.session,
            "username": (newcomer := f"newcomer{next(NUMBERS)}"),
            "email": f"{newcomer}@example.org",
            "subject": newcomer,
            "member": (packed := bytes(members.pack([(self.post, self.owner, self.post)]))),
            "candidates": packed,
        }


BESIDES: dict[str, Any] = {
    "content": "words",
    "limit": 10,
    "min_followers": 1,
    "before_id": ids.MAX_ID,
    "max_post_id": ids.MAX_ID,
    "notification_id": 1,
    "watcher_id": 1,
    "media_id": "0" * 64,
    "media_ids": ["0" * 64],
    "size": "large",
    "width": 1,
    "height": 1,
    "bytes": 1,
    "password": "a password",
    "new_password": "another password",
    "refresh_token": "1.1.nobodys",
    "issuer": "https://issuer.example",
    "within_s": 60,
}
"""What fields hold that are about nobody."""
REPEATED = ("items", "begin")


async def make(mesh: WholeMesh) -> Scene:
    """A new one."""
    names = ("owner", "friend", "asker", "enemy", "other", "blocked", "follower")
    owner, friend, asker, enemy, other, blocked, follower = [await mesh.person() for _ in names]
    update = graph_pb2.UpdateUserRequest(user_id=owner, username=f"owner{owner}", private=True)
    user = (await mesh.graph.UpdateUser(update)).user
    for one in (friend, follower, asker):
        await mesh.follow(one, owner)
    for one in (friend, follower):
        accept = graph_pb2.AcceptFollowRequestRequest(user_id=owner, follower_id=one)
        await mesh.graph.AcceptFollowRequest(accept)
    for one in (enemy, blocked):
        await mesh.graph.Block(graph_pb2.BlockRequest(user_id=owner, target_id=one))
    await mesh.follow(owner, friend)
    await mesh.graph.Mute(graph_pb2.MuteRequest(user_id=owner, target_id=enemy))
    created = await mesh.post.CreatePost(post_pb2.CreatePostRequest(user_id=owner, content=SECRET_TEXT))
    post = created.post.post_id
    request = post_pb2.CreateCommentRequest(user_id=owner, post_id=post, content=SECRET_TEXT)
    comment = (await mesh.post.CreateComment(request)).comment.comment_id
    await mesh.post.LikePost(post_pb2.LikePostRequest(user_id=friend, post_id=post))
    await mesh.post.SharePost(post_pb2.SharePostRequest(user_id=friend, post_id=post))
    session = await postgres.transact(mesh.graph_pool, lambda c: session_store.insert_session(c, owner))
    assert session is not None
    columns = {"owner": owner, "other": other, "blocked": blocked, "follower": follower, "unknown caller": owner}
    return Scene(
        mesh, owner, post, comment, friend, asker, enemy, session.session_id, user.username, user.email, columns
    )


@dataclass
class Scenes:
    """Reads share one, and so does what nobody does; whatever else may change something has its own."""

    mesh: WholeMesh
    channels: dict[str, grpc.aio.Channel]
    shared: Scene

    async def of(self, method: MethodDescriptor, column: str) -> Scene:
        own = mesh.is_write(method) and column in ("owner", "other", "blocked", "follower")
        return await make(self.mesh) if own else self.shared


@pytest_asyncio.fixture(scope="module")
async def scenes(databases: Databases, valkey: Valkey) -> AsyncIterator[Scenes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(people, "FRESH_S", 0.0)
        async with whole_mesh(databases, valkey) as mesh:
            channels = {name: grpc.aio.insecure_channel(target) for name, target in mesh.targets.items()}
            yield Scenes(mesh, channels, await make(mesh))
            for channel in channels.values():
                await channel.close()


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", METHODS)
async def test_an_rpc_answers_each_caller_as_the_table_says(scenes: Scenes, name: str, column: str) -> None:
    method = METHODS[name]
    scene = await scenes.of(method, column)
    expected = EXPECTED[name][COLUMNS.index(column)]
    quiet_s = REFUSED_S if expected.isupper() else QUIET_S
    assert await outcome(scenes, scene, method, column, quiet_s) == expected


async def outcome(scenes: Scenes, scene: Scene, method: MethodDescriptor, column: str, quiet_s: float) -> str:
    """What comes of a call, in the words of the table."""
    actor = scene.columns.get(column, 0)
    request = GetMessageClass(method.input_type)()
    about_others = fill(request, scene.values(actor), actor)
    caller = {"unknown caller": STRANGER, "admin": ADMIN}.get(column, CALLER)
    writes = mesh.is_write(method)
    before = await scene.of_the_owner(actor) if writes else None
    reason, answers = await call(scenes.channels, method, request, caller, quiet_s)
    changed = writes and await scene.of_the_owner(actor) != before
    if reason:
        assert not changed
        return reason
    if writes:
        return "ok" if changed else "own"
    if not has_actor(method.input_type):
        return "ok"
    # What stands beside the items of a batch is about none of them.
    told = {leaf for answer in answers for each in getattr(answer, "items", [answer]) for leaf in leaves(each)}
    if told & scene.private:
        return "ok"
    if not about_others:
        return "own"
    if scene.username in told:
        return "profile"
    return "numbers" if told else "nothing"


def fill(message: Message, about: dict[str, Any], actor: int) -> bool:
    """Fills a request; whether it is about anybody or anything but who acts."""
    found = False
    for field in message.DESCRIPTOR.fields:
        if field.GetOptions().Extensions[options_pb2.actor]:
            if actor:
                put(message, field, [actor] if field.is_repeated else actor)
        elif field.name in REPEATED:
            found |= fill(getattr(message, field.name).add(), about, actor)
        elif field.name in about:
            put(message, field, about[field.name])
            found |= field.name not in ("username", "email", "subject")
        elif field.name in BESIDES:
            put(message, field, BESIDES[field.name])
    return found


def put(message: Message, field: Any, value: Any) -> None:
    if field.is_repeated:
        getattr(message, field.name).extend(value)
    else:
        setattr(message, field.name, value)


def has_actor(message: Any) -> bool:
    """Whether a request, or an item of one, says who acts."""
    return any(
        field.GetOptions().Extensions[options_pb2.actor] or (field.name in REPEATED and has_actor(field.message_type))
        for field in message.fields
    )


async def call(
    channels: dict[str, grpc.aio.Channel],
    method: MethodDescriptor,
    request: Message,
    caller: callers.Caller,
    quiet_s: float,
) -> tuple[str, list[Any]]:
    """The reason of a refusal, of the call or of an item, and all answers; "" where there is none."""
    channel: Any = channels[method.containing_service.file.package.split(".")[1]]
    path = f"/{method.containing_service.full_name}/{method.name}"
    parse = GetMessageClass(method.output_type).FromString
    coding = {"request_serializer": type(request).SerializeToString, "response_deserializer": parse}
    more = {"metadata": caller.metadata, "timeout": 10}
    try:
        if method.client_streaming:
            answers = await first_of(channel.stream_stream(path, **coding)(**more), request, quiet_s)
        elif method.server_streaming:
            answers = [answer async for answer in channel.unary_stream(path, **coding)(request, **more)]
        else:
            answers = [await channel.unary_unary(path, **coding)(request, **more)]
    except grpc.aio.AioRpcError as exception:
        return errors.from_rpc(exception, "the service").reason, []
    failed = [item.error for answer in answers for item in items_of(answer) if item.HasField("error")]
    return errors.from_status(failed[0]).reason if failed else "", answers


async def first_of(stream: Any, request: Message, quiet_s: float) -> list[Any]:
    """What a stream tells first; nothing where it stays open and quiet for so long."""
    try:
        await stream.write(request)
        async with asyncio.timeout(quiet_s):
            return [await stream.read()]
    except TimeoutError:
        return []
    finally:
        stream.cancel()


def items_of(answer: Any) -> Any:
    """The outcomes of a batch; none where the answer has no such."""
    field = answer.DESCRIPTOR.fields_by_name.get("items")
    return answer.items if field is not None and "outcome" in field.message_type.oneofs_by_name else ()


def leaves(message: Message) -> Iterator[Any]:
    """All that a message says, packed members and numbers as what they are, but for what is 0 or empty."""
    for field, value in message.ListFields():
        for each in value if field.is_repeated else (value,):
            if isinstance(each, Message):
                yield from leaves(each)
            elif field.name in ("members", "member", "shares") and isinstance(each, bytes):
                yield from (number for row in members.unpack(each).tolist() for number in row)
            elif field.name.startswith("packed_"):
                yield from (int.from_bytes(each[at : at + 8], "big") for at in range(0, len(each), 8))
            elif each:
                yield each
