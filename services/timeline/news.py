"""What this replica hears of new and deleted posts: their authors' own posts are to be read anew.

A page goes by what is known of its viewer's own posts and has the post service confirm it (feed.py). That is exact
without any of this; but who has written costs a page made twice, and who is known to have written one read more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from redis.asyncio import Redis
from redis.exceptions import RedisError

from runtime import tail
from services.timeline.authors import Own

log = logging.getLogger(__name__)

TOPIC = "post"
INTERVAL_S = 0.1


@dataclass
class News:
    """Follows the topic of posts, round by round (`step`)."""

    events: Redis
    own: Own
    _position: tail.Position | None = field(default=None, init=False)

    async def step(self) -> bool:
        """One round: forgets what whoever wrote or deleted a post had written. True when there is more to read."""
        try:
            if self._position is None:
                self._position = await tail.begin(self.events, TOPIC)
                return False
            batch = await tail.read(self.events, self._position)
        except (tail.Gap, RedisError, OSError) as error:
            # What was missed is found out page by page.
            log.debug("news of posts are missed: %r", error)
            self._position = None
            return False
        self._position = batch.position
        for event in batch.events:
            if event.HasField("post_created"):
                self.own.forget(event.post_created.author_id)
            elif event.HasField("post_deleted"):
                self.own.forget(event.post_deleted.author_id)
        return batch.more
