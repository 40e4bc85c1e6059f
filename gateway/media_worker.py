"""Makes of an uploaded file what is stored: `python -I media_worker.py IN OUT…`, numbers of open files.

A file of a stranger may be made to break whoever reads it. So this is a program of its own: one process a file, without
the gateway's memory, environment and secrets, with bounds on memory and CPU time; whatever becomes of it, the gateway
goes on. It prints one line of JSON: what it made, or why not. It knows nothing of the mesh, and imports none of it.

Images are decoded and encoded again, in three sizes; nothing of the file remains but its pixels. Videos are not encoded
again: their packets go into a new container, without metadata and without streams other than one of pictures and one of
sound.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, NamedTuple

IMAGE_SIZES = {"small": 320, "medium": 1080, "large": 2048}
"""What is made of an image, and its longest side in pixels; none is larger than the image itself."""
MAX_IMAGE_PIXELS = 50_000_000
MAX_VIDEO_PIXELS = 4096 * 2304
"""Of a picture of a video."""
MAX_VIDEO_S = 600
MAX_STREAMS = 32
WEBP: Mapping[str, Any] = {"format": "WEBP", "quality": 75, "method": 4}
"""A third smaller than JPEG at the same likeness, and it has transparency (docs/decisions/0016-media.md)."""

MEMORY_BYTES, CPU_S = 1_536 * 2**20, 20
"""Of one process; an image of 50 million pixels takes a third of the memory."""
SNIFFED_BYTES = 32
"""Of the beginning of a file, by which it is told what it is."""
ZIP_END, ZIP_TAIL = b"PK\x05\x06", 22 + 65_535
"""How the directory at the end of an archive begins, and how far before the end it may."""

SCAN_END = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""The next marker after the compressed data of a JPEG."""
BOXES = re.compile(rb"ftyp|moov|mdat|free|skip|wide|uuid|meta|moof|mfra|sidx|styp|ssix|emsg|prft|pnot|udta|PICT|junk")
"""Boxes that stand side by side in an MP4 or QuickTime file."""
EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
ELEMENTS = {
    # What stands in a WebM or Matroska file, in its segment, and in a cluster of that.
    *(EBML, SEGMENT, CLUSTER, 0xEC, 0xBF, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770),
    *(0x1254C367, 0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF),
}


class Refused(Exception):
    """The file is not taken: a reason of feedmesh.error.v1.ErrorReason, and the same in words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def damaged(detail: str = "the file is damaged or not whole") -> Refused:
    """The refusal of what cannot be read."""
    return Refused("INVALID_MEDIA", detail)


def hybrid() -> Refused:
    """The refusal of what is something else besides."""
    return Refused("INVALID_MEDIA", "the file goes on after its end: it would be something else besides")


class Container(NamedTuple):
    """What a video may hold to be stored in this kind of file."""

    format: str
    """As FFmpeg calls it, of what is written."""
    pictures: frozenset[str]
    sounds: frozenset[str]


CONTAINERS: Mapping[str, Container] = {
    "mp4": Container("mp4", frozenset(("h264", "hevc", "av1")), frozenset(("aac", "mp3"))),
    "webm": Container("webm", frozenset(("vp8", "vp9", "av1")), frozenset(("opus", "vorbis"))),
}
READERS = {"mp4": "mov", "webm": "matroska"}


# What a file is, by its content.


def kind_of(beginning: bytes) -> str:
    """What the first 32 bytes of a file say that it is: jpeg, png, gif, webp, mp4 or webm. Raises Refused."""
    if beginning.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if beginning.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if beginning.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
        return "webp"
    # HEIC and AVIF begin so too, with brands of their own.
    if beginning[4:8] == b"ftyp" and beginning[8:12] not in (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis"):
        return "mp4"
    if beginning.startswith(EBML.to_bytes(4, "big")):
        return "webm"
    raise Refused(
        "UNSUPPORTED_MEDIA_TYPE",
        "the body, which is the file itself, is no JPEG, PNG, WebP or GIF image and no MP4 or WebM video",
    )


def is_video(kind: str) -> bool:
    """Whether a kind is one of videos."""
    return kind in READERS


# Where a file ends, so that nothing is taken that goes on as something else. What is cut off raises IndexError.


def jpeg_end(data: mmap.mmap) -> int:
    """The byte after the end of a JPEG's first picture."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise damaged()
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == 0xD9:
            return at + 2
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
        else:
            at += 2 + max(2, data[at + 2] << 8 | data[at + 3])
            if marker == 0xDA:
                found = SCAN_END.search(data, at)
                if found is None:
                    raise IndexError
                at = found.end() - 2


def png_end(data: mmap.mmap) -> int:
    """The byte after the end of a PNG."""
    at = 8
    while True:
        name = data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at > len(data) or len(name) < 4:
            raise IndexError
        if name == b"IEND":
            return at


def gif_end(data: mmap.mmap) -> int:
    """The byte after the end of a GIF."""

    def table(flags: int) -> int:
        return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0

    at = 13 + table(data[10])
    while True:
        block = data[at]
        if block == 0x3B:
            return at + 1
        if block == 0x2C:
            at += 11 + table(data[at + 9])
        elif block == 0x21:
            at += 2
        else:
            raise damaged()
        while size := data[at]:
            at += 1 + size
        at += 1


