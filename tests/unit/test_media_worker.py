"""What becomes of uploaded files, each in a process of its own: good ones, and those that are meant to do harm."""

from __future__ import annotations

import io
import struct
import tempfile
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import av
import pytest
from PIL import Image, ImageCms

from gateway import media, media_worker
from runtime.errors import Error
from tests.fakes import files


async def made_of(content: bytes) -> tuple[Any, list[bytes]]:
    """What the worker says of a file, and what it made. Raises Error."""
    with ExitStack() as stack:
        file, *made = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(4)]
        file.write(content)
        file.flush()
        result = await media.work(file, made)
        for each in made:
            each.seek(0)
        return result, [each.read() for each in made]


async def refusal(content: bytes) -> str:
    """Why a file is refused."""
    with pytest.raises(Error) as caught:
        await made_of(content)
    return caught.value.reason


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


MODES = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGBA", "P", "LA", "1", "I;16"), "WEBP": ("RGB", "RGBA"), "GIF": ("P",)}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, mode) for kind, modes in MODES.items() for mode in modes],
)
async def test_an_image_is_made_in_three_sizes_and_none_is_enlarged(kind: str, mode: str) -> None:
    grey = mode == "I;16"
    image = files.picture(1500, 1000, mode="L" if grey else mode)
    if grey:
        image = Image.frombytes(
            "I;16", image.size, b"".join(struct.pack("<H", value * 257) for value in image.tobytes())
        )
    result, made = await made_of(files.encoded(image, kind))
    assert result == {"sizes": ["small", "medium", "large"], "width": 1500, "height": 1000, "duration_ms": 0}
    images = [opened(content) for content in made]
    assert [each.size for each in images] == [(320, 213), (1080, 720), (1500, 1000)]
    assert {each.format for each in images} == {"WEBP"}
    shown = images[0].convert("RGB").getpixel((280, 20))
    expected = files.picture(320, 213, mode="L" if grey or mode in ("L", "LA", "1") else "RGB")
    wanted = expected.convert("RGB").getpixel((280, 20))
    assert max(abs(a - b) for a, b in zip(shown, wanted, strict=True)) < 40  # type: ignore[arg-type]


async def test_a_large_image_is_made_smaller() -> None:
    result, made = await made_of(files.encoded(files.picture(5000, 2500)))
    assert (result["width"], result["height"]) == (2048, 1024)
    assert [max(opened(content).size) for content in made] == [320, 1080, 2048]


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_metadata_is_gone_and_the_way_up_is_kept(orientation: int) -> None:
    content = files.located_jpeg(orientation)
    assert files.SECRET in content
    _, made = await made_of(content)
    # The corner is where a viewer that heeds the orientation shows it.
    from PIL import ImageOps

    wanted = ImageOps.exif_transpose(opened(content)).convert("RGB")
    for each in made:
        image = opened(each)
        assert not image.getexif()
        assert image.info.keys() <= {"loop", "background", "timestamp", "duration"}
        assert files.SECRET not in each
        assert image.size == wanted.size
        for at in ((4, 4), (image.width - 5, 4), (4, image.height - 5), (image.width - 5, image.height - 5)):
            pair = zip(image.convert("RGB").getpixel(at), wanted.getpixel(at), strict=True)  # type: ignore[arg-type]
            assert max(abs(a - b) for a, b in pair) < 40


