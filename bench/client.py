"""The HTTP client of the demo: requests over keep-alive connections, retries of writes, and the errors' tally."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import aiohttp
import orjson
from yarl import URL

TIMEOUT_S = 15.0
"""For one request. The gateway gives up on a request after 5 s."""
ATTEMPTS = 8
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 4.0
"""Between attempts, doubling: 11 s in all, and a service that is killed is back within two."""
GONE_S = 20.0
"""Without any answer for so long, nobody is there any more."""
PASSING = {429, 502, 503, 504}
"""Statuses after which the same request may succeed."""
RECONNECT_S = 0.1
NAMED_ERRORS = 100
"""Different errors that the tally tells apart: a bound, should each text be its own."""


class DemoError(Exception):
    """Ends the demo. The text is for the person who started it: one line."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came. Status 0: none came, and `body` says why."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body's value; None where it is no JSON."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    @property
    def code(self) -> str:
        """The `code` of a problem document, "" in any other."""
        document = self.json()
        return str(document.get("code", "")) if isinstance(document, dict) else ""

    def describe(self) -> str:
        """What went wrong, in a few words."""
        if self.status == 0:
            return self.body.decode()
        document = self.json()
        if not isinstance(document, dict):
            return f"{self.status} and no JSON object"
        return " ".join(str(part) for part in (self.status, document.get("code"), document.get("detail")) if part)[:200]


class Failed(Exception):
    """A write that failed in the end."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.describe())
        self.reply = reply


class Client:
    """Asks one mesh. `errors` counts what went wrong by description, `retries` the attempts after a first.

    `degraded` counts the answers with a `Feed-Degraded` header, by what it says.
    """

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self.base = base
        self.errors: Counter[str] = Counter()
        self.degraded: Counter[str] = Counter()
        self.retries = 0
        self._session = session
        self._answered = monotonic()

    def url(self, path_and_query: str) -> URL:
        """The address of a path that needs no quoting, ready to be asked often."""
        return URL(self.base + path_and_query, encoded=True)

    def failed(self, what: str) -> None:
        """Counts an error."""
        known = what in self.errors or len(self.errors) < NAMED_ERRORS
        self.errors[what if known else "other errors"] += 1

    async def get(self, url: URL) -> Reply:
        """One attempt at a GET."""
        return await self._send("GET", url, None, {})

    async def post(self, url: URL, body: bytes, key: str) -> Reply:
        """One attempt at a POST of JSON."""
        return await self._send("POST", url, body, {"Content-Type": "application/json", "Idempotency-Key": key})

    async def write(self, url: URL, value: dict[str, Any], key: str) -> dict[str, Any]:
        """POSTs until it is answered for good, each time with the same key, so that it takes effect once.

        Returns the answer's object. Raises Failed for any other answer, or after ATTEMPTS.
        """
        body = orjson.dumps(value)
        pause = FIRST_PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            reply = await self.post(url, body, key)
            answer = reply.json()
            if reply.status in (200, 201) and isinstance(answer, dict):
                return answer
            passing = reply.status in PASSING or reply.status == 0 or reply.code == "request_in_progress"
            if not passing or attempt == ATTEMPTS:
                raise Failed(reply)
            self.retries += 1
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        raise AssertionError("unreachable")

    async def _send(self, method: str, url: URL, body: bytes | None, headers: dict[str, str]) -> Reply:
        """Raises DemoError when nobody has answered for GONE_S."""
        try:
            async with self._session.request(method, url, data=body, headers=headers) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if monotonic() - self._answered > GONE_S:
                raise DemoError(f"the mesh at {self.base} has not answered for {GONE_S:.0f} s") from None
            await asyncio.sleep(RECONNECT_S)  # a closed loop of refused connections would spin
            return Reply(0, f"no answer: {type(error).__name__}".encode())
        self._answered = monotonic()
        if degraded := response.headers.get("Feed-Degraded"):
            self.degraded[degraded] += 1
        return Reply(response.status, content)


@asynccontextmanager
async def connect(base: str, connections: int) -> AsyncIterator[Client]:
    """A client with at most so many connections, kept alive."""
    connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=4)  # the gateway's own is 5 s
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
    ) as session:
        yield Client(session, base)
