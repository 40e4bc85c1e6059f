"""The session service on its database: passwords, refresh tokens, keys."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub, add_GraphServiceServicer_to_server
from feedmesh.session.v1 import session_pb2 as pb
from feedmesh.session.v1.session_pb2_grpc import SessionServiceStub, add_SessionServiceServicer_to_server
from gateway.issuers import OwnIssuer
from runtime import client, errors, postgres
from runtime.clock import wall_clock
from runtime.paging import Cursors
from services.graph import passwords, session_store
from services.graph.passwords import Passwords
from services.graph.servicer import SERVICE as GRAPH
from services.graph.servicer import GraphServicer
from services.graph.session import SERVICE, SessionServicer
from services.graph.signing import Signer
from services.graph.upkeep import tasks
from tests.fakes.databases import Databases, settings_of
from tests.fakes.serving import CALLER, serving

SECRET = "a secret of at least 32 characters"
PASSWORD = "correct horse battery staple"
names = itertools.count(1)


@dataclass
class Signin:
    """The session service beside the graph, and an issuer of the gateway that trusts it."""

    graph: Any
    sessions: Any
    issuer: OwnIssuer
    pool: postgres.Pool

    async def person(self, password: str | None = PASSWORD) -> tuple[int, str]:
        """A new person's id and name."""
        name = f"person{next(names)}"
        request = graph_pb2.CreateUserRequest(username=name, email=f"{name}@example.org", password=password)
        return (await self.graph.CreateUser(request)).user.user_id, name

    async def sign_in(self, name: str, password: str = PASSWORD) -> pb.Session:
        """A new session."""
        request = pb.CreateSessionRequest(username=name, password=password)
        session: pb.Session = (await self.sessions.CreateSession(request)).session
        return session

    async def renew(self, token: str) -> pb.Session:
        """A session's new tokens."""
        request = pb.RenewSessionRequest(refresh_token=token)
        session: pb.Session = (await self.sessions.RenewSession(request)).session
        return session

    async def execute(self, statement: str, *values: Any) -> None:
        """A statement of somebody who can write into the database."""
        async with self.pool.connection() as connection:
            await connection.execute(statement.encode(), values)


@pytest_asyncio.fixture(scope="module")
async def pool(databases: Databases) -> AsyncIterator[postgres.Pool]:
    async with databases.lend("services.graph") as dsn, postgres.connect(settings_of(dsn)) as pool:
        yield pool


@pytest_asyncio.fixture
async def signin(pool: postgres.Pool) -> AsyncIterator[Signin]:
    signer = Signer(pool, SECRET, wall_clock, key_days=30)
    servicer, graph = SessionServicer(pool, signer, Passwords()), GraphServicer(pool, Cursors(SECRET), 5000)
    async with (
        serving(lambda s: add_SessionServiceServicer_to_server(servicer, s), services=(SERVICE,)) as served,
        serving(lambda s: add_GraphServiceServicer_to_server(graph, s), services=(GRAPH,)) as other,
        client.connect(served.target, CALLER, SERVICE) as channel,
        client.connect(other.target, CALLER, GRAPH) as graph_channel,
    ):
        yield Signin(GraphServiceStub(graph_channel), SessionServiceStub(channel), OwnIssuer(channel), pool)


async def refused(call: Any, reason: str) -> None:
    with pytest.raises(errors.Error) as caught:
        await call
    assert caught.value.reason == reason


async def test_who_has_a_password_signs_in_by_name_or_address(signin: Signin) -> None:
    user_id, name = await signin.person()
    for called in (name, name.upper(), f"{name}@example.org"):
        session = await signin.sign_in(called)
        assert (session.user_id, session.token_type) == (user_id, "Bearer")
        found = await signin.issuer.tokens(session.access_token.encode())
        assert (found.user_id, found.session_id) == (user_id, session.session_id)


async def test_wrong_names_and_wrong_passwords_are_not_told_apart(signin: Signin) -> None:
    _, name = await signin.person()
    _, without = await signin.person(password=None)
    for called, password in (
        (name, PASSWORD + "r"),
        (name, PASSWORD.upper()),
        ("nobody", PASSWORD),
        (without, PASSWORD),
    ):
        await refused(signin.sign_in(called, password), "WRONG_CREDENTIALS")


