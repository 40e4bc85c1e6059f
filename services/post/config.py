"""Settings of the post service."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from runtime import blobs, config, postgres, redis

MAX_MEDIA_BYTES = 2 * 2**30


class PostSettings(config.ServerSettings, postgres.PostgresSettings):
    """What the server can be told."""

    cursor_secret: config.Secret
    """What cursors are signed with; the same at every replica."""
    graph_target: config.Target
    """Where the graph service is."""
    media_secret: config.Secret
    """What URLs of media are signed with; the same at every replica and at the gateways."""
    media_base_url: Annotated[
        str, StringConstraints(max_length=256, pattern=r"^(https?://[^/?#\s]+(/[^?#\s]*[^/?#\s])?)?$")
    ] = ""
    """The origin that media are shown from, such as that of a CDN in front of the gateways; "" is the gateway's own."""
    max_media_bytes: Annotated[int, Field(ge=1, le=2**50)] = MAX_MEDIA_BYTES
    """How many bytes of media one person may keep, as they are stored."""


class UpkeepSettings(postgres.PostgresSettings):
    """What the upkeep worker can be told."""

    media_url: blobs.Url
    """Where media are stored."""


class EraserSettings(postgres.PostgresSettings, redis.RedisSettings):
    """What the eraser can be told."""
