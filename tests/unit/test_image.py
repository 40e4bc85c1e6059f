"""What the image is made of: requirements-run.lock, which is the part of requirements.lock that runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Each package with its version and hashes."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text()):
        package, _, version = entry.split()[0].partition("==")
        found[package] = version, frozenset(re.findall(r"--hash=(\S+)", entry))
    return found


def test_the_image_is_made_of_the_same_versions_as_are_tested() -> None:
    run, everything = pins("requirements-run.lock"), pins("requirements.lock")
    assert run.items() <= everything.items()
    assert all(hashes for _, hashes in run.values())


def test_the_image_holds_what_is_needed_and_no_tests() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    run = pins("requirements-run.lock")
    assert {re.split(r"[\[<>=]", each)[0] for each in wanted} <= set(run)
    assert "pytest" not in run


def test_the_image_holds_the_code_that_runs_and_nothing_else() -> None:
    copied = re.findall(r"^COPY (\w+) \1$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    let_in = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert {*copied, "requirements-run.lock"} == set(let_in)
    assert set(copied) == {"feedmesh", "gateway", "runtime", "services"}
