"""What processes took of the CPU, by what they are: read from /proc, where every process of a mesh is seen."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
Seconds = dict[str, float]
"""CPU seconds by name."""


def tree(root: int) -> dict[int, str]:
    """A process's descendants by their pid, itself left out: `-m` modules by their name, other programs by theirs."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parents[int(entry.name)] = int(_fields(int(entry.name))[1])
    found: dict[int, str] = {}
    fresh = {root}
    while fresh := {pid for pid, parent in parents.items() if parent in fresh}:
        for pid in fresh:
            with suppress(OSError):
                found[pid] = name(pid)
    return found


def name(pid: int) -> str:
    """What a process is: a Python module, or the file name of its program. Postgres's processes are `postgres` all."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    if "-m" in words:
        return words[words.index("-m") + 1]
    program = Path(words[0]).name
    return "postgres" if program.startswith("postgres") else program


def spent(pids: dict[int, str]) -> Seconds:
    """What these processes have taken so far, with their children that have ended. One that is gone took nothing."""
    seconds: Seconds = {}
    for pid, what in pids.items():
        with suppress(OSError):
            taken = sum(map(int, _fields(pid)[11:15])) / TICKS_A_SECOND
            seconds[what] = seconds.get(what, 0.0) + taken
    return seconds


def _fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third one on: what comes before may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
