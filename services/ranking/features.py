"""Where the features of candidates come from: ids carry the age, the post service knows the engagement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from feedmesh.post.v1 import post_pb2
from runtime import ids
from runtime.clock import Clock
from runtime.members import Members
from services.ranking.formula import Features

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

HOUR_MS = 3_600_000


async def gather(post: PostServiceAsyncStub, clock: Clock, viewers: Sequence[tuple[int, Members]]) -> list[Features]:
    """The features of each viewer's candidates, in their order. Raises Unavailable."""
    response = await post.BatchGetEngagement(
        post_pb2.BatchGetEngagementRequest(
            items=[
                # A plain share is as engaging as its original.
                post_pb2.BatchGetEngagementRequest.Item(viewer_id=viewer_id, post_ids=candidates[:, 2].tolist())
                for viewer_id, candidates in viewers
            ]
        )
    )
    now_ms = clock()
    return [features(now_ms, candidates, item) for (_, candidates), item in zip(viewers, response.items, strict=True)]


def features(now_ms: int, candidates: Members, item: post_pb2.BatchGetEngagementResponse.Item) -> Features:
    """The columns of one viewer's candidates."""
    affinity = dict(zip(item.affinity_author_ids, item.affinities, strict=True))
    made_ms = (candidates[:, 0] >> ids.SEQUENCE_BITS) + ids.EPOCH_MS
    return Features(
        age_h=(now_ms - made_ms) / HOUR_MS,
        likes=np.array(item.likes, dtype=np.float64),
        comments=np.array(item.comments, dtype=np.float64),
        shares=np.array(item.shares, dtype=np.float64),
        heat=np.array(item.heat, dtype=np.float64),
        affinity=np.array([affinity.get(author_id, 0.0) for author_id in candidates[:, 1].tolist()]),
    )
