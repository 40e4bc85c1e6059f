"""Servers, interceptors and channels of the runtime, over real gRPC: what every service can rely on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from feedmesh.graph.v1 import graph_pb2 as pb
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub, add_GraphServiceServicer_to_server
from launch.settings import free_port
from runtime import callers, client, config, context, errors, logs, mesh, process, server
from runtime.mesh import DEFAULT_DEADLINE_S, MAX_STREAM_S, SHAVE_S
from tests.contract.expect import refusal
from tests.fakes.graph import FakeGraph
from tests.fakes.poll import until
from tests.fakes.serving import CALLER, MESH_SECRET, Served, serving

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

ROOT = Path(__file__).parents[2]
SERVICE = pb.DESCRIPTOR.services_by_name["GraphService"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SOMEBODY = pb.GetUserRequest(user_id=1)
ROUNDING_S = 0.002
"""gRPC rounds the timeouts that it sends to milliseconds, upwards."""
LABELS = {"grpc_type": "unary", "grpc_service": SERVICE.full_name}


@dataclass
class Graph(FakeGraph):
    """A graph service whose GetUser and CreateUser do what a test tells, and that notes what they were called with."""

    act: Callable[[], Awaitable[None]]
    calls: int = 0
    request_ids: list[str] = field(default_factory=list)
    remaining_s: list[float] = field(default_factory=list)
    cancelled: int = 0
    name_length: int = 1
    yielded: int = 0
    closed: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    async def note(self) -> None:
        self.calls += 1
        self.request_ids.append(context.request_id.get())
        self.remaining_s.append(context.remaining_s() or 0)
        try:
            await self.act()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def GetUser(self, request: pb.GetUserRequest, context: Any) -> pb.GetUserResponse:
        await self.note()
        return pb.GetUserResponse(user=pb.User(user_id=request.user_id))

    async def CreateUser(self, request: pb.CreateUserRequest, context: Any) -> pb.CreateUserResponse:
        await self.note()
        return pb.CreateUserResponse()

    async def ExportUser(
        self, request: pb.ExportUserRequest, context: Any
    ) -> AsyncGenerator[pb.ExportUserResponse, None]:
        """As many ties as the user's id says, `act` before each of them and before the end."""
        await self.note()
        try:
            for number in range(request.user_id):
                yield pb.ExportUserResponse(tie=pb.Tie(user_id=number, username="x" * self.name_length))
                self.yielded += 1
                await self.act()
        finally:
            self.closed += 1


async def nothing() -> None:
    """What a service does that answers at once."""


@dataclass(frozen=True)
class Running:
    """A graph that is served, and a client of it."""

    served: Served
    channel: client.Channel
    stub: GraphServiceAsyncStub


@asynccontextmanager
async def running(graph: Graph, max_concurrent_rpcs: int = 1024, notice_s: float = 0) -> AsyncIterator[Running]:
    async with (
        serving(
            lambda s: add_GraphServiceServicer_to_server(graph, s),
            services=(SERVICE,),
            max_concurrent_rpcs=max_concurrent_rpcs,
            notice_s=notice_s,
        ) as served,
        client.connect(served.target, CALLER, SERVICE) as channel,
    ):
        yield Running(served, channel, GraphServiceStub(channel))


@pytest.fixture(autouse=True)
def outside_of_a_request() -> None:
    """Nothing is left over from another test."""
    context.request_id.set("")
    context.deadline.set(None)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {**LABELS, **labels}) or 0.0


async def health_of(target: str, service: str = "") -> Any:
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status


