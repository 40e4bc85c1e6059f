"""The mesh as data: every process that `make run` starts, what it is told, and the databases. No behaviour.

A process refuses a FEEDMESH_* name it does not know, so each row says exactly what it takes. Adding a process,
a database or an optional setting is a row or a word here and nothing else. Of each row there may be several replicas.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Stage(IntEnum):
    """The order of stopping: lowest first, one stage at once."""

    EDGE = 0
    SERVICE = 1
    WORKER = 2
    STORE = 3


@dataclass(frozen=True)
class Database:
    """A database of the one Postgres server; `migrate` is the Python command line that brings it up to date."""

    name: str
    migrate: tuple[str, ...]


@dataclass(frozen=True)
class Process:
    """One operating-system process, or several that are told the same: `python <argv>`."""

    name: str  # in the logs, and of its FEEDMESH_<NAME>_TARGET
    argv: tuple[str, ...]
    stage: Stage
    grpc: bool = False  # takes FEEDMESH_GRPC_ADDRESS
    http: bool = False  # takes FEEDMESH_HTTP_HOST and FEEDMESH_HTTP_PORT
    database: str | None = None  # takes FEEDMESH_POSTGRES_DSN of this one
    calls: tuple[str, ...] = ()  # takes FEEDMESH_<NAME>_TARGET of each that runs
    redis: bool = False  # takes FEEDMESH_REDIS_URL
    secrets: tuple[str, ...] = ()  # takes FEEDMESH_<NAME> of each, which the launcher makes
    needs: str = ""  # runs only where this setting, of any process, is set
    settings: tuple[str, ...] = ()  # optional: passed on from the launcher's environment when set there
    config: str = ""  # where these are declared, as module:class

    @property
    def is_of_mesh(self) -> bool:
        """Whether it calls or is called: then it takes FEEDMESH_MESH_SECRET, or FEEDMESH_TLS_DIR."""
        return self.grpc or bool(self.calls)

    @property
    def all_secrets(self) -> tuple[str, ...]:
        """Its own, and what shows that it is of the mesh."""
        return (*self.secrets, "MESH_SECRET") if self.is_of_mesh else self.secrets

    @property
    def replicas_setting(self) -> str:
        """The launcher's setting of how many there are."""
        return f"FEEDMESH_REPLICAS_{self.name.upper().replace('-', '_')}"


@dataclass(frozen=True)
class Mesh:
    """All of it."""

    databases: tuple[Database, ...]
    processes: tuple[Process, ...]

    @property
    def settings(self) -> frozenset[str]:
        """Every optional setting that some process takes."""
        return frozenset(name for process in self.processes for name in process.settings)


SERVER = ("FEEDMESH_MAX_CONCURRENT_RPCS", "FEEDMESH_MORE_CALLERS")
STORE = ("FEEDMESH_POSTGRES_POOL_SIZE",)
CURSORS = ("CURSOR_SECRET",)
AUTH = ("FEEDMESH_AUTH", "FEEDMESH_OIDC_ISSUER", "FEEDMESH_OIDC_AUDIENCE", "FEEDMESH_OIDC_TYPES",
        "FEEDMESH_OIDC_TOKENS")  # fmt: skip
MEDIA = ("FEEDMESH_MEDIA_URL", "FEEDMESH_MAX_IMAGE_BYTES", "FEEDMESH_MAX_VIDEO_BYTES", "FEEDMESH_MEDIA_WORKERS")
LIMITS = ("FEEDMESH_LIMITS", "FEEDMESH_LIMIT_READ", "FEEDMESH_LIMIT_WRITE", "FEEDMESH_LIMIT_FOLLOW",
          "FEEDMESH_LIMIT_LIKE", "FEEDMESH_LIMIT_SIGN_IN", "FEEDMESH_TRUSTED_PROXIES")  # fmt: skip

