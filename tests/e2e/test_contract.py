"""The contract at the edge, on a whole mesh: the owner's four calls to the letter, then the rest."""

from __future__ import annotations

import itertools

from tests.e2e.mesh import Json, Mesh

POST_FIELDS = {
    *("post_id", "user_id", "username", "content", "media_url", "created_at", "visibility", "likes", "comments"),
    *("shares", "liked", "shared_post", "shared_by"),
}


async def test_the_four_calls_of_the_owner(mesh: Mesh) -> None:
    author, reader = await mesh.user("owner.author"), await mesh.user("owner.reader")

    response = await mesh.http.post("/follow", json={"follower_id": reader, "following_id": author})
    assert (response.status_code, response.json()) == (200, {"status": "following"})

    body = {"user_id": author, "content": "This is a new post", "media_url": "https://example.org/a.jpg"}
    response = await mesh.http.post("/posts", json=body)
    post = response.json()
    assert response.status_code == 201
    assert post.keys() == POST_FIELDS
    assert {name: post[name] for name in body} == body
    assert (post["likes"], post["comments"], post["shares"], post["liked"]) == (0, 0, 0, False)
    assert (post["shared_post"], post["shared_by"], post["visibility"]) == (None, [], "public")

    response = await mesh.http.post("/like", json={"user_id": reader, "post_id": post["post_id"]})
    assert response.status_code == 200

    response = await mesh.http.get("/feed", params={"user_id": reader, "limit": 20})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"posts": [{**post, "likes": 1, "liked": True}], "next_cursor": None}


async def test_own_writes_show_in_the_next_read(mesh: Mesh) -> None:
    me, friend = await mesh.user("own.me"), await mesh.user("own.friend")
    theirs = await mesh.post("/posts", {"user_id": friend, "content": "theirs"}, 201)

    assert await feed(mesh, me) == []
    mine = await mesh.post("/posts", {"user_id": me, "content": "mine"}, 201)
    assert await feed(mesh, me) == [mine["post_id"]]
    await mesh.post("/follow", {"follower_id": me, "following_id": friend})
    assert await feed(mesh, me) == [mine["post_id"], theirs["post_id"]]
    await mesh.post("/unfollow", {"follower_id": me, "following_id": friend})
    assert await feed(mesh, me) == [mine["post_id"]]
    await mesh.http.delete(f"/posts/{mine['post_id']}", params={"user_id": me})
    assert await feed(mesh, me) == []


async def test_a_share_stands_once_with_its_sharers_and_a_quote_stands_alone(mesh: Mesh) -> None:
    reader, author, first, second = [await mesh.user(f"share.{name}") for name in ("reader", "author", "a", "b")]
    for followee in (first, second):
        await mesh.post("/follow", {"follower_id": reader, "following_id": followee})
    original = await mesh.post("/posts", {"user_id": author, "content": "original"}, 201)
    await mesh.post("/share", {"user_id": first, "post_id": original["post_id"]}, 201)
    between = await mesh.post("/posts", {"user_id": first, "content": "between"}, 201)
    share = await mesh.post("/share", {"user_id": second, "post_id": original["post_id"]}, 201)
    quote = await mesh.post("/share", {"user_id": second, "post_id": original["post_id"], "content": "quoted"}, 201)

    page = await mesh.get("/feed", user_id=reader, order="latest")
    assert [post["post_id"] for post in page["posts"]] == [quote["post_id"], original["post_id"], between["post_id"]]
    shown_quote, shown_original, _ = page["posts"]
    assert [sharer["username"] for sharer in shown_original["shared_by"]] == ["share.b", "share.a"]
    assert shown_original["shares"] == 3
    assert shown_quote["shared_post"]["post_id"] == original["post_id"]

    # A like of a plain share is a like of its original.
    liked = await mesh.post("/like", {"user_id": reader, "post_id": share["post_id"]})
    assert liked == {"post_id": original["post_id"], "liked": True, "likes": 1}


async def test_author_pages_comments_and_people(mesh: Mesh) -> None:
    author, reader = await mesh.user("pages.author"), await mesh.user("pages.reader")
    await mesh.post("/follow", {"follower_id": reader, "following_id": author})
    posts = [await mesh.post("/posts", {"user_id": author, "content": f"post {n}"}, 201) for n in range(7)]
    scrolled = await mesh.scroll(f"/users/{author}/posts", itertools.cycle([3, 1, 2]))
    assert [post["content"] for post in scrolled] == [f"post {n}" for n in reversed(range(7))]

    comment = {"user_id": reader, "post_id": posts[0]["post_id"]}
    written = [await mesh.post("/comments", {**comment, "content": f"comment {n}"}, 201) for n in range(3)]
    page = await mesh.get(f"/posts/{posts[0]['post_id']}/comments", limit=2)
    assert page["comments"] == written[:2]
    page = await mesh.get(f"/posts/{posts[0]['post_id']}/comments", limit=2, cursor=page["next_cursor"])
    assert (page["comments"], page["next_cursor"]) == (written[2:], None)
    response = await mesh.http.delete(f"/comments/{written[0]['comment_id']}", params={"user_id": reader})
    assert response.status_code == 200
    assert (await mesh.get(f"/posts/{posts[0]['post_id']}"))["comments"] == 2

    person = await mesh.get(f"/users/{author}", viewer_id=reader)
    assert (person["username"], person["email"], person["followers"], person["following"]) == ("pages.author", "", 1, 0)
    assert [user["user_id"] for user in (await mesh.get(f"/users/{author}/followers"))["users"]] == [reader]
    assert [user["user_id"] for user in (await mesh.get(f"/users/{reader}/following"))["users"]] == [author]


async def test_a_key_takes_effect_once(mesh: Mesh) -> None:
    author = await mesh.user("key.author")
    body: Json = {"user_id": author, "content": "once"}
    key = {"Idempotency-Key": "7f0c"}
    first = await mesh.post("/posts", body, 201, key)
    assert await mesh.post("/posts", body, 201, key) == first
    assert await feed(mesh, author) == [first["post_id"]]
    refused = await mesh.post("/posts", {**body, "content": "another"}, 422, key)
    assert refused["code"] == "request_id_reused"


async def test_pages_for_people_and_machines(mesh: Mesh) -> None:
    for path, content in (
        ("/", "text/html"),
        ("/docs", "text/html"),
        ("/metrics", "text/plain"),
        ("/openapi.json", "application/json"),
    ):
        response = await mesh.http.get(path, follow_redirects=True)
        assert response.status_code == 200, path
        assert response.headers["content-type"].startswith(content), path
    assert (await mesh.get("/readyz"))["ready"] is True


async def feed(mesh: Mesh, user_id: int) -> list[int]:
    """The ids of a feed's first page, newest first."""
    return [post["post_id"] for post in (await mesh.get("/feed", user_id=user_id, order="latest"))["posts"]]
