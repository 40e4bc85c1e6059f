"""The route table: every RPC at the edge or internal, and paths found as they come."""

from __future__ import annotations

from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from feedmesh.options.v1 import options_pb2
from gateway.routes import CONTRACTS, Table, allow, of_contracts, option

ROUTES = of_contracts()


def test_every_rpc_has_a_route_or_is_internal() -> None:
    rpcs = {
        rpc.full_name: bool(option(rpc, options_pb2.internal))
        for contract in CONTRACTS.values()
        for service in contract.services_by_name.values()
        for rpc in service.methods
    }
    routed = {route.rpc.full_name for route in ROUTES}
    assert routed == {name for name, internal in rpcs.items() if not internal}


def test_the_four_calls_that_the_owner_fixed() -> None:
    table = {(route.method, route.template): (route.rpc.name, route.status) for route in ROUTES}
    assert table["POST", "/posts"] == ("CreatePost", 201)
    assert table["GET", "/feed"] == ("GetFeed", 200)
    assert table["POST", "/like"] == ("LikePost", 200)
    assert table["POST", "/follow"] == ("Follow", 200)


def test_an_rpc_with_neither_is_refused_at_start() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    file.message_type.add(name="M")
    file.service.add(name="S").method.add(name="R", input_type=".t.M", output_type=".t.M")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    with pytest.raises(TypeError, match=r"t\.S\.R: needs one"):
        of_contracts({"t": pool.FindFileByName("t.proto")})


def test_classes_of_limits() -> None:
    classes: dict[str, set[str]] = {}
    for route in ROUTES:
        classes.setdefault(route.limit_class, set()).add(route.rpc.name)
    assert all((route.limit_class == "read") == (route.method == "GET") for route in ROUTES)
    assert classes["follow"] == {"Follow", "Unfollow", "AcceptFollowRequest", "RejectFollowRequest"}
    assert classes["like"] == {"LikePost", "UnlikePost"}
    assert classes["sign_in"] == {"CreateUser", "CreateSession", "ChangePassword"}
    assert {"CreatePost", "Block", "UpdateUser", "DeleteUser"} <= classes["write"]


def test_a_class_that_nobody_knows_is_refused_at_start() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="c.proto", package="c", syntax="proto3")
    file.message_type.add(name="M")
    rpc = file.service.add(name="S").method.add(name="R", input_type=".c.M", output_type=".c.M")
    rpc.options.Extensions[annotations_pb2.http].get = "/c"
    rpc.options.Extensions[options_pb2.limit_class] = "other"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    with pytest.raises(TypeError, match=r"c\.S\.R: there is no class of limits 'other'"):
        of_contracts({"c": pool.FindFileByName("c.proto")})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"client_streaming": True}, "no stream of requests"),
        ({"verb": "post"}, "only a read may stream"),
        ({"response_body": "m"}, "only a read may stream"),
        ({}, None),
    ],
)
def test_what_may_be_a_stream(change: dict[str, Any], why: str | None) -> None:
    file = descriptor_pb2.FileDescriptorProto(name="s.proto", package="s", syntax="proto3")
    message = file.message_type.add(name="M")
    message.field.add(name="m", number=1, type=11, label=1, type_name=".s.M")
    rpc = file.service.add(name="S").method.add(
        name="R",
        input_type=".s.M",
        output_type=".s.M",
        server_streaming=True,
        client_streaming=change.get("client_streaming", False),
    )
    rule = rpc.options.Extensions[annotations_pb2.http]
    setattr(rule, change.get("verb", "get"), "/s")
    rule.body = "*"
    rule.response_body = change.get("response_body", "")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    contracts = {"s": pool.FindFileByName("s.proto")}
    if why is None:
        [route] = of_contracts(contracts)
        assert route.streams
    else:
        with pytest.raises(TypeError, match=why):
            of_contracts(contracts)


def test_the_export_is_a_stream() -> None:
    assert [route.template for route in ROUTES if route.streams] == ["/users/{user_id}/export"]


TABLE = Table(
    [
        ("/", "GET", "root"),
        ("/posts", "POST", "create"),
        ("/posts/new", "GET", "new"),
        ("/posts/{post_id}", "GET", "read"),
        ("/posts/{post_id}", "DELETE", "delete"),
        ("/users/{user_id}/posts", "GET", "of"),
    ]
)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/", ("/", ["GET"], {})),
        (b"/posts", ("/posts", ["POST"], {})),
        (b"/p%6fsts", ("/posts", ["POST"], {})),
        (b"/posts/new", ("/posts/new", ["GET"], {})),
        (b"/posts/12", ("/posts/{post_id}", ["GET", "DELETE"], {"post_id": "12"})),
        (b"/posts/1%2F2", ("/posts/{post_id}", ["GET", "DELETE"], {"post_id": "1/2"})),
        (b"/users/%C3%A9/posts", ("/users/{user_id}/posts", ["GET"], {"user_id": "é"})),
        (b"/posts/", None),
        (b"/posts/12/", None),
        (b"//posts", None),
        (b"/users//posts", None),
        (b"/posts%2F12", None),
        (b"/posts/%ff", None),
        (b"", None),
        (b"*", None),
    ],
)
def test_paths(path: bytes, found: tuple[str, list[str], dict[str, str]] | None) -> None:
    result = TABLE.find(path)
    assert (result and (result[0], list(result[1]), result[2])) == found


def test_two_routes_of_one_path_are_refused_at_start() -> None:
    with pytest.raises(TypeError, match="twice"):
        Table([("/a/{x}", "GET", 1), ("/a/{x}", "GET", 2)])
    with pytest.raises(TypeError, match="one path"):
        Table([("/a/{x}", "GET", 1), ("/a/{y}", "POST", 2)])


def test_allow() -> None:
    assert allow(["GET", "DELETE"]) == b"DELETE, GET, HEAD, OPTIONS"
    assert allow(["POST"]) == b"OPTIONS, POST"
