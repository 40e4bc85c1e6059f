"""Writes with a key on a real database: what is stored, when, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg
import pytest

from feedmesh.post.v1 import post_pb2 as pb
from runtime import errors, idempotency, postgres
from runtime.postgres import Connection, Pool
from services.post import store

ACTOR = 7


def request(content: str = "words", key: str = "key") -> pb.CreatePostRequest:
    return pb.CreatePostRequest(user_id=ACTOR, content=content, request_id=key)


async def publish(connection: Connection) -> pb.CreatePostResponse:
    [post_id] = await store.insert_posts(connection, [store.NewPost(ACTOR, "words", "", pb.VISIBILITY_PUBLIC)])
    return pb.CreatePostResponse(post=pb.Post(post_id=post_id))


async def number(pool: Pool, table: str) -> int:
    rows = await postgres.fetch(pool, f"SELECT count(*) FROM {table}")
    return int(rows[0][0])


async def test_the_answer_is_stored_with_the_write(post_pool: Pool) -> None:
    first = await idempotency.write(post_pool, request(), ACTOR, pb.CreatePostResponse, publish)
    again = await idempotency.write(post_pool, request(), ACTOR, pb.CreatePostResponse, publish)
    assert again == first
    assert (await number(post_pool, "posts"), await number(post_pool, "idempotency_keys")) == (1, 1)


async def test_without_a_key_nothing_is_stored(post_pool: Pool) -> None:
    for _ in range(2):
        await idempotency.write(post_pool, request(key=""), ACTOR, pb.CreatePostResponse, publish)
    assert (await number(post_pool, "posts"), await number(post_pool, "idempotency_keys")) == (2, 0)


async def test_while_the_first_runs_the_second_is_told_so_and_a_third_gets_its_answer(post_pool: Pool) -> None:
    running, finish = asyncio.Event(), asyncio.Event()

    async def slow(connection: Connection) -> pb.CreatePostResponse:
        answer = await publish(connection)
        running.set()
        await finish.wait()
        return answer

    first = asyncio.create_task(idempotency.write(post_pool, request(), ACTOR, pb.CreatePostResponse, slow))
    await running.wait()
    for content in ("words", "other words"):
        with pytest.raises(errors.Conflict) as caught:
            await idempotency.write(post_pool, request(content), ACTOR, pb.CreatePostResponse, publish)
        assert caught.value.reason == "REQUEST_IN_PROGRESS"
    await idempotency.write(post_pool, request(key="another"), ACTOR, pb.CreatePostResponse, publish)
    await idempotency.write(post_pool, request(), ACTOR + 1, pb.CreatePostResponse, publish)
    finish.set()
    answer = await first
    assert await idempotency.write(post_pool, request(), ACTOR, pb.CreatePostResponse, publish) == answer
    assert await number(post_pool, "posts") == 3


async def test_a_write_that_fails_leaves_neither_effect_nor_key(post_pool: Pool) -> None:
    async def fail(connection: Connection) -> pb.CreatePostResponse:
        await publish(connection)
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        await idempotency.write(post_pool, request(), ACTOR, pb.CreatePostResponse, fail)
    assert (await number(post_pool, "posts"), await number(post_pool, "idempotency_keys")) == (0, 0)
    await idempotency.write(post_pool, request(), ACTOR, pb.CreatePostResponse, publish)
    assert (await number(post_pool, "posts"), await number(post_pool, "idempotency_keys")) == (1, 1)


async def test_a_crash_between_the_write_and_its_commit_leaves_neither_effect_nor_key(post_pool: Pool) -> None:
    async def crash(connection: Connection) -> pb.CreatePostResponse:
        answer = await publish(connection)
        async with await psycopg.AsyncConnection.connect(str(post_pool.conninfo), autocommit=True) as killer:
            await killer.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        return answer

    with pytest.raises(psycopg.OperationalError) as caught:
        await idempotency.write(post_pool, request(), ACTOR, pb.CreatePostResponse, crash)
    assert isinstance(errors.from_exception(caught.value), errors.Unavailable)
    assert (await number(post_pool, "posts"), await number(post_pool, "idempotency_keys")) == (0, 0)
    await idempotency.write(post_pool, request(), ACTOR, pb.CreatePostResponse, publish)
    assert (await number(post_pool, "posts"), await number(post_pool, "idempotency_keys")) == (1, 1)


async def test_a_write_that_is_cancelled_leaves_neither_effect_nor_key(post_pool: Pool) -> None:
    running = asyncio.Event()

    async def hang(connection: Connection) -> pb.CreatePostResponse:
        await publish(connection)
        running.set()
        return await asyncio.Future()

    task = asyncio.create_task(idempotency.write(post_pool, request(), ACTOR, pb.CreatePostResponse, hang))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idempotency.write(post_pool, request(), ACTOR, pb.CreatePostResponse, publish)
    assert (await number(post_pool, "posts"), await number(post_pool, "idempotency_keys")) == (1, 1)


# Many writes in one transaction.


@dataclass
class Work:
    """Publishes what it is to; `bad` is refused by the database. Notes how many it was given at a time."""

    requests: Sequence[pb.CreatePostRequest]
    given: list[int] = field(default_factory=list)

    async def __call__(self, connection: Connection, places: list[int]) -> list[pb.CreatePostResponse | errors.Error]:
        self.given.append(len(places))
        answers: list[pb.CreatePostResponse | errors.Error] = []
        for place in places:
            if self.requests[place].content == "refused":
                answers.append(errors.NotFound("POST_NOT_FOUND"))
                continue
            answers.append(await publish(connection))
            if self.requests[place].content == "bad":
                await connection.execute("SELECT 1 / 0")
        return answers


async def write_all(pool: Pool, work: Work) -> list[str]:
    """What becomes of the work's requests, each of an actor of its own: a reason or "done"."""
    actors = list(range(len(work.requests)))
    outcomes = await idempotency.write_all(pool, work.requests, actors, pb.CreatePostResponse, work)
    return [outcome.reason if isinstance(outcome, errors.Error) else "done" for outcome in outcomes]


