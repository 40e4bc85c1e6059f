"""Settings of the timeline service."""

from __future__ import annotations

import base64
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from runtime import config, postgres, redis

Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+(/\S*)?$", max_length=2_000)]


class TimelineSettings(config.ServerSettings, postgres.PostgresSettings, redis.RedisSettings):
    """What the server can be told."""

    cursor_secret: config.Secret
    """What cursors are signed with; the same at every replica."""
    graph_target: config.Target
    """Where the graph service is."""
    post_target: config.Target
    """Where the post service is."""
    ranking_target: config.Target
    """Where the ranking service is."""
    active_days: float = Field(default=14, gt=0, le=365)
    """How long somebody who does not read stays active, that is, is pushed to."""


class FanoutSettings(config.MeshSettings, postgres.PostgresSettings, redis.RedisSettings):
    """What the fan-out worker can be told."""

    graph_target: config.Target
    """Where the graph service is."""
    post_target: config.Target
    """Where the post service is."""
    webhook_url: Url | None = None
    """Where notifications are posted to, by another worker; it is only looked at whether they are."""
    push_max_followers: int = Field(default=10_000, ge=0, le=1_000_000_000)
    """Up to how many followers an author's posts are pushed; above it they are pulled. See the command `limit` too."""


class WebhookSettings(config.MeshSettings, postgres.PostgresSettings):
    """What the webhook's worker can be told."""

    graph_target: config.Target
    """Where the graph service is."""
    post_target: config.Target
    """Where the post service is."""
    webhook_url: Url
    """Where notifications are posted to."""
    webhook_secret: config.Secret
    """What they are signed with; `whsec_` and base64 as Standard Webhooks has it, or any text."""

    @field_validator("webhook_secret")
    @classmethod
    def _decodes(cls, secret: str) -> str:
        if secret.startswith("whsec_"):
            base64.b64decode(secret.removeprefix("whsec_"), validate=True)  # raises a ValueError
        return secret


class AdminSettings(FanoutSettings):
    """What the operator's commands can be told: as the fan-out worker, and besides:"""

    timeline_target: config.Target | None = None
    """Where the timeline service is; `explain` asks it."""
    ranking_target: config.Target | None = None
    """Where the ranking service is; `erased` asks it."""


class AuditorSettings(config.MeshSettings, postgres.PostgresSettings, redis.RedisSettings):
    """What the auditor can be told."""

    graph_target: config.Target
    """Where the graph service is."""
    post_target: config.Target
    """Where the post service is."""
    timeline_target: config.Target
    """Where the timeline service is."""
    audit_feeds_per_s: float = Field(default=2, gt=0, le=1000)
    """How many feeds are audited a second, at the most."""
    audit_settle_s: float = Field(default=10, ge=0, le=3600)
    """How long a post is in flight and not looked for, even if it seems to be handled."""
