"""What the post service asks the graph about people: who exists, under which name, and whose account is private."""

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


class Person(NamedTuple):
    """Someone, and when the graph said so."""

    name: str
    private: bool
    at_s: float


class People:
    """People, read from the graph: fresh for half a second, and used for a minute where it is not there."""

    def __init__(self, graph: GraphServiceAsyncStub, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._graph = graph
        self._timer = timer
        self._known: TTLCache[int, Person] = TTLCache(CACHED_PEOPLE, STALE_S, timer)

    async def of(self, user_ids: Iterable[int]) -> dict[int, Person | None]:
        """What is known of people, None of those that do not exist.

        While the graph cannot be reached, of those that it told of within the last minute; the others lack.
        """
        wanted = set(user_ids)
        found: dict[int, Person | None] = dict(self._remembered(wanted, FRESH_S))
        if lacking := wanted - found.keys():
            try:
                told = await self._ask(lacking, SHOWN_TIMEOUT_S)
                found |= {user_id: told.get(user_id) for user_id in lacking}
            except errors.Unavailable:
                stale = self._remembered(lacking, STALE_S)
                metrics.STALE_NAMES.inc(len(stale))
                found |= stale
        return found

    async def require(self, user_id: int) -> str:
        """The username of one person who does something. Raises NotFound (USER_NOT_FOUND), Unavailable."""
        found = self._remembered([user_id], FRESH_S) or await self._ask([user_id])
        if user_id not in found:
            raise not_found(user_id)
        return found[user_id].name

    def _remembered(self, user_ids: Iterable[int], age_s: float) -> dict[int, Person]:
        """Those people that the graph told of within the last `age_s` seconds."""
        since_s = self._timer() - age_s
        known = ((user_id, self._known.get(user_id)) for user_id in user_ids)
        return {user_id: person for user_id, person in known if person is not None and person.at_s > since_s}

    async def _ask(self, user_ids: Iterable[int], timeout_s: float | None = None) -> dict[int, Person]:
        """Those people that exist, as the graph has them. Raises Unavailable."""
        request = graph_pb2.BatchGetUsersRequest(user_ids=user_ids)
        asked_s = self._timer()
        response = await self._graph.BatchGetUsers(request, timeout=timeout_s)
        told = {user.user_id: Person(user.username, user.private, asked_s) for user in response.users}
        self._known.update(told)
        for user_id in set(request.user_ids) - told.keys():
            self._known.pop(user_id, None)
        return told


def not_found(user_id: int) -> errors.NotFound:
    """There is no such person, or none for who asks."""
    return errors.NotFound("USER_NOT_FOUND", f"there is no user {user_id}")
