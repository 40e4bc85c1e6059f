"""What a machine is like for a mesh of processes: what it costs one process to wake another."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

ROUND_TRIPS = 5_000


def wake_ups() -> tuple[float, float | None]:
    """Microseconds from one process to another and back over a socket: on one core, and on two where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    return _round_trip(cores[0], cores[0]), _round_trip(cores[0], cores[1]) if len(cores) > 1 else None


def load() -> float:
    """How many processes wanted the machine in the last minute: others' work disturbs what is measured."""
    return float(Path("/proc/loadavg").read_text().split()[0])


def _round_trip(core: int, other: int) -> float:
    allowed = os.sched_getaffinity(0)
    here, there = socket.socketpair()
    child = os.fork()
    if not child:
        here.close()
        os.sched_setaffinity(0, {other})
        while data := there.recv(1):
            there.send(data)
        os._exit(0)
    there.close()
    try:
        os.sched_setaffinity(0, {core})
        for _ in range(ROUND_TRIPS // 10):
            here.send(b"x")
            here.recv(1)
        begun = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            here.send(b"x")
            here.recv(1)
        return (time.perf_counter() - begun) / ROUND_TRIPS * 1e6
    finally:
        here.close()
        os.waitpid(child, 0)
        os.sched_setaffinity(0, allowed)
