"""Server optimisers and FedNova: two rounds by hand, and what they share."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strategies import available, build, load, wire
from strategies.fedavg import FedAvg
from strategies.fednova import normaliser
from strategies.stragglers import DROP, KEEP, Stragglers
from strategies.wire import Arrays
from tests.test_run import QUICK, run, sha

W = {
    "w": np.array([1.0, -2.0], np.float32),
    "bn.running_mean": np.array([4.0], np.float32),
    "bn.num_batches_tracked": np.array(7, np.int64),
}
DELTAS = [np.array([0.5, -0.25]), np.array([0.1, 0.25])]
ETA = {"server_learning_rate": 0.1}
ADAPTIVE = {**ETA, "beta1": 0.9, "beta2": 0.99, "tau": 0.01}


def mean(delta: np.ndarray) -> Arrays:
    return {
        "w": delta,
        "bn.running_mean": np.array([0.5]),
        "bn.num_batches_tracked": np.array(3),
    }


def two_rounds(strategy: FedAvg) -> list[Arrays]:
    models: list[Arrays] = [W]
    for delta in DELTAS:
        models.append(strategy.server_update(models[-1], mean(delta), []))
    return models


def by_hand(name: str) -> list[np.ndarray]:
    """The papers' equations, written out once more, for w over two rounds."""
    w, m = W["w"].astype(np.float64), np.zeros(2)
    v = np.full(2, 0.01**2)
    path = []
    for delta in DELTAS:
        if name == "fedavgm":
            m = 0.9 * m + delta
            w = w + 0.1 * m
        else:
            m = 0.9 * m + 0.1 * delta
            if name == "fedadam":
                v = 0.99 * v + 0.01 * delta**2
            else:
                v = v - 0.01 * delta**2 * np.sign(v - delta**2)
            w = w + 0.1 * m / (np.sqrt(v) + 0.01)
        path.append(w)
    return path


