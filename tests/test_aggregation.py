import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strategies import aggregation
from strategies.aggregation import ExactSum, UpdateError
from strategies.difference import Difference, Layout

FLOATS = {"w": np.zeros(3, np.float32)}


def update(*values: float) -> dict[str, np.ndarray]:
    return {"w": np.array(values, np.float32)}


def test_weights_are_numbers_of_examples() -> None:
    total = ExactSum(FLOATS, 3)
    total.add(update(1, 2, -4), 1)
    total.add(update(5, 2, 0), 3)
    # (1*1 + 3*5) / 4 = 4;  (1*2 + 3*2) / 4 = 2;  (1*-4 + 3*0) / 4 = -1
    assert total.mean()["w"].tolist() == [4.0, 2.0, -1.0]
    assert total.weight == 4


updates_and_weights = st.lists(
    st.tuples(
        hnp.arrays(np.float32, 5, elements=st.floats(-100, 100, width=32)),
        st.integers(1, 5000),
    ),
    min_size=1,
    max_size=8,
)


@given(updates_and_weights)
def test_mean_equals_a_float64_mean(parts: list[tuple[np.ndarray, int]]) -> None:
    total = ExactSum({"w": np.zeros(5, np.float32)}, 8)
    for array, weight in parts:
        total.add({"w": array}, weight)
    arrays = np.stack([array for array, _ in parts]).astype(np.float64)
    expected = np.average(arrays, axis=0, weights=[weight for _, weight in parts])
    np.testing.assert_allclose(total.mean()["w"], expected, rtol=1e-12, atol=1e-10)


@given(updates_and_weights, st.randoms(use_true_random=False), st.integers(0, 8))
def test_order_and_grouping_do_not_matter(
    parts: list[tuple[np.ndarray, int]], random: object, cut: int
) -> None:
    model = {"w": np.zeros(5, np.float32)}
    straight = ExactSum(model, 8)
    for array, weight in parts:
        straight.add({"w": array}, weight)
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    grouped = ExactSum(model, 8)
    for group in (shuffled[:cut], shuffled[cut:]):
        node = ExactSum(model, 8)
        for array, weight in group:
            node.add({"w": array}, weight)
        if group:
            grouped.add_partial(node.totals, node.weight, node.num_clients)
    assert grouped.mean()["w"].tobytes() == straight.mean()["w"].tobytes()


def test_a_plain_float_sum_would_depend_on_order() -> None:
    # Shows that the test above can fail: the same numbers, added as floats.
    values = [np.float32(v) for v in (1e8, 1.0, -1e8, 1.0)]
    sums = {float(sum(order)) for order in itertools.permutations(values)}
    assert len(sums) > 1


def test_overflow_of_one_update_is_refused() -> None:
    total = ExactSum(FLOATS, 3)
    with pytest.raises(UpdateError, match="too large"):
        total.add(update(1e30, 0, 0), 1)
    assert total.weight == 0


def test_what_one_client_may_add_depends_on_the_cohort_alone() -> None:
    largest = 2.0**26 / 4  # of n * |update| in a cohort of 4
    for order in ((1, -1, 1, 1), (1, 1, -1, 1)):
        total = ExactSum(FLOATS, 4)
        for sign in order:
            total.add(update(sign * largest, 0, 0), 1)
        assert total.mean()["w"].tolist() == [largest / 2, 0, 0]
    with pytest.raises(UpdateError, match="too large"):
        ExactSum(FLOATS, 4).add(update(largest * 1.01, 0, 0), 1)
    with pytest.raises(UpdateError, match="too large"):
        ExactSum(FLOATS, 4).add(update(largest * 0.51, 0, 0), 2)


def test_the_largest_updates_of_a_whole_cohort_do_not_overflow() -> None:
    for size in (1, 3, 7, 1000):
        total = ExactSum(FLOATS, size)
        largest = 2.0**26 / size * (1 - 2**-20)
        for _ in range(size):
            total.add(update(largest, -largest, 0), 1)
        mean = np.float64(np.float32(largest))
        np.testing.assert_allclose(total.mean()["w"], [mean, -mean, 0], rtol=1e-12)
        with pytest.raises(UpdateError, match=f"more than {size} clients"):
            total.add(update(0, 0, 0), 1)


def test_a_partial_sum_larger_than_its_clients_can_be_is_refused() -> None:
    total = ExactSum(FLOATS, 3)
    for entry in (-(2**63), 2**63 - 1):
        with pytest.raises(UpdateError, match="too large"):
            total.add_partial({"w": np.full(3, entry, np.int64)}, 1, 2)


