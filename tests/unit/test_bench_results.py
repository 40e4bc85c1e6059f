"""What the benchmarks write down, from figures that were not measured; the plot; and CPU time by process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest

from bench import cpu, plot, results
from bench.figures import CONNECTIONS, LOADS, Notes


@pytest.fixture
def notes() -> Notes:
    notes = Notes()
    for run in (1, 2, 3):
        for what, rate in (("mesh", 4_000), ("floor", 8_000)):
            for connections in CONNECTIONS:
                for name, value in (("rate", rate), ("p50_ms", 1.5), ("p99_ms", 9), ("generator", 0.2)):
                    notes.add(f"{what} {connections} {name}", value * run)
            notes.add(f"{what} cpu", 0.4)
            notes.add(f"{what} cpu gateway", 0.1)
        for each in ("floor", "1000", *(f"{share:.0%}" for share in LOADS)):
            for name in ("rate", "p50_ms", "p99_ms", "max_ms", "dropped", "refused", "generator"):
                notes.add(f"open {each} {name}", 2)
        notes.add("mesh / floor", (0.1, 0.5, 0.9)[run - 1])
        notes.add("fan-out 10,000", 300_000)
        notes.add("textbook", 100_000)
        notes.add("viral likes rate", 2_000)
        notes.add("wrong counts", 0)
    return notes


def test_a_figure_is_the_median_of_its_runs(notes: Notes) -> None:
    assert notes["mesh / floor"] == 0.5
    assert notes[f"mesh {CONNECTIONS[0]} rate"] == 8_000
    assert math.isnan(notes["what nobody measured"])


def test_bounds_are_met_missed_or_not_measured(notes: Notes) -> None:
    met = {bound.what: bound.met for bound in results.bounds(notes)}
    assert len(met) == 10
    assert [name for name, kept in met.items() if not kept] == [
        "from 201 to visible at 70% load, p99, ms",  # not measured
        "likes/s on one post",
        "Redis bytes a timeline entry",  # not measured
    ]
    notes.add("wrong counts", 1)
    assert not next(bound for bound in results.bounds(notes) if "exact" in bound.what).met, "one run's is enough"


def test_the_page_shows_every_bound(notes: Notes) -> None:
    page = results.page(notes, ["pinned to nothing"])
    assert all(bound.what in page for bound in results.bounds(notes))
    assert "0.50 (8,000/s of 16,000/s)" in page
    assert "pinned to nothing" in page


def test_the_plot_has_every_point_that_is_a_number(notes: Notes) -> None:
    notes.values["open 90% p99_ms"] = [math.inf]
    picture = ElementTree.fromstring(results.picture(notes))
    circles = picture.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 4 * len(CONNECTIONS) + len(LOADS) - 1


def test_a_plot_spans_whole_decades() -> None:
    picture = plot.svg("one", [plot.Curve("a", "red", [(30, 7, ""), (2_000, 90, "")])])
    assert [tick for tick in ("10", "10,000") if f">{tick}<" in picture] == ["10", "10,000"]
    assert 'cx="' in plot.svg("a single point", [plot.Curve("a", "red", [(10, 1, "")])])


def test_cpu_is_counted_by_what_a_process_is() -> None:
    code = "import time\nuntil = time.process_time() + 0.4\nwhile time.process_time() < until: pass\ninput()"
    with subprocess.Popen((sys.executable, "-c", code), stdin=subprocess.PIPE) as child:
        name = os.path.basename(sys.executable)
        until = time.monotonic() + 30
        while cpu.spent({child.pid: name}).get(name, 0) < 0.3:
            assert time.monotonic() < until
        assert child.pid in cpu.tree(os.getpid())
        child.communicate(b"\n")
    assert cpu.spent({child.pid: name}) == {}
