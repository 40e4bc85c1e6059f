"""Passwords: hashed by Argon2id (RFC 9106), a few at a time, as each takes 64 MiB and a good part of a core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher, profiles
from argon2.exceptions import VerificationError

from runtime.errors import Unavailable

T = TypeVar("T")
AT_ONCE = 2
MAX_WAITING = 32
"""Who wait for their turn; more are refused, so that a storm of sign-ins cannot use up the memory."""
HASHER = PasswordHasher.from_parameters(profiles.RFC_9106_LOW_MEMORY)
NOBODYS = HASHER.hash("a password that nobody has")
"""Compared with where there is no account, so that an answer takes as long as for one that there is."""


class Passwords:
    """Hashes and checks, in threads: the library lets go of the interpreter meanwhile."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """A password's hash, with its salt and parameters. Raises Unavailable when too many wait."""
        return await self._in_turn(HASHER.hash, password)

    async def matches(self, password: str, hashed: str | None) -> bool:
        """Whether it is the password; None matches nothing, in the same time. Raises Unavailable when too many wait."""
        return await self._in_turn(verify, hashed or NOBODYS, password) and hashed is not None

    async def _in_turn(self, work: Callable[..., T], *args: str) -> T:
        if self._waiting >= MAX_WAITING:
            raise Unavailable("too many are signing in at once")
        self._waiting += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(work, *args)
        finally:
            self._waiting -= 1


def verify(hashed: str, password: str) -> bool:
    """Whether the password has this hash."""
    try:
        return HASHER.verify(hashed, password)
    except VerificationError:
        return False


def needs_rehash(hashed: str) -> bool:
    """Whether it was made with other parameters than are used now."""
    return HASHER.check_needs_rehash(hashed)