OPTIONS: dict[str, dict[str, Any]] = {
    "fedavgm": {**ETA, "momentum": 0.9},
    "fedadam": ADAPTIVE,
    "fedyogi": ADAPTIVE,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_two_rounds_by_hand(name: str) -> None:
    _, *models = two_rounds(load(name)(seed=0, **OPTIONS[name]))
    for model, expected in zip(models, by_hand(name), strict=True):
        np.testing.assert_allclose(model["w"], expected, rtol=1e-6)
        assert model["w"].dtype == np.float32


def test_yogi_and_adam_part_where_updates_shrink() -> None:
    """v_1 is far above the second update's square: Yogi hardly lets go of it."""
    adam, yogi = (load(name)(seed=0, **ADAPTIVE) for name in ("fedadam", "fedyogi"))
    for strategy in (adam, yogi):
        strategy.server_update(W, mean(np.array([10.0, 10.0])), [])
        strategy.server_update(W, mean(np.array([0.0, 0.0])), [])
    ours, theirs = (s.state().arrays["second/w"] for s in (yogi, adam))
    np.testing.assert_allclose(theirs, 0.99 * (0.99 * 1e-4 + 1), rtol=1e-12)
    np.testing.assert_allclose(ours, 1e-4 + 1, rtol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_statistics_and_counters_are_averaged(name: str) -> None:
    *_, last = two_rounds(load(name)(seed=0, **OPTIONS[name]))
    assert last["bn.running_mean"] == 5.0
    assert last["bn.num_batches_tracked"] == 13
    assert not any("bn" in key for key in load(name)(
        seed=0, **OPTIONS[name]
    ).state().arrays)  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_a_restored_strategy_goes_on_to_the_same_bits(name: str) -> None:
    whole, first, second = (load(name)(seed=0, **OPTIONS[name]) for _ in range(3))
    expected = two_rounds(whole)[-1]
    middle = first.server_update(W, mean(DELTAS[0]), [])
    second.restore(first.state())
    last = second.server_update(middle, mean(DELTAS[1]), [])
    assert all(last[n].tobytes() == expected[n].tobytes() for n in W)


@pytest.mark.parametrize(
    ("name", "bad", "said"),
    [
        ("fedavgm", {"momentum": 1.0}, "momentum must be in"),
        ("fedavgm", {"server_learning_rate": 0.0}, "server-learning-rate must be > 0"),
        ("fedadam", {"beta1": 1.0}, "beta1 must be in"),
        ("fedyogi", {"beta2": -0.1}, "beta2 must be in"),
        ("fedadam", {"tau": 0.0}, "tau must be > 0"),
        ("fedadam", {"tau": float("nan")}, "tau must be > 0"),
    ],
)
def test_options_have_bounds(name: str, bad: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load(name)(seed=0, **{**OPTIONS[name], **bad})


@pytest.mark.parametrize("bad", ["x", True])
def test_what_is_to_be_a_number_is_one(bad: object) -> None:
    """Said by its name, and not by a comparison that failed."""
    own = OPTIONS["fedadam"] | {"tau": bad}
    own = {key.replace("_", "-"): value for key, value in own.items()}
    with pytest.raises(ValueError, match=f"fedadam.tau must be a number, got {bad!r}"):
        build("fedadam", {"seed": 0}, own)


def test_fedavgm_without_momentum_is_fedavg(tmp_path: Path) -> None:
    plain = run(tmp_path, run_name="plain")
    options = {"fedavgm.momentum": 0.0}
    same = run(tmp_path, run_name="same", strategy="fedavgm", **options)
    other = run(tmp_path, run_name="other", strategy="fedavgm")
    assert sha(plain) == sha(same) != sha(other)


MODELS = {"fedbn": "improved-cnn"}  # where the logistic one will not do


@pytest.mark.parametrize("name", available())
def test_all_learn_alike_on_any_number_of_nodes(tmp_path: Path, name: str) -> None:
    options = {"model": MODELS.get(name, "logistic"), "num_server_rounds": 6}
    folders = [
        run(tmp_path, nodes=n, run_name=f"{n}", strategy=name, **options)
        for n in (1, 3)
    ]
    assert sha(folders[0]) == sha(folders[1])
    rows = folders[0].metrics()
    assert rows[-1]["validation_accuracy"] > 0.6
    assert all(row["update_cosine"] > 0 for row in rows[1:])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_normaliser_is_the_sum_of_a_unit_gradients_steps(momentum: float) -> None:
    velocity, moved = 0.0, 0.0
    for steps in range(1, 30):
        velocity = momentum * velocity + 1.0
        moved += velocity
        assert normaliser(steps, momentum) == pytest.approx(moved)


def test_fednova_by_hand() -> None:
    """Two clients of 10 and 30 examples, 1 and 4 steps: tau_eff = 3.25."""
    nova = load("fednova")(seed=0)
    sent = []
    for steps, delta in ((1, [1.0, 0.0]), (4, [4.0, 8.0])):
        metrics = {wire.STEPS: float(steps)}
        update = {**mean(np.array(delta)), "w": np.array(delta, np.float32)}
        sent.append(nova.client_update(update, metrics, {"momentum": 0.0}))
        assert metrics["normaliser"] == steps
        assert sent[-1]["bn.running_mean"] == 0.5
    np.testing.assert_array_equal(sent[1]["w"], [1, 2])
    average = mean(0.25 * sent[0]["w"] + 0.75 * sent[1]["w"])  # (1, 1.5)
    rows = [
        {wire.NUM_EXAMPLES: 10.0, wire.STEPS: 1.0},
        {wire.NUM_EXAMPLES: 30.0, wire.STEPS: 4.0},
    ]
    updated = nova.server_update(W, average, rows)
    np.testing.assert_allclose(updated["w"], [1 + 3.25, -2 + 1.5 * 3.25])
    assert updated["bn.running_mean"] == 4.5


def test_fednova_with_equal_steps_is_fedavg_to_rounding(tmp_path: Path) -> None:
    options = {"partitioner": "iid", "num_clients": 3, "batch_size": 5000}
    plain = run(tmp_path, run_name="plain", **options)
    nova = run(tmp_path, run_name="nova", strategy="fednova", **options)
    ours, theirs = plain.metrics()[-1], nova.metrics()[-1]
    assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-5)


SCHEDULE = Stragglers(0.9, KEEP, 20, seed=3)


def test_stragglers_are_drawn_by_seed_and_round() -> None:
    cohort = list(range(100, 110))
    slow = SCHEDULE.schedule(cohort, 1)
    assert len(slow) == 9
    assert set(slow) < set(cohort)
    assert all(1 <= epochs <= 20 for epochs in slow.values())
    assert slow == SCHEDULE.schedule(cohort[::-1], 1)
    assert slow != SCHEDULE.schedule(cohort, 2)
    assert slow != Stragglers(0.9, KEEP, 20, seed=4).schedule(cohort, 1)
    fewer = Stragglers(0.5, KEEP, 20, seed=3).schedule(cohort, 1)
    assert len(fewer) == 5
    assert fewer.items() < slow.items()
    drawn = [e for r in range(300) for e in SCHEDULE.schedule(cohort, r).values()]
    assert set(drawn) == set(range(1, 21))
    assert np.mean(drawn) == pytest.approx(10.5, abs=0.5)


def test_dropped_stragglers_are_not_asked() -> None:
    cohort = list(range(10))
    slow = SCHEDULE.schedule(cohort, 1)
    assert SCHEDULE.taking_part(cohort, 1) == cohort
    dropping = Stragglers(0.9, DROP, 20, seed=3)
    assert dropping.taking_part(cohort, 1) == [c for c in cohort if c not in slow]
    everybody = Stragglers(1.0, DROP, 20, seed=3)
    (left,) = everybody.taking_part(cohort, 1)
    epochs = everybody.schedule(cohort, 1)
    assert epochs[left] == max(epochs.values())


@pytest.mark.parametrize(
    ("fraction", "policy"), [(-0.1, KEEP), (1.1, KEEP), (float("nan"), KEEP), (0, "x")]
)
def test_stragglers_have_bounds(fraction: float, policy: str) -> None:
    with pytest.raises(ValueError, match="straggler"):
        Stragglers(fraction, policy, 1, 0)


def test_a_run_with_stragglers(tmp_path: Path) -> None:
    options = {"straggler_fraction": 0.5, "local_epochs": 4, "batch_size": 16}
    kept = run(tmp_path, run_name="kept", **options)
    dropped = run(tmp_path, run_name="dropped", stragglers="drop", **options)
    schedule = Stragglers(0.5, KEEP, 4, seed=0)
    for folder, number in ((kept, 6), (dropped, 3)):
        for round in range(1, int(QUICK["num-server-rounds"]) + 1):
            rows = [r for r in folder.clients() if r["round"] == round]
            assert len(rows) == number
            slow = schedule.schedule(range(6), round)
            for row in rows:
                epochs = slow.get(row["client"], 4)
                assert row["steps"] == epochs * -(-row["num_examples"] // 16)
    assert sha(kept) != sha(dropped)
    again = run(tmp_path, nodes=3, run_name="again", **options)
    assert sha(again) == sha(kept)


def test_no_stragglers_change_nothing(tmp_path: Path) -> None:
    assert sha(run(tmp_path, run_name="a")) == sha(
        run(tmp_path, run_name="b", stragglers="drop")
    )
