"""Posts as they were at most half a second ago: what is the same for everybody who sees them.

What is deleted is gone at once, and whoever likes, comments or shares sees that at once, whichever process did it:
`hydrate.py` reads anew what changed since a post was read.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence

from feedmesh.post.v1 import post_pb2 as pb
from runtime import ids, members
from runtime.coalesce import Coalescer
from runtime.postgres import Pool
from services.post import metrics, store

FRESH_S = 0.5
KEPT_POSTS = 20_000
"""1 KB each, mostly; at the most 45 KB."""
KEPT_SHARES = 200
"""Plain shares of one post that are kept with it; where there are more, they are asked for viewer by viewer."""
READ_POSTS = 2_000
"""Posts of one query, at the most."""

Share = tuple[int, int]
"""The id of a plain share, and who shared."""


class HotPost:
    """A post that is not deleted, its counts and shares, as of one moment."""

    __slots__ = ("_name", "_public", "member", "plain", "read_s", "row", "shares", "xmin")

    def __init__(
        self, row: store.PostRow, read_s: float, shares: tuple[Share, ...] | None = None, xmin: int = 0
    ) -> None:
        self.row = row
        self.read_s = read_s
        """Before it was read, in seconds of `time.monotonic()`."""
        self.shares = shares
        """Its plain shares, newest first; None where they were not read, or are too many to be kept."""
        self.xmin = xmin
        """What transactions below this one did, it has."""
        self.plain = (
            row.visibility == pb.VISIBILITY_PUBLIC and row.original_id == row.post_id and row.shared_post_id is None
        )
        """Whether it is neither for followers only nor made of another post."""
        self.member = members.pack_one(row.post_id, row.user_id, row.original_id)
        """As a packed member."""
        self._name = ""
        self._public = b""

    def public(self, name: str) -> bytes:
        """What everybody sees of it, as bytes of a Post: all but what is the viewer's own, and its original."""
        if not self._public or name != self._name:
            row = self.row
            self._name = name
            self._public = pb.Post(
                post_id=row.post_id,
                user_id=row.user_id,
                username=name,
                content=row.content,
                media_url=row.media_url,
                created_at=ids.timestamp(row.post_id),
                visibility=pb.Visibility.ValueType(row.visibility),
                likes=row.likes,
                comments=row.comments,
                shares=row.shares,
            ).SerializeToString()
        return self._public


class HotPosts:
    """The posts that were read last, of one process."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        # In the order in which they were read.
        self._known: dict[int, HotPost] = {}
        # What changed while a read was under way, by the read.
        self._changed: dict[object, set[int]] = {}
        # One query at a time: who asks for what is being read waits for it, and finds it.
        self._reads = Coalescer("posts", self._read_lacking, max_weight=READ_POSTS, in_flight=1, weigh=len)

    async def of(self, post_ids: Collection[int]) -> dict[int, HotPost]:
        """Those of the posts (at most 2,000) that there were at some moment of the last half second."""
        found, lacking = self._fresh(post_ids)
        if lacking:
            for each in await self._reads(lacking):
                found[each.row.post_id] = each
        metrics.HOT_POSTS.labels("known").inc(len(post_ids) - len(lacking))
        metrics.HOT_POSTS.labels("read").inc(len(lacking))
        return found

    async def read(self, post_ids: Collection[int]) -> dict[int, HotPost]:
        """Those of the posts that there are, as of now."""
        if not post_ids:
            return {}
        ticket, changed = object(), set[int]()
        self._changed[ticket] = changed
        read_s = time.monotonic()
        try:
            rows = await store.posts_with_shares(self.pool, post_ids, KEPT_SHARES)
        finally:
            del self._changed[ticket]
        found = {row.post_id: HotPost(row, read_s, shares, xmin) for row, shares, xmin in rows}
        self.drop(post_ids)
        self._known |= {post_id: post for post_id, post in found.items() if post_id not in changed}
        self._forget(read_s - FRESH_S)
        return found

    def drop(self, post_ids: Collection[int]) -> None:
        """Forgets posts that have just changed, and what is being read of them."""
        for post_id in post_ids:
            self._known.pop(post_id, None)
        for changed in self._changed.values():
            changed.update(post_ids)

    def _fresh(self, post_ids: Iterable[int]) -> tuple[dict[int, HotPost], list[int]]:
        since_s = time.monotonic() - FRESH_S
        found, lacking = {}, []
        for post_id in post_ids:
            known = self._known.get(post_id)
            if known is not None and known.read_s > since_s:
                found[post_id] = known
            else:
                lacking.append(post_id)
        return found, lacking

    async def _read_lacking(self, many: Sequence[Collection[int]]) -> list[list[HotPost]]:
        # What others waited for before may be what is wanted now.
        found, lacking = self._fresh({post_id for post_ids in many for post_id in post_ids})
        found |= await self.read(lacking)
        return [[found[post_id] for post_id in post_ids if post_id in found] for post_ids in many]

    def _forget(self, before_s: float) -> None:
        """Makes room: what is old goes, and of what is too much the oldest."""
        old: list[int] = []
        for post_id, post in self._known.items():
            if post.read_s > before_s and len(self._known) - len(old) <= KEPT_POSTS:
                break
            old.append(post_id)
        for post_id in old:
            del self._known[post_id]
