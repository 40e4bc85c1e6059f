"""What feeds must be, in memory: people, their relations, what they wrote, and what follows from these.

It follows by the rules that graph.proto and post.proto state. Knows no list, no event and no cache.

Two things take time, and are asked for both ways. What somebody's account was within the last half second may still be
gone by (`perhaps`), and what an erased person did is cleared away in steps. What must be is what is so either way; what
may be is what is so in one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

STRANGER = 0
DONE = ""
"""What an act answers that took effect; otherwise the reason of the refusal, or where a follow stands."""


@dataclass
class Person:
    """Someone who joined."""

    private: bool = False
    erased: bool = False
    was_public: bool = False
    was_private: bool = False
    """Whether the account was that within the last half second."""
    was_there: bool = False
    """Whether they were not erased within the last half second."""


@dataclass
class Row:
    """A post, a quote or a plain share."""

    post_id: int
    author: int
    original: int
    """What a plain share repeats; the row's own id otherwise."""
    quoted: int = 0
    """What a quote quotes; 0 for all others."""
    followers_only: bool = False
    deleted: bool = False

    @property
    def is_share(self) -> bool:
        """Whether it is a plain share."""
        return self.original != self.post_id


class Entry(NamedTuple):
    """A post at its place in a feed."""

    place: int
    post_id: int


class Counts(NamedTuple):
    """What a post's counts are at the least and at the most."""

    least: tuple[int, int, int]
    most: tuple[int, int, int]


Pair = tuple[int, int]
"""Who does something, and to whom or what."""


