"""The gateway's settings. docs/settings.md explains each."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator
from pydantic_settings import NoDecode

from gateway.addresses import networks
from gateway.auth import MAX_NAME
from gateway.issuers import is_safe
from gateway.limits import CLASSES, Quota
from runtime import blobs, config
from runtime.redis import RedisSettings

ORIGIN = re.compile(r"https?://([a-z0-9.-]{1,253}|\[[0-9a-f:]{2,45}\])(:[0-9]{1,5})?")


def issuer(address: str) -> str:
    """`address` itself; raises ValueError for one that tokens of an issuer cannot have."""
    if not is_safe(address) or "?" in address or "#" in address or len(address) > MAX_NAME:
        raise ValueError("must be an https address without query (http only on this machine)")
    return address


def quota(text: str) -> str:
    """`text` itself; raises ValueError where it is no quota."""
    Quota.of(text)
    return text


def proxies(text: str) -> str:
    """`text` itself; raises ValueError where it does not consist of networks."""
    networks(text)
    return text


def of_origins(text: object) -> object:
    """The origins in a list that commas separate. Raises ValueError for what is none."""
    if not isinstance(text, str):
        return text
    origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise ValueError("must be origins as browsers send them, as in https://app.example, separated by commas")
    return origins


QuotaText = Annotated[str, AfterValidator(quota)]
"""requests/seconds, as in 600/60."""


class Settings(RedisSettings, config.MeshSettings):
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
    oidc_tokens: Literal["rfc9068", "cognito"] = "rfc9068"
    """What access tokens are like: as RFC 9068 has them, or as Amazon Cognito makes them."""
    oidc_types: Annotated[str, StringConstraints(pattern=r"^[a-z0-9+.-]+(,[a-z0-9+.-]+)*$")] = "at+jwt"
    """What they may have in `typ`, joined by commas. RFC 9068 says at+jwt; some issuers say jwt."""
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
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 24_000
    """Connections at once, live ones too; more are answered 503 and closed."""
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(of_origins), Field(max_length=32)] = ()
    """Origins of web pages that may use the API; our own may anyway."""
    limits: bool | None = None
    """Whether there are rate limits; unless said, where whoever asks is not just believed."""
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
    def limited(self) -> bool:
        """Whether there are rate limits."""
        return self.auth != "local" if self.limits is None else self.limits

    @property
    def quotas(self) -> dict[str, Quota]:
        """Each limit, by its class."""
        return {name: Quota.of(getattr(self, f"limit_{name}")) for name in CLASSES}

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if self.auth == "local" and not config.is_loopback(self.http_host):
            raise ValueError(
                "FEEDMESH_HTTP_HOST: must be a loopback address (127.0.0.1, ::1 or localhost) unless FEEDMESH_AUTH is "
                "builtin or oidc: without authentication the gateway believes whoever asks"
            )
        if self.auth != "local" and self.session_target is None:
            raise ValueError("FEEDMESH_SESSION_TARGET: is required with FEEDMESH_AUTH")
        if self.auth == "oidc" and not (self.oidc_issuer and self.oidc_audience):
            raise ValueError("FEEDMESH_OIDC_ISSUER, FEEDMESH_OIDC_AUDIENCE: are required with FEEDMESH_AUTH=oidc")
        return self
