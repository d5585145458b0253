"""5x5 convolution, 2x2 max-pooling and ReLU as one operation, for few channels.

Libraries of convolutions compute sixteen channels at once, of which a network of 3, 6
and 16 channels fills a part. Here sixteen images are computed at once: arrays are
(channels, height, width, images), so a row of an image is one stretch of width * images
numbers, a step to the next column is one of `images` numbers, and nothing is lost for
any number of channels.

A row of the result is a sum of rows of the input times single weights: five at a time,
those of one row of the filter, for two channels of the result, which is what a core has
registers for. The gradients of the weights are scalar products of the same rows; that
of the input is a convolution with the filter turned around.

Numba compiles this for the processor at hand, in some seconds, at the first use of each
copy of this file, and keeps what it compiled beside it, or else in the user's cache, or
in `NUMBA_CACHE_DIR`. One thread; the result is the same, bit for bit, each time. Shapes
are not checked here: `convolutional` sees to them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
from numba import config as numba_config
from numba import njit, uintp
from numba.core.codegen import get_host_cpu_features
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.int8]
Integers = NDArray[np.int64]
Doubles = NDArray[np.float64]
Taps = tuple[float, float, float, float, float]
Function = TypeVar("Function", bound=Callable[..., object])

SIDE = 5
"""Of a filter, in pixels."""

_unsigned: Callable[[int], int] = uintp  # type: ignore[assignment]
"""A number to index with: for an index that may count from the end, the compiler does
not compute sixteen at a time."""
_ZERO = np.float32(0)
_NONE = np.int8(4)
"""In place of one of a window's four places: its largest number is not positive."""


def _use_wide_vectors() -> None:
    """Have the compiler use vectors of 512 bits where the processor has them.

    For some processors it keeps to 256, since one that rarely meets the wide ones slows
    down for them; the kernels, which do little else, take 1.3 to 1.5 times as long.
    What the user has set for Numba stays. It is a setting for the whole process, where
    nothing else uses Numba, and is made before `njit` below reads it.
    """
    config: Any = numba_config
    if config.CPU_NAME is None and config.CPU_FEATURES is None:
        # Without what the user has ruled out.
        features: str = get_host_cpu_features()  # type: ignore[no-untyped-call]
        if "+avx512f" in features.split(","):
            config.CPU_FEATURES = f"{features},-prefer-256-bit"


_use_wide_vectors()


def _compiled(function: Function) -> Function:
    """Return the function, compiled at its first call.

    Sums may be taken in another order than written, and fused with products; NaN and
    infinity are kept.
    """
    compiler = partial(
        njit,
        nogil=True,
        error_model="numpy",
        fastmath={"contract", "reassoc", "nsz"},
    )
    try:
        return cast(Function, compiler(cache=True)(function))
    except RuntimeError:  # no folder takes what is to be kept: anew in each process
        return cast(Function, compiler()(function))


@_compiled
def _taps(weights: Floats, at: int) -> Taps:
    """Return a filter's row of five weights."""
    second = at + _unsigned(1)
    third = at + _unsigned(2)
    fourth = at + _unsigned(3)
    fifth = at + _unsigned(4)
    return weights[at], weights[second], weights[third], weights[fourth], weights[fifth]


@_compiled
def _add_rows(
    rows: Floats,
    at: int,
    step: int,
    count: int,
    taps: Taps,
    other_taps: Taps,
    sums: Floats,
    into: int,
    other_into: int,
) -> None:
    """Add a row, shifted five times, to two rows of sums, each with its own weights."""
    v0, v1, v2, v3, v4 = taps
    w0, w1, w2, w3, w4 = other_taps
    second = at + step
    third = second + step
    fourth = third + step
    fifth = fourth + step
    for i in range(count):
        r0, r1, r2 = rows[at + i], rows[second + i], rows[third + i]
        r3, r4 = rows[fourth + i], rows[fifth + i]
        sums[into + i] += v0 * r0 + v1 * r1 + v2 * r2 + v3 * r3 + v4 * r4
        sums[other_into + i] += w0 * r0 + w1 * r1 + w2 * r2 + w3 * r3 + w4 * r4


