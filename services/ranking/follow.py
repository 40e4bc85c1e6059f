"""Keeps ranking's memory up to date: reads what happened, then reads anew what it touched.

    topic `post` (runtime/tail.py) → touched posts → post.BatchGetEngagement → columns
                                   → viewers who did something → their affinities are dropped

Events only name what to read anew, so it matters neither how often one comes nor in which order, and a post that
thousands like at once is read once a round. Where events may have been missed, the memory answers for nothing until it
is read anew as a whole.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.asyncio import Redis
from redis.exceptions import RedisError

from feedmesh.event.v1 import event_pb2
from feedmesh.post.v1 import post_pb2
from runtime import errors, ids, tail
from runtime import metrics as runtime_metrics
from runtime.clock import Clock
from services.ranking import metrics
from services.ranking.columns import NOTHING, Columns, engagement
from services.ranking.memory import Memory

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

log = logging.getLogger(__name__)

TOPIC = "post"
INTERVAL_S = 0.1
BATCH = 500
"""Touched posts that one call reads."""
BATCH_TIMEOUT_S = 1.0
"""Below memory.FRESH_S: where the post service is slow, the memory is best left in use."""
PAGE = 2_000
"""Posts that one call reads while the memory is read anew."""
PAGE_TIMEOUT_S = 5.0
"""Below relay.KEEP_MS: events are read between two pages."""
MAX_TOUCHED = 100_000
"""With more posts waiting than this, all are read anew."""


@dataclass
class Follower:
    """Fills a memory, round by round (`step`)."""

    events: Redis
    post: PostServiceAsyncStub
    clock: Clock
    memory: Memory
    _position: tail.Position | None = field(default=None, init=False)
    _touched: set[int] = field(default_factory=set, init=False)
    _columns: Columns = field(default=NOTHING, init=False)
    """What is kept up to date: the memory's columns, or those that are to be when they are whole."""
    _before: int | None = field(default=None, init=False)
    """While the columns are read as a whole: the last post that was."""
    _trouble: str = field(default="", init=False)

    async def step(self) -> bool:
        """One round: reads the events, and calls the post service once at the most. True when there is more to do."""
        trouble, more = "", False
        try:
            more = await self._read_events()
            more = await self._read_posts() or more
        except tail.Gap as gap:
            trouble = f"its memory must be read anew: {gap}"
            self._forget()
        except (RedisError, OSError) as error:
            # The memory stays. Once Redis is back, the next look tells whether something was missed.
            trouble = f"Redis cannot be used: {error}"
        except errors.Error as error:
            trouble = f"posts cannot be read: {error.message}"
        self._report(trouble)
        return more and not trouble

    async def _read_events(self) -> bool:
        began = time.monotonic()
        if self._position is None:
            self._position = await tail.begin(self.events, TOPIC)
            self._columns, self._before = Columns(), 0
            more = False
        else:
            batch = await tail.read(self.events, self._position)
            self._position, more = batch.position, batch.more
            for event in batch.events:
                self._note(event)
        if not more:
            self.memory.looked_at = began
        return more

    def _note(self, event: event_pb2.Event) -> None:
        post_ids, user_id = concerns(event)
        self._touched.update(post_id for post_id in post_ids if post_id > self._columns.horizon)
        self.memory.affinities.drop(user_id)
        if event.HasField("author_erased"):
            self.memory.affinities.forget(event.author_erased.user_id)
        if len(self._touched) > MAX_TOUCHED:
            raise tail.Gap("more posts changed than are read one by one")

    async def _read_posts(self) -> bool:
        if self._before is not None:
            await self._read_page(self._before)
        elif self._touched:
            await self._read_touched()
        waiting = self._before is not None or bool(self._touched)
        if not waiting and self.memory.columns is not self._columns:
            # Whole: what was touched while the pages were read has been read again since.
            self.memory.columns = self._columns
            metrics.REBUILDS.inc()
        return waiting

    async def _read_page(self, before: int) -> None:
        now_ms = self.clock()
        request = post_pb2.ListEngagementRequest(before_post_id=before, limit=PAGE)
        page = await self.post.ListEngagement(request, timeout=PAGE_TIMEOUT_S)
        self._columns.store(page.post_ids, engagement(page), now_ms)
        # Where there are more than the columns hold, the horizon has risen to what was read.
        ended = len(page.post_ids) < PAGE or page.post_ids[-1] <= self._columns.horizon
        self._before = None if ended else page.post_ids[-1]

    async def _read_touched(self) -> None:
        post_ids = list(itertools.islice(self._touched, BATCH))
        now_ms = self.clock()
        request = post_pb2.BatchGetEngagementRequest()
        request.items.add(post_ids=post_ids)
        response = await self.post.BatchGetEngagement(request, timeout=BATCH_TIMEOUT_S)
        self._columns.store(post_ids, engagement(response.items[0]), now_ms)
        self._touched.difference_update(post_ids)

    def _forget(self) -> None:
        self.memory.forget()
        self._position, self._columns, self._before = None, NOTHING, None
        self._touched.clear()

    def _report(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log.log(logging.WARNING if trouble else logging.INFO, "ranking: %s", trouble or "its memory is kept again")
        runtime_metrics.REDIS_USABLE.set(self.memory.fresh())
        metrics.TOUCHED.set(len(self._touched))
        metrics.POSTS.set(len(self._columns))
        covers = self.memory.columns is not NOTHING
        metrics.REACH.set((self.clock() - ids.time_ms(self._columns.horizon)) / 1000 if covers else 0)


def concerns(event: event_pb2.Event) -> tuple[tuple[int, ...], int]:
    """The posts whose counts an event changed, and whose affinities; 0 for none."""
    fact = event.WhichOneof("fact")
    if fact == "like_changed":
        return (event.like_changed.post_id,), event.like_changed.user_id
    if fact == "comment_created":
        return (event.comment_created.post_id,), event.comment_created.user_id
    if fact == "comment_deleted":
        return (event.comment_deleted.post_id,), event.comment_deleted.user_id
    if fact == "post_created" and (shared := event.post_created.shared_post_id):
        return (shared,), event.post_created.author_id
    if fact == "post_deleted":
        gone = event.post_deleted
        return (gone.post_id, gone.shared_post_id), gone.author_id if gone.shared_post_id else 0
    return (), 0
