"""Errors as clients see them: RFC 9457 problem details, from one table of reasons.

No other place maps a reason to an HTTP status; tests/unit/test_gateway_problems.py fails for a reason without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import orjson

from gateway.exchange import Answer, Headers
from runtime.errors import Error, Throttled

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
THROTTLED_S = 6
"""After how long the session service takes another try (services/graph/session_store.py)."""
CHALLENGE = b'Bearer realm="feedmesh"'
INVALID = CHALLENGE + b', error="invalid_token"'

STATUS: Mapping[str, HTTPStatus] = {
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "INVALID_CURSOR": HTTPStatus.BAD_REQUEST,
    "SELF_FOLLOW": HTTPStatus.BAD_REQUEST,
    "SELF_TARGET": HTTPStatus.BAD_REQUEST,
    "MALFORMED_JSON": HTTPStatus.BAD_REQUEST,
    "MALFORMED_REQUEST": HTTPStatus.BAD_REQUEST,
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
    "INVALID_TOKEN": HTTPStatus.UNAUTHORIZED,
    "WRONG_CREDENTIALS": HTTPStatus.UNAUTHORIZED,
    "SESSION_ENDED": HTTPStatus.UNAUTHORIZED,
    "NOT_OWNER": HTTPStatus.FORBIDDEN,
    "ACTING_AS_ANOTHER": HTTPStatus.FORBIDDEN,
    "NO_ACCOUNT": HTTPStatus.FORBIDDEN,
    "ORIGIN_NOT_ALLOWED": HTTPStatus.FORBIDDEN,
    "INVALID_SIGNATURE": HTTPStatus.FORBIDDEN,
    "USER_NOT_FOUND": HTTPStatus.NOT_FOUND,
    "POST_NOT_FOUND": HTTPStatus.NOT_FOUND,
    "COMMENT_NOT_FOUND": HTTPStatus.NOT_FOUND,
    "FOLLOW_REQUEST_NOT_FOUND": HTTPStatus.NOT_FOUND,
    "MEDIA_NOT_FOUND": HTTPStatus.NOT_FOUND,
    "ROUTE_NOT_FOUND": HTTPStatus.NOT_FOUND,
    "METHOD_NOT_ALLOWED": HTTPStatus.METHOD_NOT_ALLOWED,
    "REQUEST_TIMEOUT": HTTPStatus.REQUEST_TIMEOUT,
    "USERNAME_TAKEN": HTTPStatus.CONFLICT,
    "EMAIL_TAKEN": HTTPStatus.CONFLICT,
    "IDENTITY_TAKEN": HTTPStatus.CONFLICT,
    "REQUEST_IN_PROGRESS": HTTPStatus.CONFLICT,
    "BODY_TOO_LARGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "UNSUPPORTED_MEDIA_TYPE": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "HOST_NOT_ALLOWED": HTTPStatus.MISDIRECTED_REQUEST,
    "RANGE_NOT_SATISFIABLE": HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    "INVALID_MEDIA": HTTPStatus.UNPROCESSABLE_ENTITY,
    "MEDIA_TOO_LARGE": HTTPStatus.UNPROCESSABLE_ENTITY,
    "MEDIA_LIMIT": HTTPStatus.UNPROCESSABLE_ENTITY,
    "FOLLOW_LIMIT": HTTPStatus.UNPROCESSABLE_ENTITY,
    "BLOCK_LIMIT": HTTPStatus.UNPROCESSABLE_ENTITY,
    "MUTE_LIMIT": HTTPStatus.UNPROCESSABLE_ENTITY,
    "TOO_MANY_STREAMS": HTTPStatus.TOO_MANY_REQUESTS,
    "RATE_LIMITED": HTTPStatus.TOO_MANY_REQUESTS,
    "TOO_MANY_UPLOADS": HTTPStatus.TOO_MANY_REQUESTS,
    "REQUEST_ID_REUSED": HTTPStatus.UNPROCESSABLE_ENTITY,
    "HEAD_TOO_LARGE": HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "UNKNOWN_CALLER": HTTPStatus.INTERNAL_SERVER_ERROR,
    "NOT_A_CALLER": HTTPStatus.INTERNAL_SERVER_ERROR,
    "INTERNAL": HTTPStatus.INTERNAL_SERVER_ERROR,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
}

INTERNAL = Error("INTERNAL", "Something went wrong on our side. The log line with this request_id tells more.")
"""What a client learns of a defect, whatever the defect says of itself."""


def answer(error: Error, request_id: str, headers: Headers = ()) -> Answer:
    """The problem document for an error. What is our own fault, or not in the table, is answered as INTERNAL."""
    status = STATUS.get(error.reason, HTTPStatus.INTERNAL_SERVER_ERROR)
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        error = INTERNAL
    document: dict[str, object] = {
        # RFC 9457: with about:blank the title is the status's own; `code` is what a program goes by.
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "code": error.reason.lower(),
        "detail": error.message,
        "request_id": request_id,
    }
    if error.fields:
        document["errors"] = [{"field": field, "detail": detail} for field, detail in error.fields]
    sent = [(b"content-type", MEDIA_TYPE.encode()), (b"cache-control", b"no-store"), *headers]
    if status is HTTPStatus.UNAUTHORIZED:
        # RFC 6750, 3.1: of who sent no token nothing is said.
        sent.append((b"www-authenticate", INVALID if error.reason == "INVALID_TOKEN" else CHALLENGE))
    if isinstance(error, Throttled):
        sent.append((b"retry-after", str(THROTTLED_S).encode()))
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        sent.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    return Answer(status.value, orjson.dumps(document), sent)
