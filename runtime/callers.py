"""Who calls: the processes of a mesh name themselves with every call, and a server refuses whom it does not know.

A service believes its caller about who acts and who looks (`viewer_id`), so a caller must be one of the mesh. Who it
is, a name such as `gateway`, is apart from how that is shown, which only this module knows:

- by a certificate, where the mesh has them (runtime/tls.py): the name in its SPIFFE ID;
- otherwise in the call's metadata, as `<name>.<proof>`. The proof is the HMAC-SHA-256 of the name under the secret that
  the mesh's processes share, in hex. It is no safer than the network that it crosses.

What each may call, the contracts say (`callers`). See docs/decisions/0018-known-callers.md and 0019-mutual-tls.md.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor

from runtime import config, mesh, tls

KEY = "x-feedmesh-caller"
"""Of the metadata."""
SPIFFE_ID = "peer_spiffe_id"
"""What gRPC calls it."""
NAME = re.compile("[a-z][a-z0-9-]{0,62}")
MAX_KNOWN = 256
"""Callers whose proofs are remembered; those of one more are computed again."""


class Caller(NamedTuple):
    """A process that calls."""

    name: str
    """As in its logs: `gateway`, `timeline-fanout`."""
    shown: str
    """What shows that it is this one; "" where its certificate does."""
    tls: tls.Keeper | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call."""
        return ((KEY, self.shown),) if self.shown else ()


def caller(name: str, secret: str) -> Caller:
    """A caller of the mesh that has this secret. `name` is 1 to 63 of a-z, 0-9 and "-", beginning with a letter."""
    return Caller(name, f"{name}.{hmac.new(secret.encode(), name.encode(), hashlib.sha256).hexdigest()}")


def of(name: str, settings: config.MeshSettings) -> Caller:
    """This process as a caller. Ends it with one clear line where its certificate cannot be used, or is another's."""
    keeper = certificate(name, settings)
    return caller(name, str(settings.mesh_secret)) if keeper is None else Caller(name, "", keeper)


def certificate(name: str, settings: config.MeshSettings) -> tls.Keeper | None:
    """The certificate of this process, None in a mesh without. Ends the process as `of` does."""
    if settings.tls_dir is None:
        return None
    try:
        keeper = tls.keeper(settings.tls_dir)
    except ValueError as error:
        config.fail(f"{config.PREFIX}TLS_DIR: {error}")
    if keeper.current.name != name:
        config.fail(f"{config.PREFIX}TLS_DIR: tls.crt is of {keeper.current.name}, and this is {name}")
    return keeper


class Unknown(Exception):
    """No caller of this mesh."""


class Known:
    """Those whom a server knows, every caller of its mesh, and what each may call."""

    def __init__(
        self, shown_by: str | tls.Keeper, services: Iterable[ServiceDescriptor] = (), more: Collection[str] = ()
    ) -> None:
        """`shown_by` is the mesh's secret, or the server's own certificate. `more` may call everything."""
        self._more = frozenset(more)
        self._callers = {path: names for each in services for path, names in mesh.callers_of(each).items()}
        self._keeper = shown_by if isinstance(shown_by, tls.Keeper) else None
        secret = "" if isinstance(shown_by, tls.Keeper) else shown_by

        def by_secret(shown: str) -> str:
            name = shown.partition(".")[0]
            if not NAME.fullmatch(name) or not hmac.compare_digest(caller(name, secret).shown.encode(), shown.encode()):
                raise Unknown
            return name

        # What is raised is not remembered, so that strangers push nobody out.
        self._by_secret = lru_cache(MAX_KNOWN)(by_secret)

    def named(self, metadata: Iterable[tuple[str, Any]], rpc: Any = None) -> str:
        """The name of the caller whose call has this metadata, and this context. Raises Unknown."""
        if self._keeper is not None:
            # Of the call's own connection. Not kept by its address, which another process may have a moment later.
            [spiffe_id] = rpc.auth_context().get(SPIFFE_ID) or [b""]
            ours = self._keeper.current.mesh
            name: str = spiffe_id.decode("latin-1").removeprefix(ours)
            if not spiffe_id.startswith(ours.encode()) or not NAME.fullmatch(name):
                raise Unknown
            return name
        for key, value in metadata:
            if key == KEY:
                return self._by_secret(value)
        raise Unknown

    def may_call(self, path: str) -> frozenset[str]:
        """The names of those who may call an RPC, by its path as in `/feedmesh.post.v1.PostService/GetPost`."""
        return self._callers.get(path, frozenset()) | self._more
