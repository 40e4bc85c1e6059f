"""Who may see what: every relationship to an author, asked through every RPC and every route that can reveal a post.

All services are real. Someone whom the viewer follows has shared and quoted each post, so that it could come by another
way than its author, too.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from google.api import annotations_pb2
from prometheus_client import REGISTRY

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2
from feedmesh.ranking.v1 import ranking_pb2
from feedmesh.timeline.v1 import timeline_pb2
from launch.valkey import Running as Valkey
from runtime import errors, members
from services.post import people
from tests.fakes.databases import Databases
from tests.integration.whole_mesh import WholeMesh, whole_mesh

ABSENT = 1
"""An id under which nothing ever was."""


@pytest_asyncio.fixture(scope="module")
async def mesh(databases: Databases, valkey: Valkey) -> AsyncIterator[WholeMesh]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(people, "FRESH_S", 0.0)
        async with whole_mesh(databases, valkey) as running:
            yield running


# The table: who, of what, sees it.

ACCOUNTS = {
    "public": (False, post_pb2.VISIBILITY_PUBLIC),
    "for followers": (False, post_pb2.VISIBILITY_FOLLOWERS),
    "of a private account": (True, post_pb2.VISIBILITY_PUBLIC),
}
YES, NO = True, False
SEES = {
    #                     public, for followers, of a private account
    "author":            (YES, YES, YES),
    "follower":          (YES, YES, YES),
    "muting follower":   (YES, YES, YES),
    "stranger":          (YES, NO, NO),
    "nobody":            (YES, NO, NO),
    "asked to follow":   (YES, NO, NO),
    "blocked by author": (NO, NO, NO),
    "blocks the author": (NO, NO, NO),
    "of a deleted author": (NO, NO, NO),
    "of a deleted post": (NO, NO, NO),
}  # fmt: skip
"""The last two are followers, too."""
NOT_IN_FEED = {"muting follower"}
READS = {"GetPost", "BatchGetPosts", "ListUserPosts", "BatchListUserPosts", "ListComments"}
"""What nobody can do as well; all else takes somebody."""
DELETIONS = {"DeletePost", "DeleteComment"}
"""Of one's own nothing is hidden: of others' only."""


@dataclass(frozen=True)
class Case:
    """A viewer, and a post with its share, quote and comment."""

    viewer: int
    """0 for nobody."""
    author: int
    post: int
    sharer: int
    share: int
    quote: int
    comment: int
    sees: bool
    in_feed: bool


@dataclass
class Cases:
    """The cases, made once each."""

    mesh: WholeMesh
    made: dict[tuple[str, str], Case] = field(default_factory=dict)

    async def of(self, who: str, account: str) -> Case:
        if (who, account) not in self.made:
            self.made[who, account] = await make(self.mesh, who, account)
        return self.made[who, account]


@pytest.fixture(scope="module")
def cases(mesh: WholeMesh) -> Cases:
    return Cases(mesh)


async def make(mesh: WholeMesh, who: str, account: str) -> Case:
    private, visibility = ACCOUNTS[account]
    author, sharer, other = await mesh.person(), await mesh.person(), await mesh.person()
    viewer = author if who == "author" else await mesh.person()
    for follower in (sharer, other):
        await mesh.follow(follower, author)
    await mesh.follow(viewer, sharer)
    if who not in ("author", "stranger", "nobody", "asked to follow"):
        await mesh.follow(viewer, author)
    await mesh.graph.UpdateUser(graph_pb2.UpdateUserRequest(user_id=author, private=private))
    name = (await mesh.graph.GetUser(graph_pb2.GetUserRequest(user_id=viewer))).user.username
    secret = f"a secret of which @{name} would hear"
    post = (
        await mesh.post.CreatePost(post_pb2.CreatePostRequest(user_id=author, content=secret, visibility=visibility))
    ).post.post_id
    share = (await mesh.post.SharePost(post_pb2.SharePostRequest(user_id=sharer, post_id=post))).post.post_id
    quote = (
        await mesh.post.SharePost(post_pb2.SharePostRequest(user_id=sharer, post_id=post, content="look"))
    ).post.post_id
    comment = (
        await mesh.post.CreateComment(post_pb2.CreateCommentRequest(user_id=other, post_id=post, content=secret))
    ).comment.comment_id
    if who == "asked to follow" and private:
        await mesh.follow(viewer, author)
    elif who == "blocked by author":
        await mesh.graph.Block(graph_pb2.BlockRequest(user_id=author, target_id=viewer))
    elif who == "blocks the author":
        await mesh.graph.Block(graph_pb2.BlockRequest(user_id=viewer, target_id=author))
    elif who == "muting follower":
        await mesh.graph.Mute(graph_pb2.MuteRequest(user_id=viewer, target_id=author))
    elif who == "of a deleted author":
        await mesh.graph.DeleteUser(graph_pb2.DeleteUserRequest(user_id=author))
    elif who == "of a deleted post":
        await mesh.post.DeletePost(post_pb2.DeletePostRequest(post_id=post, user_id=author))
    sees = SEES[who][list(ACCOUNTS).index(account)]
    return Case(
        0 if who == "nobody" else viewer,
        author,
        post,
        sharer,
        share,
        quote,
        comment,
        sees,
        sees and who not in NOT_IN_FEED,
    )


# What can reveal a post: each asks for one, and says whether it was revealed.

Reveals = Callable[[WholeMesh, Case], Awaitable[bool]]
PROBES: dict[str, Reveals] = {}
ROUTES: dict[str, Reveals] = {}


def rpc(name: str, probes: dict[str, Reveals] = PROBES) -> Callable[[Reveals], Reveals]:
    """Adds a probe of an RPC, or of its route."""

    def add(probe: Reveals) -> Reveals:
        probes[name] = probe
        return probe

    return add


def viewing(case: Case) -> int | None:
    """The viewer of a read; nobody leaves it out."""
    return case.viewer or None


async def found(call: Awaitable[Any], *reasons: str) -> Any:
    """The answer, or None where it is that there is nothing."""
    try:
        return await call
    except errors.NotFound as error:
        if error.reason not in (reasons or ("POST_NOT_FOUND",)):
            raise
        return None


def nested_is(posts: Any, case: Case, expected: bool) -> None:
    """Holds of each way a post is shown by others: the quote always, its original within only where it is seen."""
    quotes = [post for post in posts if post.post_id == case.quote]
    assert [post.HasField("shared_post") for post in quotes] == [expected] * len(quotes)


@rpc("GetPost")
async def get_post(mesh: WholeMesh, case: Case) -> bool:
    asked = {
        post_id: post_pb2.GetPostRequest(post_id=post_id, viewer_id=viewing(case))
        for post_id in (case.post, case.share)
    }
    own, share = [await found(mesh.post.GetPost(request)) for request in asked.values()]
    quote = await mesh.post.GetPost(post_pb2.GetPostRequest(post_id=case.quote, viewer_id=viewing(case)))
    nested_is([quote.post], case, case.sees)
    assert (own is None) == (share is None)
    return own is not None


@rpc("BatchGetPosts")
async def batch_get_posts(mesh: WholeMesh, case: Case) -> bool:
    request = post_pb2.BatchGetPostsRequest()
    request.items.add(viewer_id=case.viewer, post_ids=[case.post, case.share, case.quote])
    posts = (await mesh.post.BatchGetPosts(request)).items[0].page.posts
    nested_is(posts, case, case.sees)
    shown = {post.post_id for post in posts}
    assert case.quote in shown
    assert (case.post in shown) == (case.share in shown)
    return case.post in shown


@rpc("ListUserPosts")
async def list_user_posts(mesh: WholeMesh, case: Case) -> bool:
    pages = [
        await found(
            mesh.post.ListUserPosts(post_pb2.ListUserPostsRequest(user_id=user_id, viewer_id=viewing(case))),
            "USER_NOT_FOUND",
        )
        for user_id in (case.author, case.sharer)
    ]
    of_author, of_sharer = ({post.post_id for post in page.posts} if page else set() for page in pages)
    nested_is(pages[1].posts, case, case.sees)
    assert (case.share in of_sharer) == (case.post in of_author)
    return case.post in of_author


@rpc("BatchListUserPosts")
async def list_posts_of_many(mesh: WholeMesh, case: Case) -> bool:
    items = [
        post_pb2.ListUserPostsRequest(user_id=user_id, viewer_id=viewing(case))
        for user_id in (case.author, case.sharer)
    ]
    answer = await mesh.post.BatchListUserPosts(post_pb2.BatchListUserPostsRequest(items=items))
    for item in answer.items:
        if item.HasField("error"):
            assert errors.from_status(item.error).reason == "USER_NOT_FOUND"
    of_author, of_sharer = ({post.post_id for post in item.result.posts} for item in answer.items)
    nested_is(answer.items[1].result.posts, case, case.sees)
    assert (case.share in of_sharer) == (case.post in of_author)
    return case.post in of_author


def act(name: str, **more: str) -> Reveals:
    """A probe of something that one does to a post: it says that the post is there by not saying the opposite."""

    async def probe(mesh: WholeMesh, case: Case) -> bool:
        request = getattr(post_pb2, f"{name}Request")
        answers = [
            await found(getattr(mesh.post, name)(request(user_id=case.viewer, post_id=post_id, **more)))
            for post_id in (case.post, case.share)
        ]
        assert (answers[0] is None) == (answers[1] is None)
        return answers[0] is not None

    return probe


def act_of_many(name: str, many: str, **more: str) -> Reveals:
    """The same of a batch, in which somebody else does it, too."""

    async def probe(mesh: WholeMesh, case: Case) -> bool:
        request = getattr(post_pb2, f"{name}Request")
        items = [
            request(user_id=user_id, post_id=post_id, **more)
            for post_id in (case.post, case.share)
            for user_id in (case.viewer, case.sharer, case.viewer)
        ]
        answer = await getattr(mesh.post, many)(getattr(post_pb2, f"{many}Request")(items=items))
        outcomes = [item.WhichOneof("outcome") for item in answer.items]
        for item in answer.items:
            if item.HasField("error"):
                assert errors.from_status(item.error).reason == "POST_NOT_FOUND"
        own = {outcome for at, outcome in enumerate(outcomes) if at % 3 != 1}
        assert len(own) == 1
        return own == {"result"}

    return probe


PROBES["LikePost"] = act("LikePost")
PROBES["UnlikePost"] = act("UnlikePost")
PROBES["SharePost"] = act("SharePost", content="look")
PROBES["CreateComment"] = act("CreateComment", content="words")
PROBES["BatchLikePosts"] = act_of_many("LikePost", "BatchLikePosts")
PROBES["BatchUnlikePosts"] = act_of_many("UnlikePost", "BatchUnlikePosts")
PROBES["BatchCreateComments"] = act_of_many("CreateComment", "BatchCreateComments", content="words")


@rpc("ListComments")
async def list_comments(mesh: WholeMesh, case: Case) -> bool:
    request = post_pb2.ListCommentsRequest(post_id=case.post, viewer_id=viewing(case))
    return await found(mesh.post.ListComments(request)) is not None


async def refused(call: Awaitable[Any], reason: str) -> bool:
    """Whether a deletion of what is someone else's is refused as such, and not as of nothing."""
    with pytest.raises(errors.Error) as caught:
        await call
    assert caught.value.reason in ("NOT_OWNER", reason)
    return caught.value.reason == "NOT_OWNER"


