"""The OpenAPI 3.1 document, built at start from what the route table is built from: the contracts and their comments.

Nothing here knows a single RPC, but for the examples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib import metadata, resources
from typing import Any, NamedTuple

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from feedmesh.buf.validate import validate_pb2
from feedmesh.error.v1 import error_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2
from gateway import problems
from gateway.encode import TIMESTAMP, body_fields, choice, enum_names
from gateway.live import MEDIA_TYPE, PATH, SOCKET
from gateway.media import DOWNLOAD, UPLOAD
from gateway.routes import CONTRACTS, LINES, Route
from gateway.transcode import INTEGERS
from runtime.media import SIZES

Schema = dict[str, Any]
Schemas = dict[str, Schema]
"""The document's own schemas, by name."""

RULES: Any = vars(validate_pb2)["field"]
SERVED: Mapping[str, tuple[str, Schema]] = {
    "/healthz": ("This process lives", {"alive": {"type": "boolean"}}),
    "/readyz": (
        "Every part serves, or which does not",
        {"ready": {"type": "boolean"}, "parts": {"type": "object", "additionalProperties": {"type": "string"}}},
    ),
}


class Live(NamedTuple):
    """A route of live updates, which no RPC stands behind."""

    request: Descriptor
    token: tuple[str, str]
    """What carries the token: a name, and where it stands."""
    status: str
    answer: str
    content: Schema
    said: str = ""
    """The message, if any, that clients say."""


LIVE: Mapping[str, Live] = {
    PATH: Live(
        timeline_pb2.LiveEventsRequest.DESCRIPTOR,
        ("Last-Event-ID", "header"),
        "200",
        "Events, for as long as the client stays and this gateway lives.",
        {"content": {MEDIA_TYPE.decode(): {"schema": {"type": "string"}}}},
    ),
    SOCKET: Live(
        timeline_pb2.LiveRequest.DESCRIPTOR,
        ("token", "query"),
        "101",
        "The connection is a WebSocket from now on.",
        {},
        timeline_pb2.LiveScreen.DESCRIPTOR.full_name,
    ),
}
EACH_A_LINE = (
    "Sent as it is read, each as one JSON object a line. Where it fails on the way, the connection ends without the "
    "last chunk."
)
POST_ID, USER_ID, OTHER_ID = 281474976710657, 123, 456
POST = {
    "post_id": POST_ID,
    "user_id": USER_ID,
    "username": "ada",
    "content": "This is a new post",
    "media_url": "https://example.com/cat.jpg",
    "created_at": "2026-01-15T09:30:00.125Z",
    "visibility": "public",
    "likes": 100,
    "comments": 10,
    "shares": 3,
    "liked": False,
    "shared_post": None,
    "shared_by": [],
}
MEDIA_ID = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
MEDIA = {
    "media_id": MEDIA_ID,
    "media_url": f"/media/{MEDIA_ID}/large?expires=1768521600&signature={'0c' * 32}",
    "width": 2048,
    "height": 1536,
    "duration_ms": 0,
    "bytes": 512_000,
    "created_at": "2026-01-15T09:30:00.125Z",
}
VIDEOS = ("video/mp4", "video/quicktime", "video/webm", "video/x-matroska")
EXAMPLES: Mapping[str, tuple[Schema | None, Schema]] = {
    "feedmesh.post.v1.PostService.CreatePost": (
        {"user_id": USER_ID, "content": "This is a new post", "media_url": "https://example.com/cat.jpg"},
        POST | {"likes": 0, "comments": 0, "shares": 0},
    ),
    "feedmesh.timeline.v1.TimelineService.GetFeed": (
        None,
        {
            "posts": [POST | {"user_id": OTHER_ID, "username": "grace", "content": "Hello world", "media_url": ""}],
            "next_cursor": None,
        },
    ),
    "feedmesh.post.v1.PostService.LikePost": (
        {"user_id": USER_ID, "post_id": POST_ID},
        {"post_id": POST_ID, "liked": True, "likes": 101},
    ),
    "feedmesh.graph.v1.GraphService.Follow": (
        {"follower_id": USER_ID, "following_id": OTHER_ID},
        {"status": "following"},
    ),
}
"""Request body (None for a read) and answer of the four calls that everyone begins with."""


