"""What the post service asks the graph about people: who exists, and under which name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from cachetools import TTLCache

from feedmesh.graph.v1 import graph_pb2
from runtime import errors
from services.post import metrics

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

FRESH_S = 0.5
STALE_S = 60.0
SHOWN_TIMEOUT_S = 1.0
"""How long what is shown waits for its names before it goes without."""
CACHED_PEOPLE = 50_000


class Known(NamedTuple):
    """A name, and when the graph said it."""

    name: str
    at_s: float


class People:
    """Names of people, read from the graph: fresh for half a second, and shown for a minute where it is not there."""

    def __init__(self, graph: GraphServiceAsyncStub, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._graph = graph
        self._timer = timer
        self._known: TTLCache[int, Known] = TTLCache(CACHED_PEOPLE, STALE_S, timer)

    async def names(self, user_ids: Iterable[int]) -> dict[int, str]:
        """Usernames by id of those people that exist: what is shown.

        While the graph cannot be reached, those that it gave within the last minute; the others lack.
        """
        wanted = set(user_ids)
        found = self._remembered(wanted, FRESH_S)
        if lacking := wanted - found.keys():
            try:
                found |= await self._ask(lacking, SHOWN_TIMEOUT_S)
            except errors.Unavailable:
                stale = self._remembered(lacking, STALE_S)
                metrics.STALE_NAMES.inc(len(stale))
                found |= stale
        return found

    async def require(self, user_id: int) -> str:
        """The username of one person who does something. Raises NotFound (USER_NOT_FOUND), Unavailable."""
        found = self._remembered([user_id], FRESH_S) or await self._ask([user_id])
        if user_id not in found:
            raise errors.NotFound("USER_NOT_FOUND", f"there is no user {user_id}")
        return found[user_id]

    def _remembered(self, user_ids: Iterable[int], age_s: float) -> dict[int, str]:
        """Those names that the graph gave within the last `age_s` seconds."""
        since_s = self._timer() - age_s
        known = ((user_id, self._known.get(user_id)) for user_id in user_ids)
        return {user_id: entry.name for user_id, entry in known if entry is not None and entry.at_s > since_s}

    async def _ask(self, user_ids: Iterable[int], timeout_s: float | None = None) -> dict[int, str]:
        """The names as the graph has them. Raises Unavailable."""
        request = graph_pb2.BatchGetUsersRequest(user_ids=user_ids)
        response = await self._graph.BatchGetUsers(request, timeout=timeout_s)
        names = {user.user_id: user.username for user in response.users}
        now_s = self._timer()
        self._known.update({user_id: Known(name, now_s) for user_id, name in names.items()})
        return names
