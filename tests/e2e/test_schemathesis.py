"""The OpenAPI document held against a running mesh: Schemathesis makes requests of it, right and wrong ones, alone and
in sequence, and holds each answer against it. Always the same requests, as far as ids go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import mesh as meshes

BOUND_S = 240
ARGUMENTS = [
    "--checks=all",
    # Not whatever a schema allows can be taken: a cursor is any string to it, 1.0 an integer, a name has a form.
    "--exclude-checks=positive_data_acceptance",
    # They go on for ever: tests/e2e/test_live.py.
    "--exclude-path=/live",
    "--exclude-path=/live/events",
    "--generation-deterministic",
    "--max-examples=10",
    "--request-timeout=10",
    "--continue-on-failure",
    "--no-color",
]


@pytest.mark.timeout(BOUND_S + 120)
def test_every_answer_is_as_the_document_says(tmp_path: Path) -> None:
    with meshes.running(tmp_path / "mesh") as mesh:
        ended = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"{mesh.url}/openapi.json", *ARGUMENTS],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Tested: " in ended.stdout
