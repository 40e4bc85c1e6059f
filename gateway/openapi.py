"""The OpenAPI 3.1 document, built at start from what the route table is built from: the contracts and their comments.

Nothing here knows a single RPC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from http import HTTPStatus
from importlib import metadata, resources
from typing import Any, NamedTuple

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from feedmesh.buf.validate import validate_pb2
from feedmesh.error.v1 import error_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2
from gateway import examples, problems
from gateway.encode import TIMESTAMP, body_fields, choice, enum_names
from gateway.health import SERVING
from gateway.live import MEDIA_TYPE, PATH, SOCKET
from gateway.media import DOWNLOAD, UPLOAD
from gateway.routes import CONTRACTS, LINES, Route
from gateway.transcode import INTEGERS, is_actor
from runtime.errors import Error, Violation
from runtime.media import SIZES

VISIBLE_ASCII = "^[\\x21-\\x7e]+$"
Schema = dict[str, Any]
Schemas = dict[str, Schema]
"""The document's own schemas, by name."""

RULES: Any = vars(validate_pb2)["field"]
SERVED: Mapping[str, tuple[str, Schema, Schema]] = {
    "/healthz": ("This process lives", {"alive": {"type": "boolean"}}, {"alive": True}),
    "/readyz": (
        "Every part serves, or which does not",
        {"ready": {"type": "boolean"}, "parts": {"type": "object", "additionalProperties": {"type": "string"}}},
        {"ready": True, "parts": dict.fromkeys(CONTRACTS, SERVING)},
    ),
}
"""Summary, properties and an example of what no RPC stands behind."""


EVENT = 'id: Zm9v\nevent: post_removed\ndata: {"type":"post_removed","token":"Zm9v","post_id":374008965087238}\n\n'


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
        {"content": {MEDIA_TYPE.decode(): {"schema": {"type": "string"}, "example": EVENT}}},
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
LIMIT_HEADERS: Schema = {
    "RateLimit-Policy": {
        "description": "Of the limits, if there are any, the one that leaves the least: so many requests (q) in so "
        "many seconds (w). As in draft-ietf-httpapi-ratelimit-headers-11.",
        "schema": {"type": "string"},
        "example": '"read";q=600;w=60',
    },
    "RateLimit": {
        "description": "What it leaves: requests (r), and the seconds in which there will not be more (t).",
        "schema": {"type": "string"},
        "example": '"read";r=599;t=1',
    },
}
EACH_A_LINE = (
    "Sent as it is read, each as one JSON object a line. Where it fails on the way, the connection ends without the "
    "last chunk."
)
ANY = frozenset(("INVALID_ARGUMENT", "MALFORMED_REQUEST", "BODY_TOO_LARGE", "REQUEST_TIMEOUT", "HOST_NOT_ALLOWED",
                 "HEAD_TOO_LARGE", "RATE_LIMITED", "UNAVAILABLE", "INTERNAL"))  # fmt: skip
"""Reasons that any request may meet."""
SIGNED = {"UNAUTHENTICATED", "INVALID_TOKEN", "ACTING_AS_ANOTHER", "NO_ACCOUNT"}
"""What more one may that says who acts, where tokens say who does."""
SCHEMES: Schemas = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
HEADERS: Schemas = {
    name: {"description": text, "schema": {"type": "string"}}
    for name, text in {
        "X-Request-Id": "the request's own id, or one made for it if that is not 1 to 128 of A-Z, a-z, 0-9, ., _ and -",
        "Cache-Control": "public only where neither a viewer_id nor Authorization says who asks",
        "ETag": "a weak validator, for If-None-Match",
        "Vary": "what else the answer depends on",
        "Retry-After": "after how many seconds to try again",
    }.items()
}
VALIDATED = ("Cache-Control", "ETag", "Vary", "X-Request-Id")
"""Headers of an answer that caches may keep."""
VIDEOS = ("video/mp4", "video/quicktime", "video/webm", "video/x-matroska")


def document(routes: Iterable[Route], *, signed: bool = False) -> bytes:
    """The document as JSON; `signed` is whether requests carry tokens that say who acts."""
    schemas: Schemas = {"Problem": problem_schema()}
    paths: dict[str, Schema] = {}
    for route in sorted(routes, key=lambda route: route.template):
        paths.setdefault(route.template, {})[route.method.lower()] = operation(route, schemas, signed=signed)
    for path, rpc in LIVE.items():
        paths[path] = {"get": live(rpc, schemas, signed=signed)}
    paths |= media(schemas, signed=signed)
    for path, described in SERVED.items():
        paths[path] = {"get": served(path, *described)}
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
            "components": {"schemas": schemas, "headers": HEADERS} | ({"securitySchemes": SCHEMES} if signed else {}),
        }
    )


def tags(routes: Iterable[Route]) -> dict[str, str]:
    """Each service that has routes, and the full name of its contract's service."""
    return {route.service: route.rpc.containing_service.full_name for route in routes if route.service in CONTRACTS}


