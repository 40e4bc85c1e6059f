"""The whole of `make bench`, as small as can be: each figure is measured and written down, whatever it is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench import loads, results, suite
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
