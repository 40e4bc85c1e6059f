"""A worker that keeps a service's database up: named tasks, each at its interval, or each until done with `--once`."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

from runtime import migrate, postgres, process


@dataclass(frozen=True)
class Task:
    """Something to do again and again."""

    name: str
    interval_s: float
    work: Callable[[], Awaitable[bool]]
    """One bounded round; True when there may be more to do at once."""


def run(
    name: str,
    settings: postgres.PostgresSettings,
    package: str,
    tasks: Callable[[postgres.Pool], tuple[Task, ...]],
) -> NoReturn:
    """Runs the tasks until the process is asked to stop; with `--once`, until none has anything left to do."""
    parser = argparse.ArgumentParser(prog=f"python -m {package}.upkeep")
    parser.add_argument("--once", action="store_true", help="do what there is to do, then end")
    once = parser.parse_args().once

    async def serve(running: process.Process) -> None:
        async with postgres.connect(settings) as pool:
            await migrate.require(pool, package)
            if once:
                for task in tasks(pool):
                    while await task.work():
                        pass
            else:
                await asyncio.gather(*(running.every(task.interval_s, task.name, task.work) for task in tasks(pool)))

    process.run(name, settings, serve)
