"""The graph's tables in SQL, and nothing else: who may do what is decided in the use cases."""

from __future__ import annotations

from typing import NamedTuple

import psycopg

from runtime import errors
from runtime.counts import Counts
from runtime.postgres import Connection, Pool, fetch

USER_COUNTS = Counts("user", "user_id", ("followers", "following"))


class UserRow(NamedTuple):
    """A person with their counts."""

    user_id: int
    username: str
    email: str
    followers: int
    following: int


class Relations(NamedTuple):
    """Whom a person follows."""

    version: int
    following_ids: list[int]
    """In no order; none where the version is the known one."""
    follow_ids: list[int]
    """One for each of `following_ids`."""


USER_COLUMNS = """
    u.user_id, u.username, u.email,
    coalesce(c.followers, 0) + coalesce(d.followers, 0),
    coalesce(c.following, 0) + coalesce(d.following, 0)"""
USER_JOINS = """
    LEFT JOIN user_counts c ON c.user_id = u.user_id
    LEFT JOIN LATERAL (
        SELECT sum(followers)::bigint AS followers, sum(following)::bigint AS following
        FROM user_count_deltas WHERE user_id = u.user_id
    ) d ON true"""


async def insert_user(connection: Connection, username: str, email: str) -> int:
    """Adds a person; their id. Raises Conflict (USERNAME_TAKEN, EMAIL_TAKEN)."""
    try:
        cursor = await connection.execute(
            "INSERT INTO users (username, email) VALUES (%s, %s) RETURNING user_id", (username, email)
        )
    except psycopg.errors.UniqueViolation as error:
        if error.diag.constraint_name == "users_username":
            raise errors.Conflict("USERNAME_TAKEN", f"the username {username} is taken") from None
        if error.diag.constraint_name == "users_email":
            raise errors.Conflict("EMAIL_TAKEN", "the email address is taken") from None
        raise
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def user(pool: Pool, user_id: int) -> UserRow | None:
    """One person, or None."""
    rows = await fetch(
        pool, f"SELECT {USER_COLUMNS} FROM users u {USER_JOINS} WHERE u.user_id = %(id)s", {"id": user_id}
    )
    return UserRow(*rows[0]) if rows else None


async def usernames(pool: Pool, user_ids: list[int]) -> list[tuple[int, str]]:
    """Id and username of those people that exist, in no order."""
    rows = await fetch(pool, "SELECT user_id, username FROM users WHERE user_id = ANY(%(ids)s)", {"ids": user_ids})
    return [(row[0], row[1]) for row in rows]


async def lock_edge(connection: Connection, follower_id: int, following_id: int) -> set[int]:
    """Locks both people of an edge, in the order of their ids; which of them exist.

    The follower's row is locked for a change (its version will be raised), the followee's only against a change: so
    follows of one person by many do not queue, and still none slips past a block or an erasure.
    """
    found: set[int] = set()
    for user_id in sorted((follower_id, following_id)):
        strength = "NO KEY UPDATE" if user_id == follower_id else "SHARE"
        cursor = await connection.execute(
            f"SELECT user_id FROM users WHERE user_id = %s FOR {strength}".encode(), (user_id,)
        )
        found.update(row[0] for row in await cursor.fetchall())
    return found


async def following_state(connection: Connection, follower_id: int, following_id: int) -> tuple[bool, int]:
    """Whether the edge is there, and how many people the follower follows, exactly."""
    cursor = await connection.execute(
        "SELECT coalesce(bool_or(following_id = %s), false), count(*) FROM followers WHERE follower_id = %s",
        (following_id, follower_id),
    )
    row = await cursor.fetchone()
    assert row is not None
    return bool(row[0]), int(row[1])


