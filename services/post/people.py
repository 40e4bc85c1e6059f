"""What the post service asks the graph about people: who exists, and under which name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cachetools import TTLCache

from feedmesh.graph.v1 import graph_pb2
from runtime import errors

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

CACHE_S = 0.5
CACHED_PEOPLE = 50_000


class People:
    """Names of people, read from the graph service and kept for half a second."""

    def __init__(self, graph: GraphServiceAsyncStub) -> None:
        self._graph = graph
        self._names: TTLCache[int, str] = TTLCache(CACHED_PEOPLE, CACHE_S)

    async def names(self, user_ids: Iterable[int]) -> dict[int, str]:
        """Usernames by id of those people that exist. Raises Unavailable."""
        wanted = set(user_ids)
        found = {user_id: name for user_id in wanted if (name := self._names.get(user_id)) is not None}
        if lacking := wanted - found.keys():
            response = await self._graph.BatchGetUsers(graph_pb2.BatchGetUsersRequest(user_ids=lacking))
            fresh = {user.user_id: user.username for user in response.users}
            self._names.update(fresh)
            found.update(fresh)
        return found

    async def require(self, user_id: int) -> str:
        """The username of one person. Raises NotFound (USER_NOT_FOUND), Unavailable."""
        names = await self.names([user_id])
        if user_id not in names:
            raise errors.NotFound("USER_NOT_FOUND", f"there is no user {user_id}")
        return names[user_id]
