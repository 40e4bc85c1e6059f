"""The post service's upkeep worker: `python -m services.post.upkeep [--once]`.

Folds count deltas, makes partitions ahead, clears away what hung on deleted posts and media that no post shows, prunes
old answers and changes.
"""

from __future__ import annotations

from functools import partial

from runtime import config, counts, idempotency, postgres, upkeep
from runtime.blobs import Blobs
from services.post import media, store
from services.post.config import UpkeepSettings

MONTHS_AHEAD = 3
SWEEP_POSTS = 20
SWEEP_ROWS = 1_000
CHANGES = 20_000
"""Notes of changes that are deleted at once."""


def tasks(blobs: Blobs, pool: postgres.Pool) -> tuple[upkeep.Task, ...]:
    """What there is to keep up."""
    return (
        upkeep.Task("fold_counts", 0.2, lambda: counts.fold(pool, store.POST_COUNTS)),
        upkeep.Task("make_partitions", 3600, lambda: make_partitions(pool)),
        upkeep.Task("sweep_deleted_posts", 10, lambda: sweep_deleted_posts(pool)),
        upkeep.Task("forget_unshown_media", 10, lambda: media.forget_unshown(pool)),
        upkeep.Task("clear_left_media", 10, lambda: media.clear_left(pool, blobs)),
        upkeep.Task("prune_changes", 60, lambda: store.prune_changes(pool, CHANGES)),
        upkeep.Task("prune_idempotency_keys", 60, lambda: idempotency.prune(pool)),
    )


async def make_partitions(pool: postgres.Pool) -> bool:
    """Makes the partitions of posts for this month and the next three."""
    await store.make_partitions(pool, MONTHS_AHEAD)
    return False


async def sweep_deleted_posts(pool: postgres.Pool) -> bool:
    """Clears away likes, comments and shares of deleted posts, 1,000 rows a transaction; True when there is more."""
    post_ids = await store.unswept(pool, SWEEP_POSTS)
    done = True
    for post_id in post_ids:
        done &= await postgres.transact(pool, lambda c, post_id=post_id: store.sweep(c, post_id, SWEEP_ROWS))  # type: ignore[misc]
    return not done or len(post_ids) == SWEEP_POSTS


if __name__ == "__main__":
    settings = config.load(UpkeepSettings)
    upkeep.run("post-upkeep", settings, "services.post", partial(tasks, Blobs(settings.media_url)))
