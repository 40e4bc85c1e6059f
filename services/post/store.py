"""The post service's tables in SQL, and nothing else: who may do what is decided in the use cases."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from runtime import ids, members
from runtime.clock import wall_clock
from runtime.counts import DECAYED_HEAT, Counts
from runtime.postgres import Connection, Pool, Reader, fetch, int8s

POST_COUNTS = Counts("post", "post_id", ("likes", "comments", "shares"), decayed="likes + 2 * comments + 3 * shares")
NOBODY = 0
"""In place of an author, in notes of changes."""
MAX_CHANGES = 10_000
"""Notes that one read takes."""
MAX_SHARERS = 20
"""Sharers of one original that a feed names."""
DAY_MS = 86_400_000
AFFINITY_DEPTH = 200
"""How many of a person's latest likes, of their comments and of their shares count for affinity."""


class PostRow(NamedTuple):
    """A post that is not deleted, with its counts."""

    post_id: int
    user_id: int
    content: str
    media_url: str
    original_id: int
    shared_post_id: int | None
    visibility: int
    """Number of feedmesh.post.v1.Visibility."""
    likes: int
    comments: int
    shares: int


class CommentRow(NamedTuple):
    """A comment, and who wrote the post that it stands under."""

    comment_id: int
    post_id: int
    user_id: int
    author_id: int
    content: str
    deleted: bool


class WrittenRow(NamedTuple):
    """What someone wrote as a post, share or quote."""

    post_id: int
    content: str
    media_url: str
    visibility: int
    shared_post_id: int
    """0 for none."""


class LockedPost(NamedTuple):
    """A post that the transaction holds, deleted or not."""

    post_id: int
    user_id: int
    original_id: int
    shared_post_id: int | None
    deleted: bool


class NewPost(NamedTuple):
    """What a post or quote begins with."""

    user_id: int
    content: str
    media_url: str
    visibility: int
    shared_post_id: int | None = None


class NewComment(NamedTuple):
    """What a comment begins with."""

    user_id: int
    post_id: int
    author_id: int
    content: str


class Like(NamedTuple):
    """Someone's like of someone's post."""

    user_id: int
    post_id: int
    author_id: int


class NewMedia(NamedTuple):
    """An image or video that is uploaded."""

    media_id: str
    user_id: int
    size: str
    """The largest, which posts show."""
    width: int
    height: int
    duration_ms: int
    bytes: int


class MediaRow(NamedTuple):
    """An image or video that somebody uploaded."""

    upload_id: int
    media_id: str
    size: str
    width: int
    height: int
    duration_ms: int
    bytes: int


class Authored(NamedTuple):
    """What decides who may see a post."""

    post_id: int
    author_id: int
    visibility: int


class CheckedRow(NamedTuple):
    """A post as the table has it; the fields are those of feedmesh.post.v1.PostRow."""

    post_id: int
    author_id: int
    original_id: int
    deleted: bool
    original_author_id: int | None
    original_visibility: int | None
    original_deleted: bool


class Target(NamedTuple):
    """The post that a like, comment or share goes to, and its author."""

    post_id: int
    author_id: int


class Snapshot(NamedTuple):
    """What a statement saw: the transactions that had ended when it began. The greater is the later."""

    xmax: int
    """None from here on had."""
    xmin: int
    """All below had."""
    text: str
    """As Postgres writes it."""


Change = tuple[int, int, int, int]
"""Which post changed, in which transaction, whose posts there are more or fewer of, and who likes more or fewer; 0 for
nobody."""


class Acts(NamedTuple):
    """What `acts` found."""

    likes: dict[int, set[int]]
    """Posts by user."""
    changes: list[Change] | None
    """None where there are too many."""
    snapshot: Snapshot


ORIGINAL_IS_THERE = """
    (p.original_id = p.post_id
     OR EXISTS (SELECT FROM posts o WHERE o.post_id = p.original_id AND o.deleted_at IS NULL))"""
# The posts %(ids)s, hidden from the planner: it would make a plan for just these each time, which takes four times as
# long as to look for them in the partitions where they are not.
ANY_OF_IDS = "ANY((SELECT %(ids)s)::bigint[])"
# Totals and pending deltas of the posts %(ids)s, exact as of the statement: two index scans, however many posts.
COUNTED = f"""
    SELECT post_id, sum(likes)::bigint AS likes, sum(comments)::bigint AS comments, sum(shares)::bigint AS shares,
           greatest(0, sum(heat)) AS heat
    FROM (
        SELECT post_id, likes, comments, shares, {DECAYED_HEAT.format(table="")} AS heat
        FROM post_counts WHERE post_id = ANY(%(ids)s)
        UNION ALL
        SELECT post_id, likes, comments, shares, {POST_COUNTS.decayed}
        FROM post_count_deltas WHERE post_id = ANY(%(ids)s)
    ) AS part
    GROUP BY post_id"""


def columns(rows: Sequence[tuple[Any, ...]], count: int) -> list[list[Any]]:
    """Rows of `count` values as columns: what `unnest` takes."""
    return [[row[at] for row in rows] for at in range(count)]


# Writes, each within the caller's transaction.


async def insert_posts(connection: Connection, new: Sequence[NewPost]) -> list[int]:
    """Adds posts and quotes; their ids, one for one."""
    users, contents, media, visibilities, shared = columns(new, 5)
    cursor = await connection.execute(
        """
        WITH item AS (
            SELECT next_id() AS post_id, item.* FROM unnest(
                %(users)s::bigint[], %(contents)s::text[], %(media)s::text[], %(visibilities)s::smallint[],
                %(shared)s::bigint[]
            ) WITH ORDINALITY AS item (user_id, content, media_url, visibility, shared_post_id, place)
        ), new AS (
            INSERT INTO posts (post_id, original_id, user_id, content, media_url, visibility, shared_post_id)
            SELECT post_id, post_id, user_id, content, media_url, visibility, shared_post_id FROM item
        ), noted AS (
            INSERT INTO post_changes (user_id, post_id) SELECT user_id, post_id FROM item
        )
        SELECT post_id FROM item ORDER BY place""",
        {"users": users, "contents": contents, "media": media, "visibilities": visibilities, "shared": shared},
    )
    return [row[0] for row in await cursor.fetchall()]


