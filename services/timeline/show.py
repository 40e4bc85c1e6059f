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
    """One post as it was told."""

    post_id: int
    """The post, or the share."""
    author_id: int
    """Who wrote it, or shared."""
    original_id: int
    """The post that is shown."""


async def show_live(parts: Parts, request: pb.BatchGetLivePostsRequest) -> bytes:
    """Each post as those people see it in whose feeds it stands now. Raises InvalidArgument, Unavailable."""
    if sum(len(item.user_ids) for item in request.items) > MAX_PEOPLE:
        raise errors.InvalidArgument(
            errors.Violation("items", f"must not name more than {MAX_PEOPLE} people in all, each as often as it stands")
        )
    rows = [Row(*row) for row in members.unpack(b"".join(item.member for item in request.items)).tolist()]
    relations, kept = await parts.relations.of(list({each for item in request.items for each in item.user_ids}))
    viewers = {user_id: Viewer(user_id, relation, kept) for user_id, relation in relations.items()}
    wanted = [
        [at for at, user_id in enumerate(item.user_ids) if user_id in viewers and followed(viewers[user_id], row)]
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
        if row in alike:
            answer.views.add(post=alike[row], viewers=places)
            continue
        by_view: dict[bytes, list[int]] = {}
        for at in places:
            if (view := views.get((item.user_ids[at], row))) is not None:
                by_view.setdefault(view, []).append(at)
        for view, its in by_view.items():
            answer.views.add(post=view, viewers=its)
    return bytes(response.SerializeToString())


def followed(viewer: Viewer, row: Row) -> bool:
    """Whether what this author wrote or shared stands in a viewer's feed."""
    relation, author_id = viewer.relation, row.author_id
    if author_id == viewer.user_id:
        return True
    return relation.follows(author_id) and not relation.mutes(author_id) and not relation.blocks(author_id)


async def same_to_all(parts: Parts, rows: set[Row]) -> dict[Row, bytes]:
    """Those of the posts in which nothing depends on who of the author's followers looks."""
    asked = [row for row in rows if row.post_id == row.original_id]
    if not asked:
        return {}
    request = post_pb2.BatchGetPostsRequest()
    request.items.add(viewer_id=STRANGER, post_ids=[row.post_id for row in asked], only_alike=True)
    [answer] = (await parts.hydrate(request)).items
    posts = dict(zip(members.unpack(answer.members)[:, 0].tolist(), Posts.FromString(answer.page).posts, strict=True))
    return {row: posts[row.post_id] for row in asked if row.post_id in posts}


async def seen_by_each(
    parts: Parts, viewers: Mapping[int, Viewer], asked: Mapping[int, set[Row]]
) -> dict[tuple[int, Row], bytes]:
    """By viewer and post, what stands in the viewer's feed of what is asked for."""
    found: dict[tuple[int, Row], bytes] = {}
    waiting = (
        (viewers[user_id], some)
        for user_id, rows in asked.items()
        for some in (sorted(rows)[at : at + POSTS] for at in range(0, len(rows), POSTS))
    )
    while together := list(itertools.islice(waiting, RPC_ITEMS)):
        request = post_pb2.BatchGetPostsRequest()
        for viewer, rows in together:
            request.items.add(
                viewer_id=viewer.user_id,
                post_ids=[row.original_id for row in rows],
                relations_version=viewer.relation.version,
                relations_kept=viewer.kept,
                sharers_up_to=max(row.post_id for row in rows),
            )
        answer = await parts.hydrate(request)
        for (viewer, rows), item in zip(together, answer.items, strict=True):
            found |= {(viewer.user_id, row): post for row, post in standing(viewer, rows, item).items()}
    return found


def standing(viewer: Viewer, rows: Sequence[Row], item: Any) -> dict[Row, bytes]:
    """Of posts that a viewer may see, those that stand in the feed.

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
        and not viewer.relation.mutes(writers[row.original_id])
        and (row.post_id == row.original_id or row.post_id in shares)
    }
