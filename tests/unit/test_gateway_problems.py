"""The one table of reasons, and the document made from it."""

from __future__ import annotations

import orjson
import pytest

from feedmesh.error.v1 import error_pb2
from gateway import problems
from runtime.errors import Error, InvalidArgument, Violation


def test_every_reason_has_a_status() -> None:
    reasons = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()}  # noqa: SIM118 - no dict
    assert set(problems.STATUS) == reasons - {"UNSPECIFIED"}


def test_bad_input_names_its_fields() -> None:
    answer = problems.answer(InvalidArgument(Violation("user_id", "is required")), "r1")
    assert answer.status == 400
    assert orjson.loads(answer.body) == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "code": "invalid_argument",
        "detail": "user_id: is required",
        "request_id": "r1",
        "errors": [{"field": "user_id", "detail": "is required"}],
    }
    assert (b"content-type", b"application/problem+json") in answer.headers


@pytest.mark.parametrize("reason", ["INTERNAL", "UNKNOWN_CALLER", "NEWER_THAN_THIS_BUILD", ""])
def test_a_defect_keeps_its_words_to_itself(reason: str) -> None:
    answer = problems.answer(Error(reason, "password=hunter2", (Violation("a", "b"),)), "r1")
    document = orjson.loads(answer.body)
    assert (answer.status, document["code"]) == (500, "internal")
    assert "hunter2" not in document["detail"]
    assert "errors" not in document


def test_unavailable_says_when_to_try_again() -> None:
    assert (b"retry-after", b"1") in problems.answer(Error("UNAVAILABLE"), "r1").headers
    assert all(name != b"retry-after" for name, _ in problems.answer(Error("NOT_OWNER"), "r1").headers)