async def test_colours_are_those_of_the_web_and_a_profile_that_is_none_does_no_harm() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for given in (profile, b"no profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        _, made = await made_of(files.jpeg(icc_profile=given))
        assert "icc_profile" not in opened(made[-1]).info


async def test_the_same_image_makes_the_same_objects_whatever_it_is_called_and_says() -> None:
    assert (await made_of(files.located_jpeg()))[1] == (await made_of(files.encoded(files.picture())))[1]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
async def test_of_an_animation_the_first_picture_is_kept(kind: str) -> None:
    frames = [files.picture(seed=seed) for seed in (0, 100, 200)]
    content = files.encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    _, made = await made_of(content)
    assert getattr(opened(made[-1]), "n_frames", 1) == 1


# What is refused.

TAILS = {"zip": files.ZIP_END, "html": files.HTML, "php": b"<?php system($_GET['c']); ?>", "one byte": b"x"}
SOUND = {
    "jpeg": files.jpeg(),
    "png": files.encoded(files.picture(), "PNG"),
    "gif": files.encoded(files.picture(mode="P"), "GIF"),
    "webp": files.encoded(files.picture(), "WEBP"),
    "mp4": files.video(sound="aac"),
    "mov": files.video(kind="mov"),
    "webm": files.video("libvpx", "webm"),
    "fragmented mp4": files.video(movflags="frag_keyframe+empty_moov"),
}


@pytest.mark.parametrize("kind", SOUND)
@pytest.mark.parametrize("tail", TAILS)
async def test_what_goes_on_as_something_else_is_refused(kind: str, tail: str) -> None:
    await made_of(SOUND[kind])
    assert await refusal(SOUND[kind] + TAILS[tail]) == "INVALID_MEDIA"
    assert await refusal(SOUND[kind] + bytes(64) + TAILS[tail]) == "INVALID_MEDIA"


@pytest.mark.parametrize("kind", SOUND)
async def test_what_is_cut_off_is_refused(kind: str) -> None:
    content = SOUND[kind]
    cuts = {*range(33, len(content), max(1, len(content) // 7)), len(content) - 1, len(content) - 2}
    for cut in sorted(cuts):
        assert await refusal(content[:cut]) == "INVALID_MEDIA", cut


async def test_an_archive_within_a_box_is_found() -> None:
    archive = b"PK\x03\x04" + b"x" * 200 + files.ZIP_END
    box = struct.pack(">I4s", 8 + len(archive), b"free") + archive
    assert await refusal(files.video() + box) == "INVALID_MEDIA"
    gifar = files.encoded(files.picture(mode="P"), "GIF", comment=archive)
    assert await refusal(gifar) == "INVALID_MEDIA"


@pytest.mark.parametrize(
    "tail",
    [
        bytes(7),
        files.jpeg(3),  # further pictures
        files.video(),  # a motion photo
        bytes(24) + files.jpeg(4),
        b"\0\0\1\n\x0e\0\0\0Image_UTC_Data1700000000000SEFHk\0\0\0\1\0\0\0SEFT",
    ],
)
async def test_what_cameras_put_behind_a_picture_is_cut_away(tail: bytes) -> None:
    assert (await made_of(files.jpeg() + tail))[1] == (await made_of(files.jpeg()))[1]


@pytest.mark.parametrize(
    "content",
    [
        files.SVG,
        files.HTML,
        b"%PDF-1.7\n",
        b"PK\x03\x04" + bytes(40),
        b"BM" + bytes(60),
        b"II*\0" + bytes(60),
        b"\0\0\0\x1cftypheic" + bytes(60),
        b"--boundary\r\nContent-Disposition: form-data; name=file\r\n\r\n" + files.jpeg(),
        b"#EXTM3U\nfile:///etc/passwd\n",
        b"x",
    ],
)
async def test_what_is_no_image_and_no_video_is_refused(content: bytes) -> None:
    assert await refusal(content) == "UNSUPPORTED_MEDIA_TYPE"


HEADS = (
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"RIFF\x20\0\0\0WEBPVP8 ",
    b"\0\0\0\x14ftypisom",
    b"\x1aE\xdf\xa3",
)


@pytest.mark.parametrize("head", HEADS)
async def test_what_only_begins_like_one_is_refused(head: bytes) -> None:
    for rest in (b"", bytes(100), b"\xff" * 1000, files.HTML, bytes(range(256)) * 4):
        assert await refusal(head + rest) == "INVALID_MEDIA"


async def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = files.png_bomb()
    assert len(bomb) < 2**20
    assert await refusal(bomb) == "MEDIA_TOO_LARGE"
    # A GIF whose screen is small and whose picture is not; a frame of four thousand million pixels.
    gif = bytearray(files.encoded(files.picture(mode="P"), "GIF"))
    at = gif.rindex(b",\0\0\0\0")
    gif[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert await refusal(bytes(gif)) in ("INVALID_MEDIA", "MEDIA_TOO_LARGE")


async def test_a_png_with_a_text_that_unpacks_to_much_is_bounded() -> None:
    import zlib

    text = b"Comment\0\0" + zlib.compress(bytes(200 * 2**20), 9)
    chunk = struct.pack(">I4s", len(text), b"zTXt") + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    png = SOUND["png"]
    assert await refusal(png[:33] + chunk + png[33:]) in ("INVALID_MEDIA", "MEDIA_TOO_LARGE")


async def test_a_process_that_is_over_its_bounds_takes_nothing_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for program, reason, within_s in (
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass", "INVALID_MEDIA", 60.0),
        ("import os; os.kill(os.getpid(), 11)", "INVALID_MEDIA", 60.0),
        ("import time; time.sleep(600)", "UNAVAILABLE", 0.5),
    ):
        (tmp_path / "worker.py").write_text(program)
        monkeypatch.setattr(media, "WORK_S", within_s)
        monkeypatch.setattr(media_worker, "__file__", str(tmp_path / "worker.py"))
        assert await refusal(files.jpeg()) == reason


async def test_a_process_has_neither_memory_nor_secrets_of_the_gateway(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("FEEDMESH_MEDIA_SECRET", "s" * 32)
    (tmp_path / "worker.py").write_text(
        "import os, json; print(json.dumps([sorted(os.environ), sorted(map(int, os.listdir('/proc/self/fd')))]))"
    )
    monkeypatch.setattr(media_worker, "__file__", str(tmp_path / "worker.py"))
    names, numbers = (await made_of(files.jpeg()))[0]
    assert not [name for name in names if "FEEDMESH" in name or "AWS" in name]
    assert len(numbers) == 3 + 4 + 1  # the standard ones, the files, and that of the listing


# Videos.


def streams(content: bytes) -> list[str]:
    with av.open(io.BytesIO(content)) as container:
        return [stream.codec_context.codec.canonical_name for stream in container.streams]


@pytest.mark.parametrize(
    ("codec", "kind", "sound", "size", "found"),
    [
        ("libx264", "mp4", "aac", "mp4", ["h264", "aac"]),
        ("libx264", "mov", "aac", "mp4", ["h264", "aac"]),
        ("libx264", "matroska", "aac", "mp4", ["h264", "aac"]),
        ("libx265", "mp4", "", "mp4", ["hevc"]),
        ("libvpx", "webm", "libopus", "webm", ["vp8", "opus"]),
        ("libvpx-vp9", "webm", "", "webm", ["vp9"]),
        ("libx264", "mp4", "libmp3lame", "mp4", ["h264", "mp3"]),
        ("libsvtav1", "mp4", "aac", "mp4", ["av1", "aac"]),
        ("libsvtav1", "webm", "libopus", "webm", ["av1", "opus"]),
    ],
)
async def test_a_video_is_stored_without_metadata_and_begins_at_once(
    codec: str, kind: str, sound: str, size: str, found: list[str]
) -> None:
    content = files.video(codec, kind, frames=20, sound=sound)
    assert files.SECRET in content
    result, [made, *_] = await made_of(content)
    assert (result["sizes"], result["width"], result["height"]) == ([size], 64, 48)
    assert 1900 <= result["duration_ms"] <= 2200
    assert files.SECRET not in made
    assert streams(made) == found
    with av.open(io.BytesIO(made), "r") as container:
        assert len(list(container.decode(video=0))) == 20
    if size == "mp4":
        assert made.index(b"moov") < made.index(b"mdat")
    assert (await made_of(content))[1][0] == made


async def test_a_video_that_was_filmed_upright_stays_so() -> None:
    result, [made, *_] = await made_of(files.turned(files.video()))
    assert (result["width"], result["height"]) == (48, 64)
    with av.open(io.BytesIO(made), "r") as container:
        assert abs(next(container.decode(video=0)).rotation) == 90


async def test_a_video_of_another_codec_is_refused() -> None:
    assert await refusal(files.video("mpeg4")) == "UNSUPPORTED_MEDIA_TYPE"
    assert await refusal(files.video("libx264", "matroska", sound="libopus")) == "UNSUPPORTED_MEDIA_TYPE"


async def test_a_video_that_is_too_long_or_too_large_is_refused() -> None:
    assert await refusal(files.video(frames=4, rate=1, width=4112, height=2320)) == "MEDIA_TOO_LARGE"
    assert await refusal(files.video(frames=8, rate=Fraction(1, 100))) == "MEDIA_TOO_LARGE"


async def test_a_video_whose_pictures_are_none_is_refused() -> None:
    content = files.video()
    at = content.index(b"mdat") + 4
    size = struct.unpack(">I", content[at - 8 : at - 4])[0] - 8
    assert await refusal(content[:at] + bytes([0xFF]) * size + content[at + size :]) == "INVALID_MEDIA"
