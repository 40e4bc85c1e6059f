"""The graph's tables in SQL, and nothing else: who may do what is decided in the use cases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg

from runtime import errors, ids
from runtime.counts import Counts
from runtime.postgres import Connection, Pool, Reader, fetch, int8s

USER_COUNTS = Counts("user", "user_id", ("followers", "following"))


class UserRow(NamedTuple):
    """A person with their counts."""

    user_id: int
    username: str
    email: str
    private: bool
    followers: int
    following: int


class FollowState(NamedTuple):
    """Where a follow stands, and what decides whether there may be one."""

    following: bool
    requested: bool
    private: bool
    """Whether the followee's account is private."""
    blocked: bool
    """Whether either blocks the other."""
    reach: int
    """How many people the follower follows or has asked to follow, exactly."""


class Relations(NamedTuple):
    """A person's relations to others. The lists are in no order, and empty where the version is the known one."""

    version: int
    following_ids: bytes
    """Packed, 8 bytes each, big-endian: nobody looks at them one by one."""
    follow_ids: bytes
    """One for each of `following_ids`."""
    blocked_ids: list[int]
    """Either way."""
    muted_ids: list[int]


class Pairs(NamedTuple):
    """A table of pairs of people, read from one of its sides."""

    table: str
    key: str
    """The column that gives the order."""
    given: str
    """The column of the person whose listing it is."""
    wanted: str
    """The column of those who are listed."""


FOLLOWERS = Pairs("followers", "follow_id", "following_id", "follower_id")
FOLLOWING = Pairs("followers", "follow_id", "follower_id", "following_id")
FOLLOW_REQUESTS = Pairs("follow_requests", "follow_request_id", "following_id", "follower_id")
BLOCKS = Pairs("blocks", "block_id", "user_id", "target_id")
MUTES = Pairs("mutes", "mute_id", "user_id", "target_id")
REQUESTED = Pairs("follow_requests", "follow_request_id", "follower_id", "following_id")
"""FOLLOW_REQUESTS from the side of who asked. No index gives their order: there are never many."""

USER_COLUMNS = """
    u.user_id, u.username, u.email, u.private,
    coalesce(c.followers, 0) + coalesce(d.followers, 0),
    coalesce(c.following, 0) + coalesce(d.following, 0)"""
USER_JOINS = """
    LEFT JOIN user_counts c ON c.user_id = u.user_id
    LEFT JOIN LATERAL (
        SELECT sum(followers)::bigint AS followers, sum(following)::bigint AS following
        FROM user_count_deltas WHERE user_id = u.user_id
    ) d ON true"""
BLOCKED = """
    EXISTS (SELECT FROM blocks b WHERE b.user_id = {one} AND b.target_id = {other}
            UNION ALL SELECT FROM blocks b WHERE b.user_id = {other} AND b.target_id = {one})"""


async def insert_user(connection: Connection, username: str, email: str) -> int:
    """Adds a person; their id. Raises Conflict (USERNAME_TAKEN, EMAIL_TAKEN)."""
    with taken(username):
        cursor = await connection.execute(
            "INSERT INTO users (username, email) VALUES (%s, %s) RETURNING user_id", (username, email)
        )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def update_user(
    connection: Connection, user_id: int, username: str | None, email: str | None, private: bool | None
) -> bool:
    """Changes what is not None; whether there is such a person. Raises Conflict (USERNAME_TAKEN, EMAIL_TAKEN)."""
    with taken(username):
        cursor = await connection.execute(
            """
            UPDATE users SET username = coalesce(%s, username), email = coalesce(%s, email),
                private = coalesce(%s, private)
            WHERE user_id = %s AND erased_at IS NULL""",
            (username, email, private, user_id),
        )
    return cursor.rowcount > 0


@contextmanager
def taken(username: str | None) -> Iterator[None]:
    """Says which of the two names of a person the block found taken."""
    try:
        yield
    except psycopg.errors.UniqueViolation as error:
        if error.diag.constraint_name == "users_username":
            raise errors.Conflict("USERNAME_TAKEN", f"the username {username} is taken") from None
        if error.diag.constraint_name == "users_email":
            raise errors.Conflict("EMAIL_TAKEN", "the email address is taken") from None
        raise