async def insert_plain_share(connection: Connection, user_id: int, original: Target) -> int | None:
    """Adds a plain share with its count delta, unless there is one; its id, or None where there is one."""
    cursor = await connection.execute(
        """
        WITH share AS (
            INSERT INTO shares (share_id, user_id, post_id, author_id)
            VALUES (next_id(), %(user)s, %(post)s, %(author)s)
            ON CONFLICT (post_id, user_id) DO NOTHING RETURNING share_id
        ), post AS (
            INSERT INTO posts (post_id, original_id, user_id, content, shared_post_id)
            SELECT share_id, %(post)s, %(user)s, '', %(post)s FROM share
        ), delta AS (
            INSERT INTO post_count_deltas (post_id, shares) SELECT %(post)s, 1 FROM share
        ), noted AS (
            INSERT INTO post_changes (user_id, post_id) SELECT %(user)s, %(post)s FROM share
        )
        SELECT share_id FROM share""",
        {"user": user_id, "post": original.post_id, "author": original.author_id},
    )
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def plain_share(connection: Connection, user_id: int, original: Target) -> int | None:
    """The id of someone's plain share of a post, which is then there until the transaction ends; None without."""
    cursor = await connection.execute(
        "SELECT share_id FROM shares WHERE post_id = %s AND user_id = %s FOR SHARE", (original.post_id, user_id)
    )
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def lock_post(connection: Connection, post_id: int) -> LockedPost | None:
    """Locks a post, deleted ones too; None without."""
    cursor = await connection.execute(
        """
        SELECT post_id, user_id, original_id, shared_post_id, deleted_at IS NOT NULL
        FROM posts WHERE post_id = %s FOR NO KEY UPDATE""",
        (post_id,),
    )
    row = await cursor.fetchone()
    return None if row is None else LockedPost(*row)


async def delete_post(connection: Connection, post: LockedPost) -> None:
    """Empties a post and marks it deleted, with its counts and all mentions in it and under it; takes it from its
    original's count of shares. It is looked whether its author still shows its media."""
    await connection.execute(
        """
        WITH shown AS (
            SELECT user_id, split_part(media_url, '/', 3) AS media_id FROM posts
            WHERE post_id = %(post)s AND media_url LIKE '/media/%%'
        ), emptied AS (
            UPDATE posts SET content = '', media_url = '', deleted_at = clock_timestamp() WHERE post_id = %(post)s
        )
        UPDATE media m SET due_at = now() FROM shown WHERE m.media_id = shown.media_id AND m.user_id = shown.user_id""",
        {"post": post.post_id},
    )
    await delete_counts(connection, post.post_id)
    await connection.execute("DELETE FROM mentions WHERE post_id = %s", (post.post_id,))
    if post.original_id != post.post_id:
        await connection.execute(
            "DELETE FROM shares WHERE user_id = %s AND share_id = %s", (post.user_id, post.post_id)
        )
    await note_change(connection, post.user_id, post.post_id)
    if post.shared_post_id is not None:
        await add_delta(connection, post.shared_post_id, shares=-1)


async def authored(pool: Pool, post_ids: Collection[int]) -> dict[int, list[Authored]]:
    """By post: the post, and after it its original where it is a plain share. None of those where either is deleted."""
    rows = await fetch(
        pool,
        f"""
        SELECT p.post_id, p.user_id, p.visibility, o.post_id, o.user_id, o.visibility
        FROM posts p JOIN posts o ON o.post_id = p.original_id
        WHERE p.post_id = {ANY_OF_IDS} AND p.deleted_at IS NULL AND o.deleted_at IS NULL""",
        {"ids": int8s(post_ids)},
    )
    return {row[0]: [Authored(*row[at : at + 3]) for at in ((0,) if row[0] == row[3] else (0, 3))] for row in rows}


async def undeleted(connection: Connection, post_ids: Collection[int]) -> set[int]:
    """Those of the posts that are not deleted."""
    rows = await fetch(
        connection,
        f"SELECT post_id FROM posts WHERE post_id = {ANY_OF_IDS} AND deleted_at IS NULL",
        {"ids": int8s(post_ids)},
    )
    return {row[0] for row in rows}


async def insert_likes(connection: Connection, likes: Iterable[Like]) -> list[Like]:
    """Adds those of the likes that there are not yet, with one count delta a post; these.

    In one order for all, so that no two transactions wait for each other.
    """
    in_order = sorted(likes, key=lambda like: (like.post_id, like.user_id))
    users, posts, authors = (int8s(each) for each in columns(in_order, 3))
    rows = await fetch(
        connection,
        """
        WITH new AS (
            INSERT INTO likes (user_id, post_id, author_id)
            SELECT * FROM unnest(%(users)s::bigint[], %(posts)s::bigint[], %(authors)s::bigint[])
            ON CONFLICT (post_id, user_id) DO NOTHING RETURNING user_id, post_id, author_id
        ), delta AS (
            INSERT INTO post_count_deltas (post_id, likes) SELECT post_id, count(*) FROM new GROUP BY post_id
        ), noted AS (
            INSERT INTO post_changes (user_id, post_id, liker_id) SELECT 0, post_id, user_id FROM new
        )
        SELECT user_id, post_id, author_id FROM new""",
        {"users": users, "posts": posts, "authors": authors},
    )
    return [Like(*row) for row in rows]


async def delete_likes(connection: Connection, likes: Iterable[Like]) -> list[Like]:
    """Removes those of the likes that there are, with one count delta a post; these. In one order for all."""
    users, posts, _ = (int8s(each) for each in columns(list(likes), 3))
    rows = await fetch(
        connection,
        """
        WITH held AS (
            SELECT like_id FROM unnest(%(users)s::bigint[], %(posts)s::bigint[]) AS item (user_id, post_id)
            JOIN likes USING (post_id, user_id) ORDER BY like_id FOR UPDATE OF likes
        ), gone AS (
            DELETE FROM likes WHERE like_id IN (SELECT like_id FROM held) RETURNING user_id, post_id, author_id
        ), delta AS (
            INSERT INTO post_count_deltas (post_id, likes) SELECT post_id, -count(*) FROM gone GROUP BY post_id
        ), noted AS (
            INSERT INTO post_changes (user_id, post_id, liker_id) SELECT 0, post_id, user_id FROM gone
        )
        SELECT user_id, post_id, author_id FROM gone""",
        {"users": users, "posts": posts},
    )
    return [Like(*row) for row in rows]


async def likes_of(connection: Connection, post_ids: Iterable[int]) -> Counter[int]:
    """How many like each of the posts, exactly, as this statement sees it."""
    rows = await fetch(
        connection,
        """
        SELECT post_id, sum(likes)::bigint FROM (
            SELECT post_id, likes FROM post_counts WHERE post_id = ANY(%(ids)s)
            UNION ALL SELECT post_id, likes FROM post_count_deltas WHERE post_id = ANY(%(ids)s)
        ) AS part GROUP BY post_id""",
        {"ids": int8s(set(post_ids))},
    )
    return Counter(dict(rows))


