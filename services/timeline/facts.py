"""What events mean to those who watch: which posts changed, whom it concerns, and from whom something may be hidden."""

from __future__ import annotations

from collections.abc import Sequence

from feedmesh.event.v1 import event_pb2

CHANGES = {
    "like_changed": ("post_id",),
    "comment_created": ("post_id",),
    "comment_deleted": ("post_id",),
    "post_created": ("shared_post_id",),
    "post_deleted": ("post_id", "shared_post_id"),
}
"""Facts that change posts' counts, or end posts, and where they name them; 0 for none."""
CONCERNS = {
    "like_changed": ("author_id", "user_id"),
    "comment_created": ("author_id", "user_id"),
    "post_created": ("shared_author_id", "author_id"),
    "follow_changed": ("following_id", "follower_id"),
    "follow_requested": ("following_id", "follower_id"),
}
"""Facts that concern somebody else: where they name that person, and who did it."""


def changed_by(event: event_pb2.Event) -> list[int]:
    """The posts whose counts an event changed, or that it ended."""
    fact = event.WhichOneof("fact")
    return [getattr(getattr(event, fact), name) for name in CHANGES.get(fact, ())] if fact else []


def concerned_by(event: event_pb2.Event) -> set[int]:
    """Whose notifications an event may have changed."""
    fact = event.WhichOneof("fact")
    if fact is None or fact not in CONCERNS:
        return set()
    told, (whom, actor) = getattr(event, fact), CONCERNS[fact]
    return {getattr(told, whom), *getattr(told, "mentioned_ids", ())} - {0, getattr(told, actor)}


def hidden_by(event: event_pb2.Event) -> int:
    """Of whom an event may have hidden everything, or shown it again, to others; 0 for nobody."""
    return event.privacy_changed.user_id or event.user_erased.user_id or event.author_erased.user_id


def parted_by(event: event_pb2.Event) -> Sequence[tuple[int, int]]:
    """From whom (first) an event may have hidden what somebody (second) wrote, or shown it again."""
    if event.HasField("block_changed"):
        one, other = event.block_changed.user_id, event.block_changed.target_id
        return (one, other), (other, one)
    if event.HasField("follow_changed"):
        return ((event.follow_changed.follower_id, event.follow_changed.following_id),)
    return ()
