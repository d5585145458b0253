"""One encoded image to levels: upright, opaque, of 8 bits, of the wanted size.

Training, the nodes of real federations and the service read images by this file alone,
so that a model is asked of the same levels that it was trained on.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fl_app.config import WHITE, Resize

Array = np.ndarray[Any, Any]
_T = TypeVar("_T")

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "DIB")
DEEP_MODES = frozenset(("I;16", "I;16L", "I;16B", "I;16N", "I"))
"""Pillow's names of formats with more than 8 bits a level."""
GREY_MODES = frozenset(("1", "L", "LA", "La")) | DEEP_MODES
COLOUR_MODES = frozenset(
    ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
)
DEEP, RESIZED = "16-bit levels to 8 bits", "resized"
_WHITES = [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
_TURNED = frozenset((5, 6, 7, 8))  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))
_KINDS = {
    b"ftyphei": "a HEIC picture, which is not read: convert it to PNG or JPEG",
    b"ftypmif": "a HEIC picture, which is not read: convert it to PNG or JPEG",
    b"ftypavif": "an AVIF picture, which is not read: convert it to PNG or JPEG",
    b"jP  \r\n": "a JPEG 2000 picture, which is not read: convert it to PNG or JPEG",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"%PDF": "a PDF: convert it to PNG",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"<svg": "an SVG drawing: convert it to PNG",
}


class DamagedError(ValueError):
    """What cannot be decoded, or not to 8 bits; the message says why."""


@dataclass(frozen=True)
class Header:
    """What an image is, before its pixels are looked at."""

    size: tuple[int, int]
    """Width and height once upright."""
    mode: str
    """Pillow's name of the pixel format."""
    white: int
    """The least of the known whites that holds all levels; 0 for 8-bit images."""


@dataclass(frozen=True)
class Form:
    """What all images of a data set are brought to."""

    size: tuple[int, int]
    """Width and height."""
    mode: str
    """L or RGB."""
    resize: Resize = "squeeze"
    white: int = WHITE
    """The level of 16-bit images that becomes 255."""


def header(encoded: bytes) -> Header:
    """Return what an image is.

    Raises:
        DamagedError: it is none that can be read.
    """
    return look_at(encoded, _header)


def read(encoded: bytes, form: Form) -> tuple[Array, list[str]]:
    """Return an image's levels, (C, H, W) uint8, and in words what was done to it.

    Raises:
        DamagedError: it cannot be decoded.
    """
    return look_at(encoded, partial(brought, form=form))


def _header(image: Image.Image, encoded: bytes) -> Header:
    width, height = image.size
    if image.format != "TIFF" and _orientation(image, encoded) in _TURNED:
        width, height = height, width  # a TIFF's size is that of what it shows
    white = _white(image) if image.mode in DEEP_MODES else 0
    return Header((width, height), image.mode, white)


def brought(image: Image.Image, encoded: bytes, form: Form) -> tuple[Array, list[str]]:
    """Return what `read` does, of an image that is open."""
    if image.format in ("JPEG", "MPO"):  # decoded smaller by itself: far faster
        turned = _orientation(image, encoded) in _TURNED
        width, height = form.size[::-1] if turned else form.size
        image.draft(None, (2 * width, 2 * height))
    return levels(image, form)


def levels(image: Image.Image, form: Form) -> tuple[Array, list[str]]:
    """Return an opened image's levels, (C, H, W) uint8, and what was done to it."""
    done: list[str] = []
    if getattr(image, "is_animated", False):
        done.append("of several pictures: the first taken")
    lies = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    image.load()  # which turns a TIFF by itself
    if lies:
        image = ImageOps.exif_transpose(image)
        done.append("turned upright by EXIF")
    if image.mode in DEEP_MODES:
        image = _scaled(image, form.white)
        done.append(DEEP)
    elif image.mode not in GREY_MODES | COLOUR_MODES:
        raise DamagedError(
            f"its levels ({image.mode}) do not fit 8 bits: save them as 0 to 255"
        )
    was = image.mode
    if image.has_transparency_data:
        image, visible = _on_white(image)
        done += ["transparency put on white"] if visible else []
    if was != form.mode:
        done.append(f"{was} to {'grey' if form.mode == 'L' else 'colour'}")
    image = image.convert(form.mode)
    if image.size != form.size:
        width, height = form.size
        done.append(f"{RESIZED} to {width} x {height}")
        image = fitted(image, form.size, form.resize)
    pixels = np.asarray(image)
    return pixels[None] if form.mode == "L" else pixels.transpose(2, 0, 1), done