# Who calls.


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        ((callers.KEY, ""),),
        ((callers.KEY, "test"),),
        callers.caller("test", "the secret of another mesh, as long").metadata,
    ],
    ids=["nobody", "empty", "without proof", "of another mesh"],
)
async def test_whoever_is_none_of_the_mesh_is_refused_whatever_they_call(
    metadata: Any, caplog: pytest.LogCaptureFixture
) -> None:
    graph = Graph(nothing)
    async with running(graph) as here, grpc.aio.insecure_channel(here.served.target) as bare:
        stub: Any = GraphServiceStub(bare)
        for call in (
            stub.GetUser(SOMEBODY, metadata=metadata),
            stub.GetUser(pb.GetUserRequest(), metadata=metadata),  # before the request is looked at
            stub.ExportUser(pb.ExportUserRequest(user_id=1), metadata=metadata).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            error = errors.from_rpc(caught.value, "")
            assert (type(error), error.reason) == (errors.Unauthenticated, "UNKNOWN_CALLER")
        assert await health_of(here.served.target) == SERVING
    assert graph.calls == 0
    assert "/feedmesh.graph.v1.GraphService/GetUser: unknown caller" in caplog.text


async def test_a_service_knows_who_calls() -> None:
    known: list[str] = []

    async def note() -> None:
        known.append(context.caller.get())

    async with running(Graph(note)) as here:
        await here.stub.GetUser(SOMEBODY)
        [record async for record in here.stub.ExportUser(pb.ExportUserRequest(user_id=1))]
    assert set(known) == {"test"}
    assert context.caller.get() == ""


# Deadlines and request ids.


async def test_a_deadline_is_carried_and_shaved_at_each_hop() -> None:
    back = Graph(nothing)
    async with running(back) as behind:
        left_before: list[float] = []

        async def ask_behind() -> None:
            left_before.append(context.remaining_s() or 0)
            await behind.stub.GetUser(SOMEBODY)

        front = Graph(ask_behind)
        async with running(front) as before:
            await before.stub.GetUser(SOMEBODY, timeout=0.9)
    assert 0 < front.remaining_s[0] <= 0.9 + ROUNDING_S
    assert 0 < back.remaining_s[0] <= left_before[0] - SHAVE_S + ROUNDING_S


async def test_a_longer_timeout_does_not_outlive_the_request_that_is_served() -> None:
    graph = Graph(nothing)
    async with running(graph) as here:
        context.deadline.set(time.monotonic() + 0.5)
        await here.stub.GetUser(SOMEBODY, timeout=60)
        context.deadline.set(time.monotonic() + 60)
        await here.stub.GetUser(SOMEBODY, timeout=0.5)
    assert max(graph.remaining_s) <= 0.5 + ROUNDING_S


async def test_a_call_without_a_deadline_gets_one() -> None:
    graph = Graph(nothing)
    async with running(graph) as here:
        await here.stub.GetUser(SOMEBODY)
        async with grpc.aio.insecure_channel(here.served.target) as bare:
            await GraphServiceStub(bare).GetUser(SOMEBODY, metadata=CALLER.metadata)
    for left_s in graph.remaining_s:
        assert 0 < left_s <= DEFAULT_DEADLINE_S + 0.1


async def test_when_the_deadline_has_passed_nothing_is_called() -> None:
    graph = Graph(nothing)
    async with running(graph) as here:
        context.deadline.set(time.monotonic() + SHAVE_S / 2)
        with refusal(errors.Unavailable, "UNAVAILABLE"):
            await here.stub.GetUser(SOMEBODY)
    assert graph.calls == 0


async def test_a_call_that_outlasts_its_deadline_is_unavailable_and_its_handler_ends() -> None:
    graph = Graph(lambda: asyncio.Event().wait())  # type: ignore[arg-type, return-value]
    cancelled = sample("grpc_server_handled_total", grpc_method="GetUser", grpc_code="CANCELLED")
    async with running(graph) as here:
        with refusal(errors.Unavailable, "UNAVAILABLE"):
            await here.stub.GetUser(SOMEBODY, timeout=0.1)
        await until(lambda: graph.cancelled == 1)
    assert sample("grpc_server_handled_total", grpc_method="GetUser", grpc_code="CANCELLED") == cancelled + 1


async def test_a_request_id_is_carried_along_and_made_where_there_is_none() -> None:
    back = Graph(nothing)
    async with running(back) as behind:

        async def ask_behind() -> None:
            await behind.stub.GetUser(SOMEBODY)

        front = Graph(ask_behind)
        async with running(front) as before:
            context.request_id.set("the-callers-own")
            await before.stub.GetUser(SOMEBODY)
            context.request_id.set("")
            await asyncio.gather(*(before.stub.GetUser(SOMEBODY) for _ in range(3)))
    assert front.request_ids[0] == back.request_ids[0] == "the-callers-own"
    assert sorted(front.request_ids) == sorted(back.request_ids)
    assert len(set(front.request_ids)) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", made) for made in front.request_ids[1:])


async def test_log_lines_of_a_request_carry_its_id(caplog: pytest.LogCaptureFixture) -> None:
    async def say_something() -> None:
        logging.getLogger("test").warning("something")

    caplog.handler.addFilter(logs.complete)
    try:
        async with running(Graph(say_something)) as here:
            context.request_id.set("the-callers-own")
            await here.stub.GetUser(SOMEBODY)
    finally:
        caplog.handler.removeFilter(logs.complete)
    [record] = [record for record in caplog.records if record.name == "test"]
    assert getattr(record, "request_id", None) == "the-callers-own"


# Errors.


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgument(errors.Violation("items[0].user_id", "ä is no number")),
        errors.NotFound("USER_NOT_FOUND", "there is no user 1"),
        errors.Conflict("USERNAME_TAKEN", "taken"),
        errors.Refused("FOLLOW_LIMIT", "enough"),
        errors.Forbidden("NOT_OWNER", "someone else's"),
    ],
    ids=lambda error: error.reason,
)
async def test_what_a_handler_raises_arrives_as_it_was(error: errors.Error) -> None:
    async def fail() -> None:
        raise error

    async with running(Graph(fail)) as here:
        with pytest.raises(type(error)) as caught:
            await here.stub.GetUser(SOMEBODY)
    assert (caught.value.reason, caught.value.message, caught.value.fields) == (
        error.reason,
        error.message,
        error.fields,
    )


