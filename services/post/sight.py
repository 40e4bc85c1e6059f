"""Who may see what: the one place of the rule that post.proto states."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors
from runtime.media import MediaUrls
from runtime.postgres import Pool
from runtime.relations import Relation, Relations
from services.post import people, store
from services.post.people import People, Person

if TYPE_CHECKING:
    from feedmesh.graph.v1.graph_pb2_grpc import GraphServiceAsyncStub

STRANGER = 0


class Viewer(NamedTuple):
    """Who looks, and what the caller already knows of their relations (see BatchGetPostsRequest)."""

    user_id: int
    """0 for a stranger."""
    relations_version: int = 0
    relations_kept: bool = False


@dataclass(frozen=True)
class Sight:
    """What one viewer may see, of some people."""

    viewer_id: int
    relation: Relation | None
    """None for a stranger."""
    people: Mapping[int, Person | None]
    """What the graph says of these people, None for who does not exist. Those lack of whom it could not be asked."""
    kept: bool
    """Whether the relation is of before the graph was gone: then what only followers may see is not shown."""
    urls: MediaUrls

    def sees(self, author_id: int, visibility: int) -> bool:
        """Whether the viewer may see a post, by its author (one of the people) and its visibility."""
        if not self.shows(author_id):
            return False
        if author_id == self.viewer_id:
            return True
        if is_public(visibility, self.people.get(author_id)):
            return True
        return self.relation is not None and not self.kept and self.relation.follows(author_id)

    def sees_post(self, row: store.PostRow, original: store.PostRow | None) -> bool:
        """Whether the viewer may see a post, and where that is a plain share its original (None for a deleted one)."""
        return (
            original is not None
            and self.sees(row.user_id, row.visibility)
            and self.sees(original.user_id, original.visibility)
        )

    def shows(self, user_id: int) -> bool:
        """Whether someone (one of the people) is there for the viewer at all.

        Nobody is for a viewer whose relations are not known while the graph is gone: a block may be among them.
        """
        if self.relation is None and self.kept and self.viewer_id != STRANGER:
            return False
        blocked = self.relation is not None and self.relation.blocks(user_id)
        return not blocked and self.people.get(user_id, ()) is not None

    @property
    def sees_all_public(self) -> bool:
        """Whether the viewer sees whatever is public of all of the people."""
        if self.relation is None:
            return not self.kept or self.viewer_id == STRANGER
        return self.people.keys().isdisjoint(self.relation.blocked.tolist())

    def name(self, user_id: int) -> str:
        """A username, "" where it is not known."""
        person = self.people.get(user_id)
        return person.name if person is not None else ""

    def media_url(self, row: store.PostRow) -> str:
        """Where the media of a post is to be had by those who may see it."""
        url = row.media_url
        return self.urls.shown(url, public=is_public(row.visibility, self.people.get(row.user_id))) if url else url


class Sights:
    """What viewers may see, asked of the graph."""

    def __init__(self, graph: GraphServiceAsyncStub, urls: MediaUrls) -> None:
        self.graph = graph
        self.urls = urls
        self.people = People(graph)
        self._relations = Relations(graph)

    async def of(self, viewers: Sequence[Viewer], user_ids: Iterable[int], *, anew: bool = False) -> list[Sight]:
        """What each viewer may see of these people; `anew` as in `People.of`. Raises Unavailable."""
        known = [viewer for viewer in viewers if viewer.user_id != STRANGER]
        (relations, kept), found = await asyncio.gather(
            self._relations.of(
                sorted({viewer.user_id for viewer in known}),
                {viewer.user_id: viewer.relations_version for viewer in known if viewer.relations_version},
            ),
            self.people.of(user_ids, anew=anew),
        )
        return [
            Sight(viewer.user_id, relations.get(viewer.user_id), found, kept or viewer.relations_kept, self.urls)
            for viewer in viewers
        ]

    async def target(self, pool: Pool, viewer_id: int, post_id: int) -> tuple[store.Target | None, Sight]:
        """What an act on a post goes to, and what the viewer may see of the two authors: as `targets`, of one act."""
        [found] = await self.targets(pool, [(viewer_id, post_id)])
        return found

    async def targets(self, pool: Pool, acts: Sequence[tuple[int, int]]) -> list[tuple[store.Target | None, Sight]]:
        """What each act (of a viewer, on a post) goes to: the post, or the original of a plain share; None where it may
        not be seen. And what the viewer may see of all the authors.

        What is not there is asked for as what may not be seen is, so that the time tells nothing. Raises Unavailable.
        """
        if not acts:
            return []
        found = await store.authored(pool, {post_id for _, post_id in acts})
        authors = {row.author_id for rows in found.values() for row in rows}
        authors |= {post_id for _, post_id in acts if post_id not in found}
        seen = await self.of([Viewer(viewer_id) for viewer_id, _ in acts], authors, anew=True)
        if any(sight.kept and sight.relation is None for sight in seen):
            # Not of all viewers there are relations from before the graph was gone.
            raise errors.Unavailable("the graph cannot be reached")
        return [(aimed(found.get(post_id, []), sight), sight) for (_, post_id), sight in zip(acts, seen, strict=True)]

    async def of_each(self, pairs: Sequence[tuple[int, int]]) -> list[Sight | errors.Error]:
        """What each viewer may see of one person (viewer, person), or why nothing: NotFound (USER_NOT_FOUND),
        Unavailable. Raises Unavailable."""
        if not pairs:
            return []
        seen = await self.of(
            [Viewer(viewer_id) for viewer_id, _ in pairs], {user_id for _, user_id in pairs}, anew=True
        )
        return [
            people.not_found(user_id)
            if not sight.shows(user_id)
            else errors.Unavailable("the graph cannot be reached")
            if user_id not in sight.people
            else sight
            for (_, user_id), sight in zip(pairs, seen, strict=True)
        ]


def is_public(visibility: int, author: Person | None) -> bool:
    """Whether everybody may see a post, but for whom a block keeps away.

    Of whom nothing is known, the account may be private.
    """
    return visibility == pb.VISIBILITY_PUBLIC and author is not None and not author.private


def aimed(found: Sequence[store.Authored], sight: Sight) -> store.Target | None:
    """What an act goes to on a post that was found with its original; None where the actor may not see them."""
    if not found or not all(sight.sees(row.author_id, row.visibility) for row in found):
        return None
    return store.Target(found[-1].post_id, found[-1].author_id)