@rpc("DeletePost")
async def delete_post(mesh: WholeMesh, case: Case) -> bool:
    request = post_pb2.DeletePostRequest(post_id=case.post, user_id=case.viewer)
    return await refused(mesh.post.DeletePost(request), "POST_NOT_FOUND")


@rpc("DeleteComment")
async def delete_comment(mesh: WholeMesh, case: Case) -> bool:
    request = post_pb2.DeleteCommentRequest(comment_id=case.comment, user_id=case.viewer)
    return await refused(mesh.post.DeleteComment(request), "COMMENT_NOT_FOUND")


def in_page(page: Any, case: Case) -> bool:
    """Whether a page of a feed shows the post; its quote it always does."""
    shown = [post.post_id for post in page.posts]
    assert len(shown) == len(set(shown))
    if case.viewer != case.author:
        assert case.quote in shown
        nested_is(page.posts, case, case.in_feed)
    assert case.share not in shown
    return case.post in shown


@rpc("GetFeed")
async def get_feed(mesh: WholeMesh, case: Case) -> bool:
    return in_page(await mesh.timeline.GetFeed(timeline_pb2.GetFeedRequest(user_id=case.viewer)), case)


@rpc("BatchGetLivePosts")
async def get_live_posts(mesh: WholeMesh, case: Case) -> bool:
    request = timeline_pb2.BatchGetLivePostsRequest()
    for row in ((case.share, case.sharer, case.post), (case.quote, case.sharer, case.quote)):
        request.items.add(member=members.pack_one(*row), user_ids=[case.viewer])
    for post_id in (case.post, case.quote):
        request.items.add(member=members.pack_one(post_id, 0, post_id), user_ids=[case.viewer], on_screen=True)
    *answers, post, quote = (await mesh.timeline.BatchGetLivePosts(request)).items
    assert (len(post.views), len(quote.views)) == (case.sees, 1)
    posts = [view.post for answer in answers for view in answer.views]
    nested_is(posts, case, case.in_feed)
    shown = {post.post_id for post in posts}
    assert case.quote in shown
    return case.post in shown


