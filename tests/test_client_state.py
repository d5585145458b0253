"""What clients remember: SCAFFOLD by hand, FedBN, and the files it lies in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from fl_app import checkpoints, client_app, client_states, models, running, server_app
from fl_app.artifacts import RunFolder, read_model
from fl_app.client_states import ClientStates, StateError
from fl_app.config import ConfigError
from strategies import aggregation, load, wire
from strategies.aggregation import UpdateError
from strategies.fedbn import FedBN, own_names
from strategies.interfaces import Memory, Term
from strategies.known_states import KnownStates
from strategies.norm_limit import NormLimit
from tests.conftest import default_options, make_config
from tests.local_grid import LocalGrid, app_node
from tests.test_resuming import Killed, figures, kill_in
from tests.test_run import run, sha

# --- SCAFFOLD on two quadratics, f_i(w) = a_i / 2 (w - b_i)^2

CURVES = [(1.0, 0.0), (3.0, 4.0)]  # a_i, b_i
SIZES = [10, 30]
STEPS = [5, 2]


class Quadratic:
    """Local training on one of the two, with SGD."""

    def __init__(self, model: nn.Module, client: int, momentum: float) -> None:
        self.model, self.client = model, client
        self.learning_rate, self.momentum = 0.1, momentum

    def __call__(self, *, term: Term | None = None) -> dict[str, float]:
        (w,) = self.model.parameters()
        a, b = CURVES[self.client]
        optimiser = torch.optim.SGD([w], self.learning_rate, self.momentum)
        for _ in range(STEPS[self.client]):
            optimiser.zero_grad()
            (a / 2 * (w - b).square().sum()).backward()
            if term is not None:
                assert not term.implicit
                term.add_gradient()
            optimiser.step()
        return {wire.STEPS: float(STEPS[self.client])}


def rounds_of(name: str, rounds: int, momentum: float = 0.0) -> list[float]:
    """Return w after each round of a strategy, both clients in each."""
    own = (
        {"server_learning_rate": 0.5, "optimizer": "sgd"} if name == "scaffold" else {}
    )
    strategy = load(name)(seed=0, **own)
    strategy._population = sum(SIZES)
    model = nn.Linear(1, 1, bias=False)
    current = {"weight": np.array([[1.0]], np.float32)}
    states: list[dict[str, Any]] = [{}, {}]
    path = []
    for _ in range(rounds):
        total = aggregation.ExactSum(strategy.summed(current), 2)
        trained = []
        for client, size in enumerate(SIZES):
            memory = Memory(strategy.client_arrays(), states[client])
            with torch.no_grad():
                model.weight.copy_(torch.from_numpy(current["weight"]))
            local = Quadratic(model, client, momentum)
            metrics = strategy.client_train(model, local, {}, memory)
            update = {"weight": model.weight.detach().numpy() - current["weight"]}
            update |= {aggregation.BESIDE + n: a for n, a in memory.sent.items()}
            total.add(update, size)
            states[client] = memory.kept or {}
            trained.append(metrics | {wire.NUM_EXAMPLES: size})
        current = strategy.server_update(current, total.mean(), trained)
        path.append(current["weight"].item())
    return path


def scaffold_by_hand(rounds: int) -> list[float]:
    """Algorithm 1, option II, written out once more; clients weigh by examples."""
    x, c, own = 1.0, 0.0, [0.0, 0.0]
    shares = [size / sum(SIZES) for size in SIZES]
    path = []
    for _ in range(rounds):
        step = change = 0.0
        for i, (a, b) in enumerate(CURVES):
            y = x
            for _ in range(STEPS[i]):
                y -= 0.1 * (a * (y - b) - own[i] + c)
            new = own[i] - c + (x - y) / (STEPS[i] * 0.1)
            step += shares[i] * (y - x)
            change += shares[i] * (new - own[i])
            own[i] = new
        x, c = x + 0.5 * step, c + change
        path.append(x)
    return path


def test_scaffold_by_hand() -> None:
    assert rounds_of("scaffold", 4) == pytest.approx(scaffold_by_hand(4), abs=1e-5)


def test_the_control_of_a_few_moves_the_whole_by_their_share() -> None:
    strategy = load("scaffold")(seed=0, server_learning_rate=1.0, optimizer="sgd")
    strategy._population = 40
    current = {"w": np.zeros(1, np.float32), "bn.running_mean": np.ones(1, np.float32)}
    mean = {"w": np.ones(1), "beside/w": np.full(1, 2.0), "bn.running_mean": np.ones(1)}
    for expected in (0.5, 1.0):
        updated = strategy.server_update(current, mean, [{wire.NUM_EXAMPLES: 10.0}])
        np.testing.assert_allclose(strategy.client_arrays()["w"], expected)
    np.testing.assert_array_equal(updated["w"], 1.0)
    np.testing.assert_array_equal(updated["bn.running_mean"], 2.0)
    assert strategy.client_arrays().keys() == {"w"}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_finds_the_minimum_that_fedavg_misses(momentum: float) -> None:
    weights = [size * a for size, (a, _) in zip(SIZES, CURVES, strict=True)]
    minimum = sum(w * b for w, (_, b) in zip(weights, CURVES, strict=True))
    minimum /= sum(weights)
    found = rounds_of("scaffold", 200, momentum)[-1]
    missed = rounds_of("fedavg", 200, momentum)[-1]
    assert found == pytest.approx(minimum, abs=1e-3)
    assert abs(missed - minimum) > 0.05


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"optimizer": "adam"}, "sgd"), ({"server_learning_rate": 0.0}, "must be > 0")],
)
def test_scaffold_has_bounds(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load("scaffold")(
            seed=0, **{"optimizer": "sgd", "server_learning_rate": 1.0} | given
        )


def test_what_travels_beside_an_update_has_a_norm_and_a_limit_of_its_own() -> None:
    update = {"w": np.array([3.0, 4.0]), "beside/w": np.array([100.0, 0.0])}
    assert aggregation.norm(update) == 5
    limits = [NormLimit(3.0, 50.0, beside=beside) for beside in (False, True)]
    assert limits[0].check(update) == 5
    with pytest.raises(UpdateError, match="beside it, 100 is above 50"):
        limits[1].check(update)


def test_a_control_variate_that_is_too_large_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = load("scaffold").client_train

    def lying(model: Any, training: Any, options: Any, memory: Memory) -> Any:
        metrics = train(model, training, options, memory)
        if metrics[wire.STEPS] == steps:
            memory.sent = {name: 1e5 + a for name, a in memory.sent.items()}
        return metrics

    first = start(tmp_path / "clean", **{"fraction-train": 1.0}).clients()
    steps = max(row["steps"] for row in first)
    liar = {row["client"] for row in first if row["steps"] == steps}
    monkeypatch.setattr(load("scaffold"), "client_train", staticmethod(lying))
    options = {"fraction-train": 1.0, "max-update-norm": 5.0}
    rows = start(tmp_path / "lied", **options).clients()
    assert {row["client"] for row in rows if row.get("failure")} == liar
    assert all("beside it" in row["failure"] for row in rows if row.get("failure"))


# --- runs

SCAFFOLD: dict[str, Any] = {"strategy": "scaffold", "fraction_train": 0.5}
FEDBN: dict[str, Any] = {"strategy": "fedbn", "model": "improved-cnn"}


@pytest.mark.parametrize("options", [SCAFFOLD])
def test_with_part_of_the_clients_they_learn_alike_on_any_number_of_nodes(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    folders = [
        run(tmp_path, nodes=n, run_name=f"{n}", num_server_rounds=4, **options)
        for n in (1, 3)
    ]
    assert sha(folders[0]) == sha(folders[1])
    (one, other) = (folder.metrics()[-1] for folder in folders)
    assert one["validation_accuracy"] == other["validation_accuracy"] > 0.5
    assert one["update_norm"] == other["update_norm"]
    assert 0 < one["update_cosine"] <= 1


def test_scaffold_is_not_fedavg_once_clients_remember(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, run_name=name, strategy=name).metrics()
        for name in ("fedavg", "scaffold")
    ]
    first, second = ([rows[r]["test_loss"] for rows in runs] for r in (1, 2))
    assert first[0] == first[1]  # all control variates are 0 in the first round
    assert second[0] != second[1]


def test_normalisation_stays_on_the_client(tmp_path: Path) -> None:
    folder = run(tmp_path, run_name="bn", **FEDBN)
    trained, _ = read_model(folder.path / "model.safetensors")
    model = models.build("improved-cnn", (1, 8, 8), 10, seed=0)
    own = own_names(model)
    assert {name.rpartition(".")[2] for name in own} == {
        *("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    first = {name: array.numpy() for name, array in model.state_dict().items()}
    for name in own:  # the server's is as it was built
        np.testing.assert_array_equal(trained[name], first[name])
    states = [
        ClientStates(*client_states.prepare(folder)).read(client, 2)
        for client in range(2)
    ]
    for state in states:
        assert sorted(state) == sorted(own)
        assert int(state["1.num_batches_tracked"]) > 0
    assert not np.array_equal(states[0]["1.weight"], states[1]["1.weight"])


def test_the_clients_alone_judge_their_own_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their own normalisation they do far better than with the server's."""
    own = run(tmp_path, run_name="own", num_server_rounds=4, **FEDBN)
    last = own.metrics()[-1]
    assert last["test_accuracy"] is None
    assert not (own.path / "best.safetensors").exists()
    monkeypatch.setattr(FedBN, "client_model", staticmethod(lambda model, memory: None))
    servers = run(tmp_path, run_name="servers", num_server_rounds=4, **FEDBN)
    assert last["validation_loss"] < servers.metrics()[-1]["validation_loss"] / 2