@dataclass
class Model:
    """Everything that people did."""

    people: dict[int, Person] = field(default_factory=dict)
    follows: set[Pair] = field(default_factory=set)
    requests: set[Pair] = field(default_factory=set)
    blocks: set[Pair] = field(default_factory=set)
    mutes: set[Pair] = field(default_factory=set)
    rows: dict[int, Row] = field(default_factory=dict)
    likes: set[Pair] = field(default_factory=set)
    comments: dict[int, Pair] = field(default_factory=dict)
    """By id: who wrote it, and the post that it stands under."""

    # What people do. Each gives what is answered.

    def join(self, user: int) -> None:
        """A new person, whose account is public."""
        self.people[user] = Person()

    def follow(self, follower: int, followee: int) -> str:
        """A follow, or a request where the account is private."""
        edge = follower, followee
        if follower == followee:
            return "SELF_FOLLOW"
        if self.lack(edge) or self.blocked(*edge):
            return "USER_NOT_FOUND"
        if self.people[followee].private and edge not in self.follows:
            self.requests.add(edge)
            return "REQUESTED"
        self.requests.discard(edge)
        self.follows.add(edge)
        return "FOLLOWING"

    def unfollow(self, follower: int, followee: int) -> str:
        """A follow or a request is taken back."""
        if self.lack((follower, followee)):
            return "USER_NOT_FOUND"
        self.end(follower, followee)
        return "NOT_FOLLOWING"

    def accept(self, user: int, follower: int) -> str:
        """A request is accepted."""
        edge = follower, user
        if self.lack(edge):
            return "USER_NOT_FOUND"
        if edge not in self.follows | self.requests:
            return "FOLLOW_REQUEST_NOT_FOUND"
        self.requests.discard(edge)
        self.follows.add(edge)
        return "FOLLOWING"

    def reject(self, user: int, follower: int) -> str:
        """A request is dropped."""
        edge = follower, user
        if self.lack(edge):
            return "USER_NOT_FOUND"
        self.requests.discard(edge)
        return "FOLLOWING" if edge in self.follows else "NOT_FOLLOWING"

    def block(self, user: int, target: int) -> str:
        """A block; follows and requests end both ways."""
        if user == target:
            return "SELF_TARGET"
        if self.lack((user, target)):
            return "USER_NOT_FOUND"
        self.end(user, target)
        self.end(target, user)
        self.blocks.add((user, target))
        return DONE

    def unblock(self, user: int, target: int) -> str:
        """A block is taken back."""
        if self.lack((user, target)):
            return "USER_NOT_FOUND"
        self.blocks.discard((user, target))
        return DONE

    def mute(self, user: int, target: int) -> str:
        """A mute."""
        if user == target:
            return "SELF_TARGET"
        if self.lack((user, target)):
            return "USER_NOT_FOUND"
        self.mutes.add((user, target))
        return DONE

    def unmute(self, user: int, target: int) -> str:
        """A mute is taken back."""
        if self.lack((user, target)):
            return "USER_NOT_FOUND"
        self.mutes.discard((user, target))
        return DONE

    def set_private(self, user: int, private: bool) -> str:
        """An account becomes private or public."""
        person = self.people[user]
        if person.erased:
            return "USER_NOT_FOUND"
        if person.private != private:
            person.was_public |= private
            person.was_private |= not private
        person.private = private
        return DONE

    def erase(self, user: int) -> str:
        """A person is gone."""
        person = self.people[user]
        person.was_there |= not person.erased
        person.erased = True
        return DONE

    def write(
        self, post_id: int, author: int, *, original: int = 0, quoted: int = 0, followers_only: bool = False
    ) -> None:
        """A post; a plain share of an original, or a quote."""
        self.rows[post_id] = Row(post_id, author, original or post_id, quoted, followers_only)

    def delete(self, user: int, post_id: int) -> str:
        """A post or share is deleted, if it is one's own."""
        row = self.rows[post_id]
        if row.author != user:
            return "NOT_OWNER" if self.may_see(user, post_id) else "POST_NOT_FOUND"
        row.deleted = True
        return DONE

    def share_of(self, user: int, original: int) -> int:
        """Someone's plain share of a post; 0 without."""
        shares = (row.post_id for row in self.rows.values() if (row.author, row.original) == (user, original))
        return next((share for share in shares if share != original and not self.rows[share].deleted), 0)

    # What time does.

    def half_a_second_passes(self) -> None:
        """Nobody goes by what people were before."""
        for person in self.people.values():
            person.was_public = person.was_private = person.was_there = False

    def sweep(self) -> None:
        """The relations of erased people are cleared away."""
        for pairs in (self.follows, self.requests, self.blocks, self.mutes):
            pairs -= {pair for pair in pairs if self.lack(pair)}

    def clear(self) -> None:
        """All that erased people did is cleared away."""
        self.sweep()
        gone = {user for user, person in self.people.items() if person.erased}
        self.likes = {like for like in self.likes if like[0] not in gone}
        self.comments = {comment: said for comment, said in self.comments.items() if said[0] not in gone}
        for row in self.rows.values():
            row.deleted |= row.author in gone

    # Who may see what.

    def lack(self, people: Iterable[int]) -> bool:
        """Whether any of some people is not there."""
        return any(self.people[user].erased for user in people)

    def end(self, follower: int, followee: int) -> None:
        """No follow and no request."""
        self.follows.discard((follower, followee))
        self.requests.discard((follower, followee))

    def blocked(self, one: int, other: int) -> bool:
        """Whether a block separates two people."""
        return (one, other) in self.blocks or (other, one) in self.blocks

    def shows(self, viewer: int, user: int, *, perhaps: bool = False) -> bool:
        """Whether someone is there for a viewer at all."""
        person = self.people[user]
        return (not person.erased or (perhaps and person.was_there)) and not self.blocked(viewer, user)

    def may_see(self, viewer: int, post_id: int, *, perhaps: bool = False) -> bool:
        """Whether a viewer may see a post, and where that is a plain share its original."""
        return all(self._sees(viewer, self.rows[each], perhaps) for each in {post_id, self.rows[post_id].original})

    def _sees(self, viewer: int, row: Row, perhaps: bool) -> bool:
        author = self.people[row.author]
        if row.deleted or not self.shows(viewer, row.author, perhaps=perhaps):
            return False
        if row.author == viewer or (viewer, row.author) in self.follows:
            return True
        public = not author.private and not (author.was_private and not perhaps)
        return not row.followers_only and (public or (perhaps and author.was_public))

    def is_sure(self, viewer: int, post_id: int) -> bool:
        """Whether it is the same either way what a viewer may see of a post."""
        return self.may_see(viewer, post_id) == self.may_see(viewer, post_id, perhaps=True)

    # Feeds.

    def authors_of(self, viewer: int, *, perhaps: bool = False) -> set[int]:
        """Whose posts someone reads: their own, and those whom they follow and do not mute."""
        followed = {followee for follower, followee in self.follows if follower == viewer}
        return {
            author
            for author in followed | {viewer}
            if (viewer, author) not in self.mutes and (perhaps or not self.people[author].erased)
        }

    def rows_of(self, viewer: int, *, perhaps: bool = False) -> set[int]:
        """The rows that put a post into someone's feed."""
        authors = self.authors_of(viewer, perhaps=perhaps)
        return {
            row.post_id
            for row in self.rows.values()
            if row.author in authors
            and not row.deleted
            and self._sees(viewer, self.rows[row.original], perhaps)
            and (viewer, self.rows[row.original].author) not in self.mutes
        }

    def feed(self, rows: Iterable[int]) -> list[Entry]:
        """The feed that rows make, newest first: each post once, at its newest row."""
        places: dict[int, int] = {}
        for place in sorted(rows):
            places[self.rows[place].original] = place
        return sorted((Entry(place, post_id) for post_id, place in places.items()), reverse=True)

    def sharers(self, viewer: int, post_id: int) -> list[int]:
        """Those whom someone reads who plainly shared a post, newest first."""
        shares = {row for row in self.rows_of(viewer) if self.rows[row].original == post_id and row != post_id}
        return [self.rows[share].author for share in sorted(shares, reverse=True)]

    def author_page(self, viewer: int, author: int) -> list[int]:
        """What a viewer sees of what someone wrote and shared, newest first."""
        own = (row.post_id for row in self.rows.values() if row.author == author)
        return sorted((post_id for post_id in own if self.may_see(viewer, post_id)), reverse=True)

    def comments_under(self, viewer: int, post_id: int) -> list[int]:
        """The comments that a viewer sees under a post, oldest first."""
        return [
            comment
            for comment, (writer, under) in sorted(self.comments.items())
            if under == post_id and self.shows(viewer, writer)
        ]

    def counts(self, post_id: int) -> Counts:
        """Likes, comments and shares of an original; the erased count until they are cleared away."""
        rows = [row for row in self.rows.values() if not row.deleted and post_id != row.post_id]
        by_kind = (
            [user for user, liked in self.likes if liked == post_id],
            [writer for writer, under in self.comments.values() if under == post_id],
            [row.author for row in rows if post_id in (row.original, row.quoted)],
        )
        there = [[user for user in users if not self.people[user].erased] for users in by_kind]
        return Counts(tuple(map(len, there)), tuple(map(len, by_kind)))  # type: ignore[arg-type]


def assert_windows(shown: Sequence[int], wanted: Sequence[int], size: int) -> None:
    """Asserts that a feed is another put in order anew, window by window, each of at most `size` posts."""
    assert sorted(shown) == sorted(wanted)
    begun = 0
    for end in range(1, len(wanted) + 1):
        if set(shown[begun:end]) == set(wanted[begun:end]):
            assert end - begun <= size, "a window is too large"
            begun = end
