"""Media from end to end: HTTP, the gateway, its processes, the post and graph services on their databases, a store."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import pytest_asyncio
from moto.server import ThreadedMotoServer
from PIL import Image

from feedmesh.graph.v1 import graph_pb2
from feedmesh.post.v1 import post_pb2 as pb
from feedmesh.post.v1.post_pb2_grpc import PostServiceStub, add_PostServiceServicer_to_server
from gateway import media as edge
from gateway import server
from gateway.app import App
from gateway.routes import of_contracts
from runtime import client, errors, postgres
from runtime.blobs import Blobs, OutOfRange
from runtime.media import SIZES, WINDOW_S, MediaUrls, key
from runtime.paging import Cursors
from services.post import eraser, media, people, servicer
from services.post.sight import Sights
from tests.fakes import files
from tests.fakes.serving import CALLER, GraphService, serving

SECRET = "a secret of at least 32 characters"
DAY_MS = 86_400_000
Json = dict[str, Any]


@dataclass
class Hour:
    """A clock that a test moves."""

    later_ms: int = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.later_ms


@dataclass
class Mesh:
    """The services behind a gateway."""

    graph: Any
    post: Any
    pool: postgres.Pool
    blobs: Blobs
    http: httpx.AsyncClient
    address: tuple[str, int]
    clock: Hour
    downloads: edge.Downloads
    people: int = field(default=0)

    async def person(self, *, private: bool = False) -> int:
        self.people += 1
        name = f"person{self.people}"
        request = graph_pb2.CreateUserRequest(username=name, email=f"{name}@example.org")
        user_id = int((await self.graph.CreateUser(request)).user.user_id)
        await self.set_private(user_id, private)
        return user_id

    async def set_private(self, user_id: int, private: bool) -> None:
        await self.graph.UpdateUser(graph_pb2.UpdateUserRequest(user_id=user_id, private=private))

    async def upload(self, user_id: int, content: bytes) -> Json:
        response = await self.http.post("/media", params={"user_id": user_id}, content=content)
        assert response.status_code == 201, response.text
        return dict(response.json())

    async def write(self, user_id: int, media_url: str, **more: Any) -> Json:
        response = await self.http.post("/posts", json={"user_id": user_id, "media_url": media_url, **more})
        assert response.status_code == 201, response.text
        return dict(response.json())

    async def shown(self, post_id: int, viewer_id: int) -> str:
        """The media_url of a post as somebody sees it: the same by every way."""
        one = await self.http.get(f"/posts/{post_id}", params={"viewer_id": viewer_id})
        item = pb.BatchGetPostsRequest.Item(viewer_id=viewer_id, post_ids=[post_id])
        [page] = (await self.post.BatchGetPosts(pb.BatchGetPostsRequest(items=[item]))).items
        [post] = page.page.posts
        assert one.json()["media_url"] == post.media_url
        return str(post.media_url)

    async def get(self, url: str, **headers: str) -> httpx.Response:
        """What is at a URL, whatever was known of it."""
        self.downloads._public.clear()
        return await self.http.get(url, headers=headers)

    async def stored(self, media_id: str) -> set[str]:
        """Which sizes are in the store."""
        return {size for size in SIZES if await self.blobs.size(key(media_id, size)) is not None}

    async def clear(self, *, later: bool = True) -> None:
        """What upkeep does, and all of it: as if minutes had passed since it was noted."""
        while await media.forget_unshown(self.pool):
            pass
        if later:
            await self.run("UPDATE media_left SET left_at = left_at - interval '5 minutes'")
        await media.clear_left(self.pool, self.blobs)

    async def run(self, statement: str) -> list[Any]:
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Where something listens that speaks S3."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    """A store of each kind, empty."""
    if request.param == "folder":
        return Blobs(f"file://{tmp_path}/with%20space")
    url = request.getfixturevalue("s3")
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = re.sub("[^a-z0-9]", "", tmp_path.name.lower())
    assert httpx.put(f"{url}/{bucket}").status_code == 200
    return Blobs(f"s3://{bucket}/some/prefix/")


@asynccontextmanager
async def serve(graph: GraphService, pool: postgres.Pool, blobs: Blobs, **bounds: Any) -> AsyncIterator[Mesh]:
    clock = Hour()
    urls = MediaUrls(SECRET, clock=clock)
    posts = servicer.PostServicer(pool, Sights(graph.stub, urls), Cursors(SECRET))
    listener = server.listen("127.0.0.1", 0)
    stopping = asyncio.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(people, "FRESH_S", 0.0)
        async with (
            serving(lambda s: add_PostServiceServicer_to_server(posts, s), services=(servicer.SERVICE,)) as served,
            client.connect(served.target, CALLER, servicer.SERVICE) as channel,
            httpx.AsyncClient(base_url=f"http://{server.name(listener)}", timeout=60) as http,
        ):
            stub = PostServiceStub(channel)
            routes = [(route, route.call(channel)) for route in of_contracts() if route.service == "post"]
            of_media = edge.routes(stub, blobs, urls, edge.Bounds(2**20, 2**21, 2)._replace(**bounds))
            app = App(routes, {}, media=of_media, timeout_s=5, max_requests=8)
            task = asyncio.create_task(server.serve(app, listener, stopping))
            downloads: Any = of_media[1][2]
            yield Mesh(graph.stub, stub, pool, blobs, http, listener.getsockname(), clock, downloads)
            await http.aclose()
            stopping.set()
            await task


@pytest_asyncio.fixture
async def mesh(graph_service: GraphService, post_pool: postgres.Pool, blobs: Blobs) -> AsyncIterator[Mesh]:
    async with serve(graph_service, post_pool, blobs) as running:
        yield running


@pytest_asyncio.fixture
async def either(graph_service: GraphService, post_pool: postgres.Pool, store: Blobs) -> AsyncIterator[Mesh]:
    """A mesh on each kind of store."""
    async with serve(graph_service, post_pool, store) as running:
        yield running


def problem(response: httpx.Response, status: int, code: str, field_name: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert response.json()["code"] == code
    if field_name:
        assert [each["field"] for each in response.json()["errors"]] == [field_name]


# The whole way.


async def test_an_image_goes_all_the_way_and_is_gone_in_the_end(either: Mesh) -> None:
    ann = await either.person()
    made = await either.upload(ann, files.located_jpeg(6))
    assert (made["width"], made["height"], made["duration_ms"]) == (48, 64, 0)
    media_id, signed = made["media_id"], made["media_url"]
    assert await either.stored(media_id) == {"small", "medium", "large"}
    plain = f"/media/{media_id}/large"
    assert signed.startswith(plain + "?")
    problem(await either.get(plain), 404, "media_not_found")
    assert (await either.get(signed)).headers["cache-control"] == "private, max-age=300, immutable"

    post = await either.write(ann, signed)
    assert post["media_url"] == plain == await either.shown(post["post_id"], ann)
    for size in ("small", "medium", "large"):
        response = await either.get(f"/media/{media_id}/{size}")
        assert response.status_code == 200
        assert {
            "content-type": "image/webp",
            "cache-control": "public, max-age=300, immutable",
            "x-content-type-options": "nosniff",
            "content-security-policy": "default-src 'none'; sandbox",
            "content-disposition": "inline",
            "etag": f'"{media_id}.{size}"',
            "accept-ranges": "bytes",
        }.items() <= response.headers.items()
        assert Image.open(io.BytesIO(response.content)).size == (48, 64)
    problem(await either.get(f"/media/{media_id}/mp4"), 404, "media_not_found")

    assert (await either.http.delete(f"/posts/{post['post_id']}", params={"user_id": ann})).status_code == 200
    problem(await either.get(plain), 404, "media_not_found")
    await either.clear(later=False)
    assert await either.stored(media_id)  # an upload of before may still store them
    await either.clear()
    assert not await either.stored(media_id)
    problem(await either.get(signed), 404, "media_not_found")
    assert await either.run("SELECT media_id FROM media UNION ALL SELECT media_id FROM media_left") == []


async def test_a_video_is_given_in_ranges(either: Mesh) -> None:
    ann = await either.person()
    made = await either.upload(ann, files.video(frames=40, sound="aac"))
    url = made["media_url"]
    assert 3900 <= made["duration_ms"] <= 4100
    whole = await either.get(url)
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    content, size = whole.content, len(whole.content)
    assert made["bytes"] == size
    for asked, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=10-99", 10, 100),
        ("bytes=100-", 100, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=-{size + 5}", 0, size),
        (f"bytes={size - 1}-{size + 1000}", size - 1, size),
        ("bytes= 1-2", 1, 3),
    ):
        part = await either.get(url, Range=asked)
        assert (part.status_code, part.content) == (206, content[start:end]), asked
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert part.headers["content-length"] == str(end - start)
    for asked in ("bytes=0-1,5-6", "bytes=5-2", "bytes=x-", "lines=1-2", "bytes", "bytes=-", "bytes=1-2-3"):
        assert (await either.get(url, Range=asked)).content == content
    for asked in (f"bytes={size}-", "bytes=999999999999-", "bytes=-0"):
        beyond = await either.get(url, Range=asked)
        problem(beyond, 416, "range_not_satisfiable")
        assert beyond.headers["content-range"] == f"bytes */{size}"
    tag = whole.headers["etag"]
    assert (await either.get(url, Range="bytes=1-2", **{"If-Range": tag})).status_code == 206
    for other in ('"another"', f"W/{tag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert (await either.get(url, Range="bytes=1-2", **{"If-Range": other})).status_code == 200
    for names in (tag, f'"x", W/{tag}', "*"):
        same = await either.get(url, **{"If-None-Match": names})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert (await either.get(url, **{"If-None-Match": '"x"'})).status_code == 200
    head = await either.http.head(url, headers={"Range": "bytes=1-2"})
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(size), b"")


async def test_a_store_says_where_an_object_ends_and_forgets_what_is_deleted(store: Blobs) -> None:
    content = bytes(range(256)) * 40_000
    await store.put("a", io.BytesIO(content), "image/webp")
    await store.put("a", io.BytesIO(content), "image/webp")
    assert await store.size("a") == len(content)
    piece = await store.get("a", 5, 10)
    assert piece is not None
    assert (piece.start, piece.end, piece.size) == (5, 10, len(content))
    whole = await store.get("a")
    assert whole is not None
    assert b"".join([bytes(each) async for each in whole.content]) == content
    with pytest.raises(OutOfRange):
        await store.get("a", len(content))
    await store.delete(["a", "b"])
    assert await store.get("a") is None
    assert await store.size("a") is None


async def test_a_store_that_cannot_be_used_is_answered_503(
    graph_service: GraphService, post_pool: postgres.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:1", "ACCESS_KEY_ID": "k"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    async with serve(graph_service, post_pool, Blobs("s3://nowhere")) as mesh:
        ann = await mesh.person()
        failed = await mesh.http.post("/media", params={"user_id": ann}, content=files.jpeg())
        problem(failed, 503, "unavailable")
        media_id = "a" * 64
        expires = mesh.clock() // 1000 + 100
        signature = MediaUrls(SECRET).sign(media_id, expires)
        url = f"/media/{media_id}/large?expires={expires}&signature={signature}"
        problem(await mesh.get(url), 503, "unavailable")
        # What failed left a row that is cleared away like any that no post shows.
        await mesh.run("UPDATE media SET due_at = now()")
        assert not await media.forget_unshown(mesh.pool)
        assert await mesh.run("SELECT 1 FROM media") == []


# Who may have it.


async def test_what_not_everybody_may_see_is_had_by_a_signature_for_a_while(mesh: Mesh) -> None:
    ann, bob = await mesh.person(), await mesh.person()
    await mesh.graph.Follow(graph_pb2.FollowRequest(follower_id=bob, following_id=ann))
    made = await mesh.upload(ann, files.jpeg(1))
    post = await mesh.write(ann, made["media_url"], visibility="followers")
    plain = f"/media/{made['media_id']}/large"
    signed = await mesh.shown(post["post_id"], bob)
    assert signed == post["media_url"]
    assert signed.startswith(plain + "?expires=")
    problem(await mesh.get(plain), 404, "media_not_found")
    assert (await mesh.get(signed)).status_code == 200
    assert (await mesh.get(signed.replace("/large", "/small"))).status_code == 200  # one signature for all sizes

    # It stays the same for hours, and then is another; the one before is good for another window.
    left_ms = WINDOW_S * 1000 - mesh.clock() % (WINDOW_S * 1000)
    mesh.clock.later_ms = left_ms - 60_000
    assert await mesh.shown(post["post_id"], bob) == signed
    mesh.clock.later_ms = left_ms + 1_000
    renewed = await mesh.shown(post["post_id"], bob)
    assert renewed != signed
    assert (await mesh.get(signed)).status_code == (await mesh.get(renewed)).status_code == 200
    mesh.clock.later_ms = left_ms + WINDOW_S * 1000 - 100_000
    kept = int(re.search(r"max-age=(\d+)", (await mesh.get(signed)).headers["cache-control"])[1])  # type: ignore[index]
    assert 90 <= kept <= 100
    mesh.clock.later_ms = left_ms + WINDOW_S * 1000
    problem(await mesh.get(signed), 403, "invalid_signature")
    assert (await mesh.get(renewed)).status_code == 200


async def test_a_signature_is_for_one_media_and_one_moment(mesh: Mesh) -> None:
    ann = await mesh.person()
    one, other = await mesh.upload(ann, files.jpeg(1)), await mesh.upload(ann, files.jpeg(2))
    query = parse_qs(urlsplit(one["media_url"]).query)
    expires, signature = query["expires"][0], query["signature"][0]
    good = {"expires": expires, "signature": signature}
    wrong = (
        (other["media_id"], good),
        (one["media_id"], good | {"expires": str(int(expires) + 1)}),
        (one["media_id"], good | {"signature": signature[:-1] + ("0" if signature[-1] != "0" else "1")}),
        (one["media_id"], good | {"signature": signature.upper()}),
        (one["media_id"], good | {"signature": ""}),
        (one["media_id"], good | {"signature": "ü"}),
        (one["media_id"], {"expires": expires}),
        (one["media_id"], {"signature": signature}),
        ("b" * 64, good),
    )
    for media_id, params in wrong:
        response = await mesh.http.get(f"/media/{media_id}/large", params=params)
        problem(response, 403, "invalid_signature")
    far = MediaUrls(SECRET).sign(one["media_id"], 2**40)
    response = await mesh.http.get(f"/media/{one['media_id']}/large", params={"expires": 2**40, "signature": far})
    problem(response, 403, "invalid_signature")
    for params in ({**good, "size": "small"}, {**good, "x": "1"}, {"expires": "soon", "signature": signature}):
        problem(await mesh.http.get(f"/media/{one['media_id']}/large", params=params), 400, "invalid_argument")


async def test_an_account_that_turns_private_takes_its_media_with_it(mesh: Mesh) -> None:
    ann = await mesh.person()
    made = await mesh.upload(ann, files.jpeg())
    post = await mesh.write(ann, made["media_url"])
    plain = post["media_url"]
    assert (await mesh.get(plain)).status_code == 200
    await mesh.set_private(ann, True)
    problem(await mesh.get(plain), 404, "media_not_found")
    signed = await mesh.shown(post["post_id"], ann)
    assert (await mesh.get(signed)).status_code == 200
    await mesh.set_private(ann, False)
    assert await mesh.shown(post["post_id"], ann) == plain
    assert (await mesh.get(plain)).status_code == 200
    await mesh.graph.DeleteUser(graph_pb2.DeleteUserRequest(user_id=ann))
    problem(await mesh.get(plain), 404, "media_not_found")


async def test_what_one_shows_publicly_is_public_whoever_shows_it_privately(mesh: Mesh) -> None:
    ann, bob = await mesh.person(private=True), await mesh.person()
    of_ann, of_bob = await mesh.upload(ann, files.jpeg()), await mesh.upload(bob, files.jpeg())
    assert of_ann["media_id"] == of_bob["media_id"]
    await mesh.write(ann, of_ann["media_url"])
    problem(await mesh.get(f"/media/{of_ann['media_id']}/large"), 404, "media_not_found")
    post = await mesh.write(bob, of_bob["media_url"])
    assert (await mesh.get(post["media_url"])).status_code == 200
    await mesh.http.delete(f"/posts/{post['post_id']}", params={"user_id": bob})
    problem(await mesh.get(post["media_url"]), 404, "media_not_found")
    # What one lets go of stays for the other.
    await mesh.clear()
    assert await mesh.stored(of_ann["media_id"])
    assert (await mesh.get(of_ann["media_url"])).status_code == 200


async def test_a_post_shows_media_of_its_authors_own(mesh: Mesh) -> None:
    ann, bob = await mesh.person(), await mesh.person()
    made = await mesh.upload(ann, files.jpeg())
    plain = f"/media/{made['media_id']}/large"
    for user_id, url in ((bob, plain), (bob, made["media_url"]), (ann, f"/media/{'0' * 64}/large")):
        response = await mesh.http.post("/posts", json={"user_id": user_id, "content": "x", "media_url": url})
        problem(response, 400, "invalid_argument", "media_url")
    for url in ("/media/x/large", f"/media/{made['media_id']}", f"/media/{made['media_id']}/../x", "/etc/passwd"):
        response = await mesh.http.post("/posts", json={"user_id": ann, "content": "x", "media_url": url})
        problem(response, 400, "invalid_argument", "media_url")
    small = plain.replace("large", "small")
    for url in (plain, made["media_url"], small, f"{plain}?utm=1", "https://elsewhere.example/media/x.jpg"):
        shown = (await mesh.write(ann, url))["media_url"]
        assert shown == (url if url.startswith("https") else plain)
    # One that is refused fails alone.
    items = [pb.CreatePostRequest(user_id=user_id, media_url=plain) for user_id in (ann, bob, ann)]
    answer = await mesh.post.BatchCreatePosts(pb.BatchCreatePostsRequest(items=items))
    assert [item.WhichOneof("outcome") for item in answer.items] == ["result", "error", "result"]
    assert [field for field, _ in errors.from_status(answer.items[1].error).fields] == ["media_url"]


async def test_a_retry_of_a_post_has_a_signature_of_now(mesh: Mesh) -> None:
    ann = await mesh.person(private=True)
    made = await mesh.upload(ann, files.jpeg())
    request = pb.CreatePostRequest(user_id=ann, media_url=made["media_url"], request_id="once")
    first = (await mesh.post.CreatePost(request)).post
    mesh.clock.later_ms = DAY_MS
    again = (await mesh.post.CreatePost(request)).post
    assert again.post_id == first.post_id
    problem(await mesh.get(first.media_url), 403, "invalid_signature")
    assert (await mesh.get(again.media_url)).status_code == 200


async def test_another_origin_goes_before_what_is_shown(post_pool: postgres.Pool, graph_service: GraphService) -> None:
    urls = MediaUrls(SECRET, "https://media.example/x")
    media_id = "a" * 64
    assert urls.shown(f"/media/{media_id}/large", public=True) == f"https://media.example/x/media/{media_id}/large"
    for public in (True, False):
        assert urls.media_id(urls.shown(f"/media/{media_id}/large", public=public)) == media_id
    assert urls.media_id(f"/media/{media_id}/large") == media_id
    assert urls.media_id(f"https://other.example/media/{media_id}/large") == ""
    assert urls.shown("https://elsewhere.example/cat.jpg", public=False) == "https://elsewhere.example/cat.jpg"


# What is cleared away.


async def test_what_no_post_shows_goes_after_a_day_and_what_one_shows_stays(mesh: Mesh) -> None:
    ann = await mesh.person()
    shown, left = await mesh.upload(ann, files.jpeg(1)), await mesh.upload(ann, files.jpeg(2))
    posts = [await mesh.write(ann, shown["media_url"]) for _ in range(2)]
    await mesh.clear()
    assert await mesh.stored(left["media_id"])
    await mesh.run("UPDATE media SET due_at = due_at - interval '24 hours'")
    await mesh.clear()
    assert not await mesh.stored(left["media_id"])
    response = await mesh.http.post("/posts", json={"user_id": ann, "media_url": left["media_url"]})
    problem(response, 400, "invalid_argument", "media_url")
    # Of two posts that show it, one may go.
    for post, there in zip(posts, (True, False), strict=True):
        await mesh.http.delete(f"/posts/{post['post_id']}", params={"user_id": ann})
        await mesh.clear()
        assert bool(await mesh.stored(shown["media_id"])) == there


async def test_who_shows_the_same_keeps_no_upload_of_another(mesh: Mesh) -> None:
    ann, bob = await mesh.person(), await mesh.person()
    made, same = await mesh.upload(ann, files.jpeg()), await mesh.upload(bob, files.jpeg())
    assert made["media_id"] == same["media_id"]
    await mesh.write(bob, same["media_url"])
    await mesh.run("UPDATE media SET due_at = due_at - interval '24 hours'")
    await mesh.clear()
    assert await mesh.run("SELECT user_id FROM media") == [(bob,)]


async def test_an_upload_of_the_same_again_does_not_lose_its_objects(mesh: Mesh) -> None:
    ann, bob = await mesh.person(), await mesh.person()
    made = await mesh.upload(ann, files.jpeg())
    media_id = made["media_id"]
    await mesh.run("UPDATE media SET due_at = now()")
    assert not await media.forget_unshown(mesh.pool)
    await mesh.run("UPDATE media_left SET left_at = left_at - interval '5 minutes'")
    # While the objects are cleared away an upload waits, and stores them afterwards.
    deleting, may_go_on = asyncio.Event(), asyncio.Event()

    class Slow(Blobs):
        async def delete(self, keys: Any) -> None:
            deleting.set()
            await may_go_on.wait()
            await mesh.blobs.delete(keys)

    slow = object.__new__(Slow)
    clearing = asyncio.create_task(media.clear_left(mesh.pool, slow))
    await deleting.wait()
    again = asyncio.create_task(mesh.upload(bob, files.jpeg()))
    while not await mesh.run("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
        assert not again.done()
        await asyncio.sleep(0.01)
    may_go_on.set()
    await clearing
    assert (await again)["media_id"] == media_id
    assert await mesh.stored(media_id) == {"small", "medium", "large"}
    assert (await mesh.get((await again)["media_url"])).status_code == 200
    # What is uploaded again before its objects are cleared away is taken off the list.
    await mesh.run("UPDATE media SET due_at = now()")
    await media.forget_unshown(mesh.pool)
    await mesh.upload(ann, files.jpeg())
    await mesh.clear()
    assert await mesh.stored(media_id) == {"small", "medium", "large"}
    assert await mesh.run("SELECT 1 FROM media_left") == []


async def test_a_store_that_fails_to_delete_is_asked_again(mesh: Mesh, tmp_path: Path) -> None:
    ann = await mesh.person()
    made = await mesh.upload(ann, files.jpeg())
    await mesh.run("UPDATE media SET due_at = now()")
    await media.forget_unshown(mesh.pool)
    await mesh.run("UPDATE media_left SET left_at = left_at - interval '5 minutes'")

    class Broken(Blobs):
        async def delete(self, keys: Any) -> None:
            raise errors.Unavailable("the store of media cannot be used")

    with pytest.raises(errors.Unavailable):
        await media.clear_left(mesh.pool, object.__new__(Broken))
    assert await mesh.stored(made["media_id"])
    await mesh.clear()
    assert not await mesh.stored(made["media_id"])


async def test_media_are_exported_and_erased_with_their_owner(mesh: Mesh) -> None:
    ann = await mesh.person()
    one, two = await mesh.upload(ann, files.jpeg(1)), await mesh.upload(ann, files.jpeg(2))
    await mesh.write(ann, one["media_url"])
    lines = (await mesh.http.get(f"/users/{ann}/export")).text.splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["media"] for record in records if "media" in record] == [two, one]
    await mesh.graph.DeleteUser(graph_pb2.DeleteUserRequest(user_id=ann))
    async with mesh.pool.connection() as connection:
        while await eraser.step(connection, ann):
            pass
    traces = (await mesh.post.CountTraces(pb.CountTracesRequest(user_id=ann))).traces
    assert {trace.place: trace.count for trace in traces}["media"] == 0
    await mesh.clear()
    assert not await mesh.stored(one["media_id"]) | await mesh.stored(two["media_id"])


async def test_one_may_keep_so_much(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await mesh.person()
    monkeypatch.setattr(media, "MAX_UNATTACHED", 2)
    first = await mesh.upload(ann, files.jpeg(1))
    await mesh.upload(ann, files.jpeg(2))
    problem(await mesh.http.post(f"/media?user_id={ann}", content=files.jpeg(3)), 422, "media_limit")
    await mesh.upload(ann, files.jpeg(2))  # the same again takes no room
    await mesh.write(ann, first["media_url"])
    await mesh.upload(ann, files.jpeg(3))
    monkeypatch.setattr(media, "MAX_UNATTACHED", 100)
    monkeypatch.setattr(media, "MAX_MEDIA", 3)
    problem(await mesh.http.post(f"/media?user_id={ann}", content=files.jpeg(4)), 422, "media_limit")
    monkeypatch.setattr(media, "MAX_MEDIA", 100)
    request = pb.CreateMediaRequest(media_id="a" * 64, user_id=ann, size="mp4", bytes=2**31)
    with pytest.raises(errors.Refused, match="bytes"):
        await mesh.post.CreateMedia(request)


# What is refused at the edge.


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "invalid_media"),
        (files.SVG, 415, "unsupported_media_type"),
        (files.HTML, 415, "unsupported_media_type"),
        (files.jpeg() + files.ZIP_END, 422, "invalid_media"),
        (files.jpeg()[:-20], 422, "invalid_media"),
        (files.png_bomb(8_000, 8_000), 422, "media_too_large"),
        (files.jpeg() + bytes(2**20), 413, "body_too_large"),
        (files.video() + bytes(2**21), 413, "body_too_large"),
        (bytes(2**22), 415, "unsupported_media_type"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_bad_files_are_refused_by_name(mesh: Mesh, content: bytes, status: int, code: str, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 2**16):
            yield content[at : at + 2**16]

    ann = await mesh.person()
    response = await mesh.http.post(f"/media?user_id={ann}", content=pieces() if chunked else content)
    problem(response, status, code)
    assert await mesh.run("SELECT 1 FROM media") == []


async def test_who_uploads_must_be_somebody(mesh: Mesh) -> None:
    problem(await mesh.http.post("/media", content=files.jpeg()), 400, "invalid_argument", "user_id")
    problem(await mesh.http.post("/media?user_id=x", content=files.jpeg()), 400, "invalid_argument", "user_id")
    problem(await mesh.http.post("/media?user_id=4096", content=files.jpeg()), 404, "user_not_found")
    problem(await mesh.http.get("/media"), 405, "method_not_allowed")


OUTWARD = ("..%2f..%2fetc%2fpasswd/large", "%2e%2e/large", "a" * 64 + "/..%2fsecret", "a" * 64 + "/large%00")


@pytest.mark.parametrize("path", [*OUTWARD, "A" * 64 + "/large", "a" * 63 + "/large"])
async def test_a_path_that_would_lead_out_leads_nowhere(mesh: Mesh, path: str) -> None:
    problem(await mesh.http.get(f"/media/{path}"), 400, "invalid_argument")


async def test_paths_with_more_or_fewer_parts_are_none(mesh: Mesh) -> None:
    for path in (f"/media/{'a' * 64}", "/media/a/b/c", "/media//large", "/media/../media/x/y/../../.."):
        reader, writer = await asyncio.open_connection(*mesh.address)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert answer.split()[1] in (b"404", b"400")


async def test_a_slow_upload_is_given_up(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "GRACE_S", 0.3)
    ann = await mesh.person()
    content = files.jpeg()
    reader, writer = await asyncio.open_connection(*mesh.address)
    head = f"POST /media?user_id={ann} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    writer.write(head + content[:100])
    begun = time.monotonic()
    answer = await asyncio.wait_for(reader.read(), 20)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in answer
    assert time.monotonic() - begun < 15
    writer.close()


async def test_so_many_come_at_once_and_who_leaves_makes_room(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob = await mesh.person(), await mesh.person()
    monkeypatch.setattr(edge, "MAX_UPLOADS", 3)
    writers = []
    for user_id in (ann, ann, bob):
        _, writer = await asyncio.open_connection(*mesh.address)
        writer.write(f"POST /media?user_id={user_id} HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n".encode())
        writers.append(writer)
    deadline = time.monotonic() + 10
    while (await mesh.http.post(f"/media?user_id={ann}", content=b"")).json()["code"] != "too_many_uploads":
        assert time.monotonic() < deadline
    while (await mesh.http.post(f"/media?user_id={bob}", content=b"")).json()["code"] != "unavailable":
        assert time.monotonic() < deadline
    for writer in writers:
        writer.close()
    while (await mesh.http.post(f"/media?user_id={ann}", content=files.jpeg())).status_code != 201:
        assert time.monotonic() < deadline


async def test_a_client_that_leaves_an_answer_ends_it(mesh: Mesh) -> None:
    ann = await mesh.person()
    made = await mesh.upload(ann, files.jpeg())
    await mesh.blobs.put(key(made["media_id"], "large"), io.BytesIO(bytes(32 * 2**20)), "image/webp")
    reader, writer = await asyncio.open_connection(*mesh.address)
    writer.write(f"GET {made['media_url']} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await reader.read(1000)
    assert mesh.downloads._under_way == 1
    writer.close()
    deadline = time.monotonic() + 10
    while mesh.downloads._under_way:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
