"""The formula of relevance, in one place. docs/ranking.md explains it; whoever changes one changes the other.

    score = (1 + 0.5 ln(1 + engagement) + 1.5 affinity / (affinity + 5) + 0.5 ln(1 + heat)) / (1 + age / 8 h)^1.5

The logarithms keep a viral post from drowning all else, the saturating affinity one loved author from doing so. The age
decays by a power, as in the ranking of Hacker News (P. Graham, "news.arc", gravity 1.8 over age + 2 h), not
exponentially: among posts of last month the order still means something.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]

ENGAGEMENT_WEIGHT = 0.5
AFFINITY_WEIGHT = 1.5
AFFINITY_HALF = 5.0
"""The affinity that counts half of the most it can."""
TRENDING_WEIGHT = 0.5
AGE_SCALE_H = 8.0
GRAVITY = 1.5


@dataclass(frozen=True)
class Features:
    """What is known of candidates: columns of one shape (n,)."""

    age_h: Column
    """Hours since the post, or its plain share, was written; negative counts as 0 (clocks differ)."""
    likes: Column
    comments: Column
    shares: Column
    heat: Column
    """Recent engagement, halved every hour."""
    affinity: Column
    """How much the viewer lately had to do with the author: likes + 2 comments + 3 shares."""


def score(features: Features) -> Column:
    """The relevance of each candidate: shape (n,), finite, above 0; more is better."""
    engagement = features.likes + 2 * features.comments + 3 * features.shares
    worth = (
        1
        + ENGAGEMENT_WEIGHT * np.log1p(engagement)
        + AFFINITY_WEIGHT * features.affinity / (features.affinity + AFFINITY_HALF)
        + TRENDING_WEIGHT * np.log1p(features.heat)
    )
    return np.asarray(worth / (1 + np.maximum(features.age_h, 0) / AGE_SCALE_H) ** GRAVITY)
