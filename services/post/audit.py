"""What the table itself says, for those who check: rows for the auditor, and what is left of an erased person."""

from __future__ import annotations

from feedmesh.post.v1 import post_pb2 as pb
from runtime import idempotency
from runtime.postgres import Pool
from services.post import store


async def list_post_rows(pool: Pool, request: pb.ListPostRowsRequest) -> pb.ListPostRowsResponse:
    """What authors wrote and shared in a range of ids."""
    rows = await store.rows_of_authors(
        pool, list(request.author_ids), request.min_post_id, request.max_post_id, request.limit
    )
    return pb.ListPostRowsResponse(rows=[pb.PostRow(**row._asdict()) for row in rows])


async def get_post_rows(pool: Pool, request: pb.GetPostRowsRequest) -> pb.GetPostRowsResponse:
    """Posts, deleted ones too."""
    rows = await store.rows_of_posts(pool, list(request.post_ids))
    return pb.GetPostRowsResponse(rows=[pb.PostRow(**row._asdict()) for row in rows])


async def count_traces(pool: Pool, user_id: int) -> pb.CountTracesResponse:
    """What is left of someone, by place."""
    found = await store.traces(pool, user_id) | {"idempotency_keys": await idempotency.count(pool, user_id)}
    return pb.CountTracesResponse(
        traces=[pb.CountTracesResponse.Trace(place=place, count=count) for place, count in found.items()]
    )
