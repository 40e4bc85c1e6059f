"""Closed messages: the same bytes, read only as far as asked."""

from __future__ import annotations

import pytest

from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2
from runtime import wire

POST = post_pb2.Post.DESCRIPTOR


def test_a_closed_message_is_the_contracts_on_the_wire() -> None:
    posts = [
        post_pb2.Post(post_id=n, content="x" * n, liked=True, visibility=post_pb2.VISIBILITY_PUBLIC) for n in (1, 2)
    ]
    answer = timeline_pb2.BatchGetFeedResponse()
    answer.items.add(result=timeline_pb2.GetFeedResponse(posts=posts, next_cursor="", degraded=["redis"]))
    answer.items.add().error.code = 5
    closed = wire.closed(answer.DESCRIPTOR, [POST]).FromString(answer.SerializeToString())
    assert closed.SerializeToString() == answer.SerializeToString()
    page = closed.items[0].result
    assert [post_pb2.Post.FromString(content) for content in page.posts] == posts
    assert page.HasField("next_cursor")
    assert list(page.degraded) == ["redis"]
    assert closed.items[1].error.code == 5
    assert not closed.items[1].HasField("result")


def test_a_field_of_its_own_type_is_closed_too() -> None:
    share = post_pb2.Post(post_id=2, shared_post=post_pb2.Post(post_id=1))
    closed = wire.closed(POST, [POST])(post_id=2, shared_post=post_pb2.Post(post_id=1).SerializeToString())
    assert post_pb2.Post.FromString(closed.SerializeToString()) == share


def test_without_leaves_it_is_the_messages_own_class() -> None:
    assert wire.closed(POST, []) is post_pb2.Post


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_elements_of_a_list_are_what_a_message_with_the_list_is_made_of(length: int) -> None:
    posts = [post_pb2.Post(content="x" * length), post_pb2.Post(post_id=5)]
    whole = post_pb2.PostPage(posts=posts).SerializeToString()
    assert b"".join([wire.listed(post.SerializeToString()) for post in posts]) == whole