async def insert_edge(connection: Connection, follower_id: int, following_id: int) -> None:
    """Adds the edge with its count deltas and the follower's new version. It must not be there, and be locked.

    A follower's follow ids rise, even where the clock steps back: who reads them may ask what came after.
    """
    await connection.execute(
        """
        WITH edge AS (
            INSERT INTO followers (follower_id, following_id, follow_id)
            VALUES (%(follower)s, %(following)s, greatest(
                next_id(), (SELECT max(follow_id) + 1 FROM followers WHERE follower_id = %(follower)s)))
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


async def followers(pool: Pool, user_id: int, before: int, limit: int) -> list[tuple[int, UserRow]]:
    """Who follows someone, newest follow first, of the follows with an id below `before`; with the follow's id."""
    return await edge_page(pool, "f.follower_id", "f.following_id", user_id, before, limit)


async def following(pool: Pool, user_id: int, before: int, limit: int) -> list[tuple[int, UserRow]]:
    """Whom someone follows, newest follow first, of the follows with an id below `before`; with the follow's id."""
    return await edge_page(pool, "f.following_id", "f.follower_id", user_id, before, limit)


async def edge_page(
    pool: Pool, wanted: str, given: str, user_id: int, before: int, limit: int
) -> list[tuple[int, UserRow]]:
    """A page of the people in column `wanted` of the follows whose column `given` is the person."""
    rows = await fetch(
        pool,
        f"""
        SELECT f.follow_id, {USER_COLUMNS}
        FROM followers f JOIN users u ON u.user_id = {wanted} {USER_JOINS}
        WHERE {given} = %(user)s AND f.follow_id < %(before)s
        ORDER BY f.follow_id DESC LIMIT %(limit)s""",
        {"user": user_id, "before": before, "limit": limit},
    )
    return [(row[0], UserRow(*row[1:])) for row in rows]


async def relations(pool: Pool, known: dict[int, int]) -> dict[int, Relations]:
    """By viewer that exists, the relations' version and, where that is not the known one, whom they follow.

    `known` gives a version for each viewer. One statement, so that version and edges are of one snapshot.
    """
    rows = await fetch(
        pool,
        """
        SELECT u.user_id, u.relations_version, coalesce(edges.following_ids, '{}'), coalesce(edges.follow_ids, '{}')
        FROM unnest(%(viewers)s::bigint[], %(versions)s::bigint[]) AS k (viewer_id, version)
        JOIN users u ON u.user_id = k.viewer_id
        CROSS JOIN LATERAL (
            -- Both see the rows in one order, whichever that is.
            SELECT array_agg(following_id) AS following_ids, array_agg(follow_id) AS follow_ids
            FROM followers WHERE follower_id = u.user_id AND u.relations_version <> k.version
        ) edges""",
        {"viewers": list(known), "versions": list(known.values())},
    )
    return {row[0]: Relations(*row[1:]) for row in rows}


async def follower_ids(pool: Pool, pages: list[tuple[int, int, int]]) -> list[tuple[list[int], int]]:
    """Pages of followers, newest follow first, each of (user, follow ids below, limit), one for one.

    Each with the id of its last follow where more come after it, or 0. One index-only scan a page.
    """
    rows = await fetch(
        pool,
        """
        SELECT coalesce(page.follower_ids, '{}'), coalesce(page.follow_ids[item.size], 0)
        FROM unnest(%(users)s::bigint[], %(befores)s::bigint[], %(sizes)s::integer[])
            WITH ORDINALITY AS item (user_id, before, size, place)
        CROSS JOIN LATERAL (
            SELECT array_agg(follower_id) AS follower_ids, array_agg(follow_id) AS follow_ids
            FROM (
                SELECT follower_id, follow_id FROM followers
                WHERE following_id = item.user_id AND follow_id < item.before
                -- One more than the page tells whether anything comes after it.
                ORDER BY follow_id DESC LIMIT item.size + 1
            ) AS edge
        ) AS page
        ORDER BY item.place""",
        {
            "users": [user_id for user_id, _, _ in pages],
            "befores": [before for _, before, _ in pages],
            "sizes": [size for _, _, size in pages],
        },
    )
    return [
        (found[:size], last_follow_id if len(found) > size else 0)
        for (found, last_follow_id), (_, _, size) in zip(rows, pages, strict=True)
    ]


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
