"""JSON, query, path and headers to a request message: strict, every fault named, compiled per RPC at start.

Types are checked here, because only here they can be wrong; the bounds of values are the contract's own rules
(runtime/validation.py), applied before the first hop so that both kinds of fault are named at once.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from feedmesh.buf.validate import validate_pb2
from feedmesh.options.v1 import options_pb2
from gateway.encode import enum_names
from runtime.errors import MAX_FIELDS, Error, Forbidden, InvalidArgument, Unauthenticated, Violation
from runtime.validation import violations

Wrong = list[Violation]
Convert = Callable[[Any, str, Wrong], Any]
"""Takes a JSON value, the path to name it by and the faults so far; gives what the message takes, None for a fault."""

KEPT_QUERIES, KEPT_QUERY_BYTES = 2**14, 64
"""Short queries whose messages are kept, if these are made of the query alone: clients ask for the same over and over.
10 MB at the most."""
MAX_NAME = 100
"""Characters of an unknown name that an answer repeats."""
MAX_DEPTH = 32
"""How deep objects and arrays of a body may be nested."""
INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
NUMBER = re.compile(r"-?[0-9]{1,32}(\.[0-9]{1,32})?([eE][+-]?[0-9]{1,3})?")
VISIBLE_ASCII = re.compile(rb"[\x21-\x7e]{1,255}")
MESSAGE_RULES: Any = vars(validate_pb2)["message"]

INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
"""The least and the greatest value of each integer type."""


class Transcoder:
    """Builds one RPC's request message from what HTTP carries.

    `path_names` are the fields that stand in the path; `has_body` says whether the other fields come from a JSON body
    or from the query. A field with the `request_header` option comes from that header only; one with `claim` from none
    of these (gateway/access.py fills it). Of one with `actor` see `acting`.
    """

    def __init__(self, request: Descriptor, path_names: tuple[str, ...], *, has_body: bool) -> None:
        self.has_body = has_body
        self._class = GetMessageClass(request)
        self.headers = {field.name: header_of(field) for field in request.fields if header_of(field)}
        """Field name to the name of the request header that fills it."""
        self.claims = {field.name: claim_of(field) for field in request.fields if claim_of(field)}
        """Field name to the claim of a verified token that fills it."""
        self.actor = next((field.name for field in request.fields if is_actor(field)), "")
        """The field that says who acts or looks; "" where nobody does."""
        known: dict[str, Record] = {}
        elsewhere = {*path_names, *self.headers, *self.claims}
        free = [field for field in request.fields if field.name not in elsewhere]
        self._path = {name: from_text(request.fields_by_name[name]) for name in path_names}
        self._body = {field.name: of_json(field, known) for field in free} if has_body else {}
        self._query = {} if has_body else {field.name: from_text(field) for field in free}
        self._missing = set(missing(self._class()))
        self.required = {field for field, _ in self._missing}
        """Fields that the contract's rules do not let be absent, each on its own."""
        self.needs_actor = self.actor in self.required
        """Whether this is not for strangers."""
        self._query_alone = not (has_body or path_names or self.headers)
        self._again = lru_cache(KEPT_QUERIES)(lambda query, acting: self._read({}, query, [], b"", acting))

    def __call__(
        self,
        path: Mapping[str, str],
        query: bytes,
        headers: list[tuple[bytes, bytes]],
        body: bytes = b"",
        acting: int | None = None,
    ) -> Message:
        """The request message, which is not to be changed unless it has `claims`.

        `acting` is who has signed in, 0 for nobody, None where whoever is named is believed. The field that says who
        acts or looks may be left out then, and names nobody else.

        Raises Error (MALFORMED_JSON, or INVALID_ARGUMENT with every fault), Unauthenticated, Forbidden
        (ACTING_AS_ANOTHER).
        """
        if self._query_alone and len(query) <= KEPT_QUERY_BYTES:
            return self._again(query, acting)
        return self._read(path, query, headers, body, acting)

    def _read(
        self,
        path: Mapping[str, str],
        query: bytes,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        acting: int | None,
    ) -> Message:
        wrong: Wrong = []
        given: dict[str, Any] = {}
        if self.has_body:
            read_object(parse(body), self._body, "", given, wrong)
        if query:
            self._read_query(query, given, wrong)
        for name, convert in self._path.items():
            read(convert, path[name], name, given, wrong)
        for field, header in self.headers.items():
            read_header(headers, header, field, given, wrong)
        if acting is not None and self.actor:
            self._act(given, acting)
        message = self._class(**given)
        broken = violations(message)
        if not wrong and not broken:
            return message
        reported = {field for field, _ in wrong}
        for violation in broken:
            field = self.headers.get(violation.field, violation.field)
            if field not in reported:
                absent = violation.field not in given and violation in self._missing
                wrong.append(Violation(field, "is required" if absent else violation.detail))
        raise InvalidArgument(*wrong)

    def _act(self, given: dict[str, Any], acting: int) -> None:
        """Puts who has signed in into `given`. Raises Unauthenticated, Forbidden for who names somebody else."""
        named = given.setdefault(self.actor, acting) if acting else given.get(self.actor, 0)
        if not acting and (named or self.needs_actor):
            raise unauthenticated()
        if named != acting:
            raise Forbidden("ACTING_AS_ANOTHER", f"{self.actor}: you have signed in as {acting}")

    def _read_query(self, query: bytes, given: dict[str, Any], wrong: Wrong) -> None:
        seen = set()
        for pair in query.split(b"&"):
            if len(wrong) >= MAX_FIELDS:
                return
            if not pair:
                continue
            before, _, after = pair.partition(b"=")
            name, value = decoded(before), decoded(after)
            if name is None or value is None:
                wrong.append(Violation(name[:MAX_NAME] if name else "query", "is not UTF-8"))
            elif name in seen:
                wrong.append(Violation(name[:MAX_NAME], "is given more than once"))
            elif (convert := self._query.get(name)) is None:
                wrong.append(Violation(name[:MAX_NAME], "unknown query parameter"))
            else:
                read(convert, value, name, given, wrong)
            if name is not None:
                seen.add(name)


