"""The tables of sessions in SQL, and nothing else."""

from __future__ import annotations

from typing import NamedTuple

import psycopg

from runtime import errors
from runtime.postgres import Connection, Pool, Reader, fetch

TRY_S, TRIES = 6, 10
"""An account takes so many tries at once, and one more each six seconds."""
KEPT_DAYS = 30
"""How long a session lasts that is not renewed."""
RETRY_S = 60
"""For how long a renewal may be asked for again."""
MAX_SESSIONS = 50
MAX_ENDED = 100_000
KEPT_ENDED_S = 3_600
"""How long it is known that a session ended: longer than its access tokens count."""


class SessionRow(NamedTuple):
    """A session as it stands."""

    session_id: int
    user_id: int
    generation: int
    """Of the refresh token that counts."""
    just_renewed: bool
    """Whether the one before may be asked about again."""


class SigningKey(NamedTuple):
    """A key, as it is kept."""

    key_id: str
    public_key: str
    sealed_key: str
    is_old: bool
    """Whether another is to sign from now on."""


async def insert_password(connection: Connection, user_id: int, password_hash: str) -> None:
    """Lets a person sign in with a password."""
    await connection.execute(
        "INSERT INTO credentials (user_id, password_hash) VALUES (%s, %s)", (user_id, password_hash)
    )


async def insert_identity(connection: Connection, user_id: int, issuer: str, subject: str) -> None:
    """Says who a person is elsewhere. Raises Conflict (IDENTITY_TAKEN)."""
    try:
        await connection.execute(
            "INSERT INTO identities (issuer, subject, user_id) VALUES (%s, %s, %s)", (issuer, subject, user_id)
        )
    except psycopg.errors.UniqueViolation:
        raise errors.Conflict("IDENTITY_TAKEN", "who signed in has an account already") from None


async def identity(reader: Reader, issuer: str, subject: str) -> int | None:
    """Who somebody is here."""
    rows = await fetch(
        reader,
        "SELECT user_id FROM identities WHERE issuer = %(issuer)s AND subject = %(subject)s",
        {"issuer": issuer, "subject": subject},
    )
    return rows[0][0] if rows else None


