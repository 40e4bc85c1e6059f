"""Every metric of the gateway, with its unit and meaning."""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from runtime.metrics import LATENCY_BUCKETS_S

CLIENT_GONE = 499
"""The status counted for a client that left before its answer; never sent."""

REQUESTS = Counter(
    "http_server_requests_total",
    "Requests answered, by route template (`none`: no such route).",
    ["route", "method", "status"],
)
SECONDS = Histogram(
    "http_server_request_duration_seconds",
    "From the request's headers to its answer's last byte handed over.",
    ["route", "method"],
    buckets=LATENCY_BUCKETS_S,
)
LIVE_SUBSCRIBERS = Gauge("feedmesh_live_subscribers", "Live connections.")
LIVE_EVENTS = Counter("feedmesh_live_events_total", "Events that were told live connections, by kind.", ["event"])
LIMITS = Counter(
    "feedmesh_limits_total",
    "Requests that a rate limit refused, and while Redis is away those that passed uncounted, or were sign-ins, and "
    "unavailable. By the limit's class.",
    ["limit", "outcome"],
)
UNDER_WAY = Gauge("http_server_active_requests", "API requests under way.")


@cache
def answered(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    """What counts and times requests with these labels; kept, as finding them costs more than counting."""
    return REQUESTS.labels(route, method, status), SECONDS.labels(route, method)