def test_fedbn_needs_normalisation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no normalisation layer.*improved-cnn"):
        run(tmp_path, strategy="fedbn", model="cnn")
    config = make_config(strategy="fedbn", model="cnn", results_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="no normalisation layer"):
        running.prepare(config, 1)  # before a process is started
    assert list(tmp_path.iterdir()) == []


# --- stopped, resumed, moved, lost

QUICK: dict[str, Any] = {
    "model": "logistic",
    "num-server-rounds": 5,
    "local-epochs": 1,
    "num-clients": 6,
    "fraction-train": 0.5,
    "strategy": "scaffold",
}


def start(results: Path, *, nodes: tuple[int, ...] = (7, 3), **given: Any) -> RunFolder:
    options = default_options() | {"results-dir": str(results)}
    options |= given if "resume" in given else QUICK | {"run-name": "run"} | given
    grid = LocalGrid({i: app_node(client_app.app, options) for i in nodes})
    server_app.app(grid, Context(1, 1, {}, RecordDict(), options))
    return RunFolder(results / "run")


@pytest.mark.parametrize("call", [2, 4, 5])
def test_a_resumed_run_finds_every_client_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The clients have trained and written their states; the server dies."""
    whole = figures(start(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        kill_in(patch, checkpoints, "write", call)
        with pytest.raises(Killed):
            start(tmp_path / "other")
    assert figures(start(tmp_path / "other", resume="run")) == whole


def test_a_run_goes_on_from_the_older_checkpoint(tmp_path: Path) -> None:
    whole = figures(start(tmp_path / "whole"))
    start(tmp_path / "part", **{"num-server-rounds": 4})
    folder = tmp_path / "part" / "run"
    newest = max((folder / checkpoints.FOLDER).glob("round-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    (folder / "summary.json").unlink()
    resumed = start(tmp_path / "part", resume="run", **{"num-server-rounds": 5})
    assert figures(resumed)["summary"] == whole["summary"]


def test_a_client_whose_state_is_lost_is_left_out_with_the_reason(
    tmp_path: Path,
) -> None:
    folder = start(tmp_path, **{"fraction-train": 1.0, "num-server-rounds": 2})
    for file in folder.path.glob(f"{client_states.FOLDER}/strategy/client-4/*"):
        file.unlink()
    folder = start(tmp_path, resume="run", **{"num-server-rounds": 3})
    (failed,) = [row for row in folder.clients() if row.get("failure")]
    assert (failed["client"], failed["round"]) == (4, 3)
    assert "state of client 4 after round 2 is not on this node" in failed["failure"]


def test_a_node_that_does_not_see_the_runs_folder_keeps_states_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clients come back to it, and the figures are those of one shared folder."""
    shared = figures(start(tmp_path / "shared"))
    monkeypatch.setattr(
        client_states, "prepare", lambda folder: ("/elsewhere/run/states", "0" * 16)
    )
    options = default_options() | QUICK
    options |= {"run-name": "run", "results-dir": str(tmp_path / "apart")}
    nodes = {
        i: app_node(
            client_app.app, options, {"state-path": str(tmp_path / f"node-{i}")}
        )
        for i in (7, 3)
    }
    server_app.app(LocalGrid(nodes), Context(1, 1, {}, RecordDict(), options))
    apart = figures(RunFolder(tmp_path / "apart" / "run"))
    assert apart["summary"] == shared["summary"]
    held = [
        {path.parent.name for path in (tmp_path / f"node-{i}").rglob("round-*")}
        for i in (7, 3)
    ]
    assert held[0]
    assert held[1]
    assert not held[0] & held[1]


