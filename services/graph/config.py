"""Settings of the graph service."""

from __future__ import annotations

from pydantic import Field

from runtime import config, postgres


class GraphSettings(config.ServerSettings, postgres.PostgresSettings):
    """What the server can be told."""

    cursor_secret: config.Secret
    """What cursors are signed with; the same at every replica."""
    max_following: int = Field(default=5000, ge=1, le=9_999)
    """How many people one person may follow."""


class UpkeepSettings(postgres.PostgresSettings):
    """What the upkeep worker can be told."""
