"""Fan-out: from an event to the timelines that it belongs into. May happen twice, late and in any order.

What an event claims is only where to look: the mode, the followers and their count are read now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2
from runtime import errors, members, postgres
from services.timeline import metrics, store
from services.timeline.epoch import Guard, UnusableError
from services.timeline.facts import acts_of
from services.timeline.modes import FOLLOWERS_PAGE, Transitions
from services.timeline.timelines import Ids, Timelines, author_key, home_key

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

Rows = list[tuple[int, int, int]]

FIRST_FOLLOWERS = 500
"""Followers of each author that are read together with how many there are: mostly these are all."""
PAGED_AUTHORS = 64
"""Authors whose followers are read at once."""
MOST_FOLLOWERS = 80_000
"""Followers that are read at once."""
MOST_LISTED = 10_000
"""Of one author."""


class Place(NamedTuple):
    """Where the reading of an author's followers stands."""

    author_id: int
    before: int
    """The follow below which the next page begins; 0 for the first."""
    left: int
    """About how many followers are left, at least 1; of a first page how many are asked for."""


@dataclass(frozen=True)
class Fanout:
    """The handlers of both topics."""

    pool: postgres.Pool
    guard: Guard
    timelines: Timelines
    graph: GraphServiceAsyncStub
    transitions: Transitions
    notes_acts: bool = False
    """Whether there is a webhook, so that what concerns people is noted for it."""

    async def post_events(self, events: Sequence[event_pb2.Event]) -> None:
        """Puts new posts into their author's timeline and pushes them to active followers, unless they are pulled.

        And forgets authors who were erased.

        Raises RedisError, psycopg.Error, Unavailable.
        """
        self.require_redis()
        await self._note(events)
        by_author: dict[int, Rows] = {}
        for event in events:
            if event.HasField("author_erased"):
                await self.forget(event.author_erased.user_id)
            if event.HasField("post_created"):
                made = event.post_created
                by_author.setdefault(made.author_id, []).append((made.post_id, made.author_id, made.original_id))
        if not by_author:
            return
        # Modes are read after the events were claimed and not from a cache: see modes.py.
        modes, limit = await self.transitions.modes(list(by_author))
        for author_id, rows in by_author.items():
            metrics.FANOUT_POSTS.labels(modes.get(author_id, "push")).inc(len(rows))
        followers, _ = await together(
            self.push(by_author, {author_id for author_id, mode in modes.items() if mode == "pull"}),
            self.timelines.push("author", [([author_id], rows) for author_id, rows in by_author.items()]),
        )
        await self.transitions.consider(followers, modes, limit)

    async def graph_events(self, events: Sequence[event_pb2.Event]) -> None:
        """Looks whether those who won or lost a follower are to be pushed or pulled. Lists are the next read's work."""
        self.require_redis()
        await self._note(events)
        changed = {event.follow_changed.following_id for event in events if event.HasField("follow_changed")}
        if changed:
            await self.transitions.look_at(sorted(changed))

    async def _note(self, events: Sequence[event_pb2.Event]) -> None:
        if self.notes_acts and (acts := [act for event in events for act in acts_of(event)]):
            await store.note_deliveries(self.pool, acts)

    async def forget(self, user_id: int) -> None:
        """Takes everything of an erased person out of Redis and the database; Postgres has nothing of them by now.

        Looks through all home timelines: whoever once followed may still have members that name them.
        """
        await postgres.transact(self.pool, lambda connection: store.forget_author(connection, user_id))
        await postgres.transact(self.pool, lambda connection: store.forget_mark(connection, user_id))
        await postgres.transact(self.pool, lambda connection: store.forget_deliveries(connection, user_id))
        await self.timelines.drop([home_key(user_id), author_key(user_id)])
        async for key, timeline in self.timelines.homes():
            named = timeline.rows[timeline.rows[:, 1] == user_id]
            if len(named):
                await self.timelines.mend(key, timeline.incarnation, removed=named, added=())

    def require_redis(self) -> None:
        """Lets events wait while Redis cannot be used or is another mesh's. Raises Unavailable."""
        try:
            _ = self.guard.epoch
        except UnusableError as error:
            raise errors.Unavailable(str(error)) from None

    async def push(self, by_author: Mapping[int, Rows], pulled: Collection[int]) -> dict[int, int]:
        """Pushes authors' posts to all of their followers that have a home timeline; not those of who is pulled.

        How many followers each author has. The newest followers of everybody come first, then who has fewest left, so
        that nobody waits for an author who has many. Of those who have many ever more go together: who follows several
        of them gets their posts in one step.
        """
        counts: dict[int, int] = {}
        # Of who is pulled only the count is wanted.
        places = [Place(author_id, 0, 1 if author_id in pulled else FIRST_FOLLOWERS) for author_id in by_author]
        pages, room = await self._pages(places, PAGED_AUTHORS * FIRST_FOLLOWERS, counts, pulled), FOLLOWERS_PAGE
        while pages:
            pushes = [(follower_ids, by_author[author_id]) for author_id, follower_ids in pages]
            pushes = [each for each in pushes if len(each[0])]
            metrics.DELIVERIES_TRIED.inc(sum(len(follower_ids) * len(rows) for follower_ids, rows in pushes))
            # The next followers are read while these are pushed to.
            found, pages = await together(
                self.timelines.push("home", pushes), self._pages(places, room, counts, pulled)
            )
            metrics.DELIVERIES.inc(found)
            room = min(2 * room, MOST_FOLLOWERS)
        return counts

    async def _pages(
        self, places: list[Place], room: int, counts: dict[int, int], pulled: Collection[int]
    ) -> list[tuple[int, Ids]]:
        """The next followers, about `room` of the first authors: none of who is pulled. `places` goes on, and counts of
        followers are added to `counts`. Nothing once all have been read."""
        asked: list[Place] = []
        request = graph_pb2.BatchListFollowerIdsRequest()
        while places and room and len(asked) < PAGED_AUTHORS:
            asked.append(place := places.pop(0))
            limit = min(place.left, room, MOST_LISTED)
            room -= limit
            request.items.add(user_id=place.author_id, before_follow_id=place.before, limit=limit)
        if not asked:
            return []
        answer = await self.graph.BatchListFollowerIds(request)
        pages = []
        for place, item, page in zip(asked, request.items, answer.items, strict=True):
            author_id = place.author_id
            left = place.left
            if not place.before:
                left = counts[author_id] = page.followers
            if author_id in pulled:
                page.ClearField("packed_follower_ids")
            elif page.next_follow_id:
                places.append(Place(author_id, page.next_follow_id, max(1, left - item.limit)))
            pages.append((author_id, members.unpack_ids(page.packed_follower_ids)))
        places.sort(key=lambda place: (place.before > 0, place.left))
        return pages


async def together(*work: Awaitable[Any]) -> list[Any]:
    """What all of them give. Raises what the first in the order raises that fails, once none is running any more."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found