@pytest.mark.parametrize(
    ("bad", "weight", "reason"),
    [
        ({}, 1, "missing: w"),
        ({**update(1, 2, 3), "x": np.zeros(1)}, 1, "unknown to the model: x"),
        ({"w": np.zeros(1, np.float32)}, 1, r"shape \(1,\)"),
        ({"w": np.zeros(3, np.float64)}, 1, "float64, expected float32"),
        (update(np.nan, 0, 0), 1, "not finite"),
        (update(0, np.inf, 0), 1, "not finite"),
        (update(1, 2, 3), 0, "positive"),
        (update(1, 2, 3), -5, "positive"),
        (update(1, 2, 3), 2**50, "sane"),
        (update(1, 2, 3), "7", "integer"),
        (update(1, 2, 3), True, "integer"),
        (update(1, 2, 3), 2.0, "integer"),
    ],
)
def test_a_bad_update_is_refused(
    bad: dict[str, np.ndarray], weight: int, reason: str
) -> None:
    total = ExactSum(FLOATS, 3)
    with pytest.raises(UpdateError, match=reason):
        total.add(bad, weight)
    assert total.weight == 0
    assert total.totals["w"].tolist() == [0, 0, 0]


def test_a_float_partial_sum_is_refused() -> None:
    with pytest.raises(UpdateError, match="expected int64"):
        ExactSum(FLOATS, 3).add_partial(update(1, 2, 3), 1, 1)


def test_integers_stay_integers() -> None:
    model = {"count": np.array(10, np.int64), "small": np.array([1, 2], np.int8)}
    total = ExactSum(model, 8)
    total.add({"count": np.array(4, np.int64), "small": np.array([1, 0], np.int8)}, 1)
    total.add({"count": np.array(7, np.int64), "small": np.array([0, 0], np.int8)}, 3)
    new = aggregation.apply_mean(model, total.mean())
    # (1*4 + 3*7) / 4 = 6.25 -> 6;  (1*1 + 3*0) / 4 = 0.25 -> 0
    assert new["count"].item() == 16
    assert new["small"].tolist() == [1, 2]
    assert {name: a.dtype for name, a in new.items()} == {
        "count": np.dtype(np.int64),
        "small": np.dtype(np.int8),
    }


def test_large_and_small_arrays_of_all_kinds_are_rounded_once() -> None:
    draws = np.random.default_rng(0)
    update = {
        "small": draws.normal(size=3).astype(np.float32),
        "large": draws.normal(size=(300, 250)).astype(np.float32).T,  # strided
        "counter": np.array([5, 6], np.int64),
        "double": draws.normal(size=40_000),
        "half": draws.normal(size=(2, 2)).astype(np.float16),
    }
    total = ExactSum(update, cohort_size=2)
    for weight in (3, 1000):
        total.add(dict(reversed(update.items())), weight)
    for name, array in update.items():
        scale = 2.0**aggregation.FRACTION_BITS if array.dtype.kind == "f" else 1
        rounded = [np.rint(array.astype(np.float64) * (w * scale)) for w in (3, 1000)]
        expected = sum(each.astype(np.int64) for each in rounded)
        assert np.array_equal(total.totals[name], expected), name


def test_scalars_and_empty_arrays() -> None:
    model = {"s": np.array(1.0, np.float32), "e": np.zeros((0, 3), np.float32)}
    total = ExactSum(model, 8)
    total.add({"s": np.array(0.5, np.float32), "e": np.zeros((0, 3), np.float32)}, 2)
    new = aggregation.apply_mean(model, total.mean())
    assert new["s"].shape == ()
    assert new["s"].item() == 1.5
    assert new["e"].shape == (0, 3)


def test_no_update_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no update"):
        ExactSum(FLOATS, 3).mean()


def test_inputs_are_not_changed() -> None:
    model, one = {"w": np.ones(3, np.float32)}, update(1, 2, 3)
    total = ExactSum(model, 8)
    total.add(one, 5)
    aggregation.apply_mean(model, total.mean())
    assert model["w"].tolist() == [1, 1, 1]
    assert one["w"].tolist() == [1, 2, 3]


def test_norm_is_over_all_floats_together() -> None:
    arrays = {"a": np.array([3.0]), "b": np.array([[4.0]]), "n": np.array([100])}
    assert aggregation.norm(arrays) == 5.0


def test_the_norm_does_not_depend_on_the_order_of_arrays() -> None:
    draws = np.random.default_rng(0)
    arrays = {str(i): draws.normal(size=100 + i).astype("f4") for i in range(20)}
    turned = dict(reversed(arrays.items()))
    assert aggregation.norm(arrays) == aggregation.norm(turned) > 0
    assert aggregation.norm({}) == aggregation.norm({"n": np.zeros(0)}) == 0


AB = Layout({"a": (2, 3), "b": (4,)})


def two_models(size: int = 10) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    now, before = (draws.normal(size=size).astype(np.float32) for _ in range(2))
    return now, before


def test_a_difference_is_made_when_it_is_looked_at_and_stays() -> None:
    now, before = two_models()
    difference = Difference(now, before, AB)
    assert not difference.is_made
    arrays = dict(difference)
    assert difference.is_made
    assert [(name, array.shape) for name, array in arrays.items()] == [*AB.shapes]
    expected = now - before
    now[:] = before
    for found in (arrays, difference):
        whole = np.concatenate([array.ravel() for array in found.values()])
        assert (whole == expected).all()
    assert not Difference(now, before, AB)["a"].any()


