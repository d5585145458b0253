"""Codecs by themselves: what comes back, what is refused, and how small it is."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_app import compression, models, task
from fl_app.compression import BLOCK, CodecError
from fl_app.compression.quantised import quantise, scales_of
from strategies import aggregation, wire
from strategies.federation import Reply
from strategies.replies import Tally
from strategies.wire import Arrays

NAMES = compression.CODECS[1:]
LIKE: Arrays = {
    "conv.weight": np.zeros((4, 3, 5, 5), np.float32),
    "conv.bias": np.zeros(4, np.float32),
    "bn.running_var": np.zeros(4, np.float64),
    "bn.num_batches_tracked": np.zeros((), np.int64),
    "empty": np.zeros((0, 7), np.float32),
    "tiny": np.zeros((3, 5), np.float32),
    "dense.weight": np.zeros((10, 33), np.float32),
    "narrow": np.zeros((50, 2), np.float32),
    "beside/dense.weight": np.zeros((10, 33), np.float32),
}
CODED = ("conv.weight", "dense.weight", "narrow")


def update(seed: int = 0, size: float = 0.01) -> Arrays:
    draws = np.random.default_rng(seed)
    made = {}
    for name, array in LIKE.items():
        if array.dtype.kind == "f":
            values = size * draws.standard_normal(array.shape)
        else:
            values = draws.integers(-5, 100, array.shape)
        made[name] = np.asarray(values).astype(array.dtype)
    return made


def through(name: str, given: Arrays, **options: Any) -> Arrays:
    codec = compression.build(name, LIKE, **options)
    return codec.decode(codec.encode(given, np.random.default_rng(1)))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_small_comes_back_to_the_bit(name: str) -> None:
    before, after = update(), through(name, update())
    assert list(after) == list(before)
    for key in LIKE:
        assert after[key].shape == before[key].shape
        assert after[key].dtype == before[key].dtype
        if key not in CODED:
            np.testing.assert_array_equal(after[key], before[key])


@pytest.mark.parametrize(
    ("name", "levels"), [("int8", 127), ("int4", 7)], ids=["int8", "int4"]
)
@pytest.mark.parametrize("stochastic", [True, False])
def test_integers_are_off_by_a_step_at_most(
    name: str, levels: int, stochastic: bool
) -> None:
    before = update()
    after = through(name, before, stochastic=stochastic)
    for key in ("conv.weight", "dense.weight"):  # a scale for each output channel
        rows = before[key].reshape(len(before[key]), -1)
        step = np.abs(rows).max(axis=1, keepdims=True) / levels
        error = np.abs(after[key].reshape(rows.shape) - rows)
        assert (error <= step * (1.0 if stochastic else 0.5) * 1.0001).all()
    step = np.abs(before["narrow"]).max() / levels  # one for all: two values are few
    assert np.abs(after["narrow"] - before["narrow"]).max() <= step * 1.0001


@pytest.mark.parametrize("levels", [127, 7])
def test_stochastic_rounding_has_no_bias(levels: int) -> None:
    rows = np.array([[1.0, 0.3, -0.7, 0.011, -0.004, 0.0]], np.float32)
    scale = scales_of(rows, levels)
    draws = np.random.default_rng(0)
    number = 40_000
    codes = [quantise(rows, scale, levels, draws) for _ in range(number)]
    mean = np.mean(codes, axis=0, dtype=np.float64) * scale
    # five standard errors of a value that is up to half a step off
    np.testing.assert_allclose(mean, rows, atol=5 * 0.5 * float(scale[0]) / number**0.5)
    assert np.ptp(codes, axis=0)[0, 1] == 1  # and it does draw


@pytest.mark.parametrize("value", [0.0, -1e-9, 1.5e-5, 0.3, -0.7, 5.999999])
def test_the_mean_over_all_draws_is_off_by_less_than_their_unit(value: float) -> None:
    class All(np.random.Generator):
        def bytes(self, length: int) -> bytes:
            assert length == 2 * 2**16
            return np.arange(2**16, dtype=np.uint16).tobytes()

    rows = np.full((1, 2**16), value, np.float32)
    codes = quantise(rows, np.ones(1, np.float32), 7, All(np.random.PCG64(0)))
    low = float(rows[0, 0]) - codes.mean(dtype=np.float64)
    assert -1e-6 < low < 2**-16


def test_half_precision_is_half_precision() -> None:
    before, after = update(), through("fp16", update())
    for key in CODED:
        np.testing.assert_array_equal(
            after[key], before[key].astype(np.float16).astype(np.float32)
        )


@pytest.mark.parametrize("name", ["topk", "topk-int8"])
def test_the_largest_of_all_arrays_are_kept(name: str) -> None:
    before, after = update(), through(name, update(), ratio=0.1)
    flat = np.concatenate([before[key].ravel() for key in CODED])
    back = np.concatenate([after[key].ravel() for key in CODED])
    kept = np.argsort(-np.abs(flat))[:73]  # 10 % of 300 + 330 + 100
    assert set(np.flatnonzero(back)) <= set(kept)
    error = np.abs(back[kept] - flat[kept]).max()
    assert error == 0 if name == "topk" else error <= np.abs(flat).max() / 127
    assert np.delete(back, kept).max() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", [0.0, 1.0, -3.0e38, np.finfo(np.float32).max, 1e-45, 1e-39]
)
def test_odd_values(name: str, value: float) -> None:
    """Constant, all zero, huge, and too small for float32 to divide."""
    before = {
        key: np.full_like(a, value if a.dtype.kind == "f" else 1)
        for key, a in LIKE.items()
    }
    if name == "fp16" and abs(value) > 65504:
        with pytest.raises(CodecError, match="beyond 65504"):
            through(name, before)
        return
    after = through(name, before, ratio=1.0, stochastic=False)
    for key in CODED:
        np.testing.assert_allclose(after[key], before[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["dense.weight", "conv.bias"])
def test_what_is_not_finite_is_refused(name: str, value: float, key: str) -> None:
    bad = update()
    bad[key].flat[-1] = value
    with pytest.raises(CodecError, match=f"'{key}' holds values that are not finite"):
        through(name, bad)


@pytest.mark.parametrize("name", NAMES)
def test_another_models_update_is_refused(name: str) -> None:
    codec = compression.build(name, LIKE)
    draws = np.random.default_rng(0)
    missing = {key: a for key, a in update().items() if key != "narrow"}
    with pytest.raises(CodecError, match="other arrays"):
        codec.encode(missing, draws)
    with pytest.raises(CodecError, match="'narrow' is float32"):
        codec.encode(update() | {"narrow": np.zeros((2, 50), np.float32)}, draws)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_matrices(name: str) -> None:
    like = {"bias": np.zeros(3, np.float32), "count": np.zeros((), np.int64)}
    codec = compression.build(name, like)
    given = {"bias": np.arange(3, dtype=np.float32), "count": np.array(4)}
    after = codec.decode(codec.encode(given, np.random.default_rng(0)))
    np.testing.assert_array_equal(after["bias"], given["bias"])
    assert after["count"] == 4


ARRAYS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9),
    elements=st.floats(-1e4, 1e4, width=32),
)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.text(min_size=1), ARRAYS, max_size=4),
    st.sampled_from(NAMES),
    st.booleans(),
    st.floats(0.001, 1.0),
    st.integers(0, 2**32),
)
def test_any_update_comes_back_laid_out_as_it_was(
    given: Arrays, name: str, stochastic: bool, ratio: float, seed: int
) -> None:
    codec = compression.build(name, given, ratio=ratio, stochastic=stochastic)
    block = codec.encode(given, np.random.default_rng(seed))
    assert codec.encode(given, np.random.default_rng(seed))[BLOCK].tobytes() == (
        block[BLOCK].tobytes()
    )
    after = codec.decode(block)
    assert list(after) == list(given)
    for key, array in given.items():
        assert after[key].shape == array.shape
        assert after[key].dtype == array.dtype
        if array.ndim < 2 or array.size < 16:
            np.testing.assert_array_equal(after[key], array)
        elif array.size:
            assert np.abs(after[key] - array).max() <= np.abs(array).max() * 1.0001


# --- size

SIZES = {  # of 4 bytes a parameter, on the CNN and the residual network
    "int8": (0.255, 0.27),
    "int4": (0.132, 0.15),
    "fp16": (0.505, 0.51),
    "topk": (0.017, 0.025),
    "topk-int8": (0.01, 0.02),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_size_follows_from_the_model(name: str) -> None:
    shapes = {"cnn": (1, 28, 28), "resnet": (3, 32, 32)}
    for (model, shape), limit in zip(shapes.items(), SIZES[name], strict=True):
        like = task.get_arrays(models.build(model, shape, 10, seed=0))
        codec = compression.build(name, like)
        block = codec.encode(like, np.random.default_rng(0))[BLOCK]
        parameters = sum(array.size for array in like.values())
        assert block.nbytes <= limit * 4 * parameters
        other = {key: -3 * array for key, array in like.items()}
        assert codec.encode(other, np.random.default_rng(1))[BLOCK].size == block.size


# --- what a client may send instead


def malformed(
    draws: np.random.Generator, sound: np.ndarray[Any, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """Return something that is nearly a block, or not at all."""
    block = sound.copy()
    places = draws.integers(0, len(block), draws.integers(1, 20))
    block[places] = draws.integers(0, 256, len(places), dtype=np.uint8)
    other = draws.choice(["i1", "u2", "f4", "c16", "?"])
    kinds: list[dict[str, np.ndarray[Any, Any]]] = [
        {BLOCK: sound[: draws.integers(len(sound))]},
        {BLOCK: np.append(sound, sound[: draws.integers(1, 9)])},
        {BLOCK: sound.astype(other)},
        {BLOCK: sound.reshape(1, -1)},
        {"other": sound},
        {BLOCK: sound, "more": sound},
        {BLOCK: block},  # values differ, or a code is refused
        {BLOCK: draws.integers(0, 256, len(sound), dtype=np.uint8)},
    ]
    return kinds[draws.integers(len(kinds))]


@pytest.mark.parametrize("name", NAMES)
def test_a_malformed_block_is_refused_or_an_update(name: str) -> None:
    """20,000 for each of the five codecs."""
    codec = compression.build(name, LIKE, ratio=0.05)
    draws = np.random.default_rng(7)
    sound = codec.encode(update(), draws)[BLOCK]
    reasons = []
    for _ in range(20_000):
        given = malformed(draws, sound)
        try:
            with np.errstate(all="ignore"):
                after = codec.decode(given)
        except CodecError as error:
            reasons.append(str(error))
            continue
        assert len(given) == 1
        assert given[BLOCK].shape == sound.shape
        assert [(k, a.shape, a.dtype) for k, a in after.items()] == [
            (k, a.shape, a.dtype) for k, a in LIKE.items()
        ]
    assert 20_000 * 0.5 < len(reasons) < 20_000
    assert all(reasons)


@pytest.mark.parametrize("name", NAMES)
def test_a_malformed_reply_is_left_out_and_takes_no_room(name: str) -> None:
    """The whole way that the server takes it: metrics, record, block, sum."""
    codec = compression.build(name, LIKE, ratio=0.05)
    draws = np.random.default_rng(8)
    sound = codec.encode(update(), draws)[BLOCK]
    asked = {wire.TRAIN_IDS: [4], wire.SINGLE_UPDATES: 1}
    sent = RecordDict({wire.TASK: ConfigRecord(asked)})  # type: ignore[arg-type]
    odd = [-1.0, 0.0, 0.5, 4.5, 5.0, 1e300, np.nan]
    counted = 0
    tracemalloc.start()
    for turn in range(500):
        block = {BLOCK: sound} if turn % 3 else malformed(draws, sound)
        row = {wire.CLIENT_IDS: [4.0], wire.NUM_EXAMPLES: [9.0], wire.LOSS: [1.0]}
        if turn % 3 == 1:
            row[str(draws.choice(list(row)))] = [float(draws.choice(odd))]
        content = RecordDict(
            {wire.UPDATE: wire.pack(block), wire.TRAINED: MetricRecord({**row})}
        )
        total = aggregation.ExactSum(LIKE, 1)
        tally = Tally(lambda client: 9, total, decode=codec.decode)
        with np.errstate(all="ignore"):
            tally.add(Reply(3, content), sent)
        assert len(tally.trained) == total.num_clients
        assert len(tally.trained) + len(tally.failures) == 1
        assert all(failure.reason for failure in tally.failures)
        counted += len(tally.trained)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 500 / 3 < counted < 500 * 2 / 3
    assert most < 2**20  # an update is 5 kB


def test_places_must_be_in_order_and_within() -> None:
    like = {"w": np.zeros((4, 25), np.float32)}
    codec = compression.build("topk", like, ratio=0.03)
    values = {"w": np.arange(100, dtype=np.float32).reshape(4, 25)}
    block = codec.encode(values, np.random.default_rng(0))[BLOCK]
    np.testing.assert_array_equal(block[:10].view("<u2"), [3, 0, 97, 98, 99])
    for places in ([97, 97, 99], [98, 97, 99], [97, 98, 100]):
        bad = block.copy()
        bad[4:10] = np.array(places, "<u2").view(np.uint8)
        with pytest.raises(CodecError, match="in order, or beyond"):
            codec.decode({BLOCK: bad})
    bad = block.copy()
    bad[0] = 4
    with pytest.raises(CodecError, match="do not add up to 3"):
        codec.decode({BLOCK: bad})


@pytest.mark.parametrize(("name", "low"), [("int8", -128), ("int4", 0)])
def test_a_code_out_of_range_is_refused(name: str, low: int) -> None:
    like = {"w": np.zeros((1, 20), np.float32)}
    codec = compression.build(name, like)
    block = codec.encode({"w": np.ones((1, 20), np.float32)}, np.random.default_rng(0))
    bad = block[BLOCK].copy()
    bad[-1] = np.array(low, np.int8).view(np.uint8)
    with pytest.raises(CodecError, match="out of range"):
        codec.decode({BLOCK: bad})
    bad = block[BLOCK].copy()
    bad[:4] = np.array([np.nan], "<f4").view(np.uint8)
    with pytest.raises(CodecError, match="scale is negative or not finite"):
        codec.decode({BLOCK: bad})


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_arrays_is_of_no_account(name: str) -> None:
    turned = dict(reversed(update().items()))
    one = compression.build(name, LIKE).encode(update(), np.random.default_rng(0))
    other = compression.build(name, turned).encode(turned, np.random.default_rng(0))
    np.testing.assert_array_equal(one[BLOCK], other[BLOCK])