@_compiled
def _add_products(
    row: Floats,
    one: int,
    other: int,
    rows: Floats,
    at: int,
    step: int,
    count: int,
    sums: Floats,
    into: int,
    other_into: int,
) -> None:
    """Add the products of two rows with one shifted five times to ten weights' sums."""
    a0 = a1 = a2 = a3 = a4 = _ZERO
    b0 = b1 = b2 = b3 = b4 = _ZERO
    second = at + step
    third = second + step
    fourth = third + step
    fifth = fourth + step
    for i in range(count):
        a, b = row[one + i], row[other + i]
        r0, r1, r2 = rows[at + i], rows[second + i], rows[third + i]
        r3, r4 = rows[fourth + i], rows[fifth + i]
        a0 += a * r0
        b0 += b * r0
        a1 += a * r1
        b1 += b * r1
        a2 += a * r2
        b2 += b * r2
        a3 += a * r3
        b3 += b * r3
        a4 += a * r4
        b4 += b * r4
    for place, pair in enumerate(((a0, b0), (a1, b1), (a2, b2), (a3, b3), (a4, b4))):
        sums[into + _unsigned(place)] += pair[0]
        sums[other_into + _unsigned(place)] += pair[1]


@_compiled
def _largest(
    rows: Floats,
    upper: int,
    lower: int,
    images: int,
    out: Floats,
    places: Bytes,
    at: int,
) -> None:
    """Write the largest of four if it is positive, and its place; NaN if one is."""
    for i in range(images):
        largest, place = rows[upper + i], np.int8(0)
        value = rows[upper + images + i]
        if value > largest or np.isnan(value):
            largest, place = value, np.int8(1)
        value = rows[lower + i]
        if value > largest or np.isnan(value):
            largest, place = value, np.int8(2)
        value = rows[lower + images + i]
        if value > largest or np.isnan(value):
            largest, place = value, np.int8(3)
        if largest <= _ZERO:
            largest, place = _ZERO, _NONE
        out[at + i] = largest
        places[at + i] = place


