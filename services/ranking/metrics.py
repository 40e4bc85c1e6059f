"""The ranking service's own metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

ASKED = Counter(
    "feedmesh_ranking_asked_total",
    "What ranking asked the post service for to answer a call, by cause: posts when no memory can be used (no_memory),"
    " posts older than it reaches (horizon), viewers whose affinities it does not hold (viewer).",
    ["cause"],
)
POSTS = Gauge("feedmesh_ranking_posts", "Posts whose engagement is remembered.")
REACH = Gauge(
    "feedmesh_ranking_reach_seconds", "Age of the oldest post that the memory answers for; 0 while it answers for none."
)
TOUCHED = Gauge("feedmesh_ranking_touched_posts", "Posts that changed and are still to be read anew.")
REBUILDS = Counter("feedmesh_ranking_rebuilds_total", "Memories that were read anew as a whole.")