def webp_end(data: mmap.mmap) -> int:
    """The byte after the end of a WebP."""
    size = int.from_bytes(data[4:8], "little")
    return 8 + size + size % 2


def mp4_end(data: mmap.mmap) -> int:
    """The byte after the last box of an MP4 or QuickTime file."""
    at = 0
    while at < len(data):
        size, head, name = int.from_bytes(data[at : at + 4], "big"), 8, data[at + 4 : at + 8]
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:  # up to the end of the file
            size = len(data) - at
        if not BOXES.fullmatch(name):
            raise hybrid() if name else IndexError
        if size < head:
            raise damaged()
        at += size
    return at


def webm_end(data: mmap.mmap) -> int:
    """The byte after the last element of a WebM or Matroska file."""
    at = 0
    while at < len(data):
        width = 9 - data[at].bit_length()
        name = int.from_bytes(data[at : at + width], "big")
        if width > 4 or name not in ELEMENTS:
            raise hybrid()
        at += width
        width = 9 - data[at].bit_length()
        if width > 8:
            raise damaged()
        size = int.from_bytes(data[at : at + width], "big") - (1 << 7 * width)
        at += width
        # What has no known size, as from a browser's recorder, ends where something else begins. Others go by as one,
        # but for the segment, in which nearly all is.
        if size != (1 << 7 * width) - 1 and name != SEGMENT:
            at += size
        elif name == SEGMENT and size != (1 << 7 * width) - 1 and at + size > len(data):
            raise IndexError
        elif name not in (SEGMENT, CLUSTER):
            raise damaged()
    return at


ENDS: Mapping[str, Callable[[mmap.mmap], int]] = {
    "jpeg": jpeg_end,
    "png": png_end,
    "gif": gif_end,
    "webp": webp_end,
    "mp4": mp4_end,
    "webm": webm_end,
}


def require_whole(data: mmap.mmap, kind: str) -> None:
    """Raises Refused for a file that is cut off, or that goes on after its end as something else."""
    try:
        end = ENDS[kind](data)
    except IndexError:
        raise damaged() from None
    if end > len(data):
        raise damaged()
    # An archive is read from its end, whatever stands before it, and may lie in the middle of a box.
    if data.rfind(ZIP_END, max(0, len(data) - ZIP_TAIL)) >= 0:
        raise hybrid()
    tail = data[end : end + 4096].lstrip(b"\0")
    # Cameras put further pictures, a short video or notes of their own (Samsung) behind a JPEG. All of it goes.
    further = kind == "jpeg" and (tail.startswith(b"\xff\xd8\xff") or b"ftyp" in tail[:8] or data[-4:] == b"SEFT")
    if (tail or data[end:].strip(b"\0")) and not further:
        raise hybrid()


# Images.


