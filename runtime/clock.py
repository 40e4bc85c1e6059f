"""Time, as something that a test can hold: whoever needs the hour takes a `Clock`."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Milliseconds since 1970-01-01 UTC."""


def wall_clock() -> int:
    """The machine's clock."""
    return time.time_ns() // 1_000_000
