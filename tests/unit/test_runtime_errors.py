"""Errors travel as google.rpc.Status and arrive as what they were."""

from __future__ import annotations

import grpc
import psycopg
import psycopg_pool
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from feedmesh.error.v1 import error_pb2
from runtime import errors
from runtime.errors import Violation

violations = st.lists(st.builds(Violation, st.text(max_size=30), st.text(max_size=60)), max_size=40)
KINDS = (
    errors.Error("INTERNAL", "a text"),
    errors.InvalidArgument(Violation("user_id", "must be greater than 0"), Violation("items[3].limit", "is too large")),
    errors.InvalidArgument(Violation("cursor", "is foreign"), reason="INVALID_CURSOR"),
    errors.InvalidArgument(),
    errors.NotFound("POST_NOT_FOUND", "there is no post 7"),
    errors.NotFound("POST_NOT_FOUND"),
    errors.Conflict("USERNAME_TAKEN", "ä"),
    errors.Refused("FOLLOW_LIMIT", "enough"),
    errors.Forbidden("NOT_OWNER", "someone else's"),
    errors.Unauthenticated("WRONG_CREDENTIALS", "wrong"),
    errors.Throttled("too often"),
    errors.Unauthenticated("UNKNOWN_CALLER", "who is that"),
    errors.Unavailable("the deadline has passed"),
)


def test_every_kind_is_here() -> None:
    assert {type(error) for error in KINDS} == {errors.Error, *subclasses(errors.Error)}


def subclasses(kind: type[errors.Error]) -> set[type[errors.Error]]:
    below = set(kind.__subclasses__())
    return below.union(*map(subclasses, below))


def test_every_kind_has_a_status_of_its_own() -> None:
    kinds: list[type[errors.Error]] = [errors.Error, *subclasses(errors.Error)]
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert {kind.code.value[0]: kind for kind in subclasses(errors.Error)} == errors.KINDS


@pytest.mark.parametrize("error", KINDS, ids=lambda error: f"{type(error).__name__}-{error.reason}")
def test_an_error_arrives_as_what_it_was(error: errors.Error) -> None:
    status = status_pb2.Status.FromString(error.status().SerializeToString())
    assert code_pb2.Code.Name(status.code) == error.code.name
    arrived = errors.from_status(status)
    assert type(arrived) is type(error)
    assert (arrived.reason, arrived.message, arrived.fields) == (error.reason, error.message, error.fields)
    assert str(arrived) == str(error)


@pytest.mark.parametrize("error", KINDS, ids=lambda error: f"{type(error).__name__}-{error.reason}")
def test_every_reason_that_travels_is_documented(error: errors.Error) -> None:
    assert f"ERROR_REASON_{error.reason}" in error_pb2.ErrorReason.DESCRIPTOR.values_by_name


@given(fields=violations)
def test_the_fields_arrive_up_to_a_bound(fields: list[Violation]) -> None:
    arrived = errors.from_status(errors.InvalidArgument(*fields).status())
    assert isinstance(arrived, errors.InvalidArgument)
    assert arrived.fields == tuple(fields[: errors.MAX_FIELDS])


def test_ten_thousand_violations_still_fit_into_headers() -> None:
    error = errors.InvalidArgument(
        *(Violation(f"items[{n}].viewer_id", "must be greater than 0") for n in range(10_000))
    )
    assert len(error.fields) == errors.MAX_FIELDS
    # grpcio refuses headers above 8 KiB now and then, and above 16 KiB always.
    assert len(error.status().SerializeToString()) + len(error.message) < 8_192


@given(code=st.sampled_from([code for code in code_pb2.Code.values() if code]), text=st.text(min_size=30, max_size=60))
def test_a_foreign_status_keeps_its_meaning_and_loses_its_text(code: int, text: str) -> None:
    status = status_pb2.Status(code=code, message=text)
    foreign = error_details_pb2.ErrorInfo(reason="SECRET", domain="elsewhere.example.org")
    status.details.add().Pack(foreign)
    status.details.append(any_pb2.Any(type_url="type.googleapis.com/nobody.Knows", value=b"\xff"))
    arrived = errors.from_status(status)
    assert text not in arrived.message
    not_now = {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "CANCELLED"}
    if code_pb2.Code.Name(code) in not_now:
        assert (type(arrived), arrived.reason) == (errors.Unavailable, "UNAVAILABLE")
    else:
        assert (type(arrived), arrived.reason) == (errors.Error, "INTERNAL")
        assert code_pb2.Code.Name(code) in arrived.message


@pytest.mark.parametrize(
    "exception",
    [
        psycopg_pool.PoolTimeout("secret"),
        psycopg_pool.TooManyRequests("secret"),
        psycopg.errors.QueryCanceled("secret"),
        psycopg.errors.AdminShutdown("secret"),
        psycopg.errors.ReadOnlySqlTransaction("secret"),
        psycopg.OperationalError("secret"),
        TimeoutError("secret"),
    ],
    ids=lambda exception: type(exception).__name__,
)
def test_what_passes_is_unavailable_and_says_nothing_of_the_inside(exception: Exception) -> None:
    error = errors.from_exception(exception)
    assert isinstance(error, errors.Unavailable)
    assert "secret" not in error.message


@pytest.mark.parametrize(
    "exception",
    [ValueError("x"), KeyError("x"), AssertionError(), psycopg.errors.UndefinedTable("x"), psycopg.DataError("x")],
    ids=lambda exception: type(exception).__name__,
)
def test_a_defect_is_no_error_of_ours(exception: Exception) -> None:
    assert errors.from_exception(exception) is None


def test_an_error_is_itself() -> None:
    error = errors.NotFound("POST_NOT_FOUND")
    assert errors.from_exception(error) is error


def test_a_call_without_details_is_read_from_its_code() -> None:
    def failed(code: grpc.StatusCode) -> errors.Error:
        empty = grpc.aio.Metadata()
        return errors.from_rpc(grpc.aio.AioRpcError(code, empty, empty, details="secret"), "GraphService")

    assert isinstance(failed(grpc.StatusCode.UNAVAILABLE), errors.Unavailable)
    internal = failed(grpc.StatusCode.UNIMPLEMENTED)
    assert (internal.reason, "secret" in internal.message) == ("INTERNAL", False)