@rpc("BatchGetFeed")
async def batch_get_feed(mesh: WholeMesh, case: Case) -> bool:
    item = timeline_pb2.GetFeedRequest(user_id=case.viewer, order=timeline_pb2.FEED_ORDER_LATEST)
    answer = await mesh.timeline.BatchGetFeed(timeline_pb2.BatchGetFeedRequest(items=[item]))
    return in_page(answer.items[0].result, case)


@rpc("ListNotifications")
async def list_notifications(mesh: WholeMesh, case: Case) -> bool:
    request = timeline_pb2.ListNotificationsRequest(user_id=case.viewer)
    return case.post in {note.post.post_id for note in (await mesh.timeline.ListNotifications(request)).notifications}


@rpc("BatchListNotifications")
async def batch_list_notifications(mesh: WholeMesh, case: Case) -> bool:
    request = timeline_pb2.BatchListNotificationsRequest()
    request.items.add(user_id=case.viewer)
    [item] = (await mesh.timeline.BatchListNotifications(request)).items
    return case.post in {note.post.post_id for note in item.result.notifications}


@rpc("ExplainPost")
async def explain_post(mesh: WholeMesh, case: Case) -> bool:
    answers = [
        await found(mesh.timeline.ExplainPost(timeline_pb2.ExplainPostRequest(user_id=case.viewer, post_id=post_id)))
        for post_id in (case.post, case.share)
    ]
    for answer in answers:
        if answer is not None:
            answer.ClearField("rank")  # it is of this very moment
    assert answers[0] == answers[1]
    if answers[0] is not None:
        assert answers[0].post_id == case.post
        assert answers[0].in_feed == case.in_feed
    return answers[0] is not None


