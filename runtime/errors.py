"""The errors that services raise, and the one table that turns them into a gRPC status and back.

    Error                      anything with a reason of feedmesh.error.v1.ErrorReason
    ├── InvalidArgument        the caller's fault, field by field
    ├── NotFound               absent, or not to be seen: the two are not told apart
    ├── Conflict               taken, or the same request is under way
    ├── Refused                well-formed, but against a rule
    ├── Forbidden              someone else's
    ├── Unauthenticated        nobody knows who asks
    ├── Throttled              too often
    └── Unavailable            a part that is needed cannot be reached, is too slow or is full

Anything else that a handler raises is a defect: INTERNAL, with a text that says nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc
import psycopg
import psycopg_pool
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "feedmesh"
MAX_FIELDS = 32
"""Violations that one error names at the most; headers have a bound."""


class Violation(NamedTuple):
    """What is wrong with one field of a request."""

    field: str
    """The path of the field in the request, as in `items[0].user_id`."""
    detail: str


class Error(Exception):
    """A failure with a reason that the caller can act upon."""

    code = grpc.StatusCode.INTERNAL

    def __init__(self, reason: str, message: str = "", fields: tuple[Violation, ...] = ()) -> None:
        super().__init__(message or reason)
        self.reason = reason
        self.message = message or reason
        self.fields = fields[:MAX_FIELDS]

    def status(self) -> status_pb2.Status:
        """The error as it travels: a `google.rpc.Status` with ErrorInfo, and BadRequest where fields are named."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)
        status.details.add().Pack(info)
        if self.fields:
            bad = error_details_pb2.BadRequest()
            for violation in self.fields:
                bad.field_violations.add(field=violation.field, description=violation.detail)
            status.details.add().Pack(bad)
        return status


class InvalidArgument(Error):
    """Bad input. `fields` names what is wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, *fields: Violation, reason: str = "INVALID_ARGUMENT") -> None:
        super().__init__(reason, "; ".join(f"{field}: {detail}" for field, detail in fields[:MAX_FIELDS]), fields)


class NotFound(Error):
    """Absent or not to be seen."""

    code = grpc.StatusCode.NOT_FOUND


class Conflict(Error):
    """Taken, or under way."""

    code = grpc.StatusCode.ALREADY_EXISTS


class Refused(Error):
    """Well-formed, but against a rule of the state as it is."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Forbidden(Error):
    """Someone else's."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(Error):
    """Nobody knows who asks."""

    code = grpc.StatusCode.UNAUTHENTICATED


class Throttled(Error):
    """Too often. A retry helps, later."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str) -> None:
        super().__init__("RATE_LIMITED", message)


class Unavailable(Error):
    """Not now. A retry may help."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self, message: str, reason: str = "UNAVAILABLE") -> None:
        super().__init__(reason, message)


KINDS: dict[int, type[Error]] = {
    kind.code.value[0]: kind
    for kind in (InvalidArgument, NotFound, Conflict, Refused, Forbidden, Unauthenticated, Throttled, Unavailable)
}
NOT_NOW = {code_pb2.DEADLINE_EXCEEDED, code_pb2.RESOURCE_EXHAUSTED, code_pb2.UNAVAILABLE, code_pb2.CANCELLED}


def from_exception(exception: BaseException) -> Error | None:
    """The error that an exception out of a handler stands for; None for a defect."""
    match exception:
        case Error():
            return exception
        case psycopg_pool.PoolTimeout() | psycopg_pool.TooManyRequests():
            return Unavailable("the database has no free connection")
        case psycopg.errors.QueryCanceled():
            return Unavailable("the database took too long")
        case psycopg.OperationalError() | psycopg.errors.ReadOnlySqlTransaction():
            return Unavailable("the database cannot be reached")
        case TimeoutError():
            return Unavailable("the deadline has passed")
    return None


def from_status(status: status_pb2.Status, service: str = "a service") -> Error:
    """The error that travelled as a status. A status that is not ours keeps its code's meaning and loses its text."""
    reason, fields = "", tuple[Violation, ...]()
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if unpacked(detail, info) and info.domain == DOMAIN:
            reason = info.reason
        elif unpacked(detail, bad):
            fields = tuple(Violation(v.field, v.description) for v in bad.field_violations)
    if not reason:
        if status.code in NOT_NOW:
            return Unavailable(f"{service} cannot be reached, is too slow or is full")
        return Error("INTERNAL", f"{service} failed with code {code_pb2.Code.Name(status.code)}")
    error = Error.__new__(KINDS.get(status.code, Error))
    Error.__init__(error, reason, status.message, fields)
    return error


def from_rpc(exception: grpc.aio.AioRpcError, service: str) -> Error:
    """The error that a call to a service failed with."""
    details = [value for key, value in exception.trailing_metadata() or () if key == "grpc-status-details-bin"]
    if details and isinstance(details[0], bytes):
        return from_status(status_pb2.Status.FromString(details[0]))
    return from_status(status_pb2.Status(code=exception.code().value[0]), service)


def unpacked(detail: any_pb2.Any, message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> bool:
    """Whether the detail is of the message's type; fills it if so."""
    return bool(detail.Is(message.DESCRIPTOR) and detail.Unpack(message))
