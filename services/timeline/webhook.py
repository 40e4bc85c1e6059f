"""The webhook: `python -m services.timeline.webhook`. Hands notifications to a push provider of the operator's.

    fan-out ─ notes acts ─► webhook_deliveries ─► what is so now ─► POST, signed ─► 2xx: done
                                   ▲                                    │ anything else, or no answer in time
                                   └──────── later, ever more so ◄──────┘

Each notification comes at least once and is signed as Standard Webhooks has it (standardwebhooks.com): `webhook-id` is
the same for each try, so that a receiver can leave out what it has. What was taken back meanwhile, or may not be seen
any more, is not sent. A hook that is away, slow or lying holds nobody up: nothing waits for this worker.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import random
import time

import aiohttp
import orjson

from feedmesh.graph.v1 import graph_pb2
from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceStub
from feedmesh.post.v1 import post_pb2
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub
from feedmesh.timeline.v1 import timeline_pb2 as pb
from runtime import callers, client, config, errors, ids, migrate, postgres, process
from runtime.relations import Relations
from services.timeline import metrics, store
from services.timeline.config import WebhookSettings
from services.timeline.notifications import Concerns, Told, Wanted

log = logging.getLogger(__name__)

TAKEN = 64
"""Notifications that are looked at together."""
AT_ONCE = 16
"""Requests under way."""
TIMEOUT_S = 5.0
"""For one request, its answer included. Nothing of that is read but its status."""
LEASE_S = 60.0
"""After how long another worker takes up what one that died had taken."""
STEP_S = 0.2
FIRST_S, LONGEST_S = 5.0, 3_600.0
"""Between tries, doubling."""
MAX_TRIES = 22
"""Half a day, then it is given up."""
AWAY_S = 1.0
"""After how long it is looked again whether the services answer that know what there is to tell."""
MAX_WAITING = 1_000_000
"""Notifications; with more the oldest are given up."""
UPKEEP_S = 10.0
CONTENT = 200
"""Characters of a post."""


class Webhook:
    """Hands over what is due."""

    def __init__(
        self, pool: postgres.Pool, concerns: Concerns, session: aiohttp.ClientSession, url: str, secret: str
    ) -> None:
        self._pool = pool
        self._concerns = concerns
        self._session = session
        self._url = url
        self._key = key_of(secret)
        self._room = asyncio.Semaphore(AT_ONCE)

    async def step(self) -> bool:
        """Takes what is due and hands it over. True when there may be more at once."""
        taken = await store.take_deliveries(self._pool, TAKEN, LEASE_S)
        if not taken:
            return False
        wanted = [
            Wanted(each.event_id, each.user_id, pb.NotificationKind.ValueType(each.kind), each.post_id, each.actor_id)
            for each in taken
        ]
        try:
            found = await self._concerns.of(wanted)
        except errors.Unavailable as error:
            log.debug("what there is to tell cannot be read: %s", error.message)
            for each in taken:
                await store.put_off_delivery(self._pool, each, AWAY_S, tried=False)
            return False
        await asyncio.gather(*(self._hand_over(each, told) for each, told in zip(taken, found, strict=True)))
        return len(taken) == TAKEN

    async def upkeep(self) -> bool:
        """Gives up what is too much. Always False."""
        if gone := await store.prune_deliveries(self._pool, MAX_WAITING):
            metrics.WEBHOOK.labels("given_up").inc(gone)
            log.warning("%d notifications are given up: too many wait", gone)
        metrics.WEBHOOK_WAITING.set(await store.count_deliveries(self._pool))
        return False

    async def _hand_over(self, delivery: store.Delivery, told: Told | None) -> None:
        if told is None:
            await store.end_delivery(self._pool, delivery)
            metrics.WEBHOOK.labels("taken_back").inc()
            return
        async with self._room:
            trouble = await self._post(delivery, told)
        if not trouble:
            await store.end_delivery(self._pool, delivery)
            metrics.WEBHOOK.labels("sent").inc()
        elif delivery.tries + 1 >= MAX_TRIES:
            await store.end_delivery(self._pool, delivery)
            metrics.WEBHOOK.labels("given_up").inc()
            log.warning("notification %s is given up after %d tries: %s", id_of(delivery), MAX_TRIES, trouble)
        else:
            await store.put_off_delivery(self._pool, delivery, pause_s(delivery.tries), tried=True)
            metrics.WEBHOOK.labels("failed").inc()
            log.debug("notification %s is tried again: %s", id_of(delivery), trouble)

    async def _post(self, delivery: store.Delivery, told: Told) -> str:
        """Why the hook did not take it; "" where it did."""
        body = orjson.dumps(payload(delivery, told))
        now_s = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "feedmesh",
            "webhook-id": id_of(delivery),
            "webhook-timestamp": str(now_s),
            "webhook-signature": signature(self._key, id_of(delivery), now_s, body),
        }
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                response.close()  # whatever else it says
                return "" if 200 <= response.status < 300 else f"it answered {response.status}"
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return repr(error)


def payload(delivery: store.Delivery, told: Told) -> dict[str, object]:
    """What is handed over."""
    name = pb.NotificationKind.Name(pb.NotificationKind.ValueType(delivery.kind))
    return {
        "type": "notification",
        "kind": name.removeprefix("NOTIFICATION_KIND_").lower(),
        "user_id": delivery.user_id,
        "actor": {"user_id": delivery.actor_id, "username": told.actor},
        "post_id": delivery.post_id or None,
        "content": told.content[:CONTENT],
        "created_at": ids.timestamp(delivery.event_id).ToJsonString(),
    }


def id_of(delivery: store.Delivery) -> str:
    """The same for each try, and for no other notification."""
    return f"{delivery.event_id}.{delivery.user_id}.{delivery.kind}"


def pause_s(tries: int) -> float:
    """How long to wait after so many tries that failed before and one more; each time another."""
    return float(min(FIRST_S * 2**tries, LONGEST_S) * random.uniform(0.8, 1.2))  # noqa: S311


def key_of(secret: str) -> bytes:
    """The bytes that a secret stands for."""
    prefix = "whsec_"
    return base64.b64decode(secret.removeprefix(prefix)) if secret.startswith(prefix) else secret.encode()


def signature(key: bytes, message_id: str, seconds: int, body: bytes) -> str:
    """HMAC-SHA256 over id, time and body, as Standard Webhooks has it."""
    digest = hmac.digest(key, b"%b.%d.%b" % (message_id.encode(), seconds, body), hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


async def serve(settings: WebhookSettings, running: process.Process) -> None:
    """Works until the process is asked to stop."""
    me = callers.of(running.name, settings)
    async with (
        postgres.connect(settings) as pool,
        client.connect(
            settings.graph_target, me, graph_pb2.DESCRIPTOR.services_by_name["GraphService"]
        ) as graph_channel,
        client.connect(settings.post_target, me, post_pb2.DESCRIPTOR.services_by_name["PostService"]) as post_channel,
        connect() as session,
    ):
        await migrate.require(pool, "services.timeline")
        graph = GraphServiceStub(graph_channel)
        concerns = Concerns(Relations(graph), graph, PostServiceStub(post_channel))
        webhook = Webhook(pool, concerns, session, settings.webhook_url, settings.webhook_secret)
        await asyncio.gather(
            running.every(STEP_S, "hand_over", webhook.step), running.every(UPKEEP_S, "webhook_upkeep", webhook.upkeep)
        )


def connect() -> aiohttp.ClientSession:
    """Requests to the hook, each within TIMEOUT_S."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=AT_ONCE),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def main() -> None:
    """The command line."""
    settings = config.load(WebhookSettings)
    process.run("timeline-webhook", settings, lambda running: serve(settings, running))


if __name__ == "__main__":
    main()
