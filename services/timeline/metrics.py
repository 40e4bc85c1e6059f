"""The timeline service's own metrics."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

FEED_DEGRADED = Counter("feedmesh_feed_degraded_total", "Pages served without a part of the mesh, by part.", ["part"])
FEED_DROPPED = Counter("feedmesh_feed_dropped_total", "Candidates left out of a page, by the reason.", ["reason"])
FEED_WINDOWS = Histogram("feedmesh_feed_windows", "Windows that one page was made from.", buckets=(1, 2, 3, 5, 10))
