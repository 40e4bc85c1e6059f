"""Fan-out: who has many followers makes nobody wait who has few, and each post comes to each follower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2
from launch.valkey import Running as Valkey
from services.timeline import deliver
from services.timeline.timelines import Ids, Kind, Rows, Timelines, home_key
from tests.fakes.databases import Databases
from tests.fakes.serving import GraphService
from tests.integration.timeline_stores import timeline_stores

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

FIRST, PAGE = 4, 8
BIG, SMALL = 20, 3


@dataclass(frozen=True)
class Watched(Timelines):
    """Timelines that remember what was pushed to home timelines: the authors and followers of each round."""

    rounds: list[list[tuple[int, int]]] = field(default_factory=list)

    async def push(self, kind: Kind, pushes: Sequence[tuple[Sequence[int] | Ids, Rows]]) -> int:
        if kind == "home":
            self.rounds.append([(rows[0][1], len(user_ids)) for user_ids, rows in pushes])
        return await super().push(kind, pushes)


async def test_who_has_few_followers_comes_first(
    databases: Databases, valkey: Valkey, graph_service: GraphService, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_service.stub

    async def join(number: int) -> int:
        request = graph_pb2.CreateUserRequest(username=f"p{number}", email=f"p{number}@example.org")
        return (await graph.CreateUser(request)).user.user_id

    people = [await join(number) for number in range(BIG + 4)]
    big, other, small, alone = people[-4:]
    followers = {big: people[:BIG], other: people[1:BIG], small: people[:SMALL], alone: list[int]()}
    for author, of in followers.items():
        for follower in of:
            await graph.Follow(graph_pb2.FollowRequest(follower_id=follower, following_id=author))
    monkeypatch.setattr(deliver, "FIRST_FOLLOWERS", FIRST)
    monkeypatch.setattr(deliver, "FOLLOWERS_PAGE", PAGE)
    async with timeline_stores(databases, valkey) as stores:
        fanout = await stores.fanout(graph, cast("PostServiceAsyncStub", None), limit=1000)
        watched = Watched(stores.client, 3600)
        for person in people:
            made = await watched.create(home_key(person), 1)
            await watched.fill(home_key(person), made.incarnation, np.empty((0, 3), dtype=np.int64), 0, 0)
        posts = {author: 1000 + at for at, author in enumerate(followers)}
        events = []
        for author, post in posts.items():
            fact: Any = event_pb2.PostCreated(post_id=post, author_id=author, original_id=post)
            events.append(event_pb2.Event(post_created=fact))
        await replace(fanout, timelines=watched).post_events(events)

        assert watched.rounds == [
            [(big, FIRST), (other, FIRST), (small, SMALL)],
            # From here on who has fewest left comes first, and what is left of a round is the next author's.
            [(other, PAGE)],
            [(other, BIG - 1 - FIRST - PAGE), (big, PAGE + 1)],
            [(big, BIG - FIRST - PAGE - 1)],
        ]
        for person in people:
            timeline = await watched.read(home_key(person))
            assert timeline is not None
            wanted = sorted((posts[author] for author, of in followers.items() if person in of), reverse=True)
            assert timeline.rows[:, 0].tolist() == wanted