def document(routes: Iterable[Route]) -> bytes:
    """The document as JSON."""
    schemas: Schemas = {"Problem": problem_schema()}
    paths: dict[str, Schema] = {}
    for route in sorted(routes, key=lambda route: route.template):
        paths.setdefault(route.template, {})[route.method.lower()] = operation(route, schemas)
    for path, rpc in LIVE.items():
        paths[path] = {"get": live(rpc, schemas)}
    paths |= media(schemas)
    for path, (summary, properties) in SERVED.items():
        paths[path] = {"get": served(path, summary, properties)}
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "feedmesh",
                "version": version(),
                "description": "A social news feed. Ids are integers below 2^53. A retry of a write with the same "
                "`Idempotency-Key` takes effect once. Errors are problem details (RFC 9457); `code` is for programs.",
            },
            "servers": [{"url": "/"}],
            "tags": [
                *({"name": name, "description": comment(of)} for name, of in tags(routes).items()),
                {"name": "operations", "description": "How this process and the mesh behind it are."},
            ],
            "paths": paths,
            "components": {"schemas": schemas},
        }
    )


def tags(routes: Iterable[Route]) -> dict[str, str]:
    """Each service that has routes, and the full name of its contract's service."""
    return {route.service: route.rpc.containing_service.full_name for route in routes if route.service in CONTRACTS}


def operation(route: Route, schemas: Schemas) -> Schema:
    """One RPC."""
    text = comment(route.rpc.full_name)
    request, answered = EXAMPLES.get(route.rpc.full_name, (None, None))
    described: Schema = {
        "operationId": route.rpc.name,
        "tags": [route.service],
        "summary": re.split(r"[.;:](?:\s|$)", text.removeprefix(route.rpc.name).strip())[0].capitalize(),
        "description": text,
        "parameters": list(parameters(route, schemas)),
        "responses": responses(route, text, answered, schemas),
    }
    if route.transcoder.has_body:
        media = {"schema": request_schema(route, schemas)} | ({"example": request} if request else {})
        described["requestBody"] = {"required": True, "content": {"application/json": media}}
    return described


def parameters(route: Route, schemas: Schemas) -> Iterable[Schema]:
    """What stands in the path, the query and the headers."""
    for field in route.rpc.input_type.fields:
        in_path = field.name in route.path_names
        header = route.transcoder.headers.get(field.name)
        if route.transcoder.has_body and not in_path and not header:
            continue
        schema = field_schema(field, schemas, sent=False)
        yield {
            "name": header or field.name,
            "in": "header" if header else "path" if in_path else "query",
            "required": in_path or field.name in route.transcoder.required,
            "description": comment(field.full_name),
            "schema": schema | ({"minLength": 1} if header else {}),
        }


def request_schema(route: Route, schemas: Schemas) -> Schema:
    """The JSON body of a request."""
    fields = [
        field
        for field in route.rpc.input_type.fields
        if field.name not in route.path_names and field.name not in route.transcoder.headers
    ]
    return {
        "title": route.rpc.input_type.name,
        "description": comment(route.rpc.input_type.full_name),
        "type": "object",
        "properties": {field.name: described(field, schemas, sent=False) for field in fields},
        "required": [field.name for field in fields if field.name in route.transcoder.required],
        "additionalProperties": False,
    }


def responses(route: Route, text: str, example: Schema | None, schemas: Schemas) -> Schema:
    """Success, what the RPC's comment names as reasons, and what any request may meet."""
    output = route.rpc.output_type
    body = output.fields_by_name[route.response_body].message_type if route.response_body else output
    assert body is not None  # gateway/encode.py refuses anything else
    media = {"schema": message_schema(body, schemas, sent=True)} | ({"example": example} if example else {})
    success: Schema = {
        "description": comment(body.full_name) + (f" {EACH_A_LINE}" if route.streams else ""),
        "content": {LINES if route.streams else "application/json": media},
    }
    headers = route.encoder.headers
    if headers:
        success["headers"] = {
            header: {"description": comment(output.fields_by_name[name].full_name), "schema": {"type": "string"}}
            for name, header in headers.items()
        }
    reasons = {"INVALID_ARGUMENT", "UNAVAILABLE", "INTERNAL", "BODY_TOO_LARGE", "REQUEST_TIMEOUT"} | set(
        re.findall(r"[A-Z_]+", text)
    ) & set(problems.STATUS)
    if route.transcoder.has_body:
        reasons |= {"MALFORMED_JSON", "UNSUPPORTED_MEDIA_TYPE"}
    if route.transcoder.headers:
        reasons |= {"REQUEST_ID_REUSED", "REQUEST_IN_PROGRESS"}
    return {str(route.status): success} | failures(reasons)


