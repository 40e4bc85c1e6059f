"""Posts that feeds showed, in memory: what is the same for everybody who sees them, exactly as it is now.

A post stays for as long as nothing about it changes. Every write notes in its own transaction which posts it changed
(`post_changes`), and every read first asks for the notes that were added since the last one: so whatever was true
before a read began is in what it is given, whichever process wrote it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import psycopg

from feedmesh.post.v1 import post_pb2 as pb
from runtime import ids, members, wire
from runtime.coalesce import Coalescer
from runtime.postgres import Pool
from services.post import metrics, store

KEPT_POSTS = 100_000
"""1.2 KB each, mostly; at the most 45 KB."""
KEPT_LIKERS, KEPT_LIKES = 20_000, 400
"""Viewers of whom it is kept what they like, and of how many posts: 5 KB each, mostly."""
KEPT_S = 300.0
"""After how long a post or like is read anew though no change was noted: whatever goes wrong heals by then."""
KEPT_AUTHORS = 100_000
"""Authors of whom it is known when they last wrote or deleted something."""
LOOK_S = 1.0
"""How often what changed is heeded at the least."""
GAP_S = 60.0
"""After how long without a look at the notes all is forgotten; they are kept for twice as long."""
KEPT_SHARES = 200
"""Plain shares of one post that are kept with it; where there are more, they are asked for viewer by viewer."""
READ_POSTS = 2_000
"""Posts of one query, at the most."""

Share = tuple[int, int]
"""The id of a plain share, and who shared."""


class HotPost:
    """A post that is not deleted, its counts and shares, as of one moment."""

    __slots__ = ("_listed", "_public", "_shown", "member", "plain", "read_s", "row", "shares")

    def __init__(self, row: store.PostRow, read_s: float = 0, shares: tuple[Share, ...] | None = None) -> None:
        self.row = row
        self.read_s = read_s
        """Before it was read, in seconds of `time.monotonic()`."""
        self.shares = shares
        """Its plain shares, newest first; None where they were not read, or are too many to be kept."""
        self.plain = (
            row.visibility == pb.VISIBILITY_PUBLIC and row.original_id == row.post_id and row.shared_post_id is None
        )
        """Whether it is neither for followers only nor made of another post."""
        self.member = members.pack_one(row.post_id, row.user_id, row.original_id)
        """As a packed member."""
        self._shown = ("", "")
        self._public = self._listed = b""

    def listed(self, name: str, media_url: str) -> bytes:
        """The same as `public`, as an element of a page."""
        public = self.public(name, media_url)
        self._listed = self._listed or wire.listed(public)
        return self._listed

    def public(self, name: str, media_url: str) -> bytes:
        """What everybody sees of it, as bytes of a Post: all but what is the viewer's own, and its original.

        `name` is its author's, `media_url` where its media is to be had by now.
        """
        if not self._public or (name, media_url) != self._shown:
            row = self.row
            self._shown, self._listed = (name, media_url), b""
            self._public = pb.Post(
                post_id=row.post_id,
                user_id=row.user_id,
                username=name,
                content=row.content,
                media_url=media_url,
                created_at=ids.timestamp(row.post_id),
                visibility=pb.Visibility.ValueType(row.visibility),
                likes=row.likes,
                comments=row.comments,
                shares=row.shares,
            ).SerializeToString()
        return self._public


class Likes(NamedTuple):
    """What is known of one viewer's likes."""

    asked: frozenset[int] | set[int]
    """The posts of which it is known."""
    liked: frozenset[int] | set[int]
    """Those of them that they like."""
    read_s: float
    """Before the first of them was read."""


NOTHING = frozenset[int]()
UNKNOWN = Likes(NOTHING, NOTHING, math.inf)