async def test_an_error_with_the_most_and_longest_fields_still_arrives() -> None:
    async def fail() -> None:
        wrong = "must be greater than 0 and less than or equal to 9007199254740991"
        raise errors.InvalidArgument(*(errors.Violation(f"items[{n}].viewer_id", wrong) for n in range(100, 1_000)))

    async with running(Graph(fail)) as here:
        for _ in range(20):
            with pytest.raises(errors.InvalidArgument) as caught:
                await here.stub.GetUser(SOMEBODY)
            assert len(caught.value.fields) == errors.MAX_FIELDS


async def test_a_defect_is_internal_without_its_text_and_logged_with_it(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("a secret of the inside")

    internal = sample("grpc_server_handled_total", grpc_method="GetUser", grpc_code="INTERNAL")
    async with running(Graph(fail)) as here:
        with refusal(errors.Error, "INTERNAL"):
            await here.stub.GetUser(SOMEBODY)
        async with grpc.aio.insecure_channel(here.served.target) as bare:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await GraphServiceStub(bare).GetUser(SOMEBODY, metadata=CALLER.metadata)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in repr(caught.value)
    assert "secret" not in repr(caught.value.trailing_metadata())
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 2
    assert all(record.exc_info and "a secret of the inside" in str(record.exc_info[1]) for record in records)
    assert sample("grpc_server_handled_total", grpc_method="GetUser", grpc_code="INTERNAL") == internal + 2


async def test_a_request_that_breaks_a_rule_never_reaches_the_service() -> None:
    graph = Graph(nothing)
    async with running(graph) as here:
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "user_id"):
            await here.stub.GetUser(pb.GetUserRequest())
    assert graph.calls == 0


# Availability.


