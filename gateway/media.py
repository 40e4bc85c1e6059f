"""Images and videos at the edge: `POST /media` takes one, `GET /media/{media_id}/{size}` gives one.

    upload    body → file without a name → process of its own (media_worker.py) → row at the post service → store
    download  signature, or the post service: may everybody see it? → store → client, at its pace

The row comes before the objects: so that there is nothing in the store that nobody knows (services/post/media.py). What
fails on the way leaves a row that no post shows, and that is cleared away.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import orjson
from cachetools import TTLCache

from feedmesh.post.v1 import post_pb2 as pb
from gateway import media_worker as worker
from gateway import problems
from gateway.access import acting
from gateway.encode import Encoder
from gateway.exchange import Answer, Body, Request, Send, Sent, too_large, too_late, unless_gone
from gateway.transcode import Transcoder
from runtime import context, media
from runtime.blobs import Blobs, OutOfRange, Piece
from runtime.coalesce import RPC_ITEMS, Coalescer
from runtime.errors import Error, Unavailable
from runtime.media import SIZES, MediaUrls
from runtime.mesh import MAX_STREAM_S

if TYPE_CHECKING:
    from feedmesh.post.v1.post_pb2_grpc import PostServiceAsyncStub

log = logging.getLogger(__name__)

UPLOAD, DOWNLOAD = "/media", "/media/{media_id}/{size}"
MAX_UPLOADS, MAX_OF_USER = 16, 2
"""Files that are taken at once, in all and of one person."""
GRACE_S, MIN_BYTES_S, UPLOAD_S = 10.0, 2**16, 300.0
"""How slowly a file may come: it has so many seconds, and one more for so many bytes, but not more than the last."""
WRITTEN_BYTES = 2**20
"""What is written to the file at once."""
WORK_S = 60.0
"""How long a process may take, by the clock: three times its CPU time (media_worker.py)."""
SAID_BYTES = 2**14
"""What a process may say of what it made."""
CREATE_S = 5.0

MAX_DOWNLOADS = 256
"""Answers that are being sent, each with some 256 KiB in memory."""
PIECE_S = 10.0
"""How long the store may take for the next piece."""
FRESH_S, KNOWN = 2, 10_000
"""For how many seconds it is believed that everybody may see a media, and of how many."""
CACHED_S = 300
"""For how long clients and CDNs keep what they got: so long after a post is deleted, or an account turned private, a
CDN may still show its media."""
HEADERS = [
    # Pages of any origin may show what everybody may have, and what they have a signature for.
    (b"cross-origin-resource-policy", b"cross-origin"),
    # Should a browser ever take one for a page: nothing in it may run.
    (b"content-security-policy", b"default-src 'none'; sandbox"),
    (b"content-disposition", b"inline"),
    (b"accept-ranges", b"bytes"),
]
RANGE = re.compile(rb"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*")
BEYOND = 2**60
"""Where no object has a byte."""


class Bounds(NamedTuple):
    """What uploads may take."""

    image_bytes: int
    video_bytes: int
    workers: int
    """Processes at once."""


def routes(
    post: PostServiceAsyncStub, blobs: Blobs, urls: MediaUrls, bounds: Bounds
) -> list[tuple[str, str, Uploads | Downloads]]:
    """Template, method and target of each."""
    return [(UPLOAD, "POST", Uploads(post, blobs, bounds)), (DOWNLOAD, "GET", Downloads(post, blobs, urls))]


class Uploads:
    """`POST /media`: the body is the file."""

    def __init__(self, post: PostServiceAsyncStub, blobs: Blobs, bounds: Bounds) -> None:
        self._post = post
        self._blobs = blobs
        self._bounds = bounds
        self._workers = asyncio.Semaphore(bounds.workers)
        self._under_way: Counter[int] = Counter()
        self._transcoder = Transcoder(pb.UploadMediaRequest.DESCRIPTOR, (), has_body=False)
        self._encoder = Encoder(pb.CreateMediaResponse.DESCRIPTOR, "media")

    async def __call__(self, _path: Mapping[str, str], request: Request, _send: Send) -> Answer:
        """The answer: the media as it is stored by then. Raises Error, ClientGone."""
        user_id = self._acting(request)
        with self._room(user_id), ExitStack() as stack:
            # Files without a name: whatever becomes of this process, nothing is left of them.
            file, *made = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1 + len(worker.IMAGE_SIZES))]
            await self._receive(request.body, file)
            # Nothing has been written by then: whoever leaves makes room.
            result = await unless_gone(self._work(file, made), request.client)
            response = await self._store(user_id, result, dict(zip(result["sizes"], made, strict=False)))
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        return Answer(201, self._encoder(response), headers)

    async def _work(self, file: IO[bytes], made: Sequence[IO[bytes]]) -> Any:
        async with self._workers:
            return await work(file, made)

    def _acting(self, request: Request) -> int:
        """Who uploads."""
        asked: Any = self._transcoder({}, request.query, request.all_headers, b"", acting(request.identity))
        return int(asked.user_id)

    @contextmanager
    def _room(self, user_id: int) -> Iterator[None]:
        if self._under_way[user_id] >= MAX_OF_USER:
            raise Error("TOO_MANY_UPLOADS", f"{MAX_OF_USER} files of this person are on their way")
        if self._under_way.total() >= MAX_UPLOADS:
            raise Unavailable("as many files are on their way as are taken")
        self._under_way[user_id] += 1
        try:
            yield
        finally:
            self._under_way[user_id] -= 1
            self._under_way += Counter()  # forgets those at zero

    async def _receive(self, body: Body, file: IO[bytes]) -> None:
        """Writes the body to a file. Raises Error where it is too large, too slow, or by its beginning not taken."""
        loop = asyncio.get_running_loop()
        begun, seen, waiting, bound = loop.time(), 0, bytearray(), 0

        def take(piece: bytes) -> None:
            nonlocal seen, bound
            seen += len(piece)
            waiting.extend(piece)
            if not bound and (seen >= worker.SNIFFED_BYTES or body.done):
                bound = self._bound(bytes(waiting[: worker.SNIFFED_BYTES]))
            if bound and max(seen, body.length or 0) > bound:
                raise too_large(bound)

        try:
            async with asyncio.timeout(GRACE_S) as timeout, aclosing(body.pieces()) as pieces:
                async for piece in pieces:
                    take(piece)
                    timeout.reschedule(begun + min(GRACE_S + seen / MIN_BYTES_S, UPLOAD_S))
                    if len(waiting) >= WRITTEN_BYTES:
                        await asyncio.to_thread(file.write, bytes(waiting))
                        waiting.clear()
        except TimeoutError:
            raise too_late() from None
        if not seen:
            raise Error("INVALID_MEDIA", "the body is empty")
        file.write(waiting)
        file.flush()

    def _bound(self, beginning: bytes) -> int:
        """How many bytes a file may have that begins so. Raises Error (UNSUPPORTED_MEDIA_TYPE)."""
        if not beginning:
            return 1
        try:
            is_video = worker.is_video(worker.kind_of(beginning))
        except worker.Refused as refused:
            raise Error(refused.reason, refused.detail) from None
        return self._bounds.video_bytes if is_video else self._bounds.image_bytes

    async def _store(self, user_id: int, result: Any, made: Mapping[str, IO[bytes]]) -> pb.CreateMediaResponse:
        digests = {size: await asyncio.to_thread(digest, file) for size, file in made.items()}
        media_id = media.id_of(digests)
        context.deadline.set(time.monotonic() + CREATE_S)
        response = await self._post.CreateMedia(
            pb.CreateMediaRequest(
                media_id=media_id,
                user_id=user_id,
                size=result["sizes"][-1],
                width=result["width"],
                height=result["height"],
                duration_ms=result["duration_ms"],
                bytes=sum(file.tell() for file in made.values()),
            )
        )
        for size, file in made.items():
            await self._blobs.put(media.key(media_id, size), file, SIZES[size])
        return response


async def work(file: IO[bytes], made: Sequence[IO[bytes]]) -> Any:
    """Has a process of its own make of a file what is stored; says what it made.

    Raises Error (INVALID_MEDIA, MEDIA_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE), Unavailable where it does not get to an end.
    """
    # Into files and not pipes: whoever writes too much into a pipe would have to be read to its end.
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as cause:
        numbers = [each.fileno() for each in (file, *made)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", worker.__file__, *map(str, numbers)),
            pass_fds=numbers,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=cause,
        )
        try:
            async with asyncio.timeout(WORK_S):
                code = await process.wait()
        except TimeoutError:
            raise Unavailable("the file took too long") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        answer, trace = (os.pread(each.fileno(), SAID_BYTES, 0) for each in (said, cause))
    if code or trace:
        level = logging.WARNING if code else logging.DEBUG
        log.log(level, "a file was not read", extra={"exit_code": code, "cause": trace.decode(errors="replace")})
    if code < 0:  # of a signal: it is over its bounds, or a decoder broke
        raise Error("INVALID_MEDIA", "the file cannot be read within bounds of memory and time")
    if code:
        raise RuntimeError("media_worker.py failed")
    result: Any = orjson.loads(answer)
    if "reason" in result:
        raise Error(result["reason"], result["detail"])
    return result


def digest(file: IO[bytes]) -> str:
    """SHA-256 of what a file holds, in hexadecimal; the file stands at its end then."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


