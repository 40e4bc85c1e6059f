"""Objects: a folder, or a bucket of anything that speaks S3, behind one URL. Knows nothing of what they hold."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import IO, Annotated, Any, NamedTuple
from urllib.parse import unquote

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store
from pydantic import StringConstraints

from runtime import errors

Url = Annotated[
    str, StringConstraints(max_length=1024, pattern=r"^(file:///[^?#]+|s3://[a-z0-9][a-z0-9.-]+(/[^?#]*)?)$")
]
"""`file:///path/of/a/folder`, or `s3://bucket/prefix`, whose endpoint and credentials `AWS_` variables tell."""

REQUEST_S = 10.0
"""How long the store may take to say anything, and to delete."""
PUT_S = 60.0
"""How long an object may take to be stored."""
READ_S = 660
"""How long an object may take to be read: it goes at its reader's pace. Whoever reads bounds it by less."""
PIECE_BYTES = 256 * 2**10


class Piece(NamedTuple):
    """An object or a range of it, as it is read."""

    start: int
    end: int
    """The byte after the last."""
    size: int
    """Of the whole object."""
    content: AsyncIterator[Any]
    """Its bytes, some 256 KiB at once, as they are taken."""


class OutOfRange(Exception):
    """A range begins after an object's end."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Blobs:
    """A store of objects. Each is there whole or not at all."""

    def __init__(self, url: str) -> None:
        """`url` is a Url; a folder is made if absent."""
        self._store: LocalStore | S3Store
        if url.startswith("file://"):
            self._store = LocalStore(unquote(url.removeprefix("file://")), mkdir=True)
        else:
            self._store = S3Store.from_url(
                re.sub("/+$", "", url),
                # Whether that is right the endpoint's URL says.
                client_options={
                    "allow_http": True,
                    "timeout": timedelta(seconds=READ_S),
                    "connect_timeout": timedelta(seconds=5),
                },
                retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=REQUEST_S)},
            )

    async def put(self, key: str, file: IO[bytes], content_type: str) -> None:
        """Stores what a file holds from its beginning, in place of what was there. Raises Unavailable."""
        # A folder keeps no types: who serves an object knows its type by its name.
        attributes: Any = {"Content-Type": content_type} if isinstance(self._store, S3Store) else None
        file.seek(0)
        async with answering(PUT_S):
            await obstore.put_async(self._store, key, file, attributes=attributes)

    async def get(self, key: str, start: int | None = None, end: int | None = None) -> Piece | None:
        """An object from `start` (negative: the last so many bytes) up to and without `end`; None without the object.

        Raises Unavailable, and OutOfRange where it begins after the end.
        """
        span: Any = None
        if start is not None and start < 0:
            span = {"suffix": -start}
        elif start is not None:
            span = {"offset": start} if end is None else (start, end)
        try:
            async with answering(REQUEST_S):
                found = await obstore.get_async(self._store, key, options={"range": span} if span else None)
        except FileNotFoundError:
            return None
        except errors.Unavailable:
            # What a store says of such a range is its own affair; so it is asked how long the object is.
            if start is None or start < 0 or (size := await self.size(key)) is None or start < size:
                raise
            raise OutOfRange(size) from None
        first, last = found.range
        return Piece(first, last, found.meta["size"], found.stream(min_chunk_size=PIECE_BYTES).__aiter__())

    async def size(self, key: str) -> int | None:
        """How many bytes an object has; None without it. Raises Unavailable."""
        try:
            async with answering(REQUEST_S):
                return int((await obstore.head_async(self._store, key))["size"])
        except FileNotFoundError:
            return None

    async def delete(self, keys: Iterable[str]) -> None:
        """Deletes those of the objects that there are. Raises Unavailable."""
        async with answering(REQUEST_S):
            for key in keys:
                with suppress(FileNotFoundError):
                    await obstore.delete_async(self._store, key)


@asynccontextmanager
async def answering(seconds: float) -> AsyncGenerator[None, None]:
    """Bounds how long the store may take; what it fails with is Unavailable, but for an object that is not there."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except FileNotFoundError:
        raise
    except TimeoutError:
        raise errors.Unavailable("the store of media took too long") from None
    except (BaseError, OSError) as error:
        raise errors.Unavailable("the store of media cannot be used") from error
