"""What the person who runs the demo sees meanwhile: a bar for each phase, or plain lines where there is no terminal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

BAR_S = 0.25
LINE_S = 10.0
"""How often the bar is drawn, and how often a plain line says how far it is."""


class Phase:
    """A phase under way: whoever works adds to `done`, and to `count` where the rate is of something else."""

    def __init__(self, name: str, total: float, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0.0
        self.count = 0
        self._begun = monotonic()

    def say(self) -> str:
        """How it goes, in a few words."""
        seconds = monotonic() - self._begun
        return f"{self.count:,} {self.unit} in {seconds:.1f} s ({self.count / max(seconds, 1e-9):,.0f}/s)"


@asynccontextmanager
async def phase(console: Console, name: str, total: float, unit: str) -> AsyncIterator[Phase]:
    """Shows a phase while the block works at it, and leaves one line about it when it is done."""
    current = Phase(name, total, unit)
    # Looking at a counter now and then costs the client less than telling the bar of every request.
    shower = asyncio.create_task(_bar(console, current) if console.is_terminal else _lines(console, current))
    try:
        yield current
    finally:
        shower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await shower
    console.print(f"{name:<10} {current.say()}")


async def _bar(console: Console, current: Phase) -> None:
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.fields[say]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task(current.name, total=current.total, say="")
        while True:
            bar.update(task, completed=current.done, say=current.say(), refresh=True)
            await asyncio.sleep(BAR_S)


async def _lines(console: Console, current: Phase) -> None:
    while True:
        await asyncio.sleep(LINE_S)
        console.print(f"{current.name:<10} {100 * current.done / current.total:3.0f} %  {current.say()}")
