"""Use cases of sessions: signing in and out, renewing, changing the password."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from feedmesh.session.v1 import session_pb2 as pb
from runtime import errors, ids, postgres
from runtime.postgres import Connection, Pool
from services.graph import session_store as store
from services.graph.passwords import Passwords, needs_rehash
from services.graph.signing import ACCESS_S, Signer


async def create(pool: Pool, signer: Signer, passwords: Passwords, request: pb.CreateSessionRequest) -> pb.Session:
    """Signs a person in. Raises Unauthenticated (WRONG_CREDENTIALS), Throttled."""
    user_id, hashed = await checked(pool, passwords, request.password, name=request.username)
    rehashed = await passwords.hash(request.password) if needs_rehash(hashed) else None

    async def work(connection: Connection) -> store.SessionRow:
        session = await store.insert_session(connection, user_id)
        if session is None:
            raise wrong()
        if rehashed is not None:
            await store.set_password(connection, user_id, rehashed, before=hashed)
        await store.forget_tries(connection, user_id)
        return session

    session = await postgres.transact(pool, work)
    return await given(signer, session.session_id, user_id, session.generation)


async def renew(pool: Pool, signer: Signer, request: pb.RenewSessionRequest) -> pb.Session:
    """New tokens for a session. Raises Unauthenticated (SESSION_ENDED)."""
    said = signer.read(request.refresh_token)
    if said is None:
        raise over()

    async def work(connection: Connection) -> store.SessionRow | None:
        session = await store.lock_session(connection, said.session_id)
        if session is None:
            return None
        if said.generation == session.generation:
            await store.renew(connection, session.session_id)
            return session._replace(generation=session.generation + 1)
        if said.generation == session.generation - 1 and session.just_renewed:
            return session
        # Two have had this token, and one of them is not whose it is (RFC 9700, 4.14.2).
        await store.end_sessions(connection, session.user_id, session.session_id)
        return None

    session = await postgres.transact(pool, work)
    if session is None:
        raise over()
    return await given(signer, session.session_id, session.user_id, session.generation)


async def end(pool: Pool, request: pb.EndSessionRequest) -> pb.EndSessionResponse:
    """Ends a session of one's own, if it is one."""
    await postgres.transact(pool, lambda c: store.end_sessions(c, request.user_id, request.session_id))
    return pb.EndSessionResponse()


async def list_sessions(pool: Pool, request: pb.ListSessionsRequest) -> pb.ListSessionsResponse:
    """One's sessions."""
    found = pb.ListSessionsResponse()
    for session_id, renewed_s in await store.sessions_of(pool, request.user_id):
        renewed_at = Timestamp()
        renewed_at.FromMicroseconds(int(renewed_s * 1_000_000))
        found.sessions.add(session_id=session_id, created_at=ids.timestamp(session_id), renewed_at=renewed_at)
    return found


async def change_password(
    pool: Pool, passwords: Passwords, request: pb.ChangePasswordRequest
) -> pb.ChangePasswordResponse:
    """Sets another password and ends all sessions. Raises Unauthenticated (WRONG_CREDENTIALS), Throttled."""
    user_id, before = await checked(pool, passwords, request.password, user_id=request.user_id)
    hashed = await passwords.hash(request.new_password)

    async def work(connection: Connection) -> None:
        # Of two changes at once the second one's old password is wrong by now.
        if not await store.set_password(connection, user_id, hashed, before=before):
            raise wrong()
        await store.end_sessions(connection, user_id)

    await postgres.transact(pool, work)
    return pb.ChangePasswordResponse()


async def identify(pool: Pool, request: pb.GetIdentityRequest) -> pb.GetIdentityResponse:
    """Who somebody of an issuer is here. Raises NotFound (USER_NOT_FOUND)."""
    user_id = await store.identity(pool, request.issuer, request.subject)
    if user_id is None:
        raise errors.NotFound("USER_NOT_FOUND", "nobody here is this subject of the issuer")
    return pb.GetIdentityResponse(user_id=user_id)


async def checked(
    pool: Pool, passwords: Passwords, password: str, *, name: str = "", user_id: int = 0
) -> tuple[int, str]:
    """An account's id and hash, if this is its password. Raises Unauthenticated (WRONG_CREDENTIALS), Throttled."""
    account = await postgres.transact(pool, lambda c: store.count_try(c, name=name, user_id=user_id))
    if not await passwords.matches(password, account[1] if account else None) or account is None:
        raise wrong()
    return account


async def given(signer: Signer, session_id: int, user_id: int, generation: int) -> pb.Session:
    """A session with its tokens."""
    return pb.Session(
        session_id=session_id,
        user_id=user_id,
        access_token=await signer.access_token(session_id, user_id),
        token_type="Bearer",  # noqa: S106 - the name of a scheme
        expires_in=ACCESS_S,
        refresh_token=signer.refresh_token(session_id, generation),
    )


def wrong() -> errors.Unauthenticated:
    """Nothing is said of which of the two is wrong."""
    return errors.Unauthenticated("WRONG_CREDENTIALS", "there is no account with this name and password")


def over() -> errors.Unauthenticated:
    """A refresh token that renews nothing."""
    return errors.Unauthenticated("SESSION_ENDED", "the session has ended: sign in again")
