"""The timeline service's tables in SQL, and nothing else: when an author changes their mode is decided in modes.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from runtime.postgres import Connection, Pool, fetch, int8s


class Way(NamedTuple):
    """An author on the way from one mode to another."""

    author_id: int
    target: str
    """push or pull."""
    since: str
    """When the way began, as Postgres writes it: tells it from an earlier way of the same author."""


async def pulled(pool: Pool, known_version: int) -> tuple[int, list[int] | None]:
    """The version of all modes, and who is in mode both or pull; None for them where the version is the known one.

    One statement, so that both are of one snapshot. Version 0 is that of no modes at all.
    """
    rows = await fetch(
        pool,
        """
        SELECT version, CASE WHEN version <> %(known)s THEN ARRAY(SELECT author_id FROM author_modes) END
        FROM (SELECT coalesce((SELECT modes_version FROM fanout_state), 0) AS version) AS state""",
        {"known": known_version},
    )
    return rows[0][0], rows[0][1]


async def modes(pool: Pool, author_ids: Sequence[int]) -> dict[int, str]:
    """The modes of those authors that are not in mode push."""
    return (await modes_and_limit(pool, author_ids))[0]


async def modes_and_limit(pool: Pool, author_ids: Sequence[int]) -> tuple[dict[int, str], int | None]:
    """The same, and the limit of followers that the operator set; None for none."""
    [[found, limit]] = await fetch(
        pool,
        """
        SELECT (SELECT json_object_agg(author_id, mode) FROM author_modes WHERE author_id = ANY(%(ids)s)),
               (SELECT max_followers FROM fanout_state)""",
        {"ids": int8s(author_ids)},
    )
    return {int(author_id): mode for author_id, mode in (found or {}).items()}, limit


async def all_pulled(pool: Pool) -> list[int]:
    """Everyone in mode pull."""
    return [row[0] for row in await fetch(pool, "SELECT author_id FROM author_modes WHERE mode = 'pull'")]


async def mode_counts(pool: Pool) -> dict[tuple[str, str], int]:
    """How many authors are in each mode with each target, those in mode push left out."""
    rows = await fetch(pool, "SELECT mode, target, count(*) FROM author_modes GROUP BY mode, target")
    return {(row[0], row[1]): row[2] for row in rows}


async def going_to_pull(pool: Pool, after: int, limit: int) -> list[int]:
    """A page of authors who are in mode pull or on the way there, by rising id."""
    rows = await fetch(
        pool,
        """
        SELECT author_id FROM author_modes WHERE author_id > %(after)s AND target = 'pull'
        ORDER BY author_id LIMIT %(limit)s""",
        {"after": after, "limit": limit},
    )
    return [row[0] for row in rows]


async def leave_push(connection: Connection, author_id: int) -> bool:
    """Takes an author from push to both, on the way to pull. False where they are not in mode push."""
    cursor = await connection.execute(
        "INSERT INTO author_modes (author_id, mode, target) VALUES (%s, 'both', 'pull') ON CONFLICT DO NOTHING",
        (author_id,),
    )
    return await raise_version(connection, cursor.rowcount)


async def leave_pull(connection: Connection, author_id: int) -> bool:
    """Takes an author from pull to both, on the way to push. False where they are not in mode pull."""
    cursor = await connection.execute(
        """
        UPDATE author_modes SET mode = 'both', target = 'push', since = clock_timestamp(), lease_until = '-infinity'
        WHERE author_id = %s AND mode = 'pull'""",
        (author_id,),
    )
    return await raise_version(connection, cursor.rowcount)


async def arrive_at_pull(connection: Connection, way: Way) -> bool:
    """Ends a way to pull. False where it has ended."""
    cursor = await connection.execute(
        """
        UPDATE author_modes SET mode = 'pull'
        WHERE author_id = %s AND mode = 'both' AND target = 'pull' AND since = %s::timestamptz""",
        (way.author_id, way.since),
    )
    return await raise_version(connection, cursor.rowcount)


async def arrive_at_push(connection: Connection, way: Way) -> bool:
    """Ends a way to push. False where it has ended."""
    cursor = await connection.execute(
        """
        DELETE FROM author_modes
        WHERE author_id = %s AND mode = 'both' AND target = 'push' AND since = %s::timestamptz""",
        (way.author_id, way.since),
    )
    return await raise_version(connection, cursor.rowcount)


async def forget_author(connection: Connection, author_id: int) -> bool:
    """Takes an author, whatever their mode, from the table. False where they are not in it."""
    cursor = await connection.execute("DELETE FROM author_modes WHERE author_id = %s", (author_id,))
    return await raise_version(connection, cursor.rowcount)


async def raise_version(connection: Connection, changed: int) -> bool:
    """Raises the version of all modes where one has changed."""
    if changed:
        await connection.execute(
            """
            INSERT INTO fanout_state DEFAULT VALUES
            ON CONFLICT (only_row) DO UPDATE SET modes_version = fanout_state.modes_version + 1"""
        )
    return changed > 0


async def on_the_way(pool: Pool, older_than_s: float, limit: int) -> list[Way]:
    """Authors in mode both whom nobody is at work on: those to push, and those to pull for at least so long."""
    rows = await fetch(
        pool,
        """
        SELECT author_id, target, since::text FROM author_modes
        WHERE mode = 'both' AND lease_until < clock_timestamp()
          AND (target = 'push' OR since < clock_timestamp() - make_interval(secs => %(age)s))
        ORDER BY since LIMIT %(limit)s""",
        {"age": older_than_s, "limit": limit},
    )
    return [Way(*row) for row in rows]


async def lease(pool: Pool, way: Way, seconds: float, *, renewed: bool) -> bool:
    """Takes or renews the work on a way. False where another has it, or it has ended."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            """
            UPDATE author_modes SET lease_until = clock_timestamp() + make_interval(secs => %s)
            WHERE author_id = %s AND mode = 'both' AND since = %s::timestamptz
              AND (%s OR lease_until < clock_timestamp())""",
            (seconds, way.author_id, way.since, renewed),
        )
        return cursor.rowcount > 0


async def limit(pool: Pool) -> tuple[int | None, int | None]:
    """The limit that the operator set (None for none), and the one that all authors were last looked at with."""
    rows = await fetch(pool, "SELECT max_followers, reconciled_limit FROM fanout_state")
    return (rows[0][0], rows[0][1]) if rows else (None, None)


async def set_limit(pool: Pool, max_followers: int | None) -> None:
    """Sets the limit for all replicas; None goes back to the setting."""
    async with pool.connection() as connection:
        await connection.execute(
            """
            INSERT INTO fanout_state (max_followers) VALUES (%(limit)s)
            ON CONFLICT (only_row) DO UPDATE SET max_followers = %(limit)s""",
            {"limit": max_followers},
        )


async def set_reconciled(pool: Pool, max_followers: int) -> None:
    """Remembers that all authors were looked at with a limit."""
    async with pool.connection() as connection:
        await connection.execute(
            """
            INSERT INTO fanout_state (reconciled_limit) VALUES (%(limit)s)
            ON CONFLICT (only_row) DO UPDATE SET reconciled_limit = %(limit)s""",
            {"limit": max_followers},
        )


# How far people have read their notifications.


async def read_marks(pool: Pool, user_ids: Sequence[int]) -> dict[int, int]:
    """Up to which notification people have read; those who have read none lack."""
    rows = await fetch(
        pool,
        "SELECT user_id, notification_id FROM read_marks WHERE user_id = ANY(%(ids)s)",
        {"ids": int8s(user_ids)},
    )
    return {row[0]: row[1] for row in rows}


async def mark_read(pool: Pool, user_id: int, notification_id: int) -> None:
    """Notes up to which notification somebody has read, unless they have read further."""
    async with pool.connection() as connection:
        await connection.execute(
            """
            INSERT INTO read_marks (user_id, notification_id) VALUES (%(user)s, %(id)s)
            ON CONFLICT (user_id) DO UPDATE SET notification_id = excluded.notification_id
            WHERE read_marks.notification_id < excluded.notification_id""",
            {"user": user_id, "id": notification_id},
        )


async def forget_mark(connection: Connection, user_id: int) -> None:
    """Forgets what somebody has read."""
    await connection.execute("DELETE FROM read_marks WHERE user_id = %s", (user_id,))


async def has_mark(pool: Pool, user_id: int) -> bool:
    """Whether it is known what somebody has read."""
    return user_id in await read_marks(pool, [user_id])


# What is to be handed to the webhook.


class Delivery(NamedTuple):
    """A notification that is to be handed over."""

    event_id: int
    user_id: int
    kind: int
    post_id: int
    actor_id: int
    tries: int


async def note_deliveries(pool: Pool, acts: Sequence[tuple[int, int, int, int, int]]) -> None:
    """Notes what is to be handed over: event, person, kind, post and actor; none of it twice while it is noted."""
    columns = [list(column) for column in zip(*acts, strict=True)]
    async with pool.connection() as connection:
        await connection.execute(
            """
            INSERT INTO webhook_deliveries (event_id, user_id, kind, post_id, actor_id)
            SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::smallint[], %s::bigint[], %s::bigint[])
            ON CONFLICT DO NOTHING""",
            columns,
        )


async def take_deliveries(pool: Pool, limit: int, lease_s: float) -> list[Delivery]:
    """What is due, the longest first. Nobody else gets it within the lease; after that it is due again."""
    rows = await fetch(
        pool,
        """
        WITH due AS MATERIALIZED (
            SELECT event_id, user_id, kind FROM webhook_deliveries WHERE due_at <= now()
            ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        )
        UPDATE webhook_deliveries d SET due_at = now() + %(lease)s * interval '1 second' FROM due
        WHERE (d.event_id, d.user_id, d.kind) = (due.event_id, due.user_id, due.kind)
        RETURNING d.event_id, d.user_id, d.kind, d.post_id, d.actor_id, d.tries""",
        {"limit": limit, "lease": lease_s},
    )
    return [Delivery(*row) for row in rows]


async def end_delivery(pool: Pool, delivery: Delivery) -> None:
    """Forgets what was handed over, or is not to be any more."""
    async with pool.connection() as connection:
        await connection.execute(
            "DELETE FROM webhook_deliveries WHERE event_id = %s AND user_id = %s AND kind = %s", delivery[:3]
        )


async def put_off_delivery(pool: Pool, delivery: Delivery, seconds: float, *, tried: bool) -> None:
    """Makes a delivery due later, as one that failed once more where it was tried."""
    async with pool.connection() as connection:
        await connection.execute(
            """
            UPDATE webhook_deliveries SET tries = tries + %s, due_at = now() + %s * interval '1 second'
            WHERE event_id = %s AND user_id = %s AND kind = %s""",
            (int(tried), seconds, *delivery[:3]),
        )


async def prune_deliveries(pool: Pool, most: int) -> int:
    """Forgets the oldest deliveries above a number; how many."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            """
            DELETE FROM webhook_deliveries WHERE noted_at <= (
                SELECT noted_at FROM webhook_deliveries ORDER BY noted_at DESC OFFSET %s LIMIT 1)""",
            (most,),
        )
        return cursor.rowcount


async def count_deliveries(pool: Pool) -> int:
    """How many deliveries wait."""
    return int((await fetch(pool, "SELECT count(*) FROM webhook_deliveries"))[0][0])


async def deliveries_of(pool: Pool, user_id: int) -> int:
    """How many deliveries name somebody."""
    rows = await fetch(
        pool,
        "SELECT count(*) FROM webhook_deliveries WHERE %(user)s IN (user_id, actor_id)",
        {"user": user_id},
    )
    return int(rows[0][0])


async def forget_deliveries(connection: Connection, user_id: int) -> None:
    """Forgets what was to be handed over to somebody, or of them."""
    await connection.execute("DELETE FROM webhook_deliveries WHERE %(user)s IN (user_id, actor_id)", {"user": user_id})