async def insert_comments(connection: Connection, new: Sequence[NewComment]) -> list[int]:
    """Adds comments, with one count delta a post; their ids, one for one."""
    users, posts, authors, contents = columns(new, 4)
    cursor = await connection.execute(
        """
        WITH item AS (
            SELECT next_id() AS comment_id, item.* FROM unnest(
                %(users)s::bigint[], %(posts)s::bigint[], %(authors)s::bigint[], %(contents)s::text[]
            ) WITH ORDINALITY AS item (user_id, post_id, author_id, content, place)
        ), new AS (
            INSERT INTO comments (comment_id, user_id, post_id, author_id, content)
            SELECT comment_id, user_id, post_id, author_id, content FROM item
        ), delta AS (
            INSERT INTO post_count_deltas (post_id, comments) SELECT post_id, count(*) FROM item GROUP BY post_id
        ), noted AS (
            INSERT INTO post_changes (user_id, post_id) SELECT DISTINCT 0, post_id FROM item
        )
        SELECT comment_id FROM item ORDER BY place""",
        {"users": users, "posts": posts, "authors": authors, "contents": contents},
    )
    return [row[0] for row in await cursor.fetchall()]


async def post_of_comment(pool: Pool, comment_id: int) -> int | None:
    """The post that a comment stands under; None without."""
    rows = await fetch(pool, "SELECT post_id FROM comments WHERE comment_id = %(id)s", {"id": comment_id})
    return int(rows[0][0]) if rows else None


async def lock_comment(connection: Connection, comment_id: int) -> CommentRow | None:
    """Locks a comment, deleted ones too; None without, or under a deleted post."""
    cursor = await connection.execute(
        """
        SELECT c.comment_id, c.post_id, c.user_id, c.author_id, c.content, c.deleted_at IS NOT NULL
        FROM comments c JOIN posts p ON p.post_id = c.post_id AND p.deleted_at IS NULL
        WHERE c.comment_id = %s FOR NO KEY UPDATE OF c""",
        (comment_id,),
    )
    row = await cursor.fetchone()
    return None if row is None else CommentRow(*row)


async def delete_comment(connection: Connection, comment: CommentRow) -> None:
    """Empties a comment and marks it deleted, with its count delta and mentions."""
    await connection.execute(
        "UPDATE comments SET content = '', deleted_at = clock_timestamp() WHERE comment_id = %s", (comment.comment_id,)
    )
    await connection.execute(
        "DELETE FROM mentions WHERE post_id = %s AND comment_id = %s", (comment.post_id, comment.comment_id)
    )
    await add_delta(connection, comment.post_id, comments=-1)


async def add_delta(connection: Connection, post_id: int, *, comments: int = 0, shares: int = 0) -> None:
    """Adds to a post's counts, unless it is deleted and so has none."""
    await connection.execute(
        """
        INSERT INTO post_count_deltas (post_id, comments, shares)
        SELECT post_id, %s, %s FROM posts WHERE post_id = %s AND deleted_at IS NULL""",
        (comments, shares, post_id),
    )
    await note_change(connection, NOBODY, post_id)


async def note_change(connection: Connection, user_id: int, post_id: int) -> None:
    """Notes a change of a post, for whoever holds it; and of what its author (or NOBODY) wrote."""
    await connection.execute("INSERT INTO post_changes (user_id, post_id) VALUES (%s, %s)", (user_id, post_id))


async def delete_counts(connection: Connection, post_id: int) -> None:
    """Removes a deleted post's counts. What transactions under way still add, the sweep removes."""
    await connection.execute("DELETE FROM post_count_deltas WHERE post_id = %s", (post_id,))
    await connection.execute("DELETE FROM post_counts WHERE post_id = %s", (post_id,))


# Reads.

LIKED = """
    FROM unnest(%(users)s::bigint[], %(posts)s::bigint[]) AS pair (user_id, post_id)
    JOIN likes USING (user_id, post_id)"""


# The posts %(ids)s that are not deleted, with what is to be selected besides a PostRow.
# `= ANY` of the key, and no join that chooses the rows, reads just them, and only in the partitions that hold them.
POSTS = f"""
    SELECT p.post_id, p.user_id, p.content, p.media_url, p.original_id, p.shared_post_id, p.visibility,
           coalesce(c.likes, 0), coalesce(c.comments, 0), coalesce(c.shares, 0) {{besides}}
    FROM posts p LEFT JOIN ({COUNTED}) c ON c.post_id = p.post_id
    WHERE p.post_id = {ANY_OF_IDS} AND p.deleted_at IS NULL"""
WITH_SHARES = POSTS.format(
    besides=""", CASE WHEN c.shares BETWEEN 1 AND %(most)s THEN (
        SELECT array_agg(ARRAY[s.share_id, s.user_id] ORDER BY s.share_id DESC) FROM shares s
        WHERE s.post_id = p.post_id) END"""
)


async def posts(reader: Reader, post_ids: Collection[int]) -> dict[int, PostRow]:
    """Those of the posts that are not deleted, by id."""
    rows = await fetch(reader, POSTS.format(besides=""), {"ids": int8s(post_ids)})
    return {row[0]: PostRow(*row) for row in rows}


async def posts_with_shares(
    pool: Pool, post_ids: Collection[int], most: int
) -> list[tuple[PostRow, tuple[tuple[int, int], ...] | None]]:
    """Those of the posts that are not deleted, each with its plain shares (share, sharer), newest first; with None
    instead where it was shared more than `most` times."""
    rows = await fetch(pool, WITH_SHARES, {"ids": int8s(post_ids), "most": most})
    return [
        (row := PostRow._make(each[:-1]), None if row.shares > most else tuple(map(tuple, each[-1] or ())))
        for each in rows
    ]


async def liked(reader: Reader, user_ids: list[int], post_ids: list[int]) -> dict[int, set[int]]:
    """Of some pairs of user and post (one for one) those where the user likes the post: posts by user."""
    rows = await fetch(reader, f"SELECT user_id, post_id {LIKED}", {"users": int8s(user_ids), "posts": int8s(post_ids)})
    found: dict[int, set[int]] = {}
    for user_id, post_id in rows:
        found.setdefault(user_id, set()).add(post_id)
    return found


async def acts(pool: Pool, user_ids: list[int], post_ids: list[int], seen: Snapshot | None) -> Acts:
    """As `liked`; and all changes of posts that an earlier snapshot did not see, none without one.

    The transactions that a snapshot does not see are those that were under way and those from its end on: so it matters
    neither how long one takes nor in which order they commit.
    """
    rows = await fetch(
        pool,
        f"""
        SELECT post_id, 0, user_id, 0, NULL {LIKED}
        UNION ALL (
            SELECT post_id, xid::text::bigint, user_id, liker_id, NULL FROM post_changes
            WHERE xid >= pg_snapshot_xmax(%(seen)s::text::pg_snapshot)
            UNION ALL
            SELECT post_id, xid::text::bigint, user_id, liker_id, NULL FROM post_changes
            WHERE xid = ANY(ARRAY(SELECT pg_snapshot_xip(%(seen)s::text::pg_snapshot)))
            LIMIT {MAX_CHANGES + 1}
        )
        UNION ALL
        SELECT pg_snapshot_xmax(now.seen)::text::bigint, pg_snapshot_xmin(now.seen)::text::bigint, 0, 0, now.seen::text
        FROM (SELECT pg_current_snapshot() AS seen) AS now""",
        {"users": int8s(user_ids), "posts": int8s(post_ids), "seen": seen.text if seen is not None else None},
    )
    [(xmax, xmin, _, _, text)] = [row for row in rows if row[4]]
    changes = [row[:4] for row in rows if row[1] and not row[4]]
    likes: dict[int, set[int]] = {}
    for post_id, xid, user_id, _, _ in rows:
        if not xid:
            likes.setdefault(user_id, set()).add(post_id)
    return Acts(likes, changes if len(changes) <= MAX_CHANGES else None, Snapshot(xmax, xmin, text))