def operation(route: Route, schemas: Schemas, *, signed: bool) -> Schema:
    """One RPC."""
    text = comment(route.rpc.full_name)
    described: Schema = {
        "operationId": route.rpc.name,
        "tags": [route.service],
        "summary": re.split(r"[.;:](?:\s|$)", text.removeprefix(route.rpc.name).strip())[0].capitalize(),
        "description": text,
        "parameters": list(parameters(route, schemas, signed=signed)),
        "responses": responses(route, text, schemas, signed=signed),
    }
    if signed and route.transcoder.actor:
        # A stranger may where nobody need act.
        described["security"] = [{"bearer": []}] if route.transcoder.needs_actor else [{}, {"bearer": []}]
    if route.transcoder.has_body:
        media = {"schema": request_schema(route, schemas, signed=signed), "example": examples.of_fields(of_body(route))}
        described["requestBody"] = {"required": True, "content": {"application/json": media}}
    return described


def parameters(route: Route, schemas: Schemas, *, signed: bool) -> Iterable[Schema]:
    """What stands in the path, the query and the headers."""
    for field in route.rpc.input_type.fields:
        in_path = field.name in route.path_names
        header = route.transcoder.headers.get(field.name)
        if route.transcoder.has_body and not in_path and not header:
            continue
        schema = field_schema(field, schemas, sent=False)
        example = examples.scalar(field)
        yield {
            "name": header or field.name,
            "in": "header" if header else "path" if in_path else "query",
            "required": in_path or field.name in required(route, signed=signed),
            "description": comment(field.full_name),
            "schema": schema | ({"minLength": 1, "pattern": VISIBLE_ASCII} if header else {}),
            **({"example": example} if example else {}),
        }
    if route.is_cacheable:
        text = "ETag of an answer that is known: if it is still that, the answer is 304 without a body"
        yield {"name": "If-None-Match", "in": "header", "description": text, "schema": {"type": "string"}}


def required(route: Route, *, signed: bool) -> set[str]:
    """The fields that must be there: not who acts, where a token says it."""
    return route.transcoder.required - ({route.transcoder.actor} if signed else set())


def of_body(route: Route) -> list[FieldDescriptor]:
    """The fields of a request's JSON body."""
    elsewhere = {*route.path_names, *route.transcoder.headers, *route.transcoder.claims}
    return [field for field in route.rpc.input_type.fields if field.name not in elsewhere]


def request_schema(route: Route, schemas: Schemas, *, signed: bool) -> Schema:
    """The JSON body of a request."""
    fields, always = of_body(route), required(route, signed=signed)
    return {
        "title": route.rpc.input_type.name,
        "description": comment(route.rpc.input_type.full_name),
        "type": "object",
        "properties": {
            field.name: described(field, schemas, sent=False, nullable=field.name not in always) for field in fields
        },
        "required": [field.name for field in fields if field.name in always],
        "additionalProperties": False,
    }


def responses(route: Route, text: str, schemas: Schemas, *, signed: bool) -> Schema:
    """Success, what the RPC's comment names as reasons, and what any request may meet."""
    output = route.rpc.output_type
    body = output.fields_by_name[route.response_body].message_type if route.response_body else output
    assert body is not None  # gateway/encode.py refuses anything else
    example: Any = examples.of_message(body)
    if route.streams:
        example = orjson.dumps(example).decode() + "\n"
    media = {"schema": message_schema(body, schemas, sent=True), "example": example}
    success: Schema = {
        "description": comment(body.full_name) + (f" {EACH_A_LINE}" if route.streams else ""),
        "content": {LINES if route.streams else "application/json": media},
    }
    success["headers"] = (
        LIMIT_HEADERS
        | headers(*(VALIDATED if route.is_cacheable else ("X-Request-Id",)))
        | {
            header: {"description": comment(output.fields_by_name[name].full_name), "schema": {"type": "string"}}
            for name, header in route.encoder.headers.items()
        }
    )
    unchanged = {"304": {"description": "It is as `If-None-Match` knows it.", "headers": headers(*VALIDATED)}}
    reasons = ANY | set(re.findall(r"[A-Z_]+", text)) & set(problems.STATUS)
    if not route.is_read:
        reasons |= {"ORIGIN_NOT_ALLOWED"}
    if signed:
        reasons |= SIGNED if route.transcoder.actor else {"INVALID_TOKEN"}
    if route.transcoder.has_body:
        reasons |= {"MALFORMED_JSON", "UNSUPPORTED_MEDIA_TYPE"}
    if route.transcoder.headers:
        reasons |= {"REQUEST_ID_REUSED", "REQUEST_IN_PROGRESS"}
    return {str(route.status): success} | (unchanged if route.is_cacheable else {}) | failures(reasons)


