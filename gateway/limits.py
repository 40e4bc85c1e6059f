"""Rate limits: how many requests a person and an address may make, by class of route. What is counted is in Redis.

Each limit is a quota of requests in so many seconds, kept by GCRA, the generic cell rate algorithm as virtual
scheduling (ITU-T Recommendation I.371, annex A): its interval T is `seconds / requests`, its tolerance τ the quota less
one T. So a quota may be used at once; then requests come back evenly, one each T. In Redis a limit is one integer, and
gone as soon as the quota is whole again: what is kept there is bounded by what is asked.

Answers carry `RateLimit-Policy` and `RateLimit` as draft-ietf-httpapi-ratelimit-headers-11 has them: of the limits that
count for a request the one that leaves the least. `t` there is the time in which no more than `r` is left; where a
request is refused, it is `Retry-After`.

Requests that are here at the same time share one call of one function (limits.lua), which charges all limits of a
request or none. Without Redis nothing can be counted: requests pass, and sign-in, where guessing begins, is refused.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway import metrics
from gateway.addresses import network_of
from runtime import redis
from runtime.coalesce import Coalescer
from runtime.errors import Error, Unavailable
from runtime.metrics import REDIS_USABLE
from runtime.redis import bulk

log = logging.getLogger(__name__)

READ, WRITE, SIGN_IN = "read", "write", "sign_in"
CLASSES = (READ, WRITE, "follow", "like", SIGN_IN)
"""Classes of routes, each with quotas of its own. What is of which is in the contracts (`limit_class`)."""
PEOPLE = 10
"""People that one address counts as: many share one. Of sign-in, where nobody is known yet, it counts as one."""
TIMEOUT_S = 0.1
"""How long Redis may take."""
AGAIN_S = 1.0
"""After how long it is asked again that did not answer. Meanwhile nobody waits for it."""
BATCH = 128
"""Requests of one call: it holds the server up for half a millisecond."""

MOST_A_SECOND = 100_000
QUOTA = re.compile(r"([1-9][0-9]{0,6})/([1-9][0-9]{0,4})")
LIBRARY = redis.Library(Path(__file__).with_name("limits.lua"))
HEAD = bulk(b"FCALL") + bulk(b"decide_" + LIBRARY.version.encode())


class Quota(NamedTuple):
    """So many requests in so many seconds."""

    requests: int
    seconds: int

    @classmethod
    def of(cls, text: str) -> Quota:
        """The quota that a setting says, as in 600/60. Raises ValueError."""
        found = QUOTA.fullmatch(text)
        if found is None or int(found[1]) > int(found[2]) * MOST_A_SECOND:
            raise ValueError(
                f"must be requests/seconds, as in 600/60: at most {MOST_A_SECOND} a second, and 99999 seconds"
            )
        return cls(int(found[1]), int(found[2]))


class Limit:
    """A quota that each person, or each address, has of a class. What is always the same is written once."""

    def __init__(self, name: str, quota: Quota) -> None:
        self.key = f"feedmesh:{{limits}}:{name}:".encode()
        """Followed by whose it is. All keys of a call are in one slot of a Redis Cluster."""
        self.quota = quota
        self.policy = (b"ratelimit-policy", f'"{name}";q={quota.requests};w={quota.seconds}'.encode())
        self.left = f'"{name}";r=%d;t=%d'.encode()


class Counted:
    """The limits that count for one kind of request: none is charged unless all allow it."""

    def __init__(self, *limits: Limit) -> None:
        self.limits = limits
        self.words = [len(limits)]
        """What the function is told of it."""
        for limit in limits:
            self.words += [limit.quota.seconds * 1_000_000 // limit.quota.requests, limit.quota.requests]


class Limits:
    """Counts the requests of all gateways that have the same Redis."""

    def __init__(self, client: Redis, quotas: Mapping[str, Quota]) -> None:
        """`quotas` are a person's, for each of CLASSES."""
        self._client = client
        self._anybody: dict[str, Counted] = {}
        self._somebody: dict[str, Counted] = {}
        for name, quota in quotas.items():
            people = 1 if name == SIGN_IN else PEOPLE
            address = Limit(f"{name}-address", Quota(quota.requests * people, quota.seconds))
            self._anybody[name] = self._somebody[name] = Counted(address)
            if name != SIGN_IN:
                self._somebody[name] = Counted(Limit(name, quota), address)
        self._decide = Coalescer("limits", self._ask, max_weight=BATCH)
        self._asked_again_s = 0.0
        """Redis did not answer, and is not asked before this time."""

    async def __call__(self, name: str, user_id: int, address: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Counts a request of a class, by a person (0: nobody is signed in) from an address; of IPv6, its /64 counts.

        Adds to `headers` what its answer is to carry, whatever that is. Raises Error (RATE_LIMITED) where it is
        refused, and Unavailable where it is a sign-in and Redis does not answer.
        """
        counted = (self._somebody if user_id else self._anybody)[name]
        whose = bulk(counted.limits[-1].key + network_of(address))
        if len(counted.limits) > 1:
            whose = bulk(b"%b%d" % (counted.limits[0].key, user_id)) + whose
        try:
            which, allowed, wait_us = await self._decide((counted, whose))
        except Unavailable:
            if name == SIGN_IN:
                metrics.LIMITS.labels(name, "unavailable").inc()
                raise Unavailable("nobody can sign in now") from None
            metrics.LIMITS.labels(name, "uncounted").inc()
            return
        limit, wait_s = counted.limits[which - 1], -(-wait_us // 1_000_000)
        headers += (limit.policy, (b"ratelimit", limit.left % (max(allowed - 1, 0), wait_s)))
        if not allowed:
            metrics.LIMITS.labels(name, "refused").inc()
            headers.append((b"retry-after", b"%d" % wait_s))
            raise Error("RATE_LIMITED", "at most {} requests in {} s".format(*limit.quota))

    async def _ask(self, items: Sequence[tuple[Counted, bytes]]) -> list[tuple[int, int, int]]:
        """Of each request: which of its limits allows the least, how much (0: nothing), and the µs to one more."""
        if time.monotonic() < self._asked_again_s:
            raise Unavailable("Redis did not answer a moment ago")
        kinds: dict[Counted, int] = {}
        of_requests = bytes(kinds.setdefault(counted, len(kinds) + 1) for counted, _ in items)
        keys = sum(len(counted.limits) for counted, _ in items)
        arguments: list[bytes | int] = [of_requests, *(word for counted in kinds for word in counted.words)]
        command = [b"*%d\r\n" % (3 + keys + len(arguments)), HEAD, bulk(keys)]
        command += [whose for _, whose in items]
        command += map(bulk, arguments)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                [said] = await LIBRARY.within(self._client, partial(redis.exchange, self._client, [b"".join(command)]))
        except (RedisError, OSError) as error:  # a TimeoutError is one
            if not self._asked_again_s:
                log.warning("requests are not counted, as Redis does not answer: %s", error)
            REDIS_USABLE.set(0)
            self._asked_again_s = time.monotonic() + AGAIN_S
            raise Unavailable("Redis does not answer") from None
        if self._asked_again_s:
            log.warning("Redis answers again")
            self._asked_again_s = 0.0
        REDIS_USABLE.set(1)
        return list(zip(said[::3], said[1::3], said[2::3], strict=True))