async def erase_user(connection: Connection, user_id: int) -> bool | None:
    """Empties a person's row and marks it erased. False where it is already; None where there was no such person."""
    cursor = await connection.execute(
        "SELECT erased_at IS NOT NULL FROM users WHERE user_id = %s FOR NO KEY UPDATE", (user_id,)
    )
    row = await cursor.fetchone()
    if row is None or row[0]:
        return None if row is None else False
    await connection.execute(
        "UPDATE users SET username = '', email = '', erased_at = clock_timestamp() WHERE user_id = %s", (user_id,)
    )
    return True


async def user(reader: Reader, user_id: int) -> UserRow | None:
    """One person, or None."""
    rows = await fetch(
        reader,
        f"SELECT {USER_COLUMNS} FROM users u {USER_JOINS} WHERE u.user_id = %(id)s AND u.erased_at IS NULL",
        {"id": user_id},
    )
    return UserRow(*rows[0]) if rows else None


async def people(pool: Pool, user_ids: list[int]) -> list[tuple[int, str, bool]]:
    """Id, username and privacy of those people that exist, in no order."""
    rows = await fetch(
        pool,
        "SELECT user_id, username, private FROM users WHERE user_id = ANY(%(ids)s) AND erased_at IS NULL",
        {"ids": user_ids},
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def view(pool: Pool, viewer_id: int, user_id: int) -> tuple[bool, bool]:
    """Whether a block separates two people, and whether the first follows the second."""
    rows = await fetch(
        pool,
        f"""
        SELECT {BLOCKED.format(one="%(viewer)s", other="%(user)s")},
               EXISTS (SELECT FROM followers WHERE follower_id = %(viewer)s AND following_id = %(user)s)""",
        {"viewer": viewer_id, "user": user_id},
    )
    return rows[0][0], rows[0][1]


async def lock_pair(connection: Connection, changed_id: int, other_id: int, *, both: bool = False) -> set[int]:
    """Locks two people, in the order of their ids; which of them exist.

    The first one's row is locked for a change (its version will be raised), the other's only against a change, unless
    `both` are to change. So follows of one person by many do not queue, and still none slips past a block or an
    erasure.
    """
    found: set[int] = set()
    for user_id in sorted((changed_id, other_id)):
        strength = "NO KEY UPDATE" if both or user_id == changed_id else "SHARE"
        cursor = await connection.execute(
            f"SELECT user_id FROM users WHERE user_id = %s AND erased_at IS NULL FOR {strength}".encode(), (user_id,)
        )
        found.update(row[0] for row in await cursor.fetchall())
    return found


async def raise_versions(connection: Connection, user_ids: list[int]) -> None:
    """Raises the version of people's relations."""
    await connection.execute(
        "UPDATE users SET relations_version = relations_version + 1 WHERE user_id = ANY(%s)", (user_ids,)
    )


async def follow_state(connection: Connection, follower_id: int, following_id: int) -> FollowState:
    """Where a follow stands. Both people must exist, and be locked."""
    cursor = await connection.execute(
        f"""
        SELECT coalesce(bool_or(following_id = %(following)s AND NOT asked), false),
               coalesce(bool_or(following_id = %(following)s AND asked), false),
               (SELECT private FROM users WHERE user_id = %(following)s),
               {BLOCKED.format(one="%(follower)s", other="%(following)s")},
               count(*)
        FROM (
            SELECT following_id, false AS asked FROM followers WHERE follower_id = %(follower)s
            UNION ALL
            SELECT following_id, true FROM follow_requests WHERE follower_id = %(follower)s
        ) AS edge""".encode(),
        {"follower": follower_id, "following": following_id},
    )
    row = await cursor.fetchone()
    assert row is not None
    return FollowState(*row)


async def insert_request(connection: Connection, follower_id: int, following_id: int) -> None:
    """Adds a request to follow. It must not be there."""
    await connection.execute(
        "INSERT INTO follow_requests (follower_id, following_id) VALUES (%s, %s)", (follower_id, following_id)
    )


async def delete_request(connection: Connection, follower_id: int, following_id: int) -> None:
    """Removes a request to follow, where it is."""
    await connection.execute(
        "DELETE FROM follow_requests WHERE follower_id = %s AND following_id = %s", (follower_id, following_id)
    )


async def insert_edge(connection: Connection, follower_id: int, following_id: int) -> None:
    """Adds the edge with its count deltas and the follower's new version. It must not be there, and be locked.

    Where it was asked for, the request goes.

    A follower's follow ids rise, even where the clock steps back: who reads them may ask what came after.
    """
    await connection.execute(
        """
        WITH edge AS (
            INSERT INTO followers (follower_id, following_id, follow_id)
            VALUES (%(follower)s, %(following)s, greatest(
                next_id(), (SELECT max(follow_id) + 1 FROM followers WHERE follower_id = %(follower)s)))
        ), asked AS (
            DELETE FROM follow_requests WHERE follower_id = %(follower)s AND following_id = %(following)s
        ), version AS (
            UPDATE users SET relations_version = relations_version + 1 WHERE user_id = %(follower)s
        )
        INSERT INTO user_count_deltas (user_id, followers, following)
        VALUES (%(follower)s, 0, 1), (%(following)s, 1, 0)""",
        {"follower": follower_id, "following": following_id},
    )


async def delete_edge(connection: Connection, follower_id: int, following_id: int) -> bool:
    """Removes the edge, where it is, with its count deltas and the follower's new version; whether it was there."""
    cursor = await connection.execute(
        """
        WITH edge AS (
            DELETE FROM followers WHERE follower_id = %(follower)s AND following_id = %(following)s
            RETURNING follower_id, following_id
        ), version AS (
            UPDATE users SET relations_version = relations_version + 1
            WHERE user_id = (SELECT follower_id FROM edge)
        )
        INSERT INTO user_count_deltas (user_id, followers, following)
        SELECT follower_id, 0, -1 FROM edge UNION ALL SELECT following_id, -1, 0 FROM edge""",
        {"follower": follower_id, "following": following_id},
    )
    return cursor.rowcount > 0


async def insert_block(connection: Connection, user_id: int, target_id: int) -> bool:
    """Adds a block, unless it is there; whether it was not. Both people must be locked for a change."""
    cursor = await connection.execute(
        "INSERT INTO blocks (user_id, target_id) VALUES (%s, %s) ON CONFLICT DO NOTHING", (user_id, target_id)
    )
    if cursor.rowcount:
        await raise_versions(connection, [user_id, target_id])
    return cursor.rowcount > 0


async def insert_mute(connection: Connection, user_id: int, target_id: int) -> None:
    """Adds a mute, unless it is there. The first person must be locked for a change."""
    cursor = await connection.execute(
        "INSERT INTO mutes (user_id, target_id) VALUES (%s, %s) ON CONFLICT DO NOTHING", (user_id, target_id)
    )
    if cursor.rowcount:
        await raise_versions(connection, [user_id])


async def delete_block(connection: Connection, user_id: int, target_id: int) -> bool:
    """Removes a block, where it is; whether it was. Both people must be locked for a change."""
    cursor = await connection.execute("DELETE FROM blocks WHERE user_id = %s AND target_id = %s", (user_id, target_id))
    if cursor.rowcount:
        await raise_versions(connection, [user_id, target_id])
    return cursor.rowcount > 0


async def delete_mute(connection: Connection, user_id: int, target_id: int) -> None:
    """Removes a mute, where it is. The first person must be locked for a change."""
    cursor = await connection.execute("DELETE FROM mutes WHERE user_id = %s AND target_id = %s", (user_id, target_id))
    if cursor.rowcount:
        await raise_versions(connection, [user_id])


async def is_full(connection: Connection, pairs: Pairs, user_id: int, target_id: int, most: int) -> bool:
    """Whether a person has as many of such pairs as one may, and none of them is with the target."""
    cursor = await connection.execute(
        f"SELECT count(*) >= %s AND NOT coalesce(bool_or({pairs.wanted} = %s), false) FROM {pairs.table}"
        f" WHERE {pairs.given} = %s".encode(),
        (most, target_id, user_id),
    )
    row = await cursor.fetchone()
    return bool(row and row[0])


async def listed(
    pool: Pool, pairs: Pairs, user_id: int, viewer_id: int, before: int, limit: int
) -> list[tuple[int, UserRow]]:
    """A page of someone's pairs with an id below `before`, newest first: that id and the other person.

    Those are left out whom a block separates from the viewer (0 for none).
    """
    rows = await fetch(
        pool,
        f"""
        SELECT pair.{pairs.key}, {USER_COLUMNS}
        FROM {pairs.table} pair JOIN users u ON u.user_id = pair.{pairs.wanted} {USER_JOINS}
        WHERE pair.{pairs.given} = %(user)s AND pair.{pairs.key} < %(before)s AND u.erased_at IS NULL
          AND NOT {BLOCKED.format(one="%(viewer)s", other="u.user_id")}
        ORDER BY pair.{pairs.key} DESC LIMIT %(limit)s""",
        {"user": user_id, "viewer": viewer_id, "before": before, "limit": limit},
    )
    return [(row[0], UserRow(*row[1:])) for row in rows]


async def user_changes(pool: Pool, after: int, limit: int) -> tuple[int, list[int]]:
    """The version of people as of now, and who changed after one, at most `limit`. Versions are consecutive."""
    [row] = await fetch(
        pool,
        """
        SELECT coalesce((SELECT version FROM user_version), 1), ARRAY(
            SELECT user_id FROM user_changes WHERE version > %(after)s ORDER BY version LIMIT %(limit)s)""",
        {"after": after, "limit": limit},
    )
    return row[0], row[1]


async def prune_user_changes(pool: Pool, kept: int, limit: int) -> bool:
    """Deletes up to `limit` changes of people but for the `kept` latest; True when there may be more."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            """
            DELETE FROM user_changes WHERE version IN (
                SELECT version FROM user_changes WHERE version <= (SELECT version FROM user_version) - %s LIMIT %s)""",
            (kept, limit),
        )
        return cursor.rowcount == limit


async def relations(pool: Pool, known: dict[int, int]) -> dict[int, Relations]:
    """By viewer that exists, the relations' version and, where that is not the known one, the relations.

    `known` gives a version for each viewer.
    """
    rows = await fetch(
        pool,
        "SELECT user_id, relations_version FROM users WHERE user_id = ANY(%(viewers)s) AND erased_at IS NULL",
        {"viewers": int8s(known)},
    )
    found = {row[0]: Relations(row[1], b"", b"", [], []) for row in rows}
    # Mostly nothing has changed, and that is all.
    changed = [viewer_id for viewer_id, its in found.items() if its.version != known[viewer_id]]
    for viewer_id in changed:
        del found[viewer_id]
    return found | await whole_relations(pool, changed) if changed else found


async def whole_relations(pool: Pool, viewer_ids: list[int]) -> dict[int, Relations]:
    """By viewer that exists, the relations with their version. One statement, so that these are of one snapshot."""
    rows = await fetch(
        pool,
        """
        SELECT u.user_id, u.relations_version, coalesce(edges.following_ids, ''), coalesce(edges.follow_ids, ''),
               ARRAY(
                   SELECT target_id FROM blocks WHERE user_id = u.user_id
                   UNION SELECT user_id FROM blocks WHERE target_id = u.user_id),
               ARRAY(SELECT target_id FROM mutes WHERE user_id = u.user_id)
        FROM users u
        CROSS JOIN LATERAL (
            -- Both see the rows in one order, whichever that is.
            SELECT string_agg(int8send(following_id), '') AS following_ids,
                   string_agg(int8send(follow_id), '') AS follow_ids
            FROM followers WHERE follower_id = u.user_id
        ) edges
        WHERE u.user_id = ANY(%(viewers)s) AND u.erased_at IS NULL""",
        {"viewers": int8s(viewer_ids)},
    )
    return {row[0]: Relations(*row[1:]) for row in rows}


class FollowersPage(NamedTuple):
    """A page of somebody's followers."""

    packed: bytes
    """8 bytes each, big-endian: nobody looks at them one by one."""
    next_follow_id: int
    """The id of its last follow where more come after it, or 0."""
    followers: int
    """Of a first page how many they are in all, totals and pending deltas; 0 of another."""


async def follower_ids(pool: Pool, pages: list[tuple[int, int, int]]) -> list[FollowersPage]:
    """Pages of followers, newest follow first, each of (user, follow ids below or 0, limit), one for one.

    One index-only scan a page.
    """
    rows = await fetch(
        pool,
        """
        SELECT coalesce(page.packed, ''), CASE WHEN EXISTS (
            SELECT FROM followers WHERE following_id = item.user_id AND follow_id < page.last_follow_id
        ) THEN page.last_follow_id ELSE 0 END,
        CASE WHEN item.before = 0 THEN (
            SELECT coalesce(sum(followers), 0)::bigint FROM (
                SELECT followers FROM user_counts WHERE user_id = item.user_id
                UNION ALL SELECT followers FROM user_count_deltas WHERE user_id = item.user_id
            ) AS part
        ) ELSE 0 END
        FROM unnest(%(users)s::bigint[], %(befores)s::bigint[], %(sizes)s::bigint[])
            WITH ORDINALITY AS item (user_id, before, size, place)
        CROSS JOIN LATERAL (
            SELECT string_agg(int8send(follower_id), '') AS packed, min(follow_id) AS last_follow_id
            FROM (
                SELECT follower_id, follow_id FROM followers
                WHERE following_id = item.user_id AND follow_id < coalesce(nullif(item.before, 0), %(none)s)
                ORDER BY follow_id DESC LIMIT item.size
            ) AS edge
        ) AS page
        ORDER BY item.place""",
        {
            "users": int8s([user_id for user_id, _, _ in pages]),
            "befores": int8s([before for _, before, _ in pages]),
            "sizes": int8s([size for _, _, size in pages]),
            "none": ids.MAX_ID + 1,
        },
    )
    return [FollowersPage(*row) for row in rows]


class FollowActRow(NamedTuple):
    """A follow, or a wish to follow."""

    act_id: int
    user_id: int
    requested: bool


async def follow_acts(pool: Pool, questions: list[tuple[int, int, int]]) -> list[list[FollowActRow]]:
    """Who followed people or asked to, each question (person, ids below, limit); one for one, newest first."""
    rows = await fetch(
        pool,
        """
        SELECT item.place, act.* FROM unnest(%(users)s::bigint[], %(befores)s::bigint[], %(sizes)s::bigint[])
            WITH ORDINALITY AS item (user_id, before, size, place)
        CROSS JOIN LATERAL (
            (SELECT follow_id AS act_id, follower_id, false FROM followers
             WHERE following_id = item.user_id AND follow_id < item.before
             ORDER BY follow_id DESC LIMIT item.size)
            UNION ALL
            (SELECT follow_request_id, follower_id, true FROM follow_requests
             WHERE following_id = item.user_id AND follow_request_id < item.before
             ORDER BY follow_request_id DESC LIMIT item.size)
            ORDER BY act_id DESC LIMIT item.size
        ) AS act
        ORDER BY item.place, act.act_id DESC""",
        {
            "users": int8s([user_id for user_id, _, _ in questions]),
            "befores": int8s([before for _, before, _ in questions]),
            "sizes": int8s([size for _, _, size in questions]),
        },
    )
    found: list[list[FollowActRow]] = [[] for _ in questions]
    for place, *row in rows:
        found[place - 1].append(FollowActRow(*row))
    return found


async def ids_of_names(pool: Pool, usernames: list[str]) -> dict[str, int]:
    """Who has these usernames (in lower case), by name; those whom nobody has lack."""
    rows = await fetch(
        pool,
        "SELECT lower(username), user_id FROM users WHERE lower(username) = ANY(%(names)s)",
        {"names": usernames},
    )
    return {row[0]: row[1] for row in rows}


async def follower_counts(pool: Pool, user_ids: list[int]) -> dict[int, int]:
    """How many people follow each user, totals and pending deltas; those without any may lack."""
    rows = await fetch(
        pool,
        """
        SELECT user_id, sum(followers)::bigint FROM (
            SELECT user_id, followers FROM user_counts WHERE user_id = ANY(%(ids)s)
            UNION ALL
            SELECT user_id, followers FROM user_count_deltas WHERE user_id = ANY(%(ids)s)
        ) AS part
        GROUP BY user_id""",
        {"ids": user_ids},
    )
    return {row[0]: row[1] for row in rows}


async def followed_by_many(pool: Pool, after: int, min_followers: int, limit: int) -> list[tuple[int, int]]:
    """Users with an id above `after` and so many followers by the totals alone, by rising id; with the totals."""
    rows = await fetch(
        pool,
        """
        SELECT user_id, followers FROM user_counts
        WHERE user_id > %(after)s AND followers >= %(min)s
        ORDER BY user_id LIMIT %(limit)s""",
        {"after": after, "min": min_followers, "limit": limit},
    )
    return [(row[0], row[1]) for row in rows]


async def tied(pool: Pool, pairs: Pairs, user_id: int, before: int, limit: int) -> list[tuple[int, int, str]]:
    """As `listed` for nobody in particular, and of the other person only id and username."""
    rows = await fetch(
        pool,
        f"""
        SELECT pair.{pairs.key}, u.user_id, u.username
        FROM {pairs.table} pair JOIN users u ON u.user_id = pair.{pairs.wanted}
        WHERE pair.{pairs.given} = %(user)s AND pair.{pairs.key} < %(before)s AND u.erased_at IS NULL
        ORDER BY pair.{pairs.key} DESC LIMIT %(limit)s""",
        {"user": user_id, "before": before, "limit": limit},
    )
    return [(row[0], row[1], row[2]) for row in rows]


# Upkeep.


async def unswept(pool: Pool, limit: int) -> list[int]:
    """Erased people on whom something may still hang."""
    rows = await fetch(
        pool,
        "SELECT user_id FROM users WHERE erased_at IS NOT NULL AND NOT swept ORDER BY erased_at LIMIT %(limit)s",
        {"limit": limit},
    )
    return [row[0] for row in rows]


async def edges_of(connection: Connection, user_id: int, limit: int) -> list[tuple[int, int]]:
    """Up to `limit` follows each by and of a person: follower and followee, by rising follower."""
    cursor = await connection.execute(
        """
        (SELECT follower_id, following_id FROM followers WHERE follower_id = %(user)s LIMIT %(limit)s)
        UNION ALL
        (SELECT follower_id, following_id FROM followers WHERE following_id = %(user)s LIMIT %(limit)s)
        ORDER BY follower_id""",
        {"user": user_id, "limit": limit},
    )
    return [(row[0], row[1]) for row in await cursor.fetchall()]


async def sweep(connection: Connection, user_id: int, limit: int) -> bool:
    """Removes what hangs on an erased person besides follows, up to `limit` rows of each kind, and says so once all is
    gone; whether it is."""
    removed = 0
    for pairs, versions in ((FOLLOW_REQUESTS, False), (BLOCKS, True), (MUTES, True)):
        cursor = await connection.execute(
            f"""
            DELETE FROM {pairs.table} WHERE ctid = ANY(ARRAY(
                (SELECT ctid FROM {pairs.table} WHERE {pairs.given} = %(user)s LIMIT %(limit)s)
                UNION ALL
                (SELECT ctid FROM {pairs.table} WHERE {pairs.wanted} = %(user)s LIMIT %(limit)s)))
            RETURNING {pairs.given}, {pairs.wanted}""".encode(),
            {"user": user_id, "limit": limit},
        )
        gone = await cursor.fetchall()
        removed = max(removed, len(gone))
        if versions:
            await raise_versions(connection, sorted({other for row in gone for other in row}))
    if removed:
        return False
    await connection.execute("DELETE FROM user_count_deltas WHERE user_id = %s", (user_id,))
    await connection.execute("DELETE FROM user_counts WHERE user_id = %s", (user_id,))
    await connection.execute("UPDATE users SET swept = true WHERE user_id = %s", (user_id,))
    return True


async def traces(pool: Pool, user_id: int) -> dict[str, int]:
    """How much of each table names someone; of users, whether there is more than the mark of an erased person."""
    [row] = await fetch(
        pool,
        """
        SELECT (SELECT count(*) FROM users WHERE user_id = %(user)s AND (erased_at IS NULL OR username || email <> '')),
               (SELECT count(*) FROM followers WHERE follower_id = %(user)s)
                 + (SELECT count(*) FROM followers WHERE following_id = %(user)s),
               (SELECT count(*) FROM follow_requests WHERE %(user)s IN (follower_id, following_id)),
               (SELECT count(*) FROM blocks WHERE %(user)s IN (user_id, target_id)),
               (SELECT count(*) FROM mutes WHERE %(user)s IN (user_id, target_id)),
               (SELECT count(*) FROM user_counts WHERE user_id = %(user)s)
                 + (SELECT count(*) FROM user_count_deltas WHERE user_id = %(user)s),
               (SELECT count(*) FROM credentials WHERE user_id = %(user)s)
                 + (SELECT count(*) FROM identities WHERE user_id = %(user)s)
                 + (SELECT count(*) FROM sessions WHERE user_id = %(user)s)""",
        {"user": user_id},
    )
    return dict(
        zip(("users", "followers", "follow_requests", "blocks", "mutes", "user_counts", "sessions"), row, strict=True)
    )