def headers(*names: str) -> Schema:
    """These of HEADERS."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def failures(reasons: Collection[str]) -> Schema:
    """The answers of problems with these reasons."""
    by_status: dict[int, list[str]] = {}
    for reason in problems.STATUS:
        if reason in reasons:
            by_status.setdefault(problems.STATUS[reason].value, []).append(reason)
    found: Schema = {
        str(status): {
            "description": "\n\n".join(f"`{reason.lower()}`: {reason_text(reason)}" for reason in by_status[status]),
            "headers": headers("X-Request-Id", *(("Retry-After",) if status == HTTPStatus.SERVICE_UNAVAILABLE else ())),
            "content": {
                problems.MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": problem_example(by_status[status][0]),
                }
            },
        }
        for status in sorted(by_status)
    }
    if "RATE_LIMITED" in reasons:
        found["429"]["headers"] |= LIMIT_HEADERS | {
            "Retry-After": {"description": "In how many seconds the next is taken.", "schema": {"type": "integer"}}
        }
    return found


def live(rpc: Live, schemas: Schemas, *, signed: bool) -> Schema:
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
                **({"example": examples.scalar(field)} if field is user_id else {}),
            }
            for field, name, place in ((user_id, "user_id", "query"), (token, *rpc.token))
        ],
        "responses": {
            rpc.status: {
                "description": f"{rpc.answer} {comment(rpc.said)}".strip(),
                "headers": LIMIT_HEADERS,
                **rpc.content,
            },
            **failures(
                ANY | {"USER_NOT_FOUND", "TOO_MANY_STREAMS", "ORIGIN_NOT_ALLOWED"} | (SIGNED if signed else set())
            ),
        },
    }


def media(schemas: Schemas, *, signed: bool) -> dict[str, Schema]:
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
                # A oneof is where `optional` puts a field.
                "required": field.containing_oneof is None and not (signed and is_actor(field)),
                "description": comment(field.full_name),
                "schema": field_schema(field, schemas, sent=False) | known.get(field.name, {}),
                "example": examples.scalar(field),
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
            "responses": success | failures(ANY | set(reasons) | named | ({"INVALID_TOKEN"} if signed else set())),
        }

    example = examples.of_message(post_pb2.Media.DESCRIPTOR)
    created = {
        "201": {
            "description": comment(post_pb2.Media.DESCRIPTOR.full_name),
            "headers": LIMIT_HEADERS | headers("X-Request-Id"),
            "content": {"application/json": {"schema": stored, "example": example}},
        }
    }
    sent = LIMIT_HEADERS | headers("X-Request-Id", "Cache-Control", "ETag")
    whole = {
        "200": {"description": "The image or video.", "headers": sent, "content": content},
        "206": {"description": "The range that was asked for.", "headers": sent, "content": content},
        "304": {"description": "The client has it.", "headers": sent},
    }
    uploaded = described(
        upload,
        "Stores an image or video",
        created,
        *("UNSUPPORTED_MEDIA_TYPE", "ORIGIN_NOT_ALLOWED", *(SIGNED if signed else ())),
    )
    uploaded["requestBody"] = {"required": True, "description": "The file itself.", "content": file}
    if signed:
        uploaded["security"] = [{"bearer": []}]
    return {
        UPLOAD: {"post": uploaded},
        DOWNLOAD: {"get": described(download, "Gives an image or video, or a range of it", whole)},
    }


def served(path: str, summary: str, properties: Schema, example: Schema) -> Schema:
    """A route that no RPC stands behind."""
    schema: Schema = {"type": "object", "properties": properties, "required": list(properties)}
    media = {"schema": schema, "example": example}
    answer = {"description": summary, "headers": headers("X-Request-Id"), "content": {"application/json": media}}
    statuses = ("200", "503") if path == "/readyz" else ("200",)
    return {
        "operationId": path.strip("/"),
        "tags": ["operations"],
        "summary": summary,
        "responses": dict.fromkeys(statuses, answer) | failures({"HOST_NOT_ALLOWED"}),
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


def described(field: FieldDescriptor, schemas: Schemas, *, sent: bool, nullable: bool = False) -> Schema:
    """A field's schema with its comment. `nullable` is one of a request that may be absent: null counts as that."""
    schema = field_schema(field, schemas, sent=sent)
    # A oneof is where `optional` puts a field; of a real one only what is set is sent, and so nothing is null.
    message = field.containing_type
    if sent and field.containing_oneof is not None and message is not None and field not in choice(message):
        nullable = True
    if nullable:
        either = {"anyOf": [schema, {"type": "null"}]}
        # null must be one of an enum's values, too.
        schema = either if {"$ref", "enum"} & schema.keys() else schema | {"type": [schema["type"], "null"]}
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
    }


def problem_example(reason: str) -> Schema:
    """What a problem with this reason looks like."""
    fields = (Violation("user_id", "is required"),) if reason == "INVALID_ARGUMENT" else ()
    detail = "user_id: is required" if fields else reason_text(reason).partition(".")[0].rstrip(".")
    example: Schema = orjson.loads(problems.answer(Error(reason, detail, fields), "5f0c9ad1").body)
    return example


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
