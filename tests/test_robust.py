"""Median, trimmed mean and the limit of norms: by hand, and under attack."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fl_app import client_app, running
from fl_app.artifacts import RunFolder
from strategies import load, wire
from strategies.aggregation import UpdateError
from strategies.federation import FederationError
from strategies.norm_limit import NormLimit
from strategies.wire import Arrays
from tests.conftest import make_config
from tests.test_run import run

MODEL: Arrays = {"w": np.zeros((2, 1), np.float32), "n": np.array(0, np.int64)}
COLUMNS = [[1.0, 5.0], [2.0, -9.0], [3.0, 7.0], [4.0, 6.0], [1e6, 8.0]]
"""Updates of w by five clients; of n each counts its place."""


def updates(number: int = 5) -> list[Arrays]:
    return [
        {"w": np.array(c, np.float32).reshape(2, 1), "n": np.array(i, np.int64)}
        for i, c in enumerate(COLUMNS[:number])
    ]


def mean_of(name: str, order: list[int], **options: Any) -> Arrays:
    strategy = load(name)(seed=0, **options)
    total = strategy.collect(MODEL, len(order))
    for i in order:
        total.add(updates()[i], weight=1 + 100 * i)
    return total.mean()


@pytest.mark.parametrize(
    ("name", "options", "number", "expected"),
    [
        ("fedmedian", {}, 5, [3.0, 6.0]),
        ("fedmedian", {}, 4, [2.5, 5.5]),
        ("fedmedian", {}, 1, [1.0, 5.0]),
        ("trimmed-mean", {"beta": 0.2}, 5, [3.0, 6.0]),  # without 1, 1e6; -9, 8
        ("trimmed-mean", {"beta": 0.25}, 4, [2.5, 5.5]),
        ("trimmed-mean", {"beta": 0.0}, 4, [2.5, 2.25]),
        ("trimmed-mean", {"beta": 0.19}, 5, [200002.0, 3.4]),  # cuts nobody
        ("trimmed-mean", {"beta": 0.49}, 1, [1.0, 5.0]),
    ],
)
def test_by_hand(
    name: str, options: dict[str, float], number: int, expected: list[float]
) -> None:
    mean = mean_of(name, list(range(number)), **options)
    np.testing.assert_allclose(mean["w"].ravel(), expected, rtol=1e-12)
    assert mean["w"].shape == (2, 1)
    assert mean["n"].dtype == np.int64


@pytest.mark.parametrize("name", ["fedmedian", "trimmed-mean"])
def test_order_does_not_change_a_bit(name: str) -> None:
    options = {"beta": 0.2} if name == "trimmed-mean" else {}
    one = mean_of(name, [0, 1, 2, 3, 4], **options)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        other = mean_of(name, order, **options)
        assert all(one[key].tobytes() == other[key].tobytes() for key in one)


@pytest.mark.parametrize("beta", [-0.1, 0.5, float("nan")])
def test_beta_has_bounds(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be in"):
        load("trimmed-mean")(seed=0, beta=beta)


def test_a_sum_is_refused() -> None:
    total = load("fedmedian")(seed=0).collect(MODEL, 2)
    with pytest.raises(UpdateError, match="a sum of updates was sent"):
        total.add_partial(MODEL, 3, 2)


def test_the_limit_is_a_factor_over_the_median_of_earlier_rounds() -> None:
    limit = NormLimit(factor=3.0, first=10.0)
    step = {"w": np.array([3.0, 4.0], np.float32)}  # norm 5
    assert limit.check(step) == 5
    with pytest.raises(UpdateError, match="norm 15 is above 10.*first"):
        limit.check({"w": 3 * step["w"]})
    limit.accept([1.0, 5.0, 2.0])
    with pytest.raises(UpdateError, match="norm 10 is above 6, which is max-update"):
        limit.check({"w": 2 * step["w"]})
    assert limit.check(step) == 5


def test_no_factor_is_no_limit() -> None:
    limit = NormLimit(factor=0.0, first=1.0)
    assert limit.check({"w": np.array([1e9])}) == 1e9
    limit.accept([1.0])
    assert limit.accepted == []


FEDERATION: dict[str, Any] = {
    "num_clients": 10,
    "num_server_rounds": 8,
    "local_epochs": 2,
    "partitioner": "iid",
    "min_fraction": 0.1,
}


@pytest.fixture
def attack(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let clients 2 and 5 send 100 times their update, sign-flipped."""

    def begin() -> None:
        honest = client_app.ClientWork.train

        def train(work: Any, client: int, **options: Any) -> Any:
            update, row = honest(work, client, **options)
            if client in (2, 5):
                update = {n: (-100 * a).astype(a.dtype) for n, a in update.items()}
            return update, row

        monkeypatch.setattr(client_app.ClientWork, "train", train)

    return begin


