"""The data directory: who holds it, and the secrets kept in it. Not what Postgres keeps there (see postgres.py)."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.settings import Refused


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Makes the directory and holds it for this process, against any other mesh, until the end of the block.

    The kernel gives the lock back however this process ends. Raises Refused when it is taken or unusable.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (FileExistsError, NotADirectoryError):
        raise Refused(f"the data directory {directory} is not a directory") from None
    except OSError as error:
        raise Refused(f"the data directory {directory} cannot be used: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise Refused(f"the data directory {directory} cannot be locked: {error.strerror}") from None
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            raise Refused(f"the data directory {directory} is in use by another mesh (process {holder})") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def secret(directory: Path, name: str) -> str:
    """A secret to sign with, 32 bytes in hex: made once, so that what was signed outlives a restart. Raises Refused."""
    path = directory / name
    try:
        if not path.exists():
            fresh = directory / f"{name}.new"  # written whole, then renamed: never seen half
            fresh.unlink(missing_ok=True)
            fresh.touch(mode=0o600, exist_ok=False)
            with fresh.open("w") as file:
                file.write(secrets.token_hex(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(path)
        found = path.read_text().strip()
    except OSError as error:
        raise Refused(f"{path} cannot be used: {error.strerror}") from None
    if not re.fullmatch("[0-9a-f]{64}", found):
        raise Refused(f"{path} does not hold 64 hexadecimal digits: delete it to have a new secret made")
    return found