def test_only_a_few_rounds_are_kept(tmp_path: Path) -> None:
    states = ClientStates(str(tmp_path), "0" * 16, own=str(tmp_path))
    state = {"w": np.arange(3.0)}
    for round in (1, 2, 3, 4, 5):
        states.write(9, round, state, base=round - 1)
    for round in (6, 7, 8):  # that do not count: 5 is named again
        states.write(9, round, state, base=5)
    states.write(9, 4, state, base=3)  # by a process of before, come late
    for round in (3, 4, 5, 8):
        np.testing.assert_array_equal(states.read(9, round)["w"], state["w"])
    for round in (1, 2, 6, 7):
        with pytest.raises(StateError):
            states.read(9, round)
    assert states.read(9, 0) == {}


def test_a_torn_state_is_named(tmp_path: Path) -> None:
    states = ClientStates(str(tmp_path), "0" * 16, own=str(tmp_path))
    states.write(1, 1, {"w": np.arange(3.0)}, base=0)
    (path,) = tmp_path.rglob("round-*")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(StateError, match="cannot be read"):
        states.read(1, 1)


@pytest.mark.parametrize("token", ["", "../../etc", "0" * 15])
def test_a_server_cannot_lead_a_node_elsewhere(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(StateError, match="no token"):
        ClientStates(str(tmp_path), token)


def test_the_server_knows_who_remembers_what() -> None:
    known = KnownStates()
    known.counted([1, 2], {70: [1, 5], 30: [2]}, 4, {30, 70})
    known.counted([2], {70: [2], 30: [1]}, 6, {70})
    known.counted([8], {30: [8]}, 6, {70})  # where others can read it too
    again = KnownStates.of_json(known.as_json())
    assert again.holders == {1: 70, 2: 70}
    assert [again.round_of(client) for client in (1, 2, 5)] == [4, 6, 0]


def test_nobody_is_asked_to_remember_without_need(tmp_path: Path) -> None:
    folder = run(tmp_path, run_name="plain")
    assert not (folder.path / client_states.FOLDER).exists()


@pytest.mark.parametrize("bad", [[2], [2, 3, 4, 5]])
def test_a_round_that_does_not_count_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: list[int]
) -> None:
    """One client cannot keep its state, so rounds miss their quorum."""
    write, read = ClientStates.write, ClientStates.read
    asked = set()

    def failing(
        self: ClientStates, client: int, round: int, state: Any, *, base: int
    ) -> None:
        if client == 0 and round in bad:
            raise StateError("no room")
        write(self, client, round, state, base=base)

    def noting(self: ClientStates, client: int, round: int) -> Any:
        asked.add(round)
        return read(self, client, round)

    monkeypatch.setattr(ClientStates, "write", failing)
    monkeypatch.setattr(ClientStates, "read", noting)
    options = {"min-fraction": 1.0, "fraction-train": 1.0, "max-failed-rounds": 9}
    folder = start(tmp_path, **options, **{"num-server-rounds": bad[-1] + 2})
    failed = [row for row in folder.clients() if row.get("failure")]
    assert [(row["client"], row["round"]) for row in failed] == [(0, r) for r in bad]
    assert asked == {0, 1, bad[-1] + 1}
