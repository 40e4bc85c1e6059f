"""The use case of ranking: the order in which a viewer wants to read candidates, and what it comes from."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from feedmesh.ranking.v1 import ranking_pb2 as pb
from runtime import members
from runtime.clock import Clock
from services.ranking.features import gather
from services.ranking.formula import Column, score
from services.ranking.memory import Memory
from services.ranking.places import Ids

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub


async def rank(
    post: PostServiceAsyncStub, clock: Clock, memory: Memory, request: pb.BatchRankRequest
) -> pb.BatchRankResponse:
    """The order of each item's candidates, best first; of equals the newer first. Raises Unavailable."""
    # All viewers' candidates as one array: a step of numpy costs much the same for one viewer as for many.
    candidates = members.unpack(b"".join(item.candidates for item in request.items))
    counts = [len(item.candidates) // members.MEMBER_BYTES for item in request.items]
    parts = [slice(*bounds) for bounds in itertools.pairwise(itertools.accumulate(counts, initial=0))]
    viewers = [(item.viewer_id, part) for item, part in zip(request.items, parts, strict=True)]
    negated = score(await gather(post, clock, memory, viewers, candidates))
    np.negative(negated, out=negated)
    return pb.BatchRankResponse(
        items=[
            pb.BatchRankResponse.Item(order=order(negated[part], candidates[part, 0]).astype(">u2").tobytes())
            for part in parts
        ]
    )


def order(keys: Column, post_ids: Ids) -> npt.NDArray[np.intp]:
    """The places of keys from the least on; of equal ones the newer post first. Shape as given."""
    places = np.argsort(keys)
    ordered = keys[places]
    # Seldom: a sort by two keys costs several times as much.
    return np.lexsort((-post_ids, keys)) if (ordered[1:] == ordered[:-1]).any() else places


async def explain(
    post: PostServiceAsyncStub, clock: Clock, memory: Memory, request: pb.ExplainRankRequest
) -> pb.ExplainRankResponse:
    """What each candidate is ranked by. Raises Unavailable."""
    candidates = members.unpack(request.candidates)
    features = await gather(post, clock, memory, [(request.viewer_id, slice(0, len(candidates)))], candidates)
    columns = (
        score(features),
        features.age_h,
        features.likes,
        features.comments,
        features.shares,
        features.heat,
        features.affinity,
    )
    return pb.ExplainRankResponse(
        ranks=[
            pb.Rank(
                score=relevance,
                age_h=age_h,
                likes=int(likes),
                comments=int(comments),
                shares=int(shares),
                heat=heat,
                affinity=affinity,
            )
            for relevance, age_h, likes, comments, shares, heat, affinity in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]
    )
