"""Settings of the ranking service."""

from __future__ import annotations

from runtime import config, redis


class RankingSettings(config.ServerSettings, redis.RedisSettings):
    """What the server can be told."""

    post_target: config.Target
    """Where the post service is: what posts' engagement is read from."""
