"""Use cases about people: joining, and reading them."""

from __future__ import annotations

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import errors, idempotency, ids, outbox
from runtime.postgres import Connection, Pool
from services.graph import store

NO_ACTOR = 0
"""Whose idempotency keys those of people are who have no id yet."""


async def create_user(pool: Pool, request: pb.CreateUserRequest) -> pb.CreateUserResponse:
    """Registers a person. Raises Conflict (USERNAME_TAKEN, EMAIL_TAKEN)."""

    async def work(connection: Connection) -> pb.CreateUserResponse:
        user_id = await store.insert_user(connection, request.username, request.email)
        await outbox.add(connection, user_id, event_pb2.Event(user_created=event_pb2.UserCreated(user_id=user_id)))
        row = store.UserRow(user_id, request.username, request.email, 0, 0)
        return pb.CreateUserResponse(user=present(row, viewer_id=user_id))

    return await idempotency.write(pool, request, NO_ACTOR, pb.CreateUserResponse, work)


async def get_user(pool: Pool, user_id: int, viewer_id: int) -> pb.User:
    """One person as the viewer (0 for a stranger) sees them. Raises NotFound (USER_NOT_FOUND)."""
    row = await store.user(pool, user_id)
    if row is None:
        raise not_found(user_id)
    return present(row, viewer_id)


def present(row: store.UserRow, viewer_id: int) -> pb.User:
    """A person as the viewer sees them: the email address is for themselves alone."""
    return pb.User(
        user_id=row.user_id,
        username=row.username,
        email=row.email if viewer_id == row.user_id else "",
        created_at=ids.timestamp(row.user_id),
        followers=row.followers,
        following=row.following,
    )


def not_found(user_id: int) -> errors.NotFound:
    """There is no such person."""
    return errors.NotFound("USER_NOT_FOUND", f"there is no user {user_id}")
