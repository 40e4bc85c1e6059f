"""Messages to JSON: one function per message type, compiled from its descriptor at start.

What a response lists is not parsed where its bytes were seen just now: then their JSON is known. A page of a feed is
mostly posts that others read a moment ago.

The JSON is the API's own and not ProtoJSON: names as in the contract, 64-bit integers as numbers, enums as lower-case
names without their type's prefix, every field always there (null for an absent `optional` or message), but for a
`oneof`, of which only the member is there that is set. A field with the `header` option is left out of its message;
`Encoder` sends it as a header.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from feedmesh.options.v1 import options_pb2
from runtime import wire

ToJson = Callable[[Any], Any]
"""Takes a message, gives what orjson can write."""

TIMESTAMP = "google.protobuf.Timestamp"
SECONDS = tuple(f"{second:02d}" for second in range(60))
KNOWN = 2**17
"""Listed messages of one type whose JSON is kept."""
MAX_KNOWN_BYTES = 2**10
"""Of a message whose JSON is kept: all of one type take some 300 MB at the most, and 100 MB mostly."""
_compiled: dict[str, ToJson] = {}


class Encoder:
    """Encodes one RPC's response: `response_body` names the field that stands for the whole, "" for the whole."""

    def __init__(self, response: Descriptor, response_body: str = "") -> None:
        self._field = response_body
        body = response.fields_by_name[response_body].message_type if response_body else response
        if body is None:
            raise TypeError(f"{response.full_name}.{response_body}: a response body must be a message")
        self.listed = [] if response_body else listed(response)
        """The types of messages that the response holds lists of: it takes their bytes (`wire.closed`)."""
        self.parse: Callable[[bytes], Any] = wire.closed(response, self.listed).FromString
        """From bytes to the response as it takes it."""
        self._to_json = assembled(response, self.listed) if self.listed else compiled(body)
        self.headers = {field.name: header_of(field) for field in response.fields if header_of(field)}
        """Field name to the name of the header that carries it."""

    def __call__(self, response: Message) -> bytes:
        """The JSON of a response."""
        return orjson.dumps(self._to_json(getattr(response, self._field) if self._field else response))

    def header_values(self, response: Message) -> list[tuple[bytes, bytes]]:
        """The headers of a response; a repeated field is joined by ", ", an empty one sends none."""
        sent = []
        for field, header in self.headers.items():
            value = getattr(response, field)
            if value and (text := value if isinstance(value, str) else ", ".join(value)):
                # Names of parts, from a service: whatever else it were must not break the header.
                sent.append((header.lower().encode(), re.sub(r"[^\x20-\x7e]", "?", text).encode()))
        return sent


def compiled(message: Descriptor) -> ToJson:
    """The function that encodes messages of this type. Raises TypeError for a type that has no JSON form here."""
    if message.full_name not in _compiled:
        names: dict[str, Any] = {"_timestamp": timestamp}
        pending, done = [message], dict[str, Descriptor]()
        source = []
        while pending:
            current = pending.pop()
            if current.full_name not in done and current.full_name != TIMESTAMP:
                done[current.full_name] = current
                source.append(definition(current, names))
                pending += [field.message_type for field in body_fields(current) if field.message_type]
        exec("\n".join(source), names)  # noqa: S102 - made of descriptors alone, nothing comes from outside
        _compiled.update({name: names[function(each)] for name, each in done.items()})
    return _compiled[message.full_name]


def assembled(response: Descriptor, leaves: list[Descriptor]) -> ToJson:
    """The function that encodes a response whose lists hold the bytes of messages (`wire.closed`)."""
    names: dict[str, Any] = {"_timestamp": timestamp}
    for field in body_fields(response):
        if field.message_type is not None and field.message_type.full_name != TIMESTAMP:
            closed = field.message_type in leaves
            names[function(field.message_type)] = (
                Known(field.message_type).__getitem__ if closed else compiled(field.message_type)
            )
    exec(definition(response, names), names)  # noqa: S102 - as above
    to_json: ToJson = names[function(response)]
    return to_json


def listed(response: Descriptor) -> list[Descriptor]:
    """The types of messages that a response holds lists of."""
    types = [field.message_type for field in body_fields(response) if field.is_repeated]
    return [each for each in types if each is not None and not each.file.package.startswith("google.")]


class Known(dict[bytes, orjson.Fragment]):
    """JSON by a message's bytes. What was not asked for while half of `KNOWN` others came is forgotten.

    A dict, because a look into it runs no Python where the bytes are known.
    """

    def __init__(self, message: Descriptor) -> None:
        super().__init__()
        self._parse: Any = GetMessageClass(message).FromString
        self._to_json = compiled(message)
        self._before: dict[bytes, orjson.Fragment] = {}

    def __missing__(self, content: bytes) -> orjson.Fragment:
        json = self._before.get(content) or orjson.Fragment(orjson.dumps(self._to_json(self._parse(content))))
        if len(content) <= MAX_KNOWN_BYTES:
            if len(self) >= KNOWN // 2:
                self._before = self.copy()
                self.clear()
            self[content] = json
        return json


