"""`python -m bench.growth`: whether a feed read gets dearer when the population grows a hundredfold. Wiring only."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from bench import results, world
from bench.client import DemoError
from bench.figures import BUSY, Notes
from bench.loads import find_wrk
from bench.population import Plan, Population
from bench.reads import first_pages, measure
from bench.report import hardware, markdown

RUNS = 3
SMALL = 10_000
MEASURED = 2_000
"""Of these so many are read again and again, in both populations: how much caches hold is not the question."""


def plan_of(users: int) -> Plan:
    """What differs between the two populations is how many they are: each follows 20 of those tenth who write."""
    return Plan(users=users, follows=20, writers=users // 10, posts=12)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where it could not be measured. A bound that is not met is shown, and no failure."""
    arguments = _arguments(argv)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    begun = time.perf_counter()
    try:
        find_wrk()
        with world.temporary() as temporary:
            folder = (arguments.data or temporary).absolute()
            sizes = (SMALL, arguments.users)
            populations = [world.prepare(console, folder / str(users), plan_of(users)) for users in sizes]
            notes = world.run(_measure(console, folder, populations, arguments.readers, arguments.seconds))
    except DemoError as error:
        console.print(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    text = _page(notes, populations, arguments.readers, time.perf_counter() - begun)
    results.FOLDER.mkdir(parents=True, exist_ok=True)
    (results.FOLDER / "growth.md").write_text(text)
    console.print(text)
    return 0


async def _measure(
    console: Console, folder: Path, populations: Sequence[Population], with_lists: int, seconds: float
) -> Notes:
    notes = Notes()
    async with AsyncExitStack() as stack:
        # Both run all the time and are measured in turn, so that what else the machine does meets both.
        meshes = []
        for people in populations:
            readers = people.readers[:with_lists].tolist()
            place = folder / str(people.plan.users)
            meshes.append(
                (await stack.enter_async_context(world.serving(console, place, people, readers=readers)), readers)
            )
        for mesh, readers in meshes:
            await world.warm_up(console, mesh.base, readers[:MEASURED], "limit=20")
        for run in range(RUNS + 1):
            for mesh, readers in meshes:
                requests = first_pages(readers[:MEASURED])
                for connections in (1, BUSY):
                    reads = await measure(
                        mesh.base, mesh.processes(), requests, connections=connections, seconds=seconds
                    )
                    if not run:  # warms up
                        continue
                    name = f"{mesh.people.plan.users} {connections}"
                    for what, value in (
                        ("rate", reads.run.rate),
                        ("p50_ms", reads.run.p50_ms),
                        ("cpu", reads.total_ms),
                    ):
                        notes.add(f"{name} {what}", value)
                    notes.add(f"{name} p99_ms", reads.run.p99_ms)
                    for process, ms in reads.cpu_ms.items():
                        notes.add(f"{name} cpu {process}", ms)
    return notes


def _page(notes: Notes, populations: Sequence[Population], with_lists: int, seconds: float) -> str:
    small, large = (people.plan.users for people in populations)
    factor = notes[f"{small} {BUSY} rate"] / notes[f"{large} {BUSY} rate"]
    bound = results.Bound(
        f"a feed read at {large:,} users against one at {small:,}, {BUSY} connections",
        factor,
        f"{factor:.2f}",
        most=1.3,
    )
    rows = [
        (
            f"{people.plan.users:,}",
            f"{len(people.follows.follower):,}",
            f"{len(people.authors):,}",
            f"{min(with_lists, people.plan.users):,}",
            f"{notes[f'{people.plan.users} {BUSY} rate']:,.0f}",
            *(f"{notes[f'{people.plan.users} {BUSY} {what}']:.1f}" for what in ("p50_ms", "p99_ms")),
            f"{notes[f'{people.plan.users} {BUSY} cpu']:.3f}",
            *(f"{notes[f'{people.plan.users} 1 {what}']:.1f}" for what in ("p50_ms", "p99_ms")),
        )
        for people in populations
    ]
    head = ("users", "follows", "posts", "with lists", "reads/s", "p50 ms", "p99 ms", "CPU ms")
    return "\n".join(
        [
            "# Growth",
            "",
            f"On {hardware()}. {seconds:.0f} s in all.",
            "",
            *markdown([("figure", "bound", "measured", "met"), bound.row()]),
            "",
            f"Closed loop (wrk), {BUSY} connections, and for the last two columns one. Medians of {RUNS} runs in turn:",
            "",
            *markdown([(*head, "p50 ms of one", "p99 ms of one"), *rows]),
            "",
            f"CPU of a read at {BUSY} connections, in milliseconds:",
            "",
            *markdown([("process", *(f"{users:,} users" for users in (small, large))), *_cpu(notes, small, large)]),
            "",
        ]
    )


def _cpu(notes: Notes, small: int, large: int) -> list[tuple[str, ...]]:
    of_each = [notes.starting(f"{users} {BUSY} cpu ") for users in (small, large)]
    names = sorted(of_each[1], key=lambda name: -of_each[1][name])
    return [(name, *(f"{each.get(name, 0):.3f}" for each in of_each)) for name in names]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000, help="the larger population (default 1000000)")
    parser.add_argument(
        "--readers", type=int, default=50_000, help="people who have lists, at the most (default 50000)"
    )
    parser.add_argument("--seconds", type=float, default=5, help="how long one run takes (default 5)")
    parser.add_argument("--data", type=Path, help="a folder that keeps the populations")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
