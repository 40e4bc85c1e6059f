"""Fan-out: from an event to the timelines that it belongs into. May happen twice, late and in any order.

What an event claims is only where to look: the mode, the followers and their count are read now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2
from runtime import errors, postgres
from services.timeline import metrics, store
from services.timeline.epoch import Guard, UnusableError
from services.timeline.modes import FOLLOWERS_PAGE, Transitions
from services.timeline.timelines import Timelines, author_key, home_key

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

Rows = list[tuple[int, int, int]]

PAGED_AUTHORS = 50
"""Authors whose followers are read at once."""


@dataclass(frozen=True)
class Fanout:
    """The handlers of both topics."""

    pool: postgres.Pool
    guard: Guard
    timelines: Timelines
    graph: GraphServiceAsyncStub
    transitions: Transitions

    async def post_events(self, events: Sequence[event_pb2.Event]) -> None:
        """Puts new posts into their author's timeline and pushes them to active followers, unless they are pulled.

        And forgets authors who were erased.

        Raises RedisError, psycopg.Error, Unavailable.
        """
        self.require_redis()
        by_author: dict[int, Rows] = {}
        for event in events:
            if event.HasField("author_erased"):
                await self.forget(event.author_erased.user_id)
            if event.HasField("post_created"):
                made = event.post_created
                by_author.setdefault(made.author_id, []).append((made.post_id, made.author_id, made.original_id))
        if not by_author:
            return
        # Read after the events were claimed and not from a cache: see modes.py.
        modes = await store.modes(self.pool, list(by_author))
        for author_id, rows in by_author.items():
            metrics.FANOUT_POSTS.labels(modes.get(author_id, "push")).inc(len(rows))
        await self.timelines.push(([author_key(author_id)], rows) for author_id, rows in by_author.items())
        await self.push({author: rows for author, rows in by_author.items() if modes.get(author) != "pull"})
        await self.transitions.consider(list(by_author))

    async def graph_events(self, events: Sequence[event_pb2.Event]) -> None:
        """Looks whether those who won or lost a follower are to be pushed or pulled. Lists are the next read's work."""
        self.require_redis()
        changed = {event.follow_changed.following_id for event in events if event.HasField("follow_changed")}
        if changed:
            await self.transitions.consider(sorted(changed))

    async def forget(self, user_id: int) -> None:
        """Takes everything of an erased person out of Redis and the database; Postgres has nothing of them by now.

        Looks through all home timelines: whoever once followed may still have members that name them.
        """
        await postgres.transact(self.pool, lambda connection: store.forget_author(connection, user_id))
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

    async def push(self, by_author: dict[int, Rows]) -> None:
        """Pushes authors' posts to all of their followers that have a home timeline."""
        places = dict.fromkeys(by_author, 0)
        while places:
            # Pages of many authors at once, then with few followers each: an answer has a bound.
            some = list(places.items())[:PAGED_AUTHORS]
            request = graph_pb2.BatchListFollowerIdsRequest()
            for author_id, before in some:
                request.items.add(user_id=author_id, before_follow_id=before, limit=FOLLOWERS_PAGE // len(some))
            answer = await self.graph.BatchListFollowerIds(request)
            pushes = []
            for (author_id, _), page in zip(some, answer.items, strict=True):
                rows = by_author[author_id]
                pushes.append((map(home_key, page.follower_ids), rows))
                metrics.DELIVERIES_TRIED.inc(len(page.follower_ids) * len(rows))
                if page.next_follow_id:
                    places[author_id] = page.next_follow_id
                else:
                    del places[author_id]
            metrics.DELIVERIES.inc(await self.timelines.push(pushes))
