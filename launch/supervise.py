"""Starts, restarts and stops operating-system processes that cannot outlive us. Knows no service and no Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.screen import Screen
from launch.settings import Refused

MAX_LINE_BYTES = 64 * 1024
LAST_LINES = 12
FIRST_DELAY, LAST_DELAY, HEALTHY = 0.1, 5.0, 10.0  # seconds: restarts, and the life that resets them
GRACE, HURRIED = 10.0, 6.0  # seconds to end after the stop signal, and after the kill signal


class StartFailed(Refused):
    """Something that was started did not come up."""


@dataclass(frozen=True)
class Command:
    """How to run one process. `argv[0]` is a path; `env` is the whole environment."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    identity: str = "-"  # see leash.py
    stop_signal: signal.Signals = signal.SIGTERM
    kill_signal: signal.Signals = signal.SIGKILL  # when it has not ended in time
    death_signal: signal.Signals = signal.SIGKILL  # from the kernel, when the launcher is gone
    clear: Callable[[], Awaitable[None]] | None = None  # takes leftovers away: before every start, after the stop

    @property
    def leashed(self) -> list[str]:
        """The command line that makes it end with this process. Run it from the main thread: see leash.py."""
        leash = Path(__file__).with_name("leash.py")
        parent = (str(os.getpid()), str(int(self.death_signal)))
        return [sys.executable, "-I", "-S", str(leash), *parent, self.identity, *self.argv]


async def run(command: Command, show: Callable[[str], None]) -> int:
    """Runs a command to its end and returns its exit code (negative: the signal). Kills it when cancelled."""
    process, lines = await _spawn(command, show)
    try:
        return await process.wait()
    finally:
        await _reap(process, lines)


def start_leashed(command: Command, log: Path) -> subprocess.Popen[bytes]:
    """Starts a command that ends with this process and that nobody supervises. Its lines are added to `log`.

    Call it from the main thread: see leash.py.
    """
    with log.open("ab") as lines:
        return subprocess.Popen(
            command.leashed,
            env=dict(command.env),
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=lines,
            start_new_session=True,
        )


async def _spawn(
    command: Command, show: Callable[[str], None]
) -> tuple[asyncio.subprocess.Process, asyncio.Task[None]]:
    # A pipe of our own: asyncio's would make wait() last until every grandchild has closed it.
    reading, writing = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *command.leashed,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            env=dict(command.env),
            start_new_session=True,  # the terminal's Ctrl-C reaches the launcher alone, which then stops in order
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return process, asyncio.create_task(_read(reading, show))


async def _reap(process: asyncio.subprocess.Process, lines: asyncio.Task[None]) -> None:
    """Ends what is left of a process: itself, its group, its last lines."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    await asyncio.wait({lines}, timeout=1.0)
    lines.cancel()


async def _read(descriptor: int, show: Callable[[str], None]) -> None:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    rest, cut = b"", False
    try:
        while chunk := await reader.read(MAX_LINE_BYTES):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                if not cut:
                    show(line[:MAX_LINE_BYTES].decode(errors="replace").rstrip("\r"))
                cut = False
            if cut:
                rest = b""
            elif len(rest) > MAX_LINE_BYTES:
                show(rest[:MAX_LINE_BYTES].decode(errors="replace"))
                rest, cut = b"", True  # the remainder of this line is dropped
        if rest:
            show(rest.decode(errors="replace"))
    finally:
        transport.close()


class Child:
    """One supervised process, started at once. Until `settled` its end is a failure, afterwards it is started again.

    `task` ends when the child was stopped, or with StartFailed when the child ended before it was settled.
    """

    def __init__(self, command: Command, screen: Screen) -> None:
        self.command = command
        self.settled = False
        self._screen = screen
        self._stopping = False
        self._process: asyncio.subprocess.Process | None = None
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self.task = asyncio.create_task(self._keep(), name=command.name)

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stops it for good: the stop signal, after GRACE seconds or with `hurry` the kill signal, then SIGKILL."""
        self.no_more()
        if self._process is None:
            self.task.cancel()
        steps = ((self.command.stop_signal, GRACE), (self.command.kill_signal, HURRIED), (signal.SIGKILL, HURRIED))
        for number, (which, seconds) in enumerate(steps):
            if self.task.done():
                break
            if number == 0 and hurry.is_set():
                continue
            if number:
                self._screen.say("warning", f"{self.command.name} did not end in time", signal=which.name)
            self._signal(which)
            impatience = asyncio.create_task(hurry.wait())
            awaited = {self.task, impatience} if number == 0 else {self.task}
            await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            impatience.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if self.command.clear is not None:
            with contextlib.suppress(Refused):
                await self.command.clear()

    def no_more(self) -> None:
        """From now on it is not started again."""
        self._stopping = True

    def _signal(self, which: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(which)

    async def _keep(self) -> None:
        name, delay = self.command.name, FIRST_DELAY
        while True:
            born = time.monotonic()
            try:
                reason = describe(await self._once())
            except (Refused, OSError) as error:
                if not self.settled:
                    raise
                reason = "could not start: " + str(error)
            if self._stopping:
                return
            if not self.settled:
                raise StartFailed(
                    f"{name} {reason} during start; its last lines:", *(f"    {line}" for line in self._last)
                )
            if time.monotonic() - born >= HEALTHY:
                delay = FIRST_DELAY
            self._screen.say("error", f"{name} {reason}; it starts again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_DELAY)

    async def _once(self) -> int:
        if self.command.clear is not None:
            await self.command.clear()
        process, lines = await _spawn(self.command, self._show)
        self._process = process
        self._screen.say("debug", f"{self.command.name} started", pid=process.pid)
        try:
            if self._stopping:
                self._signal(self.command.stop_signal)
            return await process.wait()
        finally:
            self._process = None
            await _reap(process, lines)

    def _show(self, line: str) -> None:
        self._last.append(line)
        self._screen.line(self.command.name, line)


def describe(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


async def stop(stages: Iterable[Iterable[Child]], hurry: asyncio.Event) -> None:
    """Stops the stages one after the other, all children of one at once."""
    for stage in stages:
        await asyncio.gather(*(child.stop(hurry) for child in stage))