async def test_a_server_that_is_gone_is_unavailable_and_found_again_when_it_is_back() -> None:
    graph = Graph(nothing)
    async with running(graph) as here:
        await here.stub.GetUser(SOMEBODY)
        await here.served.stop()
        for _ in range(3):
            with refusal(errors.Unavailable, "UNAVAILABLE"):
                await here.stub.GetUser(SOMEBODY)
        again = process.Process("again")
        task = asyncio.create_task(
            server.serve(
                again,
                config.ServerSettings(
                    grpc_address=here.served.target, mesh_secret=MESH_SECRET, more_callers=(CALLER.name,)
                ),
                [lambda s: add_GraphServiceServicer_to_server(graph, s)],
                [SERVICE],
            )
        )

        async def answers() -> bool:
            with contextlib.suppress(errors.Unavailable):
                return (await here.stub.GetUser(SOMEBODY)).user.user_id == 1
            return False

        await until(answers)
        again.stopping.set()
        await task


async def test_nobody_there_is_unavailable() -> None:
    async with client.connect("127.0.0.1:1", CALLER, SERVICE) as channel:
        with refusal(errors.Unavailable, "UNAVAILABLE"):
            await GraphServiceStub(channel).GetUser(SOMEBODY)


async def test_one_replica_of_two_that_is_gone_is_not_missed() -> None:
    one, other = Graph(nothing), Graph(nothing)
    async with running(one) as first, running(other) as second:
        target = f"{first.served.target},{second.served.target}"
        async with client.connect(target, CALLER, SERVICE) as channel:
            stub = GraphServiceStub(channel)

            async def both_are_called() -> bool:
                await stub.GetUser(SOMEBODY)
                return bool(one.calls and other.calls)

            await until(both_are_called)
            await first.served.stop()
            for _ in range(20):
                await stub.GetUser(SOMEBODY)


async def test_a_replica_that_always_fails_is_left_out_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> None:
        raise errors.Unavailable("this replica cannot")

    monkeypatch.setattr(mesh, "OUTLIERS", mesh.Outliers(interval_s=0.5, first_ejection_s=2))
    good, bad = Graph(nothing), Graph(fail)
    async with (
        running(good) as first,
        running(bad) as second,
        client.connect(f"{first.served.target},{second.served.target}", CALLER, SERVICE) as channel,
    ):
        stub = GraphServiceStub(channel)
        request = pb.CreateUserRequest(username="ann", email="ann@example.org")  # a write is not tried again

        async def failed_of(calls: int) -> int:
            before = bad.calls
            for _ in range(calls):
                with contextlib.suppress(errors.Unavailable):
                    await stub.CreateUser(request)
            return bad.calls - before

        assert await failed_of(20)
        async with asyncio.timeout(20):
            while await failed_of(20):
                await asyncio.sleep(0.1)
        # It is asked again later, and stays if it is well by then.
        bad.act = nothing
        async with asyncio.timeout(20):
            while not await failed_of(20):
                await asyncio.sleep(0.1)


async def test_of_replicas_that_all_refuse_none_is_left_out_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there is NOT_FOUND at each of them, and whoever asks for it keeps nobody else from the rest."""

    async def absent() -> None:
        raise errors.NotFound("USER_NOT_FOUND", "nobody")

    monkeypatch.setattr(mesh, "OUTLIERS", mesh.Outliers(interval_s=0.5, first_ejection_s=2))
    async with (
        running(Graph(absent)) as first,
        running(Graph(absent)) as second,
        client.connect(f"{first.served.target},{second.served.target}", CALLER, SERVICE) as channel,
    ):
        stub = GraphServiceStub(channel)
        end = asyncio.get_running_loop().time() + 3
        while asyncio.get_running_loop().time() < end:
            with refusal(errors.NotFound, "USER_NOT_FOUND"):
                await stub.GetUser(SOMEBODY)


async def test_a_connection_ends_after_its_time_and_nothing_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that callers ask DNS anew, and new replicas get their share."""
    peers: set[str] = set()

    class Watched(Graph):
        async def GetUser(self, request: pb.GetUserRequest, context: Any) -> pb.GetUserResponse:
            peers.add(context.peer())
            return pb.GetUserResponse(user=pb.User(user_id=request.user_id))

    async def wait() -> None:
        if graph.yielded:
            await finish.wait()

    monkeypatch.setattr(mesh, "CONNECTIONS", mesh.Connections(age_s=0.3))
    finish, graph = asyncio.Event(), Watched(wait)
    async with running(graph) as here:
        stream = export(here)
        await anext(stream)

        async def several_were_made() -> bool:
            await here.stub.GetUser(SOMEBODY)
            return len(peers) >= 4

        await until(several_were_made)
        finish.set()
        assert [record.tie.user_id async for record in stream] == [1, 2]