def unauthenticated() -> Unauthenticated:
    """Nobody has signed in."""
    return Unauthenticated("UNAUTHENTICATED", "this takes somebody who has signed in")


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is, as I-JSON (RFC 7493) has it: in UTF-8, each name once.

    Raises Error (MALFORMED_JSON), also for NaN, lone surrogates and what is nested deeper than MAX_DEPTH, and
    InvalidArgument for a name that is given twice.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Error("MALFORMED_JSON", f"the body is not JSON: {error}" if body else "the body is empty") from None
    if type(value) is not dict:
        raise Error("MALFORMED_JSON", "the body must be a JSON object")
    # Each member has a colon. Where there are more of them than names that were kept, strings hold the others, or a
    # name came twice: only then it is worth looking, which takes several times as long.
    if names_in(value, 1) != body.count(b":"):
        STRICT.decode(body.decode())
    return value


def names_in(value: Any, depth: int) -> int:
    """How many names the objects of a JSON value have in all. Raises Error (MALFORMED_JSON) deeper than MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise Error("MALFORMED_JSON", f"the body is nested deeper than {MAX_DEPTH}")
    is_object = type(value) is dict
    count = len(value) if is_object else 0
    for item in value.values() if is_object else value:
        if type(item) is dict or type(item) is list:
            count += names_in(item, depth + 1)
    return count


def named_once(pairs: list[tuple[str, Any]]) -> None:
    """Raises InvalidArgument when an object has a name twice."""
    if len(dict(pairs)) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = (Violation(name[:MAX_NAME], "is given more than once") for name, count in counts.items() if count > 1)
        raise InvalidArgument(*islice(twice, MAX_FIELDS))


# Numbers are not made: of thousands of digits, Python makes none.
STRICT = json.JSONDecoder(object_pairs_hook=named_once, parse_int=str, parse_float=str)


def decoded(text: bytes) -> str | None:
    """A query's name or value without its percent-encoding; None when it is not UTF-8."""
    if b"%" in text or b"+" in text:
        text = unquote_to_bytes(text.replace(b"+", b" "))
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def read(convert: Convert, value: Any, name: str, given: dict[str, Any], wrong: Wrong) -> None:
    """Puts the converted value into `given` under its name, or a fault into `wrong`."""
    if (converted := convert(value, name, wrong)) is not None:
        given[name] = converted


def read_header(
    headers: list[tuple[bytes, bytes]], header: str, field: str, given: dict[str, Any], wrong: Wrong
) -> None:
    """Puts a request header into the field that it fills."""
    wire = header.lower().encode()
    values = [value for name, value in headers if name == wire]
    if len(values) > 1:
        wrong.append(Violation(header, "is given more than once"))
    elif values and not VISIBLE_ASCII.fullmatch(values[0]):
        wrong.append(Violation(header, "must be 1 to 255 visible ASCII characters"))
    elif values:
        given[field] = values[0].decode()


class Record:
    """Converts a JSON object to a message. Types may contain themselves, so `fields` is filled once it is known."""

    def __init__(self, message: Descriptor) -> None:
        self.fields: dict[str, Convert] = {}
        self._class = GetMessageClass(message)

    def __call__(self, value: Any, name: str, wrong: Wrong) -> Any:
        """The message; see Convert."""
        if type(value) is not dict:
            wrong.append(Violation(name, "must be an object"))
            return None
        given: dict[str, Any] = {}
        read_object(value, self.fields, name + ".", given, wrong)
        return self._class(**given)


