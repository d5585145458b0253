"""Updates that are made when they are looked at.

What a client of a small model costs beside its steps is memory traffic, and nobody
looks at most updates: they are summed.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from math import prod
from typing import Any

import numpy as np

from strategies.wire import Arrays

_Array = np.ndarray[Any, Any]


class Layout:
    """How arrays lie in one: one after the other, each in the usual order."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take their names and shapes, in their order."""
        self.shapes = tuple(shapes.items())
        self.ends = np.cumsum([prod(s) for s in shapes.values()], dtype=np.int64)
        """Where each array ends, (k,)."""
        self.size = int(self.ends[-1]) if self.shapes else 0

    def divide(self, whole: _Array) -> Arrays:
        """Return the arrays as views of what they lie in, (size,)."""
        parts = np.split(whole, self.ends[:-1])
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(self.shapes, parts, strict=True)
        }


class Difference(MutableMapping[str, _Array]):
    """An update that is made when it is looked at: a model now, less what it was.

    The sum and the norm of `aggregation` do without its arrays. Until one is looked at
    it tells of the model's present values, so it must be looked at, summed or copied
    (by `dict`) before the model is used for something else.
    """

    def __init__(self, now: _Array, before: _Array, layout: Layout) -> None:
        """Take the model's memory.

        Args:
            now: all of the model's values (n,), float32.
            before: likewise, as they were.
            layout: how its arrays lie in either.

        Raises:
            ValueError: the values are not as many as the layout's, or not float32.
        """
        for values in (now, before):  # compiled code relies on it
            if values.dtype != np.float32 or values.shape != (layout.size,):
                raise ValueError(
                    f"{layout.size} float32 values are needed, got {values.dtype} "
                    f"{values.shape}"
                )
        self.now, self.before, self.layout = now, before, layout
        self._made: Arrays | None = None

    @property
    def is_made(self) -> bool:
        """Whether it has been looked at, and so may have been changed."""
        return self._made is not None

    def _arrays(self) -> Arrays:
        if self._made is None:
            self._made = self.layout.divide(self.now - self.before)
        return self._made

    def __getitem__(self, name: str) -> _Array:
        return self._arrays()[name]

    def __setitem__(self, name: str, array: _Array) -> None:
        self._arrays()[name] = array

    def __delitem__(self, name: str) -> None:
        del self._arrays()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays())

    def __len__(self) -> int:
        return len(self._arrays())
