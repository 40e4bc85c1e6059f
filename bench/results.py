"""What a run of the benchmarks is written down as: a page in Markdown and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench import plot
from bench.figures import BUSY, BUSY_SHARE, CONNECTIONS, LOADS, ORIENTATION, Notes
from bench.report import hardware, markdown

FOLDER = Path("bench/results")
PLOT = "latest.svg"


@dataclass(frozen=True)
class Bound:
    """Something that the product promises."""

    what: str
    figure: float
    text: str
    """The figure, to be read."""
    least: float = -math.inf
    most: float = math.inf

    @property
    def met(self) -> bool:
        """Whether it is kept; a figure that was not measured is not."""
        return self.least <= self.figure <= self.most

    def row(self) -> tuple[str, ...]:
        """The row of the table."""
        bound = f"≥ {self.least:,g}" if self.least > -math.inf else f"≤ {self.most:,g}"
        return self.what, bound, self.text, "yes" if self.met else "**no**"


def bounds(notes: Notes) -> list[Bound]:
    """What must be shown, with what was measured."""

    def number(what: str, name: str, least: float = -math.inf, most: float = math.inf, form: str = ",.0f") -> Bound:
        return Bound(what, notes[name], f"{notes[name]:{form}}", least, most)

    ratio, reads = notes["mesh / floor"], notes[f"mesh {BUSY} rate"]
    delivered, textbook = notes["fan-out 10,000"], notes["textbook"]
    likes, wrong = notes["viral likes rate"], sum(notes.values.get("wrong counts", [math.nan]))
    return [
        Bound(
            f"feed reads/s at {BUSY} connections, of the floor's in the same run",
            ratio,
            f"{ratio:.2f} ({reads:,.0f}/s of {notes[f'floor {BUSY} rate']:,.0f}/s)",
            least=0.5,
        ),
        number(
            f"p99 of a feed read at {ORIENTATION:,}/s, open loop, ms", f"open {ORIENTATION} p99_ms", most=25, form=".1f"
        ),
        number("CPU of a feed read, all processes and stores, ms", "mesh cpu", most=0.5, form=".2f"),
        number("CPU of a feed read, the gateway's, ms", "mesh cpu gateway", most=0.15, form=".3f"),
        number("fan-out, one worker, 10,000 active followers a post, deliveries/s", "fan-out 10,000", least=200_000),
        Bound(
            "the same, against the textbook's in the same run",
            delivered / textbook,
            f"{delivered / textbook:.1f}",
            least=2,
        ),
        number(f"from 201 to visible at {BUSY_SHARE:.0%} load, p99, ms", "visible load p99", most=250),
        number("likes/s on one post", "viral likes rate", least=3_000),
        Bound("counts that were not exact afterwards", wrong, f"{wrong:.0f} (of {likes:,.0f}/s)", most=0),
        number("Redis bytes a timeline entry", "bytes an entry", most=24, form=".1f"),
    ]


def page(notes: Notes, facts: Sequence[str]) -> str:
    """The whole page. `facts` are lines about how it was measured."""
    n = notes
    head = ("figure", "bound", "measured", "met")
    lines = [
        f"# Benchmarks, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "",
        f"On {hardware()}.",
        *facts,
        "",
        "## What must be shown",
        "",
        *markdown([head, *(bound.row() for bound in bounds(n))]),
        "",
        "## Feed reads",
        "",
        "Closed loop (wrk), first pages of 20 posts, everybody in turn:",
        "",
        *markdown(
            [
                ("connections", "mesh reads/s", "p50 ms", "p99 ms", "floor reads/s", "p50 ms", "p99 ms", "wrk, cores"),
                *(
                    (
                        str(each),
                        *(
                            f"{n[f'{what} {each} {name}']:,.{digits}f}"
                            for what in ("mesh", "floor")
                            for name, digits in (("rate", 0), ("p50_ms", 1), ("p99_ms", 1))
                        ),
                        f"{n[f'mesh {each} generator']:.2f}",
                    )
                    for each in CONNECTIONS
                ),
            ]
        ),
        "",
        f"Open loop (k6), from the moment when a request was due; shares are of the rate at {BUSY}"
        " connections. k6's cores count its start, which takes most of a second:",
        "",
        *markdown(
            [
                ("reads/s due", "answered", "p50 ms", "p99 ms", "longest ms", "dropped", "refused", "k6, cores"),
                *(
                    (
                        text,
                        f"{n[f'open {each} rate']:,.0f}",
                        *(_ms(n[f"open {each} {what}"]) for what in ("p50_ms", "p99_ms", "max_ms")),
                        *(f"{n[f'open {each} {what}']:,.0f}" for what in ("dropped", "refused")),
                        f"{n[f'open {each} generator']:.2f}",
                    )
                    for each, text in (
                        ("floor", f"{ORIENTATION:,}, the floor"),
                        (str(ORIENTATION), f"{ORIENTATION:,}"),
                        *((f"{share:.0%}",) * 2 for share in LOADS),
                    )
                ),
            ]
        ),
        "",
        f"![Throughput and latency]({PLOT})",
        "",
        f"CPU of a read at {BUSY} connections, in milliseconds:",
        "",
        *_cpu(n, "mesh cpu", "floor cpu"),
        "",
        "## Writes",
        "",
        f"Closed loop (wrk), {BUSY} connections:",
        "",
        *markdown(
            [
                ("", "per s", "p50 ms", "p99 ms", "CPU ms each", "wrk, cores"),
                *(
                    (
                        text,
                        *(
                            f"{n[f'{name} {what}']:,.{digits}f}"
                            for what, digits in (("rate", 0), ("p50_ms", 1), ("p99_ms", 1), ("cpu", 2))
                        ),
                        f"{n[f'{name} generator']:.2f}",
                    )
                    for name, text in (
                        ("posts", "posts"),
                        ("viral likes", "likes on one post"),
                        ("spread likes", "likes on any posts"),
                    )
                ),
            ]
        ),
        "",
        "## Fan-out",
        "",
        *markdown(
            [
                ("", "deliveries/s", "CPU µs each, all processes"),
                *(
                    (text, f"{n[f'fan-out {name}']:,.0f}", f"{sum(n.starting(f'fan-out {name} cpu ').values()):.2f}")
                    for name, text in (("10,000", "10,000 active followers a post"), ("reed", "the Reed graph's mix"))
                ),
                ("the textbook, 10,000 followers a post", f"{n['textbook']:,.0f}", "–"),
            ]
        ),
        "",
        "From 201 to visible in a follower's feed:",
        "",
        *markdown(
            [
                ("", "p50 ms", "p99 ms", "posts looked for, a run"),
                *(
                    (text, *(f"{n[f'visible {name} {what}']:,.0f}" for what in ("p50", "p99", "probes")))
                    for name, text in (
                        ("rest", "at rest"),
                        (
                            "load",
                            f"at {BUSY_SHARE:.0%} of {n['mix rate']:,.0f} requests/s"
                            " (60 % feeds, 30 % author pages, 10 % posts)",
                        ),
                    )
                ),
            ]
        ),
        "",
        "## Memory",
        "",
        f"{n['bytes an entry']:.1f} bytes of Redis a timeline entry, lists of {n['entries a list']:.0f} entries.",
        "",
    ]
    return "\n".join(lines)


def picture(notes: Notes) -> str:
    """The plot."""

    def closed(what: str, name: str) -> list[tuple[float, float, str]]:
        return [(notes[f"{what} {each} rate"], notes[f"{what} {each} {name}"], str(each)) for each in CONNECTIONS]

    opened = [f"open {share:.0%}" for share in LOADS]
    return plot.svg(
        "Feed reads: throughput and latency (numbers: connections, or share of the highest rate)",
        [
            plot.Curve("mesh, p50, closed loop", "#1f6fb4", closed("mesh", "p50_ms")),
            plot.Curve("mesh, p99, closed loop", "#1f6fb4", closed("mesh", "p99_ms"), dashed=True),
            plot.Curve(
                "mesh, p99, open loop",
                "#c0392b",
                [(notes[f"{each} rate"], notes[f"{each} p99_ms"], each.removeprefix("open ")) for each in opened],
                dashed=True,
            ),
            plot.Curve("floor, p50, closed loop", "#777777", closed("floor", "p50_ms")),
            plot.Curve("floor, p99, closed loop", "#777777", closed("floor", "p99_ms"), dashed=True),
        ],
    )


def _cpu(notes: Notes, mesh: str, floor: str) -> list[str]:
    of_mesh = sorted(notes.starting(f"{mesh} ").items(), key=lambda each: -each[1])
    rows = [(name, f"{ms:.3f}") for name, ms in of_mesh if ms >= 0.001]
    of_floor = [(f"floor: {name}", f"{ms:.3f}") for name, ms in notes.starting(f"{floor} ").items()]
    return markdown([("process", "ms"), *rows, ("all of the mesh", f"{notes[mesh]:.3f}"), *of_floor])


def _ms(value: float) -> str:
    return f"{value:,.1f}" if math.isfinite(value) else "none: too many dropped"
