"""The post service's relay: `python -m services.post.relay [--once]`. Publishes its events as the topic `post`."""

from __future__ import annotations

from runtime import config, outbox
from services.post.config import RelaySettings

TOPIC = "post"
GROUPS = ("timeline",)
"""Who must have acknowledged an event before it may go from its stream."""

if __name__ == "__main__":
    outbox.run("post-relay", config.load(RelaySettings), "services.post", TOPIC, GROUPS)
