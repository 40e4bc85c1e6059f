"""Idempotency keys in a dictionary. No two requests of a fake overlap, so none is ever found in progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from runtime import errors

M = TypeVar("M", bound=Message)


class Answers:
    """The answers of writes that carried a key, by actor and key."""

    def __init__(self) -> None:
        self._given: dict[tuple[int, str], tuple[Message, Message]] = {}

    def once(self, request: Any, actor_id: int, work: Callable[[], M]) -> M:
        """Runs a write unless it was answered before. One that raises is not answered."""
        if not request.request_id:
            return work()
        key = (actor_id, request.request_id)
        if key not in self._given:
            self._given[key] = (request, work())
        first, answer = self._given[key]
        if first != request:
            raise errors.Refused("REQUEST_ID_REUSED", "this idempotency key came before with another request")
        return answer  # type: ignore[return-value]
