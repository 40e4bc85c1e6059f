"""The timeline service's own metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

FEED_DEGRADED = Counter("feedmesh_feed_degraded_total", "Pages served without a part of the mesh, by part.", ["part"])
FEED_DROPPED = Counter("feedmesh_feed_dropped_total", "Candidates left out of a page, by the reason.", ["reason"])
FEED_WINDOWS = Histogram("feedmesh_feed_windows", "Windows that one page was made from.", buckets=(1, 2, 3, 5, 10))
HELD_ROWS = Counter(
    "feedmesh_feed_rows_total", "Candidates read for feeds, by where from: home, authors, postgres.", ["source"]
)
TIMELINE_BUILDS = Counter(
    "feedmesh_timeline_builds_total",
    "Home timelines built or completed by a read: built, lost (gone before it was filled), merged (a new followee).",
    ["outcome"],
)
DELIVERIES = Counter("feedmesh_deliveries_total", "Posts pushed into home timelines that are there.")
DELIVERIES_TRIED = Counter(
    "feedmesh_deliveries_tried_total", "Followers whom a post was to be pushed to, active or not."
)
FANOUT_POSTS = Counter("feedmesh_fanout_posts_total", "Posts fanned out, by the author's mode.", ["mode"])
MODE_CHANGES = Counter("feedmesh_author_mode_changes_total", "Authors that began to change their mode.", ["change"])

# The auditor. `of` is what was compared with Postgres: list (a home timeline in Redis) or feed (as it is served). The
# kinds: missing, extra, and of a feed also duplicate, misordered, must_not_see.
AUDIT_FEEDS = Counter(
    "feedmesh_audit_feeds_total",
    "Feeds that the auditor took up, by outcome: equal, repaired, differs (not repaired), degraded, gone, failed.",
    ["outcome"],
)
AUDIT_ENTRIES = Counter("feedmesh_audit_entries_total", "Entries that the auditor compared.", ["of"])
AUDIT_DIFFERENCES = Counter("feedmesh_audit_differences_total", "Entries that differed, twice.", ["of", "kind"])
AUDIT_REPAIRS = Counter(
    "feedmesh_audit_repairs_total",
    "What the auditor repaired: members added to a list, removed from it, lists dropped.",
    ["action"],
)
AUDIT_RATIO = Gauge(
    "feedmesh_audit_ratio", "Entries that differed ÷ entries compared, over the latest 200 feeds.", ["of", "kind"]
)
OWN = Counter(
    "feedmesh_feed_own_total",
    "Viewers' own posts by where a first page had them from: known (and still so), read, changed (known, but not so).",
    ["source"],
)
NEWS = Counter("feedmesh_news_total", "New and deleted posts that this replica heard of.")
WATCHERS = Gauge("feedmesh_watchers", "Watchers of home feeds, over all streams.")
WATCH_EVENTS = Counter("feedmesh_watch_events_total", "Events by how many watchers were told them.", ["event"])

# The webhook.
WEBHOOK = Counter(
    "feedmesh_webhook_deliveries_total",
    "Notifications by what became of them: sent, taken_back (or hidden meanwhile), failed (is tried again), given_up.",
    ["outcome"],
)
WEBHOOK_WAITING = Gauge("feedmesh_webhook_waiting", "Notifications that wait to be handed over.")
