"""topk and topk-int8: the largest values of an update, and where they lie.

The k values of the largest magnitude among all coded arrays together (Stich, Cordonnier
and Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, arXiv:1809.07599), as float32 or
as int8 with one scale for each array. Places are counted over the arrays laid end to
end, in stretches of 65,536: a count for each stretch, then two bytes for each place.

What is left out is lost, unless error feedback keeps it for the next round.
"""

from collections.abc import Mapping
from math import ceil

import numpy as np

from fl_app.compression.layout import Array, CodecError, Layout, Reader
from fl_app.compression.quantised import quantise, scales_of
from strategies.wire import Arrays

_STRETCH = 1 << 16
_LEVELS = 127


class TopK:
    """Codec for the largest values, as they are."""

    def __init__(self, layout: Layout, *, ratio: float) -> None:
        """Set which share of the values is kept, in (0, 1]."""
        self._layout = layout
        sizes = [tensor.size for tensor in layout.coded]
        self._ends = np.cumsum([0, *sizes])
        self._number = int(self._ends[-1])
        self._kept = min(self._number, ceil(ratio * self._number))
        self._stretches = ceil(self._number / _STRETCH)

    def encode(self, update: Mapping[str, Array], rng: np.random.Generator) -> Arrays:
        """Return the block of an update.

        Raises:
            CodecError: the update is not laid out as the model, or is not finite.
        """
        self._layout.check(update)
        flat = self._flat(update)
        order = np.argpartition(np.abs(flat), self._number - self._kept)
        places = np.sort(order[self._number - self._kept :])
        counts = np.bincount(places // _STRETCH, minlength=self._stretches)
        return self._layout.join(
            update,
            counts.astype("<u4"),
            (places % _STRETCH).astype("<u2"),
            *self._coded(flat[places], places, rng),
        )

    def decode(self, arrays: Mapping[str, Array]) -> Arrays:
        """Return the update in a block.

        Raises:
            CodecError: it is no block of this codec and model.
        """
        size = 4 * self._stretches + 2 * self._kept + self._values_size()
        reader = self._layout.read(arrays, size)
        counts = reader.take(self._stretches, np.uint32).astype(np.int64)
        if counts.sum() != self._kept or (counts > _STRETCH).any():
            raise CodecError(f"the counts of places do not add up to {self._kept}")
        within = reader.take(self._kept, np.uint16).astype(np.int64)
        places = np.repeat(np.arange(self._stretches) * _STRETCH, counts) + within
        if self._kept and (places[-1] >= self._number or (np.diff(places) <= 0).any()):
            raise CodecError("the places are not in order, or beyond the update")
        flat = np.zeros(self._number, np.float32)
        flat[places] = self._decoded(reader, places)
        decoded = {
            tensor.name: flat[start:end].reshape(tensor.shape)
            for tensor, start, end in zip(
                self._layout.coded, self._ends[:-1], self._ends[1:], strict=True
            )
        }
        return self._layout.rejoin(decoded, reader)

    def _flat(self, update: Mapping[str, Array]) -> Array:
        parts = [update[tensor.name].reshape(-1) for tensor in self._layout.coded]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _values_size(self) -> int:
        """Bytes of the kept values."""
        return 4 * self._kept

    def _coded(
        self, values: Array, places: Array, rng: np.random.Generator
    ) -> list[Array]:
        """Return what is sent of the kept values."""
        return [values.astype("<f4")]

    def _decoded(self, reader: Reader, places: Array) -> Array:
        """Return the kept values, float32."""
        return reader.take(self._kept, np.float32)


class TopKInt8(TopK):
    """Codec for the largest values, a byte each."""

    def __init__(self, layout: Layout, *, ratio: float, stochastic: bool) -> None:
        """Set which share of the values is kept, and how they are rounded."""
        super().__init__(layout, ratio=ratio)
        self._stochastic = stochastic

    def _values_size(self) -> int:
        return 4 * len(self._layout.coded) + self._kept

    def _split(self, values: Array, places: Array) -> list[Array]:
        """Return the values array by array."""
        if not self._layout.coded:
            return []
        return np.split(values, np.searchsorted(places, self._ends[1:-1]))

    def _coded(
        self, values: Array, places: Array, rng: np.random.Generator
    ) -> list[Array]:
        draws = rng if self._stochastic else None
        scales, codes = [], []
        for part in self._split(values, places):
            rows = part.reshape(1, -1)
            scale = scales_of(rows, _LEVELS) if part.size else np.zeros(1, np.float32)
            scales.append(scale)
            codes.append(quantise(rows, scale, _LEVELS, draws))
        return [*(s.astype("<f4") for s in scales), *codes]

    def _decoded(self, reader: Reader, places: Array) -> Array:
        scales = reader.take(len(self._layout.coded), np.float32)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise CodecError("a scale is negative or not finite")
        codes = reader.take(self._kept, np.int8)
        if codes.size and codes.min() < -_LEVELS:
            raise CodecError("a code is out of range")
        owners = np.searchsorted(self._ends[1:], places, side="right")
        with np.errstate(over="ignore"):  # what is not finite is refused later
            return codes * scales[owners]
