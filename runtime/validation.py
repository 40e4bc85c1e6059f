"""The rules that the contracts carry (`buf.validate`), applied to a message. No rule lives in code."""

from __future__ import annotations

import protovalidate
from google.protobuf.message import Message

from runtime.errors import Violation


def violations(message: Message) -> tuple[Violation, ...]:
    """What is wrong with a message, field by field; () when nothing is.

    A rule about a whole message names its field by its id: `content.empty` is about `content`.
    """
    return tuple(
        Violation(path(violation) or str(violation.proto.rule_id).split(".")[0], str(violation.proto.message))
        for violation in protovalidate.collect_violations(message)
    )


def path(violation: protovalidate.Violation) -> str:
    """The field's path as in `items[0].user_id`; "" for a rule about the whole message."""
    names = []
    for element in violation.proto.field.elements if violation.proto.field else ():
        subscript = element.subscript
        names.append(element.field_name + (f"[{subscript.value}]" if subscript is not None else ""))
    return ".".join(names)
