"""What a home timeline and a feed must be, composed of rows and relations alone, and where they differ from that.

Plain sets, and nothing of skeleton.py and feed.py: what goes wrong there shows here. Who reads all of it, and repairs:
auditor.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from feedmesh.post.v1 import post_pb2
from services.timeline.timelines import Timeline

LIST, FEED = "list", "feed"
KINDS = {
    LIST: ("missing", "extra"),
    FEED: ("missing", "extra", "duplicate", "misordered", "must_not_see"),
}
Member = tuple[int, int, int]
"""Post, author, original."""


@dataclass(frozen=True)
class Facts:
    """What Postgres and the graph say of one viewer."""

    viewer_id: int
    follows: Mapping[int, int]
    """The follow by who is followed."""
    blocked: Collection[int]
    muted: Collection[int]
    pulled: Collection[int]
    """Those followed whose posts need not be in the list."""
    rows: Sequence[post_pb2.PostRow]
    """What the viewer and all whom they follow wrote and did not delete, newest first."""
    lowest: int
    """The id down to which these are all."""
    others: Sequence[post_pb2.PostRow]
    """Other posts that are in the list or were served, as far as there are any."""
    private: Mapping[int, bool]
    """Whether an account is private, by person: of all authors here that exist."""
    settled: int
    """The id up to which nothing is in flight."""

    @cached_property
    def by_id(self) -> dict[int, post_pb2.PostRow]:
        """The rows by post."""
        return {row.post_id: row for row in (*self.rows, *self.others)}

    @cached_property
    def by_original(self) -> dict[int, post_pb2.PostRow]:
        """A row for each original; none of a share that was deleted."""
        originals = (row for row in self.others if row.post_id == row.original_id)
        return {row.original_id: row for row in (*originals, *self.rows)}

    @cached_property
    def unsure(self) -> set[int]:
        """Originals whose place may change by what is in flight, or goes by somebody who was erased a moment ago."""
        return {row.original_id for row in self.rows if row.post_id > self.settled or row.author_id not in self.private}

    @cached_property
    def places(self) -> dict[int, int]:
        """The feed, newest first: the place of each original, which is its newest row by somebody who is read."""
        places: dict[int, int] = {}
        for row in self.rows:
            if self.reads(row.author_id) and self.may_see(row):
                places.setdefault(row.original_id, row.post_id)
        return places

    def reads(self, user_id: int) -> bool:
        """Whether the viewer reads what someone writes and shares."""
        followed = user_id in self.follows and user_id not in self.muted and user_id not in self.blocked
        return followed or user_id == self.viewer_id

    def may_see(self, row: post_pb2.PostRow | None) -> bool:
        """Whether the original of a row may be in the viewer's feed."""
        if row is None or row.deleted or row.original_deleted:
            return False
        author_id = row.original_author_id
        if author_id not in self.private or author_id in self.blocked or author_id in self.muted:
            return False
        public = row.original_visibility == post_pb2.VISIBILITY_PUBLIC and not self.private[author_id]
        return public or author_id == self.viewer_id or author_id in self.follows


@dataclass(frozen=True)
class Compared:
    """How much was compared, and what differs."""

    entries: Mapping[str, int]
    """How many, of the list and of the feed."""
    found: Mapping[tuple[str, str], frozenset[tuple[int, ...]]]
    """Members of the list, and posts of the feed, by what is wrong with them."""

    def __bool__(self) -> bool:
        return any(self.found.values())

    def confirmed(self, later: Compared) -> Compared:
        """What a later look still finds."""
        return Compared(later.entries, {what: entries & later.found[what] for what, entries in self.found.items()})


def compare(facts: Facts, timeline: Timeline, posts: Sequence[post_pb2.Post], *, whole: bool) -> Compared:
    """Holds a list, and a feed from its top on, against the facts. `whole` says that these posts are all of it."""
    in_list, listed = compare_list(facts, timeline)
    in_feed, served = compare_feed(facts, posts, whole=whole)
    return Compared(
        {LIST: listed, FEED: served},
        {(LIST, kind): frozenset(in_list[kind]) for kind in KINDS[LIST]}
        | {(FEED, kind): frozenset((post_id,) for post_id in in_feed[kind]) for kind in KINDS[FEED]},
    )


def compare_list(facts: Facts, timeline: Timeline) -> tuple[dict[str, set[Member]], int]:
    """What differs in a list, and how many members were compared.

    Of whom the viewer follows no more, and what was deleted, may be in it: reads filter that.
    """
    lowest = max(timeline.floor + 1, facts.lowest)
    held: set[Member] = {
        (post_id, author_id, original_id)
        for post_id, author_id, original_id in timeline.rows.tolist()
        if lowest <= post_id <= facts.settled and author_id in facts.follows and author_id in facts.private
    }
    wanted = {
        member(row)
        for row in facts.rows
        if lowest <= row.post_id <= facts.settled
        and row.author_id in facts.private
        and row.author_id not in facts.pulled
        and facts.follows.get(row.author_id, timeline.horizon + 1) <= timeline.horizon
        and not row.original_deleted
    }
    unknown = {each for each in held if each[0] not in facts.by_id or member(facts.by_id[each[0]]) != each}
    return {"missing": wanted - held, "extra": unknown}, len(wanted | held)


def compare_feed(facts: Facts, posts: Sequence[post_pb2.Post], *, whole: bool) -> tuple[dict[str, set[int]], int]:
    """What differs in a feed, and how many posts were compared."""
    served = [post.post_id for post in posts]
    shown = [post_id for post_id in dict.fromkeys(served) if post_id <= facts.settled and post_id not in facts.unsure]
    wanted = [post_id for post_id in facts.places if post_id not in facts.unsure]
    common = [post_id for post_id in shown if post_id in facts.places]
    # Where only the beginning of either is known, the other one counts as far as the last post that both have.
    if facts.lowest:
        shown = shown[: shown.index(common[-1]) + 1] if common else []
    if not whole:
        wanted = wanted[: wanted.index(common[-1]) + 1] if common else []
    hidden = {post.post_id for post in posts if not may_show(facts, post)}
    found = {
        "missing": set(wanted) - set(shown),
        "extra": set(shown) - facts.places.keys() - hidden,
        "duplicate": {post_id for post_id, times in Counter(served).items() if times > 1},
        "misordered": {later for one, later in pairwise(common) if facts.places[later] > facts.places[one]},
        "must_not_see": hidden,
    }
    return found, len({*shown, *wanted})


def may_show(facts: Facts, post: post_pb2.Post) -> bool:
    """Whether nothing of a post as it was served is to be hidden from the viewer."""
    return (
        facts.may_see(facts.by_original.get(post.post_id))
        and (not post.HasField("shared_post") or facts.may_see(facts.by_original.get(post.shared_post.post_id)))
        and all(facts.reads(sharer.user_id) for sharer in post.shared_by)
    )


def member(row: post_pb2.PostRow) -> Member:
    """A row as lists hold it."""
    return row.post_id, row.author_id, row.original_id