def read_object(
    value: dict[str, Any], fields: Mapping[str, Convert], prefix: str, given: dict[str, Any], wrong: Wrong
) -> None:
    """Puts the converted items of a JSON object into `given`. null counts as absent; an unknown name is a fault."""
    for key, item in value.items():
        convert = fields.get(key)
        if convert is None:
            wrong.append(Violation(prefix + key[:MAX_NAME], "unknown field"))
        elif item is not None and (converted := convert(item, prefix + key, wrong)) is not None:
            given[key] = converted
        if len(wrong) >= MAX_FIELDS:
            return


def of_json(field: FieldDescriptor, known: dict[str, Record]) -> Convert:
    """The conversion of a field's JSON value. Raises TypeError for a type that has no JSON form here."""
    if field.message_type is None:
        one: Convert = scalar(field)
    else:
        message = field.message_type
        if message.GetOptions().map_entry or message.file.package.startswith("google."):
            raise TypeError(f"{field.full_name}: {message.full_name} has no JSON form here")
        if message.full_name not in known:
            known[message.full_name] = record = Record(message)
            record.fields.update({each.name: of_json(each, known) for each in message.fields})
        one = known[message.full_name]
    return each_of(one) if field.is_repeated else one


def each_of(one: Convert) -> Convert:
    """The conversion of a JSON array of what `one` converts."""

    def convert(value: Any, name: str, wrong: Wrong) -> Any:
        if type(value) is not list:
            wrong.append(Violation(name, "must be an array"))
            return None
        items = []
        for index, item in enumerate(value):
            items.append(one(item, f"{name}[{index}]", wrong))
            if len(wrong) >= MAX_FIELDS:
                break
        return None if None in items else items

    return convert


def from_text(field: FieldDescriptor) -> Convert:
    """The conversion of a field's text in a path or query. Raises TypeError for a field that is no single scalar."""
    if field.message_type is not None or field.is_repeated:
        raise TypeError(f"{field.full_name}: only a single scalar can stand in a path or query")
    of_value = scalar(field)

    def convert(text: str, name: str, wrong: Wrong) -> Any:
        value: Any = text
        if field.type in INTEGERS and INTEGER.fullmatch(text):
            value = int(text)
        elif field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT) and NUMBER.fullmatch(text):
            value = float(text)
        elif field.type == field.TYPE_BOOL and text in ("true", "false"):
            value = text == "true"
        return of_value(value, name, wrong)

    return convert


def scalar(field: FieldDescriptor) -> Convert:
    """The conversion of one JSON string, number or boolean."""
    if field.type in INTEGERS:
        low, high = INTEGERS[field.type]
        bits = (high - low).bit_length()
        return checked(
            lambda value: value if type(value) is int else None,
            "must be an integer",
            lambda value: low <= value <= high,
            f"is out of the range of {bits}-bit integers",
        )
    if field.enum_type is not None:
        numbers = {name: number for name, number in enum_names(field.enum_type).items() if number}
        return checked(
            lambda value: numbers.get(value) if type(value) is str else None, f"must be one of {', '.join(numbers)}"
        )
    if field.type == field.TYPE_STRING:
        return checked(lambda value: value if type(value) is str else None, "must be a string")
    if field.type == field.TYPE_BOOL:
        return checked(lambda value: value if type(value) is bool else None, "must be true or false")
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return checked(lambda value: float(value) if type(value) in (int, float) else None, "must be a number")
    raise TypeError(f"{field.full_name}: bytes have no JSON form here")


def checked(
    of_type: Callable[[Any], Any],
    type_fault: str,
    in_range: Callable[[Any], bool] = lambda _: True,
    range_fault: str = "",
) -> Convert:
    """A conversion that names its fault: `of_type` gives None for a value of another type."""

    def convert(value: Any, name: str, wrong: Wrong) -> Any:
        converted = of_type(value)
        if converted is None:
            wrong.append(Violation(name, type_fault))
        elif not in_range(converted):
            wrong.append(Violation(name, range_fault))
        else:
            return converted
        return None

    return convert


def missing(empty: Message) -> Iterator[Violation]:
    """What an empty request violates field by field: these fields are required.

    Not the rules about the message as a whole: that it needs one of two fields does not make either required.
    """
    options: Any = empty.DESCRIPTOR.GetOptions()
    whole = {rule.message for rule in options.Extensions[MESSAGE_RULES].cel}
    return (violation for violation in violations(empty) if violation.detail not in whole)


def header_of(field: FieldDescriptor) -> str:
    """The name of the HTTP header that fills a request field; "" for a field of the path, query or body."""
    options: Any = field.GetOptions()
    return str(options.Extensions[options_pb2.request_header])


def claim_of(field: FieldDescriptor) -> str:
    """The claim that fills a request field; "" for a field that a client fills."""
    options: Any = field.GetOptions()
    return str(options.Extensions[options_pb2.claim])


def is_actor(field: FieldDescriptor) -> bool:
    """Whether a request field says who acts or looks."""
    options: Any = field.GetOptions()
    return bool(options.Extensions[options_pb2.actor])
