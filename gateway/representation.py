"""How an answer goes out: its validator (ETag), who may keep it, its encoding (gzip). Knows no route."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import zlib
from dataclasses import replace
from functools import lru_cache

from gateway.exchange import Answer, Headers, Request

SHARED_S, STALE_S = 5, 5
"""How long a cache that many share may keep what everybody sees, and may still answer with it while it asks anew: so
long at the most a CDN shows what is gone (docs/privacy.md)."""
VARY = (b"vary", b"Authorization, Accept-Encoding")
SHARED: Headers = [
    (b"cache-control", b"public, max-age=0, s-maxage=%d, stale-while-revalidate=%d" % (SHARED_S, STALE_S)),
    VARY,
]
PRIVATE: Headers = [(b"cache-control", b"private, no-cache"), VARY]

MIN_GZIP_BYTES = 2**10
"""Of an answer that is worth compressing: less fits into one packet anyway."""
MAX_INLINE_BYTES = 2**16
"""Of an answer that is compressed at once; more is left to a thread, for it would hold all others up."""
GZIP_LEVEL = 1
"""Of zlib. A feed page of 7 KB becomes 2.1 in 46 us of a core; level 6 takes twice as long for 5 % less."""
GZIP_HEADERS: Headers = [(b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
TEXTS = (b"application/json", b"application/problem+json", b"text/")
MAX_ACCEPTED = 256
"""Bytes of an `Accept-Encoding` that is read."""
TAG = re.compile(rb'(?:W/)?("[^"]*")')
QUALITY = re.compile(rb"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


def validated(answer: Answer, request: Request, *, shared: bool) -> Answer:
    """The answer to a read with its ETag; 304 without its body where the client has it already (`If-None-Match`).

    `shared` is whether everybody sees the same, so that caches which many share may keep it for SHARED_S. The tag is a
    weak one: the same JSON has it whatever its encoding, and no part of an answer is ever asked for.
    """
    digest = base64.urlsafe_b64encode(hashlib.sha256(answer.body).digest()[:12])
    headers = [(b"etag", b'W/"%b"' % digest), *(SHARED if shared else PRIVATE)]
    if is_known(request.headers.get(b"if-none-match", b""), digest):
        return Answer(304, headers=headers)
    return replace(answer, headers=[*answer.headers, *headers])


def is_known(given: bytes, digest: bytes) -> bool:
    """Whether an `If-None-Match` has this tag. Weak and strong ones are compared alike (RFC 9110, 13.1.2)."""
    return bool(given) and (given == b"*" or b'"%b"' % digest in TAG.findall(given))


async def compressed(answer: Answer, request: Request) -> Answer:
    """The answer, by gzip where its client takes that and it is worth it: text of a read.

    Not an answer to a write: some hold tokens. BREACH finds a secret in an answer by what compresses well with it.
    Those of reads hold none, and no browser by itself adds a token to what a foreign page asks for.
    """
    accepted = request.headers.get(b"accept-encoding")
    if accepted is None or len(answer.body) < MIN_GZIP_BYTES or request.method not in ("GET", "HEAD"):
        return answer
    is_text = dict(answer.headers).get(b"content-type", b"").startswith(TEXTS)
    if not is_text or len(accepted) > MAX_ACCEPTED or not takes_gzip(accepted):
        return answer
    pack = gzipped_once if answer.is_fixed else gzipped
    if len(answer.body) <= MAX_INLINE_BYTES:
        body = pack(answer.body)
    else:
        body = await asyncio.to_thread(pack, answer.body)
    return replace(answer, body=body, headers=[*answer.headers, *GZIP_HEADERS])


def gzipped(content: bytes) -> bytes:
    """gzip's form of it (RFC 1952)."""
    return zlib.compress(content, GZIP_LEVEL, wbits=31)


gzipped_once = lru_cache(maxsize=16)(gzipped)
"""For the pages: a megabyte of Swagger UI would cost 20 ms of a core each time."""


@lru_cache(maxsize=256)
def takes_gzip(accepted: bytes) -> bool:
    """Whether gzip is wanted, and not less than no encoding, by an `Accept-Encoding` (RFC 9110, 12.5.3)."""
    quality: dict[bytes, float] = {}
    for part in accepted.lower().split(b","):
        coding, *weights = (each.strip() for each in part.split(b";"))
        found = QUALITY.fullmatch(weights[0]) if weights else None
        quality[coding] = float(found[1]) if found else 0.0 if weights else 1.0
    gzip = quality.get(b"gzip", quality.get(b"x-gzip", quality.get(b"*", 0.0)))
    return gzip > 0 and gzip >= quality.get(b"identity", 0.0)
