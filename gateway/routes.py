"""The route table, read from the contracts: each RPC's `google.api.http`. A new RPC needs no code here.

Every RPC has a route or is marked `internal`; `of_contracts` refuses to start a gateway over one that has neither.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote_to_bytes

import grpc
from google.api import annotations_pb2
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from feedmesh.graph.v1 import graph_pb2
from feedmesh.options.v1 import options_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.session.v1 import session_pb2
from feedmesh.timeline.v1 import timeline_pb2
from gateway.encode import Encoder
from gateway.limits import CLASSES, READ, WRITE
from gateway.transcode import Transcoder
from runtime import coalesce
from runtime.paging import MAX_BATCH_POSTS, most_posts

CONTRACTS: Mapping[str, FileDescriptor] = {
    "graph": graph_pb2.DESCRIPTOR,
    "post": post_pb2.DESCRIPTOR,
    "ranking": ranking_pb2.DESCRIPTOR,
    "session": session_pb2.DESCRIPTOR,
    "timeline": timeline_pb2.DESCRIPTOR,
}
"""Each service's contract, by the name that settings call it."""
Call = Callable[[Message], Awaitable[Message]]
"""A unary call to a service, with what surrounds every call (runtime/client.py)."""
Stream = Callable[[Message], AsyncGenerator[Message, None]]
"""A call that streams its answer, likewise."""
LINES = "application/x-ndjson"
"""What an answer that is streamed is: each message an object of JSON on a line of its own."""
VERBS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Route:
    """One RPC at the edge."""

    service: str
    """Key of CONTRACTS."""
    rpc: MethodDescriptor
    method: str
    template: str
    """As in `/posts/{post_id}`; the label of metrics."""
    status: int
    limit_class: str
    """Of gateway/limits.py."""
    response_body: str
    transcoder: Transcoder
    encoder: Encoder

    @cached_property
    def streams(self) -> bool:
        """Whether the answer is a stream."""
        return self.rpc.server_streaming

    def call(self, channel: grpc.aio.Channel) -> Call | Stream:
        """The RPC as a callable over a channel to its service: a Stream where the answer is one.

        Where its contract names a batch of it, calls that come at once go together. What the answer lists stays closed
        (runtime/wire.py).
        """
        rpc = self.rpc
        if many := coalesce.batch_of(rpc):
            leaves = self.encoder.listed
            if not self.is_read:
                return coalesce.rpc(channel, rpc, many, leaves=leaves, in_flight=coalesce.WRITES)
            return coalesce.rpc(channel, rpc, many, leaves=leaves, max_weight=MAX_BATCH_POSTS, weigh=most_posts)
        connected: Any = channel.unary_stream if self.streams else channel.unary_unary
        call: Call | Stream = connected(
            f"/{rpc.containing_service.full_name}/{rpc.name}",
            request_serializer=GetMessageClass(rpc.input_type).SerializeToString,
            response_deserializer=self.encoder.parse,
        )
        return call

    @cached_property
    def is_read(self) -> bool:
        """Whether it changes nothing, so that a call nobody waits for may be cancelled."""
        return self.method == "GET"

    @cached_property
    def is_cacheable(self) -> bool:
        """Whether the answer has an ETag, and shared caches may keep what strangers see."""
        return bool(option(self.rpc, options_pb2.cacheable))

    @property
    def segments(self) -> tuple[str, ...]:
        """The template between its slashes."""
        return segments(self.template)

    @property
    def path_names(self) -> tuple[str, ...]:
        """The fields that stand in the path."""
        return tuple(segment[1:-1] for segment in self.segments if segment.startswith("{"))


def of_contracts(contracts: Mapping[str, FileDescriptor] = CONTRACTS) -> tuple[Route, ...]:
    """The routes of all RPCs. Raises TypeError for an RPC that HTTP cannot carry as its contract says."""
    return tuple(
        route(name, rpc)
        for name, contract in contracts.items()
        for service in contract.services_by_name.values()
        for rpc in service.methods
        if not option(rpc, options_pb2.internal)
    )


