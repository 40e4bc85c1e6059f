"""The tables of a drive, in Markdown, and the machine that it was measured on."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.counters import CANDIDATES, DELIVERED, FANNED_OUT, TRIED, Counters
from bench.drive import Drive, Measured

HEAD = ("operation", "requests", "requests/s", "p50 ms", "p99 ms", "errors")


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value with at least this share of all at or below it (nearest rank); NaN of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def table(drive: Drive) -> list[str]:
    """The lines of the table: by operation, and in total."""
    total = Measured(
        requests=sum(each.requests for each in drive.by_kind.values()),
        errors=sum(each.errors for each in drive.by_kind.values()),
        seconds=[took for each in drive.by_kind.values() for took in each.seconds],
    )
    rows = [_row(f"`{kind}`", each, drive.seconds) for kind, each in drive.by_kind.items()]
    return markdown([HEAD, *rows, _row("total", total, drive.seconds)])


def facts(visible: Measured, counted: Counters | None, degraded: Counter[str]) -> list[str]:
    """The lines of the other table: how soon a post was seen, and how the mesh brought it about."""
    p50, p99 = _milliseconds(visible)
    how = ", ".join(f"{part} {count:,}" for part, count in degraded.most_common())
    return markdown(
        [
            ("from a post to the feeds", ""),
            ("from 201 to visible in a follower's feed, p50 ms", p50),
            ("from 201 to visible in a follower's feed, p99 ms", p99),
            ("posts that were looked for so", f"{visible.requests:,}"),
            ("of these failed, lost or late", f"{visible.errors:,}"),
            *_counted(counted),
            ("degraded feeds", f"{degraded.total():,}" + (f" ({how})" if how else "")),
        ]
    )


def _counted(counted: Counters | None) -> list[tuple[str, str]]:
    names = (
        "deliveries/s: posts × active followers",
        "active, of the followers of posts",
        "posts pushed, pushed and pulled, pulled",
        "candidates from home lists, pulled authors, Postgres",
    )
    if counted is None:
        return [(name, "– (not a mesh of the demo's own)") for name in names]
    values = counted.values
    return [
        (names[0], f"{values[DELIVERED,] / counted.seconds:,.0f}"),
        (names[1], _shares([values[DELIVERED,], values[TRIED,] - values[DELIVERED,]])[0]),
        (names[2], ", ".join(_shares([values[FANNED_OUT, mode] for mode in ("push", "both", "pull")]))),
        (names[3], ", ".join(_shares([values[CANDIDATES, source] for source in ("home", "authors", "postgres")]))),
    ]


def _shares(parts: Sequence[int]) -> list[str]:
    return [f"{100 * part / sum(parts):.1f} %" if any(parts) else "–" for part in parts]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table with these rows, the first its head; numbers are in all columns but the first."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(_aligned(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join(
        "-" * (width + 2) if not column else "-" * (width + 1) + ":" for column, width in enumerate(widths)
    )
    return [lines[0], rule + "|", *lines[1:]]


def _row(name: str, measured: Measured, seconds: float) -> tuple[str, ...]:
    p50, p99 = _milliseconds(measured)
    return name, f"{measured.requests:,}", f"{measured.requests / seconds:,.0f}", p50, p99, f"{measured.errors:,}"


def _milliseconds(measured: Measured) -> list[str]:
    """The median and the 99th percentile."""
    ordered = sorted(measured.seconds)
    return [f"{1_000 * percentile(ordered, share):.1f}" if ordered else "–" for share in (0.5, 0.99)]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def hardware() -> str:
    """This machine in one line."""
    cores = len(os.sched_getaffinity(0))
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{cores} {'core' if cores == 1 else 'cores'} of {_cpu()}, {gib:.0f} GiB of memory, "
        f"{platform.python_implementation()} {platform.python_version()}, {_system()}"
    )


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _system() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        name = platform.system()
    return f"{name}, kernel {platform.release()}"