async def comments_under(pool: Pool, post_id: int, after: int, limit: int) -> list[CommentRow]:
    """The comments under a post with an id above `after`, oldest first."""
    rows = await fetch(
        pool,
        """
        SELECT comment_id, post_id, user_id, author_id, content, false FROM comments
        WHERE post_id = %(post)s AND comment_id > %(after)s AND deleted_at IS NULL
        ORDER BY comment_id LIMIT %(limit)s""",
        {"post": post_id, "after": after, "limit": limit},
    )
    return [CommentRow(*row) for row in rows]


async def newest(
    pool: Pool, author_ids: list[int], min_post_id: int, max_post_id: int, limit: int
) -> list[tuple[int, int, int]]:
    """The newest posts of many authors in a range of ids: post, author and original, newest first, at most `limit`.

    The `limit` authors with the newest heads each have a post at or above the last of these heads, so no post below it
    can be among the newest `limit`: that bounds the second step, however many authors there are and however much each
    wrote. One index probe an author, and one more for each month that an author was silent, then the few posts that
    count.
    """
    rows = await fetch(
        pool,
        f"""
        WITH heads AS (
            SELECT author.user_id, head.post_id
            FROM unnest(%(authors)s::bigint[]) AS author (user_id)
            CROSS JOIN LATERAL (
                SELECT p.post_id FROM posts p
                WHERE p.user_id = author.user_id AND p.deleted_at IS NULL AND p.post_id BETWEEN %(min)s AND %(max)s
                  AND {ORIGINAL_IS_THERE}
                ORDER BY p.post_id DESC LIMIT 1
            ) head
            ORDER BY head.post_id DESC LIMIT %(limit)s
        ), bound AS (
            SELECT CASE WHEN count(*) = %(limit)s THEN min(post_id) ELSE %(min)s END AS post_id FROM heads
        )
        SELECT newest.post_id, heads.user_id, newest.original_id
        FROM heads CROSS JOIN bound CROSS JOIN LATERAL (
            SELECT p.post_id, p.original_id FROM posts p
            WHERE p.user_id = heads.user_id AND p.deleted_at IS NULL
              AND p.post_id BETWEEN bound.post_id AND heads.post_id AND {ORIGINAL_IS_THERE}
            ORDER BY p.post_id DESC LIMIT %(limit)s
        ) newest
        ORDER BY newest.post_id DESC LIMIT %(limit)s""",
        {
            "authors": int8s(set(author_ids)),
            "min": min_post_id,
            # A bound that is known when the query is planned keeps it out of the partitions that are made ahead.
            "max": min(max_post_id, ids.lowest_at(wall_clock() + DAY_MS)),
            "limit": limit,
        },
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def newest_of_each(pool: Pool, questions: list[tuple[int, int, int, int]]) -> tuple[list[bytes], int]:
    """For each question (author, lowest id, highest id, limit), one for one, as `newest` but packed; of one author.

    And the transaction below which all had ended by then; 0 without a question.
    """
    if not questions:
        return [], 0
    author_ids, lows, highs, limits = zip(*questions, strict=True)
    rows = await fetch(
        pool,
        f"""
        SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS post_id, 0 AS author_id, 0 AS original_id,
               0 AS place
        UNION ALL
        (SELECT p.post_id, item.author_id, p.original_id, item.place
        FROM unnest(%(authors)s::bigint[], %(lows)s::bigint[], %(highs)s::bigint[], %(limits)s::bigint[])
            WITH ORDINALITY AS item (author_id, low, high, size, place)
        CROSS JOIN LATERAL (
            SELECT p.post_id, p.original_id FROM posts p
            WHERE p.user_id = item.author_id AND p.deleted_at IS NULL AND p.post_id BETWEEN item.low AND item.high
              AND p.post_id BETWEEN %(min)s AND %(max)s AND {ORIGINAL_IS_THERE}
            ORDER BY p.post_id DESC LIMIT item.size
        ) p
        ORDER BY item.place, p.post_id DESC)""",
        {
            "authors": int8s(author_ids),
            "lows": int8s(lows),
            "highs": int8s(highs),
            "limits": int8s(limits),
            # As in `newest`: bounds that are known when the query is planned.
            "min": min(lows),
            "max": min(max(highs), ids.lowest_at(wall_clock() + DAY_MS)),
        },
    )
    [as_of] = [row[0] for row in rows if not row[3]]
    found = [row for row in rows if row[3]]
    table = np.fromiter(itertools.chain.from_iterable(found), np.int64, 4 * len(found)).reshape(-1, 4)
    packed = members.pack(table[:, :3])
    ends = (members.MEMBER_BYTES * table[:, 3].searchsorted(np.arange(len(questions) + 1), side="right")).tolist()
    return [packed[begin:end] for begin, end in itertools.pairwise(ends)], as_of


class SharersQuestion(NamedTuple):
    """Who of some people plainly shared which of some originals."""

    original_ids: Collection[int]
    sharer_ids: Collection[int]
    max_share_id: int


async def sharers(pool: Pool, questions: Sequence[SharersQuestion]) -> list[list[tuple[int, int, int]]]:
    """The answers, one for one: share, sharer, original, newest first; of each original the newest 20."""
    originals = [
        (at, post_id, each.max_share_id) for at, each in enumerate(questions) for post_id in set(each.original_ids)
    ]
    people = [(at, user_id) for at, each in enumerate(questions) for user_id in set(each.sharer_ids)]
    rows = await fetch(
        pool,
        """
        SELECT share.place, share.share_id, share.user_id, share.post_id FROM (
            SELECT original.place, shares.share_id, shares.user_id, shares.post_id,
                   row_number() OVER (PARTITION BY original.place, post_id ORDER BY shares.share_id DESC) AS rank
            FROM unnest(%(original_places)s::bigint[], %(originals)s::bigint[], %(maxima)s::bigint[])
                AS original (place, post_id, max_share_id)
            JOIN unnest(%(sharer_places)s::bigint[], %(sharers)s::bigint[]) AS sharer (place, user_id)
                ON sharer.place = original.place
            JOIN shares USING (post_id, user_id)
            WHERE shares.share_id <= original.max_share_id
        ) AS share JOIN posts USING (post_id)
        WHERE share.rank <= %(limit)s AND posts.deleted_at IS NULL ORDER BY share.share_id DESC""",
        {
            "original_places": int8s([place for place, _, _ in originals]),
            "originals": int8s([post_id for _, post_id, _ in originals]),
            "maxima": int8s([max_share_id for _, _, max_share_id in originals]),
            "sharer_places": int8s([place for place, _ in people]),
            "sharers": int8s([user_id for _, user_id in people]),
            "limit": MAX_SHARERS,
        },
    )
    answers: list[list[tuple[int, int, int]]] = [[] for _ in questions]
    for place, share_id, user_id, post_id in rows:
        answers[place].append((share_id, user_id, post_id))
    return answers


async def engagement(pool: Pool, post_ids: Iterable[int]) -> dict[int, tuple[int, int, int, float]]:
    """By post that anyone ever engaged with: likes, comments, shares, and heat as of now."""
    rows = await fetch(
        pool, f"SELECT post_id, likes, comments, shares, heat::float8 FROM ({COUNTED}) c", {"ids": int8s(set(post_ids))}
    )
    return {row[0]: (row[1], row[2], row[3], row[4]) for row in rows}


async def engaged(pool: Pool, before: int, limit: int) -> list[tuple[int, int, int, int, float]]:
    """Posts with an id below `before` that anyone ever engaged with, newest first: as `engagement`, with the id.

    What is among the newest of both tables is among the newest of the table that holds it: so a page of each suffices,
    and neither scan reads more.
    """
    rows = await fetch(
        pool,
        f"""
        SELECT post_id, sum(likes)::bigint, sum(comments)::bigint, sum(shares)::bigint, greatest(0, sum(heat))::float8
        FROM (
            (SELECT post_id, likes, comments, shares, {DECAYED_HEAT.format(table="")} AS heat
             FROM post_counts WHERE post_id < %(before)s ORDER BY post_id DESC LIMIT %(limit)s)
            UNION ALL
            (SELECT post_id, sum(likes), sum(comments), sum(shares), sum({POST_COUNTS.decayed})
             FROM post_count_deltas WHERE post_id < %(before)s GROUP BY post_id ORDER BY post_id DESC LIMIT %(limit)s)
        ) AS part
        GROUP BY post_id ORDER BY post_id DESC LIMIT %(limit)s""",
        {"before": before, "limit": limit},
    )
    return [(row[0], row[1], row[2], row[3], row[4]) for row in rows]


async def post_counts(pool: Pool, after: int, min_post_id: int, limit: int) -> list[tuple[int, int]]:
    """Authors with an id above `after`, by rising id, with how many posts of at least `min_post_id` each has.

    Plain shares of a deleted original count until upkeep takes them away.
    """
    rows = await fetch(
        pool,
        """
        SELECT user_id, count(*) FROM posts
        WHERE user_id > %(after)s AND post_id >= %(min)s AND deleted_at IS NULL
        GROUP BY user_id ORDER BY user_id LIMIT %(limit)s""",
        {"after": after, "min": min_post_id, "limit": limit},
    )
    return [(row[0], row[1]) for row in rows]


async def affinities(pool: Pool, user_ids: Iterable[int]) -> dict[int, list[tuple[int, float]]]:
    """By person: the authors whom they lately had to do with, and how much: a like counts 1, a comment 2, a share 3."""
    rows = await fetch(
        pool,
        f"""
        SELECT viewer.user_id, latest.author_id, sum(latest.weight)
        FROM unnest(%(viewers)s::bigint[]) AS viewer (user_id)
        CROSS JOIN LATERAL (
            (SELECT author_id, 1 AS weight FROM likes
             WHERE user_id = viewer.user_id ORDER BY like_id DESC LIMIT {AFFINITY_DEPTH})
            UNION ALL
            (SELECT author_id, 2 FROM comments
             WHERE user_id = viewer.user_id AND deleted_at IS NULL ORDER BY comment_id DESC LIMIT {AFFINITY_DEPTH})
            UNION ALL
            (SELECT author_id, 3 FROM shares
             WHERE user_id = viewer.user_id ORDER BY share_id DESC LIMIT {AFFINITY_DEPTH})
        ) latest
        GROUP BY viewer.user_id, latest.author_id""",
        {"viewers": int8s(set(user_ids))},
    )
    found: dict[int, list[tuple[int, float]]] = {}
    for user_id, author_id, weight in rows:
        found.setdefault(user_id, []).append((author_id, float(weight)))
    return found


async def written_by(pool: Pool, user_id: int, before: int, limit: int) -> list[WrittenRow]:
    """Someone's posts, shares and quotes with an id below `before`, newest first, deleted ones left out."""
    rows = await fetch(
        pool,
        f"""
        SELECT p.post_id, p.content, p.media_url, p.visibility, coalesce(p.shared_post_id, 0) FROM posts p
        WHERE p.user_id = %(user)s AND p.post_id < %(before)s AND p.deleted_at IS NULL
          AND {ORIGINAL_IS_THERE}
        ORDER BY p.post_id DESC LIMIT %(limit)s""",
        {"user": user_id, "before": before, "limit": limit},
    )
    return [WrittenRow(*row) for row in rows]


async def comments_by(pool: Pool, user_id: int, before: int, limit: int) -> list[CommentRow]:
    """Someone's comments with an id below `before`, newest first; those are gone whose post is deleted."""
    rows = await fetch(
        pool,
        """
        SELECT c.comment_id, c.post_id, c.user_id, c.author_id, c.content, false FROM comments c
        WHERE c.user_id = %(user)s AND c.comment_id < %(before)s AND c.deleted_at IS NULL
          AND EXISTS (SELECT FROM posts p WHERE p.post_id = c.post_id AND p.deleted_at IS NULL)
        ORDER BY c.comment_id DESC LIMIT %(limit)s""",
        {"user": user_id, "before": before, "limit": limit},
    )
    return [CommentRow(*row) for row in rows]


async def likes_by(pool: Pool, user_id: int, before: int, limit: int) -> list[tuple[int, int]]:
    """Someone's likes with an id below `before`, newest first, each with its post; deleted posts are left out."""
    rows = await fetch(
        pool,
        """
        SELECT l.like_id, l.post_id FROM likes l
        WHERE l.user_id = %(user)s AND l.like_id < %(before)s
          AND EXISTS (SELECT FROM posts p WHERE p.post_id = l.post_id AND p.deleted_at IS NULL)
        ORDER BY l.like_id DESC LIMIT %(limit)s""",
        {"user": user_id, "before": before, "limit": limit},
    )
    return [(row[0], row[1]) for row in rows]


# What concerns people.


class Mention(NamedTuple):
    """Whom a post or comment mentions, or whose post it quotes."""

    user_id: int
    actor_id: int
    post_id: int
    comment_id: int
    is_quote: bool


async def insert_mentions(connection: Connection, new: Sequence[Mention]) -> None:
    """Adds mentions."""
    users, actors, posts, comments, quotes = columns(new, 5)
    await connection.execute(
        """
        INSERT INTO mentions (user_id, actor_id, post_id, comment_id, is_quote)
        SELECT * FROM unnest(
            %(users)s::bigint[], %(actors)s::bigint[], %(posts)s::bigint[], %(comments)s::bigint[],
            %(quotes)s::boolean[])""",
        {"users": users, "actors": actors, "posts": posts, "comments": comments, "quotes": quotes},
    )


async def forget_mentions(connection: Connection, user_id: int) -> None:
    """Removes all mentions of someone, and by them."""
    await connection.execute("DELETE FROM mentions WHERE %(user)s IN (user_id, actor_id)", {"user": user_id})


class ActRow(NamedTuple):
    """Something that somebody did and that concerns another."""

    kind: str
    act_id: int
    user_id: int
    post_id: int
    comment_id: int


async def acts_of(pool: Pool, questions: Sequence[tuple[int, int, int]]) -> list[list[ActRow]]:
    """What concerns people, each question (person, ids below, limit); answers one for one, newest first."""
    rows = await fetch(
        pool,
        """
        SELECT item.place, act.* FROM unnest(%(users)s::bigint[], %(befores)s::bigint[], %(sizes)s::bigint[])
            WITH ORDINALITY AS item (user_id, before, size, place)
        CROSS JOIN LATERAL (
            (SELECT 'liked' AS kind, like_id AS act_id, user_id, post_id, 0::bigint AS comment_id FROM likes
             WHERE author_id = item.user_id AND like_id < item.before AND user_id <> author_id
             ORDER BY like_id DESC LIMIT item.size)
            UNION ALL
            (SELECT 'commented', comment_id, user_id, post_id, comment_id FROM comments
             WHERE author_id = item.user_id AND comment_id < item.before AND user_id <> author_id
               AND deleted_at IS NULL
             ORDER BY comment_id DESC LIMIT item.size)
            UNION ALL
            (SELECT 'shared', share_id, user_id, post_id, 0 FROM shares
             WHERE author_id = item.user_id AND share_id < item.before AND user_id <> author_id
             ORDER BY share_id DESC LIMIT item.size)
            UNION ALL
            (SELECT CASE WHEN is_quote THEN 'quoted' ELSE 'mentioned' END, mention_id, actor_id, post_id, comment_id
             FROM mentions WHERE user_id = item.user_id AND mention_id < item.before
             ORDER BY mention_id DESC LIMIT item.size)
            ORDER BY act_id DESC LIMIT item.size
        ) AS act
        ORDER BY item.place, act.act_id DESC""",
        {
            "users": int8s([user_id for user_id, _, _ in questions]),
            "befores": int8s([before for _, before, _ in questions]),
            "sizes": int8s([size for _, _, size in questions]),
        },
    )
    found: list[list[ActRow]] = [[] for _ in questions]
    for place, *row in rows:
        found[place - 1].append(ActRow(*row))
    return found


# Media.

MEDIA_COLUMNS = "upload_id, media_id, size, width, height, duration_ms, bytes"
# Of the media m: whether a post of who uploaded it shows it. A deleted post shows none.
SHOWN = """
    EXISTS (SELECT FROM posts p WHERE p.media_url = '/media/' || m.media_id || '/' || m.size
            AND p.media_url LIKE '/media/%%' AND p.user_id = m.user_id {besides})"""
LEFT_LONG_AGO = "left_at < now() - interval '5 minutes'"
MAX_OWNERS = 1_000
"""Who uploaded the same media, of whom it is looked whether they show it publicly: the first of them."""


async def lock(connection: Connection, name: str) -> None:
    """Holds a lock until the transaction ends; waits for it."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (name,))


async def try_lock(connection: Connection, name: str) -> bool:
    """The same without a wait; whether it is held."""
    cursor = await connection.execute("SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", (name,))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def renew_media(connection: Connection, new: NewMedia) -> MediaRow | None:
    """What somebody uploaded before, as if it were now; None without."""
    rows = await fetch(
        connection,
        f"""
        UPDATE media SET due_at = greatest(due_at, now() + interval '24 hours')
        WHERE media_id = %(media)s AND user_id = %(user)s AND due_at IS NOT NULL
        RETURNING {MEDIA_COLUMNS}""",
        {"media": new.media_id, "user": new.user_id},
    ) or await fetch(
        connection,
        f"SELECT {MEDIA_COLUMNS} FROM media WHERE media_id = %(media)s AND user_id = %(user)s FOR KEY SHARE",
        {"media": new.media_id, "user": new.user_id},
    )
    return MediaRow(*rows[0]) if rows else None


async def media_held(connection: Connection, user_id: int) -> tuple[int, int, int]:
    """How many media somebody has, how many of these wait for a look whether a post shows them, and their bytes."""
    [row] = await fetch(
        connection,
        """
        SELECT count(*), count(*) FILTER (WHERE due_at IS NOT NULL), coalesce(sum(bytes), 0)::bigint
        FROM media WHERE user_id = %(user)s""",
        {"user": user_id},
    )
    return int(row[0]), int(row[1]), int(row[2])


async def insert_media(connection: Connection, new: NewMedia) -> MediaRow:
    """Adds an upload."""
    [row] = await fetch(
        connection,
        f"""
        INSERT INTO media (media_id, user_id, size, width, height, duration_ms, bytes)
        VALUES (%(media_id)s, %(user_id)s, %(size)s, %(width)s, %(height)s, %(duration_ms)s, %(bytes)s)
        RETURNING {MEDIA_COLUMNS}""",
        new._asdict(),
    )
    return MediaRow(*row)


async def attach_media(connection: Connection, wanted: Sequence[tuple[int, str]]) -> dict[tuple[int, str], str]:
    """Of those of the media (user, media) that the users uploaded the largest size; they are kept from now on.

    In one order for all.
    """
    rows = await fetch(
        connection,
        """
        WITH held AS (
            SELECT upload_id FROM unnest(%(users)s::bigint[], %(media)s::text[]) AS item (user_id, media_id)
            JOIN media USING (media_id, user_id) ORDER BY upload_id FOR NO KEY UPDATE OF media
        )
        UPDATE media SET due_at = NULL WHERE upload_id IN (SELECT upload_id FROM held)
        RETURNING user_id, media_id, size""",
        {"users": int8s([user_id for user_id, _ in wanted]), "media": [media_id for _, media_id in wanted]},
    )
    return {(row[0], row[1]): row[2] for row in rows}


async def publicly_shown(pool: Pool, media_ids: Sequence[str]) -> list[tuple[str, int]]:
    """Which of the media public posts show, and of whom."""
    rows = await fetch(
        pool,
        f"""
        SELECT m.media_id, m.user_id FROM unnest(%(ids)s::text[]) AS item (media_id) CROSS JOIN LATERAL (
            SELECT media_id, user_id, size FROM media WHERE media_id = item.media_id ORDER BY user_id LIMIT %(limit)s
        ) AS m WHERE {SHOWN.format(besides="AND p.visibility = 1")}""",
        {"ids": list(media_ids), "limit": MAX_OWNERS},
    )
    return [(row[0], row[1]) for row in rows]


async def media_by(pool: Pool, user_id: int, before: int, limit: int) -> list[MediaRow]:
    """Someone's uploads with an id below `before`, newest first."""
    rows = await fetch(
        pool,
        f"""
        SELECT {MEDIA_COLUMNS} FROM media WHERE user_id = %(user)s AND upload_id < %(before)s
        ORDER BY upload_id DESC LIMIT %(limit)s""",
        {"user": user_id, "before": before, "limit": limit},
    )
    return [MediaRow(*row) for row in rows]


async def lock_due_media(connection: Connection, limit: int) -> list[int]:
    """Locks up to `limit` uploads that are due, and that nobody holds; their ids."""
    rows = await fetch(
        connection,
        """
        SELECT upload_id FROM media WHERE due_at <= now()
        ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED""",
        {"limit": limit},
    )
    return [row[0] for row in rows]


async def unshown_of(connection: Connection, upload_ids: Sequence[int]) -> list[int]:
    """Those of the uploads that no post of their owner shows; the others are due no more."""
    rows = await fetch(
        connection,
        f"""
        UPDATE media m SET due_at = CASE WHEN {SHOWN.format(besides="")} THEN NULL ELSE due_at END
        WHERE upload_id = ANY(%(ids)s) RETURNING upload_id, due_at IS NOT NULL""",
        {"ids": int8s(upload_ids)},
    )
    return [row[0] for row in rows if row[1]]


async def forget_media(connection: Connection, upload_ids: Sequence[int]) -> None:
    """Removes uploads, and notes their media as left."""
    await connection.execute(
        """
        WITH gone AS (DELETE FROM media WHERE upload_id = ANY(%(ids)s) RETURNING media_id)
        INSERT INTO media_left (media_id) SELECT DISTINCT media_id FROM gone ORDER BY media_id
        ON CONFLICT (media_id) DO UPDATE SET left_at = now()""",
        {"ids": int8s(upload_ids)},
    )


async def take_media(connection: Connection, user_id: int, limit: int) -> int:
    """Removes up to `limit` of someone's uploads as `forget_media` does; how many."""
    rows = await fetch(
        connection,
        "SELECT upload_id FROM media WHERE user_id = %(user)s ORDER BY upload_id LIMIT %(limit)s FOR UPDATE",
        {"user": user_id, "limit": limit},
    )
    await forget_media(connection, [row[0] for row in rows])
    return len(rows)


async def left_media(pool: Pool, limit: int) -> list[str]:
    """Media that were noted as left, the first ones first. Only those noted over five minutes ago: whatever upload of
    one was under way then has ended."""
    rows = await fetch(
        pool,
        f"SELECT media_id FROM media_left WHERE {LEFT_LONG_AGO} ORDER BY left_at LIMIT %(limit)s",
        {"limit": limit},
    )
    return [row[0] for row in rows]


async def lock_left_media(connection: Connection, media_id: str) -> bool:
    """Locks the note that a media was left as long ago, unless somebody holds it; whether that is so."""
    cursor = await connection.execute(
        f"SELECT FROM media_left WHERE media_id = %s AND {LEFT_LONG_AGO} FOR UPDATE SKIP LOCKED".encode(), (media_id,)
    )
    return cursor.rowcount > 0


async def is_media_named(connection: Connection, media_id: str) -> bool:
    """Whether anybody's upload is of this media."""
    cursor = await connection.execute("SELECT FROM media WHERE media_id = %s LIMIT 1", (media_id,))
    return cursor.rowcount > 0


async def forget_left_media(connection: Connection, media_id: str) -> None:
    """Removes the note that a media was left."""
    await connection.execute("DELETE FROM media_left WHERE media_id = %s", (media_id,))


# What is checked: straight from the table, by no query that a feed is made with.

ROW_COLUMNS = """
    p.post_id, p.user_id, p.original_id, p.deleted_at IS NOT NULL,
    o.user_id, o.visibility, o.post_id IS NULL OR o.deleted_at IS NOT NULL"""


async def rows_of_authors(
    pool: Pool, author_ids: list[int], min_post_id: int, max_post_id: int, limit: int
) -> list[CheckedRow]:
    """What authors wrote and shared in a range of ids and did not delete, newest first."""
    rows = await fetch(
        pool,
        f"""
        SELECT {ROW_COLUMNS} FROM posts p LEFT JOIN posts o ON o.post_id = p.original_id
        WHERE p.user_id = ANY(%(authors)s) AND p.post_id BETWEEN %(min)s AND %(max)s AND p.deleted_at IS NULL
        ORDER BY p.post_id DESC LIMIT %(limit)s""",
        {"authors": author_ids, "min": min_post_id, "max": max_post_id, "limit": limit},
    )
    return [CheckedRow(*row) for row in rows]


async def rows_of_posts(pool: Pool, post_ids: list[int]) -> list[CheckedRow]:
    """Posts by id, deleted ones too."""
    rows = await fetch(
        pool,
        f"""
        SELECT {ROW_COLUMNS} FROM posts p LEFT JOIN posts o ON o.post_id = p.original_id
        WHERE p.post_id = ANY(%(ids)s)""",
        {"ids": post_ids},
    )
    return [CheckedRow(*row) for row in rows]


async def traces(pool: Pool, user_id: int) -> dict[str, int]:
    """How many rows of each table name someone."""
    [row] = await fetch(
        pool,
        """
        SELECT (SELECT count(*) FROM posts WHERE user_id = %(user)s),
               (SELECT count(*) FROM comments WHERE %(user)s IN (user_id, author_id)),
               (SELECT count(*) FROM likes WHERE %(user)s IN (user_id, author_id)),
               (SELECT count(*) FROM shares WHERE %(user)s IN (user_id, author_id)),
               (SELECT count(*) FROM mentions WHERE %(user)s IN (user_id, actor_id)),
               (SELECT count(*) FROM post_changes WHERE %(user)s IN (user_id, liker_id)),
               (SELECT count(*) FROM media WHERE user_id = %(user)s)""",
        {"user": user_id},
    )
    places = ("posts", "comments", "likes", "shares", "mentions", "post_changes", "media")
    return dict(zip(places, row, strict=True))


# Erasure.


async def list_erased(connection: Connection, user_ids: list[int]) -> None:
    """Puts people on the list of the erased, unless they are on it."""
    await connection.execute(
        "INSERT INTO erased_users (user_id) SELECT DISTINCT unnest(%s::bigint[]) ON CONFLICT DO NOTHING", (user_ids,)
    )


async def to_erase(pool: Pool, limit: int) -> list[int]:
    """People on the list of whom something may be left."""
    rows = await fetch(
        pool,
        "SELECT user_id FROM erased_users WHERE NOT done ORDER BY erased_at LIMIT %(limit)s",
        {"limit": limit},
    )
    return [row[0] for row in rows]


async def take_likes(connection: Connection, user_id: int, limit: int) -> list[Target]:
    """Removes up to `limit` of someone's likes with their count deltas; what they were given to."""
    cursor = await connection.execute(
        """
        WITH gone AS (
            DELETE FROM likes WHERE like_id IN (
                SELECT like_id FROM likes WHERE user_id = %(user)s ORDER BY like_id LIMIT %(limit)s)
            RETURNING post_id, author_id
        ), delta AS (
            INSERT INTO post_count_deltas (post_id, likes) SELECT post_id, -1 FROM gone
        ), noted AS (
            INSERT INTO post_changes (user_id, post_id, liker_id) SELECT 0, post_id, %(user)s FROM gone
        )
        SELECT post_id, author_id FROM gone""",
        {"user": user_id, "limit": limit},
    )
    return [Target(*row) for row in await cursor.fetchall()]


async def take_comments(connection: Connection, user_id: int, limit: int) -> list[tuple[int, int]]:
    """Removes up to `limit` each of someone's comments, with their count deltas, and of the rows of deleted ones.

    Gives comment and post of both.
    """
    cursor = await connection.execute(
        """
        WITH gone AS (
            DELETE FROM comments WHERE comment_id IN (
                (SELECT comment_id FROM comments WHERE user_id = %(user)s AND deleted_at IS NULL LIMIT %(limit)s)
                UNION ALL
                (SELECT comment_id FROM comments WHERE user_id = %(user)s AND deleted_at IS NOT NULL LIMIT %(limit)s))
            RETURNING comment_id, post_id, deleted_at
        ), delta AS (
            INSERT INTO post_count_deltas (post_id, comments) SELECT post_id, -1 FROM gone WHERE deleted_at IS NULL
        ), noted AS (
            INSERT INTO post_changes (user_id, post_id) SELECT DISTINCT 0, post_id FROM gone
        ), unmentioned AS (
            DELETE FROM mentions m USING gone WHERE m.post_id = gone.post_id AND m.comment_id = gone.comment_id
        )
        SELECT comment_id, post_id FROM gone""",
        {"user": user_id, "limit": limit},
    )
    return [(row[0], row[1]) for row in await cursor.fetchall()]


async def lock_posts_of(connection: Connection, user_id: int, limit: int) -> list[LockedPost]:
    """Locks up to `limit` of someone's posts that are not deleted."""
    cursor = await connection.execute(
        """
        SELECT post_id, user_id, original_id, shared_post_id, false FROM posts
        WHERE user_id = %s AND deleted_at IS NULL ORDER BY post_id LIMIT %s FOR NO KEY UPDATE""",
        (user_id, limit),
    )
    return [LockedPost(*row) for row in await cursor.fetchall()]


async def take_swept_posts(connection: Connection, user_id: int, limit: int) -> int:
    """Removes up to `limit` rows of someone's deleted posts on which nothing hangs any more; how many."""
    cursor = await connection.execute(
        """
        DELETE FROM posts WHERE post_id IN (
            SELECT post_id FROM posts WHERE user_id = %s AND deleted_at IS NOT NULL AND swept LIMIT %s)""",
        (user_id, limit),
    )
    return cursor.rowcount


async def forget_changes(connection: Connection, user_id: int) -> None:
    """Removes what was noted for someone."""
    await connection.execute("DELETE FROM post_changes WHERE %(user)s IN (user_id, liker_id)", {"user": user_id})


async def finish_erasure(connection: Connection, user_id: int) -> bool:
    """Notes that nothing is left of someone, once that is so for good; whether it is so since now."""
    cursor = await connection.execute(
        """
        UPDATE erased_users SET done = true
        WHERE user_id = %(user)s AND NOT done AND erased_at < now() - interval '1 minute'
          AND NOT EXISTS (SELECT FROM posts WHERE user_id = %(user)s)""",
        {"user": user_id},
    )
    return cursor.rowcount > 0


# Upkeep.


async def make_partitions(pool: Pool, months_ahead: int) -> int:
    """Makes the monthly partitions of posts that are lacking, from this month on; how many it made."""
    async with pool.connection() as connection:
        row = await (await connection.execute("SELECT make_post_partitions(%s)", (months_ahead,))).fetchone()
    return int(row[0]) if row else 0


async def prune_changes(pool: Pool, limit: int) -> bool:
    """Deletes up to `limit` notes of changes that are older than two minutes; True when there may be more."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            """
            DELETE FROM post_changes WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM post_changes WHERE changed_at < now() - interval '2 minutes' LIMIT %s))""",
            (limit,),
        )
        return cursor.rowcount == limit


async def unswept(pool: Pool, limit: int) -> list[int]:
    """Deleted posts whose likes, comments and shares are still there. Only those deleted over a minute ago: no
    transaction that saw such a post alive is still running."""
    rows = await fetch(
        pool,
        """
        SELECT post_id FROM posts WHERE deleted_at < now() - interval '1 minute' AND NOT swept
        ORDER BY deleted_at LIMIT %(limit)s""",
        {"limit": limit},
    )
    return [row[0] for row in rows]


async def sweep(connection: Connection, post_id: int, limit: int) -> bool:
    """Removes up to `limit` rows of each kind that hang on a deleted post; True once nothing is left, and says so."""
    removed = 0
    for statement in (
        "DELETE FROM likes WHERE like_id IN (SELECT like_id FROM likes WHERE post_id = %(post)s LIMIT %(limit)s)",
        """DELETE FROM comments WHERE comment_id IN (
               SELECT comment_id FROM comments WHERE post_id = %(post)s LIMIT %(limit)s)""",
        # Nothing hangs on a plain share. Posts before shares, as when a share is deleted by hand.
        """UPDATE posts SET deleted_at = now(), swept = true WHERE post_id IN (
               SELECT post_id FROM posts WHERE shared_post_id = %(post)s AND original_id = %(post)s
               AND deleted_at IS NULL LIMIT %(limit)s)""",
        """DELETE FROM shares WHERE (post_id, user_id) IN (
               SELECT post_id, user_id FROM shares WHERE post_id = %(post)s LIMIT %(limit)s)""",
    ):
        cursor = await connection.execute(statement.encode(), {"post": post_id, "limit": limit})
        removed = max(removed, cursor.rowcount)
    if removed == limit:
        return False
    await delete_counts(connection, post_id)
    await connection.execute("UPDATE posts SET swept = true WHERE post_id = %s", (post_id,))
    return True
