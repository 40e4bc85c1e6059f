"""What the post service asks the graph about people: who exists, under which name, and whose account is private.

What the graph told of somebody holds until it tells that they changed, which is asked for four times a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from feedmesh.graph.v1 import graph_pb2
from runtime import errors
from runtime.coalesce import Coalescer
from services.post import metrics

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

FRESH_S = 0.25
"""How old what is known may be."""
STALE_S = 60.0
"""How old it may be while the graph cannot be reached."""
SHOWN_TIMEOUT_S = 1.0
"""How long what is shown waits for its names before it goes without."""
ASKED_PEOPLE = 10_000
"""People of one call."""
CACHED_PEOPLE = 100_000
"""0.2 KB each."""


class Person(NamedTuple):
    """Someone, as others see them."""

    name: str
    private: bool


class People:
    """People, read from the graph: as of a quarter of a second ago, and of a minute ago where it is not there."""

    def __init__(self, graph: GraphServiceAsyncStub, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._graph = graph
        self._timer = timer
        # In the order in which they were told of.
        self._known: dict[int, Person] = {}
        self._version = 0
        self._as_of = -math.inf
        # Who changed while a question was under way, by the question; None for anybody.
        self._changed: dict[object, set[int] | None] = {}
        # One look at the changes serves all who wait for it.
        self._looks = Coalescer("user_changes", self._look, max_weight=1_000_000, in_flight=1)
        self._questions = Coalescer("users", self._ask_together, max_weight=ASKED_PEOPLE, weigh=len)

    async def of(self, user_ids: Iterable[int], *, anew: bool = False) -> dict[int, Person | None]:
        """What is known of people (at most 10,000), None of those that do not exist.

        With `anew` the graph is asked in any case, so that the time does not tell who was known.
        While the graph cannot be reached, of those that it told of within the last minute; the others lack.
        """
        wanted = set(user_ids)
        try:
            await self._renew()
            found: dict[int, Person | None] = {} if anew else dict(self._remembered(wanted))
            if lacking := wanted - found.keys():
                told = await self._questions(lacking)
                found |= {user_id: told.get(user_id) for user_id in lacking}
        except errors.Unavailable:
            stale = self._remembered(wanted) if self._timer() - self._as_of < STALE_S else {}
            metrics.STALE_NAMES.inc(len(stale))
            return dict(stale)
        return found

    async def require(self, user_id: int) -> str:
        """The username of one person who does something. Raises NotFound (USER_NOT_FOUND), Unavailable."""
        found = await self.there([user_id])
        if user_id not in found:
            raise not_found(user_id)
        return found[user_id].name

    async def there(self, user_ids: Iterable[int]) -> dict[int, Person]:
        """Those of the people (at most 10,000) that exist, who do something. Raises Unavailable."""
        wanted = set(user_ids)
        await self._renew()
        found = self._remembered(wanted)
        lacking = wanted - found.keys()
        return found | await self._questions(lacking) if lacking else found

    def _remembered(self, user_ids: Iterable[int]) -> dict[int, Person]:
        known = self._known
        return {user_id: known[user_id] for user_id in user_ids if user_id in known}

    async def _renew(self) -> None:
        """Sees to it that what is known is fresh. Raises Unavailable."""
        if self._timer() - self._as_of >= FRESH_S:
            await self._looks(None)

    async def _look(self, callers: Sequence[None]) -> list[None]:
        """Forgets whoever changed."""
        asked = self._timer()
        if asked - self._as_of >= FRESH_S:  # nobody was faster
            request = graph_pb2.ListUserChangesRequest(after_version=self._version)
            response = await self._graph.ListUserChanges(request, timeout=SHOWN_TIMEOUT_S)
            # A version of before is that of a database that was put back.
            if response.many or response.version < self._version:
                self._known.clear()
                self._changed = dict.fromkeys(self._changed)
            for user_id in response.user_ids:
                self._known.pop(user_id, None)
            for changed in self._changed.values():
                if changed is not None:
                    changed.update(response.user_ids)
            self._version, self._as_of = response.version, asked
        return [None] * len(callers)

    async def _ask_together(self, many: Sequence[Collection[int]]) -> list[dict[int, Person]]:
        """Those people that exist, as the graph has them. Raises Unavailable."""
        wanted = {user_id for user_ids in many for user_id in user_ids}
        question = object()
        self._changed[question] = set()
        try:
            request = graph_pb2.BatchGetUsersRequest(user_ids=wanted)
            response = await self._graph.BatchGetUsers(request, timeout=SHOWN_TIMEOUT_S)
        finally:
            changed = self._changed.pop(question)
        told = {user.user_id: Person(user.username, user.private) for user in response.users}
        if changed is not None:
            # An answer may be older than a change that was told of meanwhile.
            self._known |= {user_id: person for user_id, person in told.items() if user_id not in changed}
            while len(self._known) > CACHED_PEOPLE:
                del self._known[next(iter(self._known))]
        return [{user_id: told[user_id] for user_id in user_ids if user_id in told} for user_ids in many]


def not_found(user_id: int) -> errors.NotFound:
    """There is no such person, or none for who asks."""
    return errors.NotFound("USER_NOT_FOUND", f"there is no user {user_id}")
