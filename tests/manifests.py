"""The Kubernetes manifests as they are applied."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

OVERLAYS = Path(__file__).parents[1] / "k8s" / "overlays"


def lacking(what: str) -> NoReturn:
    """Skips, but not in CI, where it must be there."""
    if os.environ.get("CI"):
        pytest.fail(f"no {what}")
    pytest.skip(f"no {what}")


@cache
def rendered(overlay: str) -> str:
    """An overlay's documents in YAML; `<overlay>/admin` is what the operator applies besides."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        lacking("kubectl")
    result = subprocess.run([kubectl, "kustomize", OVERLAYS / overlay], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout
