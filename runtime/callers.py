"""Who calls: the processes of a mesh name themselves with every call, and a server refuses whom it does not know.

A service believes its caller about who acts and who looks (`viewer_id`), so a caller must be one of the mesh. Who it
is, a name such as `gateway`, is apart from how that is shown, which only this module knows: in the call's metadata, as
`<name>.<proof>`. The proof is the HMAC-SHA-256 of the name under the secret that the mesh's processes share, in hex. It
is no safer than the network that it crosses: see docs/decisions/0018-known-callers.md.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

KEY = "x-feedmesh-caller"
"""Of the metadata."""
NAME = re.compile("[a-z][a-z0-9-]{0,62}")
MAX_KNOWN = 256
"""Callers whose proofs are remembered; those of one more are computed again."""


class Caller(NamedTuple):
    """A process that calls."""

    name: str
    """As in its logs: `gateway`, `timeline-fanout`."""
    shown: str
    """What shows that it is this one."""

    @property
    def metadatum(self) -> tuple[str, str]:
        """What goes with each call."""
        return KEY, self.shown


def caller(name: str, secret: str) -> Caller:
    """A caller of the mesh that has this secret. `name` is 1 to 63 of a-z, 0-9 and "-", beginning with a letter."""
    return Caller(name, f"{name}.{hmac.new(secret.encode(), name.encode(), hashlib.sha256).hexdigest()}")


class Unknown(Exception):
    """No caller of this mesh."""


class Known:
    """Those whom a server knows: every caller of its mesh."""

    def __init__(self, secret: str) -> None:
        def named(shown: str) -> str:
            name = shown.partition(".")[0]
            if not NAME.fullmatch(name) or not hmac.compare_digest(caller(name, secret).shown.encode(), shown.encode()):
                raise Unknown
            return name

        # What is raised is not remembered, so that strangers push nobody out.
        self._named = lru_cache(MAX_KNOWN)(named)

    def named(self, metadata: Iterable[tuple[str, Any]]) -> str:
        """The name of the caller whose call has this metadata. Raises Unknown."""
        for key, value in metadata:
            if key == KEY:
                return self._named(value)
        raise Unknown
