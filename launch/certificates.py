"""Certificates for a mesh on one machine (`make run TLS=1`): an authority of its own, and one for each process.

They are what cert-manager makes on a cluster (k8s/components/tls): see runtime/tls.py for what is in them. They are
good for a day and made anew long before, so that they change here as they do there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from launch.settings import Refused

MESH = "spiffe://feedmesh.internal/ns/feedmesh/sa/"
"""What the SPIFFE IDs of all processes begin with; as on a cluster, in the namespace feedmesh."""
LIFETIME = timedelta(days=1)
RENEWED = timedelta(hours=8)
"""After how long they are made anew."""
OF_AUTHORITY = timedelta(days=3650)
SKEW = timedelta(minutes=5)
"""How far clocks may be apart."""


class Authority:
    """The authority of a mesh, in a folder that it makes: its key is for nobody else to read."""

    def __init__(self, folder: Path) -> None:
        """Raises Refused where the folder cannot be used."""
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (folder / "ca.crt").exists():
                self._make()
            self._key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
            self.certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        except OSError as error:
            raise Refused(f"{folder} cannot be used: {error.strerror}") from None
        except ValueError as error:
            raise Refused(f"{folder} holds no certificates: delete it to have new ones made ({error})") from None

    def issue(self, names: Iterable[str], *, mesh: str = MESH, lifetime: timedelta = LIFETIME) -> None:
        """Certificates for processes, in a folder each, called as they are. Those that are there are replaced.

        Raises Refused.
        """
        for name in names:
            try:
                self._issue(name, mesh, lifetime)
            except OSError as error:
                raise Refused(f"{self._folder / name} cannot be used: {error.strerror}") from None

    def _issue(self, name: str, mesh: str, lifetime: timedelta) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(name), x509.UniformResourceIdentifier(mesh + name)]
        builder = (
            _valid(x509.CertificateBuilder().subject_name(x509.Name([])), lifetime)
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
        )
        made = builder.sign(self._key, hashes.SHA256())  # type: ignore[arg-type]
        folder = self._folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        write(folder / "tls.key", _pem(key))
        write(folder / "tls.crt", made.public_bytes(serialization.Encoding.PEM))
        write(folder / "ca.crt", self.certificate.public_bytes(serialization.Encoding.PEM))

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "feedmesh on this machine")])
        builder = (
            _valid(x509.CertificateBuilder().subject_name(name), OF_AUTHORITY)
            .issuer_name(name)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        write(self._folder / "ca.key", _pem(key))
        made = builder.sign(key, hashes.SHA256())
        write(self._folder / "ca.crt", made.public_bytes(serialization.Encoding.PEM))


def _valid(builder: x509.CertificateBuilder, lifetime: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    serial = x509.random_serial_number()
    return builder.serial_number(serial).not_valid_before(now - SKEW).not_valid_after(now + lifetime)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write(path: Path, data: bytes) -> None:
    """Writes a file whole, for its owner alone: nobody ever reads half of it."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    fresh.rename(path)
