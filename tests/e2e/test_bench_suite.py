"""`make bench`, `make bench-live`, `make bench-edge`, as small as can be: each figure is written down, as it is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench import edge, live, loads, results, suite
from bench.client import DemoError
from bench.figures import Notes


@pytest.mark.timeout(400)
def test_every_figure_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        loads.find_wrk()
        loads.find_k6()
    except DemoError as missing:
        pytest.skip(str(missing))
    written: list[Notes] = []
    page = results.page

    def noted(notes: Notes, facts: list[str]) -> str:
        written.append(notes)
        return page(notes, facts)

    monkeypatch.setattr(results, "page", noted)
    # With fewer people everybody follows everybody, and a new post leaves the newest twenty before it is looked for.
    small = ["--users", "1000", "--runs", "1", "--seconds", "1", "--results", str(tmp_path / "results")]
    assert suite.main(small) == 0, capsys.readouterr().out
    [notes] = written
    assert not [bound.what for bound in results.bounds(notes) if math.isnan(bound.figure)]
    assert notes["wrong counts"] == 0
    text = (tmp_path / "results" / "latest.md").read_text()
    assert "nan" not in text
    assert (tmp_path / "results" / results.PLOT).read_text().startswith("<svg")


@pytest.mark.timeout(400)
def test_live_updates_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        loads.find_wrk()
    except DemoError as missing:
        pytest.skip(str(missing))
    small = ["--people", "300", "--clients", "50", "--rate", "20", "--seconds", "1", "--kill", "gateway"]
    assert live.main([*small, "--results", str(tmp_path)]) == 0, capsys.readouterr().out
    text = (tmp_path / "live.md").read_text()
    assert "nan" not in text
    # These are no matter of speed.
    assert [line.count("0, and 0 twice") for line in text.splitlines() if "lost" in line or "not come" in line] == [
        1,
        1,
    ]


@pytest.mark.timeout(400)
def test_the_edge_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        loads.find_wrk()
        loads.find_k6()
    except DemoError as missing:
        pytest.skip(str(missing))
    assert edge.main(["--people", "300", "--seconds", "2", "--results", str(tmp_path)]) == 0, capsys.readouterr().out
    text = (tmp_path / "edge.md").read_text()
    assert "nan" not in text
    # No matter of speed: nobody but the one is refused.
    [failed] = [line for line in text.splitlines() if "that failed" in line]
    assert "**no**" not in failed
