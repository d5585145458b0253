"""An uploaded image, checked and brought to what a model was trained on."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fl_app.artifacts import ModelInfo
from fl_app.data import pixels

Array = np.ndarray[Any, Any]

MAX_BYTES = 10 * 2**20
"""Of a file."""
MAX_PIXELS = 25_000_000
MAX_SIDE = 10_000

_PLAIN_BYTES, _PLAIN_PIXELS = 2**15, 2**14
_PNG = b"\x89PNG\r\n\x1a\n"
_IHDR = struct.Struct(">IIBBBBB")


class ImageError(pixels.DamagedError):
    """An upload that is no image this service takes; the message says why."""


@dataclass(frozen=True)
class Received:
    """What an upload was, and what was done to it."""

    format: str
    mode: str
    width: int
    height: int
    converted: list[str]
    """In words; empty where it was just as the model wants it."""


def is_plain(content: bytes) -> bool:
    """Whether it is a small PNG of nothing but pixels.

    Judged by its parts' names and sizes alone: others may unpack to megabytes.
    """
    if len(content) > _PLAIN_BYTES or not content.startswith(_PNG):
        return False
    at, parts = len(_PNG), set()
    while at + 8 <= len(content):
        size, name = struct.unpack_from(">I4s", content, at)
        parts.add(name)
        if name == b"IHDR":
            if size != _IHDR.size or len(content) < at + 8 + size:
                return False
            width, height, _, _, _, _, interlaced = _IHDR.unpack_from(content, at + 8)
            if interlaced or width * height > _PLAIN_PIXELS:
                return False
        at += 12 + size
    return b"IHDR" in parts and parts <= {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


def read(content: bytes, info: ModelInfo) -> tuple[Array, Received]:
    """Return the model's input, (C, H, W) float32 levels, and what the upload was.

    Levels are those of the model's training images, 0 to `full_scale`, whole numbers.
    Conversion is that of training: to grey or colour, then to the size. Of a picture
    that moves it is the first one; what follows the image in the file is not looked at.

    Raises:
        ImageError: the upload is no image, or too large a one.
    """
    if not content:
        raise ImageError("the file is empty: send an image")
    if len(content) > MAX_BYTES:
        raise ImageError(f"the file is larger than {MAX_BYTES} bytes")
    form = _form(info)

    def look(image: Image.Image, encoded: bytes) -> tuple[Array, Received]:
        width, height = image.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise ImageError(
                f"the image is {width} x {height} pixels: at most {MAX_SIDE} on a side "
                f"and {MAX_PIXELS} in all"
            )
        received = Received(str(image.format), image.mode, width, height, [])
        levels, done = pixels.brought(image, encoded, form)
        received.converted.extend(done)
        return levels, received

    try:
        levels, received = pixels.look_at(content, look)
    except ImageError:
        raise
    except pixels.DamagedError as error:
        raise ImageError(
            f"the file is no image that can be read ({error}): send one of "
            + ", ".join(pixels.FORMATS)
        ) from None
    found = levels.astype(np.float32)
    if info.full_scale != 255:
        found = np.rint(found * np.float32(info.full_scale / 255))
    return np.ascontiguousarray(found), received


def _form(info: ModelInfo) -> pixels.Form:
    """Return what a model's training images were brought to."""
    channels, height, width = info.input_shape
    wanted = {1: "L", 3: "RGB"}.get(channels)
    if wanted is None or max(height, width) > MAX_SIDE:
        raise ImageError(f"the model takes no images: its input is {info.input_shape}")
    return pixels.Form((width, height), wanted, info.resize, info.white_level)
