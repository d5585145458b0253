"""Codecs for updates: `encode(update, rng) -> arrays`, `decode(arrays) -> update`."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fl_app.compression.half import Half
from fl_app.compression.layout import BLOCK, Array, CodecError, Layout
from fl_app.compression.quantised import Int4, Int8
from fl_app.compression.sparse import TopK, TopKInt8
from strategies.wire import Arrays

__all__ = [
    "BLOCK",
    "CODECS",
    "FEEDBACK",
    "SPARSE",
    "Codec",
    "CodecError",
    "Layout",
    "build",
]

CODECS = ("none", "int8", "int4", "fp16", "topk", "topk-int8")
SPARSE = {"topk", "topk-int8"}
"""Codecs that send a share of the values."""
FEEDBACK = {"int4", *SPARSE}
"""Codecs that lose so much that error feedback is on unless it is turned off."""


class Codec(Protocol):
    """Makes an update small, and again an update of what was made."""

    def encode(self, update: Mapping[str, Array], rng: np.random.Generator) -> Arrays:
        """Return the update as one array of bytes; its size depends on the model alone.

        Raises:
            CodecError: the update cannot be coded.
        """

    def decode(self, arrays: Mapping[str, Array]) -> Arrays:
        """Return the update, laid out as the model; nothing in `arrays` is trusted.

        Raises:
            CodecError: `arrays` are not what `encode` makes.
        """


def build(
    name: str, like: Mapping[str, Any], *, ratio: float = 0.01, stochastic: bool = True
) -> Codec:
    """Return the codec of that name for updates laid out as some arrays.

    Args:
        name: of `CODECS`, but "none".
        like: arrays with the update's names, shapes and dtypes.
        ratio: share of the values that top-k keeps, in (0, 1].
        stochastic: rounding of the integer codecs; else to the nearest.
    """
    layout = Layout(like)
    codecs: dict[str, Codec] = {
        "int8": Int8(layout, stochastic=stochastic),
        "int4": Int4(layout, stochastic=stochastic),
        "fp16": Half(layout),
        "topk": TopK(layout, ratio=ratio),
        "topk-int8": TopKInt8(layout, ratio=ratio, stochastic=stochastic),
    }
    return codecs[name]
