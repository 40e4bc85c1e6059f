"""What events mean to those who watch: which posts changed, whom it concerns, and from whom something may be hidden."""

from __future__ import annotations

from collections.abc import Sequence

from feedmesh.event.v1 import event_pb2
from services.timeline.notifications import Kind, Wanted

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
    if fact == "block_changed":
        return {event.block_changed.user_id, event.block_changed.target_id}
    if fact is None or fact not in CONCERNS:
        return set()
    told, (whom, actor) = getattr(event, fact), CONCERNS[fact]
    return {getattr(told, whom), *getattr(told, "mentioned_ids", ())} - {0, getattr(told, actor)}


def acts_of(event: event_pb2.Event) -> list[Wanted]:
    """What an event tells that somebody did to others."""
    found: list[tuple[int, Kind.ValueType, int, int]] = []
    if event.HasField("like_changed") and event.like_changed.liked:
        like = event.like_changed
        found.append((like.author_id, Kind.NOTIFICATION_KIND_LIKED, like.post_id, like.user_id))
    elif event.HasField("comment_created"):
        remark = event.comment_created
        found.append((remark.author_id, Kind.NOTIFICATION_KIND_COMMENTED, remark.post_id, remark.user_id))
        mentioned = Kind.NOTIFICATION_KIND_MENTIONED
        found += [(user_id, mentioned, remark.post_id, remark.user_id) for user_id in remark.mentioned_ids]
    elif event.HasField("post_created"):
        made = event.post_created
        is_plain = made.original_id != made.post_id
        kind = Kind.NOTIFICATION_KIND_SHARED if is_plain else Kind.NOTIFICATION_KIND_QUOTED
        found.append((made.shared_author_id, kind, made.original_id, made.author_id))
        mentioned = Kind.NOTIFICATION_KIND_MENTIONED
        found += [(user_id, mentioned, made.post_id, made.author_id) for user_id in made.mentioned_ids]
    elif event.HasField("follow_changed") and event.follow_changed.following:
        follow = event.follow_changed
        found.append((follow.following_id, Kind.NOTIFICATION_KIND_FOLLOWED, 0, follow.follower_id))
    elif event.HasField("follow_requested"):
        wish = event.follow_requested
        found.append((wish.following_id, Kind.NOTIFICATION_KIND_FOLLOW_REQUESTED, 0, wish.follower_id))
    return [Wanted(event.event_id, *each) for each in found if each[0] not in (0, each[3])]


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
