"""The use case of ranking: the order in which a viewer wants to read candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feedmesh.ranking.v1 import ranking_pb2 as pb
from runtime import members
from runtime.clock import Clock
from services.ranking.features import gather
from services.ranking.formula import score

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub


async def rank(post: PostServiceAsyncStub, clock: Clock, request: pb.BatchRankRequest) -> pb.BatchRankResponse:
    """The order of each item's candidates, best first; of equals the newer first. Raises Unavailable."""
    viewers = [(item.viewer_id, members.unpack(item.candidates)) for item in request.items]
    response = pb.BatchRankResponse()
    for (_, candidates), features in zip(viewers, await gather(post, clock, viewers), strict=True):
        # lexsort sorts by its last key first.
        response.items.add(order=np.lexsort((-candidates[:, 0], -score(features))).tolist())
    return response
