"""An image and a video on a whole mesh: from the upload to the feed, and to those who may see them alone."""

from __future__ import annotations

import asyncio
import io
import json
import time
from pathlib import Path

from PIL import Image

from tests.e2e.mesh import Json, Mesh
from tests.fakes import files


async def test_media_go_from_the_upload_to_the_feed_of_those_who_may_see_them(mesh: Mesh) -> None:
    author, reader = await mesh.user("media.author"), await mesh.user("media.reader")
    await mesh.post("/follow", {"follower_id": reader, "following_id": author})
    image = await upload(mesh, author, files.located_jpeg(6))
    video = await upload(mesh, author, files.video(frames=30, sound="aac"))

    refused = await mesh.http.post("/posts", json={"user_id": reader, "media_url": image["media_url"]})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "media_url")
    await mesh.post("/posts", {"user_id": author, "media_url": image["media_url"]}, 201)
    private = {"user_id": author, "media_url": video["media_url"], "visibility": "followers"}
    await mesh.post("/posts", private, 201)

    film, photo = await shown(mesh, reader)
    assert photo == f"/media/{image['media_id']}/large"
    response = await mesh.http.get(photo)
    assert response.headers["cache-control"] == "public, max-age=300, immutable"
    assert Image.open(io.BytesIO(response.content)).size == (48, 64)
    assert files.SECRET not in response.content
    part = await mesh.http.get(film, headers={"Range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, b"ftypisom")
    assert (await mesh.http.get(film.partition("?")[0])).status_code == 404
    assert (await mesh.http.get(film.replace("signature=", "signature=0"))).status_code == 403

    # The account turns private: what was public is had by a signature from now on.
    await mesh.http.patch(f"/users/{author}", json={"private": True})
    assert [url.partition("?")[0] for url in await shown(mesh, reader)] == [film.partition("?")[0], photo]
    for url in await shown(mesh, reader):
        assert (await mesh.http.get(url)).status_code == 200
    await until_status(mesh, photo, 404)
    assert [record["media"]["media_id"] for record in await export(mesh, author)] == [
        video["media_id"],
        image["media_id"],
    ]


async def test_bad_media_are_refused_and_nothing_of_them_stays(mesh: Mesh) -> None:
    someone = await mesh.user("media.someone")
    for content, status in (
        (b"", 422),
        (files.SVG, 415),
        (files.jpeg() + files.HTML, 422),
        (files.jpeg()[:-9], 422),
        (files.png_bomb(), 422),
        (files.jpeg() + bytes(11 * 2**20), 413),
    ):
        response = await mesh.http.post("/media", params={"user_id": someone}, content=content)
        assert response.status_code == status, response.text
    assert await export(mesh, someone) == []
    folder = Path(mesh.log).parent / "data" / "media"
    assert not [path for path in folder.glob("*") if "#" in path.name]


async def upload(mesh: Mesh, user_id: int, content: bytes) -> Json:
    response = await mesh.http.post("/media", params={"user_id": user_id}, content=content)
    assert response.status_code == 201, response.text
    return dict(response.json())


async def shown(mesh: Mesh, user_id: int) -> list[str]:
    """The media of somebody's feed, newest first."""
    await mesh.shows(user_id, [post["post_id"] for post in (await mesh.get("/feed", user_id=user_id))["posts"]])
    page = await mesh.get("/feed", user_id=user_id, order="latest")
    return [post["media_url"] for post in page["posts"]]


async def export(mesh: Mesh, user_id: int) -> list[Json]:
    """The records of somebody's media."""
    lines = (await mesh.http.get(f"/users/{user_id}/export")).text.splitlines()
    return [record for record in map(json.loads, lines) if "media" in record]


async def until_status(mesh: Mesh, url: str, status: int) -> None:
    end = time.monotonic() + 15
    while (await mesh.http.get(url)).status_code != status:
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
