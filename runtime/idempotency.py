"""Writes that take effect once: the answer is stored under the request's key, in the write's own transaction.

A key belongs to one actor and one request. It is kept for a day; until then the same request with the same key gets the
first answer, and another request with it is refused.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from runtime import errors, metrics, postgres

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
KEPT_HOURS = 24
PRUNE_BATCH = 5_000


class Stored(NamedTuple):
    """An answer that is kept."""

    fingerprint: bytes
    response: bytes


async def write(
    pool: postgres.Pool,
    request: Any,
    actor_id: int,
    response: type[M],
    work: Callable[[postgres.Connection], Awaitable[M]],
) -> M:
    """Runs a write in one transaction and returns its answer; with a `request.request_id` it takes effect once.

    Raises Refused (REQUEST_ID_REUSED) when the actor's key came with another request, and Conflict
    (REQUEST_IN_PROGRESS) while the first request with it is running. A write that raised stored no answer.
    """

    async def only(connection: postgres.Connection, places: list[int]) -> list[M | errors.Error]:
        return [await work(connection) for _ in places]

    [answer] = await write_all(pool, [request], [actor_id], response, only)
    if isinstance(answer, errors.Error):
        raise answer
    return answer


async def write_all(
    pool: postgres.Pool,
    requests: Sequence[Any],
    actor_ids: Sequence[int],
    response: type[M],
    work: Callable[[postgres.Connection, list[int]], Awaitable[Sequence[M | errors.Error]]],
) -> list[M | errors.Error]:
    """Runs many writes in one transaction, each as by `write`; gives an answer or an error for each.

    `work` does those that are to be done, by their places in `requests`, as if one after the other. What it answers
    with an error it must have left alone. Where it raises, or the database refuses something, nothing is written, and
    each is tried in a transaction of its own, so that what is bad fails alone. Raises what stands for Unavailable
    (runtime/errors.py), which would fail them all; of a single request whatever it fails with.
    """
    try:
        return await postgres.transact(pool, lambda c: _attempt(c, requests, actor_ids, response, work))
    except Exception as exception:
        if len(requests) == 1 or isinstance(errors.from_exception(exception), errors.Unavailable):
            raise

    async def alone(place: int) -> M | errors.Error:
        try:
            [answer] = await write_all(
                pool, [requests[place]], [actor_ids[place]], response, lambda c, places: work(c, [place] * len(places))
            )
        except Exception as exception:
            if error := errors.from_exception(exception):
                return error
            log.exception("%s failed", requests[place].DESCRIPTOR.full_name)
            return errors.Error("INTERNAL", "internal error")
        return answer

    return [await alone(place) for place in range(len(requests))]


async def _attempt(
    connection: postgres.Connection,
    requests: Sequence[Any],
    actor_ids: Sequence[int],
    response: type[M],
    work: Callable[[postgres.Connection, list[int]], Awaitable[Sequence[M | errors.Error]]],
) -> list[M | errors.Error]:
    keyed: dict[tuple[int, str], int] = {}
    answers: dict[int, M | errors.Error] = {}
    for place, (request, actor_id) in enumerate(zip(requests, actor_ids, strict=True)):
        if request.request_id and keyed.setdefault((actor_id, request.request_id), place) != place:
            answers[place] = in_progress()
    prints = {key: fingerprint(requests[place]) for key, place in keyed.items()}
    if keyed:
        for key, found in (await claim(connection, list(keyed))).items():
            answers[keyed[key]] = found if isinstance(found, errors.Error) else replay(found, prints[key], response)
    places = [place for place in range(len(requests)) if place not in answers]
    if places:
        answers |= zip(places, await work(connection, places), strict=True)
    new = {
        key: answer
        for key, place in keyed.items()
        if place in places and not isinstance(answer := answers[place], errors.Error)
    }
    if new:
        await connection.execute(
            """
            INSERT INTO idempotency_keys (actor_id, key, fingerprint, response)
            SELECT * FROM unnest(%s::bigint[], %s::text[], %s::bytea[], %s::bytea[])""",
            (
                postgres.int8s([actor_id for actor_id, _ in new]),
                postgres.texts([key for _, key in new]),
                postgres.byteas([prints[key] for key in new]),
                postgres.byteas([answer.SerializeToString() for answer in new.values()]),
            ),
        )
    return [answers[place] for place in range(len(requests))]


async def claim(
    connection: postgres.Connection, keys: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], Stored | errors.Error]:
    """Locks the keys (actor and key) that nobody holds, until the transaction ends.

    Of those that others hold it gives a Conflict; of those that were answered before, what is stored.
    """
    columns = {
        "actors": postgres.int8s([actor_id for actor_id, _ in keys]),
        "keys": postgres.texts([key for _, key in keys]),
    }
    rows = await postgres.fetch(
        connection,
        """
        SELECT pg_try_advisory_xact_lock(hashtextextended(key, actor_id))
        FROM unnest(%(actors)s::bigint[], %(keys)s::text[]) WITH ORDINALITY AS item (actor_id, key, place)
        ORDER BY place""",
        columns,
    )
    locked = [row[0] for row in rows]
    # A statement of its own: it must see what was committed before the lock was had.
    rows = await postgres.fetch(
        connection,
        """
        SELECT actor_id, key, fingerprint, response
        FROM unnest(%(actors)s::bigint[], %(keys)s::text[]) AS item (actor_id, key)
        JOIN idempotency_keys USING (actor_id, key)""",
        columns,
    )
    found: dict[tuple[int, str], Stored | errors.Error] = {(row[0], row[1]): Stored(row[2], row[3]) for row in rows}
    return found | {key: in_progress() for key, mine in zip(keys, locked, strict=True) if not mine}


def replay(stored: Stored, digest: bytes, response: type[M]) -> M | errors.Error:
    """The first answer to a request; a Refused where it was another request."""
    if stored.fingerprint != digest:
        return errors.Refused("REQUEST_ID_REUSED", "this idempotency key came before with another request")
    metrics.IDEMPOTENT_REPLAYS.inc()
    return response.FromString(stored.response)


def in_progress() -> errors.Conflict:
    """Another request with the key is under way."""
    return errors.Conflict("REQUEST_IN_PROGRESS", "the request with this idempotency key is still running")


async def forget(connection: postgres.Connection, actor_id: int) -> None:
    """Deletes all answers of an actor who is erased."""
    await connection.execute("DELETE FROM idempotency_keys WHERE actor_id = %s", (actor_id,))


async def count(pool: postgres.Pool, actor_id: int) -> int:
    """How many answers of an actor are kept."""
    [row] = await postgres.fetch(
        pool, "SELECT count(*) FROM idempotency_keys WHERE actor_id = %(actor)s", {"actor": actor_id}
    )
    return int(row[0])


def fingerprint(request: Message) -> bytes:
    """SHA-256 over a request's type and its content, without its key and what is secret (`debug_redact`).

    Of a password even this would be too much: it is guessed a million times a second.
    """
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    for secret in secret_fields(request.DESCRIPTOR):
        content.ClearField(secret)
    name = content.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(name + b"\0" + content.SerializeToString(deterministic=True)).digest()


@cache
def secret_fields(message: Descriptor) -> tuple[str, ...]:
    """The fields of a message that are nobody's to see."""
    return tuple(field.name for field in message.fields if field.GetOptions().debug_redact)


async def prune(pool: postgres.Pool) -> bool:
    """Deletes up to 5,000 answers that are older than a day; True when there may be more."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            """
            DELETE FROM idempotency_keys WHERE (actor_id, key) IN (
                SELECT actor_id, key FROM idempotency_keys
                WHERE created_at < now() - make_interval(hours => %s) ORDER BY created_at LIMIT %s
            )""",
            (KEPT_HOURS, PRUNE_BATCH),
        )
        return cursor.rowcount == PRUNE_BATCH
