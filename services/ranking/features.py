"""Where the features of candidates come from: ids carry the age, the memory engagement and affinity, or else the post
service, which is asked once for all that the memory does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from feedmesh.post.v1 import post_pb2
from runtime import ids
from runtime.clock import Clock
from runtime.members import Members
from services.ranking import metrics
from services.ranking.affinities import Affinity, affinity, weights
from services.ranking.columns import NOTHING, Flags, Table, engagement
from services.ranking.formula import Features
from services.ranking.memory import Memory

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

HOUR_MS = 3_600_000

Viewer = tuple[int, slice]
"""A viewer's id, and which of the candidates are this viewer's."""


async def gather(
    post: PostServiceAsyncStub, clock: Clock, memory: Memory, viewers: Sequence[Viewer], candidates: Members
) -> Features:
    """The features of all viewers' candidates, in their order. Raises Unavailable."""
    now_ms = clock()
    fresh = memory.fresh()
    # A plain share is as engaging as its original.
    table, unknown = (memory.columns if fresh else NOTHING).gather(candidates[:, 2], now_ms)
    affinities = [memory.affinities.get(viewer_id) if fresh else None for viewer_id, _ in viewers]
    if None in affinities or unknown.any():
        await ask(post, memory, viewers, candidates, table, unknown, affinities)

    made_ms = (candidates[:, 0] >> ids.SEQUENCE_BITS) + ids.EPOCH_MS
    return Features(
        age_h=(now_ms - made_ms) / HOUR_MS,
        likes=table[:, 0],
        comments=table[:, 1],
        shares=table[:, 2],
        heat=table[:, 3],
        affinity=weights(
            [known for known in affinities if known],
            np.repeat(np.arange(len(viewers)), [part.stop - part.start for _, part in viewers]),
            candidates[:, 1],
        ),
    )


async def ask(
    post: PostServiceAsyncStub,
    memory: Memory,
    viewers: Sequence[Viewer],
    candidates: Members,
    table: Table,
    unknown: Flags,
    affinities: list[Affinity | None],
) -> None:
    """Fills in from the post service what the memory did not know: `table` where `unknown`, `affinities` where None."""
    fresh = memory.fresh()
    places = [at for at, (_, part) in enumerate(viewers) if affinities[at] is None or unknown[part].any()]
    tickets = {at: memory.affinities.ask(viewers[at][0]) for at in places if fresh and affinities[at] is None}
    request = post_pb2.BatchGetEngagementRequest()
    for at in places:
        viewer_id, part = viewers[at]
        # Nobody's affinities cost nothing.
        request.items.add(
            viewer_id=viewer_id if affinities[at] is None else 0, post_ids=candidates[part, 2][unknown[part]].tolist()
        )
    metrics.ASKED.labels("horizon" if fresh and memory.columns is not NOTHING else "no_memory").inc(int(unknown.sum()))
    metrics.ASKED.labels("viewer").inc(affinities.count(None))

    response = await post.BatchGetEngagement(request)
    for at, item in zip(places, response.items, strict=True):
        viewer_id, part = viewers[at]
        table[part][unknown[part]] = engagement(item)
        if affinities[at] is None:
            affinities[at] = answer = affinity(item)
            if at in tickets:
                memory.affinities.keep(viewer_id, tickets[at], answer)
