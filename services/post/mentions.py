"""Mentions: `@username` in posts, quotes and comments. Whom a name means is asked when it is written, not when read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from feedmesh.graph.v1 import graph_pb2
from runtime.postgres import Connection
from services.post import store

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

MAX_MENTIONS = 20
"""People that one text can mention; further names are words."""
NAME = re.compile(r"(?<![A-Za-z0-9_.@/-])@([A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?)(?![A-Za-z0-9_@])")
"""The form of usernames (graph.proto), where no address (a@b.example, /@a) and no longer word goes on around it."""


class Written(NamedTuple):
    """A text that was written."""

    user_id: int
    """Who wrote it."""
    text: str
    post_id: int
    comment_id: int = 0
    """0 where it is the post itself."""
    quoted_id: int = 0
    """Whose post it quotes; 0 for none."""


def names(text: str) -> list[str]:
    """The usernames that a text mentions, in lower case, each once, in their order; at most MAX_MENTIONS."""
    if "@" not in text:
        return []
    return list(dict.fromkeys(name.lower() for name in NAME.findall(text)))[:MAX_MENTIONS]


async def people(graph: GraphServiceAsyncStub, texts: Sequence[str]) -> dict[str, int]:
    """Who has the names that texts mention, by name in lower case. Raises Unavailable."""
    wanted = list(dict.fromkeys(name for text in texts for name in names(text)))
    if not wanted:
        return {}
    answer = await graph.BatchGetUserIds(graph_pb2.BatchGetUserIdsRequest(usernames=wanted))
    return {name: user_id for name, user_id in zip(wanted, answer.user_ids, strict=True) if user_id}


async def note(connection: Connection, written: Sequence[Written], known: Mapping[str, int]) -> list[list[int]]:
    """Notes whom texts mention, and whose posts they quote; the mentioned, text by text, without who wrote it."""
    found: list[list[int]] = []
    rows: list[store.Mention] = []
    for each in written:
        mentioned = dict.fromkeys(known[name] for name in names(each.text) if name in known)
        for user_id in (each.user_id, each.quoted_id):  # the latter is told of the quote
            mentioned.pop(user_id, None)
        found.append(list(mentioned))
        rows += [store.Mention(user_id, each.user_id, each.post_id, each.comment_id, False) for user_id in mentioned]
        if each.quoted_id and each.quoted_id != each.user_id:
            rows.append(store.Mention(each.quoted_id, each.user_id, each.post_id, 0, True))
    if rows:
        await store.insert_mentions(connection, rows)
    return found