def definition(message: Descriptor, names: dict[str, Any]) -> str:
    """The source of a message's function; tables that it needs are put into `names`."""
    chosen = choice(message)
    items = [f"{field.name!r}: {expression(field, names)}" for field in body_fields(message) if field not in chosen]
    if chosen:
        # One at the most is set: then that is the one added to what is always there.
        of_each = [f"{{{field.name!r}: {converted(field, member(field), names)}}}" for field in chosen]
        tests = [f"{one} if m.HasField({field.name!r})" for one, field in zip(of_each, chosen, strict=True)]
        items.append(f"**({' else '.join([*tests, '{}'])})")
    return f"def {function(message)}(m): return {{{', '.join(items)}}}"


def body_fields(message: Descriptor) -> Iterator[FieldDescriptor]:
    """The fields that are part of the JSON."""
    return (field for field in message.fields if not header_of(field))


def choice(message: Descriptor) -> list[FieldDescriptor]:
    """The members of a message's `oneof`, in the order of the contract; none without. Raises TypeError for two.

    `optional` fields are no choice, though each is a oneof of its own to protobuf.
    """
    of_proto = descriptor_pb2.DescriptorProto()
    message.CopyToProto(of_proto)
    optional = {field.name for field in of_proto.field if field.proto3_optional}
    chosen = [field for field in body_fields(message) if field.containing_oneof and field.name not in optional]
    if len({field.containing_oneof.name for field in chosen if field.containing_oneof}) > 1:
        raise TypeError(f"{message.full_name}: more than one oneof has no JSON form here")
    return chosen


def member(field: FieldDescriptor) -> str:
    """The Python expression for a field's value in the message `m`."""
    return f"getattr(m, {field.name!r})" if keyword.iskeyword(field.name) else f"m.{field.name}"


def expression(field: FieldDescriptor, names: dict[str, Any]) -> str:
    """The Python expression for one field of the message `m`; tables that it needs are put into `names`."""
    value = member(field)
    if field.type == field.TYPE_BYTES or (field.message_type and field.message_type.GetOptions().map_entry):
        raise TypeError(f"{field.full_name}: neither bytes nor maps have a JSON form here")
    if field.is_repeated:
        one = converted(field, "x", names)
        # map() calls the function without a frame in between, which shows where most lists are empty or short.
        mapped = (
            f"list(map({one.removesuffix('(x)')}, {value}))" if one.endswith("(x)") else f"[{one} for x in {value}]"
        )
        return f"list({value})" if one == "x" else mapped
    single = converted(field, value, names)
    return f"{single} if m.HasField({field.name!r}) else None" if field.has_presence else single


def converted(field: FieldDescriptor, value: str, names: dict[str, Any]) -> str:
    """The expression that converts one value of the field."""
    if field.message_type is not None:
        if field.message_type.full_name == TIMESTAMP:
            return f"_timestamp({value})"
        if field.message_type.file.package.startswith("google."):
            raise TypeError(f"{field.full_name}: {field.message_type.full_name} has no JSON form here")
        return f"{function(field.message_type)}({value})"
    if field.enum_type is not None:
        table = "_" + field.enum_type.full_name.replace(".", "_")
        names[table] = {number: name for name, number in enum_names(field.enum_type).items()}
        # A number that this build does not know yet goes out as it is, as in ProtoJSON.
        return f"{table}.get({value}, {value})"
    return value


def function(message: Descriptor) -> str:
    """The name of a message's function in the generated source."""
    return "_encode_" + message.full_name.replace(".", "_")


def enum_names(enum: EnumDescriptor) -> dict[str, int]:
    """JSON name to number: FOLLOW_STATUS_NOT_FOLLOWING of FollowStatus is `not_following`."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
    return {value.name.removeprefix(prefix).lower(): value.number for value in enum.values}


def header_of(field: FieldDescriptor) -> str:
    """The name of the HTTP header that carries a response field; "" for a field of the body."""
    options: Any = field.GetOptions()
    return str(options.Extensions[options_pb2.header])


def timestamp(value: Timestamp) -> str:
    """RFC 3339 in UTC with no, three or six digits of a second, as few as tell it; nanoseconds are cut off."""
    minutes, second = divmod(value.seconds, 60)
    millis, micros = divmod(value.nanos // 1000, 1000)
    text = minute(minutes) + SECONDS[second]
    if micros:
        return f"{text}.{millis:03d}{micros:03d}Z"
    return f"{text}.{millis:03d}Z" if millis else text + "Z"


@lru_cache(maxsize=2**14)
def minute(minutes: int) -> str:
    """The date and minute so many minutes after 1970, as in `2026-01-15T09:30:`. Kept, as most reads are of late."""
    return datetime.fromtimestamp(minutes * 60, UTC).isoformat()[:17]
