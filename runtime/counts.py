"""Exact counts without hot rows: a write adds a row to a table of deltas, and one folder adds them to the totals.

In every snapshot totals plus pending deltas equal the rows that are counted, so a read adds the two and is exact at
once; and a post that everybody likes is no queue for one row's lock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from psycopg import sql

from runtime import metrics, postgres

BATCH = 20_000
"""Deltas that one fold takes at the most."""
LOCK = 0x666F_6C64
"""The advisory lock of the database's one folder."""


@dataclass(frozen=True)
class Counts:
    """One table of totals (`<name>_counts`) and its table of deltas (`<name>_count_deltas`), alike in their columns."""

    name: str
    """For example `post`."""
    key: str
    """The column that names what is counted, for example `post_id`."""
    columns: tuple[str, ...]
    """The counts, for example `likes, comments, shares`."""
    decayed: str = ""
    """An expression over a delta row's columns that a column `heat` sums, halved for each `HALF_LIFE_S` since; "" for
    none. Then `heat_at` says to when it is decayed."""


HALF_LIFE_S = 3600
DECAYED_HEAT = (
    "round(({table}heat * power(0.5::float8,"
    f" least(extract(epoch FROM now() - {{table}}heat_at)::float8 / {HALF_LIFE_S}, 100)))::numeric, 6)::float8"
)
"""Heat as of now, of a table of totals (`table` is its name with a dot, or ""). Rounded, so that it comes to 0:
Postgres raises an error where a float would underflow."""


async def fold(pool: postgres.Pool, counts: Counts) -> bool:
    """Adds up to 20,000 pending deltas to their totals in one transaction; True when there may be more.

    Does nothing while another process folds: whoever holds the advisory lock is the folder, until its transaction ends.
    """
    begun = time.perf_counter()

    async def work(connection: postgres.Connection) -> int:
        locked = await (await connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (LOCK,))).fetchone()
        if not locked or not locked[0]:
            return 0
        cursor = await connection.execute(statement(counts), {"batch": BATCH})
        row = await cursor.fetchone()
        return int(row[0]) if row else 0

    folded = await postgres.transact(pool, work)
    if folded:
        metrics.COUNT_DELTAS_FOLDED.labels(counts.name).inc(folded)
        metrics.COUNT_FOLD_SECONDS.labels(counts.name).observe(time.perf_counter() - begun)
    return folded == BATCH


def statement(counts: Counts) -> sql.Composed:
    """Deletes deltas and adds their sums to the totals, in one statement and so in one snapshot; yields how many."""
    total, delta = sql.Identifier(f"{counts.name}_counts"), sql.Identifier(f"{counts.name}_count_deltas")
    key = sql.Identifier(counts.key)
    columns = [sql.Identifier(column) for column in counts.columns]
    names = list(columns)
    sums: list[sql.Composable] = [sql.SQL("sum({})").format(column) for column in columns]
    updates = [sql.SQL("{c} = {t}.{c} + excluded.{c}").format(c=column, t=total) for column in columns]
    if counts.decayed:
        # Heat halves every HALF_LIFE_S: exponential decay, kept as one number and the time it is true for.
        names += [sql.Identifier("heat"), sql.Identifier("heat_at")]
        sums += [sql.SQL("greatest(0, sum({}))").format(sql.SQL(counts.decayed)), sql.SQL("now()")]
        updates.append(
            sql.SQL("heat = {heat} + excluded.heat, heat_at = now()").format(
                heat=sql.SQL(DECAYED_HEAT.format(table=f"{counts.name}_counts."))
            )
        )
    return sql.SQL(
        """
        WITH taken AS (
            DELETE FROM {delta} WHERE delta_id IN (
                SELECT delta_id FROM {delta} ORDER BY delta_id LIMIT %(batch)s
            ) RETURNING *
        ), folded AS (
            INSERT INTO {total} ({key}, {names})
            SELECT {key}, {sums} FROM taken GROUP BY {key} ORDER BY {key}
            ON CONFLICT ({key}) DO UPDATE SET {updates}
        )
        SELECT count(*) FROM taken"""
    ).format(
        delta=delta,
        total=total,
        key=key,
        names=sql.SQL(", ").join(names),
        sums=sql.SQL(", ").join(sums),
        updates=sql.SQL(", ").join(updates),
    )
