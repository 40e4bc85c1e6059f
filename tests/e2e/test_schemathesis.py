"""The OpenAPI document held against a running mesh: Schemathesis makes requests of it, right and wrong ones, alone and
in sequence, and holds each answer against it. Always the same requests, as far as ids go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
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
# After these the token is none any more.
SIGNED = ["--exclude-operation-id=EndSession", "--exclude-operation-id=ChangePassword"]


@pytest.mark.timeout(BOUND_S + 120)
@pytest.mark.parametrize("auth", ["local", "builtin"])
def test_every_answer_is_as_the_document_says(tmp_path: Path, auth: str) -> None:
    with meshes.running(tmp_path / "mesh", FEEDMESH_AUTH=auth, FEEDMESH_LIMITS="false") as mesh:
        arguments = (
            ARGUMENTS if auth == "local" else [*ARGUMENTS, *SIGNED, f"--header=Authorization: {signed_in(mesh)}"]
        )
        ended = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"{mesh.url}/openapi.json", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Tested: " in ended.stdout


def signed_in(mesh: meshes.Mesh) -> str:
    """The token of somebody new."""
    who = {"username": "schemathesis", "password": "correct horse battery staple"}
    with httpx.Client(base_url=mesh.url) as http:
        assert http.post("/users", json=who | {"email": "schemathesis@example.org"}).status_code == 201
        return f"Bearer {http.post('/sessions', json=who).json()['access_token']}"
