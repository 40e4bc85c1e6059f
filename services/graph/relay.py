"""The graph's relay: `python -m services.graph.relay [--once]`. Publishes its events as the topic `graph`."""

from __future__ import annotations

from runtime import config, relay

TOPIC = "graph"
GROUPS = ("timeline", "post")
"""Who must have acknowledged an event before it may go from its stream."""

if __name__ == "__main__":
    relay.run("graph-relay", config.load(relay.RelaySettings), "services.graph", TOPIC, GROUPS)