async def test_a_replica_that_is_stopped_fails_no_write() -> None:
    async with (
        running(Graph(nothing), notice_s=server.NOTICE_S) as first,
        running(Graph(nothing), notice_s=server.NOTICE_S) as second,
        client.connect(f"{first.served.target},{second.served.target}", CALLER, SERVICE) as channel,
    ):
        stub = GraphServiceStub(channel)
        written, stopped = 0, asyncio.Event()

        async def write() -> None:
            nonlocal written
            while not stopped.is_set():
                await stub.CreateUser(pb.CreateUserRequest(username="ann", email="ann@example.org"))
                written += 1

        async def many_written() -> bool:
            return written > 300

        writers = [asyncio.create_task(write()) for _ in range(16)]
        await until(many_written)
        await first.served.stop()
        written = 0
        await until(many_written)
        stopped.set()
        await asyncio.gather(*writers)


async def test_a_read_is_tried_again_where_the_service_is_unavailable_and_a_write_is_not() -> None:
    async def fail_twice() -> None:
        if graph.calls % 3:
            raise errors.Unavailable("not now")

    graph = Graph(fail_twice)
    async with running(graph) as here:
        await here.stub.GetUser(SOMEBODY)
        assert graph.calls == 3
        with refusal(errors.Unavailable, "UNAVAILABLE"):
            await here.stub.CreateUser(pb.CreateUserRequest(username="ann", email="ann@example.org"))
        assert graph.calls == 4


async def test_calls_over_the_bound_are_refused_at_once_and_those_under_way_end_well() -> None:
    finish = asyncio.Event()
    graph = Graph(lambda: finish.wait())  # type: ignore[arg-type, return-value]
    async with running(graph, max_concurrent_rpcs=4) as here:
        calls = [asyncio.ensure_future(here.stub.GetUser(SOMEBODY)) for _ in range(12)]
        # The bound counts health checks too. Each is refused or has begun: none is on its way any more.
        await until(lambda: sum(call.done() for call in calls) + graph.calls == len(calls))
        for call in calls:
            if call.done():
                assert isinstance(call.exception(), errors.Unavailable)
        under_way = [call for call in calls if not call.done()]
        assert 1 <= len(under_way) <= 4
        finish.set()
        for call in under_way:
            assert (await call).user.user_id == 1
        assert graph.calls == len(under_way)


# Answers that are streams.


def export(here: Running, count: int = 3, **options: Any) -> AsyncGenerator[pb.ExportUserResponse, None]:
    """A call that streams so many messages."""
    call: Any = here.stub.ExportUser
    stream: AsyncGenerator[pb.ExportUserResponse, None] = call(pb.ExportUserRequest(user_id=count), **options)
    return stream


def exports(code: str, side: str = "server") -> float:
    return sample(f"grpc_{side}_handled_total", grpc_type="server_streaming", grpc_method="ExportUser", grpc_code=code)


