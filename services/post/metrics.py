"""The post service's own metrics."""

from __future__ import annotations

from prometheus_client import Counter

STALE_NAMES = Counter("feedmesh_post_stale_names_total", "Names shown from memory because the graph was not there.")
HOT_POSTS = Counter(
    "feedmesh_post_hot_total", "Posts of feeds by where they came from: known, read (from Postgres).", ["source"]
)