async def test_many_are_written_in_one_transaction_each_with_its_answer(post_pool: Pool) -> None:
    requests = [request(), request(key=""), request("refused"), request()]
    work = Work(requests)
    assert await write_all(post_pool, work) == ["done", "done", "POST_NOT_FOUND", "done"]
    assert (await number(post_pool, "posts"), await number(post_pool, "idempotency_keys")) == (3, 2)
    again = Work(requests)
    assert await write_all(post_pool, again) == ["done", "done", "POST_NOT_FOUND", "done"]
    assert (work.given, again.given) == ([4], [2])
    assert (await number(post_pool, "posts"), await number(post_pool, "idempotency_keys")) == (4, 2)


async def test_of_many_one_that_the_database_refuses_fails_alone_and_leaves_nothing(post_pool: Pool) -> None:
    work = Work([request(), request("bad"), request("refused"), request()])
    assert await write_all(post_pool, work) == ["done", "INTERNAL", "POST_NOT_FOUND", "done"]
    assert work.given == [4, 1, 1, 1, 1]
    assert (await number(post_pool, "posts"), await number(post_pool, "idempotency_keys")) == (2, 2)


async def test_many_whose_database_is_away_fail_together_and_are_not_tried_again(post_pool: Pool) -> None:
    work = Work([request(), request()])

    async def crash(connection: Connection, places: list[int]) -> list[pb.CreatePostResponse | errors.Error]:
        answers = await work(connection, places)
        async with await psycopg.AsyncConnection.connect(str(post_pool.conninfo), autocommit=True) as killer:
            await killer.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        return answers

    with pytest.raises(psycopg.OperationalError):
        await idempotency.write_all(post_pool, work.requests, [1, 2], pb.CreatePostResponse, crash)
    assert work.given == [2]
    assert (await number(post_pool, "posts"), await number(post_pool, "idempotency_keys")) == (0, 0)


async def test_of_many_only_those_are_told_to_wait_whose_keys_others_hold(post_pool: Pool) -> None:
    async with post_pool.connection() as other, other.transaction():
        await idempotency.claim(other, [(1, "key"), (3, "another")])
        work = Work([request(), request(), request(), request()])
        assert await write_all(post_pool, work) == ["done", "REQUEST_IN_PROGRESS", "done", "done"]
    assert await write_all(post_pool, Work(work.requests)) == ["done"] * 4
    assert await number(post_pool, "posts") == 4


async def test_of_two_with_one_key_among_many_the_first_is_done(post_pool: Pool) -> None:
    requests = [request(), request(), request("other words")]
    work = Work(requests)
    outcomes = await idempotency.write_all(post_pool, requests, [1, 1, 1], pb.CreatePostResponse, work)
    assert [isinstance(outcome, errors.Conflict) for outcome in outcomes] == [False, True, True]
    assert work.given == [1]


def test_a_fingerprint_is_of_type_and_content_and_not_of_the_key() -> None:
    same = {idempotency.fingerprint(request(key=key)) for key in ("", "a", "b")}
    assert len(same) == 1
    different = {
        idempotency.fingerprint(request()),
        idempotency.fingerprint(request("other words")),
        idempotency.fingerprint(pb.CreateCommentRequest(user_id=ACTOR, content="words", request_id="key")),
        idempotency.fingerprint(pb.LikePostRequest(user_id=1, post_id=2)),
        idempotency.fingerprint(pb.UnlikePostRequest(user_id=1, post_id=2)),
    }
    assert len(different) == 5


async def test_answers_are_pruned_after_a_day_in_bounded_rounds(post_pool: Pool) -> None:
    async with post_pool.connection() as connection:
        await connection.execute(
            """INSERT INTO idempotency_keys (actor_id, key, fingerprint, response, created_at)
            SELECT n, 'old', '', '', now() - interval '24 hours 1 minute' FROM generate_series(1, %s) AS n""",
            (idempotency.PRUNE_BATCH + 1,),
        )
        await connection.execute(
            """INSERT INTO idempotency_keys (actor_id, key, fingerprint, response, created_at)
            VALUES (1, 'young', '', '', now() - interval '23 hours 59 minutes')"""
        )
    assert await idempotency.prune(post_pool) is True
    assert await idempotency.prune(post_pool) is False
    assert await postgres.fetch(post_pool, "SELECT key FROM idempotency_keys") == [("young",)]
