"""`python -m bench.edge`: what it costs to know who asks and to count it; what one who asks too much does to others.

A second gateway, with limits, stands beside the mesh's own, which has none, in front of the same services: so both are
measured in one run, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
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

PEOPLE, FOLLOWS = 10_000, 100
RUNS = 3
FIGURES = ("cost", "others")
ENDLESS = "100000/1"
"""A quota that nobody uses up."""
TIMES = 10
"""How many times more than they may somebody asks."""
OTHERS_RATE = 200
"""Reads a second of the others, each by another one of them."""
START_S = 30.0
POLICY = re.compile(r'"(.+)";q=(\d+);w=(\d+)')


@dataclass(frozen=True)
class Signing:
    """How requests say whose they are."""

    settings: Mapping[str, str]
    """Of the gateway that is to know."""
    quota: str
    """A person's, for reads, where it is used up."""
    headers: Callable[[str, Sequence[int]], Awaitable[list[str]]]
    """Takes where the gateway is and who is to ask; gives each one's headers, as load generators take them."""


async def forwarded(_base: str, user_ids: Sequence[int]) -> list[str]:
    """An address for each of them, as a proxy passes it on."""
    return [f"\tX-Forwarded-For: {IPv4Address(0x0A000000 + number)}" for number in range(len(user_ids))]


# Nobody is signed in, so a person is an address, which has ten times the quota: 600 a minute.
BY_ADDRESS = Signing({"FEEDMESH_TRUSTED_PROXIES": "127.0.0.0/8"}, "60/60", forwarded)


@dataclass(frozen=True)
class Edge:
    """A gateway of ours."""

    base: str
    pid: int


@asynccontextmanager
async def edge(mesh: world.World, own: Mapping[str, str]) -> AsyncIterator[Edge]:
    """One more gateway of the mesh for the block, with limits and these settings. Raises DemoError."""
    told = _told(mesh)
    [port] = settings.free_ports(1, taken=0, ephemeral=settings.ephemeral_range())
    told |= {"FEEDMESH_LIMITS": "true", "FEEDMESH_HTTP_PORT": str(port), "FEEDMESH_METRICS_ADDRESS": f"{HOST}:0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", cwd=ROOT, env={**told, **own}, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        base = f"http://{HOST}:{port}"
        await _ready(base, process)
        yield Edge(base, process.pid)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _told(mesh: world.World) -> dict[str, str]:
    """The environment of the mesh's own gateway."""
    [pid] = [pid for pid, name in mesh.processes().items() if name == "gateway"]
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


async def _requests(base: str, user_ids: Sequence[int], signing: Signing) -> list[str]:
    """First pages of feeds, each asked for by whose it is."""
    headers = await signing.headers(base, user_ids)
    return [line + own for line, own in zip(first_pages(user_ids), headers, strict=True)]


async def _cost(console: Console, mesh: world.World, signing: Signing, notes: Notes, seconds: float) -> None:
    user_ids = mesh.people.readers.tolist()
    async with edge(mesh, {**signing.settings, "FEEDMESH_LIMIT_READ": ENDLESS}) as counting:
        kinds = {
            "off": (mesh.base, first_pages(user_ids)),
            "on": (counting.base, await _requests(counting.base, user_ids, signing)),
        }
        processes = mesh.processes() | {counting.pid: "gateway"}
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


async def _others(console: Console, mesh: world.World, signing: Signing, notes: Notes, seconds: float) -> None:
    async with edge(mesh, {**signing.settings, "FEEDMESH_LIMIT_READ": signing.quota}) as counting:
        loud, *others = await _requests(counting.base, mesh.people.readers.tolist(), signing)
        limit = await _limit(counting.base, loud)
        notes.add("limit", limit)
        for run in range(RUNS + 1):
            # What is left of the quota is used up at first.
            await loads.closed(counting.base, [loud], connections=8, seconds=1)
            for kind in ("rest", "beside") if run % 2 else ("beside", "rest"):
                async with asyncio.TaskGroup() as group:
                    noise = None
                    if kind == "beside":
                        noise = group.create_task(
                            loads.open_loop(counting.base, [loud], rate=TIMES * limit, seconds=seconds + 1)
                        )
                        await asyncio.sleep(1)
                    quiet = await loads.open_loop(counting.base, others, rate=OTHERS_RATE, seconds=seconds)
                if run:
                    notes.add(f"{kind} p50_ms", quiet.p50_ms)
                    notes.add(f"{kind} p99_ms", quiet.p99_ms)
                    notes.add(f"{kind} failed", quiet.refused + quiet.dropped)
                if run and noise is not None:
                    notes.add("loud rate", noise.result().rate)
                    notes.add("loud refused", noise.result().refused / noise.result().requests)
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


async def _measure(
    console: Console, folder: Path, people: Population, signing: Signing, arguments: argparse.Namespace
) -> Notes:
    notes = Notes()
    async with world.serving(console, folder, people) as mesh:
        if "cost" in arguments.only:
            await _cost(console, mesh, signing, notes, arguments.seconds)
        if "others" in arguments.only:
            await _others(console, mesh, signing, notes, arguments.seconds)
    return notes


def _page(notes: Notes, people: Population, seconds: float) -> str:
    bounds = [
        results.Bound(
            f"feed reads/s at {BUSY} connections with limits, of those without",
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
            f"CPU of one read at {BUSY} connections, in milliseconds; p99 {notes['off p99_ms']:.0f} ms without limits,"
            f" {notes['on p99_ms']:.0f} ms with them:",
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
            notes = world.run(_measure(console, folder, people, BY_ADDRESS, arguments))
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