async def test_a_stream_carries_id_and_deadline_and_is_counted_at_both_ends() -> None:
    graph = Graph(nothing)
    before = exports("OK"), exports("OK", "client")
    async with running(graph) as here:
        context.request_id.set("the-callers-own")
        assert [record.tie.user_id async for record in export(here)] == [0, 1, 2]
        context.deadline.set(time.monotonic() + 0.5)
        assert [record async for record in export(here, 1)]
        async with grpc.aio.insecure_channel(here.served.target) as bare:
            call: Any = GraphServiceStub(bare).ExportUser(pb.ExportUserRequest(user_id=1), metadata=CALLER.metadata)
            assert len([record async for record in call]) == 1
    assert graph.request_ids[:2] == ["the-callers-own", "the-callers-own"]
    assert graph.request_ids[2] not in ("", "the-callers-own")
    unasked, carried, bare_s = graph.remaining_s
    assert MAX_STREAM_S - 5 < unasked <= MAX_STREAM_S
    assert 0 < carried <= 0.5 + ROUNDING_S
    assert MAX_STREAM_S - 5 < bare_s <= MAX_STREAM_S
    assert (exports("OK"), exports("OK", "client")) == (before[0] + 3, before[1] + 2)
    assert graph.closed == 3


async def test_what_a_stream_raises_arrives_as_it_was_before_its_first_message_and_after_it() -> None:
    async def fail() -> None:
        if graph.yielded or not here_now:
            raise errors.NotFound("USER_NOT_FOUND", "there is no user 1")

    graph, here_now = Graph(fail), False
    async with running(graph) as here:
        with refusal(errors.NotFound, "USER_NOT_FOUND"):
            await anext(export(here))
        here_now = True
        stream = export(here)
        assert (await anext(stream)).tie.user_id == 0
        with refusal(errors.NotFound, "USER_NOT_FOUND"):
            await anext(stream)
        with refusal(errors.InvalidArgument, "INVALID_ARGUMENT", "user_id"):
            await anext(export(here, 0))
    assert graph.calls == 2


async def test_a_defect_in_the_middle_of_a_stream_is_internal_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        if graph.yielded:
            raise ValueError("a secret of the inside")

    graph = Graph(fail)
    internal = exports("INTERNAL")
    async with running(graph) as here:
        with refusal(errors.Error, "INTERNAL"):
            async for record in export(here):
                assert record.tie.user_id == 0
    assert "a secret of the inside" in caplog.text
    assert exports("INTERNAL") == internal + 1
    assert graph.closed == 1


async def test_a_stream_is_not_tried_again() -> None:
    async def fail() -> None:
        raise errors.Unavailable("not now")

    graph = Graph(fail)
    async with running(graph) as here:
        with refusal(errors.Unavailable, "UNAVAILABLE"):
            await anext(export(here))
    assert graph.calls == 1


async def test_a_stream_ends_at_its_deadline() -> None:
    async def hang() -> None:
        if graph.yielded:
            await asyncio.Event().wait()

    graph = Graph(hang)
    async with running(graph) as here:
        stream = export(here, timeout=0.2)
        await anext(stream)
        with refusal(errors.Unavailable, "UNAVAILABLE"):
            await anext(stream)
        await until(lambda: graph.closed == 1)
        context.deadline.set(time.monotonic())
        with refusal(errors.Unavailable, "UNAVAILABLE"):
            await anext(export(here))


async def test_no_more_of_a_stream_is_made_than_is_taken_and_it_ends_with_its_client() -> None:
    graph = Graph(nothing, name_length=100_000)
    cancelled = exports("CANCELLED"), exports("CANCELLED", "client")
    async with running(graph) as here, aclosing(export(here, 10_000)) as stream:
        for number in range(5):
            assert (await anext(stream)).tie.user_id == number
        made = -1
        while made != graph.yielded:  # until the buffers in between are full
            made = graph.yielded
            await asyncio.sleep(0.2)
        assert made < 1_000
        # It stands in the middle of sending, where a generator that gRPC iterates would be left behind.
        assert graph.closed == 0
        await stream.aclose()
        await until(lambda: graph.closed == 1)
        await until(lambda: exports("CANCELLED") == cancelled[0] + 1)
    assert exports("CANCELLED", "client") == cancelled[1] + 1