def fitted(image: Image.Image, size: tuple[int, int], how: Resize) -> Image.Image:
    """Return an image of that width and height.

    `crop` fills it from the centre, `letterbox` keeps the whole image between black
    borders, `squeeze` gives up the ratio of the sides.
    """
    bilinear = Image.Resampling.BILINEAR
    if how == "crop":
        return ImageOps.fit(image, size, bilinear)
    if how == "letterbox":
        scale = min(size[0] / image.width, size[1] / image.height)
        width = max(1, round(image.width * scale))
        height = max(1, round(image.height * scale))
        whole = Image.new(image.mode, size)
        at = ((size[0] - width) // 2, (size[1] - height) // 2)
        whole.paste(image.resize((width, height), bilinear), at)
        return whole
    return image.resize(size, bilinear)


def look_at(encoded: bytes, look: Callable[[Image.Image, bytes], _T]) -> _T:
    """Return what is seen in an image; whatever a decoder raises is a DamagedError."""
    try:
        try:
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                return look(image, encoded)
        except ValueError as error:
            if isinstance(error, DamagedError) or not encoded.startswith(_PNG):
                raise
            # A comment or a colour profile that Pillow finds too long.
            bare = _without_text(encoded)
            with Image.open(io.BytesIO(bare), formats=FORMATS) as image:
                return look(image, bare)
    except (DamagedError, MemoryError):
        raise
    except Exception as error:
        raise DamagedError(_reason(encoded, error)) from error


def _reason(encoded: bytes, error: Exception) -> str:
    if not encoded:
        return "the file is empty"
    start = encoded[:64].lstrip()
    for sign, what in _KINDS.items():
        if sign.lower() in start.lower():
            return f"it is {what}"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or of a kind that is not read"
    if isinstance(error, Image.DecompressionBombError):
        return "it has too many pixels"
    return str(error) or type(error).__name__


def _without_text(encoded: bytes) -> bytes:
    """Return a PNG less its texts, which may be of any length."""
    at, kept = len(_PNG), [_PNG]
    while at + 8 <= len(encoded):
        size, kind = struct.unpack_from(">I4s", encoded, at)
        part = encoded[at : at + 12 + size]
        if kind not in _PNG_TEXT:
            kept.append(part)
        at += 12 + size
    return b"".join(kept)


def _orientation(image: Image.Image, encoded: bytes) -> int:
    """Return the EXIF orientation, 1 to 8.

    A PNG may say it behind its pixels: those are decoded only where the word is there.
    """
    if image.format == "PNG" and not (
        b"eXIf" in encoded or b"Raw profile type" in encoded
    ):
        return 1
    return int(image.getexif().get(_ORIENTATION, 1) or 1)


def _white(image: Image.Image) -> int:
    found = np.asarray(image)
    if found.min() < 0 or found.max() > WHITE:
        raise DamagedError(
            f"its levels ({found.min()} to {found.max()}) do not fit 16 bits: scale "
            "them to 0 to 255"
        )
    return next(white for white in _WHITES if found.max() <= white)


def _scaled(image: Image.Image, white: int) -> Image.Image:
    deep = np.clip(np.asarray(image).astype(np.int64), 0, white)
    return Image.fromarray(((deep * 510 + white) // (2 * white)).astype(np.uint8))


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return an image on a white ground, and whether any of that is seen."""
    image = image.convert("RGBA")
    (lowest, _) = image.getchannel("A").getextrema()
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image).convert("RGB"), lowest != 255
