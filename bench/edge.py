"""`python -m bench.edge`: what it costs to know who asks and to count it; what one who asks too much does to others.

A second gateway, which takes tokens and has limits, stands beside the mesh's own, which believes whoever asks, in front
of the same services: so both are measured in one run, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import aiohttp
from rich.console import Console

from bench import loads, results, world
from bench.client import DemoError
from bench.figures import BUSY, Notes
from bench.loads import find_k6, find_wrk
from bench.mesh import HOST, ROOT
from bench.population import Plan, Population
from bench.reads import first_pages, measure
from bench.report import hardware, markdown
from launch import settings
from runtime import postgres
from runtime.clock import wall_clock
from services.graph.signing import Signer

PEOPLE, FOLLOWS = 10_000, 100
RUNS = 3
FIGURES = ("cost", "others")
QUOTA = "600/60"
"""A person's, for reads: as if nothing is said."""
ENDLESS = "100000/1"
"""A quota that nobody uses up."""
TIMES = 10
"""How many times more than they may somebody asks."""
OTHERS_RATE = 200
"""Reads a second of the others, each by another one of them."""
LOUD_AT_ONCE = 16
"""Requests of theirs that may be under way."""
START_S = 30.0
POLICY = re.compile(r'"(.+)";q=(\d+);w=(\d+)')


@dataclass(frozen=True)
class Edge:
    """A gateway of ours, and who signs its tokens."""

    base: str
    pids: dict[int, str]
    """Names of its process and the session service's."""
    signer: Signer


@asynccontextmanager
async def edge(mesh: world.World, quota: str) -> AsyncIterator[Edge]:
    """One more gateway of the mesh for the block, with a session service. Raises DemoError.

    `quota` is what each person may read.
    """
    graph, gateway = _told(mesh, "graph"), _told(mesh, "gateway")
    port, session_port = settings.free_port(), settings.free_port()
    secret = secrets.token_hex(32)
    for name in ("FEEDMESH_CURSOR_SECRET", "FEEDMESH_MAX_FOLLOWING"):
        graph.pop(name, None)
    graph |= {
        "FEEDMESH_GRPC_ADDRESS": f"{HOST}:{session_port}",
        "FEEDMESH_METRICS_ADDRESS": f"{HOST}:0",
        "FEEDMESH_SESSION_SECRET": secret,
    }
    gateway |= {
        "FEEDMESH_HTTP_PORT": str(port),
        "FEEDMESH_METRICS_ADDRESS": f"{HOST}:0",
        "FEEDMESH_AUTH": "builtin",
        "FEEDMESH_SESSION_TARGET": f"{HOST}:{session_port}",
        "FEEDMESH_LIMIT_READ": quota,
        "FEEDMESH_TRUSTED_PROXIES": "127.0.0.0/8",
    }
    base = f"http://{HOST}:{port}"
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(_running("services.graph.session", graph))
        process = await stack.enter_async_context(_running("gateway", gateway))
        await _ready(base, process)
        dsn = postgres.PostgresSettings(postgres_dsn=graph["FEEDMESH_POSTGRES_DSN"])
        pool = await stack.enter_async_context(postgres.connect(dsn))
        signer = Signer(pool, secret, wall_clock, key_days=30)
        yield Edge(base, {process.pid: "gateway", session.pid: "session"}, signer)


@asynccontextmanager
async def _running(module: str, environment: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, cwd=ROOT, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _told(mesh: world.World, process: str) -> dict[str, str]:
    """The environment of a process of the mesh."""
    [pid] = [pid for pid, name in mesh.processes().items() if name in (process, f"services.{process}")]
    text = Path(f"/proc/{pid}/environ").read_text()
    return dict(each.split("=", 1) for each in text.split("\0") if "=" in each)


async def _ready(base: str, process: asyncio.subprocess.Process) -> None:
    until = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while process.returncode is None and time.monotonic() < until:
            with suppress(aiohttp.ClientError):
                async with session.get(f"{base}/readyz") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)
    raise DemoError("the gateway with limits did not start")


