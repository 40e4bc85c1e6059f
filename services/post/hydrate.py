"""Hydration: from ids to posts as a viewer sees them, with names, counts and the viewer's own likes.

What is the same for everybody is serialized once a post (hot.py); what a viewer sees besides is added to these bytes:
serialized messages that follow each other are one message with the fields of both. Most posts of a page are public and
nothing about them is the viewer's own: such a post is looked at once for all pages (`alike`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors, members, wire
from runtime.postgres import Pool
from runtime.relations import holds
from services.post import store
from services.post.hot import HotPost, HotPosts, pairs
from services.post.people import Person
from services.post.sight import STRANGER, Sight, Sights, Viewer

LIKED = pb.Post(liked=True).SerializeToString()
WithOriginal = wire.closed(pb.Post.DESCRIPTOR, [pb.Post.DESCRIPTOR])
"""A post with its original's bytes."""


class Page(NamedTuple):
    """A page of a feed that is asked for."""

    viewer: Viewer
    post_ids: Sequence[int]
    sharers_up_to: int | None
    """The highest id of a plain share that counts; None for a page without sharers."""
    only_alike: bool = False
    """Whether it is of those posts only that are the same to all who see what is public, but for their own likes and
    for who shared."""


class Shown(NamedTuple):
    """A page as its viewer sees it: what may be seen, in the order asked for."""

    page: bytes
    """A PostPage, serialized."""
    members: bytes
    """Its posts, one for one, packed."""
    shares: bytes
    """Plain shares of them by those whom the viewer reads, newest first, packed: share, sharer, original."""


async def hydrate_feeds(hot: HotPosts, sights: Sights, pages: Sequence[Page]) -> list[Shown]:
    """Pages of feeds, as of now. Raises Unavailable."""
    posts, liked, seen = await look(hot, sights, [(page.viewer, page.post_ids) for page in pages])
    shares = await shares_seen(hot.pool, posts, pages, seen)
    sharers = {sharer_id for of_page in shares for of_post in of_page.values() for _, sharer_id in of_post}
    people = await sights.people.of(sharers) if sharers else {}
    same = alike(posts, seen[0]) if seen else {}
    return [
        show(posts, page, sight, liked.get(sight.viewer_id, ()), of_page, people, same)
        for page, sight, of_page in zip(pages, seen, shares, strict=True)
    ]


async def hydrate_pages(
    hot: HotPosts, sights: Sights, pages: Sequence[tuple[Viewer, Sequence[int]]]
) -> list[dict[int, bytes]]:
    """As `hydrate`, of people whom the graph has just been asked about."""
    posts, liked, seen = await look(hot, sights, pages)
    return shown_each(posts, liked, seen, pages)


async def look(
    hot: HotPosts, sights: Sights, pages: Sequence[tuple[Viewer, Sequence[int]]]
) -> tuple[dict[int, HotPost], Mapping[int, Collection[int]], list[Sight]]:
    """The posts of pages with their originals, what each viewer likes of them, and what each may see."""
    asked = likeable(pages, {})
    for post_ids in asked.values():
        held = [post for post_id in post_ids if (post := hot.held(post_id)) is not None]
        post_ids += [post.row.shared_post_id for post in held if post.row.shared_post_id is not None]
    liked = await hot.look(asked)
    posts = await hot.of({post_id for _, post_ids in pages for post_id in post_ids})
    originals = originals_of(posts)
    if originals:
        posts |= await hot.of(set(originals.values()) - posts.keys())
        # Of a share that was not held it was not known what it shares.
        wanted = likeable(pages, originals)
        if any(not set(asked[user_id]).issuperset(post_ids) for user_id, post_ids in wanted.items()):
            liked = await hot.look(wanted)
    seen = await sights.of([viewer for viewer, _ in pages], {post.row.user_id for post in posts.values()})
    return posts, liked, seen