def make_image(source: int, kind: str, made: list[int]) -> dict[str, Any]:
    """Writes an image's sizes, smallest first."""
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = None  # our own bound is lower, and a refusal rather than a warning
    with open(source, "rb", closefd=False) as file:
        image: Any = Image.open(file, formats=[kind.upper()])
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise too_large(f"the image has more than {MAX_IMAGE_PIXELS} pixels")
        large = IMAGE_SIZES["large"]
        image.draft(None, (large, large))  # a JPEG that is much larger is decoded at a half, a quarter or an eighth
        image.load()
    profile = image.info.get("icc_profile")
    orientation = image.getexif().get(0x0112, 1)
    has_alpha = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        image = image.point(lambda value: value / 256).convert("L")
    if image.mode == "CMYK" or profile:
        image = to_srgb(image, profile)
    image = image.convert("RGBA" if has_alpha else "RGB")
    image.thumbnail((large, large), Image.Resampling.LANCZOS, reducing_gap=2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    clean = Image.frombytes(image.mode, image.size, image.tobytes())  # the pixels, and nothing else that it came with
    clean.info["exif"] = exif.tobytes()
    clean = ImageOps.exif_transpose(clean)
    clean.info.clear()
    for (_, side), target in zip(sorted(IMAGE_SIZES.items(), key=lambda each: each[1]), made, strict=True):
        smaller = clean.copy()
        smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
        with open(target, "wb", closefd=False) as out:
            smaller.save(out, **WEBP)
    return {"sizes": list(IMAGE_SIZES), "width": clean.width, "height": clean.height, "duration_ms": 0}


def to_srgb(image: Any, profile: bytes | None) -> Any:
    """An image in the colours of the web, as its profile is not kept. A profile that is none is passed over."""
    from io import BytesIO

    from PIL import ImageCms

    if not profile:
        return image
    mode = "RGBA" if image.mode in ("RGBA", "P", "PA", "LA") else "RGB"
    given = image.convert(mode) if image.mode not in ("RGB", "RGBA", "CMYK", "L") else image
    try:
        converted: Any = ImageCms.profileToProfile(
            given,
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGBA" if given.mode == "RGBA" else "RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted


def too_large(detail: str) -> Refused:
    """The refusal of what is over a bound once it is unpacked."""
    return Refused("MEDIA_TOO_LARGE", detail)


# Videos.


def make_video(source: int, kind: str, made: list[int]) -> dict[str, Any]:
    """Writes a video's packets into a new container."""
    import av

    av.logging.set_level(None)
    with open(source, "rb", closefd=False) as file, av.open(file, "r", format=READERS[kind]) as given:
        if len(given.streams) > MAX_STREAMS:
            raise too_large(f"the video has more than {MAX_STREAMS} streams")
        pictures = next(iter(given.streams.video), None)
        if pictures is None:
            raise Refused("UNSUPPORTED_MEDIA_TYPE", "the file holds no video")
        sound = next(iter(given.streams.audio), None)
        codecs = [stream.codec_context.codec.canonical_name if stream else "" for stream in (pictures, sound)]
        size = container_of(*codecs)
        if given.duration and given.duration > MAX_VIDEO_S * av.time_base:
            raise too_large(f"the video is longer than {MAX_VIDEO_S} seconds")
        check_pixels(pictures.width, pictures.height)
        pictures.thread_type, pictures.thread_count = "NONE", 1
        kept = [pictures, sound] if sound else [pictures]
        frame: Any = None
        end_s = 0.0
        options = {"fflags": "+bitexact", "movflags": "+faststart"} if size == "mp4" else {"fflags": "+bitexact"}
        # By name, as faststart reads again what was written.
        target = f"/proc/self/fd/{made[0]}"
        with av.open(target, "w", format=CONTAINERS[size].format, container_options=options) as new:
            into: dict[int, Any] = {}
            for stream in kept:
                into[stream.index] = copy = new.add_stream_from_template(stream, opaque=True)
                copy.metadata.clear()
                if codecs[0] == "hevc" and stream is pictures:
                    copy.codec_context.codec_tag = "hvc1"  # Apple's players know no other
            for packet in given.demux(kept):
                if not packet.size:  # the end of a stream
                    continue
                if packet.is_corrupt:
                    raise damaged()
                if frame is None and packet.stream is pictures:
                    frame = next(iter(packet.decode()), None)
                    if frame is not None:
                        check_pixels(frame.width, frame.height)
                time_base = packet.time_base
                if packet.pts is not None and time_base is not None:
                    end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * time_base))
                if end_s > MAX_VIDEO_S:
                    raise too_large(f"the video is longer than {MAX_VIDEO_S} seconds")
                packet.stream = into[packet.stream.index]
                new.mux(packet)
        if frame is None:
            raise damaged("the video has no picture that can be shown")
        width, height = (frame.height, frame.width) if frame.rotation % 180 else (frame.width, frame.height)
        return {"sizes": [size], "width": width, "height": height, "duration_ms": int(end_s * 1000)}


def check_pixels(width: int, height: int) -> None:
    """Raises Refused for pictures that are too large."""
    if width * height > MAX_VIDEO_PIXELS:
        raise too_large(f"the video's pictures have more than {MAX_VIDEO_PIXELS} pixels")


def container_of(picture: str, sound: str) -> str:
    """The kind of file that a video is stored in. Raises Refused for codecs that none takes."""
    for name, container in CONTAINERS.items():
        if picture in container.pictures and (not sound or sound in container.sounds):
            return name
    wanted = " or ".join(
        f"{', '.join(sorted(each.pictures))} with {', '.join(sorted(each.sounds))}" for each in CONTAINERS.values()
    )
    raise Refused("UNSUPPORTED_MEDIA_TYPE", f"the video must be {wanted}")


# The program.


def make(source: int, made: list[int]) -> dict[str, Any]:
    """Makes what is stored. Raises Refused."""
    with closing(mmap.mmap(source, 0, access=mmap.ACCESS_READ)) as data:
        kind = kind_of(data[:SNIFFED_BYTES])
        require_whole(data, kind)
    os.lseek(source, 0, os.SEEK_SET)
    try:
        return (make_video if is_video(kind) else make_image)(source, kind, made)
    except Refused:
        raise
    except MemoryError:
        raise too_large("the file takes too much memory once it is unpacked") from None
    except Exception as error:  # whatever a decoder says of a file that it cannot read
        print(repr(error), file=sys.stderr)  # noqa: T201 - for the gateway's log
        raise damaged() from None


def limit(max_bytes: int) -> None:
    """Bounds what this process may take, from now on."""
    with open("/proc/self/oom_score_adj", "w") as file:  # where memory is short, it goes first
        file.write("1000")
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_FSIZE, max_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),  # no other processes, nor threads; root is not bound by it
        (resource.RLIMIT_NOFILE, 32),
    ):
        resource.setrlimit(kind, (most, most))


def main() -> None:
    """The command line."""
    source, *made = map(int, sys.argv[1:])
    limit(2 * os.fstat(source).st_size + 2**24)
    try:
        result = make(source, made)
    except Refused as refused:
        result = {"reason": refused.reason, "detail": refused.detail}
    print(json.dumps(result))  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