async def test_a_drain_cuts_a_stream_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DRAIN_S", 0.1)

    async def hang() -> None:
        if graph.yielded:
            await asyncio.Event().wait()

    graph = Graph(hang)
    async with running(graph) as here:
        stream = export(here)
        await anext(stream)
        await asyncio.wait_for(here.served.stop(), 5)
        with refusal(errors.Unavailable, "UNAVAILABLE"):
            await anext(stream)
        await until(lambda: graph.closed == 1)


# Health, reflection, metrics.


async def test_health_is_serving_when_up_and_not_from_the_moment_of_stopping_while_calls_end() -> None:
    finish = asyncio.Event()
    graph = Graph(lambda: finish.wait())  # type: ignore[arg-type, return-value]
    async with running(graph) as here, grpc.aio.insecure_channel(here.served.target) as bare:
        for name in ("", SERVICE.full_name):
            assert await health_of(here.served.target, name) == SERVING
        stub: Any = health_pb2_grpc.HealthStub(bare)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
        assert (await watch.read()).status == SERVING
        call = asyncio.ensure_future(here.stub.GetUser(SOMEBODY))
        await until(lambda: graph.calls == 1)
        here.served.running.stopping.set()
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        assert not here.served.task.done()
        finish.set()
        assert (await call).user.user_id == 1
        await here.served.task
        with refusal(errors.Unavailable, "UNAVAILABLE"):
            await here.stub.GetUser(SOMEBODY)


async def test_a_process_whose_database_is_away_lives() -> None:
    """Or it would be started again and again, which brings no database back."""
    asked = asyncio.Event()

    async def away(report: server.Report) -> None:
        await report(False)
        asked.set()

    here, address = process.Process("here"), f"127.0.0.1:{free_port()}"
    await here.report(process.LIVE, True)
    settings = config.ServerSettings(mesh_secret=MESH_SECRET)
    async with process.answering_probes(here, address):
        task = asyncio.create_task(server.serve(here, settings, [], [SERVICE], watch=away, notice_s=0))
        await asyncio.wait_for(asked.wait(), 5)
        for name in ("", SERVICE.full_name):
            assert await health_of(address, name) == NOT_SERVING
        assert await health_of(address, process.LIVE) == SERVING
        here.stopping.set()
        await task


async def test_a_drain_ends_though_a_call_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DRAIN_S", 0.1)
    graph = Graph(lambda: asyncio.Event().wait())  # type: ignore[arg-type, return-value]
    async with running(graph) as here:
        call = asyncio.ensure_future(here.stub.CreateUser(pb.CreateUserRequest(username="a", email="a@example.org")))
        await until(lambda: graph.calls == 1)
        await asyncio.wait_for(here.served.stop(), 5)
        with refusal(errors.Unavailable, "UNAVAILABLE"):
            await call
        await until(lambda: graph.cancelled == 1)


async def test_a_second_server_on_a_port_ends_with_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    async with running(Graph(nothing)) as here:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            await server.serve(
                process.Process("second"),
                config.ServerSettings(
                    grpc_address=here.served.target, mesh_secret=MESH_SECRET, more_callers=(CALLER.name,)
                ),
                [],
                [SERVICE],
            )
        assert caught.value.code == 2
        ours = [line for line in capsys.readouterr().err.splitlines() if line.startswith("FEEDMESH_")]
        assert ours == [f"FEEDMESH_GRPC_ADDRESS: cannot listen on {here.served.target}"]
        await here.stub.GetUser(SOMEBODY)


async def test_the_services_can_be_listed_by_reflection() -> None:
    async with running(Graph(nothing)) as here, grpc.aio.insecure_channel(here.served.target) as bare:
        channel: Any = bare
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        call.cancel()
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE.full_name, "grpc.health.v1.Health"} <= names


