"""What a request carries through the code that serves it: its caller; its id and its deadline, on to the next hop."""

from __future__ import annotations

import time
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id under which every log line of this request is found; "" outside a request."""

caller: ContextVar[str] = ContextVar("caller", default="")
"""The name of the process that calls; "" outside a call, and until it is known."""

deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
"""When nobody waits for the answer any more, in seconds of `time.monotonic()`; None outside a request."""


def remaining_s() -> float | None:
    """Seconds until the deadline, negative when it has passed; None when there is none."""
    at = deadline.get()
    return None if at is None else at - time.monotonic()
