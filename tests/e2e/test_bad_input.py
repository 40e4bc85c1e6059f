"""Bad input, on a whole mesh: each is answered with a clear error that names the field, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.e2e.mesh import Json, Mesh

TOO_BIG = 2**53
UNKNOWN = 1


def bad(method: str, path: str, status: int, code: str, *fields: str, **request: Any) -> Any:
    """A request that must be refused."""
    return pytest.param(method, path, request, status, code, set(fields), id=f"{method} {path} {request}"[:120])


POST = {"user_id": UNKNOWN, "content": "hello"}
BAD = [
    bad("POST", "/posts", 404, "user_not_found", json=POST),
    bad("POST", "/posts", 400, "invalid_argument", "user_id", json={"content": "hello"}),
    bad("POST", "/posts", 400, "invalid_argument", "user_id", json={**POST, "user_id": 0}),
    bad("POST", "/posts", 400, "invalid_argument", "user_id", json={**POST, "user_id": -1}),
    bad("POST", "/posts", 400, "invalid_argument", "user_id", json={**POST, "user_id": TOO_BIG}),
    bad("POST", "/posts", 400, "invalid_argument", "user_id", json={**POST, "user_id": 2**70}),
    bad("POST", "/posts", 400, "invalid_argument", "user_id", json={**POST, "user_id": "1"}),
    bad("POST", "/posts", 400, "invalid_argument", "user_id", json={**POST, "user_id": 1.5}),
    bad("POST", "/posts", 400, "invalid_argument", "user_id", json={**POST, "user_id": True}),
    bad("POST", "/posts", 400, "invalid_argument", "user_id", json={**POST, "user_id": {"a": 1}}),
    bad("POST", "/posts", 400, "invalid_argument", "content", json={**POST, "content": 5}),
    bad("POST", "/posts", 400, "invalid_argument", "content", json={**POST, "content": ""}),
    bad("POST", "/posts", 400, "invalid_argument", "content", json={**POST, "content": " \n\t\u3000"}),
    bad("POST", "/posts", 400, "invalid_argument", "content", json={**POST, "content": "x" * 5001}),
    bad("POST", "/posts", 400, "invalid_argument", "content", json={**POST, "content": "a\0b"}),
    bad("POST", "/posts", 400, "invalid_argument", "media_url", json={**POST, "media_url": "javascript:alert(1)"}),
    bad("POST", "/posts", 400, "invalid_argument", "media_url", json={**POST, "media_url": "https://" + "x" * 2050}),
    bad("POST", "/posts", 400, "invalid_argument", "colour", json={**POST, "colour": "red"}),
    bad("POST", "/posts", 400, "invalid_argument", "user_id", "content", json={"user_id": "x", "content": []}),
    bad("POST", "/posts", 400, "malformed_json", content=b"{", headers={"content-type": "application/json"}),
    bad("POST", "/posts", 400, "malformed_json", content=b"[1]", headers={"content-type": "application/json"}),
    bad("POST", "/posts", 400, "malformed_json", content=b"", headers={"content-type": "application/json"}),
    bad("POST", "/posts", 400, "malformed_json", content=b"\xff", headers={"content-type": "application/json"}),
    bad("POST", "/posts", 400, "malformed_json", content=b"[" * 9999, headers={"content-type": "application/json"}),
    bad("POST", "/posts", 415, "unsupported_media_type", content=b"{}", headers={"content-type": "text/plain"}),
    bad("POST", "/posts", 415, "unsupported_media_type", data={"user_id": "1"}),
    bad("POST", "/posts", 413, "body_too_large", json={**POST, "content": "x" * 2**20}),
    bad("POST", "/posts", 413, "body_too_large", json={**POST, "content": "x" * 7 * 2**20}),
    bad(
        "POST", "/posts", 400, "invalid_argument", "Idempotency-Key", json=POST, headers={"Idempotency-Key": "x" * 256}
    ),
    bad("GET", "/feed", 400, "invalid_argument", "user_id"),
    bad("GET", f"/feed?user_id={UNKNOWN}", 404, "user_not_found"),
    bad("GET", "/feed?user_id=1&limit=0", 400, "invalid_argument", "limit"),
    bad("GET", "/feed?user_id=1&limit=101", 400, "invalid_argument", "limit"),
    bad("GET", "/feed?user_id=1&limit=ten", 400, "invalid_argument", "limit"),
    bad("GET", "/feed?user_id=1&limit=99999999999999999999", 400, "invalid_argument", "limit"),
    bad("GET", "/feed?user_id=1&order=oldest", 400, "invalid_argument", "order"),
    bad("GET", "/feed?user_id=1&user_id=2", 400, "invalid_argument", "user_id"),
    bad("GET", "/feed?user_id=1&colour=red", 400, "invalid_argument", "colour"),
    bad("POST", "/like", 404, "user_not_found", json={"user_id": UNKNOWN, "post_id": UNKNOWN}),
    bad("POST", "/like", 400, "invalid_argument", "post_id", json={"user_id": UNKNOWN}),
    bad("POST", "/follow", 400, "self_follow", "following_id", json={"follower_id": 7, "following_id": 7}),
    bad("POST", "/follow", 404, "user_not_found", json={"follower_id": UNKNOWN, "following_id": 2}),
    bad("POST", "/users", 400, "invalid_argument", "username", json={"username": "a b", "email": "a@example.org"}),
    bad("POST", "/users", 400, "invalid_argument", "email", json={"username": "a", "email": "nobody"}),
    bad("GET", "/posts/1", 404, "post_not_found"),
    bad("GET", "/posts/0", 400, "invalid_argument", "post_id"),
    bad("GET", "/posts/abc", 400, "invalid_argument", "post_id"),
    bad("GET", f"/posts/{TOO_BIG}", 400, "invalid_argument", "post_id"),
    bad("GET", "/users/1", 404, "user_not_found"),
    bad("GET", "/users/1/posts", 404, "user_not_found"),
    bad("GET", "/users/1/followers", 404, "user_not_found"),
    bad("DELETE", "/posts/1", 400, "invalid_argument", "user_id"),
    bad("DELETE", "/posts/1?user_id=1", 404, "post_not_found"),
    bad("DELETE", "/comments/1?user_id=1", 404, "comment_not_found"),
    bad("GET", "/nowhere", 404, "route_not_found"),
    bad("PUT", "/posts", 405, "method_not_allowed"),
    bad("DELETE", "/feed?user_id=1", 405, "method_not_allowed"),
]


@pytest.mark.parametrize(("method", "path", "request_", "status", "code", "fields"), BAD)
async def test_bad_input_is_refused_by_name(
    mesh: Mesh, method: str, path: str, request_: Json, status: int, code: str, fields: set[str]
) -> None:
    response = await mesh.http.request(method, path, **request_)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert {error["field"] for error in problem.get("errors", [])} == fields
    assert "Traceback" not in response.text
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize("path", ["/feed?user_id={b}", "/feed?user_id={a}&order=latest", "/users/{a}/posts"])
async def test_a_cursor_is_good_for_its_own_listing_only(mesh: Mesh, path: str) -> None:
    a, b = [await mesh.user(f"cursor.{name}.{abs(hash(path)) % 10**8}") for name in "ab"]
    for n in range(2):
        await mesh.post("/posts", {"user_id": a, "content": f"{n}"}, 201)
    cursor = (await mesh.get("/feed", user_id=a, limit=1))["next_cursor"]
    for foreign in (cursor, cursor[:-1], cursor[1:], cursor[:8] + "A" + cursor[9:], "x" * 20_000, "é", "%00"):
        url = httpx.URL(path.format(a=a, b=b)).copy_add_param("cursor", foreign)
        response = await mesh.http.get(url)
        assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor"), foreign
        assert [error["field"] for error in response.json()["errors"]] == ["cursor"]


async def test_names_are_taken_once_whatever_the_letter_case(mesh: Mesh) -> None:
    await mesh.user("taken.name")
    again = await mesh.post("/users", {"username": "Taken.Name", "email": "other@example.org"}, 409)
    assert again["code"] == "username_taken"
    again = await mesh.post("/users", {"username": "other.name", "email": "TAKEN.name@example.org"}, 409)
    assert again["code"] == "email_taken"


async def test_a_refused_write_leaves_nothing(mesh: Mesh) -> None:
    author = await mesh.user("nothing.left")
    await mesh.post("/posts", {"user_id": author, "content": ""}, 400)
    await mesh.post("/share", {"user_id": author, "post_id": UNKNOWN, "content": "quote"}, 404)
    await mesh.post("/follow", {"follower_id": author, "following_id": UNKNOWN}, 404)
    assert (await mesh.get(f"/users/{author}/posts"))["posts"] == []
    assert (await mesh.get(f"/users/{author}"))["following"] == 0
