"""`python -m bench.suite`: all figures of a mesh, the floor and the textbook, side by side. Wiring only."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random

from rich.console import Console

from bench import machine, results, textbook, world
from bench.client import DemoError, connect
from bench.figures import AT_ONCE, Figures, Notes
from bench.loads import find_k6, find_wrk
from bench.population import Plan, Population
from bench.report import markdown

RUNS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 where it could not be measured. Bounds that are not met are shown, and no failure."""
    arguments = _arguments(argv)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    plan = Plan(users=arguments.users, follows=136, writers=arguments.users, posts=10, stars=64, reed=True)
    begun = time.perf_counter()
    try:
        find_k6()
        find_wrk()
        same, other = machine.wake_ups()
        load = machine.load()
        with world.temporary() as temporary:
            people = world.prepare(console, temporary / "data", plan)
            with world.flooring(console, temporary / "floor", people) as floor:
                keys = textbook.fill(floor.socket, people)
                notes = world.run(_measure(console, temporary / "data", people, floor, keys, arguments))
    except DemoError as error:
        console.print(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    across = f", on another {other:.0f} µs" if other is not None else ""
    facts = [
        "Nothing is pinned: mesh, floor, stores and load generators share all cores, as under `make run`. To wake a"
        f" process on the same core and be woken takes {same:.0f} µs{across}. Load of the machine before: {load:.2f}.",
        f"{people.plan.users:,} people who follow {plan.follows + plan.stars} each, {len(people.authors):,} posts; the"
        f" median of {arguments.runs} runs of each figure; {time.perf_counter() - begun:.0f} s in all.",
    ]
    folder = arguments.results
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.md").write_text(results.page(notes, facts))
    (folder / results.PLOT).write_text(results.picture(notes))
    rows = [("figure", "bound", "measured", "met"), *(bound.row() for bound in results.bounds(notes))]
    console.print("\n".join(["", *markdown(rows), "", f"the rest is in {folder / 'latest.md'}"]))
    return 0


async def _measure(
    console: Console,
    folder: Path,
    people: Population,
    floor: world.Floor,
    keys: Sequence[str],
    arguments: argparse.Namespace,
) -> Notes:
    rng = Random(people.plan.seed)  # noqa: S311 - the same requests every time
    short, long = arguments.seconds, 4 * arguments.seconds
    async with world.serving(console, folder, people) as mesh, connect(mesh.base, AT_ONCE) as client:
        figures = Figures(mesh, floor, client, rng, secrets.token_hex(2))
        figures.memory()
        await figures.warm_up(long)
        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "reads": lambda: figures.reads(short),
            "latencies": lambda: figures.latencies(short),
            "posts": lambda: figures.posts(short),
            "likes": lambda: figures.likes(short),
            "fan-out": figures.fan_out,
            "textbook": lambda: figures.textbook(keys),
            "visible, at rest": figures.visible_at_rest,
            "visible, under load": lambda: figures.visible_under_load(long),
        }
        for run in range(arguments.runs):
            console.print(f"run {run + 1} of {arguments.runs}")
            for name, work in steps.items():
                begun = time.perf_counter()
                await work()
                console.print(f"  {name:<20} {time.perf_counter() - begun:5.1f} s")
        return figures.notes


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.suite", description=__doc__)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seconds", type=float, default=3, help="how long one run of one figure takes (default 3)")
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="where to write (default bench/results)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
