"""Use case of taking one's data away: what the graph holds of a person, record by record."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import ids
from runtime.postgres import Pool
from services.graph import store, users

PAGE = 500
"""Ties that one statement reads. Each page is a read of its own: nothing is held while the reader takes its time."""
KINDS = {
    pb.TIE_KIND_FOLLOWING: store.FOLLOWING,
    pb.TIE_KIND_FOLLOWER: store.FOLLOWERS,
    pb.TIE_KIND_ASKED_TO_FOLLOW: store.REQUESTED,
    pb.TIE_KIND_ASKED_BY: store.FOLLOW_REQUESTS,
    pb.TIE_KIND_BLOCKED: store.BLOCKS,
    pb.TIE_KIND_MUTED: store.MUTES,
}
"""Where each kind of tie is, in the order of the export."""


async def export_user(pool: Pool, user_id: int) -> AsyncGenerator[pb.ExportUserResponse, None]:
    """The account, then every tie, each kind newest first; those to people who are erased are gone already.

    What changes while it is read may be in it or not. Raises NotFound (USER_NOT_FOUND).
    """
    yield pb.ExportUserResponse(account=await users.require(pool, user_id, user_id))
    for kind, pairs in KINDS.items():
        before = ids.MAX_ID + 1
        while rows := await store.tied(pool, pairs, user_id, before, PAGE):
            for pair_id, other_id, username in rows:
                tie = pb.Tie(kind=kind, user_id=other_id, username=username, created_at=ids.timestamp(pair_id))
                yield pb.ExportUserResponse(tie=tie)
            if len(rows) < PAGE:
                break
            before = rows[-1][0]
