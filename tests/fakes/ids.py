"""Ids as Postgres makes them (runtime/ids.py), strictly rising."""

from __future__ import annotations

from runtime import ids
from runtime.clock import Clock, wall_clock


class NextId:
    """Makes ids that carry the clock's time and never repeat."""

    def __init__(self, clock: Clock = wall_clock) -> None:
        self._clock = clock
        self._last = 0

    def __call__(self) -> int:
        self._last = max(self._last + 1, (self._clock() - ids.EPOCH_MS) << ids.SEQUENCE_BITS)
        return self._last