async def hydrate(pool: Pool, sights: Sights, pages: Sequence[tuple[Viewer, Sequence[int]]]) -> list[dict[int, bytes]]:
    """For each page (viewer, post ids) the posts that the viewer may see, in the order asked for, as of now: as bytes.

    What is not there is asked for as what may not be seen is, so that the time tells nothing. Raises Unavailable.
    """
    rows = await store.posts(pool, {post_id for _, post_ids in pages for post_id in post_ids})
    posts = {post_id: HotPost(row) for post_id, row in rows.items()}
    originals = originals_of(posts)
    if lacking := set(originals.values()) - posts.keys():
        posts |= {post_id: HotPost(row) for post_id, row in (await store.posts(pool, lacking)).items()}
    authors = {post.row.user_id for post in posts.values()}
    if not authors:
        authors = {post_id for _, post_ids in pages for post_id in post_ids}
    liked, seen = await asyncio.gather(
        store.liked(pool, *pairs(likeable(pages, originals))),
        sights.of([viewer for viewer, _ in pages], authors, anew=True),
    )
    return shown_each(posts, liked, seen, pages)


def shown_each(
    posts: Mapping[int, HotPost],
    liked: Mapping[int, Collection[int]],
    seen: Sequence[Sight],
    pages: Sequence[tuple[Viewer, Sequence[int]]],
) -> list[dict[int, bytes]]:
    """For each page the posts that its viewer may see, in the order asked for."""
    return [
        {
            post_id: present(posts, post, sight, liked.get(sight.viewer_id, ()))
            for post_id in post_ids
            if (post := posts.get(post_id)) and sees(sight, posts, post)
        }
        for sight, (_, post_ids) in zip(seen, pages, strict=True)
    ]


def originals_of(posts: Mapping[int, HotPost]) -> dict[int, int]:
    """Of those of the posts that share or quote one: which."""
    return {post_id: post.row.shared_post_id for post_id, post in posts.items() if post.row.shared_post_id is not None}


def likeable(pages: Iterable[tuple[Viewer, Sequence[int]]], originals: Mapping[int, int]) -> dict[int, list[int]]:
    """What viewers may like of what is on their pages, originals too: posts by viewer."""
    asked: dict[int, list[int]] = {}
    for viewer, post_ids in pages:
        if viewer.user_id != STRANGER:
            its = asked.setdefault(viewer.user_id, [])
            its += post_ids
            if originals:
                its += [originals[post_id] for post_id in post_ids if post_id in originals]
    return asked


def sees(sight: Sight, posts: Mapping[int, HotPost], post: HotPost) -> bool:
    """Whether a viewer may see a post, and where that is a plain share its original."""
    row = post.row
    if row.original_id == row.post_id:
        return sight.sees(row.user_id, row.visibility)
    original = posts.get(row.original_id)
    return sight.sees_post(row, original.row if original is not None else None)


async def shares_seen(
    pool: Pool, posts: Mapping[int, HotPost], pages: Sequence[Page], seen: Sequence[Sight]
) -> list[dict[int, list[tuple[int, int]]]]:
    """For each page, by post that was shared: the shares by those whom the viewer reads, newest first, at most 20."""
    found: list[dict[int, list[tuple[int, int]]]] = [{} for _ in pages]
    all_shared = {post_id for post_id, post in posts.items() if post.row.shares}
    asked: dict[int, store.SharersQuestion] = {}
    for at, (page, sight) in enumerate(zip(pages, seen, strict=True)):
        relation, bound = sight.relation, page.sharers_up_to
        if relation is None or bound is None:
            continue
        shared = [posts[post_id] for post_id in all_shared.intersection(page.post_ids)]
        for post in shared:
            kept = [
                (share_id, sharer_id)
                for share_id, sharer_id in post.shares or ()
                if share_id <= bound and (sharer_id == sight.viewer_id or holds(relation.followees, sharer_id))
            ]
            if kept:
                found[at][post.row.post_id] = kept[: store.MAX_SHARERS]
        if many := [post.row.post_id for post in shared if post.shares is None]:
            sharer_ids = [*relation.followees.tolist(), sight.viewer_id]
            asked[at] = store.SharersQuestion(many, sharer_ids, bound)
    if asked:
        for at, rows in zip(asked, await store.sharers(pool, list(asked.values())), strict=True):
            for share_id, sharer_id, post_id in rows:
                found[at].setdefault(post_id, []).append((share_id, sharer_id))
    return found