async def test_an_account_takes_a_few_tries_however_many_come_at_once(
    signin: Signin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_store, "TRY_S", 600)  # longer than hashing takes here
    _, name = await signin.person()
    tried = await asyncio.gather(
        *(signin.sign_in(name, f"guess {number}") for number in range(20)), return_exceptions=True
    )
    reasons = [error.reason for error in tried if isinstance(error, errors.Error)]
    assert sorted(reasons) == ["RATE_LIMITED"] * 10 + ["WRONG_CREDENTIALS"] * 10
    await refused(signin.sign_in(name), "RATE_LIMITED")
    await signin.execute("UPDATE credentials SET tries_until = tries_until - interval '600 seconds'")
    await signin.sign_in(name)
    for _ in range(session_store.TRIES):
        await refused(signin.sign_in(name, "a guess"), "WRONG_CREDENTIALS")


async def test_a_storm_of_sign_ins_is_bounded(signin: Signin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "MAX_WAITING", 1)  # so that any two that meet are too many
    tried = await asyncio.gather(*(signin.sign_in(f"nobody{n}") for n in range(16)), return_exceptions=True)
    reasons = {error.reason for error in tried if isinstance(error, errors.Error)}
    assert reasons == {"UNAVAILABLE", "WRONG_CREDENTIALS"}


async def test_a_password_is_kept_as_a_hash_alone(signin: Signin) -> None:
    await signin.graph.CreateUser(
        graph_pb2.CreateUserRequest(
            username="hashed", email="hashed@example.org", password=PASSWORD, request_id="a key of the password's test"
        )
    )
    async with signin.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
        )
        for [table] in await cursor.fetchall():
            rows = await (await connection.execute(f"SELECT t::text FROM {table} t".encode())).fetchall()
            assert not any(PASSWORD in row[0] for row in rows), table
        [[hashed]] = await (
            await connection.execute(
                "SELECT password_hash FROM credentials JOIN users USING (user_id) WHERE username='hashed'"
            )
        ).fetchall()
    assert hashed.startswith("$argon2id$")


async def test_a_retry_of_joining_with_another_password_changes_nothing(signin: Signin) -> None:
    request = graph_pb2.CreateUserRequest(
        username="again", email="again@example.org", request_id="again", password=PASSWORD
    )
    first = await signin.graph.CreateUser(request)
    request.password = "another password"
    assert (await signin.graph.CreateUser(request)).user.user_id == first.user.user_id
    await signin.sign_in("again")
    await refused(signin.sign_in("again", "another password"), "WRONG_CREDENTIALS")


@pytest.mark.parametrize("password", ["short", "x" * 257, "Guessable", "GUESSABLE@EXAMPLE.ORG"])
async def test_a_password_that_anybody_would_try_is_refused(signin: Signin, password: str) -> None:
    request = graph_pb2.CreateUserRequest(username="guessable", email="guessable@example.org", password=password)
    with pytest.raises(errors.InvalidArgument) as caught:
        await signin.graph.CreateUser(request)
    assert [violation.field for violation in caught.value.fields] == ["password"]


async def test_a_refresh_token_renews_once_and_its_retry_gets_the_same(signin: Signin) -> None:
    _, name = await signin.person()
    first = await signin.sign_in(name)
    second = await signin.renew(first.refresh_token)
    assert (await signin.renew(first.refresh_token)).refresh_token == second.refresh_token != first.refresh_token
    third = await signin.renew(second.refresh_token)
    assert (await signin.issuer.tokens(third.access_token.encode())).session_id == first.session_id


async def test_a_refresh_token_that_comes_again_later_ends_the_session(signin: Signin) -> None:
    _, name = await signin.person()
    first = await signin.sign_in(name)
    second = await signin.renew(first.refresh_token)
    third = await signin.renew(second.refresh_token)
    await refused(signin.renew(first.refresh_token), "SESSION_ENDED")
    await refused(signin.renew(third.refresh_token), "SESSION_ENDED")

    other = await signin.sign_in(name)
    await signin.renew(other.refresh_token)
    await signin.execute("UPDATE sessions SET renewed_at = renewed_at - interval '61 seconds'")
    await refused(signin.renew(other.refresh_token), "SESSION_ENDED")


