"""The eraser: `python -m services.post.eraser [--once]`. Clears away what is theirs whom the graph says to be erased.

From the graph's event on, a person is on the list of the erased; nothing of theirs is shown by then, as nobody exists
under their id. Then their likes, comments, posts, media and stored answers go, some hundred rows a transaction, each
with its counts and events as if they had taken it back themselves. For a minute, while transactions from before may be
running, it looks again and again; and when upkeep has cleared away what hung on their posts, the emptied rows go too.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from feedmesh.event.v1 import event_pb2
from runtime import config, idempotency, migrate, outbox, postgres, process, redis, streams
from runtime.consumer import Consumer
from services.post import likes, posts, store
from services.post.config import EraserSettings

GROUP = "post"
PEOPLE = 10
ROWS = 200


async def note(pool: postgres.Pool, events: Sequence[event_pb2.Event]) -> None:
    """Puts those on the list whom events tell to be erased. Raises psycopg.Error."""
    user_ids = [event.user_erased.user_id for event in events if event.HasField("user_erased")]
    if user_ids:
        await postgres.transact(pool, lambda connection: store.list_erased(connection, user_ids))


async def erase(pool: postgres.Pool) -> bool:
    """One step for each person on the list; True when there may be more to do at once."""
    more = False
    for user_id in await store.to_erase(pool, PEOPLE):
        more |= await postgres.transact(pool, lambda c, user_id=user_id: step(c, user_id))  # type: ignore[misc]
    return more


async def step(connection: postgres.Connection, user_id: int) -> bool:
    """One step for one person; whether it found anything to remove."""
    found = 0
    taken = await store.take_likes(connection, user_id, ROWS)
    await likes.tell(connection, [store.Like(user_id, *on) for on in taken], liked=False)
    found += len(taken)
    for comment_id, post_id in await store.take_comments(connection, user_id, ROWS):
        fact = event_pb2.CommentDeleted(comment_id=comment_id, post_id=post_id, user_id=user_id)
        await outbox.add(connection, post_id, event_pb2.Event(comment_deleted=fact))
        found += 1
    for row in await store.lock_posts_of(connection, user_id, ROWS):
        await posts.remove(connection, row)
        found += 1
    found += await store.take_media(connection, user_id, ROWS)
    found += await store.take_swept_posts(connection, user_id, ROWS)
    await idempotency.forget(connection, user_id)
    await store.forget_changes(connection, user_id)
    await store.forget_mentions(connection, user_id)
    if not found and await store.finish_erasure(connection, user_id):
        await outbox.add(connection, user_id, event_pb2.Event(author_erased=event_pb2.AuthorErased(user_id=user_id)))
    return found > 0


async def serve(settings: EraserSettings, running: process.Process, *, once: bool) -> None:
    """Works until the process is asked to stop, or with `once` until there is nothing to do."""
    async with postgres.connect(settings) as pool, redis.connect(settings, timeout_s=5) as stores:
        await migrate.require(pool, "services.post")
        await redis.require_fit(stores)
        consumers = [
            Consumer(stores, "graph", partition, GROUP, lambda events: note(pool, events))
            for partition in range(streams.PARTITIONS)
        ]
        if once:
            for consumer in consumers:
                await consumer.join()
            while sum([await consumer.step() for consumer in consumers]):
                pass
            while await erase(pool):
                pass
            return
        await asyncio.gather(
            *(consumer.run(running) for consumer in consumers), running.every(0.5, "erase", lambda: erase(pool))
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m services.post.eraser")
    parser.add_argument("--once", action="store_true", help="do what there is to do, then end")
    once = parser.parse_args().once
    settings = config.load(EraserSettings)
    process.run("post-eraser", settings, lambda running: serve(settings, running, once=once))


if __name__ == "__main__":
    main()
