"""Images and videos for tests, good ones and others, made here and now."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

HTML = b"<html><script>alert(1)</script></html>"
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
ZIP_END = b"PK\x05\x06" + bytes(18)
SECRET = b"the secret place"


def picture(width: int = 64, height: int = 48, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Its left half is another colour than its right one, and its upper right corner another again."""
    image = Image.new("RGB", (width, height), (200, 30, seed * 37 % 256))
    image.paste((20, 40, 220), (width // 2, 0, width, height))
    image.paste((240, 240, 20), (width * 3 // 4, 0, width, height // 4))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **more: Any) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def jpeg(seed: int = 0, **more: Any) -> bytes:
    """A small JPEG; each seed has its own content."""
    return encoded(picture(seed=seed), **more)


def located_jpeg(orientation: int = 1) -> bytes:
    """A JPEG with all that a camera tells: where it was taken, by what, and how it was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = SECRET.decode()
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 13.0), 29: SECRET.decode()}
    return encoded(picture(), exif=exif, comment=SECRET)


def png_bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of some kilobytes with more pixels than are taken."""
    lines = zlib.compressobj(9)
    row = bytes(1 + width // 8)
    content = b"".join(lines.compress(row) for _ in range(height)) + lines.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", content), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def video(
    codec: str = "libx264",
    kind: str = "mp4",
    *,
    frames: int = 10,
    rate: int | Fraction = 10,
    sound: str = "",
    width: int = 64,
    height: int = 48,
    **options: str,
) -> bytes:
    """A video with tags that tell too much."""
    file = io.BytesIO()
    av.logging.set_level(None)
    with av.open(file, "w", format=kind, options=options) as container:
        container.metadata.update(dict.fromkeys(("location", "title"), SECRET.decode()))
        pictures: Any = container.add_stream(codec, rate=rate)
        pictures.width, pictures.height, pictures.pix_fmt = width, height, "yuv420p"
        sounds: Any = container.add_stream(sound, rate=48_000) if sound else None
        for number in range(frames):
            pixels = np.full((height, width, 3), number * 20 % 256, np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        if sounds is not None:
            for number in range(frames):
                heard = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
                heard.sample_rate, heard.pts = 48_000, number * 1024
                container.mux(sounds.encode(heard))
            container.mux(sounds.encode(None))
        container.mux(pictures.encode(None))
    return file.getvalue()


def turned(content: bytes) -> bytes:
    """An MP4 whose pictures are to be shown turned by a quarter."""
    upright, quarter = (
        struct.pack(">9i", *numbers)
        for numbers in (
            (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30),
            (0, 65536, 0, -65536, 0, 0, 0, 0, 2**30),
        )
    )
    at = content.index(upright, content.index(b"tkhd"))
    return content[:at] + quarter + content[at + len(upright) :]
