"""Becomes another program that dies with the process that started it. A script, run without the rest of the package.

    python -I -S leash.py PARENT_PID DEATH_SIGNAL IDENTITY PROGRAM [ARGUMENT…]

A wrapper rather than `preexec_fn`, which runs Python between fork and exec and can deadlock in a program that
has threads (the screen is one). The death signal is set here, in the process that becomes the program: Linux
keeps it across exec but clears it when credentials change, so IDENTITY comes first:

    -          stay who we are
    as:UID:GID be that user for good (from root)
    map:UID    be UID inside a user namespace, and ourselves to the file system outside of it
"""

import ctypes
import os
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000

libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(death_signal: int, parent: int) -> None:
    """Asks the kernel for `death_signal` when the thread that forked us ends; exits at once if `parent` is gone."""
    libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)  # it died before the request above: nothing would ever end us


def become(identity: str) -> None:
    """Takes on IDENTITY (see above). Raises OSError where the system does not allow it."""
    kind, _, number = identity.partition(":")
    if kind == "as":
        uid, gid = map(int, number.split(":"))
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    elif kind == "map":
        outside_uid, outside_gid = os.geteuid(), os.getegid()
        if libc.unshare(CLONE_NEWUSER) != 0:
            raise OSError(ctypes.get_errno(), "no user namespace")
        for name, text in (
            ("setgroups", "deny"),  # without it the kernel refuses the gid map
            ("uid_map", f"{number} {outside_uid} 1"),
            ("gid_map", f"{number} {outside_gid} 1"),
        ):
            Path(f"/proc/self/{name}").write_text(text)


if __name__ == "__main__":
    _, _parent, _signal, _identity, *_argv = sys.argv
    become(_identity)
    die_with_parent(int(_signal), int(_parent))
    os.execv(_argv[0], _argv)
