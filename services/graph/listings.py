"""Pages of people: one way for all listings of the graph."""

from __future__ import annotations

from collections.abc import Sequence

from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import ids
from runtime.paging import DEFAULT_LIMIT, Cursors
from runtime.postgres import Pool
from services.graph import store, users

Page = tuple[Sequence[pb.User], str | None]
"""People, and the cursor for those after them."""


async def of_others(
    pool: Pool,
    cursors: Cursors,
    listing: str,
    pairs: store.Pairs,
    request: pb.ListFollowersRequest | pb.ListFollowingRequest,
) -> Page:
    """A page of what a person shows to others; empty where their account is private to the viewer.

    Raises NotFound (USER_NOT_FOUND), InvalidArgument (INVALID_CURSOR).
    """
    scope = (listing, request.user_id, request.viewer_id)
    before = cursors.open_id(scope, request.cursor, first=ids.MAX_ID + 1)
    _, may_see = await users.look(pool, request.user_id, request.viewer_id)
    if not may_see:
        return (), None
    return await page(pool, cursors, scope, pairs, request, request.viewer_id, before)


async def of_oneself(
    pool: Pool,
    cursors: Cursors,
    listing: str,
    pairs: store.Pairs,
    request: pb.ListFollowRequestsRequest | pb.ListBlocksRequest | pb.ListMutesRequest,
) -> Page:
    """A page of what is for the person alone. Raises NotFound (USER_NOT_FOUND), InvalidArgument (INVALID_CURSOR)."""
    scope = (listing, request.user_id)
    before = cursors.open_id(scope, request.cursor, first=ids.MAX_ID + 1)
    await users.require(pool, request.user_id, request.user_id)
    return await page(pool, cursors, scope, pairs, request, 0, before)


async def page(
    pool: Pool,
    cursors: Cursors,
    scope: tuple[str | int, ...],
    pairs: store.Pairs,
    request: pb.ListFollowersRequest
    | pb.ListFollowingRequest
    | pb.ListFollowRequestsRequest
    | pb.ListBlocksRequest
    | pb.ListMutesRequest,
    viewer_id: int,
    before: int,
) -> Page:
    """One page of pairs."""
    limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
    rows = await store.listed(pool, pairs, request.user_id, viewer_id, before, limit + 1)
    shown = rows[:limit]
    return (
        [users.present(row, viewer_id) for _, row in shown],
        cursors.seal_id(scope, shown[-1][0]) if len(rows) > limit else None,
    )
