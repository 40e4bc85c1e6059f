"""JSON out of messages: what ProtoJSON says, but for the differences that the API wants."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, struct_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2
from gateway.encode import MAX_KNOWN_BYTES, Encoder, Known, choice, compiled, enum_names, timestamp

text = st.text(st.characters(codec="utf-8"), max_size=40)
ids = st.integers(0, 2**63 - 1)
times = st.builds(
    Timestamp,
    seconds=st.integers(-62_135_596_800, 253_402_300_799),
    nanos=st.integers(0, 999_999).map(lambda n: n * 1000),
)
sharers = st.builds(post_pb2.Sharer, user_id=ids, username=text)


def posts(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        post_pb2.Post,
        post_id=ids,
        user_id=ids,
        username=text,
        content=text,
        media_url=text,
        created_at=st.none() | times,
        visibility=st.sampled_from([0, 1]),
        likes=ids,
        comments=ids,
        shares=ids,
        liked=st.booleans(),
        shared_post=inner,
        shared_by=st.lists(sharers, max_size=3),
    )


feeds = st.builds(
    timeline_pb2.GetFeedResponse,
    posts=st.lists(posts(posts(st.none()) | st.none()), max_size=3),
    next_cursor=st.none() | text,
    degraded=st.lists(st.sampled_from(["ranking", "graph", "redis"]), max_size=2, unique=True),
)


def proto_json(message: Message) -> Any:
    """google.protobuf's own encoding, with the API's differences applied to the result."""
    plain = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return as_ours(plain, message)


def as_ours(plain: dict[str, Any], message: Message) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.name == "degraded":
            continue
        value = getattr(message, field.name)
        given = plain.get(field.name)
        if field.is_repeated:
            pairs = zip(given or [], value, strict=True)
            result[field.name] = [as_ours(a, b) if field.message_type else a for a, b in pairs]
        elif field.has_presence and not message.HasField(field.name):
            result[field.name] = None
        elif field.message_type is not None:
            result[field.name] = given if isinstance(given, str) else as_ours(given or {}, value)
        elif field.enum_type is not None:
            result[field.name] = field.enum_type.values_by_number[value].name.removeprefix("VISIBILITY_").lower()
        else:
            result[field.name] = value
    return result


def written(message: Any) -> Any:
    """A response's JSON."""
    encoder = Encoder(message.DESCRIPTOR)
    return orjson.loads(encoder(encoder.parse(message.SerializeToString())))


def test_what_a_response_lists_is_the_same_when_it_was_seen_before_and_when_it_is_too_long_to_be_kept() -> None:
    posts = [post_pb2.Post(post_id=1, content="a"), post_pb2.Post(post_id=2, content="b" * (MAX_KNOWN_BYTES + 1))]
    feed = timeline_pb2.GetFeedResponse(posts=[*posts, *posts])
    assert written(feed) == written(feed) == proto_json(feed)


def test_what_was_not_asked_for_lately_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.encode.KNOWN", 8)
    known = Known(post_pb2.Post.DESCRIPTOR)
    contents = [post_pb2.Post(post_id=number).SerializeToString() for number in range(1, 100)]
    first = known[contents[0]]
    for content in contents[1:]:
        assert known[content] is known[content]
        assert known[contents[0]] is first
        assert len(known) <= 4
    assert orjson.loads(orjson.dumps(known[contents[50]]))["post_id"] == 51
    for content in contents[1:]:
        assert known[content]
    assert known[contents[0]] is not first


@given(feeds)
def test_a_feed_is_proto_json_with_our_differences(feed: timeline_pb2.GetFeedResponse) -> None:
    assert written(feed) == proto_json(feed)


@given(times)
def test_times_are_those_of_proto_json(at: Timestamp) -> None:
    assert timestamp(at) == at.ToJsonString()


def test_nanoseconds_are_cut_off() -> None:
    assert timestamp(Timestamp(seconds=1, nanos=999_999_999)) == "1970-01-01T00:00:01.999999Z"


def test_the_response_body_is_the_field_alone() -> None:
    response = graph_pb2.GetUserResponse(user=graph_pb2.User(user_id=5))
    assert orjson.loads(Encoder(response.DESCRIPTOR, "user")(response)) == {
        "user_id": 5,
        "username": "",
        "email": "",
        "created_at": None,
        "followers": 0,
        "following": 0,
        "private": False,
    }


@pytest.mark.parametrize("kind", [field.name for field in post_pb2.ExportUserResponse.DESCRIPTOR.fields])
def test_of_a_oneof_only_what_is_set_is_written(kind: str) -> None:
    record = post_pb2.ExportUserResponse()
    getattr(record, kind).SetInParent()
    written = orjson.loads(Encoder(record.DESCRIPTOR)(record))
    assert list(written) == [kind]
    assert list(written[kind]) == [field.name for field in getattr(record, kind).DESCRIPTOR.fields]
    assert Encoder(record.DESCRIPTOR)(post_pb2.ExportUserResponse()) == b"{}"


def test_optional_fields_are_no_choice() -> None:
    assert choice(post_pb2.Post.DESCRIPTOR) == []
    assert [field.name for field in choice(graph_pb2.ExportUserResponse.DESCRIPTOR)] == ["account", "tie"]


def test_two_oneofs_in_one_message_are_refused() -> None:
    with pytest.raises(TypeError, match="more than one oneof"):
        compiled(message_with_oneofs("a", "b"))
    assert compiled(message_with_oneofs("a", "a")) is not None


def message_with_oneofs(*names: str) -> Descriptor:
    """A message with a field in each of these oneofs."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    message = file.message_type.add(name="M" + "".join(names))
    oneofs = sorted(set(names))
    for name in oneofs:
        message.oneof_decl.add(name=name)
    for number, name in enumerate(names, start=1):
        message.field.add(name=f"f{number}", number=number, type=3, label=1, oneof_index=oneofs.index(name))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor: Descriptor = pool.FindMessageTypeByName(f"t.{message.name}")
    return descriptor


def test_enums_lose_their_prefix_and_unknown_numbers_stay() -> None:
    encoder = Encoder(graph_pb2.FollowResponse.DESCRIPTOR)
    assert (
        encoder(graph_pb2.FollowResponse(status=graph_pb2.FOLLOW_STATUS_NOT_FOLLOWING)) == b'{"status":"not_following"}'
    )
    tomorrow = graph_pb2.FollowResponse.FromString(b"\x08\x63")
    assert encoder(tomorrow) == b'{"status":99}'
    assert enum_names(timeline_pb2.FeedOrder.DESCRIPTOR) == {"unspecified": 0, "ranked": 1, "latest": 2}


def test_headers_are_joined_and_cannot_break_out() -> None:
    encoder = Encoder(timeline_pb2.GetFeedResponse.DESCRIPTOR)
    assert encoder.header_values(timeline_pb2.GetFeedResponse()) == []
    sent = timeline_pb2.GetFeedResponse(degraded=["ranking", "a\r\nb: ü"])
    assert encoder.header_values(sent) == [(b"feed-degraded", b"ranking, a??b: ?")]


def test_types_without_a_json_form_are_refused_at_start() -> None:
    with pytest.raises(TypeError, match="bytes nor maps"):
        compiled(post_pb2.BatchListNewestResponse.DESCRIPTOR)
    with pytest.raises(TypeError, match="bytes nor maps"):
        compiled(struct_pb2.Struct.DESCRIPTOR)
    with pytest.raises(TypeError, match="has no JSON form"):
        compiled(timeline_pb2.BatchGetFeedResponse.DESCRIPTOR)
