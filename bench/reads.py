"""`python -m bench.reads`: feed reads of the mesh and of the floor, with the CPU that each process takes for one."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench import cpu, loads, world
from bench.client import DemoError
from bench.population import Plan, Population

WARM_S = 2.0


@dataclass(frozen=True)
class Reads:
    """What a run of reads measured."""

    run: loads.Run
    cpu_ms: dict[str, float]
    """CPU milliseconds of one read, by process."""

    @property
    def total_ms(self) -> float:
        """CPU milliseconds of one read, of all processes but the load generator."""
        return sum(self.cpu_ms.values())


def first_pages(user_ids: Sequence[int]) -> list[str]:
    """The requests for these people's feeds."""
    return [f"GET /feed?user_id={user_id}&limit=20" for user_id in user_ids]


async def measure(
    base: str, processes: dict[int, str], requests: Sequence[str], *, connections: int, seconds: float
) -> Reads:
    """Sends reads in a closed loop. Raises DemoError."""
    before = cpu.spent(processes)
    run = await loads.closed(base, requests, connections=connections, seconds=seconds)
    after = cpu.spent(processes)
    if run.refused or run.dropped:
        raise DemoError(f"{run.refused} reads were refused, {run.dropped} connections broke")
    if not run.requests:
        raise DemoError(f"no read was answered within {run.seconds:.1f} s")
    taken = {name: 1000 * (after[name] - before[name]) / run.requests for name in after}
    return Reads(run, dict(sorted(taken.items(), key=lambda each: -each[1])))


def lines(what: str, reads: Reads) -> list[str]:
    """What one run was like, to be printed."""
    run = reads.run
    share = run.cpu_seconds / run.seconds
    return [
        f"{what}: {run.rate:,.0f} reads/s, p50 {run.p50_ms:.1f} ms, p99 {run.p99_ms:.1f} ms, longest {run.max_ms:.0f}"
        f" ms; {run.bytes / run.requests:,.0f} bytes each",
        f"  CPU of a read: {reads.total_ms:.3f} ms; wrk besides {1000 * run.cpu_seconds / run.requests:.3f} ms"
        f" ({100 * share:.0f} % of one core)",
        *(f"    {name:<28} {ms:.3f} ms" for name, ms in reads.cpu_ms.items() if ms >= 0.0005),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = _arguments(argv)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    plan = Plan(users=arguments.users, follows=200, writers=arguments.users, posts=10)
    try:
        with world.temporary() as temporary:
            folder = arguments.data or temporary / "data"
            return _run(arguments, console, folder.absolute(), temporary, plan)
    except DemoError as error:
        console.print(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(arguments: argparse.Namespace, console: Console, folder: Path, temporary: Path, plan: Plan) -> int:
    people = world.prepare(console, folder, plan)
    found: list[Reads] = []
    if arguments.only != "floor":
        if arguments.serve:
            return world.run(_serve(console, folder, people))
        found.append(world.run(_mesh(arguments, console, folder, people)))
    if arguments.only != "mesh":
        with world.flooring(console, temporary / "floor", people) as floor:
            found.append(world.run(_shown(arguments, console, "floor", floor.base, floor.processes, people)))
    if len(found) == 2:
        console.print(f"mesh / floor: {found[0].run.rate / found[1].run.rate:.3f}")
    return 0


async def _mesh(arguments: argparse.Namespace, console: Console, folder: Path, people: Population) -> Reads:
    async with world.serving(console, folder, people) as mesh:
        return await _shown(arguments, console, "mesh", mesh.base, mesh.processes(), people)


async def _serve(console: Console, folder: Path, people: Population) -> int:
    async with world.serving(console, folder, people) as mesh:
        console.print(f"serving on {mesh.base} until Ctrl-C; launcher {mesh.launcher}")
        for pid, name in sorted(mesh.processes().items()):
            if name != "postgres":
                console.print(f"  {pid:>8} {name}")
        await asyncio.Event().wait()
    return 0


async def _shown(
    arguments: argparse.Namespace,
    console: Console,
    what: str,
    base: str,
    processes: dict[int, str],
    people: Population,
) -> Reads:
    requests = first_pages(people.readers.tolist())
    await measure(base, processes, requests, connections=arguments.connections, seconds=WARM_S)
    reads = await measure(base, processes, requests, connections=arguments.connections, seconds=arguments.seconds)
    console.print("\n".join(lines(what, reads)))
    return reads


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.reads", description=__doc__)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--users", type=int, default=2_000, help="people who read (default 2000)")
    parser.add_argument("--only", choices=("mesh", "floor"), help="measure only one of the two")
    parser.add_argument(
        "--data", type=Path, help="a folder that keeps the population; a mesh that --serve runs in it is used"
    )
    parser.add_argument("--serve", action="store_true", help="prepare the mesh, print its processes and wait")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
