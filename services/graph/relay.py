"""The graph's relay: `python -m services.graph.relay [--once]`. Publishes its events as the topic `graph`."""

from __future__ import annotations

from runtime import config, outbox
from services.graph.config import RelaySettings

TOPIC = "graph"
GROUPS = ("timeline",)
"""Who must have acknowledged an event before it may go from its stream."""

if __name__ == "__main__":
    outbox.run("graph-relay", config.load(RelaySettings), "services.graph", TOPIC, GROUPS)
