"""Posts that were told live, as they are shown: as of now, and to those alone in whose feeds they stand.

Who follows an author mostly sees the same of a new post. So it is asked for once as a stranger would see it, and if
nothing in it depends on who looks, that is for all of them. Otherwise it is read for each viewer, as for a feed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from feedmesh.post.v1 import post_pb2
from feedmesh.timeline.v1 import timeline_pb2 as pb
from runtime import errors, members, wire
from runtime.coalesce import RPC_ITEMS
from runtime.members import Members
from services.timeline.feed import Parts, Posts
from services.timeline.skeleton import Viewer

MAX_PEOPLE = 1_000
"""Of one request, each as often as it stands there."""
POSTS = 10
"""Posts of one viewer in one question: RPC_ITEMS viewers ask for at most 640."""
STRANGER = 0

Live = wire.closed(pb.BatchGetLivePostsResponse.DESCRIPTOR, [post_pb2.Post.DESCRIPTOR])


class Row(NamedTuple):
    """One post as it was told, or as it stands on a screen."""

    post_id: int
    """The post, or the share."""
    author_id: int
    """Who wrote it, or shared; of no meaning on a screen."""
    original_id: int
    """The post that is shown."""
    on_screen: bool


class Same(NamedTuple):
    """A post that is the same to all."""

    content: bytes
    author_id: int


async def show_live(parts: Parts, request: pb.BatchGetLivePostsRequest) -> bytes:
    """Each post as those people see it in whose feeds it stands now, or on whose screens. Raises InvalidArgument,
    Unavailable."""
    if sum(len(item.user_ids) for item in request.items) > MAX_PEOPLE:
        raise errors.InvalidArgument(
            errors.Violation("items", f"must not name more than {MAX_PEOPLE} people in all, each as often as it stands")
        )
    unpacked = members.unpack(b"".join(item.member for item in request.items)).tolist()
    rows = [
        Row(post_id, author_id, original_id, item.on_screen)
        for (post_id, author_id, original_id), item in zip(unpacked, request.items, strict=True)
    ]
    relations, kept = await parts.relations.of(list({each for item in request.items for each in item.user_ids}))
    if kept:
        # Some may lack then, and what is not shown now is not told again. Who is told later misses nothing.
        raise errors.Unavailable("the graph cannot be reached")
    viewers = {user_id: Viewer(user_id, relation) for user_id, relation in relations.items()}
    wanted = [
        [at for at, user_id in enumerate(item.user_ids) if user_id in viewers and may_stand(viewers[user_id], row)]
        for row, item in zip(rows, request.items, strict=True)
    ]
    alike = await same_to_all(parts, {row for row, places in zip(rows, wanted, strict=True) if places})
    asked: dict[int, set[Row]] = {}
    for row, item, places in zip(rows, request.items, wanted, strict=True):
        if row not in alike:
            for at in places:
                asked.setdefault(item.user_ids[at], set()).add(row)
    views = await seen_by_each(parts, viewers, asked)
    response = Live()
    for row, item, places in zip(rows, request.items, wanted, strict=True):
        answer = response.items.add()
        if same := alike.get(row):
            its = [at for at in places if not viewers[item.user_ids[at]].relation.blocks(same.author_id)]
            if its:
                answer.views.add(post=same.content, viewers=its)
            continue
        by_view: dict[bytes, list[int]] = {}
        for at in places:
            if (view := views.get((item.user_ids[at], row))) is not None:
                by_view.setdefault(view, []).append(at)
        for view, its in by_view.items():
            answer.views.add(post=view, viewers=its)
    return bytes(response.SerializeToString())


def may_stand(viewer: Viewer, row: Row) -> bool:
    """Whether a post may be where it is to be shown, as far as its author is known: in a feed, or anywhere."""
    if row.on_screen or row.author_id == viewer.user_id:
        return True
    return viewer.relation.follows(row.author_id) and not viewer.relation.mutes(row.author_id)


async def same_to_all(parts: Parts, rows: set[Row]) -> dict[Row, Same]:
    """Those of the posts in which nothing depends on who looks, of all whom no block separates from the author.

    On a screen, likes and shares are numbers alone.
    """
    asked = [row for row in rows if row.post_id == row.original_id]
    if not asked:
        return {}
    request = post_pb2.BatchGetPostsRequest()
    request.items.add(viewer_id=STRANGER, post_ids=[row.post_id for row in asked], only_alike=True)
    [answer] = (await parts.hydrate(request)).items
    there = zip(members.unpack(answer.members).tolist(), Posts.FromString(answer.page).posts, strict=True)
    posts = {post_id: Same(content, author_id) for (post_id, author_id, _), content in there}
    return {
        row: posts[row.post_id]
        for row in asked
        if row.post_id in posts and (row.on_screen or nobody_acted(posts[row.post_id].content))
    }


def nobody_acted(content: bytes) -> bool:
    """Whether nobody likes a post, and nobody has shared it."""
    post = post_pb2.Post.FromString(content)
    return not post.likes and not post.shares


async def seen_by_each(
    parts: Parts, viewers: Mapping[int, Viewer], asked: Mapping[int, set[Row]]
) -> dict[tuple[int, Row], bytes]:
    """By viewer and post, what stands in the viewer's feed of what is asked for."""
    found: dict[tuple[int, Row], bytes] = {}
    waiting = (
        (viewers[user_id], some)
        for user_id, rows in asked.items()
        for alike in ([row for row in sorted(rows) if row.on_screen is on_screen] for on_screen in (False, True))
        for some in (alike[at : at + POSTS] for at in range(0, len(alike), POSTS))
    )
    while together := list(itertools.islice(waiting, RPC_ITEMS)):
        request = post_pb2.BatchGetPostsRequest()
        for viewer, rows in together:
            request.items.add(
                viewer_id=viewer.user_id,
                post_ids=[row.original_id for row in rows],
                relations_version=viewer.relation.version,
                sharers_up_to=None if rows[0].on_screen else max(row.post_id for row in rows),
            )
        answer = await parts.hydrate(request)
        for (viewer, rows), item in zip(together, answer.items, strict=True):
            found |= {(viewer.user_id, row): post for row, post in standing(viewer, rows, item).items()}
    return found


def standing(viewer: Viewer, rows: Sequence[Row], item: Any) -> dict[Row, bytes]:
    """Of posts that a viewer may see, those that stand in the feed, or all of a screen.

    Not what a muted author wrote and somebody shared, nor what was shared where the share has been taken back.
    """
    seen: Members = members.unpack(item.members)
    shares = set(members.unpack(item.shares)[:, 0].tolist())
    writers = dict(zip(seen[:, 0].tolist(), seen[:, 1].tolist(), strict=True))
    posts = dict(zip(writers, Posts.FromString(item.page).posts, strict=True))
    return {
        row: posts[row.original_id]
        for row in rows
        if row.original_id in posts
        and (
            row.on_screen
            or (
                not viewer.relation.mutes(writers[row.original_id])
                and (row.post_id == row.original_id or row.post_id in shares)
            )
        )
    }
