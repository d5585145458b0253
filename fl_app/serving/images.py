"""An uploaded image, checked and brought to what a model was trained on."""

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from fl_app.artifacts import ModelInfo

Array = np.ndarray[Any, Any]

MAX_BYTES = 10 * 2**20
"""Of a file."""
MAX_PIXELS = 25_000_000
MAX_SIDE = 10_000
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")

_DEEP = {"I;16", "I;16L", "I;16B", "I"}
"""Modes with 16-bit levels."""
_KNOWN = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"}


_PLAIN_BYTES, _PLAIN_PIXELS = 2**15, 2**14
_PNG = b"\x89PNG\r\n\x1a\n"
_IHDR = struct.Struct(">IIBBBBB")
_UNREADABLE = (OSError, ValueError, SyntaxError)
"""What Pillow raises for files that are no images."""


class ImageError(ValueError):
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
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise ImageError(
                    f"the image is {width} x {height} pixels: at most {MAX_SIDE} on a "
                    f"side and {MAX_PIXELS} in all"
                )
            kind, mode = str(opened.format), opened.mode
            opened.load()
            return _levels(opened, info, Received(kind, mode, width, height, []))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(
            f"the image is too large: at most {MAX_SIDE} pixels on a side and "
            f"{MAX_PIXELS} in all"
        ) from None
    except _UNREADABLE as error:
        unknown = isinstance(error, UnidentifiedImageError)
        why = "it is none, or of another kind" if unknown else str(error)
        raise ImageError(
            f"the file is no image that can be read ({why}): send one of "
            + ", ".join(FORMATS)
        ) from None


def _levels(
    image: Image.Image, info: ModelInfo, received: Received
) -> tuple[Array, Received]:
    channels, height, width = info.input_shape
    wanted = {1: "L", 3: "RGB"}.get(channels)
    if wanted is None or max(height, width) > MAX_SIDE:
        raise ImageError(f"the model takes no images: its input is {info.input_shape}")
    said = received.converted
    if image.mode in _DEEP:
        deep = np.clip(np.asarray(image), 0, 65535 - 128)
        deep += 128  # to the nearest; as floating point it would be four times as large
        deep //= 257
        image = Image.fromarray(deep.astype(np.uint8))
        said.append("16-bit levels to 8 bits")
    elif image.mode not in _KNOWN:
        raise ImageError(f"the image's levels ({image.mode}) do not fit 8 bits")
    if image.mode != wanted:
        said.append(f"{image.mode} to {'grey' if wanted == 'L' else 'colour'}")
        image = image.convert(wanted)
    if image.size != (width, height):
        said.append(f"resized to {width} x {height}")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32)
    levels = pixels[None] if wanted == "L" else pixels.transpose(2, 0, 1)
    if info.full_scale != 255:
        levels = np.rint(levels * np.float32(info.full_scale / 255))
    return np.ascontiguousarray(levels), received
