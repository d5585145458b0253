"""How large the images of a data set are to be, and of what kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

from fl_app.config import WHITE, ConfigError, Resize
from fl_app.data import pixels
from fl_app.data.pixels import Form

LIMIT = 96
"""Pixels a side that a user's own images are brought to at most, by "auto"."""


@dataclass(frozen=True)
class Sizing:
    """The options that say how large images are to be."""

    image_size: int | Literal["auto"] = "auto"
    """Squares of that side; 0 is "auto" without a limit."""
    resize: Resize = "crop"


AUTO = Sizing()
"""What the options say by themselves."""


@dataclass(frozen=True)
class Survey:
    """What is to be known of encoded images before they can be laid out."""

    class_names: list[str]
    sizes: Mapping[tuple[int, int], int]
    """Number of images by (width, height)."""
    modes: frozenset[str]
    """Pillow's names of pixel formats."""
    side: int
    """Median of the images' shorter sides, the lower of two."""
    white: int = 0
    """The level that is white in 16-bit images; 0 if there is none."""


@dataclass(frozen=True)
class Layout:
    """What all images of a data set are brought to."""

    class_names: list[str]
    form: Form


def layout(
    surveys: Sequence[Survey],
    class_names: list[str],
    sizing: Sizing = AUTO,
    *,
    limit: int | None = LIMIT,
) -> Layout:
    """Return what fits all training images; grey only if every one is grey.

    Args:
        surveys: of the training images, one an owner.
        class_names: of all of them.
        sizing: the options.
        limit: the longest side that "auto" gives; None for any.

    Raises:
        ConfigError: there is no image, or one does not fit 8 bits.
    """
    if not any(one.sizes for one in surveys):
        raise ConfigError("the data set holds no training image")
    modes = frozenset[str]().union(*(one.modes for one in surveys))
    if odd := modes - pixels.GREY_MODES - pixels.COLOUR_MODES:
        raise ConfigError(
            f"the data set holds images of mode {', '.join(sorted(odd))}, whose levels "
            "do not fit 8 bits: scale them to 0..255 first"
        )
    size = _size(surveys, sizing, limit)
    mode = "L" if modes <= pixels.GREY_MODES else "RGB"
    white = max(one.white for one in surveys) or WHITE
    return Layout(class_names, Form(size, mode, sizing.resize, white))


def _size(
    surveys: Sequence[Survey], sizing: Sizing, limit: int | None
) -> tuple[int, int]:
    """Return the width and height that images are brought to."""
    if sizing.image_size != "auto" and sizing.image_size > 0:
        return sizing.image_size, sizing.image_size
    most = limit if sizing.image_size == "auto" and limit else 2**31
    sizes = {size for one in surveys for size in one.sizes}
    if len(sizes) == 1:
        width, height = sizes.pop()
        scale = min(1.0, most / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))
    side = min(most, median_low(one.side for one in surveys if one.sizes))
    return side, side
