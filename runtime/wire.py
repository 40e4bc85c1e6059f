"""Messages that are passed on unread: classes that read and write a contract's bytes, but leave parts of it closed.

On the wire an embedded message is what a `bytes` field is: its length and its bytes. So whoever only hands messages on,
or knows the answer to their bytes, need not parse and serialize them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass


def closed(message: Descriptor, leaves: Collection[Descriptor]) -> Any:
    """A class for a message's bytes, in which every field of the type of a leaf holds the leaf's bytes.

    Field names are the contract's; enums are their numbers. What a leaf's bytes hold is not checked. Without leaves it
    is the message's own class.
    """
    if not leaves:
        return GetMessageClass(message)
    closed_names = {leaf.full_name for leaf in leaves}
    file = descriptor_pb2.FileDescriptorProto(name="closed.proto", package="closed", syntax="proto3")
    pending, done = [message], set[str]()
    while pending:
        current = pending.pop()
        if current.full_name in done:
            continue
        done.add(current.full_name)
        copied = file.message_type.add()
        current.CopyToProto(copied)
        copied.name = flat(current)
        for part in ("nested_type", "enum_type", "options", "reserved_range", "reserved_name"):
            copied.ClearField(part)
        for field, original in zip(copied.field, current.fields, strict=True):
            field.ClearField("options")
            if original.enum_type is not None:
                field.type = descriptor_pb2.FieldDescriptorProto.TYPE_INT32
                field.ClearField("type_name")
            elif original.message_type is not None and original.message_type.full_name in closed_names:
                field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
                field.ClearField("type_name")
            elif original.message_type is not None:
                field.type_name = f".closed.{flat(original.message_type)}"
                pending.append(original.message_type)
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"closed.{flat(message)}"))


def listed(content: bytes) -> bytes:
    """A message's bytes as an element of a list that is field 1 of another: what stands there for it on the wire."""
    length = len(content)
    if length < 1 << 7:
        return b"\n%c%b" % (length, content)
    head = bytearray(b"\n")
    while length >= 1 << 7:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + content


def flat(message: Descriptor) -> str:
    """A message's full name as one word."""
    return message.full_name.replace(".", "_")