async def http(mesh: WholeMesh, method: str, path: str, **more: Any) -> Any:
    """A request's JSON; None where it is answered 404."""
    response = await mesh.http.request(method, path, **more)
    assert response.status_code < 500
    if response.status_code == 404:
        assert response.json()["code"] in ("post_not_found", "user_not_found", "comment_not_found")
        return None
    return response.json()


def route(name: str, method: str, path: str, acting: str, **body: str) -> None:
    """Adds the probe of a route: of the ones that act or read one post, a 404 says that it is not there."""

    async def probe(mesh: WholeMesh, case: Case) -> bool:
        target = path.format(post=case.post, comment=case.comment, author=case.author)
        who = {acting: case.viewer} if case.viewer else {}
        if method == "POST":
            return await http(mesh, method, target, json={**who, "post_id": case.post, **body}) is not None
        params = {**who, "post_id": case.post} if "explain" in path else who
        answer = await http(mesh, method, target, params=params)
        if answer is not None and "posts" in answer:
            return case.post in {post["post_id"] for post in answer["posts"]}
        if answer is not None and "notifications" in answer:
            return case.post in {(note["post"] or {}).get("post_id") for note in answer["notifications"]}
        return answer is not None

    ROUTES[name] = probe


route("GetPost", "GET", "/posts/{post}", "viewer_id")
route("ListUserPosts", "GET", "/users/{author}/posts", "viewer_id")
route("ListComments", "GET", "/posts/{post}/comments", "viewer_id")
route("DeletePost", "DELETE", "/posts/{post}", "user_id")
route("DeleteComment", "DELETE", "/comments/{comment}", "user_id")
route("LikePost", "POST", "/like", "user_id")
route("UnlikePost", "POST", "/unlike", "user_id")
route("SharePost", "POST", "/share", "user_id", content="look")
route("CreateComment", "POST", "/comments", "user_id", content="words")
route("GetFeed", "GET", "/feed", "user_id")
route("ListNotifications", "GET", "/notifications", "user_id")
route("ExplainPost", "GET", "/feed/explain", "user_id")

