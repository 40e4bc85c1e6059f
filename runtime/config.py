"""Settings from the environment, checked as a whole before anything starts. No files, no flags, no defaults per place.

Every setting is an environment variable `FEEDMESH_<NAME>`; a process refuses the names that it does not know, because a
misspelt setting that is silently ignored is found in production. docs/settings.md lists them all.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import Field, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

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


class Settings(BaseSettings):
    """What every process can be told."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""
    metrics_address: Address = "127.0.0.1:0"
    """Where Prometheus reads this process's metrics (`/metrics`)."""


class MeshSettings(Settings):
    """What every process can be told that calls another, or is called."""

    mesh_secret: Secret
    """What callers show who they are by; the same in all of a mesh."""


class ServerSettings(MeshSettings):
    """What every gRPC server can be told besides."""

    grpc_address: Address = "127.0.0.1:0"
    """Where the server listens."""
    max_concurrent_rpcs: int = Field(default=1024, ge=1, le=100_000)
    """Calls under way at once; more are refused at once with RESOURCE_EXHAUSTED."""


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
