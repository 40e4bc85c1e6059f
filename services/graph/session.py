"""The session server: `python -m services.graph.session`, on the graph's database. A process of its own, so that what
signing in costs does not delay the graph, and no other holds the secret that signs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from feedmesh.session.v1 import session_pb2 as pb
from feedmesh.session.v1 import session_pb2_grpc
from runtime import config, migrate, postgres, process, server
from runtime.clock import wall_clock
from runtime.postgres import Pool
from services.graph import session_store, sessions
from services.graph.config import SessionSettings
from services.graph.passwords import Passwords
from services.graph.signing import Signer

SERVICE = pb.DESCRIPTOR.services_by_name["SessionService"]


@dataclass(frozen=True)
class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """SessionService on the graph's database."""

    pool: Pool
    signer: Signer
    passwords: Passwords

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Any) -> pb.CreateSessionResponse:
        return pb.CreateSessionResponse(session=await sessions.create(self.pool, self.signer, self.passwords, request))

    async def RenewSession(self, request: pb.RenewSessionRequest, context: Any) -> pb.RenewSessionResponse:
        return pb.RenewSessionResponse(session=await sessions.renew(self.pool, self.signer, request))

    async def EndSession(self, request: pb.EndSessionRequest, context: Any) -> pb.EndSessionResponse:
        return await sessions.end(self.pool, request)

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:
        return await sessions.list_sessions(self.pool, request)

    async def ChangePassword(self, request: pb.ChangePasswordRequest, context: Any) -> pb.ChangePasswordResponse:
        return await sessions.change_password(self.pool, self.passwords, request)

    async def ListSigningKeys(self, request: pb.ListSigningKeysRequest, context: Any) -> pb.ListSigningKeysResponse:
        return pb.ListSigningKeysResponse(jwks=await self.signer.jwks())

    async def ListEndedSessions(
        self, request: pb.ListEndedSessionsRequest, context: Any
    ) -> pb.ListEndedSessionsResponse:
        return pb.ListEndedSessionsResponse(session_ids=await session_store.ended(self.pool, request.within_s))

    async def GetIdentity(self, request: pb.GetIdentityRequest, context: Any) -> pb.GetIdentityResponse:
        return await sessions.identify(self.pool, request)


async def serve(settings: SessionSettings, running: process.Process) -> None:
    """Serves until the process is asked to stop."""
    async with postgres.connect(settings) as pool:
        await migrate.require(pool, "services.graph")
        signer = Signer(pool, settings.session_secret, wall_clock, key_days=settings.signing_key_days)
        servicer = SessionServicer(pool, signer, Passwords())
        await server.serve(
            running,
            settings,
            [lambda s: session_pb2_grpc.add_SessionServiceServicer_to_server(servicer, s)],
            [SERVICE],
            watch=partial(postgres.watch, settings),
        )


if __name__ == "__main__":
    settings = config.load(SessionSettings)
    process.run("session", settings, lambda running: serve(settings, running))
