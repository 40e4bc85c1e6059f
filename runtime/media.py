"""Where media are: names, URLs and their signatures, the same for the service that shows them and for who serves them.

A media's id is a hash of its content, so that what a URL gives never changes. A signature is for one media, all its
sizes, until a moment. That moment is rounded, so that a post which is shown again and again stays the same for hours.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping

from runtime.clock import Clock, wall_clock

SIZES: Mapping[str, str] = {
    "small": "image/webp",
    "medium": "image/webp",
    "large": "image/webp",
    "mp4": "video/mp4",
    "webm": "video/webm",
}
"""What there may be of a media, and its type."""
WINDOW_S = 12 * 3600
"""How long signed URLs stay the same; each is good for one to two of these."""
OURS = re.compile(r"/media/([0-9a-f]{64})/[0-9a-z]{1,16}(\?[!-~]*)?")


def id_of(digests: Mapping[str, str]) -> str:
    """The id of a media, by the SHA-256 (hexadecimal) of each of its sizes: 64 hexadecimal digits."""
    return hashlib.sha256("".join(f"{size} {digests[size]}\n" for size in sorted(digests)).encode()).hexdigest()


def key(media_id: str, size: str) -> str:
    """Under which key one size of a media is stored."""
    return f"{media_id}.{size}"


def path(media_id: str, size: str) -> str:
    """Where one size of a media is, at the gateway; and what a post holds as its media_url."""
    return f"/media/{media_id}/{size}"


class MediaUrls:
    """Makes URLs of media, and knows its own again."""

    def __init__(self, secret: str, base_url: str = "", *, clock: Clock = wall_clock) -> None:
        """`base_url` is the origin that media are shown from, without a slash at its end; "" is the gateway's own."""
        self._secret = secret.encode()
        self._base = base_url
        self._clock = clock

    def shown(self, media_url: str, *, public: bool) -> str:
        """What is shown for a post's media_url: signed unless everybody may see it. Others' URLs stay as they are."""
        if not media_url.startswith("/"):
            return media_url
        if public:
            return self._base + media_url
        expires = (self._now_s() // WINDOW_S + 2) * WINDOW_S
        return f"{self._base}{media_url}?expires={expires}&signature={self.sign(media_url.split('/')[2], expires)}"

    def media_id(self, url: str) -> str:
        """Of which media a URL is, in any form in which it was shown; "" for one of elsewhere."""
        found = OURS.fullmatch(url.removeprefix(self._base))
        return found[1] if found else ""

    def sign(self, media_id: str, expires: int) -> str:
        """The signature that is good until `expires`, in seconds since 1970."""
        return hmac.digest(self._secret, f"media {media_id} {expires}".encode(), "sha256").hex()

    def left_s(self, media_id: str, expires: int, signature: str) -> int:
        """For how many seconds a signature is good; 0 for one that is wrong or has expired."""
        right = hmac.compare_digest(signature.encode(), self.sign(media_id, expires).encode())
        # None is made for longer: a greater number is not to be kept for good by whoever once had the secret.
        return max(0, expires - self._now_s()) if right and expires <= self._now_s() + 2 * WINDOW_S else 0

    def _now_s(self) -> int:
        return self._clock() // 1000
