"""Waiting for something to become true, with a bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

BOUND_S = 10.0


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Asks again and again until the condition holds; fails after 10 s."""
    end = time.monotonic() + BOUND_S
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < end, "did not come true in time"
        await asyncio.sleep(0.005)