REVEALS_NOTHING = {
    "CreatePost": "shows the writer's own",
    "BatchCreatePosts": "shows the writers' own",
    "ReadNotifications": "a number",
    "CreateMedia": "shows the uploader's own",
    "BatchGetPublicMedia": "what everybody may see: see test_media.py",
    "ExportUser": "shows the person's own; of what they shared and liked, the id alone",
    "BatchListActs": "ids of posts that are theirs or mention them, to the timeline, which hydrates what it shows",
    "BatchListNewest": "ids, to services that hydrate what they show",
    "BatchListSharers": "ids of shares of posts that the caller names",
    "BatchGetEngagement": "counts, to ranking",
    "ListEngagement": "counts, to ranking",
    "ListPostCounts": "how much people wrote, to the operator",
    "ListPostRows": "ids, to the auditor",
    "GetPostRows": "ids, to the auditor",
    "CountTraces": "how much is left of an erased person",
    "WatchFeed": "ids of who is followed, to callers that show what BatchGetLivePosts gives",
    "BatchRank": "an order of what the caller names",
    "ExplainRank": "features of what the caller names, to the timeline",
}


def test_every_rpc_that_could_reveal_a_post_is_in_the_table() -> None:
    methods = [
        method
        for contract in (post_pb2, ranking_pb2, timeline_pb2)
        for service in contract.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert {method.name for method in methods} == PROBES.keys() | REVEALS_NOTHING.keys()
    routed = {method.name for method in methods if method.GetOptions().HasExtension(annotations_pb2.http)}
    assert routed - REVEALS_NOTHING.keys() == ROUTES.keys()
    assert "post" not in json.dumps(list(graph_pb2.DESCRIPTOR.services_by_name["GraphService"].methods_by_name)).lower()


def asked(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Who asks for what of whom."""
    return [
        (name, who, account)
        for name in names
        for who in SEES
        for account in ACCOUNTS
        if not (who == "nobody" and name not in READS) and not (who == "author" and name in DELETIONS)
    ]


def expected(name: str, case: Case) -> bool:
    return case.in_feed if name in ("GetFeed", "BatchGetFeed", "BatchGetLivePosts") else case.sees


@pytest.mark.parametrize(("name", "who", "account"), asked(PROBES))
async def test_a_post_is_revealed_to_those_who_may_see_it(
    mesh: WholeMesh, cases: Cases, who: str, account: str, name: str
) -> None:
    case = await cases.of(who, account)
    assert await PROBES[name](mesh, case) == expected(name, case)


@pytest.mark.parametrize(("name", "who", "account"), asked(ROUTES))
async def test_a_route_reveals_what_its_rpc_does(
    mesh: WholeMesh, cases: Cases, who: str, account: str, name: str
) -> None:
    case = await cases.of(who, account)
    assert await ROUTES[name](mesh, case) == expected(name, case)


# What may not be seen is as if it were not there.

HIDDEN = [
    ("stranger", "for followers"),
    ("stranger", "of a private account"),
    ("asked to follow", "of a private account"),
    ("blocked by author", "public"),
    ("blocks the author", "public"),
    ("of a deleted author", "public"),
    ("of a deleted post", "public"),
]
ASKED_FOR = {
    "GetPost": ("GET", "/posts/{post}?viewer_id={viewer}"),
    "ListComments": ("GET", "/posts/{post}/comments?viewer_id={viewer}"),
    "DeletePost": ("DELETE", "/posts/{post}?user_id={viewer}"),
    "LikePost": ("POST", "/like"),
    "UnlikePost": ("POST", "/unlike"),
    "SharePost": ("POST", "/share"),
    "CreateComment": ("POST", "/comments"),
    "ExplainPost": ("GET", "/feed/explain?user_id={viewer}&post_id={post}"),
}


async def told(mesh: WholeMesh, name: str, viewer: int, post: int) -> tuple[str, dict[str, float]]:
    """All that an answer says, but for the ids; and how often which RPC was called for it."""
    method, path = ASKED_FOR[name]
    before = calls()
    body = {"user_id": viewer, "post_id": post} | ({"content": "words"} if name == "CreateComment" else {})
    response = await mesh.http.request(
        method,
        path.format(post=post, viewer=viewer),
        json=body if method == "POST" else None,
        headers={"X-Request-Id": "same"},
    )
    assert response.status_code == 404
    headers = {key: value for key, value in response.headers.items() if key != "content-length"}
    # Asked for when the time has come, whoever asks for what.
    after = calls() | {"ListUserChanges": before.get("ListUserChanges", 0)}
    return (
        json.dumps([response.json(), headers]).replace(str(post), "ID"),
        {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)},
    )


def calls() -> dict[str, float]:
    return {
        sample.labels["grpc_method"]: sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "grpc_server_started_total"
    }


@pytest.mark.parametrize("name", ASKED_FOR)
@pytest.mark.parametrize(("who", "account"), HIDDEN)
async def test_what_may_not_be_seen_is_answered_and_asked_for_as_what_is_not_there(
    mesh: WholeMesh, cases: Cases, who: str, account: str, name: str
) -> None:
    case = await cases.of(who, account)
    await told(mesh, name, case.viewer, ABSENT)  # from now on it is known who asks
    assert await told(mesh, name, case.viewer, case.post) == await told(mesh, name, case.viewer, ABSENT)


async def test_a_plain_share_of_a_deleted_original_is_gone_and_a_quote_stands_alone(
    mesh: WholeMesh, cases: Cases
) -> None:
    case = await cases.of("of a deleted post", "public")
    assert not await get_post(mesh, case)
    for post_id, there in ((case.share, False), (case.quote, True)):
        request = post_pb2.GetPostRequest(post_id=post_id, viewer_id=case.sharer)
        assert (await found(mesh.post.GetPost(request)) is not None) == there


async def test_comments_of_those_whom_a_block_hides_are_left_out_and_the_page_is_filled(mesh: WholeMesh) -> None:
    author, viewer, hidden = await mesh.person(), await mesh.person(), await mesh.person()
    post = (await mesh.post.CreatePost(post_pb2.CreatePostRequest(user_id=author, content="words"))).post.post_id
    wanted = []
    for writer in (hidden, viewer, hidden, hidden, author, hidden, viewer):
        request = post_pb2.CreateCommentRequest(user_id=writer, post_id=post, content="words")
        made = (await mesh.post.CreateComment(request)).comment.comment_id
        wanted += [] if writer == hidden else [made]
    await mesh.graph.Block(graph_pb2.BlockRequest(user_id=hidden, target_id=viewer))
    read, cursor = [], ""
    while True:
        asked_for = post_pb2.ListCommentsRequest(post_id=post, viewer_id=viewer, limit=2, cursor=cursor)
        page = await mesh.post.ListComments(asked_for)
        read.append([comment.comment_id for comment in page.comments])
        if not page.HasField("next_cursor"):
            break
        cursor = page.next_cursor
    assert read == [wanted[:2], wanted[2:]]