async def test_calls_are_counted_and_timed_under_the_names_that_dashboards_know() -> None:
    names: tuple[tuple[str, dict[str, str]], ...] = (
        ("grpc_server_started_total", {}),
        ("grpc_server_handled_total", {"grpc_code": "OK"}),
        ("grpc_server_handled_total", {"grpc_code": "INVALID_ARGUMENT"}),
        ("grpc_server_handled_total", {"grpc_code": "NOT_FOUND"}),
        ("grpc_server_handling_seconds_count", {}),
        ("grpc_client_handled_total", {"grpc_code": "OK"}),
        ("grpc_client_handled_total", {"grpc_code": "INVALID_ARGUMENT"}),
        ("grpc_client_handled_total", {"grpc_code": "NOT_FOUND"}),
    )

    def samples() -> list[float]:
        return [sample(name, grpc_method="GetUser", **labels) for name, labels in names]

    async def fail_the_third() -> None:
        if graph.calls == 3:
            raise errors.NotFound("USER_NOT_FOUND")

    graph = Graph(fail_the_third)
    before = samples()
    async with running(graph) as here:
        for request in (SOMEBODY, SOMEBODY, pb.GetUserRequest(), SOMEBODY):
            with contextlib.suppress(errors.Error):
                await here.stub.GetUser(request)
    added = [after - earlier for after, earlier in zip(samples(), before, strict=True)]
    assert added == [4, 2, 1, 1, 4, 2, 1, 1]


# The life of a process.

IDLE = """
import sys
from runtime import config, process

async def serve(running):
    print("up", flush=True)
    await running.stopping.wait()

process.run("idle", config.load(getattr(config, sys.argv[1])), serve)
"""


@pytest.mark.parametrize(("kind", "ready"), [("ServerSettings", NOT_SERVING), ("Settings", SERVING)])
async def test_a_worker_can_do_its_work_when_it_is_up_and_a_server_not_until_it_serves(kind: str, ready: int) -> None:
    address = f"127.0.0.1:{free_port()}"
    env = {name: value for name, value in os.environ.items() if not name.startswith(config.PREFIX)}
    env |= {"FEEDMESH_HEALTH_ADDRESS": address}
    env |= {"FEEDMESH_MESH_SECRET": MESH_SECRET} if kind == "ServerSettings" else {}
    idle = await asyncio.create_subprocess_exec(
        sys.executable, "-c", IDLE, kind, cwd=ROOT, env=env, stdout=asyncio.subprocess.PIPE
    )
    assert idle.stdout is not None
    try:
        async with asyncio.timeout(20):
            while await idle.stdout.readline() != b"up\n":
                assert not idle.stdout.at_eof()
        assert await health_of(address) == ready
        assert await health_of(address, process.LIVE) == SERVING
        idle.terminate()
        assert await asyncio.wait_for(idle.wait(), 10) == 0
    finally:
        if idle.returncode is None:
            idle.kill()


async def test_a_workers_round_comes_again_at_once_while_there_is_more_and_ends_with_the_process() -> None:
    worker = process.Process("worker")
    rounds = 0

    async def work() -> bool:
        nonlocal rounds
        rounds += 1
        return rounds < 5

    task = asyncio.create_task(worker.every(3_600, "work", work))
    await until(lambda: rounds == 5)
    assert not task.done()
    worker.stopping.set()
    await asyncio.wait_for(task, 5)
    assert rounds == 5


async def test_a_round_that_fails_is_logged_and_counted_and_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    worker = process.Process("worker")
    rounds = 0

    async def work() -> bool:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise ValueError("a defect")
        worker.stopping.set()
        return False

    await asyncio.wait_for(worker.every(0.001, "a task of this test", work), 5)
    outcomes = {
        outcome: REGISTRY.get_sample_value(
            "feedmesh_worker_rounds_total", {"task": "a task of this test", "outcome": outcome}
        )
        for outcome in ("ok", "failed")
    }
    assert outcomes == {"ok": 1, "failed": 1}
    assert any("a defect" in str(record.exc_info and record.exc_info[1]) for record in caplog.records)
