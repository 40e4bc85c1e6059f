"""The graph's upkeep worker: `python -m services.graph.upkeep [--once]`. Folds count deltas, prunes old answers."""

from __future__ import annotations

from runtime import config, counts, idempotency, postgres, upkeep
from services.graph.config import UpkeepSettings
from services.graph.store import USER_COUNTS


def tasks(pool: postgres.Pool) -> tuple[upkeep.Task, ...]:
    """What there is to keep up."""
    return (
        upkeep.Task("fold_counts", 0.2, lambda: counts.fold(pool, USER_COUNTS)),
        upkeep.Task("prune_idempotency_keys", 60, lambda: idempotency.prune(pool)),
    )


if __name__ == "__main__":
    upkeep.run("graph-upkeep", config.load(UpkeepSettings), "services.graph", tasks)
