"""Rules of the contracts, and how their violations name fields."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from runtime.validation import violations


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (post_pb2.GetPostRequest(post_id=1), []),
        (post_pb2.GetPostRequest(post_id=2**53 - 1, viewer_id=1), []),
        (post_pb2.GetPostRequest(), ["post_id"]),
        (post_pb2.GetPostRequest(post_id=2**53, viewer_id=0), ["post_id", "viewer_id"]),
        (post_pb2.CreatePostRequest(user_id=1, content="x"), []),
        (post_pb2.CreatePostRequest(user_id=1), ["content"]),
        (post_pb2.CreatePostRequest(content="a\0"), ["user_id", "content"]),
        (post_pb2.ListCommentsRequest(post_id=1, limit=0), ["limit"]),
        (
            post_pb2.BatchListNewestRequest(
                items=[post_pb2.BatchListNewestRequest.Item(limit=limit) for limit in (1, 0, 1_000, 1_001)]
            ),
            ["items[1].limit", "items[3].limit"],
        ),
        (graph_pb2.BatchGetUsersRequest(user_ids=[1] * 10_001), ["user_ids"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_violations_name_their_fields(message: Message, fields: list[str]) -> None:
    found = violations(message)
    assert sorted(field for field, _ in found) == sorted(fields)
    assert all(detail and "\n" not in detail for _, detail in found)


def test_a_detail_says_what_is_wanted() -> None:
    [(_, detail)] = violations(post_pb2.CreatePostRequest(user_id=1))
    assert detail == "must not be empty without media_url"
