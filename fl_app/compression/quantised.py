r"""int8 and int4: each value a multiple of a scale, one scale for each output channel.

With m the largest magnitude of a channel and L levels on either side, the scale is
s = m / L and a value x becomes the integer q(x / s), decoded as s q. Rounding is to the
nearest, or stochastic: floor(x / s + u) with u uniform on [0, 1), whose mean is x / s,
so that the mean of many updates has no bias (Alistarh et al., "QSGD", NeurIPS 2017,
arXiv:1610.02132; here with the largest magnitude in place of the L2 norm). u has 16
bits and is 0 at the least: the mean is low by less than 2^-16 of a step.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fl_app.compression.layout import Array, CodecError, Layout, Tensor
from strategies.wire import Arrays

_TINY = np.finfo(np.float32).tiny
_LARGEST = np.finfo(np.float32).max
_UNIT = np.float32(2.0**-16)


class Quantised:
    """Codec for integers of one size; subclasses say which."""

    LEVELS: int

    def __init__(self, layout: Layout, *, stochastic: bool = True) -> None:
        """Set how values are rounded."""
        self._layout = layout
        self._stochastic = stochastic

    def encode(self, update: Mapping[str, Array], rng: np.random.Generator) -> Arrays:
        """Return the block of an update.

        Raises:
            CodecError: the update is not laid out as the model, or is not finite.
        """
        self._layout.check(update)
        scales, codes = [], []
        for tensor in self._layout.coded:
            rows = update[tensor.name].reshape(tensor.channels, -1)
            scale = scales_of(rows, self.LEVELS)
            scales.append(scale)
            draws = rng if self._stochastic else None
            codes.append(self._packed(quantise(rows, scale, self.LEVELS, draws)))
        return self._layout.join(update, *(s.astype("<f4") for s in scales), *codes)

    def decode(self, arrays: Mapping[str, Array]) -> Arrays:
        """Return the update in a block.

        Raises:
            CodecError: it is no block of this codec and model.
        """
        tensors = self._layout.coded
        size = sum(4 * t.channels + self._packed_size(t.size) for t in tensors)
        reader = self._layout.read(arrays, size)
        scales = [reader.take(t.channels, np.float32) for t in tensors]
        if not all(np.isfinite(s).all() and (s >= 0).all() for s in scales):
            raise CodecError("a scale is negative or not finite")
        decoded = {}
        for tensor, scale in zip(tensors, scales, strict=True):
            codes = self._unpacked(reader, tensor)
            with np.errstate(over="ignore"):  # what is not finite is refused later
                values = codes * scale[:, None]
            decoded[tensor.name] = values.reshape(tensor.shape)
        return self._layout.rejoin(decoded, reader)

    def _packed(self, codes: Array) -> Array:
        """Return codes (int8) as bytes."""
        raise NotImplementedError

    def _packed_size(self, number: int) -> int:
        raise NotImplementedError

    def _unpacked(self, reader: Any, tensor: Tensor) -> Array:
        """Return the next tensor's codes, int8 of shape (channels, -1)."""
        raise NotImplementedError


class Int8(Quantised):
    """A byte a value: -127 to 127."""

    LEVELS = 127

    def _packed(self, codes: Array) -> Array:
        return codes

    def _packed_size(self, number: int) -> int:
        return number

    def _unpacked(self, reader: Any, tensor: Tensor) -> Array:
        codes: Array = reader.take(tensor.size, np.int8).reshape(tensor.channels, -1)
        if codes.min() < -self.LEVELS:
            raise CodecError("a code is out of range")
        return codes


class Int4(Quantised):
    """Half a byte a value: -7 to 7."""

    LEVELS = 7

    def _packed(self, codes: Array) -> Array:
        nibbles = np.zeros(2 * self._packed_size(codes.size), np.uint8)
        nibbles[: codes.size] = (codes.reshape(-1) + 8).view(np.uint8)
        return nibbles[0::2] | nibbles[1::2] << 4

    def _packed_size(self, number: int) -> int:
        return (number + 1) // 2

    def _unpacked(self, reader: Any, tensor: Tensor) -> Array:
        packed = reader.take(self._packed_size(tensor.size), np.uint8)
        nibbles = np.empty(2 * len(packed), np.int8)
        nibbles[0::2] = packed & 15
        nibbles[1::2] = packed >> 4
        codes: Array = nibbles[: tensor.size].reshape(tensor.channels, -1)
        if codes.min() < 8 - self.LEVELS:
            raise CodecError("a code is out of range")
        codes -= np.int8(8)
        return codes


def scales_of(rows: Array, levels: int) -> Array:
    """Return a scale for each row, float32; 0 for a row that is (nearly) all zero."""
    peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    largest = np.nextafter(_LARGEST / np.float32(levels), np.float32(0))
    scales: Array = np.minimum(peaks / np.float32(levels), largest)  # decodes finitely
    scales[scales < _TINY] = 0  # below, float32 divides no more
    return scales


def quantise(
    rows: Array, scales: Array, levels: int, rng: np.random.Generator | None
) -> Array:
    """Return int8 codes of rows, each with its scale.

    Args:
        rows: float32, shape (channels, values).
        scales: from `scales_of`, shape (channels,).
        levels: the largest code.
        rng: draws for stochastic rounding; None for the nearest.
    """
    inverse = np.zeros_like(scales)
    np.divide(1, scales, out=inverse, where=scales > 0)
    scaled = rows * inverse[:, None]
    if rng is None:
        np.rint(scaled, out=scaled)
        np.clip(scaled, -levels, levels, out=scaled)
        return scaled.astype(np.int8)
    draws = np.frombuffer(rng.bytes(2 * scaled.size), np.uint16).reshape(scaled.shape)
    scaled += np.multiply(draws, _UNIT, dtype=np.float32)
    np.floor(scaled, out=scaled)
    np.clip(scaled, -levels, levels, out=scaled)
    return scaled.astype(np.int8)
