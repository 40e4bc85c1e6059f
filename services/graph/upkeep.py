"""The graph's upkeep worker: `python -m services.graph.upkeep [--once]`.

Folds count deltas, clears away what hung on erased people, prunes old answers, changes and sessions.
"""

from __future__ import annotations

from runtime import config, counts, idempotency, postgres, upkeep
from services.graph import follows, session_store, store, users
from services.graph.config import UpkeepSettings

SWEPT_PEOPLE = 10
SWEPT_ROWS = 200
PRUNE_BATCH = 5_000


def tasks(pool: postgres.Pool) -> tuple[upkeep.Task, ...]:
    """What there is to keep up."""
    return (
        upkeep.Task("fold_counts", 0.2, lambda: counts.fold(pool, store.USER_COUNTS)),
        upkeep.Task("sweep_erased_users", 1, lambda: sweep_erased_users(pool)),
        upkeep.Task(
            "prune_user_changes", 60, lambda: store.prune_user_changes(pool, 2 * users.MAX_CHANGES, PRUNE_BATCH)
        ),
        upkeep.Task("prune_sessions", 60, lambda: session_store.prune(pool, PRUNE_BATCH)),
        upkeep.Task("prune_idempotency_keys", 60, lambda: idempotency.prune(pool)),
    )


async def sweep_erased_users(pool: postgres.Pool) -> bool:
    """Clears away what hung on erased people, some hundred rows a transaction; True when there is more."""
    user_ids = await store.unswept(pool, SWEPT_PEOPLE)
    for user_id in user_ids:
        await postgres.transact(pool, lambda c, user_id=user_id: sweep(c, user_id))  # type: ignore[misc]
    return bool(user_ids)


async def sweep(connection: postgres.Connection, user_id: int) -> None:
    """One step for one person: first follows, each with its counts and event, then all else."""
    edges = await store.edges_of(connection, user_id, SWEPT_ROWS)
    for follower_id, following_id in edges:
        await follows.end(connection, follower_id, following_id)
    if not edges:
        await store.sweep(connection, user_id, SWEPT_ROWS)


if __name__ == "__main__":
    upkeep.run("graph-upkeep", config.load(UpkeepSettings), "services.graph", tasks)