async def _requests(by: Edge, user_ids: Sequence[int]) -> list[str]:
    """First pages of feeds, each asked for with the token of whose it is, and as from an address of their own."""
    lines = []
    for number, (user_id, line) in enumerate(zip(user_ids, first_pages(user_ids), strict=True)):
        token = await by.signer.access_token(1, user_id)
        lines.append(f"{line}\tAuthorization: Bearer {token}\tX-Forwarded-For: {IPv4Address(0x0A000000 + number)}")
    return lines


async def _cost(console: Console, mesh: world.World, notes: Notes, seconds: float) -> None:
    user_ids = mesh.people.readers.tolist()
    async with edge(mesh, ENDLESS) as strict:
        kinds = {"off": (mesh.base, first_pages(user_ids)), "on": (strict.base, await _requests(strict, user_ids))}
        processes = mesh.processes() | strict.pids
        for run in range(RUNS + 1):
            # Each of them comes first as often.
            for kind in ("off", "on") if run % 2 else ("on", "off"):
                base, requests = kinds[kind]
                reads = await measure(base, processes, requests, connections=BUSY, seconds=seconds)
                if run:  # the first warms up
                    notes.add(f"{kind} rate", reads.run.rate)
                    notes.add(f"{kind} p99_ms", reads.run.p99_ms)
                    for name, ms in reads.cpu_ms.items():
                        notes.add(f"{kind} cpu {name}", ms)
    notes.add("kept", notes["on rate"] / notes["off rate"])
    console.print(f"feed reads/s: off {notes['off rate']:,.0f}, on {notes['on rate']:,.0f}: {notes['kept']:.3f}")


async def _others(console: Console, mesh: world.World, notes: Notes, seconds: float) -> None:
    async with edge(mesh, QUOTA) as strict:
        loud, *others = await _requests(strict, mesh.people.readers.tolist())
        limit = await _limit(strict.base, loud)

        async def side_by_side(are_both: bool) -> tuple[loads.Run, loads.Run | None]:
            """The others, and the one who asks too much where that is wanted."""
            async with asyncio.TaskGroup() as group:
                noise = None
                if are_both:
                    noise = group.create_task(
                        loads.open_loop(
                            strict.base, [loud], rate=TIMES * limit, seconds=seconds + 1, at_once=LOUD_AT_ONCE
                        )
                    )
                    await asyncio.sleep(1)
                quiet = await loads.open_loop(strict.base, others, rate=OTHERS_RATE, seconds=seconds)
            return quiet, noise.result() if noise else None

        notes.add("limit", limit)
        for run in range(RUNS + 1):
            # What is left of the quota is used up at first.
            await loads.closed(strict.base, [loud], connections=8, seconds=1)
            for kind in ("rest", "beside") if run % 2 else ("beside", "rest"):
                try:
                    quiet, noise = await side_by_side(kind == "beside")
                except* loads.HungError as hung:
                    console.print(f"{hung.exceptions[0]}: again")
                    quiet, noise = await side_by_side(kind == "beside")
                if run:
                    notes.add(f"{kind} p50_ms", quiet.p50_ms)
                    notes.add(f"{kind} p99_ms", quiet.p99_ms)
                    notes.add(f"{kind} failed", quiet.refused + quiet.dropped)
                if run and noise is not None:
                    notes.add("loud rate", noise.rate)
                    notes.add("loud refused", noise.refused / noise.requests)
    notes.add("p99 ratio", notes["beside p99_ms"] / notes["rest p99_ms"])
    console.print(
        f"others' p99: at rest {notes['rest p99_ms']:.1f} ms, beside one who asks {notes['loud rate']:,.0f}/s and is"
        f" refused {notes['loud refused']:.0%} {notes['beside p99_ms']:.1f} ms: {notes['p99 ratio']:.2f}"
    )


async def _limit(base: str, request: str) -> float:
    """What one may ask a second, as the gateway says."""
    line, *headers = request.split("\t")
    async with (
        aiohttp.ClientSession() as session,
        session.get(base + line.split()[1], headers=dict(each.split(": ", 1) for each in headers)) as response,
    ):
        found = POLICY.fullmatch(response.headers.get("RateLimit-Policy", ""))
        if response.status != 200 or found is None:
            raise DemoError(f"the gateway answers {response.status} and names no limit: {await response.text()}")
        return int(found[2]) / int(found[3])