async def test_many_renewals_at_once_are_one(signin: Signin) -> None:
    _, name = await signin.person()
    session = await signin.sign_in(name)
    renewed = await asyncio.gather(*(signin.renew(session.refresh_token) for _ in range(8)))
    assert len({each.refresh_token for each in renewed}) == 1


@pytest.mark.parametrize("token", ["x", "1.1.", "1.1." + "A" * 43, "0.1." + "A" * 43, "9" * 30 + ".1." + "A" * 43, "é"])
async def test_what_is_no_refresh_token_renews_nothing(signin: Signin, token: str) -> None:
    await refused(signin.renew(token), "SESSION_ENDED")


async def test_a_refresh_token_is_bound_to_its_session_and_turn(signin: Signin) -> None:
    _, name = await signin.person()
    one, other = await signin.sign_in(name), await signin.sign_in(name)
    mac = one.refresh_token.rpartition(".")[2]
    for forged in (f"{other.session_id}.1.{mac}", f"{one.session_id}.2.{mac}"):
        await refused(signin.renew(forged), "SESSION_ENDED")


async def test_a_session_that_is_not_renewed_is_over(signin: Signin) -> None:
    _, name = await signin.person()
    session = await signin.sign_in(name)
    await signin.execute("UPDATE sessions SET renewed_at = renewed_at - interval '31 days'")
    await refused(signin.renew(session.refresh_token), "SESSION_ENDED")


async def test_one_signs_out_of_ones_own_sessions_only(signin: Signin) -> None:
    user_id, name = await signin.person()
    stranger, _ = await signin.person()
    session, other = await signin.sign_in(name), await signin.sign_in(name)
    await signin.sessions.EndSession(pb.EndSessionRequest(session_id=session.session_id, user_id=stranger))
    session = await signin.renew(session.refresh_token)
    for _ in range(2):
        await signin.sessions.EndSession(pb.EndSessionRequest(session_id=session.session_id, user_id=user_id))
    await refused(signin.renew(session.refresh_token), "SESSION_ENDED")
    listed = await signin.sessions.ListSessions(pb.ListSessionsRequest(user_id=user_id))
    assert [each.session_id for each in listed.sessions] == [other.session_id]
    ended = await signin.sessions.ListEndedSessions(pb.ListEndedSessionsRequest(within_s=60))
    assert session.session_id in ended.session_ids
    assert other.session_id not in ended.session_ids


