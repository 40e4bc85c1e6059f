"""The skeleton of a window: which posts could be in it, and where plain shares put them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from feedmesh.post.v1 import post_pb2
from runtime import ids, members
from services.timeline.scroll import Scroll

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

WINDOW = 200
"""Posts in a window, and so candidates of a ranking."""


class Entry(NamedTuple):
    """One entry of a feed: a post at its place."""

    position: int
    """The id that gives the place: the post's own, or its newest plain share's in the window."""
    author_id: int
    """Who wrote the post, or plainly shared it."""
    post_id: int
    """The post that is shown."""


@dataclass(frozen=True)
class Viewer:
    """Who reads, and whose posts they read: those they follow and themselves."""

    user_id: int
    author_ids: list[int]


async def pull(post: PostServiceAsyncStub, viewer: Viewer, scroll: Scroll, size: int) -> tuple[Scroll, list[Entry]]:
    """Reads a window of at most `size` posts from Postgres, through the post service: its entries, newest first.

    Returns the place with the window's ends now known, too. Raises Unavailable.
    """
    item = post_pb2.BatchListNewestRequest.Item(
        viewer_id=viewer.user_id,
        author_ids=viewer.author_ids,
        min_post_id=scroll.low or 0,
        max_post_id=scroll.high,
        # One more than a window tells whether anything is below it.
        limit=size + 1,
    )
    answer = await post.BatchListNewest(post_pb2.BatchListNewestRequest(items=[item]))
    found = members.unpack(answer.items[0].members)
    window = found[:size]
    if scroll.bound == ids.MAX_ID:
        # The first page: what is newest now bounds the whole scroll.
        newest = int(window[0, 0]) if len(window) else 0
        scroll = replace(scroll, bound=newest, high=newest)
    # What a follow in between pages added may overfill a window that was cut before; then it ends sooner.
    scroll = replace(scroll, low=int(window[-1, 0]) if len(found) > size else scroll.low or 0)
    entries: dict[int, Entry] = {}
    for position, author_id, post_id in window.tolist():
        entries.setdefault(post_id, Entry(position, author_id, post_id))
    if scroll.forgot:
        for share_id, _, post_id in (await list_sharers(post, viewer, scroll.bound, list(entries))).tolist():
            if share_id > scroll.high:
                entries.pop(post_id, None)
    return scroll, list(entries.values())


async def list_sharers(
    post: PostServiceAsyncStub, viewer: Viewer, bound: int, post_ids: Sequence[int]
) -> members.Members:
    """The plain shares of posts by those whom the viewer reads, newest first, with ids up to `bound`.

    At most 20 of each post. Raises Unavailable.
    """
    item = post_pb2.BatchListSharersRequest.Item(
        viewer_id=viewer.user_id,
        original_ids=post_ids,
        sharer_ids=viewer.author_ids,
        max_post_id=bound,
    )
    answer = await post.BatchListSharers(post_pb2.BatchListSharersRequest(items=[item]))
    return members.unpack(answer.items[0].members)
