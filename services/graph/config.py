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


class SessionSettings(config.ServerSettings, postgres.PostgresSettings):
    """What the session server can be told."""

    session_secret: config.Secret
    """What signing keys are sealed with, and refresh tokens are made with; the same at every replica."""
    signing_key_days: float = Field(default=30, gt=0, le=365)
    """After how many days another key signs access tokens."""


class UpkeepSettings(postgres.PostgresSettings):
    """What the upkeep worker can be told."""
