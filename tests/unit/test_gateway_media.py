"""What a stranger may write into a request for media, or into a file: read as it is meant, or refused."""

from __future__ import annotations

import mmap
from contextlib import closing, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import media_worker as worker
from gateway.media import names, range_of
from runtime.media import SIZES, WINDOW_S, MediaUrls, id_of
from tests.fakes import files

SECRET = "a secret of at least 32 characters"
MEDIA = "a" * 64


@given(st.integers(0, 10**18 - 1), st.integers(0, 10**18 - 1))
def test_a_range_is_read_as_it_is_written(first: int, last: int) -> None:
    assert range_of(b"bytes=%d-%d" % (first, last)) == ((first, last + 1) if first <= last else None)
    assert range_of(b"bytes=%d-" % first) == (first, None)
    if last:
        assert range_of(b"bytes=-%d" % last) == (-last, None)


@given(st.binary(max_size=40) | st.from_regex(rb"bytes=[ 0-9,x-]{0,40}", fullmatch=True))
def test_whatever_a_range_is_it_is_one_or_none(header: bytes) -> None:
    found = range_of(header)
    if found is not None:
        start, end = found
        assert end is None or 0 <= start < end


@given(st.binary(max_size=60))
def test_a_tag_is_matched_only_where_it_stands(header: bytes) -> None:
    assert names(header, b'"tag"') == any(each.strip() in (b'"tag"', b'W/"tag"', b"*") for each in header.split(b","))


@given(st.integers(0, 2**42), st.text(st.characters(codec="utf-8"), max_size=70), st.integers(-(2**62), 2**62))
def test_a_signature_is_good_for_what_was_signed_alone(now_ms: int, forged: str, expires: int) -> None:
    urls = MediaUrls(SECRET, clock=lambda: now_ms)
    shown = urls.shown(f"/media/{MEDIA}/large", public=False)
    given_expires, signature = (part.partition("=")[2] for part in shown.partition("?")[2].split("&"))
    left_s = urls.left_s(MEDIA, int(given_expires), signature)
    assert WINDOW_S < left_s <= 2 * WINDOW_S
    assert urls.left_s(MEDIA, expires, forged) == 0
    assert urls.left_s("b" * 64, int(given_expires), signature) == 0
    if expires != int(given_expires):
        assert urls.left_s(MEDIA, expires, signature) == 0
    assert MediaUrls(SECRET + "x", clock=lambda: now_ms).left_s(MEDIA, int(given_expires), signature) == 0
    # What is shown within one window is the same.
    later = MediaUrls(SECRET, clock=lambda: now_ms - now_ms % (WINDOW_S * 1000) + WINDOW_S * 1000 - 1)
    assert later.shown(f"/media/{MEDIA}/large", public=False) == shown


@given(st.text(max_size=120))
def test_of_a_url_only_ours_are_ours(url: str) -> None:
    found = MediaUrls(SECRET).media_id(url)
    assert found == "" or url.startswith(f"/media/{found}/")


def test_an_id_is_of_all_sizes_and_their_names() -> None:
    digests = dict.fromkeys(SIZES, "0" * 64)
    assert len({id_of(digests), id_of(digests | {"small": "1" * 64}), id_of({"mp4": "0" * 64})}) == 3
    assert id_of(dict(reversed(digests.items()))) == id_of(digests)


GOOD = {
    "jpeg": files.jpeg(),
    "png": files.encoded(files.picture(), "PNG"),
    "gif": files.encoded(files.picture(mode="P"), "GIF"),
    "webp": files.encoded(files.picture(), "WEBP"),
    "mp4": files.video(),
    "webm": files.video("libvpx", "webm"),
}


@pytest.mark.parametrize("kind", GOOD)
@given(data=st.data())
def test_whatever_a_file_holds_its_end_is_found_or_it_is_refused(kind: str, data: st.DataObject) -> None:
    content = bytearray(GOOD[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(worker.SNIFFED_BYTES, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    with closing(mmap.mmap(-1, len(content))) as mapped:
        mapped[:] = bytes(content)
        with suppress(worker.Refused):
            worker.require_whole(mapped, kind)
