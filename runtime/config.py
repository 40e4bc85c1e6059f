"""Settings from the environment, checked as a whole before anything starts. No files, no flags, no defaults per place.

Every setting is an environment variable `FEEDMESH_<NAME>`; a process refuses the names that it does not know, because a
misspelt setting that is silently ignored is found in production. docs/settings.md lists them all.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Self, TypeVar

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "FEEDMESH_"

PORT = r"([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
IPV4 = r"[0-9]{1,3}(\.[0-9]{1,3}){3}"
Address = Annotated[str, StringConstraints(pattern=rf"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):{PORT}$")]
"""host:port; port 0 stands for any free one."""

Target = Annotated[
    str, StringConstraints(min_length=1, max_length=4096, pattern=rf"^([^,]+|{IPV4}:{PORT}(,{IPV4}:{PORT})+)$")
]
"""Where a gRPC service is: host:port, several of IPv4:port joined by commas, or a name such as `dns:///post:50051`."""

Secret = Annotated[str, StringConstraints(min_length=32, max_length=256)]


def names(text: object) -> object:
    """The names in a list that commas separate. Raises ValueError for what is none."""
    if not isinstance(text, str):
        return text
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not all(re.fullmatch("[a-z][a-z0-9-]{0,62}", name) for name in found):
        raise ValueError("must be names of a-z, 0-9 and -, separated by commas")
    return found


class Settings(BaseSettings):
    """What every process can be told."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""
    metrics_address: Address = "127.0.0.1:0"
    """Where Prometheus reads this process's metrics (`/metrics`)."""
    health_address: Address | None = None
    """Where a gRPC server tells probes how this process is and nothing else, without TLS: see runtime/process.py."""


class MeshSettings(Settings):
    """What every process can be told that calls another, or is called."""

    tls_dir: Path | None = None
    """A folder with this process's certificate (runtime/tls.py): with one, all calls are mutual TLS."""
    mesh_secret: Secret | None = None
    """What callers show who they are by where there are no certificates; the same in all of a mesh."""
    plaintext: bool = False
    """Whether calls may go without TLS beyond this machine."""

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if (self.tls_dir is None) == (self.mesh_secret is None):
            raise ValueError("FEEDMESH_TLS_DIR, FEEDMESH_MESH_SECRET: one of the two is needed, and not both")
        for name, value in self:
            is_address = name == "grpc_address" or name.endswith("_target")
            if is_address and value and self.tls_dir is None and not self.plaintext and not is_here(value):
                raise ValueError(
                    f"{PREFIX}{name.upper()}: calls would leave this machine without TLS: give FEEDMESH_TLS_DIR, or "
                    "FEEDMESH_PLAINTEXT=true where the network itself is trusted"
                )
        return self


class ServerSettings(MeshSettings):
    """What every gRPC server can be told besides."""

    grpc_address: Address = "127.0.0.1:0"
    """Where the server listens."""
    max_concurrent_rpcs: int = Field(default=1024, ge=1, le=100_000)
    """Calls under way at once; more are refused at once with RESOURCE_EXHAUSTED."""
    more_callers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(names)] = ()
    """Names of services outside of the mesh's own processes that may call everything here."""


def is_here(address: str) -> bool:
    """Whether an address (see Address), or all of a Target, is on this machine alone."""
    return all(
        each.startswith("unix:") or is_loopback(each.rpartition(":")[0].strip("[]")) for each in address.split(",")
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


S = TypeVar("S", bound=Settings)


def load(kind: type[S]) -> S:
    """Reads the settings of one process. Wrong and unknown ones are printed together, a line each; then exit code 2."""
    wrong = [f"{name}: unknown setting" for name in unknown(kind, set(os.environ))]
    try:
        settings = kind()
    except ValidationError as error:
        # The environment's value stays out of the line: it may be a secret.
        wrong += [
            f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}"
            if e["loc"]
            else e["msg"].removeprefix("Value error, ")  # about several, and names them itself
            for e in error.errors()
        ]
    if wrong:
        fail(*sorted(wrong))
    return settings


def unknown(kind: type[Settings], names: set[str]) -> list[str]:
    """Those of the environment's names that begin like a setting and are none of this kind's."""
    known = {PREFIX + field.upper() for field in kind.model_fields}
    return sorted(name for name in names if name.upper().startswith(PREFIX) and name not in known)


def fail(*lines: str) -> NoReturn:
    """Prints each line to standard error and ends the process with exit code 2: it cannot start as configured."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)
    sys.exit(2)
