"""How an update lies in one block of bytes: what is coded, and what goes as it is.

Both sides know the model, so a block holds values alone: no names, shapes or lengths.
Its size follows from the layout, and a block of another size is refused before
anything is read from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from strategies.aggregation import BESIDE
from strategies.wire import Arrays

Array = np.ndarray[Any, Any]

BLOCK = "block"
"""Name of the one array that is sent."""

_FEWEST = 16
"""Values that share a scale, and those of an array that is worth coding."""


class CodecError(ValueError):
    """An update that cannot be coded, or a block that is none; the message says why."""


@dataclass(frozen=True)
class Tensor:
    """One array of an update."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def is_coded(self) -> bool:
        """Whether a codec may change it.

        Counters, biases, normalisation and what travels beside an update go as they
        are: they are few, or must stay exact.
        """
        matrix = self.dtype == np.float32 and len(self.shape) > 1
        return matrix and self.size >= _FEWEST and not self.name.startswith(BESIDE)

    @property
    def channels(self) -> int:
        """How many scales it has: one for each output channel (axis 0), if large."""
        return self.shape[0] if self.size >= _FEWEST * self.shape[0] else 1


class Layout:
    """The arrays of an update; in a block they are sorted by name."""

    def __init__(self, like: Mapping[str, Array]) -> None:
        """Take names, shapes and dtypes from arrays."""
        self._order = list(like)
        self.tensors = [
            Tensor(name, like[name].shape, like[name].dtype) for name in sorted(like)
        ]

    @cached_property
    def coded(self) -> list[Tensor]:
        """Those that a codec may change."""
        return [tensor for tensor in self.tensors if tensor.is_coded]

    @cached_property
    def plain(self) -> list[Tensor]:
        """Those that go as they are."""
        return [tensor for tensor in self.tensors if not tensor.is_coded]

    @cached_property
    def plain_bytes(self) -> int:
        """Size of all that go as they are."""
        return sum(tensor.size * tensor.dtype.itemsize for tensor in self.plain)

    def check(self, update: Mapping[str, Array]) -> None:
        """Raises: CodecError: the update is laid out otherwise, or is not finite."""
        if sorted(update) != [tensor.name for tensor in self.tensors]:
            raise CodecError("the update has other arrays than the model")
        for tensor in self.tensors:
            array = update[tensor.name]
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                raise CodecError(
                    f"{tensor.name!r} is {array.dtype} {array.shape}, the model's is "
                    f"{tensor.dtype} {tensor.shape}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CodecError(f"{tensor.name!r} holds values that are not finite")

    def read(self, arrays: Mapping[str, Array], size: int) -> "Reader":
        """Return a reader of a block, which must have that size beside what is plain.

        Raises:
            CodecError: it is no such block.
        """
        if list(arrays) != [BLOCK]:
            raise CodecError(f"a coded update is one array, {BLOCK!r}")
        block, size = arrays[BLOCK], size + self.plain_bytes
        if block.dtype != np.uint8 or block.shape != (size,):
            raise CodecError(
                f"the block is {block.dtype} {block.shape}, expected are {size} bytes"
            )
        return Reader(block)

    def join(self, update: Mapping[str, Array], *coded: Array) -> Arrays:
        """Return the block: what is coded, then what goes as it is."""
        plain = [update[tensor.name] for tensor in self.plain]
        parts = [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in coded]
        parts += [
            np.frombuffer(a.astype(a.dtype.newbyteorder("<")).tobytes(), np.uint8)
            for a in plain
        ]
        return {BLOCK: np.concatenate(parts) if parts else np.zeros(0, np.uint8)}

    def rejoin(self, coded: Mapping[str, Array], reader: "Reader") -> Arrays:
        """Return the update: decoded arrays, and those that the rest of a block has."""
        plain = {
            tensor.name: reader.take(tensor.size, tensor.dtype).reshape(tensor.shape)
            for tensor in self.plain
        }
        every = {**coded, **plain}
        return {name: every[name] for name in self._order}


class Reader:
    """Takes values from a block, from its beginning."""

    def __init__(self, block: Array) -> None:
        self._bytes = np.ascontiguousarray(block).data
        self._at = 0

    def take(self, number: int, dtype: Any) -> Array:
        """Return the next values, as a read-only view; little-endian in the block."""
        kind = np.dtype(dtype).newbyteorder("<")
        values = np.frombuffer(self._bytes, kind, number, self._at)
        self._at += number * kind.itemsize
        return values.astype(dtype, copy=False)
