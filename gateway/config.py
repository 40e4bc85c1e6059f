"""The gateway's settings. docs/settings.md explains each."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from runtime import config

ORIGIN = re.compile(r"https?://([a-z0-9.-]{1,253}|\[[0-9a-f:]{2,45}\])(:[0-9]{1,5})?")


def loopback(host: str) -> str:
    """`host` itself; raises ValueError for one that another machine could reach."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(
            "must be a loopback address (127.0.0.1, ::1 or localhost): "
            "without authentication the gateway believes whoever asks"
        )
    return host


def of_origins(text: object) -> object:
    """The origins in a list that commas separate. Raises ValueError for what is none."""
    if not isinstance(text, str):
        return text
    origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise ValueError("must be origins as browsers send them, as in https://app.example, separated by commas")
    return origins


class Settings(config.Settings):
    """What the gateway can be told."""

    http_host: Annotated[str, AfterValidator(loopback)] = "127.0.0.1"
    """Where it listens. Loopback only: local mode believes the acting id that it is given."""
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
    request_timeout_ms: Annotated[int, Field(ge=50, le=60_000)] = 5_000
    """What one request may take in all, in milliseconds; carried to the services as their deadline."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=100_000)] = 1_024
    """API requests under way at once; more are refused at once with 503."""
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 24_000
    """Connections at once, live ones too; more are answered 503 and closed."""
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(of_origins), Field(max_length=32)] = ()
    """Origins of web pages that may use the API; our own may anyway."""
