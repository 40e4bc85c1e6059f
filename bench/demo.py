"""`python -m bench.demo`: a mesh, the Reed College graph loaded into it, a minute of load, a table. Wiring only."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from random import Random

import uvloop
from rich.console import Console

from bench import community, counters, drive, load, report, visible
from bench.client import Client, DemoError, connect
from bench.mesh import Mesh, find_or_start

SEED = 98
SHOWN_ERRORS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code: 1 after any error, 128 + n when stopped by signal n."""
    arguments = _arguments(argv)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    complain = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_until_signal(console, arguments))
    except DemoError as error:
        complain.print(f"demo: {error}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # before there was anything to stop
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still flushes at exit
        return 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.demo",
        description="Loads a real social graph into the mesh through its HTTP API, then uses it for a minute and prints"
        " how fast it was. Uses the mesh on FEEDMESH_HTTP_PORT (default 8080), or starts one there with its data in"
        " FEEDMESH_DATA_DIR (default .data) and stops it at the end. Each run adds people of its own.",
    )
    parser.add_argument("--seconds", type=seconds, default=60.0, help="how long to drive (default 60)")
    parser.add_argument("--connections", type=connections, default=8, help="connections at once (default 8)")
    return parser.parse_args(argv)


def seconds(text: str) -> float:
    """A duration, up to a day. argparse names the type by this function, as by the next."""
    if not 0 < (value := float(text)) <= 86_400:
        raise ValueError
    return value


def connections(text: str) -> int:
    """A number of connections."""
    if not 1 <= (value := int(text)) <= 1_000:
        raise ValueError
    return value


async def _until_signal(console: Console, arguments: argparse.Namespace) -> int:
    """The demo, ended in order by SIGINT, SIGTERM or SIGHUP; a second one hurries the mesh's end."""
    loop = asyncio.get_running_loop()
    hold: list[Mesh] = []
    work = asyncio.create_task(_demo(console, arguments, hold))
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            work.cancel()
        else:
            for mesh in hold:
                mesh.hurry()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        return await work
    except asyncio.CancelledError:
        return 128 + received[0]


async def _demo(console: Console, arguments: argparse.Namespace, hold: list[Mesh]) -> int:
    connections = arguments.connections + visible.AT_ONCE  # so that none waits for another
    async with find_or_start(console, hold) as mesh, connect(mesh.base, connections) as client:
        return await _unless_it_dies(mesh, client, console, arguments)


async def _unless_it_dies(mesh: Mesh, client: Client, console: Console, arguments: argparse.Namespace) -> int:
    work = asyncio.create_task(_load_and_drive(mesh, client, console, arguments))
    death = asyncio.create_task(mesh.died())
    try:
        await asyncio.wait({work, death}, return_when=asyncio.FIRST_COMPLETED)
        if death.done():
            raise death.result()
        return work.result()
    except ExceptionGroup as several:
        raise _first(several) from None
    finally:
        work.cancel()
        death.cancel()
        await asyncio.gather(work, death, return_exceptions=True)


def _first(several: ExceptionGroup[Exception]) -> Exception:
    first = several.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first


async def _load_and_drive(mesh: Mesh, client: Client, console: Console, arguments: argparse.Namespace) -> int:
    run = secrets.token_hex(2)
    rng = Random(SEED)  # noqa: S311 - the same community every time is what it is for
    plan = community.build(community.read_edges(), rng)
    console.print(f"loading {len(plan.usernames)} people of Reed College and {len(plan.follows):,} follows")
    loaded = await load.Loader(client, console, plan, arguments.connections, run).load()
    operations = drive.script(client, plan, loaded.user_ids, rng)
    addresses = mesh.metrics()
    before = await counters.read(client, addresses)
    async with asyncio.TaskGroup() as group:
        driving = group.create_task(
            drive.drive(
                client, console, operations, seconds=arguments.seconds, connections=arguments.connections, run=run
            )
        )
        probing = group.create_task(
            visible.probe(client, plan, loaded.user_ids, rng, seconds=arguments.seconds, run=run)
        )
    counted = (await counters.read(client, addresses)).since(before) if addresses else None
    driven = driving.result()
    lines = [
        "",
        *report.table(driven),
        "",
        *report.facts(probing.result(), counted, client.degraded),
        "",
        f"{driven.seconds:.0f} s over {arguments.connections} connections, and {visible.AT_ONCE} that look for posts,"
        f" client and mesh on one machine: {report.hardware()}.",
        f"The client itself took {100 * driven.cpu_seconds / driven.seconds:.0f} % of one core.",
    ]
    if client.retries:
        lines.append(f"{client.retries:,} writes were tried again while loading.")
    if client.errors:
        lines += ["", f"{client.errors.total():,} errors:"]
        lines += [f"  {count:,} × {what}" for what, count in client.errors.most_common(SHOWN_ERRORS)]
    console.print("\n".join(lines))
    return 1 if client.errors else 0


if __name__ == "__main__":
    sys.exit(main())
