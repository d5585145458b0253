r"""Exact weighted sums of updates, and the checks an update must pass to count.

The weighted mean of updates :math:`\Delta_k` with weights :math:`n_k` (numbers of
examples) is :math:`\sum_k n_k \Delta_k / \sum_k n_k` (McMahan et al. 2017,
arXiv:1602.05629, algorithm 1). Floating-point addition is not associative, so a
float sum depends on the order in which replies arrive and on which node trained
which client. Here each product :math:`n_k \Delta_k` is rounded once to a multiple of
2^-36 and summed in int64, where addition is exact: any order and any grouping give
the same bits. The rounding moves the mean by less than 2^-37 / min n_k, far below
the spacing of float32 weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import Any, NoReturn

import numpy as np

from strategies.difference import Difference
from strategies.wire import Arrays

FRACTION_BITS = 36
"""Binary places kept. A client of a cohort of K may add n_k * |update| <= 2^26 / K."""

BESIDE = "beside/"
"""How names of arrays begin that travel with an update and are no part of it."""

_SCALE = 2.0**FRACTION_BITS

_PIECE = 2**15
"""Values that are multiplied, rounded and added at once: 256 KiB at each stage."""

_TOO_LARGE = "too large to be summed exactly: has training diverged?"

_Array = np.ndarray[Any, Any]


class UpdateError(ValueError):
    """An update that must not be counted in; the message says why."""


def check_update(
    update: Mapping[str, _Array], model: Mapping[str, _Array], weight: int
) -> None:
    """Check one client's update against the global model it was made from.

    Raises:
        UpdateError: keys, shapes or dtypes differ, a value is not finite, or
            `weight` (number of examples) is not a positive integer.
    """
    check_weight(weight)
    _check_layout(update, model, dtype=None)
    for name, array in update.items():
        if array.dtype.kind == "f":
            _check_finite(name, array)


def _check_finite(name: str, array: _Array) -> None:
    if not np.isfinite(array).all():
        raise UpdateError(f"{name!r} holds values that are not finite")


def check_weight(weight: object) -> None:
    """Raise `UpdateError` unless `weight` is a positive int below 2^40."""
    if isinstance(weight, bool) or not isinstance(weight, int):
        raise UpdateError(f"num-examples must be an integer, got {weight!r}")
    if not 0 < weight < 2**40:
        raise UpdateError(f"num-examples must be positive and sane, got {weight}")


def _check_layout(
    arrays: Mapping[str, _Array], model: Mapping[str, _Array], dtype: type | None
) -> None:
    """Same names, shapes and dtypes (`dtype`, or else the model's own)."""
    if missing := sorted(model.keys() - arrays.keys()):
        raise UpdateError(f"arrays are missing: {', '.join(missing)}")
    if extra := sorted(arrays.keys() - model.keys()):
        raise UpdateError(f"arrays are unknown to the model: {', '.join(extra)}")
    for name, reference in model.items():
        array, expected = arrays[name], dtype or reference.dtype
        if array.shape != reference.shape:
            raise UpdateError(
                f"{name!r} has shape {array.shape}, the model's is {reference.shape}"
            )
        if array.dtype != expected:
            raise UpdateError(
                f"{name!r} is {array.dtype}, expected {np.dtype(expected)}"
            )


@dataclass(frozen=True)
class Arithmetic:
    """What goes through all values of an update."""

    add_fixed_point: Callable[[_Array, _Array, _Array | None, float, float], int]
    """Add scale * (values - less), rounded to integers, half to even, to totals (n,)
    int64; of totals, values (n,), less (n,) or None for zeros, scale and bound. Return
    how many of them are beyond +-bound, or NaN: these are left out. No sum of the
    others is out of range."""
    sums_of_squares: Callable[[_Array, _Array | None, _Array], _Array]
    """Of the parts of values - less that end at ends (k,), accumulated in float64:
    (k,); of values, less (as above) and ends. The sum of a part does not depend on the
    others."""


class ExactSum:
    """Running sum of n_k * update_k that does not depend on order or grouping.

    Float arrays are summed in fixed point; integer arrays (counters such as
    batch-norm's `num_batches_tracked`) in plain integer arithmetic. Memory is one
    int64 array per tensor, however many updates are added.

    The int64 range is shared out evenly: what one client may add depends on the size of
    the cohort alone, so that whether an update counts does not depend on the others.
    """

    def __init__(
        self,
        model: Mapping[str, _Array],
        cohort_size: int,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        """Start at zero.

        Args:
            model: what updates are laid out like; only read.
            cohort_size: how many of them there may be.
            arithmetic: what adds them up; None for NumPy's.
        """
        self._model = dict(model)
        self._arithmetic = arithmetic or NUMPY
        self._floats = [n for n, a in model.items() if a.dtype.kind == "f"]
        self._flat = np.zeros(sum(model[n].size for n in self._floats), np.int64)
        """The sums of the float arrays, one after the other."""
        self._totals = {
            n: np.zeros(a.shape, np.int64)
            for n, a in model.items()
            if a.dtype.kind != "f"
        }
        self._shapes = (
            tuple((name, array.shape) for name, array in model.items())
            if all(array.dtype == np.float32 for array in model.values())
            else None
        )
        """Of a `Difference` that can be added without being made; None if none can."""
        start = 0
        for name in self._floats:
            end = start + model[name].size
            self._totals[name] = self._flat[start:end].reshape(model[name].shape)
            start = end
        self._limit = (2**63 - 1) // cohort_size  # of one client's summands
        # As a float it is rounded up to 2^k; half of it is surely within the range.
        self._bound = self._limit / 2
        self._cohort_size = cohort_size
        self.num_clients = 0
        """Number of clients whose updates are in the sum."""
        self.weight = 0
        """Sum of their weights (numbers of examples)."""

    def add(self, update: Mapping[str, _Array], weight: int) -> None:
        """Add one client's update; all of it or, on an error, nothing.

        Raises:
            UpdateError: see `check_update`; or the update is too large to be
                summed exactly.
        """
        check_weight(weight)
        products: Arrays = {}
        less: _Array | None = None
        if (
            isinstance(update, Difference)
            and not update.is_made
            and update.layout.shapes == self._shapes
        ):
            values, less = update.now, update.before
        else:
            _check_layout(update, self._model, dtype=None)
            values = _one_after_the_other(update, self._floats)
            products = {
                name: _product(name, array, weight, self._limit)
                for name, array in update.items()
                if array.dtype.kind != "f"
            }
        self._check_room(1)
        if self._add_floats(values, less, weight):
            self._refuse(update, weight)
        self._accumulate(products, weight, 1)

    def _add_floats(self, values: _Array, less: _Array | None, weight: int) -> int:
        """Add weight * (values - less) in one pass; return how many are out of range.

        If any is, nothing is added. What is done once for all arrays costs small ones
        less.
        """
        add, scale = self._arithmetic.add_fixed_point, weight * _SCALE
        beyond = add(self._flat, values, less, scale, self._bound)
        if beyond:  # takes out what was added: exactly so
            add(self._flat, values, less, -scale, self._bound)
        return beyond

    def _refuse(self, update: Mapping[str, _Array], weight: int) -> NoReturn:
        """Raise an `UpdateError` that names the array that cannot be added."""
        for name in self._floats:
            _check_finite(name, update[name])
            if not _in_range(update[name], weight * _SCALE, self._bound):
                raise UpdateError(f"{name!r} is {_TOO_LARGE}")
        raise UpdateError(f"it is {_TOO_LARGE}")

    def add_partial(
        self, totals: Mapping[str, _Array], weight: int, num_clients: int
    ) -> None:
        """Add another sum's `totals`, of that weight and number of clients.

        Raises:
            UpdateError: wrong names, shapes, dtype (int64) or weight, or larger than
                so many clients can be.
        """
        check_weight(weight)
        _check_layout(totals, self._model, dtype=np.int64)
        for name, array in totals.items():
            if _peak(array) > self._limit * num_clients:
                raise UpdateError(f"{name!r} is {_TOO_LARGE}")
        self._check_room(num_clients)
        self._accumulate(totals, weight, num_clients)

    def _check_room(self, num_clients: int) -> None:
        if self.num_clients + num_clients > self._cohort_size:
            raise UpdateError(f"more than {self._cohort_size} clients are in the sum")

    def _accumulate(
        self, products: Mapping[str, _Array], weight: int, num_clients: int
    ) -> None:
        for name, product in products.items():
            np.add(self._totals[name], product, out=self._totals[name])
        self.num_clients += num_clients
        self.weight += weight

    @property
    def totals(self) -> Arrays:
        """The raw int64 sums, to be sent to and added by another `ExactSum`."""
        return self._totals

    def mean(self) -> Arrays:
        """Return the weighted mean update: float64, or int64 for integer arrays.

        The mean of integers is rounded to the nearest, halves up, without leaving
        integer arithmetic.

        Raises:
            ValueError: nothing was added.
        """
        if self.weight == 0:
            raise ValueError("no update was added, so there is no mean")
        means: Arrays = {}
        for name, total in self._totals.items():
            if self._model[name].dtype.kind == "f":
                means[name] = np.asarray(total / (_SCALE * self.weight))
            else:
                half = self.weight // 2
                means[name] = np.asarray((total + half) // self.weight)
        return means


def _in_range(array: _Array, scale: float, bound: float) -> bool:
    """Whether scale * array, rounded, is within +-bound; not if it has NaNs."""
    sums = np.zeros(array.size, np.int64)
    return not _add_fixed_point(sums, np.ravel(array), None, scale, bound)


def _one_after_the_other(arrays: Mapping[str, _Array], names: Sequence[str]) -> _Array:
    """Return the values of the arrays of these names (n,)."""
    return np.concatenate([np.ravel(arrays[name]) for name in names] or [np.zeros(0)])


def _add_fixed_point(
    totals: _Array, values: _Array, less: _Array | None, scale: float, bound: float
) -> int:
    """See `Arithmetic`; in pieces that fit the cache."""
    size, beyond = min(values.size, _PIECE), 0
    products = np.empty(size, np.float64)
    integers = np.empty(size, np.int64)
    for start in range(0, values.size, _PIECE):
        piece = values[start : start + _PIECE]
        if less is not None:
            piece = piece - less[start : start + _PIECE]
        scaled, rounded = products[: piece.size], integers[: piece.size]
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(piece, scale, out=scaled, dtype=np.float64)
            np.rint(scaled, out=scaled)
            if not (-bound <= scaled.min() and scaled.max() <= bound):
                odd = ~(np.abs(scaled) <= bound)
                beyond += int(np.count_nonzero(odd))
                scaled[odd] = 0
        np.copyto(rounded, scaled, casting="unsafe")
        sums = totals[start : start + _PIECE]
        np.add(sums, rounded, out=sums)
    return beyond


def _sums_of_squares(values: _Array, less: _Array | None, ends: _Array) -> _Array:
    """See `Arithmetic`. Not scalar products, whose last bits depend on the threads."""
    parts = np.split(values, ends[:-1])
    if less is not None:
        others = np.split(less, ends[:-1])
        parts = [part - other for part, other in zip(parts, others, strict=True)]
    return np.array([np.square(part, dtype=np.float64).sum() for part in parts])


NUMPY = Arithmetic(_add_fixed_point, _sums_of_squares)


def _product(name: str, array: _Array, weight: int, limit: int) -> _Array:
    """Return weight * array as int64."""
    if array.dtype.kind in "iu":
        if _peak(array) * weight > limit:
            raise UpdateError(f"{name!r} is {_TOO_LARGE}")
        return np.asarray(array.astype(np.int64) * weight)
    raise UpdateError(f"{name!r} is {array.dtype}, which cannot be averaged")


def _peak(array: _Array) -> int:
    """Return the largest magnitude, as a Python integer (so -2^63 is no trap)."""
    return max(-int(array.min()), int(array.max())) if array.size else 0


def apply_mean(model: Mapping[str, _Array], mean: Mapping[str, _Array]) -> Arrays:
    """Return model + mean, each array in the model's own dtype; inputs are kept.

    Float weights are added in float64 and rounded once.
    """
    return {
        name: np.asarray(array.astype(mean[name].dtype) + mean[name]).astype(
            array.dtype
        )
        for name, array in model.items()
    }


def subtract(local: Mapping[str, _Array], model: Mapping[str, _Array]) -> Arrays:
    """Return the update local - model, new arrays in the model's dtypes."""
    return {name: np.asarray(local[name] - array) for name, array in model.items()}


def is_statistic(name: str, array: _Array) -> bool:
    """Whether an array is a counter or a batch-norm statistic, and no parameter."""
    return array.dtype.kind != "f" or name.endswith(("running_mean", "running_var"))


def beside_of(arrays: Mapping[str, _Array]) -> Arrays:
    """Return what travels beside an update, under its own names."""
    return {
        name.removeprefix(BESIDE): array
        for name, array in arrays.items()
        if name.startswith(BESIDE)
    }


def norm(update: Mapping[str, _Array], arithmetic: Arithmetic = NUMPY) -> float:
    """Return the Euclidean norm over all float arrays, accumulated in float64.

    What travels beside the update does not count, nor does the arrays' order.
    """
    if isinstance(update, Difference) and not update.is_made:
        ends = update.layout.ends
        return sqrt(fsum(arithmetic.sums_of_squares(update.now, update.before, ends)))
    squares = (
        arithmetic.sums_of_squares(np.ravel(array), None, np.array([array.size]))[0]
        for name, array in update.items()
        if array.dtype.kind == "f" and not name.startswith(BESIDE)
    )
    return sqrt(fsum(squares))


def to_moments(arrays: Mapping[str, _Array]) -> Arrays:
    """Replace each batch-norm variance by the second moment var + mean^2, in float64.

    Means of second moments pool statistics: the variance of the union of the clients'
    data is E[x^2] - E[x]^2, which a mean of variances is not. `arrays` is the model
    (names ending in `running_var` beside `running_mean`); new dict.
    """
    return _map_variances(
        arrays, lambda var, mean: var.astype(np.float64) + np.square(mean, dtype=float)
    )


def from_moments(arrays: Mapping[str, _Array]) -> Arrays:
    """Undo `to_moments`, into the dtype of the mean; rounding below 0 is cut at 0."""
    return _map_variances(
        arrays,
        lambda moment, mean: np.maximum(
            moment - np.square(mean, dtype=float), 0
        ).astype(mean.dtype),
    )


def _map_variances(
    arrays: Mapping[str, _Array], convert: Callable[[_Array, _Array], _Array]
) -> Arrays:
    converted = dict(arrays)
    for name, variance in arrays.items():
        if name.endswith("running_var"):
            mean = arrays[name.removesuffix("var") + "mean"]
            converted[name] = np.asarray(convert(variance, mean))
    return converted
