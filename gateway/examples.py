"""Examples for the API's documentation, made of the contracts: realistic values by the names of fields."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gateway.encode import TIMESTAMP, body_fields, choice, enum_names
from gateway.transcode import INTEGERS

VALUES: dict[str, Any] = {
    "access_token": "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiI…",
    "actor_count": 4,
    "affinity": 1.5,
    "age_h": 0.25,
    "comment_id": 374008965087301,
    "content": "This is a new post",
    "email": "ada@example.com",
    "expires": 1768521600,
    "expires_in": 600,
    "filter": None,
    "followers": 42,
    "following": 17,
    "following_id": 373955896677710,
    "likes": 100,
    "limit": 20,
    "media_id": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "media_url": "https://example.com/cat.jpg",
    "new_password": "another horse, another staple",
    "next_cursor": None,
    "notification_id": 374008965087340,
    "password": "correct horse battery staple",
    "place_id": 374008965087238,
    "post_id": 374008965087238,
    "refresh_token": "374008965087400.2.pJ4XhmbWvXkQ9v0m2aPqLkGqzR7yTtq0bC3dE5fGhIj",
    "request_id": "0b2f8d3e-like-1",
    "session_id": 374008965087400,
    "shared_post_id": 374008965005316,
    "signature": "0c" * 32,
    "size": "large",
    "target_id": 373955896677710,
    "token_type": "Bearer",
    "username": "ada",
}
NUMBER = 3
"""Of what is counted, where nothing else is said."""
USER_ID = 373955896677709
CREATED_AT = "2026-01-15T09:30:00.125Z"


def of_message(message: Descriptor, *, around: tuple[Descriptor, ...] = ()) -> dict[str, Any]:
    """What the gateway could answer for a message; null where it would stand within itself."""
    chosen = choice(message)
    fields = [field for field in body_fields(message) if field not in chosen[1:]]
    return {field.name: of_field(field, (*around, message)) for field in fields}


def of_fields(fields: Iterable[FieldDescriptor]) -> dict[str, Any]:
    """A request's body of these fields."""
    return {field.name: of_field(field, ()) for field in fields}


def of_field(field: FieldDescriptor, around: tuple[Descriptor, ...]) -> Any:
    """A field's value."""
    if field.message_type is not None and field.message_type.full_name != TIMESTAMP:
        if field.message_type in around:
            return [] if field.is_repeated else None
        value: Any = of_message(field.message_type, around=around)
    else:
        value = scalar(field)
    return [value] if field.is_repeated else value


def scalar(field: FieldDescriptor) -> Any:
    """The value of what is no message of ours."""
    if field.name in VALUES:
        return VALUES[field.name]
    if field.message_type is not None:
        return CREATED_AT
    if field.enum_type is not None:
        return next(name for name, number in enum_names(field.enum_type).items() if number)
    if field.type == field.TYPE_BOOL:
        return field.name != "private"
    if field.type in INTEGERS:
        return USER_ID if field.name.endswith("_id") else NUMBER
    return "" if field.type == field.TYPE_STRING else float(NUMBER)
