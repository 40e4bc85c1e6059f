"""The stubs as others get them: a wheel that stands without this repository (`make stubs`)."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import importlib, pkgutil, sys
import feedmesh
names = [found.name for found in pkgutil.walk_packages(feedmesh.__path__, "feedmesh.")]
for name in names:
    importlib.import_module(name)
from feedmesh.timeline.v1 import timeline_pb2, timeline_pb2_grpc
timeline_pb2.GetFeedRequest(user_id=1).SerializeToString()
assert timeline_pb2_grpc.TimelineServiceStub
assert "protovalidate" not in sys.modules
print(feedmesh.__file__, *names)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command of the Makefile, into a folder of its own."""
    folder = tmp_path_factory.mktemp("dist")
    [command] = re.findall(r"^stubs:.*\n\t\$\(BIN\)/python (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    words = [str(folder) if word == "dist" else word for word in command.split()]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = folder.iterdir()
    return built


def test_the_wheel_is_installed_and_imported_outside_of_the_repository(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    install = ["-m", "pip", "--python", str(tmp_path / "venv"), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], cwd=tmp_path, capture_output=True, check=True)
    # What it depends on is here already.
    environment = {"PYTHONPATH": sysconfig.get_path("purelib")}
    python = tmp_path / "venv" / "bin" / "python"
    done = subprocess.run([python, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, *modules = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path / "venv")
    ours = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "feedmesh").rglob("*_pb2*.py")}
    assert ours <= set(modules)


def test_the_wheel_brings_its_types_and_says_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    generated = {name for name in names if re.search(r"_pb2(_grpc)?\.py$", name)}
    assert generated
    assert {"feedmesh/py.typed", *(f"{name}i" for name in generated)} <= names
    assert not [name for name in names if "__pycache__" in name]
    assert all(name.startswith(("feedmesh/", "feedmesh_protos-")) for name in names)
    needs = {
        re.split("[<>=]", line.removeprefix("Requires-Dist: "))[0]
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ")
    }
    assert needs == {"googleapis-common-protos", "grpcio", "protobuf"}
    [version] = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert f"Version: {version}\n" in metadata
