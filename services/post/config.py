"""Settings of the post service."""

from __future__ import annotations

from runtime import config, postgres, redis


class PostSettings(config.ServerSettings, postgres.PostgresSettings):
    """What the server can be told."""

    cursor_secret: config.Secret
    """What cursors are signed with; the same at every replica."""
    graph_target: config.Target
    """Where the graph service is."""


class UpkeepSettings(postgres.PostgresSettings):
    """What the upkeep worker can be told."""


class EraserSettings(postgres.PostgresSettings, redis.RedisSettings):
    """What the eraser can be told."""
