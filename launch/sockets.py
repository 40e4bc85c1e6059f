"""Where an embedded store listens: a Unix socket in a private directory under /tmp. Not what listens there.

A socket's path is bounded to 107 bytes and a data directory's is not, so the data directory holds a link only:

    <data dir>/<store>-socket    a link to the directory of the store's socket

Nobody else may enter that directory, so trusting every connection trusts nobody else.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from pathlib import Path

SOCKETS = Path("/tmp")


def make(data_dir: Path, store: str) -> Path:
    """A new directory for the store's socket; removes the one that a killed mesh left. Raises OSError.

    Call it while holding the data directory.
    """
    remove(data_dir, store)
    directory = SOCKETS / f"feedmesh-{secrets.token_hex(8)}"
    _link(data_dir, store).symlink_to(directory)  # the link comes first, so that no directory is ever lost
    directory.mkdir(mode=0o700)
    return directory


def remove(data_dir: Path, store: str) -> None:
    """Removes the directory of the store's socket and the link to it, if there are any."""
    link = _link(data_dir, store)
    with contextlib.suppress(FileNotFoundError):
        directory = link.readlink()
        if directory.parent == SOCKETS and directory.name.startswith("feedmesh-"):
            shutil.rmtree(directory, ignore_errors=True)
        link.unlink()


def _link(data_dir: Path, store: str) -> Path:
    return data_dir / f"{store}-socket"