def failures(reasons: Collection[str]) -> Schema:
    """The answers of problems with these reasons."""
    by_status: dict[int, list[str]] = {}
    for reason in problems.STATUS:
        if reason in reasons:
            by_status.setdefault(problems.STATUS[reason].value, []).append(reason)
    return {
        str(status): {
            "description": "\n\n".join(f"`{reason.lower()}`: {reason_text(reason)}" for reason in by_status[status]),
            "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted(by_status)
    }


def live(rpc: Live, schemas: Schemas) -> Schema:
    """The operation of a route of live updates."""
    user_id, token = rpc.request.fields
    return {
        "operationId": rpc.request.name.removesuffix("Request"),
        "tags": ["timeline"],
        "summary": "Tells what comes into a person's home feed as it comes",
        "description": comment(rpc.request.full_name),
        "parameters": [
            {
                "name": name,
                "in": place,
                "required": field is user_id,
                "description": comment(field.full_name),
                "schema": field_schema(field, schemas, sent=False),
            }
            for field, name, place in ((user_id, "user_id", "query"), (token, *rpc.token))
        ],
        "responses": {
            rpc.status: {"description": f"{rpc.answer} {comment(rpc.said)}".strip(), **rpc.content},
            **failures({"INVALID_ARGUMENT", "USER_NOT_FOUND", "TOO_MANY_STREAMS", "UNAVAILABLE", "INTERNAL"}),
        },
    }


def media(schemas: Schemas) -> dict[str, Schema]:
    """The routes of images and videos, which no RPC stands behind, by path."""
    upload, download = post_pb2.UploadMediaRequest.DESCRIPTOR, post_pb2.DownloadMediaRequest.DESCRIPTOR
    stored = message_schema(post_pb2.Media.DESCRIPTOR, schemas, sent=True)
    known: Mapping[str, Schema] = {"media_id": {"pattern": "^[0-9a-f]{64}$"}, "size": {"enum": list(SIZES)}}
    content: Schema = {of: {"schema": {}} for of in dict.fromkeys(SIZES.values())}
    file: Schema = {kind: {"schema": {}} for kind in ("image/jpeg", "image/png", "image/webp", "image/gif", *VIDEOS)}

    def parameters(message: Descriptor) -> list[Schema]:
        return [
            {
                "name": field.name,
                "in": "path" if field.name in known else "query",
                "required": field.containing_oneof is None,  # which is where `optional` puts a field
                "description": comment(field.full_name),
                "schema": field_schema(field, schemas, sent=False) | known.get(field.name, {}),
            }
            for field in message.fields
        ]

    def described(message: Descriptor, summary: str, success: Schema, *reasons: str) -> Schema:
        text = comment(message.full_name)
        named = set(re.findall(r"[A-Z_]+", text)) & set(problems.STATUS)
        return {
            "operationId": message.name.removesuffix("Request"),
            "tags": ["post"],
            "summary": summary,
            "description": text,
            "parameters": parameters(message),
            "responses": success | failures({"INVALID_ARGUMENT", "UNAVAILABLE", "INTERNAL", *reasons} | named),
        }

    created = {"201": {"description": comment(post_pb2.Media.DESCRIPTOR.full_name), "content": json_of(stored, MEDIA)}}
    whole = {
        "200": {"description": "The image or video.", "content": content},
        "206": {"description": "The range that was asked for.", "content": content},
        "304": {"description": "The client has it."},
    }
    return {
        UPLOAD: {
            "post": described(
                upload,
                "Stores an image or video",
                created,
                *("BODY_TOO_LARGE", "REQUEST_TIMEOUT", "UNSUPPORTED_MEDIA_TYPE"),
            )
            | {"requestBody": {"required": True, "description": "The file itself.", "content": file}}
        },
        DOWNLOAD: {"get": described(download, "Gives an image or video, or a range of it", whole)},
    }


def json_of(schema: Schema, example: Schema) -> Schema:
    """A JSON answer."""
    return {"application/json": {"schema": schema, "example": example}}


def served(path: str, summary: str, properties: Schema) -> Schema:
    """A route that no RPC stands behind."""
    schema: Schema = {"type": "object", "properties": properties, "required": list(properties)}
    answer: Schema = {"description": summary, "content": {"application/json": {"schema": schema}}}
    statuses = ("200", "503") if path == "/readyz" else ("200",)
    return {
        "operationId": path.strip("/"),
        "tags": ["operations"],
        "summary": summary,
        "responses": dict.fromkeys(statuses, answer),
    }


def message_schema(message: Descriptor, schemas: Schemas, *, sent: bool) -> Schema:
    """A reference to a message's schema, which is put into `schemas` with all that it holds.

    `sent` is a message of ours, in which every field is always there; of a client's, any may be absent.
    """
    name = message.full_name.partition(".v1.")[2]
    if name not in schemas:
        fields = list(body_fields(message))
        schema: Schema = {"type": "object", "description": comment(message.full_name)}
        schemas[name] = schema  # before its fields: they may be of the same type
        schema["properties"] = {field.name: described(field, schemas, sent=sent) for field in fields}
        chosen = choice(message) if sent else []
        always = [field.name for field in fields if field not in chosen]
        schema.update({"required": always} if sent else {"additionalProperties": False})
        if chosen:
            schema["oneOf"] = [{"required": [field.name]} for field in chosen]
    return {"$ref": f"#/components/schemas/{name}"}


def described(field: FieldDescriptor, schemas: Schemas, *, sent: bool) -> Schema:
    """A field's schema with its comment."""
    schema = field_schema(field, schemas, sent=sent)
    # A oneof is where `optional` puts a field; of a real one only what is set is sent, and so nothing is null.
    message = field.containing_type
    if sent and field.containing_oneof is not None and message is not None and field not in choice(message):
        nullable = {"anyOf": [schema, {"type": "null"}]}
        schema = nullable if "$ref" in schema else schema | {"type": [schema["type"], "null"]}
    return schema | {"description": comment(field.full_name)}


def field_schema(field: FieldDescriptor, schemas: Schemas, *, sent: bool) -> Schema:
    """A field's type and the bounds that the contract's rules give it."""
    options: Any = field.GetOptions()
    rules = options.Extensions[RULES]
    if field.message_type is not None:
        is_time = field.message_type.full_name == TIMESTAMP
        one = (
            {"type": "string", "format": "date-time"}
            if is_time
            else message_schema(field.message_type, schemas, sent=sent)
        )
    elif field.enum_type is not None:
        one = {"type": "string", "enum": [name for name, number in enum_names(field.enum_type).items() if number]}
    elif field.type in INTEGERS:
        one = integer_schema(field, rules)
    elif field.type == field.TYPE_STRING:
        one = string_schema(rules.string)
    else:
        one = {"type": "boolean" if field.type == field.TYPE_BOOL else "number"}
    if not field.is_repeated:
        return one
    bound = {"maxItems": rules.repeated.max_items} if rules.repeated.HasField("max_items") else {}
    return {"type": "array", "items": one} | bound


def integer_schema(field: FieldDescriptor, rules: Any) -> Schema:
    """An integer with its bounds, both inclusive."""
    schema: Schema = {"type": "integer", "format": "int64" if INTEGERS[field.type][1] > 2**32 else "int32"}
    kind = rules.WhichOneof("type")
    bounds = getattr(rules, kind) if kind else None
    for name, key, shift in (("gt", "minimum", 1), ("gte", "minimum", 0), ("lt", "maximum", -1), ("lte", "maximum", 0)):
        if bounds is not None and bounds.HasField(name):
            schema[key] = getattr(bounds, name) + shift
    return schema


def string_schema(rules: Any) -> Schema:
    """A string with its bounds, in characters."""
    schema: Schema = {"type": "string"}
    for name, key in (("min_len", "minLength"), ("max_len", "maxLength"), ("pattern", "pattern")):
        if rules.HasField(name):
            schema[key] = getattr(rules, name)
    return schema | ({"format": "email"} if rules.email else {})


def problem_schema() -> Schema:
    """RFC 9457, with our members."""
    properties: Schema = {
        "type": {"type": "string"},
        "title": {"type": "string", "description": "the status in words"},
        "status": {"type": "integer"},
        "code": {
            "type": "string",
            "enum": [reason.lower() for reason in problems.STATUS],
            "description": "what went wrong, for programs",
        },
        "detail": {"type": "string", "description": "what went wrong, for people"},
        "request_id": {"type": "string", "description": "also in X-Request-Id, and in the logs"},
        "errors": {
            "type": "array",
            "description": "bad input, field by field",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
                "required": ["field", "detail"],
            },
        },
    }
    return {
        "type": "object",
        "description": "What went wrong (RFC 9457).",
        "properties": properties,
        "required": [name for name in properties if name != "errors"],
        "example": {
            "type": "about:blank",
            "title": "Bad Request",
            "status": 400,
            "code": "invalid_argument",
            "detail": "user_id: is required",
            "request_id": "5f0c9ad1",
            "errors": [{"field": "user_id", "detail": "is required"}],
        },
    }


def reason_text(reason: str) -> str:
    """What the contract says about a reason."""
    name = f"ERROR_REASON_{reason}"
    return comment(f"{error_pb2.ErrorReason.DESCRIPTOR.full_name}.{name}").removeprefix(f"{name}: ")


def comment(full_name: str) -> str:
    """The comment in the contracts; "" where there is none."""
    return comments().get(full_name, "")


@cache
def comments() -> Mapping[str, str]:
    """Every comment of the contracts by full name."""
    texts: dict[str, str] = json.loads(resources.files("feedmesh").joinpath("comments.json").read_text())
    return texts


def version() -> str:
    """The project's version; "0" where it is not installed as a distribution."""
    try:
        return metadata.version("feedmesh")
    except metadata.PackageNotFoundError:
        return "0"
