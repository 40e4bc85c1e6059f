"""The gateway's settings. docs/settings.md explains each."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field

from gateway.addresses import networks
from gateway.limits import CLASSES, Quota
from runtime import config
from runtime.redis import RedisSettings


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


def quota(text: str) -> str:
    """`text` itself; raises ValueError where it is no quota."""
    Quota.of(text)
    return text


def proxies(text: str) -> str:
    """`text` itself; raises ValueError where it does not consist of networks."""
    networks(text)
    return text


QuotaText = Annotated[str, AfterValidator(quota)]
"""requests/seconds, as in 600/60."""


class Settings(RedisSettings):
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
    limits: bool = False
    """Whether there are rate limits."""
    limit_read: QuotaText = "600/60"
    """How much one person may read. Each address may ten times as much, as it may be many people's."""
    limit_write: QuotaText = "60/60"
    """What has no limit of its own."""
    limit_follow: QuotaText = "60/60"
    """To follow, to unfollow, and what is said to requests to follow."""
    limit_like: QuotaText = "120/60"
    """To like and to take it back."""
    limit_sign_in: QuotaText = "10/60"
    """To sign in or up, by address."""
    trusted_proxies: Annotated[str, AfterValidator(proxies)] = ""
    """Networks of proxies that say whose requests they pass on, in CIDR notation and separated by commas."""

    @property
    def quotas(self) -> dict[str, Quota]:
        """Each limit, by its class."""
        return {name: Quota.of(getattr(self, f"limit_{name}")) for name in CLASSES}
