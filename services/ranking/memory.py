"""What ranking remembers, as those see it who rank: engagement and affinities, for as long as they are up to date."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from services.ranking.affinities import Affinities
from services.ranking.columns import NOTHING, Columns

FRESH_S = 2.0
"""How long after the last look at the events the memory is still used."""


@dataclass
class Memory:
    """Filled by a `follow.Follower`; one that nobody fills is never used, and all is asked of the post service."""

    columns: Columns = NOTHING
    """Whole above their horizon; NOTHING while they are being read anew."""
    affinities: Affinities = field(default_factory=Affinities)
    looked_at: float = -math.inf
    """When all events that there were had last been read, in seconds of `time.monotonic()`."""

    def fresh(self) -> bool:
        """Whether it may be used."""
        return time.monotonic() - self.looked_at < FRESH_S

    def forget(self) -> None:
        """Forgets everything."""
        self.columns = NOTHING
        self.affinities.clear()
        self.looked_at = -math.inf