@_compiled
def convolve(
    inputs: Floats, weights: Floats, bias: Floats, out: Floats, places: Bytes
) -> None:
    """Convolve, pool and rectify.

    Args:
        inputs: (C, H, W, B).
        weights: (K, C, 5, 5), K even.
        bias: (K,).
        out: (K, (H - 4) // 2, (W - 4) // 2, B); overwritten.
        places: like `out`; overwritten with what `differentiate` needs: which of the
            four convolved pixels became the result.
    """
    channels, height = _unsigned(inputs.shape[0]), _unsigned(inputs.shape[1])
    width, images = _unsigned(inputs.shape[2]), _unsigned(inputs.shape[3])
    rows, filters = inputs.reshape(-1), weights.reshape(-1)
    pooled, chosen = out.reshape(-1), places.reshape(-1)
    one, two, side = _unsigned(1), _unsigned(2), _unsigned(SIDE)
    row = width * images
    count = row - (side - one) * images
    of_filter = channels * side * side
    sums = np.empty(_unsigned(4) * count, np.float32)
    out_height, out_width = _unsigned(out.shape[1]), _unsigned(out.shape[2])
    for half in range(_unsigned(out.shape[0]) // two):
        k = half * two
        for y in range(out_height):
            for below in range(two):
                into = below * two * count
                for i in range(count):
                    sums[into + i] = bias[k]
                    sums[into + count + i] = bias[k + one]
                for c in range(channels):
                    for dy in range(side):
                        at = (c * height + two * y + below + dy) * row
                        of = k * of_filter + (c * side + dy) * side
                        _add_rows(
                            rows, at, images, count,
                            _taps(filters, of), _taps(filters, of + of_filter),
                            sums, into, into + count,
                        )  # fmt: skip
            for other in range(two):
                for x in range(out_width):
                    upper = other * count + two * x * images
                    at = (((k + other) * out_height + y) * out_width + x) * images
                    _largest(
                        sums, upper, upper + two * count, images, pooled, chosen, at
                    )


@_compiled
def _at_places(
    gradient: Floats,
    places: Bytes,
    at: int,
    images: int,
    left: np.int8,
    rows: Floats,
    into: int,
) -> None:
    """Put a window's gradient to the pixel that was its largest, of one row of two.

    The row's left pixel is place `left` of the window, the next one `left + 1`.
    """
    right = left + 1
    for i in range(images):
        value, place = gradient[at + i], places[at + i]
        rows[into + i] = value if place == left else _ZERO
        rows[into + images + i] = value if place == right else _ZERO


@_compiled
def _sum_of_counted(
    gradient: Floats, places: Bytes, at: int, count: int
) -> np.floating:
    total = _ZERO
    for i in range(count):
        total += gradient[at + i] if places[at + i] != _NONE else _ZERO
    return total


@_compiled
def differentiate(
    inputs: Floats,
    weights: Floats,
    places: Bytes,
    gradient: Floats,
    of_weights: Floats,
    of_bias: Floats,
    of_inputs: Floats,
) -> None:
    """Write the derivatives of a loss by what `convolve` took.

    In one piece, since its parts share a dozen of sizes.

    Args:
        inputs: as `convolve` took them.
        weights: likewise.
        places: as `convolve` wrote them.
        gradient: the loss's by `convolve`'s `out`, of that shape.
        of_weights: like `weights`; overwritten.
        of_bias: (K,); overwritten.
        of_inputs: like `inputs`, C even; overwritten. If it is empty it is left out.
    """
    channels, height = _unsigned(inputs.shape[0]), _unsigned(inputs.shape[1])
    width, images = _unsigned(inputs.shape[2]), _unsigned(inputs.shape[3])
    pixels, filters = inputs.reshape(-1), weights.reshape(-1)
    above, chosen = gradient.reshape(-1), places.reshape(-1)
    by_weight, by_input = of_weights.reshape(-1), of_inputs.reshape(-1)
    one, two, side = _unsigned(1), _unsigned(2), _unsigned(SIDE)
    row = width * images
    border = (side - one) * images
    count = row - border
    of_filter = channels * side * side
    outputs, out_height = _unsigned(gradient.shape[0]), _unsigned(gradient.shape[1])
    out_width = _unsigned(gradient.shape[2])
    by_weight[:] = _ZERO
    by_input[:] = _ZERO
    of_bias[:] = _ZERO
    # A row of the convolution's gradient for each channel, zeros on either side of it.
    padded = row + border
    spread = np.zeros(outputs * padded, np.float32)
    for y in range(two * out_height):
        window, below = y // two, y % two
        for k in range(outputs):
            first = (k * out_height + window) * out_width * images
            for x in range(out_width):
                into = k * padded + border + two * x * images
                _at_places(
                    above, chosen, first + x * images, images,
                    np.int8(two * below), spread, into,
                )  # fmt: skip
            if below == 0:
                of_bias[k] += _sum_of_counted(above, chosen, first, out_width * images)
        for half in range(outputs // two):
            k = half * two
            mine = k * padded + border
            for c in range(channels):
                for dy in range(side):
                    of = k * of_filter + (c * side + dy) * side
                    _add_products(
                        spread, mine, mine + padded,
                        pixels, (c * height + y + dy) * row, images, count,
                        by_weight, of, of + of_filter,
                    )  # fmt: skip
        if by_input.size > 0:
            for half in range(channels // two):
                c = half * two
                for dy in range(side):
                    into = (c * height + y + dy) * row
                    for k in range(outputs):
                        of = k * of_filter + (c * side + dy) * side
                        v0, v1, v2, v3, v4 = _taps(filters, of)
                        w0, w1, w2, w3, w4 = _taps(filters, of + side * side)
                        _add_rows(
                            spread, k * padded, images, row,
                            (v4, v3, v2, v1, v0), (w4, w3, w2, w1, w0),
                            by_input, into, into + height * row,
                        )  # fmt: skip


@_compiled
def add_fixed_point(
    totals: Integers,
    values: Floats,
    less: Floats | None,
    scale: float,
    bound: float,
) -> int:
    """Add scale * (values - less) as integers; see `aggregation.Arithmetic`."""
    beyond = 0
    for i in range(values.size):
        value = values[i] if less is None else values[i] - less[i]
        scaled = np.rint(np.float64(value) * scale)
        within = abs(scaled) <= bound
        beyond += 0 if within else 1
        totals[i] += np.int64(scaled if within else 0.0)
    return beyond


@_compiled
def sums_of_squares(values: Floats, less: Floats | None, ends: Integers) -> Doubles:
    """Sum up each part in float64; see `aggregation.Arithmetic`."""
    sums = np.empty(ends.size, np.float64)
    start = _unsigned(0)
    for number, end in enumerate(ends):
        total = 0.0
        for i in range(start, _unsigned(end)):
            value = np.float64(values[i] if less is None else values[i] - less[i])
            total += value * value
        sums[number] = total
        start = _unsigned(end)
    return sums
