"""The OpenAPI document: valid, whole, and its examples true to its own schemas."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from openapi_spec_validator import OpenAPIV31SpecValidator

from feedmesh.post.v1 import post_pb2
from gateway import openapi, problems
from gateway.routes import of_contracts
from gateway.transcode import Transcoder

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
        assert {"400", "500", "503"} <= set(operation["responses"])
        names = {parameter["name"] for parameter in operation["parameters"]}
        names |= set(operation.get("requestBody", {"content": {"application/json": {"schema": {"properties": {}}}}})[
            "content"]["application/json"]["schema"]["properties"])  # fmt: skip
        headers = route.transcoder.headers
        assert names == {headers.get(field.name, field.name) for field in route.rpc.input_type.fields}
        assert all(parameter["description"] for parameter in operation["parameters"])


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
    assert {"201", "400", "404", "408", "413", "415", "422", "429", "500", "503"} == set(upload["responses"])
    assert {"200", "206", "304", "400", "403", "404", "416", "500", "503"} == set(download["responses"])
    assert {"image/jpeg", "video/mp4"} <= set(upload["requestBody"]["content"])
    required = {each["name"]: each["required"] for each in upload["parameters"] + download["parameters"]}
    assert required == {"user_id": True, "media_id": True, "size": True, "expires": False, "signature": False}
    fields = [field.name for field in post_pb2.Media.DESCRIPTOR.fields]
    assert list(openapi.MEDIA) == fields == DOCUMENT["components"]["schemas"]["Media"]["required"]


def test_problems_list_every_code() -> None:
    codes = DOCUMENT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
    assert codes == [reason.lower() for reason in problems.STATUS]


def test_reasons_of_the_comments_are_answers() -> None:
    responses = DOCUMENT["paths"]["/users"]["post"]["responses"]
    assert "username_taken" in responses["409"]["description"]
    assert "404" in DOCUMENT["paths"]["/posts/{post_id}"]["get"]["responses"]


@pytest.mark.parametrize("name", openapi.EXAMPLES)
def test_examples_are_what_the_gateway_takes_and_gives(name: str) -> None:
    route = next(route for route in ROUTES if route.rpc.full_name == name)
    request, answered = openapi.EXAMPLES[name]
    if request is not None:
        transcoder = Transcoder(route.rpc.input_type, (), has_body=True)
        transcoder({}, b"", [], orjson.dumps(request))
    empty = orjson.loads(route.encoder(route.encoder.parse(response_of(route, {}).SerializeToString())))
    if empty is not None:
        assert list(answered) == list(empty)
    for post in answered.get("posts", [answered] if "content" in answered else []):
        assert list(post) == [field.name for field in post_pb2.Post.DESCRIPTOR.fields]


def response_of(route: Any, value: dict[str, Any]) -> Any:
    from google.protobuf.message_factory import GetMessageClass

    return json_format.ParseDict(value, GetMessageClass(route.rpc.output_type)())