def test_a_difference_that_was_changed_counts_as_it_is() -> None:
    now, before = two_models()
    difference = Difference(now, before, AB)
    difference["b"] = np.full(4, 2, np.float32)
    total = ExactSum({name: np.zeros_like(difference[name]) for name in "ab"}, 1)
    total.add(difference, 3)
    assert (total.mean()["b"] == 2).all()
    assert np.allclose(total.mean()["a"].ravel(), (now - before)[:6])
    difference["a"] = np.zeros((2, 3), np.float32)
    assert aggregation.norm(difference) == 4
    del difference["b"]
    assert list(difference) == ["a"]
    assert len(difference) == 1


@pytest.mark.parametrize(
    "values",
    [np.zeros(9, np.float32), np.zeros(11, np.float32), np.zeros(10), np.zeros((2, 5))],
)
@pytest.mark.parametrize("which", [0, 1])
def test_a_difference_of_other_values_is_refused(
    values: np.ndarray, which: int
) -> None:
    both = [np.zeros(10, np.float32) for _ in range(2)]
    both[which] = values
    with pytest.raises(ValueError, match="10 float32 values are needed"):
        Difference(both[0], both[1], AB)


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_sum_of_a_difference_is_that_of_the_arrays(order: str, size: int) -> None:
    now, before = two_models(size)
    layout = Layout({"a": (2, 3), "b": (size - 6,)})
    difference = Difference(now, before, layout)
    arrays = layout.divide(now - before)
    model = {name: np.zeros_like(arrays[name]) for name in order}
    sums = [ExactSum(model, 2) for _ in range(2)]
    norm = aggregation.norm(difference)
    sums[0].add(difference, 7)
    assert difference.is_made is (order == "ba")
    sums[1].add(arrays, 7)
    for name, array in arrays.items():
        assert (sums[0].totals[name] == sums[1].totals[name]).all()
        assert np.allclose(sums[0].mean()[name], array)
    assert norm == aggregation.norm(arrays) > 0


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"a": np.zeros((2, 3), np.float32)}, "unknown to the model: b"),
        ({"a": np.zeros((3, 2), np.float32), "b": np.zeros(4, np.float32)}, "shape"),
        ({"a": np.zeros((2, 3)), "b": np.zeros(4)}, "is float32, expected float64"),
    ],
)
def test_a_difference_of_another_model_is_refused(
    model: dict[str, np.ndarray], reason: str
) -> None:
    total = ExactSum(model, 1)
    with pytest.raises(UpdateError, match=reason):
        total.add(Difference(*two_models(), AB), 1)
    assert total.num_clients == 0
    assert not any(array.any() for array in total.totals.values())


def test_an_update_too_many_is_refused_and_leaves_the_sum_as_it_was() -> None:
    total = ExactSum(FLOATS | {"n": np.zeros(1, np.int64)}, 1)
    one = update(1, 2, 3) | {"n": np.ones(1, np.int64)}
    total.add(one, 2)
    before = {name: array.copy() for name, array in total.totals.items()}
    with pytest.raises(UpdateError, match="more than 1 clients"):
        total.add(one, 2)
    with pytest.raises(UpdateError, match="more than 1 clients"):
        total.add_partial(before, 2, 1)
    assert all((total.totals[name] == before[name]).all() for name in before)
    assert (total.num_clients, total.weight) == (1, 2)


def test_pooling_nothing_changes_nothing() -> None:
    model = {
        "bn.running_mean": np.array([30.0, 1000.0], np.float32),
        "bn.running_var": np.array([0.001, 0.01], np.float32),
    }
    moments = aggregation.to_moments(model)
    still = aggregation.from_moments(
        aggregation.apply_mean(moments, {name: 0 * a for name, a in moments.items()})
    )
    for name, array in model.items():
        assert still[name].dtype == np.float32
        np.testing.assert_allclose(still[name], array, rtol=1e-6)


def test_pooled_statistics_are_those_of_the_union() -> None:
    first, second = np.array([0.0, 2.0]), np.array([10.0, 14.0, 12.0])
    model = {"bn.running_mean": np.zeros(1), "bn.running_var": np.ones(1)}
    total = ExactSum(model, 8)
    for data in (first, second):
        local = {
            "bn.running_mean": np.array([data.mean()]),
            "bn.running_var": np.array([data.var()]),
        }
        difference = aggregation.subtract(
            aggregation.to_moments(local), aggregation.to_moments(model)
        )
        total.add(difference, len(data))
    moments = aggregation.apply_mean(aggregation.to_moments(model), total.mean())
    pooled = aggregation.from_moments(moments)
    union = np.concatenate([first, second])
    np.testing.assert_allclose(pooled["bn.running_mean"], union.mean())
    np.testing.assert_allclose(pooled["bn.running_var"], union.var())
