"""The gateway's settings. docs/settings.md explains each."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from gateway.auth import MAX_NAME
from gateway.issuers import is_safe
from runtime import config


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def issuer(address: str) -> str:
    """`address` itself; raises ValueError for one that tokens of an issuer cannot have."""
    if not is_safe(address) or "?" in address or "#" in address or len(address) > MAX_NAME:
        raise ValueError("must be an https address without query (http only on this machine)")
    return address


class Settings(config.Settings):
    """What the gateway can be told."""

    http_host: str = "127.0.0.1"
    """Where it listens. Loopback only where whoever asks is believed."""
    http_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """The port; 0 stands for any free one."""
    graph_target: config.Target
    """Where the graph service is."""
    post_target: config.Target
    """Where the post service is."""
    ranking_target: config.Target
    """Where the ranking service is."""
    timeline_target: config.Target
    """Where the timeline service is."""
    session_target: config.Target | None = None
    """Where the session service is; needed unless whoever asks is believed."""
    auth: Literal["local", "builtin", "oidc"] = "local"
    """Who says who asks: `local` believes the acting id that it is given, `builtin` has people sign in with
    passwords of the mesh's own, `oidc` at an issuer elsewhere."""
    oidc_issuer: Annotated[str, AfterValidator(issuer)] | None = None
    """The issuer, as its tokens have it in `iss`."""
    oidc_audience: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    """What its tokens must have in `aud`."""
    oidc_types: Annotated[str, StringConstraints(pattern=r"^[a-z0-9+.-]+(,[a-z0-9+.-]+)*$")] = "at+jwt"
    """What they may have in `typ`, joined by commas. RFC 9068 says at+jwt; some issuers say jwt."""
    request_timeout_ms: Annotated[int, Field(ge=50, le=60_000)] = 5_000
    """What one request may take in all, in milliseconds; carried to the services as their deadline."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=100_000)] = 1_024
    """API requests under way at once; more are refused at once with 503."""

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if self.auth == "local" and not is_loopback(self.http_host):
            raise ValueError(
                "HTTP_HOST must be a loopback address (127.0.0.1, ::1 or localhost) unless AUTH is builtin or oidc: "
                "without authentication the gateway believes whoever asks"
            )
        if self.auth != "local" and self.session_target is None:
            raise ValueError("SESSION_TARGET is required with AUTH")
        if self.auth == "oidc" and not (self.oidc_issuer and self.oidc_audience):
            raise ValueError("OIDC_ISSUER and OIDC_AUDIENCE are required with AUTH=oidc")
        return self