def accuracy(folder: RunFolder) -> float:
    summary = folder.summary()
    assert summary is not None
    return float(summary["final_test_accuracy"])


def test_attacked_runs_stay_near_the_clean_one(
    tmp_path: Path, attack: Callable[[], None]
) -> None:
    clean = accuracy(run(tmp_path, run_name="clean", **FEDERATION))
    attack()
    plain = accuracy(run(tmp_path, run_name="plain", **FEDERATION))
    assert plain < clean - 0.3  # the attack is one
    for name, options in {
        "limited": {"max_update_norm": 3.0, "max_first_update_norm": 10.0},
        "fedmedian": {"strategy": "fedmedian"},
        "trimmed-mean": {"strategy": "trimmed-mean"},
    }.items():
        folder = run(tmp_path, run_name=name, **FEDERATION, **options)
        assert accuracy(folder) > clean - 0.02, name
    left_out = RunFolder(tmp_path / "limited").clients()
    named = {(r["round"], r["client"]) for r in left_out if r["failure"]}
    assert named == {(r, c) for r in range(1, 9) for c in (2, 5)}
    assert all("is above" in r["failure"] for r in left_out if r["failure"])


def test_a_sum_does_not_get_around_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = client_app._train_and_validate

    def forge(message: Message, context: Any, deadline: float) -> Message:
        reply = honest(message, context, deadline)
        for name in [n for n in reply.content if n.startswith(wire.UPDATE)]:
            update = wire.unpack(reply.content[name])  # type: ignore[arg-type]
            huge = {n: np.full(a.shape, 2**50, np.int64) for n, a in update.items()}
            del reply.content[name]
            reply.content[wire.SUM] = wire.pack(huge)
        return reply

    monkeypatch.setattr(client_app, "_train_and_validate", forge)
    with pytest.raises(FederationError, match="a sum of updates was sent"):
        run(tmp_path, nodes=6, max_update_norm=3.0)


def test_pooled_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a mean of second moments"):
        load("fedmedian")(seed=0, normalisation_policy="pooled")


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "fedmedian"},
        {"strategy": "trimmed-mean"},
        {"max_update_norm": 4.0},
    ],
)
def test_the_number_of_nodes_does_not_change_a_bit(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    hashes = set()
    for nodes in (1, 2, 7):
        folder = run(tmp_path, nodes=nodes, run_name=f"{nodes}", **options)
        summary = folder.summary()
        assert summary is not None
        hashes.add(summary["model_sha256"])
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("beta", "clients", "said"),
    [
        (0.2, 4, "leaves out none of 4 clients in a round, only of 5 or more"),
        (0.2, 5, ""),
        (0.1, 9, "only of 10 or more"),
        (0.1, 10, ""),
        (0.0, 2, ""),  # as it was asked for
    ],
)
def test_that_nothing_is_trimmed_is_said(beta: float, clients: int, said: str) -> None:
    config = make_config(
        strategy="trimmed-mean",
        num_clients=clients,
        **{"trimmed-mean.beta": beta},
    )
    remark = running.remark(config, num_nodes=2)
    assert said in remark
    assert bool(said) == bool(remark)
    nodes = config.model_copy(update={"num_clients": 0})
    assert running.remark(nodes, num_nodes=clients) == remark
    half = config.model_copy(update={"num_clients": 2 * clients, "fraction_train": 0.5})
    assert running.remark(half, num_nodes=2) == remark
