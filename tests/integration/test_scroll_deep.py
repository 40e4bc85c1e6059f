"""A scroll to the first post ever, ten thousand deep, with limits that change from page to page."""

from __future__ import annotations

import random

import pytest

from feedmesh.timeline.v1 import timeline_pb2 as pb
from launch.valkey import Running as Valkey
from tests.fakes.databases import Databases
from tests.integration.feed_model import assert_windows
from tests.integration.whole_mesh import WholeMesh, whole_mesh

AUTHORS = 40
POSTS = 10_000
SHARES = 300
SHARE = """
    WITH post AS (
        INSERT INTO posts (post_id, original_id, user_id, content, shared_post_id)
        VALUES (%(share)s, %(post)s, %(sharer)s, '', %(post)s)
    ), delta AS (
        INSERT INTO post_count_deltas (post_id, shares) VALUES (%(post)s, 1)
    )
    INSERT INTO shares (share_id, user_id, post_id, author_id) VALUES (%(share)s, %(sharer)s, %(post)s, %(author)s)"""


async def fill(mesh: WholeMesh) -> tuple[int, list[int]]:
    """A reader of forty authors with ten thousand posts since the month began, some shared; and what their feed is."""
    reader = await mesh.person()
    authors = [await mesh.person() for _ in range(AUTHORS)]
    for author in authors:
        await mesh.follow(reader, author)
    async with mesh.post_pool.connection() as connection:
        # Ids as they are made, a hundred to a millisecond, from the first moment that has a partition.
        await connection.execute(
            """
            INSERT INTO posts (post_id, original_id, user_id, content)
            SELECT id, id, %(authors)s[1 + n %% %(count)s], 'words'
            FROM generate_series(1, %(posts)s) AS n,
                 LATERAL (SELECT id_at(date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')
                          + (n / 100) * 4096 + n %% 100 AS id) AS made""",
            {"authors": authors, "count": AUTHORS, "posts": POSTS},
        )
        cursor = await connection.execute("SELECT post_id, user_id FROM posts ORDER BY post_id")
        posts = [(row[0], row[1]) for row in await cursor.fetchall()]
        place = {post_id: post_id for post_id, _ in posts}
        chance = random.Random(1)
        for number, (post_id, author) in enumerate(chance.sample(posts, SHARES)):
            # Half of the shares stand above all posts, the others in their midst.
            share_id = posts[-1][0] + 4096 + number
            if number % 2:
                share_id = min(post_id + chance.randrange(1, 40) * 4096 + 2000 + number, share_id)
            row = {"share": share_id, "post": post_id, "author": author, "sharer": chance.choice(authors)}
            await connection.execute(SHARE, row)
            place[post_id] = share_id
    return reader, sorted(place, key=lambda post_id: -place[post_id])


@pytest.mark.timeout(300)
async def test_every_post_is_shown_exactly_once_down_to_the_first_one_ever(
    databases: Databases, valkey: Valkey
) -> None:
    chance = random.Random(2)
    async with whole_mesh(databases, valkey) as mesh:
        reader, wanted = await fill(mesh)
        assert len(wanted) == POSTS
        for order in (pb.FEED_ORDER_LATEST, pb.FEED_ORDER_RANKED):
            shown: list[int] = []
            request = pb.GetFeedRequest(user_id=reader, order=order)
            while True:
                request.limit = chance.choice((1, 7, 20, 33, 100, 100, 100))
                page = await mesh.timeline.GetFeed(request)
                shown += [post.post_id for post in page.posts]
                assert len(page.posts) <= request.limit
                if not page.HasField("next_cursor"):
                    break
                assert len(page.posts) == request.limit
                request.cursor = page.next_cursor
            assert len(shown) == POSTS
            if order == pb.FEED_ORDER_LATEST:
                assert shown == wanted
            else:
                assert_windows(shown, wanted, 200)