async def count_try(connection: Connection, *, name: str = "", user_id: int = 0) -> tuple[int, str] | None:
    """Counts a try to sign in, by username, email address or id: the account's id and hash; None where there is none.

    Raises Throttled. Counted before it is looked at, so that many at once are no more than their number.
    """
    cursor = await connection.execute(
        """
        WITH account AS (
            SELECT user_id, password_hash, tries_until FROM credentials JOIN users USING (user_id)
            WHERE erased_at IS NULL
                AND (user_id = %(id)s OR lower(username) = lower(%(name)s) OR lower(email) = lower(%(name)s))
        ), counted AS (
            UPDATE credentials c
            SET tries_until = greatest(c.tries_until, clock_timestamp()) + make_interval(secs => %(try)s)
            FROM account a
            WHERE c.user_id = a.user_id AND c.tries_until <= clock_timestamp() + make_interval(secs => %(most)s)
            RETURNING c.user_id
        )
        SELECT user_id, password_hash, EXISTS (SELECT FROM counted) FROM account""",
        {"id": user_id, "name": name, "try": TRY_S, "most": TRY_S * (TRIES - 1)},
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    if not row[2]:
        raise errors.Throttled(f"too many wrong passwords: one try in {TRY_S} seconds")
    return row[0], row[1]


async def forget_tries(connection: Connection, user_id: int) -> None:
    """The password was right."""
    await connection.execute("UPDATE credentials SET tries_until = '-infinity' WHERE user_id = %s", (user_id,))


async def set_password(connection: Connection, user_id: int, password_hash: str, before: str) -> bool:
    """Changes a hash, unless another has come in its place; whether it did."""
    cursor = await connection.execute(
        """
        UPDATE credentials SET password_hash = %s, tries_until = '-infinity'
        WHERE user_id = %s AND password_hash = %s""",
        (password_hash, user_id, before),
    )
    return cursor.rowcount > 0


async def insert_session(connection: Connection, user_id: int) -> SessionRow | None:
    """Begins a session, and ends the oldest of too many. None where the person is gone."""
    cursor = await connection.execute(
        "SELECT FROM users WHERE user_id = %s AND erased_at IS NULL FOR NO KEY UPDATE", (user_id,)
    )
    if await cursor.fetchone() is None:
        return None
    await connection.execute(
        """
        UPDATE sessions SET ended_at = clock_timestamp() WHERE session_id IN (
            SELECT session_id FROM sessions WHERE user_id = %s AND ended_at IS NULL
            ORDER BY session_id DESC OFFSET %s)""",
        (user_id, MAX_SESSIONS - 1),
    )
    cursor = await connection.execute(
        "INSERT INTO sessions (user_id) VALUES (%s) RETURNING session_id, user_id, generation, true", (user_id,)
    )
    row = await cursor.fetchone()
    assert row is not None
    return SessionRow(*row)


async def lock_session(connection: Connection, session_id: int) -> SessionRow | None:
    """A session that has not ended, against any change until the transaction's end."""
    cursor = await connection.execute(
        """
        SELECT session_id, user_id, generation, renewed_at > clock_timestamp() - make_interval(secs => %s)
        FROM sessions
        WHERE session_id = %s AND ended_at IS NULL AND renewed_at > clock_timestamp() - make_interval(days => %s)
        FOR UPDATE""",
        (RETRY_S, session_id, KEPT_DAYS),
    )
    row = await cursor.fetchone()
    return SessionRow(*row) if row else None


async def renew(connection: Connection, session_id: int) -> None:
    """From now on the next refresh token counts."""
    await connection.execute(
        "UPDATE sessions SET generation = generation + 1, renewed_at = clock_timestamp() WHERE session_id = %s",
        (session_id,),
    )


async def end_sessions(connection: Connection, user_id: int, session_id: int | None = None) -> None:
    """Ends a session of a person, or all."""
    await connection.execute(
        """
        UPDATE sessions SET ended_at = clock_timestamp()
        WHERE user_id = %s AND session_id = coalesce(%s, session_id) AND ended_at IS NULL""",
        (user_id, session_id),
    )


async def sessions_of(pool: Pool, user_id: int) -> list[tuple[int, float]]:
    """A person's sessions, newest first: id, and when each was renewed, in seconds of the epoch."""
    rows = await fetch(
        pool,
        f"""
        SELECT session_id, extract(epoch FROM renewed_at)::float8 FROM sessions
        WHERE user_id = %(user)s AND ended_at IS NULL
            AND renewed_at > clock_timestamp() - make_interval(days => {KEPT_DAYS})
        ORDER BY session_id DESC LIMIT {MAX_SESSIONS}""",
        {"user": user_id},
    )
    return [(row[0], row[1]) for row in rows]


async def ended(pool: Pool, within_s: int) -> list[int]:
    """The sessions that ended within so many seconds, at most MAX_ENDED."""
    rows = await fetch(
        pool,
        f"""
        SELECT session_id FROM sessions WHERE ended_at > clock_timestamp() - make_interval(secs => %(within)s)
        ORDER BY ended_at DESC LIMIT {MAX_ENDED}""",
        {"within": within_s},
    )
    return [row[0] for row in rows]


async def prune(pool: Pool, batch: int) -> bool:
    """Deletes sessions that are over, a batch of each kind at the most, and keys that signed long ago.

    True when there may be more.
    """
    async with pool.connection() as connection:
        await connection.execute(
            """
            DELETE FROM signing_keys k WHERE EXISTS (
                SELECT FROM signing_keys newer
                WHERE newer.created_at > k.created_at
                    AND newer.created_at < clock_timestamp() - make_interval(secs => %s))""",
            (KEPT_ENDED_S,),
        )
        old = await connection.execute(
            """
            DELETE FROM sessions WHERE session_id IN (
                SELECT session_id FROM sessions
                WHERE renewed_at < clock_timestamp() - make_interval(days => %s) LIMIT %s
            )""",
            (KEPT_DAYS, batch),
        )
        over = await connection.execute(
            """
            DELETE FROM sessions WHERE session_id IN (
                SELECT session_id FROM sessions
                WHERE ended_at < clock_timestamp() - make_interval(secs => %s) LIMIT %s
            )""",
            (KEPT_ENDED_S, batch),
        )
        return batch in (old.rowcount, over.rowcount)


async def forget(connection: Connection, user_id: int) -> None:
    """Deletes how an erased person signed in."""
    for table in TABLES:
        await connection.execute(f"DELETE FROM {table} WHERE user_id = %s".encode(), (user_id,))


TABLES = ("sessions", "credentials", "identities")


async def signing_keys(reader: Reader, days: float) -> list[SigningKey]:
    """All keys, the newest first. One is old after so many days."""
    rows = await fetch(
        reader,
        """
        SELECT key_id, public_key, sealed_key, created_at < clock_timestamp() - make_interval(secs => %(s)s)
        FROM signing_keys ORDER BY created_at DESC, key_id""",
        {"s": days * 86_400},
    )
    return [SigningKey(*row) for row in rows]


async def lock_signing_keys(connection: Connection) -> None:
    """Lets nobody else make one until the transaction's end."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('signing_keys', 0))")


async def insert_signing_key(connection: Connection, key_id: str, public_key: str, sealed_key: str) -> None:
    """Adds a key: from now on it signs."""
    await connection.execute(
        "INSERT INTO signing_keys (key_id, public_key, sealed_key) VALUES (%s, %s, %s)",
        (key_id, public_key, sealed_key),
    )