class HotPosts:
    """The posts that were shown last, and who of those who saw them likes them, of one process."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        # In the order in which they were read.
        self._known: dict[int, HotPost] = {}
        # What changed while a read was under way, by the read; None for anything.
        self._changed: dict[object, set[int] | None] = {}
        # In the order in which they were asked for.
        self._likes: dict[int, Likes] = {}
        # Who liked while a look was under way, by the look; None for anybody.
        self._liking: dict[object, set[int] | None] = {}
        # One query at a time: who asks for what is being read waits for it, and finds it.
        self._reads = Coalescer("posts", self._read_lacking, max_weight=READ_POSTS, in_flight=1, weigh=len)
        # All notes that this snapshot sees were heeded.
        self._seen: store.Snapshot | None = None
        self._looked_s = 0.0
        # The transaction of each author's last note, and the one from which on none is lacking.
        self._wrote: dict[int, int] = {}
        self._wrote_since = 0

    async def look(self, asked: Mapping[int, Collection[int]]) -> dict[int, Collection[int]]:
        """Which posts users like, those at least of some that are asked for; and forgets what changed until now."""
        seen, asked_s, ticket = self._seen, time.monotonic(), object()
        for user_id in asked:
            if asked_s - self._likes.get(user_id, UNKNOWN).read_s > KEPT_S:
                self._likes.pop(user_id, None)
        lacking = {
            user_id: set(post_ids).difference(self._likes.get(user_id, UNKNOWN).asked)
            for user_id, post_ids in asked.items()
        }
        self._liking[ticket] = set()
        try:
            acts = await store.acts(self.pool, *pairs(lacking), seen)
        finally:
            liking = self._liking.pop(ticket)
        gap = asked_s - self._looked_s > GAP_S
        if seen is None or acts.changes is None or gap or acts.snapshot.xmax < seen.xmax:
            # Notes may be lacking, or are too many; or this is a database of before, that was put back.
            self._forget_all(acts.snapshot)
        else:
            self._heed(acts.changes)
            self._seen = max(self._seen or acts.snapshot, acts.snapshot)
        self._looked_s = max(self._looked_s, asked_s)

        liked: dict[int, Collection[int]] = {}
        again: dict[int, Collection[int]] = {}
        for user_id, post_ids in asked.items():
            known, new = self._likes.get(user_id, UNKNOWN), lacking[user_id]
            if len(new) < len(post_ids) and not known.asked.issuperset(set(post_ids) - new):
                again[user_id] = post_ids  # what was known is not any more
                continue
            found = acts.likes.get(user_id, NOTHING)
            liked[user_id] = known.liked | found
            if new and liking is not None and user_id not in liking:
                first = known if 0 < len(known.asked) <= KEPT_LIKES - len(new) else UNKNOWN._replace(read_s=asked_s)
                self._likes.pop(user_id, None)
                self._likes[user_id] = Likes(first.asked | new, first.liked | found, first.read_s)
        while len(self._likes) > KEPT_LIKERS:
            del self._likes[next(iter(self._likes))]
        return liked | (await store.liked(self.pool, *pairs(again)) if again else {})

    async def keep_up(self) -> bool:
        """Heeds what changed though nobody reads, lest too much comes at once. Always False: it may wait."""
        with suppress(psycopg.Error):  # whoever reads will say so
            await self.look({})
        return False

    def held(self, post_id: int) -> HotPost | None:
        """A post as it was at the last `look`, if it is held."""
        return self._known.get(post_id)

    async def of(self, post_ids: Collection[int]) -> dict[int, HotPost]:
        """Those of the posts (at most 2,000) that there are, as of the last `look` or later."""
        found, lacking = self._find(post_ids)
        if lacking:
            for each in await self._reads(lacking):
                found[each.row.post_id] = each
        metrics.HOT_POSTS.labels("known").inc(len(post_ids) - len(lacking))
        metrics.HOT_POSTS.labels("read").inc(len(lacking))
        return found

    @property
    def as_of(self) -> int:
        """The transaction below which the last `look` saw all."""
        return self._seen.xmin if self._seen is not None else 0

    def has_written(self, author_id: int, since: int) -> bool:
        """Whether an author may have written or deleted something in the transaction `since` or later."""
        if self._seen is None or since > self._seen.xmax:  # of a database that was put back since
            return True
        return since < self._wrote_since or self._wrote.get(author_id, 0) >= since

    def _heed(self, changes: Iterable[store.Change]) -> None:
        for post_id, xid, user_id, liker_id in changes:
            self._known.pop(post_id, None)
            for changed in self._changed.values():
                if changed is not None:
                    changed.add(post_id)
            if user_id:
                self._wrote[user_id] = max(xid, self._wrote.pop(user_id, 0))
            if liker_id:
                self._likes.pop(liker_id, None)
                for liking in self._liking.values():
                    if liking is not None:
                        liking.add(liker_id)
        while len(self._wrote) > KEPT_AUTHORS:
            oldest = next(iter(self._wrote))
            self._wrote_since = max(self._wrote_since, self._wrote.pop(oldest) + 1)

    def _forget_all(self, seen: store.Snapshot) -> None:
        self._known.clear()
        self._changed = dict.fromkeys(self._changed)
        self._likes.clear()
        self._liking = dict.fromkeys(self._liking)
        self._wrote.clear()
        self._seen, self._wrote_since = seen, seen.xmax

    def _find(self, post_ids: Iterable[int]) -> tuple[dict[int, HotPost], list[int]]:
        since_s = time.monotonic() - KEPT_S
        known = self._known
        found, lacking = {}, []
        for post_id in post_ids:
            post = known.get(post_id)
            if post is not None and post.read_s > since_s:
                found[post_id] = post
            else:
                lacking.append(post_id)
        return found, lacking

    async def _read_lacking(self, many: Sequence[Collection[int]]) -> list[list[HotPost]]:
        # What others waited for before may be what is wanted now.
        found, lacking = self._find({post_id for post_ids in many for post_id in post_ids})
        if lacking:
            found |= await self._read(lacking)
        return [[found[post_id] for post_id in post_ids if post_id in found] for post_ids in many]

    async def _read(self, post_ids: Collection[int]) -> dict[int, HotPost]:
        ticket, read_s = object(), time.monotonic()
        self._changed[ticket] = set()
        try:
            rows = await store.posts_with_shares(self.pool, post_ids, KEPT_SHARES)
        finally:
            changed = self._changed.pop(ticket)
        found = {row.post_id: HotPost(row, read_s, shares) for row, shares in rows}
        if changed is not None:
            for post_id, post in found.items():
                self._known.pop(post_id, None)
                if post_id not in changed:
                    self._known[post_id] = post
            while len(self._known) > KEPT_POSTS:
                del self._known[next(iter(self._known))]
        return found


def pairs(asked: Mapping[int, Collection[int]]) -> tuple[list[int], list[int]]:
    """Users and posts, one for one."""
    user_ids = [user_id for user_id, post_ids in asked.items() for _ in post_ids]
    return user_ids, [post_id for post_ids in asked.values() for post_id in post_ids]
