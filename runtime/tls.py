"""Mutual TLS: the certificate of this process, read again when it changes, and what gRPC makes of it.

A folder has `tls.crt` (the certificate, then those between it and the authority), `tls.key` and `ca.crt` (the
authorities that count), as cert-manager writes them. A certificate says whose it is by one URI, a SPIFFE ID:
`spiffe://feedmesh.internal/ns/feedmesh/sa/timeline` is the process `timeline`; those whose IDs are alike up to the last
"/" are of the same mesh. Its DNS name is the process's, too, by which callers know whom they have reached.

A server takes the newest certificate with each handshake. A client's channel has one for good, so runtime/client.py
makes another channel; calls under way end on the one before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often the files are looked at."""
SCHEME = "spiffe://"


class Certificate(NamedTuple):
    """What the files say."""

    key: bytes
    chain: bytes
    roots: bytes
    spiffe_id: str
    expires: datetime

    @property
    def mesh(self) -> str:
        """What the IDs of all of its mesh begin with, up to and with the last "/"."""
        return self.spiffe_id[: self.spiffe_id.rindex("/") + 1]

    @property
    def name(self) -> str:
        """The process's."""
        return self.spiffe_id[len(self.mesh) :]


def read(folder: Path) -> Certificate:
    """The certificate in a folder. Raises ValueError, which names the file, for what cannot be used."""
    found = {}
    for name in ("tls.key", "tls.crt", "ca.crt"):
        try:
            found[name] = (folder / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    try:
        key = serialization.load_pem_private_key(found["tls.key"], None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"tls.key is no private key in PEM: {error}") from None
    try:
        own = x509.load_pem_x509_certificates(found["tls.crt"])[0]
    except ValueError as error:
        raise ValueError(f"tls.crt is no certificate in PEM: {error}") from None
    try:
        x509.load_pem_x509_certificates(found["ca.crt"])
    except ValueError as error:
        raise ValueError(f"ca.crt is no certificate in PEM: {error}") from None
    if own.public_key() != key.public_key():
        raise ValueError("tls.key is not the key of tls.crt")
    if own.not_valid_after_utc <= datetime.now(UTC):
        raise ValueError(f"tls.crt has expired at {own.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
    return Certificate(found["tls.key"], found["tls.crt"], found["ca.crt"], spiffe_id_of(own), own.not_valid_after_utc)


def spiffe_id_of(certificate: x509.Certificate) -> str:
    """The SPIFFE ID of an X.509-SVID: its only URI. Raises ValueError."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith(SCHEME) or "/" not in uris[0].removeprefix(SCHEME):
        raise ValueError("tls.crt must have one URI, spiffe://… of a process")
    return uris[0]


class Keeper:
    """The certificate of this process as it is now."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError for what cannot be used."""
        self._folder = folder
        self._refused = ""
        self.changed: list[Callable[[], None]] = []
        """Called after another certificate has taken its place."""
        self._take(read(folder))

    async def look(self) -> bool:
        """Takes another certificate that is there. One that cannot be used is logged once, and the last one stays."""
        try:
            found = read(self._folder)
        except ValueError as error:
            # Also what is there for a moment while files are written one after the other.
            if str(error) != self._refused:
                self._refused = str(error)
                log.warning("the certificate stays as it was: %s", error)
            return False
        self._refused = ""
        if found == self.current:
            return False
        if (found.mesh, found.name) != (self.current.mesh, self.current.name):
            log.error("the certificate stays as it was: the new one is of %s", found.spiffe_id)
            return False
        self._take(found)
        log.info("another certificate", extra={"expires": found.expires.isoformat()})
        for tell in self.changed:
            tell()
        return False

    def _take(self, found: Certificate) -> None:
        pairs = [(found.key, found.chain)]
        self._of_servers = grpc.ssl_server_certificate_configuration(pairs, root_certificates=found.roots)
        self.current = found

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server: it asks for a certificate of the same authorities, and shows the newest of ours."""
        return grpc.dynamic_ssl_server_credentials(
            self._of_servers, lambda: self._of_servers, require_client_authentication=True
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel: with the certificate of now."""
        now = self.current
        return grpc.ssl_channel_credentials(now.roots, now.key, now.chain)


@lru_cache
def keeper(folder: Path) -> Keeper:
    """The one of this process for a folder. Raises ValueError."""
    return Keeper(folder)
