"""The community that the demo loads: who follows whom, who wrote what, who liked it. A plan only: it sends nothing.

Everything comes from one seed. How much somebody writes and how much a post is noticed follow heavy tails, and those
who notice it are mostly the author's followers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random

from bench import words

GRAPH = Path(__file__).parent / "data" / "socfb-Reed98.edges"
POSTS = 4_000
LIKES = 15_000
COMMENTS = 3_000
SHARES = 800

ACTIVITY_SIGMA = 1.0
"""Of the lognormal that people's activity follows; a person with more friends is also more active."""
NOTICE_SIGMA = 1.4
"""Of the lognormal that a post's notice follows, times its author's followers."""
BY_FOLLOWERS = 0.9
"""The share of likes, comments and shares that comes from followers of the author; the rest from anybody."""
WITH_NOTE = 0.3
"""The share of shares that carry a text of their own."""


@dataclass(frozen=True, slots=True)
class Post:
    """A post to write. People are indexes into Community.usernames."""

    author: int
    topic: words.Topic
    content: str
    media_url: str


@dataclass(frozen=True, slots=True)
class Reaction:
    """A like, comment or share to make. `post` is an index into Community.posts; a like's content is ""."""

    person: int
    post: int
    content: str = ""


@dataclass(frozen=True)
class Community:
    """The whole plan."""

    usernames: list[str]
    friends: list[list[int]]
    """By person: whom they follow, who are also those that follow them."""
    activity: list[float]
    """By person: how much they write and read, relative to others."""
    follows: list[tuple[int, int]]
    """(follower, followee), in an order that keeps edges of one person apart: neighbours lock the same row."""
    posts: list[Post]
    likes: list[Reaction]
    comments: list[Reaction]
    shares: list[Reaction]


def read_edges(path: Path = GRAPH) -> list[tuple[int, int]]:
    """The undirected edges of the graph."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return [(int(one), int(other)) for one, other in pairs]


def build(edges: list[tuple[int, int]], rng: Random) -> Community:
    """The community on this graph; the same for the same seed."""
    friends: list[list[int]] = [[] for _ in range(1 + max(max(edge) for edge in edges))]
    for one, other in edges:
        friends[one].append(other)
        friends[other].append(one)
    follows = [(person, friend) for person, theirs in enumerate(friends) for friend in theirs]
    rng.shuffle(follows)
    activity = [rng.lognormvariate(0, ACTIVITY_SIGMA) * (1 + len(theirs)) ** 0.5 for theirs in friends]
    authors = rng.choices(range(len(friends)), activity, k=POSTS)
    posts = [Post(author, *words.post(rng)) for author in authors]
    draw = reactions(posts, friends, activity, rng)
    return Community(
        usernames=words.usernames(len(friends), rng),
        friends=friends,
        activity=activity,
        follows=follows,
        posts=posts,
        likes=draw(LIKES, lambda _: "", True),
        comments=draw(COMMENTS, lambda post: words.reply(post.topic, rng), False),
        shares=draw(SHARES, lambda _: words.share_note(rng) if rng.random() < WITH_NOTE else "", True),
    )


def reactions(
    posts: list[Post], friends: list[list[int]], activity: list[float], rng: Random
) -> Callable[[int, Callable[[Post], str], bool], list[Reaction]]:
    """A function that draws reactions by others than the author: how many, their content, and whether once a person."""
    everybody = range(len(friends))
    notice = list(accumulate(rng.lognormvariate(0, NOTICE_SIGMA) * (1 + len(friends[post.author])) for post in posts))
    of_all = list(accumulate(activity))
    of_friends = [list(accumulate(activity[friend] for friend in theirs)) for theirs in friends]

    def draw(count: int, content: Callable[[Post], str], once: bool) -> list[Reaction]:
        drawn: list[Reaction] = []
        seen: set[tuple[int, int]] = set()
        while len(drawn) < count:
            [index] = rng.choices(range(len(posts)), cum_weights=notice)
            author = posts[index].author
            if friends[author] and rng.random() < BY_FOLLOWERS:
                [person] = rng.choices(friends[author], cum_weights=of_friends[author])
            else:
                [person] = rng.choices(everybody, cum_weights=of_all)
            if person == author or (once and (person, index) in seen):
                continue
            seen.add((person, index))
            drawn.append(Reaction(person, index, content(posts[index])))
        return drawn

    return draw
