"""Requests out of HTTP: strict, and every fault named."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2
from gateway.routes import Route, Table, of_contracts
from gateway.transcode import Transcoder
from runtime.errors import MAX_FIELDS, Error
from runtime.validation import violations

CREATE = Transcoder(post_pb2.CreatePostRequest.DESCRIPTOR, (), has_body=True)
LIKE = Transcoder(post_pb2.LikePostRequest.DESCRIPTOR, (), has_body=True)
USER = Transcoder(graph_pb2.CreateUserRequest.DESCRIPTOR, (), has_body=True)
FEED = Transcoder(timeline_pb2.GetFeedRequest.DESCRIPTOR, (), has_body=False)
POST = Transcoder(post_pb2.GetPostRequest.DESCRIPTOR, ("post_id",), has_body=False)
RELATIONS = Transcoder(graph_pb2.BatchGetRelationsRequest.DESCRIPTOR, (), has_body=True)


def of_body(transcoder: Transcoder, body: Any, *headers: tuple[bytes, bytes], query: bytes = b"") -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return transcoder({}, query, list(headers), raw)


def faults(call: Any) -> dict[str, str]:
    with pytest.raises(Error) as caught:
        call()
    assert caught.value.reason == "INVALID_ARGUMENT"
    return dict(caught.value.fields)


def test_a_body_fills_the_message() -> None:
    body = {"user_id": 123, "content": "é\U0001f600", "media_url": None}
    message = of_body(CREATE, body, (b"idempotency-key", b"k"))
    assert message == post_pb2.CreatePostRequest(user_id=123, content="é\U0001f600", request_id="k")


@pytest.mark.parametrize("value", ["1", 1.0, 1.5, True, False, [1], {"a": 1}, "", 2**64, -(2**70)])
def test_an_integer_is_an_integer(value: Any) -> None:
    assert faults(lambda: of_body(LIKE, {"user_id": value, "post_id": 1})) == {"user_id": "must be an integer"}


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_an_integer_fits_its_field(value: int) -> None:
    assert faults(lambda: of_body(LIKE, {"user_id": value, "post_id": 1}))["user_id"].startswith("is out of the range")


@pytest.mark.parametrize("value", [0, -1, 2**53, 2**63 - 1, -(2**63)])
def test_the_contracts_bounds_hold(value: int) -> None:
    assert "less than or equal to" in faults(lambda: of_body(LIKE, {"user_id": value, "post_id": 1}))["user_id"]


@pytest.mark.parametrize("value", [1, True, ["a"], {"a": "b"}])
def test_a_string_is_a_string(value: Any) -> None:
    assert faults(lambda: of_body(CREATE, {"user_id": 1, "content": value})) == {"content": "must be a string"}


def test_all_faults_come_at_once_and_each_field_once() -> None:
    found = faults(lambda: of_body(CREATE, {"user_id": 0, "media_url": "ftp://x", "colour": 1, "content": 2}))
    assert set(found) == {"user_id", "media_url", "colour", "content"}
    assert found["content"] == "must be a string"


@pytest.mark.parametrize("given_value", [{}, {"user_id": None, "post_id": None}])
def test_what_is_missing_is_required(given_value: Any) -> None:
    assert faults(lambda: of_body(LIKE, given_value)) == {"user_id": "is required", "post_id": "is required"}
    assert faults(lambda: of_body(USER, given_value if not given_value else {})) == {
        "username": "is required",
        "email": "is required",
    }


def test_a_rule_about_the_whole_requires_no_field_by_itself() -> None:
    assert faults(lambda: of_body(CREATE, {"user_id": 1})) == {"content": "must not be empty without media_url"}
    assert CREATE.required == {"user_id"}


def test_an_unknown_name_is_cut_and_faults_are_bounded() -> None:
    found = faults(lambda: of_body(LIKE, {f"{i:0200d}": 1 for i in range(1000)}))
    assert len(found) <= MAX_FIELDS
    assert all(len(name) <= 100 for name in found)


def test_a_body_route_takes_no_query() -> None:
    body = {"user_id": 1, "post_id": 1}
    assert faults(lambda: of_body(LIKE, body, query=b"user_id=1")) == {"user_id": "unknown query parameter"}
    assert of_body(LIKE, body, query=b"&").user_id == 1


@pytest.mark.parametrize(
    "value",
    [b"", b"a b", b"x" * 256, "é".encode(), b"\x7f", b"a\tb"],
    ids=["empty", "space", "long", "utf8", "del", "tab"],
)
def test_the_idempotency_key_is_visible_ascii(value: bytes) -> None:
    body = {"user_id": 1, "post_id": 1}
    found = faults(lambda: of_body(LIKE, body, (b"idempotency-key", value)))
    assert found == {"Idempotency-Key": "must be 1 to 255 visible ASCII characters"}
    assert of_body(LIKE, body, (b"idempotency-key", b"~" * 255)).request_id == "~" * 255


def test_the_idempotency_key_comes_once_and_only_as_a_header() -> None:
    body = {"user_id": 1, "post_id": 1}
    twice = [(b"idempotency-key", b"a"), (b"idempotency-key", b"b")]
    assert faults(lambda: of_body(LIKE, body, *twice)) == {"Idempotency-Key": "is given more than once"}
    assert faults(lambda: of_body(LIKE, body | {"request_id": "a"})) == {"request_id": "unknown field"}


@pytest.mark.parametrize(
    ("query", "want"),
    [
        (b"user_id=1", timeline_pb2.GetFeedRequest(user_id=1)),
        (b"user_id=1&limit=100", timeline_pb2.GetFeedRequest(user_id=1, limit=100)),
        (b"order=ranked&user_id=%31", timeline_pb2.GetFeedRequest(user_id=1, order=timeline_pb2.FEED_ORDER_RANKED)),
        (b"us%65r_id=1&cursor=a%20b+c%C3%A9", timeline_pb2.GetFeedRequest(user_id=1, cursor="a b cé")),
        (b"&user_id=1&&cursor=&", timeline_pb2.GetFeedRequest(user_id=1)),
        (b"user_id=1&cursor=a=b", timeline_pb2.GetFeedRequest(user_id=1, cursor="a=b")),
    ],
)
def test_a_query_fills_the_message(query: bytes, want: timeline_pb2.GetFeedRequest) -> None:
    assert FEED({}, query, []) == want


@pytest.mark.parametrize(
    ("query", "field", "detail"),
    [
        (b"", "user_id", "is required"),
        (b"user_id=", "user_id", "must be an integer"),
        (b"user_id=+1", "user_id", "must be an integer"),
        (b"user_id=01", "user_id", "must be an integer"),
        (b"user_id=1.0", "user_id", "must be an integer"),
        (b"user_id=1_0", "user_id", "must be an integer"),
        ("user_id=١".encode(), "user_id", "must be an integer"),
        (b"user_id=" + b"9" * 5000, "user_id", "must be an integer"),
        (b"user_id=9223372036854775808", "user_id", "is out of the range of 64-bit integers"),
        (b"user_id=1&user_id=1", "user_id", "is given more than once"),
        (b"user_id=1&limit=", "limit", "must be an integer"),
        (b"user_id=1&limit=0", "limit", "must be greater than or equal to 1 and less than or equal to 100"),
        (b"user_id=1&limit=2147483648", "limit", "is out of the range of 32-bit integers"),
        (b"user_id=1&order=RANKED", "order", "must be one of ranked, latest"),
        (b"user_id=1&order=unspecified", "order", "must be one of ranked, latest"),
        (b"user_id=1&order=1", "order", "must be one of ranked, latest"),
        (b"user_id=1&Limit=1", "Limit", "unknown query parameter"),
        (b"user_id=1&x", "x", "unknown query parameter"),
        (b"user_id=1&cursor=%ff", "cursor", "is not UTF-8"),
        (b"user_id=1&%ff=1", "query", "is not UTF-8"),
    ],
)
def test_a_wrong_query_is_named(query: bytes, field: str, detail: str) -> None:
    assert faults(lambda: FEED({}, query, [])) == {field: detail}


def test_the_path_is_not_repeated_elsewhere() -> None:
    assert POST({"post_id": "7"}, b"viewer_id=2", []) == post_pb2.GetPostRequest(post_id=7, viewer_id=2)
    assert faults(lambda: POST({"post_id": "7"}, b"post_id=7", [])) == {"post_id": "unknown query parameter"}
    found = faults(lambda: POST({"post_id": "x"}, b"viewer_id=0", []))
    assert found["post_id"] == "must be an integer"
    assert "viewer_id" in found


def test_nested_and_repeated_fields_are_named_by_their_place() -> None:
    body = {"items": [{"viewer_id": 1}, {"viewer_id": "2"}, 3, {"viewer_id": 0}, {"viewer": 1, "viewer_id": 1}]}
    found = faults(lambda: of_body(RELATIONS, body))
    assert found == {
        "items[1].viewer_id": "must be an integer",
        "items[2]": "must be an object",
        "items[4].viewer": "unknown field",
    }
    assert set(faults(lambda: of_body(RELATIONS, {"items": [{"viewer_id": 0}]}))) == {"items[0].viewer_id"}
    assert faults(lambda: of_body(RELATIONS, {"items": {}})) == {"items": "must be an array"}
    assert faults(lambda: of_body(RELATIONS, {"items": [None]})) == {"items[0]": "must be an object"}
    assert len(of_body(RELATIONS, {"items": [{"viewer_id": 1, "known_version": None}]}).items) == 1


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'"a"', b"nul", b"{", b"\xff", b'{"a":"\\ud800"}', b"[" * 10**6, b"\xef\xbb\xbf{}"]
)
def test_what_is_no_json_object_is_malformed(body: bytes) -> None:
    with pytest.raises(Error) as caught:
        of_body(LIKE, body)
    assert caught.value.reason == "MALFORMED_JSON"


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 32 + b"]" * 32])
def test_what_json_knows_not_or_nobody_needs_is_malformed(value: bytes) -> None:
    with pytest.raises(Error) as caught:
        of_body(LIKE, b'{"user_id":%b,"post_id":1}' % value)
    assert caught.value.reason == "MALFORMED_JSON"


def test_nesting_up_to_the_bound_is_read() -> None:
    deep = b'{"user_id":%b,"post_id":1}' % (b"[" * 31 + b"]" * 31)
    assert faults(lambda: of_body(LIKE, deep)) == {"user_id": "must be an integer"}


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"user_id":1,"post_id":1,"user_id":2}', {"user_id"}),
        (b'{"user_id":1,"post_id":1,"user_id":1}', {"user_id"}),
        (b'{"user_id":1,"post_id":1,"\\u0075ser_id":1}', {"user_id"}),
        (b'{"user_id":1,"post_id":1,"a":"b:c","a":":","d":1,"d":2}', {"a", "d"}),
        (b'{"user_id":1,"post_id":{"a":[{"b":1,"b":2}]}}', {"b"}),
        (b'{"%b":1,"%b":2}' % (b"x" * 200, b"x" * 200), {"x" * 100}),
    ],
)
def test_a_name_that_comes_twice_is_named(body: bytes, names: set[str]) -> None:
    assert faults(lambda: of_body(LIKE, body)) == dict.fromkeys(names, "is given more than once")


def test_the_same_name_in_two_objects_and_colons_in_strings_are_fine() -> None:
    body = b'{"items":[{"viewer_id":1},{"viewer_id":2}]}'
    assert len(of_body(RELATIONS, body).items) == 2
    message = of_body(CREATE, b'{"user_id":1,"content":"a:b","media_url":"https://example.com:81/"}')
    assert (message.content, message.media_url) == ("a:b", "https://example.com:81/")


@pytest.mark.parametrize("route", of_contracts(), ids=lambda route: str(route.rpc.name))
def test_no_string_takes_the_character_nul(route: Route) -> None:
    """Postgres cannot store it. A cursor is refused as what it is not."""
    for field in route.rpc.input_type.fields:
        if field.type == field.TYPE_STRING and field.name != "cursor":
            message = GetMessageClass(route.rpc.input_type)(**{field.name: "a\0b@example.com"})
            assert field.name in {violation.field for violation in violations(message)}


def test_fields_that_text_cannot_carry_are_refused_at_start() -> None:
    with pytest.raises(TypeError, match="single scalar"):
        Transcoder(graph_pb2.BatchGetUsersRequest.DESCRIPTOR, (), has_body=False)


def outcome(call: Callable[[], Any]) -> Any:
    """What the call returns, or the Error that it raises; anything else it raises fails the test."""
    try:
        return call()
    except Error as error:
        return error


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["user_id", "content", "media_url", "request_id"]) | st.text(max_size=5)


@given(st.dictionaries(names, json_values, max_size=5))
def test_any_object_is_a_message_or_named_faults(body: dict[str, Any]) -> None:
    result = outcome(lambda: of_body(CREATE, body))
    if isinstance(result, Error):
        assert result.reason == "MALFORMED_JSON" or (result.reason == "INVALID_ARGUMENT" and result.fields)
    else:
        assert isinstance(result, post_pb2.CreatePostRequest)
        assert type(body["user_id"]) is int


@given(st.binary(max_size=60))
def test_any_query_is_a_message_or_named_faults(query: bytes) -> None:
    result = outcome(lambda: FEED({}, query, []))
    assert isinstance(result, timeline_pb2.GetFeedRequest) or result.fields


json_text = st.recursive(
    st.sampled_from(
        ["null", "true", "NaN", "-0", "1e999", "1.0", "9" * 5000, r'"\ud800"', r'"\u0000"', '"a:b"', "[", "}"]
    )
    | st.integers().map(str)
    | st.text(max_size=5).map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(names.map(json.dumps), inner), max_size=4).map(
            lambda pairs: f"{{{','.join(f'{name}:{value}' for name, value in pairs)}}}"
        )
    ),
    max_leaves=10,
)


@given(st.binary(max_size=200) | json_text.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_body_is_a_message_or_an_error(body: bytes) -> None:
    result = outcome(lambda: of_body(CREATE, body))
    if isinstance(result, Error):
        assert result.reason in ("MALFORMED_JSON", "INVALID_ARGUMENT")
    else:
        pairs = json.loads(body, object_pairs_hook=list)
        assert len(pairs) == len(dict(pairs))


@given(st.lists(st.tuples(st.sampled_from([b"idempotency-key", b"x"]), st.binary(max_size=300)), max_size=3))
def test_any_headers_are_a_message_or_named_faults(headers: list[tuple[bytes, bytes]]) -> None:
    result = outcome(lambda: of_body(LIKE, {"user_id": 1, "post_id": 1}, *headers))
    assert isinstance(result, post_pb2.LikePostRequest) or {field for field, _ in result.fields} == {"Idempotency-Key"}


TABLE = Table([(route.template, route.method, route) for route in of_contracts()])


@given(st.lists(st.sampled_from([b"users", b"posts", b"7", b"%00", b"%ff", b"%2f", b""]) | st.binary(max_size=8)))
def test_any_path_is_a_message_or_an_error(parts: list[bytes]) -> None:
    found = TABLE.find(b"/" + b"/".join(parts))
    if found is None:
        return
    for route in found[1].values():
        result = outcome(partial(route.transcoder, found[2], b"", [], b"{}"))
        assert isinstance(result, Message) or result.fields
