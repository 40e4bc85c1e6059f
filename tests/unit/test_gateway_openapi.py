"""The OpenAPI document: valid, whole, and its examples true to its own schemas."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from feedmesh.post.v1 import post_pb2
from gateway import openapi, problems
from gateway.routes import Route, of_contracts

ROUTES = of_contracts()
DOCUMENT: dict[str, Any] = orjson.loads(openapi.document(ROUTES))


def test_it_is_valid() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_every_route_is_there_with_its_words() -> None:
    for route in ROUTES:
        operation = DOCUMENT["paths"][route.template][route.method.lower()]
        assert operation["description"]
        assert operation["summary"]
        assert str(route.status) in operation["responses"]
        assert {"400", "429", "500", "503"} <= set(operation["responses"])
        for status in (str(route.status), "429"):
            assert {"RateLimit", "RateLimit-Policy"} <= set(operation["responses"][status]["headers"])
        names = {parameter["name"] for parameter in operation["parameters"]} - {"If-None-Match"}
        names |= set(operation.get("requestBody", {"content": {"application/json": {"schema": {"properties": {}}}}})[
            "content"]["application/json"]["schema"]["properties"])  # fmt: skip
        headers = route.transcoder.headers
        fields = {field.name for field in route.rpc.input_type.fields} - route.transcoder.claims.keys()
        assert names == {headers.get(name, name) for name in fields}
        assert all(parameter["description"] for parameter in operation["parameters"])


def test_where_tokens_say_who_acts_nobody_need_say_it_and_strangers_are_told() -> None:
    signed = orjson.loads(openapi.document(ROUTES, signed=True))
    OpenAPIV31SpecValidator(signed).validate()
    assert "securitySchemes" not in DOCUMENT["components"]
    for path, method, security in (
        ("/feed", "get", [{"bearer": []}]),
        ("/like", "post", [{"bearer": []}]),
        ("/posts/{post_id}", "get", [{}, {"bearer": []}]),
        ("/sessions", "post", None),
    ):
        operation = signed["paths"][path][method]
        assert operation.get("security") == security
        assert "401" in operation["responses"]
    parameters = {each["name"]: each for each in signed["paths"]["/feed"]["get"]["parameters"]}
    assert parameters["user_id"]["required"] is False


def test_bounds_come_from_the_rules() -> None:
    parameters = {each["name"]: each for each in DOCUMENT["paths"]["/feed"]["get"]["parameters"]}
    assert parameters["user_id"]["schema"] == {
        "type": "integer",
        "format": "int64",
        "minimum": 1,
        "maximum": 2**53 - 1,
    }
    assert parameters["user_id"]["required"] is True
    assert parameters["limit"]["schema"] == {"type": "integer", "format": "int32", "minimum": 1, "maximum": 100}
    assert parameters["order"]["schema"]["enum"] == ["ranked", "latest"]
    body = DOCUMENT["paths"]["/users"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["email"] | {"description": ""} == {
        "type": "string",
        "format": "email",
        "maxLength": 254,
        "description": "",
    }
    assert set(body["required"]) == {"username", "email"}


def test_absent_is_null() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["GetFeedResponse"]["properties"]["next_cursor"]["type"] == ["string", "null"]
    assert {"type": "null"} in schemas["Post"]["properties"]["shared_post"]["anyOf"]
    assert set(schemas["Post"]["required"]) == {field.name for field in post_pb2.Post.DESCRIPTOR.fields}
    assert "degraded" not in schemas["GetFeedResponse"]["properties"]
    assert "Feed-Degraded" in DOCUMENT["paths"]["/feed"]["get"]["responses"]["200"]["headers"]


def test_a_stream_is_lines_of_which_each_holds_one_member() -> None:
    responses = DOCUMENT["paths"]["/users/{user_id}/export"]["get"]["responses"]
    [(media_type, media)] = responses["200"]["content"].items()
    assert media_type == "application/x-ndjson"
    assert "line" in responses["200"]["description"]
    assert {"400", "404", "500", "503"} <= set(responses)
    schema = DOCUMENT["components"]["schemas"][media["schema"]["$ref"].rpartition("/")[2]]
    members = [field.name for field in post_pb2.ExportUserResponse.DESCRIPTOR.fields]
    assert list(schema["properties"]) == members
    assert schema["required"] == []
    assert schema["oneOf"] == [{"required": [name]} for name in members]
    assert not any("null" in str(each) for each in schema["properties"].values())


def test_media_are_described_with_what_may_go_wrong() -> None:
    upload, download = DOCUMENT["paths"]["/media"]["post"], DOCUMENT["paths"]["/media/{media_id}/{size}"]["get"]
    assert {"201", "400", "403", "404", "408", "413", "415", "422", "429", "500", "503"} <= set(upload["responses"])
    assert {"200", "206", "304", "400", "403", "404", "416", "429", "500", "503"} <= set(download["responses"])
    assert {"image/jpeg", "video/mp4"} <= set(upload["requestBody"]["content"])
    required = {each["name"]: each["required"] for each in upload["parameters"] + download["parameters"]}
    assert required == {"user_id": True, "media_id": True, "size": True, "expires": False, "signature": False}
    fields = [field.name for field in post_pb2.Media.DESCRIPTOR.fields]
    assert fields == DOCUMENT["components"]["schemas"]["Media"]["required"]


def test_problems_list_every_code() -> None:
    codes = DOCUMENT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
    assert codes == [reason.lower() for reason in problems.STATUS]


def test_reasons_of_the_comments_are_answers() -> None:
    responses = DOCUMENT["paths"]["/users"]["post"]["responses"]
    assert "username_taken" in responses["409"]["description"]
    assert "404" in DOCUMENT["paths"]["/posts/{post_id}"]["get"]["responses"]


OPERATIONS = [
    (f"{method.upper()} {path}", operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
VALIDATOR = Draft202012Validator({**DOCUMENT, "$ref": "#/components/schemas/Problem"})


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_examples_are_there_and_true_to_their_schemas(name: str, operation: dict[str, Any]) -> None:
    media = list(operation.get("requestBody", {"content": {}})["content"].items())
    for response in operation["responses"].values():
        media += response.get("content", {}).items()
    for media_type, each in media:
        if not each["schema"]:
            continue  # a file
        example = each["example"]
        if media_type == "application/x-ndjson":
            example = orjson.loads(example)
        VALIDATOR.evolve(schema={**DOCUMENT, **each["schema"]}).validate(example)
    for parameter in operation.get("parameters", []):
        if "example" in parameter:
            VALIDATOR.evolve(schema=parameter["schema"]).validate(parameter["example"])
        else:
            assert parameter["name"] in ("cursor", "If-None-Match", "Last-Event-ID", "token")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: str(route.rpc.name))
def test_example_requests_are_what_the_gateway_takes(route: Route) -> None:
    operation = DOCUMENT["paths"][route.template][route.method.lower()]
    given = {each["name"]: each["example"] for each in operation["parameters"] if "example" in each}
    names = route.transcoder.headers
    query = urlencode({name: each for name, each in given.items() if name not in (*route.path_names, *names.values())})
    headers = [(header.lower().encode(), given[header].encode()) for header in names.values()]
    body = (
        orjson.dumps(operation["requestBody"]["content"]["application/json"]["example"])
        if (route.transcoder.has_body)
        else b""
    )
    route.transcoder({name: str(given[name]) for name in route.path_names}, query.encode(), headers, body)


def test_what_caches_may_keep_says_so() -> None:
    for route in ROUTES:
        operation = DOCUMENT["paths"][route.template][route.method.lower()]
        assert ("304" in operation["responses"]) == route.is_cacheable
        assert ("ETag" in operation["responses"][str(route.status)]["headers"]) == route.is_cacheable
    assert sum(route.is_cacheable for route in ROUTES) >= 4