FEEDMESH = Mesh(
    databases=(
        Database("graph", ("-m", "runtime.migrate", "services.graph")),
        Database("post", ("-m", "runtime.migrate", "services.post")),
        Database("timeline", ("-m", "runtime.migrate", "services.timeline")),
    ),
    processes=(
        Process("graph", ("-m", "services.graph"), Stage.SERVICE, grpc=True, database="graph", secrets=CURSORS,
                settings=(*SERVER, *STORE, "FEEDMESH_MAX_FOLLOWING"), config="services.graph.config:GraphSettings"),
        Process("session", ("-m", "services.graph.session"), Stage.SERVICE, grpc=True, database="graph",
                secrets=("SESSION_SECRET",), needs="FEEDMESH_AUTH",
                settings=(*SERVER, *STORE, "FEEDMESH_SIGNING_KEY_DAYS"),
                config="services.graph.config:SessionSettings"),
        Process("graph-upkeep", ("-m", "services.graph.upkeep"), Stage.WORKER, database="graph",
                settings=STORE, config="services.graph.config:UpkeepSettings"),
        Process("graph-relay", ("-m", "services.graph.relay"), Stage.WORKER, database="graph", redis=True,
                settings=(*STORE, "FEEDMESH_OUTBOX_RETENTION_MINUTES"), config="runtime.relay:RelaySettings"),
        Process("post", ("-m", "services.post"), Stage.SERVICE, grpc=True, database="post",
                secrets=(*CURSORS, "MEDIA_SECRET"), calls=("graph",),
                settings=(*SERVER, *STORE, "FEEDMESH_MEDIA_BASE_URL", "FEEDMESH_MAX_MEDIA_BYTES"),
                config="services.post.config:PostSettings"),
        Process("post-upkeep", ("-m", "services.post.upkeep"), Stage.WORKER, database="post",
                settings=(*STORE, "FEEDMESH_MEDIA_URL"), config="services.post.config:UpkeepSettings"),
        Process("post-relay", ("-m", "services.post.relay"), Stage.WORKER, database="post", redis=True,
                settings=(*STORE, "FEEDMESH_OUTBOX_RETENTION_MINUTES"), config="runtime.relay:RelaySettings"),
        Process("post-eraser", ("-m", "services.post.eraser"), Stage.WORKER, database="post", redis=True,
                settings=STORE, config="services.post.config:EraserSettings"),
        Process("ranking", ("-m", "services.ranking"), Stage.SERVICE, grpc=True, redis=True, calls=("post",),
                settings=SERVER, config="services.ranking.config:RankingSettings"),
        Process("timeline", ("-m", "services.timeline"), Stage.SERVICE, grpc=True, database="timeline", redis=True,
                secrets=CURSORS, calls=("graph", "post", "ranking"),
                settings=(*SERVER, *STORE, "FEEDMESH_ACTIVE_DAYS"), config="services.timeline.config:TimelineSettings"),
        Process("timeline-fanout", ("-m", "services.timeline.fanout"), Stage.WORKER, database="timeline", redis=True,
                calls=("graph", "post"), settings=(*STORE, "FEEDMESH_PUSH_MAX_FOLLOWERS", "FEEDMESH_WEBHOOK_URL"),
                config="services.timeline.config:FanoutSettings"),
        Process("timeline-webhook", ("-m", "services.timeline.webhook"), Stage.WORKER, database="timeline",
                calls=("graph", "post"), needs="FEEDMESH_WEBHOOK_URL",
                settings=(*STORE, "FEEDMESH_WEBHOOK_URL", "FEEDMESH_WEBHOOK_SECRET"),
                config="services.timeline.config:WebhookSettings"),
        Process("timeline-auditor", ("-m", "services.timeline.auditor"), Stage.WORKER, database="timeline", redis=True,
                calls=("graph", "post", "timeline"),
                settings=(*STORE, "FEEDMESH_AUDIT_FEEDS_PER_S", "FEEDMESH_AUDIT_SETTLE_S"),
                config="services.timeline.config:AuditorSettings"),
        Process("gateway", ("-m", "gateway"), Stage.EDGE, http=True, redis=True, secrets=("MEDIA_SECRET",),
                calls=("graph", "post", "ranking", "timeline", "session"),
                settings=("FEEDMESH_REQUEST_TIMEOUT_MS", "FEEDMESH_MAX_CONCURRENT_REQUESTS",
                          "FEEDMESH_MAX_CONNECTIONS", "FEEDMESH_CORS_ORIGINS", *AUTH, *LIMITS, *MEDIA),
                config="gateway.config:Settings"),
    ),
)  # fmt: skip