def alike(posts: Mapping[int, HotPost], sight: Sight) -> dict[int, bytes]:
    """Those of the posts, as elements of a page, that are the same to all who see all that is public, but for their own
    likes and for who shared. `sight` is anybody's."""
    return {
        post_id: post.listed(author.name, sight.media_url(post.row))
        for post_id, post in posts.items()
        if post.plain and (author := sight.people.get(post.row.user_id)) is not None and not author.private
    }


def show(
    posts: Mapping[int, HotPost],
    page: Page,
    sight: Sight,
    likes: Collection[int],
    shares: Mapping[int, Sequence[tuple[int, int]]],
    people: Mapping[int, Person | None],
    same: Mapping[int, bytes],
) -> Shown:
    """A page as its viewer sees it. `likes` are what the viewer likes, `people` who shared, `same` is as of `alike`."""
    if not sight.sees_all_public:
        same = {}
    content: list[bytes] = []
    there: list[HotPost] = []
    shared: list[tuple[int, int, int]] = []
    in_feed = page.sharers_up_to is not None
    for post_id in page.post_ids:
        listed = same.get(post_id)
        if page.only_alike and listed is None:
            continue
        if listed is None or post_id in likes or post_id in shares:
            post = posts.get(post_id)
            if post is None or (listed is None and not sees(sight, posts, post)):
                continue
            whole = present(posts, post, sight, likes, in_feed=in_feed)
            if of_post := shares.get(post_id):
                whole += pb.Post(shared_by=named(of_post, people)).SerializeToString()
                shared += [(*share, post_id) for share in of_post]
            listed = wire.listed(whole)
        content.append(listed)
        there.append(posts[post_id])
    return Shown(
        b"".join(content),
        b"".join([post.member for post in there]),
        b"".join([members.pack_one(*share) for share in sorted(shared, reverse=True)]),
    )


def named(shares: Iterable[tuple[int, int]], people: Mapping[int, Person | None]) -> list[pb.Sharer]:
    """Sharers with their names, "" where the graph cannot be asked. Whoever does not exist was erased a moment ago."""
    return [
        pb.Sharer(user_id=sharer_id, username=person.name if person is not None else "")
        for _, sharer_id in shares
        if (person := people.get(sharer_id)) is not None or sharer_id not in people
    ]


async def hydrate_one(pool: Pool, sights: Sights, post_id: int, viewer_id: int) -> pb.Post:
    """One post as the viewer sees it. Raises NotFound (POST_NOT_FOUND), Unavailable."""
    [posts] = await hydrate(pool, sights, [(Viewer(viewer_id), [post_id])])
    if not posts:
        raise not_found(post_id)
    return pb.Post.FromString(posts[post_id])


def present(
    posts: Mapping[int, HotPost],
    post: HotPost,
    sight: Sight,
    likes: Collection[int],
    *,
    nested: bool = False,
    in_feed: bool = False,
) -> bytes:
    """A post as the viewer, who likes `likes`, sees it, serialized; its original, one level deep, if that may be seen.

    In a feed the original of somebody whom the viewer mutes is left out.
    """
    row = post.row
    content = post.public(sight.name(row.user_id), sight.media_url(row))
    if row.original_id != row.post_id:
        counted = posts[row.original_id].row
        content += pb.Post(likes=counted.likes, comments=counted.comments, shares=counted.shares).SerializeToString()
    if row.original_id in likes:
        content += LIKED
    original = posts.get(row.shared_post_id) if row.shared_post_id is not None and not nested else None
    if (
        original is not None
        and sight.sees(original.row.user_id, original.row.visibility)
        and not (in_feed and sight.relation is not None and sight.relation.mutes(original.row.user_id))
    ):
        whole = present(posts, original, sight, likes, nested=True)
        content += WithOriginal(shared_post=whole).SerializeToString()
    return content


def not_found(post_id: int) -> errors.NotFound:
    """There is no such post, or it may not be seen."""
    return errors.NotFound("POST_NOT_FOUND", f"there is no post {post_id}")
