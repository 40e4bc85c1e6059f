"""The post service's relay: `python -m services.post.relay [--once]`. Publishes its events as the topic `post`."""

from __future__ import annotations

from runtime import config, relay

TOPIC = "post"
GROUPS = ("timeline",)
"""Who must have acknowledged an event before it may go from its stream."""

if __name__ == "__main__":
    relay.run("post-relay", config.load(relay.RelaySettings), "services.post", TOPIC, GROUPS)
