"""The skeleton of a window: which posts could be in it, and where plain shares put them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

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
    """The id that gives the place: the post's own, or its newest plain share's."""
    author_id: int
    """Who wrote the post, or plainly shared it."""
    post_id: int
    """The post that is shown."""


@dataclass(frozen=True)
class Skeleton:
    """A window's entries, newest first, and where the window ends."""

    scroll: Scroll
    entries: list[Entry]
    sharers: dict[int, list[int]]
    """By post, who of the followees and the viewer plainly shared it, newest first."""
    removed: list[Entry]
    """Entries that stand in an earlier window, at a newer share."""


async def pull(
    post: PostServiceAsyncStub, viewer_id: int, authors: npt.NDArray[np.int64], scroll: Scroll, size: int
) -> Skeleton:
    """Reads a window of at most `size` posts from Postgres, through the post service. Raises Unavailable."""
    author_ids = authors.tolist()
    newest = await post.BatchListNewest(
        post_pb2.BatchListNewestRequest(
            items=[
                post_pb2.BatchListNewestRequest.Item(
                    viewer_id=viewer_id,
                    author_ids=author_ids,
                    min_post_id=scroll.low or 0,
                    max_post_id=scroll.high,
                    # One more than a window tells whether anything is below it.
                    limit=size + 1,
                )
            ]
        )
    )
    found = members.unpack(newest.items[0].members)
    window = found[:size]
    # What a follow in between pages added may overfill a window that was cut before; then it ends sooner.
    low = int(window[-1, 0]) if len(found) > size else scroll.low or 0
    bound = scroll.bound
    if bound == ids.MAX_ID:
        # The first page: what is newest now bounds the whole scroll.
        bound = int(window[0, 0]) if len(window) else 0
    scroll = Scroll(bound, min(scroll.high, bound), low, scroll.served)
    sharers = await post.BatchListSharers(
        post_pb2.BatchListSharersRequest(
            items=[
                post_pb2.BatchListSharersRequest.Item(
                    viewer_id=viewer_id,
                    original_ids=np.unique(window[:, 2]).tolist(),
                    sharer_ids=author_ids,
                    max_post_id=bound,
                )
            ]
        )
    )
    return place(scroll, window, members.unpack(sharers.items[0].members))


def place(scroll: Scroll, window: members.Members, shares: members.Members) -> Skeleton:
    """Puts each post of a window at its newest share or at itself; `shares` are all shares of them up to the bound."""
    newest: dict[int, Entry] = {}
    for position, author_id, post_id in [*shares.tolist(), *window.tolist()]:
        if post_id not in newest or position > newest[post_id].position:
            newest[post_id] = Entry(position, author_id, post_id)
    sharers: dict[int, list[int]] = {}
    for _, sharer_id, post_id in shares.tolist():
        sharers.setdefault(post_id, []).append(sharer_id)
    entries = sorted(newest.values(), reverse=True)
    return Skeleton(
        scroll,
        [entry for entry in entries if entry.position <= scroll.high],
        sharers,
        [entry for entry in entries if entry.position > scroll.high],
    )
