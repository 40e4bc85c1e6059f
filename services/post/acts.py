"""Batches of what people do: who they are and what they may see is asked once for all, and one transaction does it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message

from runtime import errors, idempotency, validation
from runtime.postgres import Connection, Pool
from services.post import people, store
from services.post.hydrate import not_found
from services.post.sight import Sights

M = TypeVar("M", bound=Message)
MAX_BATCH = 64
"""Acts of one batch."""


class Act(NamedTuple):
    """What someone does."""

    request: Any
    """It has a `user_id`, and a `post_id` where it is done to a post."""
    username: str
    """The actor's, where it is needed."""
    on: store.Target | None
    """The post that it is done to; None where the actor could not see it just now, and where it is done to none."""


async def perform(
    pool: Pool,
    sights: Sights,
    requests: Sequence[Any],
    response: type[M],
    work: Callable[[Connection, list[Act]], Awaitable[Sequence[M | errors.Error]]],
    *,
    named: bool = True,
) -> list[M | errors.Error]:
    """Does what each request asks for, or says why not: one that fails does not fail the others.

    `work` does it in a transaction, as in `idempotency.write_all`. Without `named` it is not told who the actors are;
    then it must be something done to posts. Raises Unavailable.
    """
    results: dict[int, M | errors.Error] = {
        place: errors.InvalidArgument(*wrong)
        for place, request in enumerate(requests)
        if (wrong := validation.violations(request))
    }
    valid = {place: request for place, request in enumerate(requests) if place not in results}
    of_posts = [request for request in valid.values() if "post_id" in request.DESCRIPTOR.fields_by_name]
    found, known = await asyncio.gather(
        sights.targets(pool, [(request.user_id, request.post_id) for request in of_posts]),
        sights.people.there({request.user_id for request in valid.values()} if named else ()),
    )
    if not named and any(sight.kept for _, sight in found):
        raise errors.Unavailable("the graph cannot be reached")
    # Who has relations is there, too.
    names = (
        {user_id: person.name for user_id, person in known.items()}
        if named
        else {sight.viewer_id: "" for _, sight in found if sight.relation is not None}
    )
    targets = [target for target, _ in found] if of_posts else [None] * len(valid)
    acts: dict[int, Act] = {}
    for (place, request), target in zip(valid.items(), targets, strict=True):
        if request.user_id in names:
            acts[place] = Act(request, names[request.user_id], target)
        else:
            results[place] = people.not_found(request.user_id)
    places = list(acts)
    if places:
        done = await idempotency.write_all(
            pool,
            [act.request for act in acts.values()],
            [act.request.user_id for act in acts.values()],
            response,
            lambda connection, some: work(connection, [acts[places[at]] for at in some]),
        )
        results |= zip(places, done, strict=True)
    return [results[place] for place in range(len(requests))]


async def still(connection: Connection, acts: Sequence[Act]) -> list[store.Target | errors.NotFound]:
    """What each act on a post goes to, or that the post is not there, or not for the actor.

    In the acts' transaction, where a repeated request gets its first answer whatever may be seen by now.
    """
    wanted = {post_id for act in acts if act.on is not None for post_id in (act.request.post_id, act.on.post_id)}
    there = await store.undeleted(connection, wanted)
    return [
        act.on
        if act.on is not None and there.issuperset((act.request.post_id, act.on.post_id))
        else not_found(act.request.post_id)
        for act in acts
    ]
