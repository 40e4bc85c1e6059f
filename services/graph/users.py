"""Use cases about people: joining, changing and erasing one's account, and reading people."""

from __future__ import annotations

from feedmesh.event.v1 import event_pb2
from feedmesh.graph.v1 import graph_pb2 as pb
from runtime import errors, idempotency, ids, outbox, postgres
from runtime.postgres import Connection, Pool
from services.graph import session_store, store
from services.graph.passwords import Passwords

MAX_CHANGES = 1_000
"""Changes of people that are told one by one."""
NO_ACTOR = 0
"""Whose idempotency keys those of people are who have no id yet."""


async def create_user(pool: Pool, passwords: Passwords, request: pb.CreateUserRequest) -> pb.CreateUserResponse:
    """Registers a person. Raises Conflict (USERNAME_TAKEN, EMAIL_TAKEN, IDENTITY_TAKEN)."""
    hashed = await passwords.hash(request.password) if request.HasField("password") else None

    async def work(connection: Connection) -> pb.CreateUserResponse:
        user_id = await store.insert_user(connection, request.username, request.email)
        if hashed is not None:
            await session_store.insert_password(connection, user_id, hashed)
        if request.subject:
            await session_store.insert_identity(connection, user_id, request.issuer, request.subject)
        await outbox.add(connection, user_id, event_pb2.Event(user_created=event_pb2.UserCreated(user_id=user_id)))
        # The stored answer names nobody: it outlives an erasure by up to a day.
        return pb.CreateUserResponse(user=pb.User(user_id=user_id))

    stored = await idempotency.write(pool, request, NO_ACTOR, pb.CreateUserResponse, work)
    return pb.CreateUserResponse(user=await require(pool, stored.user.user_id, stored.user.user_id))


async def update_user(pool: Pool, request: pb.UpdateUserRequest) -> pb.UpdateUserResponse:
    """Changes what is given. Raises NotFound (USER_NOT_FOUND), Conflict (USERNAME_TAKEN, EMAIL_TAKEN)."""

    async def work(connection: Connection) -> pb.UpdateUserResponse:
        given = {
            name: getattr(request, name) if request.HasField(name) else None
            for name in ("username", "email", "private")
        }
        if not await store.update_user(connection, request.user_id, **given):
            raise not_found(request.user_id)
        if request.HasField("private"):
            fact = event_pb2.PrivacyChanged(user_id=request.user_id, private=request.private)
            await outbox.add(connection, request.user_id, event_pb2.Event(privacy_changed=fact))
        return pb.UpdateUserResponse(user=await require(connection, request.user_id, request.user_id))

    return await idempotency.write(pool, request, request.user_id, pb.UpdateUserResponse, work)


async def delete_user(pool: Pool, request: pb.DeleteUserRequest) -> pb.DeleteUserResponse:
    """Erases a person; what hangs on them goes by upkeep and by the event. Raises NotFound (USER_NOT_FOUND)."""

    async def work(connection: Connection) -> pb.DeleteUserResponse:
        erased = await store.erase_user(connection, request.user_id)
        if erased is None:
            raise not_found(request.user_id)
        if erased:
            await idempotency.forget(connection, request.user_id)
            await session_store.forget(connection, request.user_id)
            fact = event_pb2.UserErased(user_id=request.user_id)
            await outbox.add(connection, request.user_id, event_pb2.Event(user_erased=fact))
        return pb.DeleteUserResponse()

    # Again has the same effect: no answer is kept, and so no trace of the key.
    return await postgres.transact(pool, work)


async def list_changes(pool: Pool, request: pb.ListUserChangesRequest) -> pb.ListUserChangesResponse:
    """Who changed since a version; whether anybody may have, where these are too many."""
    version, user_ids = await store.user_changes(pool, request.after_version, MAX_CHANGES)
    many = version - request.after_version > MAX_CHANGES
    return pb.ListUserChangesResponse(version=version, user_ids=() if many else set(user_ids), many=many)


async def count_traces(pool: Pool, user_id: int) -> pb.CountTracesResponse:
    """What is left of someone, by place."""
    found = await store.traces(pool, user_id) | {"idempotency_keys": await idempotency.count(pool, user_id)}
    return pb.CountTracesResponse(
        traces=[pb.CountTracesResponse.Trace(place=place, count=count) for place, count in found.items()]
    )


async def get_user(pool: Pool, user_id: int, viewer_id: int) -> pb.User:
    """One person as the viewer (0 for a stranger) sees them. Raises NotFound (USER_NOT_FOUND)."""
    row, _ = await look(pool, user_id, viewer_id)
    return present(row, viewer_id)


async def look(pool: Pool, user_id: int, viewer_id: int) -> tuple[store.UserRow, bool]:
    """A person, and whether the viewer may see whom they follow and who follows them.

    Raises NotFound (USER_NOT_FOUND) for no such person, and across a block.
    """
    blocked, follows = await store.view(pool, viewer_id, user_id)
    row = await store.user(pool, user_id)
    if row is None or blocked:
        raise not_found(user_id)
    return row, follows or viewer_id == user_id or not row.private


async def require(reader: postgres.Reader, user_id: int, viewer_id: int) -> pb.User:
    """One person, whoever looks. Raises NotFound (USER_NOT_FOUND)."""
    row = await store.user(reader, user_id)
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
        private=row.private,
    )


def not_found(user_id: int) -> errors.NotFound:
    """There is no such person, or none for who asks."""
    return errors.NotFound("USER_NOT_FOUND", f"there is no user {user_id}")