async def _measure(console: Console, folder: Path, people: Population, arguments: argparse.Namespace) -> Notes:
    notes = Notes()
    async with world.serving(console, folder, people) as mesh:
        if "cost" in arguments.only:
            await _cost(console, mesh, notes, arguments.seconds)
        if "others" in arguments.only:
            await _others(console, mesh, notes, arguments.seconds)
    return notes


def _page(notes: Notes, people: Population, seconds: float) -> str:
    bounds = [
        results.Bound(
            f"feed reads/s at {BUSY} connections that are signed and counted, of those that are believed",
            notes["kept"],
            f"{notes['kept']:.2f} ({notes['on rate']:,.0f}/s of {notes['off rate']:,.0f}/s)",
            least=0.85,
        ),
        results.Bound(
            f"others' p99 while one asks {TIMES} times what they may, of that at rest",
            notes["p99 ratio"],
            f"{notes['p99 ratio']:.2f} ({notes['beside p99_ms']:.1f} ms of {notes['rest p99_ms']:.1f} ms)",
            most=1.5,
        ),
        results.Bound(
            "requests of the others that failed",
            notes["beside failed"] + notes["rest failed"],
            f"{notes['beside failed'] + notes['rest failed']:.0f}",
            most=0,
        ),
    ]
    cpus = {kind: notes.starting(f"{kind} cpu ") for kind in ("off", "on")}
    return "\n".join(
        [
            "# The edge",
            "",
            f"On {hardware()}. {people.plan.users:,} people who follow {people.plan.follows} each; medians of {RUNS}"
            f" runs in turn; {seconds:.0f} s in all.",
            "",
            *markdown([("figure", "bound", "measured", "met"), *(bound.row() for bound in bounds)]),
            "",
            f"One asks {notes['loud rate']:,.0f} times a second, may {notes['limit']:,.0f} times, and is refused"
            f" {notes['loud refused']:.0%}; the others read {OTHERS_RATE} feeds a second (open loop), p50"
            f" {notes['beside p50_ms']:.1f} ms beside it and {notes['rest p50_ms']:.1f} ms at rest.",
            "",
            f"CPU of one read at {BUSY} connections, in milliseconds; p99 {notes['off p99_ms']:.0f} ms without tokens"
            f" and limits, {notes['on p99_ms']:.0f} ms with them:",
            "",
            *markdown(
                [
                    ("process", "without", "with"),
                    *(
                        (name, *(f"{cpus[kind].get(name, 0):.3f}" for kind in ("off", "on")))
                        for name in sorted(cpus["on"], key=lambda name: -cpus["on"][name])
                        if cpus["on"][name] >= 0.0005
                    ),
                ]
            ),
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where it could not be measured. Bounds that are not met are shown, and no failure."""
    arguments = _arguments(argv)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    begun = time.perf_counter()
    try:
        find_wrk()
        find_k6()
        with world.temporary() as temporary:
            folder = (arguments.data or temporary / "data").absolute()
            plan = Plan(users=arguments.people, follows=FOLLOWS, writers=arguments.people, posts=4)
            people = world.prepare(console, folder, plan)
            notes = world.run(_measure(console, folder, people, arguments))
    except DemoError as error:
        console.print(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if set(arguments.only) == set(FIGURES):
        arguments.results.mkdir(parents=True, exist_ok=True)
        text = _page(notes, people, time.perf_counter() - begun)
        (arguments.results / "edge.md").write_text(text)
        console.print(text)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.edge", description=__doc__)
    parser.add_argument("--people", type=int, default=PEOPLE, help="who follow and write (default 10000)")
    parser.add_argument("--seconds", type=float, default=8, help="how long one run takes (default 8)")
    parser.add_argument(
        "--results", type=Path, default=results.FOLDER, help="where edge.md is written when all is measured"
    )
    parser.add_argument("--data", type=Path, help="a folder that keeps the population")
    parser.add_argument("--only", nargs="*", choices=FIGURES, default=list(FIGURES))
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
