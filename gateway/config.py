"""The gateway's settings. docs/settings.md explains each."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field

from runtime import blobs, config


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
    media_url: blobs.Url
    """Where media are stored."""
    media_secret: config.Secret
    """What URLs of media are signed with: the post service's."""
    media_workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Files that are worked on at once, each by a process of its own."""
    max_image_bytes: Annotated[int, Field(ge=1, le=2**27)] = 10 * 2**20
    """Of an image as it is uploaded."""
    max_video_bytes: Annotated[int, Field(ge=1, le=2**29)] = 100 * 2**20
    """Of a video as it is uploaded."""
    request_timeout_ms: Annotated[int, Field(ge=50, le=60_000)] = 5_000
    """What one request may take in all, in milliseconds; carried to the services as their deadline."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=100_000)] = 1_024
    """API requests under way at once; more are refused at once with 503."""