class Downloads:
    """`GET /media/{media_id}/{size}`, and HEAD."""

    def __init__(self, post: PostServiceAsyncStub, blobs: Blobs, urls: MediaUrls) -> None:
        self._post = post
        self._blobs = blobs
        self._urls = urls
        self._transcoder = Transcoder(pb.DownloadMediaRequest.DESCRIPTOR, ("media_id", "size"), has_body=False)
        self._public: TTLCache[str, None] = TTLCache(KNOWN, FRESH_S)
        self._ask = Coalescer("public_media", self._ask_together, max_weight=RPC_ITEMS)
        self._under_way = 0

    async def __call__(self, path: Mapping[str, str], request: Request, send: Send) -> Answer | Sent:
        """Answers. Raises what goes wrong before the first byte is sent."""
        asked: Any = self._transcoder(path, request.query, request.all_headers)
        await request.body.skip()
        if self._under_way >= MAX_DOWNLOADS:
            raise Unavailable("as many media are being sent as the gateway sends at once")
        self._under_way += 1
        try:
            return await unless_gone(self._answer(asked, request, send), request.client)
        finally:
            self._under_way -= 1

    async def _answer(self, asked: Any, request: Request, send: Send) -> Answer | Sent:
        cached = await self._cached(asked)
        key, tag = media.key(asked.media_id, asked.size), f'"{asked.media_id}.{asked.size}"'.encode()
        headers = [*HEADERS, (b"etag", tag), (b"cache-control", cached)]
        if names(request.headers.get(b"if-none-match", b""), tag):
            if await self._blobs.size(key) is None:
                raise not_found()
            return Answer(304, headers=headers)
        headers.append((b"content-type", SIZES[asked.size].encode()))
        if request.is_head:
            size = await self._blobs.size(key)
            return await self._send(None if size is None else Piece(0, size, size, nothing()), headers, request, send)
        span = None
        # If-Range: what the client has a part of must be this very thing.
        if request.headers.get(b"if-range", tag) == tag:
            span = range_of(request.headers.get(b"range", b""))
        try:
            return await self._send(await self._blobs.get(key, *span or ()), headers, request, send, is_part=bool(span))
        except OutOfRange as out:
            error = Error("RANGE_NOT_SATISFIABLE", f"the range begins after the last of {out.size} bytes")
            return problems.answer(error, request.id, [(b"content-range", b"bytes */%d" % out.size)])

    async def _cached(self, asked: Any) -> bytes:
        """How the answer may be kept. Raises Error unless who asks may have it."""
        if asked.HasField("signature") or asked.HasField("expires"):
            left_s = self._urls.left_s(asked.media_id, asked.expires, asked.signature)
            if not left_s:
                raise Error("INVALID_SIGNATURE", "the signature is wrong or has expired: read the post again")
            return b"private, max-age=%d, immutable" % min(left_s, CACHED_S)
        if asked.media_id not in self._public:
            if not await self._ask(asked.media_id):
                raise not_found()
            self._public[asked.media_id] = None
        return b"public, max-age=%d, immutable" % CACHED_S

    async def _ask_together(self, media_ids: Sequence[str]) -> list[bool]:
        answer = await self._post.BatchGetPublicMedia(pb.BatchGetPublicMediaRequest(media_ids=set(media_ids)))
        return [media_id in answer.media_ids for media_id in media_ids]

    async def _send(
        self,
        piece: Piece | None,
        headers: list[tuple[bytes, bytes]],
        request: Request,
        send: Send,
        *,
        is_part: bool = False,
    ) -> Sent:
        if piece is None:
            raise not_found()
        # Not this request's: it ends when all is sent, and that goes at the client's pace.
        context.deadline.set(None)
        status = 206 if is_part else 200
        headers += [(b"content-length", b"%d" % (piece.end - piece.start)), *request.answered_with]
        if is_part:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (piece.start, piece.end - 1, piece.size)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        try:
            async with asyncio.timeout(MAX_STREAM_S):
                while content := await next_of(piece.content):
                    # Waits while the client takes nothing; for how long, the server bounds.
                    await send({"type": "http.response.body", "body": content, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Exception as exception:
            log.warning("a media broke off", extra={"cause": repr(exception)})
            return Sent(503, whole=False)
        return Sent(status, whole=True)


async def next_of(content: AsyncIterator[Any]) -> bytes:
    """The next piece of an object; b"" at its end. Raises TimeoutError, and what the store fails with."""
    async with asyncio.timeout(PIECE_S):
        return bytes(await anext(content, b""))


async def nothing() -> AsyncIterator[bytes]:
    """An object without its content."""
    return
    yield


def not_found() -> Error:
    """There is no such media, or not for everybody."""
    return Error("MEDIA_NOT_FOUND", "there is no such media, or not without a signature")


def names(if_none_match: bytes, tag: bytes) -> bool:
    """Whether the header names a tag (RFC 9110, 13.1.2)."""
    return any(each.strip().removeprefix(b"W/") in (tag, b"*") for each in if_none_match.split(b","))


def range_of(header: bytes) -> tuple[int, int | None] | None:
    """The one range that the header asks for (RFC 9110, 14.2): its first byte, and the one after its last if said.

    A negative first byte counts from the end. None for no range, for several, and for what is none: then all is sent.
    """
    found = RANGE.fullmatch(header)
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        return (-int(suffix) or BEYOND), None
    if not last:
        return int(first), None
    return (int(first), int(last) + 1) if int(first) <= int(last) else None
