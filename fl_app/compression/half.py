"""fp16: each value in half precision (IEEE 754 binary16), rounded to the nearest."""

from collections.abc import Mapping

import numpy as np

from fl_app.compression.layout import Array, CodecError, Layout
from strategies.wire import Arrays

_LARGEST = float(np.finfo(np.float16).max)


class Half:
    """Codec for half precision: 11 bits of a value, down to 6e-8, up to 65504."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def encode(self, update: Mapping[str, Array], rng: np.random.Generator) -> Arrays:
        """Return the block of an update; nothing is drawn.

        Raises:
            CodecError: the update is not laid out as the model, is not finite, or has
                values beyond half precision.
        """
        self._layout.check(update)
        codes = []
        for tensor in self._layout.coded:
            array = update[tensor.name]
            if max(array.max(), -array.min()) > _LARGEST:
                raise CodecError(
                    f"{tensor.name!r} holds values beyond {_LARGEST:g}, the largest in "
                    "half precision"
                )
            codes.append(array.astype("<f2"))
        return self._layout.join(update, *codes)

    def decode(self, arrays: Mapping[str, Array]) -> Arrays:
        """Return the update in a block.

        Raises:
            CodecError: it is no block of this codec and model.
        """
        tensors = self._layout.coded
        reader = self._layout.read(arrays, sum(2 * tensor.size for tensor in tensors))
        decoded = {
            tensor.name: reader.take(tensor.size, np.float16)
            .astype(np.float32)
            .reshape(tensor.shape)
            for tensor in tensors
        }
        return self._layout.rejoin(decoded, reader)
