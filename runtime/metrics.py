"""Every metric of the runtime, with its unit and meaning. A service's own are in its `metrics.py`, if it has any."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

GRPC_SERVER_STARTED = Counter(
    "grpc_server_started_total", "Calls begun at the server.", ["grpc_type", "grpc_service", "grpc_method"]
)
GRPC_SERVER_HANDLED = Counter(
    "grpc_server_handled_total",
    "Calls ended at the server, by status code.",
    ["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
)
GRPC_SERVER_HANDLING = Histogram(
    "grpc_server_handling_seconds",
    "How long the server took for a call.",
    ["grpc_type", "grpc_service", "grpc_method"],
    buckets=LATENCY_BUCKETS_S,
)
GRPC_CLIENT_HANDLED = Counter(
    "grpc_client_handled_total",
    "Calls ended at the client, by status code.",
    ["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
)
BATCH_ITEMS = Histogram(
    "feedmesh_batch_items",
    "Calls that were coalesced into one batch, by what for.",
    ["batch"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
BATCH_REFUSED = Counter("feedmesh_batch_refused_total", "Calls refused because too many waited.", ["batch"])
POSTGRES_CONNECTIONS = Gauge("feedmesh_postgres_connections", "Connections of this process's pool.", ["state"])
POSTGRES_RETRIES = Counter(
    "feedmesh_postgres_transaction_retries_total", "Transactions tried again, by Postgres's error class.", ["error"]
)
COUNT_DELTAS_FOLDED = Counter("feedmesh_count_deltas_folded_total", "Count deltas added to their totals.", ["table"])
COUNT_FOLD_SECONDS = Histogram(
    "feedmesh_count_fold_seconds", "How long one fold took.", ["table"], buckets=LATENCY_BUCKETS_S
)
IDEMPOTENT_REPLAYS = Counter(
    "feedmesh_idempotent_replays_total", "Writes answered from an earlier request with the same key."
)
WORKER_ROUNDS = Counter("feedmesh_worker_rounds_total", "Rounds of a worker, by outcome.", ["task", "outcome"])
REDIS_USABLE = Gauge("feedmesh_redis_usable", "Whether this process can use its Redis (1) or does without it (0).")
OUTBOX_PUBLISHED = Counter("feedmesh_outbox_published_total", "Events that a relay published.", ["topic"])
OUTBOX_REPUBLISHED = Counter(
    "feedmesh_outbox_republished_total", "Events published again because Redis may have lost them.", ["topic"]
)
OUTBOX_AGE = Gauge("feedmesh_outbox_age_seconds", "Age of the oldest event that is not published yet.", ["topic"])
RELAY_PAUSED = Gauge(
    "feedmesh_relay_paused", "Whether a relay waits (1) because a consumer group lags too far.", ["topic"]
)
CONSUMER_LAG = Gauge(
    "feedmesh_consumer_lag_events",
    "Events that a consumer group has not acknowledged; one less than pending where Redis does not know.",
    ["topic", "group", "stream"],
)
CONSUMER_EVENTS = Counter(
    "feedmesh_consumer_events_total",
    "Events by what became of them: done, retried, dead.",
    ["topic", "group", "outcome"],
)
CONSUMER_DELAY = Histogram(
    "feedmesh_consumer_delay_seconds",
    "From the time an event became true to the time it was handled.",
    ["topic", "group"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600),
)
CONSUMER_STOPPED = Gauge(
    "feedmesh_consumer_stopped",
    "Whether a consumer takes no new events (1): too many failed, or its dead letters are full.",
    ["topic", "group", "stream"],
)
DEAD_LETTERS = Gauge("feedmesh_dead_letters", "Events that could not be handled.", ["topic", "group", "stream"])
TAIL_UNREADABLE = Counter(
    "feedmesh_tail_unreadable_total", "Entries of a stream that are no event: left out.", ["topic"]
)