async def test_a_session_that_has_ended_is_known_at_the_gateway_soon(
    signin: Signin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.issuers.POLL_S", 0.02)
    user_id, name = await signin.person()
    session = await signin.sign_in(name)
    token = session.access_token.encode()
    running = asyncio.create_task(signin.issuer.run())
    await signin.issuer.tokens(token)
    await signin.sessions.EndSession(pb.EndSessionRequest(session_id=session.session_id, user_id=user_id))

    async def until_refused() -> None:
        while await signin.issuer.tokens(token):
            await asyncio.sleep(0.02)

    async with asyncio.timeout(5):
        await refused(until_refused(), "INVALID_TOKEN")
    running.cancel()


async def test_a_person_has_a_bounded_number_of_sessions(signin: Signin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_store, "MAX_SESSIONS", 3)
    user_id, name = await signin.person()
    sessions = [await signin.sign_in(name) for _ in range(5)]
    listed = await signin.sessions.ListSessions(pb.ListSessionsRequest(user_id=user_id))
    assert [each.session_id for each in listed.sessions] == [each.session_id for each in sessions[:1:-1]]


async def test_another_password_ends_all_sessions(signin: Signin) -> None:
    user_id, name = await signin.person()
    session = await signin.sign_in(name)
    change = pb.ChangePasswordRequest(user_id=user_id, password="wrong", new_password="another password")
    await refused(signin.sessions.ChangePassword(change), "WRONG_CREDENTIALS")
    await signin.renew(session.refresh_token)
    change.password = PASSWORD
    await signin.sessions.ChangePassword(change)
    await refused(signin.renew(session.refresh_token), "SESSION_ENDED")
    await refused(signin.sign_in(name), "WRONG_CREDENTIALS")
    await signin.sign_in(name, "another password")


async def test_an_erased_person_cannot_sign_in_or_renew_and_leaves_no_trace(signin: Signin) -> None:
    user_id, name = await signin.person()
    session = await signin.sign_in(name)
    await signin.graph.DeleteUser(graph_pb2.DeleteUserRequest(user_id=user_id))
    await refused(signin.sign_in(name), "WRONG_CREDENTIALS")
    await refused(signin.renew(session.refresh_token), "SESSION_ENDED")
    traces = await signin.graph.CountTraces(graph_pb2.CountTracesRequest(user_id=user_id))
    assert {trace.place: trace.count for trace in traces.traces}["sessions"] == 0


async def test_who_signs_in_elsewhere_has_one_account(signin: Signin) -> None:
    asked = pb.GetIdentityRequest(issuer="https://issuer.example", subject="somebody")
    await refused(signin.sessions.GetIdentity(asked), "USER_NOT_FOUND")
    request = graph_pb2.CreateUserRequest(
        username="elsewhere", email="elsewhere@example.org", issuer=asked.issuer, subject=asked.subject
    )
    user_id = (await signin.graph.CreateUser(request)).user.user_id
    assert (await signin.sessions.GetIdentity(asked)).user_id == user_id
    request.username, request.email = "elsewhere2", "elsewhere2@example.org"
    await refused(signin.graph.CreateUser(request), "IDENTITY_TAKEN")
    await signin.graph.DeleteUser(graph_pb2.DeleteUserRequest(user_id=user_id))
    assert (await signin.graph.CreateUser(request)).user.user_id != user_id


async def test_keys_change_by_themselves_and_tokens_of_before_go_on_to_count(signin: Signin) -> None:
    _, name = await signin.person()
    before = (await signin.sign_in(name)).access_token
    await signin.execute("UPDATE signing_keys SET created_at = created_at - interval '31 days'")
    signer = Signer(signin.pool, SECRET, wall_clock, key_days=30)
    after = await signer.access_token(1, 1)
    keys = {key["kid"] for key in json.loads(await signer.jwks())["keys"]}
    assert len(keys) >= 2
    for token in (before, after):
        await signin.issuer.tokens(token.encode())
    await signin.execute("UPDATE signing_keys SET created_at = created_at - interval '2 hours'")
    for task in tasks(signin.pool):
        if task.name == "prune_sessions":
            await task.work()
    assert len(json.loads(await signer.jwks())["keys"]) == 1


async def test_replicas_that_begin_together_make_one_key(signin: Signin) -> None:
    await signin.execute("DELETE FROM signing_keys")
    signers = [Signer(signin.pool, SECRET, wall_clock, key_days=30) for _ in range(4)]
    await asyncio.gather(*(signer.access_token(1, 1) for signer in signers))
    assert len(json.loads(await signers[0].jwks())["keys"]) == 1


async def test_a_key_that_is_stolen_from_the_database_signs_nothing_and_another_secret_makes_another(
    signin: Signin,
) -> None:
    await Signer(signin.pool, SECRET, wall_clock, key_days=30).access_token(1, 1)
    [row] = await postgres.fetch(
        signin.pool, "SELECT public_key, sealed_key FROM signing_keys ORDER BY created_at DESC LIMIT 1"
    )
    assert '"d"' not in row[0]
    assert row[1].count(".") == 4
    other = Signer(signin.pool, SECRET + "!", wall_clock, key_days=30)
    await signin.issuer.tokens((await other.access_token(1, 1)).encode())


async def test_upkeep_clears_sessions_away_that_are_over(signin: Signin) -> None:
    user_id, name = await signin.person()
    for _ in range(3):
        session = await signin.sign_in(name)
    await signin.sessions.EndSession(pb.EndSessionRequest(session_id=session.session_id, user_id=user_id))
    assert not await session_store.prune(signin.pool, 100)
    await signin.execute("UPDATE sessions SET ended_at = ended_at - interval '2 hours' WHERE ended_at IS NOT NULL")
    await session_store.prune(signin.pool, 100)
    await signin.execute("UPDATE sessions SET renewed_at = renewed_at - interval '31 days'")
    assert await session_store.prune(signin.pool, 1)
    while await session_store.prune(signin.pool, 1):
        pass
    assert not await postgres.fetch(signin.pool, "SELECT 1 FROM sessions")
