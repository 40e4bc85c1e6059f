"""Requests out of HTTP: strict, and every fault named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2
from gateway.transcode import Transcoder
from runtime.errors import MAX_FIELDS, Error

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