def route(service: str, rpc: MethodDescriptor) -> Route:
    """The route of one RPC."""
    rule = option(rpc, annotations_pb2.http)
    verb = rule.WhichOneof("pattern")
    if verb not in VERBS or rule.body not in ("", "*") or rule.additional_bindings:
        raise TypeError(f'{rpc.full_name}: needs one google.api.http verb, with body "*" or none, or to be internal')
    if option(rpc, options_pb2.cacheable) and (verb != "get" or rpc.server_streaming):
        raise TypeError(f"{rpc.full_name}: only a read that answers as a whole is cacheable")
    if rpc.client_streaming:
        raise TypeError(f"{rpc.full_name}: HTTP carries no stream of requests")
    encoder = Encoder(rpc.output_type, rule.response_body)
    if rpc.server_streaming and (verb != "get" or rule.response_body or encoder.headers):
        raise TypeError(f"{rpc.full_name}: only a read may stream its answer, as whole messages without headers")
    template = getattr(rule, verb)
    names = tuple(segment[1:-1] for segment in segments(template) if segment.startswith("{"))
    limit_class = option(rpc, options_pb2.limit_class) or (READ if verb == "get" else WRITE)
    if limit_class not in CLASSES:
        raise TypeError(f"{rpc.full_name}: there is no class of limits {limit_class!r}")
    return Route(
        service=service,
        rpc=rpc,
        method=verb.upper(),
        template=template,
        status=option(rpc, options_pb2.success_status) or 200,
        limit_class=limit_class,
        response_body=rule.response_body,
        transcoder=Transcoder(rpc.input_type, names, has_body=rule.body == "*"),
        encoder=encoder,
    )


def option(rpc: MethodDescriptor, extension: Any) -> Any:
    """The value of an option that our contracts or Google's add to an RPC."""
    options: Any = rpc.GetOptions()
    return options.Extensions[extension]


def segments(path: str) -> tuple[str, ...]:
    """What stands between a path's slashes; `/` is one empty segment."""
    return tuple(path.split("/")[1:])


class Table:
    """Finds what a path leads to. Generic over what: `entries` are (template, method, target)."""

    def __init__(self, entries: Iterable[tuple[str, str, Any]]) -> None:
        self._fixed: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {}
        self._open: dict[int, list[tuple[tuple[str, ...], str, dict[str, Any]]]] = {}
        for template, method, target in entries:
            methods = self._methods(template)
            if method in methods:
                raise TypeError(f"{method} {template} is there twice")
            methods[method] = target

    def _methods(self, template: str) -> dict[str, Any]:
        parts = segments(template)
        if "{" not in template:
            return self._fixed.setdefault(parts, (template, {}))[1]
        same_length = self._open.setdefault(len(parts), [])
        for other, name, methods in same_length:
            if name == template:
                return methods
            if all(a == b or (a.startswith("{") and b.startswith("{")) for a, b in zip(parts, other, strict=True)):
                raise TypeError(f"{template} and {name} are one path")
        same_length.append((parts, template, {}))
        return same_length[-1][2]

    def find(self, raw_path: bytes) -> tuple[str, dict[str, Any], dict[str, str]] | None:
        """Template, targets by method and path parameters; None for no such path. The path is as it came, encoded."""
        try:
            if b"%" in raw_path:
                # Decoded segment by segment: an encoded slash is part of its segment.
                parts = tuple(unquote_to_bytes(part).decode() for part in raw_path.split(b"/")[1:])
            else:
                parts = segments(raw_path.decode())
        except UnicodeDecodeError:
            return None
        if found := self._fixed.get(parts):
            return *found, {}
        for pattern, template, methods in self._open.get(len(parts), ()):
            values = match(pattern, parts)
            if values is not None:
                return template, methods, values
        return None


def match(pattern: tuple[str, ...], parts: tuple[str, ...]) -> dict[str, str] | None:
    """The parameters' values when the segments fit the pattern of as many; a parameter is never empty."""
    values = {}
    for want, have in zip(pattern, parts, strict=True):
        if want.startswith("{") and have:
            values[want[1:-1]] = have
        elif want != have:
            return None
    return values


def allow(methods: Iterable[str]) -> bytes:
    """The value of `Allow` for a path with these methods."""
    own = set(methods)
    return ", ".join(sorted(own | {"OPTIONS"} | ({"HEAD"} if "GET" in own else set()))).encode()
