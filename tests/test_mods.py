"""Runs whose messages are compressed: on any nodes, resumed, counted on the wire."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fl_app import checkpoints, client_app, compression, mods, server_app, task
from fl_app.artifacts import RunFolder, read_model
from fl_app.client_states import ClientStates
from fl_app.compression import CodecError
from fl_app.config import ConfigError
from strategies import aggregation, wire
from strategies.federation import FederationError
from tests.conftest import default_options, make_config
from tests.local_grid import LocalGrid, app_node
from tests.test_client_state import start
from tests.test_resuming import Killed, figures, kill_in
from tests.test_run import QUICK, run, sha

NAMES = compression.CODECS[1:]
MLP: dict[str, Any] = {"model": "mlp", "compression_ratio": 0.1}


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_alike_on_any_number_of_nodes(tmp_path: Path, name: str) -> None:
    options = MLP | {"compression": name, "num_server_rounds": 4, "local_epochs": 2}
    folders = [run(tmp_path, nodes=n, run_name=f"{n}", **options) for n in (1, 3)]
    assert sha(folders[0]) == sha(folders[1])
    plain = run(tmp_path, run_name="plain", **options | {"compression": "none"})
    assert sha(plain) != sha(folders[0])
    last, best = folders[0].metrics()[-1], plain.metrics()[-1]
    assert last["test_accuracy"] > best["test_accuracy"] - 0.1


SHARES = {"int8": 0.262, "int4": 0.136, "fp16": 0.507, "topk": 0.16, "topk-int8": 0.09}


@pytest.mark.parametrize("name", NAMES)
def test_uploads_shrink(tmp_path: Path, name: str) -> None:
    """All of the message counts: metrics, names and headers too; the model is small."""
    folder = run(tmp_path, model="cnn", compression=name, num_server_rounds=1,
                 compression_ratio=0.1)  # fmt: skip
    arrays, _ = read_model(folder.path / "model.safetensors")
    parameters = sum(array.size for array in arrays.values())
    row = folder.metrics()[1]
    assert row["upload_bytes"] <= SHARES[name] * 4 * parameters * row["num_clients"]
    assert row["download_bytes"] > 4 * parameters


@pytest.mark.parametrize(
    ("name", "share"), [("fp16", 0.507), ("int8", 0.262), ("int4", 0.136)]
)
def test_downloads_shrink(tmp_path: Path, name: str, share: float) -> None:
    options = {"model": "cnn", "download_compression": name}
    folders = [run(tmp_path, nodes=n, run_name=f"{n}", **options) for n in (1, 2)]
    assert sha(folders[0]) == sha(folders[1])
    arrays, _ = read_model(folders[0].path / "model.safetensors")
    parameters = sum(array.size for array in arrays.values())
    assert folders[0].metrics()[1]["download_bytes"] <= share * 4 * parameters


def test_the_server_keeps_the_exact_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that change nothing leave it as it was, to the bit."""
    honest = client_app.ClientWork.train

    def train(work: Any, client: int, **options: Any) -> Any:
        update, row = honest(work, client, **options)
        return {name: np.zeros_like(a) for name, a in update.items()}, row

    monkeypatch.setattr(client_app.ClientWork, "train", train)
    model = {"model": "mlp", "num_server_rounds": 1}
    before = run(tmp_path, run_name="before", **model)
    after = run(tmp_path, run_name="after", download_compression="int4", **model)
    assert sha(after) == sha(before)
    # and what they received was another
    verdicts = [f.metrics()[0]["validation_loss"] for f in (before, after)]
    assert verdicts[0] != verdicts[1]


def test_a_model_that_half_precision_cannot_hold_is_told_with_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        task,
        "get_arrays",
        lambda model: {
            name: np.full(p.shape, 1e5, np.float32)
            for name, p in model.state_dict().items()
        },
    )
    with pytest.raises(FederationError, match=r"download-compression.*65504"):
        run(tmp_path, download_compression="fp16")


@pytest.mark.parametrize("options", [{}, {"compression": "int4"}])
def test_bytes_are_those_of_the_messages(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """Against the objects that Flower makes of a message to send it."""
    replies: list[Message] = []
    given = default_options() | QUICK | {"model": "cnn", "num-server-rounds": 1}
    given |= {"run-name": "run", "results-dir": str(tmp_path), **options}
    handle = app_node(client_app.app, given)

    def noting(message: Message) -> Message:
        reply = handle(message)
        replies.append(reply)
        return reply

    grid = LocalGrid({1: noting, 2: noting})
    server_app.app(grid, Context(1, 1, {}, RecordDict(), given))
    row = RunFolder(tmp_path / "run").metrics()[1]

    def sent(messages: list[Message]) -> int:
        return sum(
            len(part.deflate())
            for message in messages
            if message.metadata.message_type == wire.TRAIN
            for part in get_all_nested_objects(message).values()
        )

    assert row["upload_bytes"] == pytest.approx(sent(replies), rel=0.02)
    assert row["download_bytes"] == pytest.approx(sent(grid.sent), rel=0.02)


@pytest.mark.parametrize(
    "strategy",
    ["fedprox", "fedmedian", "trimmed-mean", "fednova", "fedadam", "scaffold"],
)
def test_it_works_with_other_strategies(tmp_path: Path, strategy: str) -> None:
    options = MLP | {"strategy": strategy, "compression": "int8", "local_epochs": 2}
    ours = run(tmp_path, run_name="ours", **options).metrics()[-1]
    plain = run(tmp_path, run_name="plain", **options | {"compression": "none"})
    assert ours["num_failures"] == 0
    assert ours["test_loss"] == pytest.approx(plain.metrics()[-1]["test_loss"], rel=0.1)


@pytest.mark.parametrize("strategy", ["fedmedian", "trimmed-mean"])
@pytest.mark.parametrize("name", ["topk", "topk-int8"])
def test_what_few_send_has_no_median(tmp_path: Path, strategy: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'.*'{strategy}'.*use int8 or int4"):
        run(tmp_path, strategy=strategy, compression=name)


def test_cosines_are_of_what_was_counted_in(tmp_path: Path) -> None:
    """One client agrees with itself, whatever its codec makes of what it learnt."""
    options = MLP | {"compression": "topk", "compression_ratio": 0.01}
    folder = run(tmp_path, num_clients=1, **options)
    rows = folder.metrics()[1:]
    assert [row["update_cosine"] for row in rows] == [pytest.approx(1)] * 3
    assert [row["update_norm"] for row in rows] == [
        pytest.approx(client["update_norm"]) for client in folder.clients()
    ]


def test_norms_are_limited_as_decoded(tmp_path: Path) -> None:
    options = MLP | {"compression": "int8", "max_update_norm": 3.0}
    options |= {"max_first_update_norm": 0.01}
    folder = run(tmp_path, max_failed_rounds=9, **options)
    assert all("max-first-update-norm" in r["failure"] for r in folder.clients())


# --- error feedback


def feedback(folder: RunFolder, client: int, round: int) -> Any:
    path = folder.path / "client-states" / "feedback" / f"client-{client}"
    (path / f"round-{round:06d}.safetensors").stat()
    token = (folder.path / "client-states" / "token").read_text()
    states = ClientStates(str(folder.path / "client-states"), token, kind=mods.FEEDBACK)
    return states.read(client, round)


def few(*values: float) -> Any:
    """A row of twenty, of which the rest is 0."""
    return np.array([[*values, *[0.0] * (20 - len(values))]], np.float32)


def test_what_is_left_out_is_kept_and_sent_later() -> None:
    """By hand: after two rounds, what was sent and what is kept are what was made."""
    config = make_config(compression="topk", compression_ratio=0.05)
    assert config.error_feedback
    updates = [
        {"w": few(5.0, 1.0, 2.0, 1.5)},
        {"w": few(0.0, 1.0, 0.75, 1.0)},
    ]
    store: dict[int, Any] = {0: {}}

    class States:
        def read(self, client: int, round: int) -> Any:
            return store[round]

        def write(self, client: int, round: int, state: Any, *, base: int) -> None:
            assert base == round - 1
            store[round] = state

    sent = []
    for round, update in enumerate(updates, start=1):
        task = {wire.ROUND: round, wire.TRAIN_IDS: [3], wire.STATE_ROUNDS: [round - 1]}
        encoder = mods.Encoder(config, task, States())  # type: ignore[arg-type]
        block = encoder.encode(3, update)
        sent.append(mods.upload_codec(config, update).decode(block)["w"])
    np.testing.assert_array_equal(sent[0], few(5))
    np.testing.assert_array_equal(store[1]["w"], few(0, 1, 2, 1.5))
    np.testing.assert_array_equal(sent[1], few(0, 0, 2.75))  # 2 owed, and 0.75
    np.testing.assert_array_equal(store[2]["w"], few(0, 2, 0, 2.5))


def test_feedback_makes_top_k_learn(tmp_path: Path) -> None:
    options = MLP | {"compression": "topk", "compression_ratio": 0.002}
    options |= {"num_server_rounds": 8, "local_epochs": 3}
    with_it = run(tmp_path, run_name="with", **options).metrics()[-1]
    without = run(tmp_path, run_name="without", error_feedback=False, **options)
    assert with_it["test_loss"] < without.metrics()[-1]["test_loss"] - 0.1
    assert not (without.path / "client-states").exists()


@pytest.mark.parametrize("name", ["topk-int8", "int8"])
def test_a_resumed_run_owes_what_it_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """And draws what it would have drawn, where it draws."""
    options = {"strategy": "fedavg", "model": "mlp", "compression": name}
    whole = start(tmp_path / "whole", **options)
    if name == "topk-int8":
        rounds = [row["round"] for row in whole.clients() if row["client"] == 0]
        assert feedback(whole, 0, max(rounds))
    with monkeypatch.context() as patch:
        kill_in(patch, checkpoints, "write", 4)
        with pytest.raises(Killed):
            start(tmp_path / "other", **options)
    assert figures(start(tmp_path / "other", resume="run")) == figures(whole)


def test_a_client_whose_update_cannot_be_encoded_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = mods.Encoder.encode

    def failing(self: mods.Encoder, client: int, update: Any) -> Any:
        if client in (1, 4):
            raise CodecError("too odd")
        return encode(self, client, update)

    monkeypatch.setattr(mods.Encoder, "encode", failing)
    for nodes in (1, 2, 6):  # among others, beside one, and alone in its message
        folder = run(
            tmp_path, nodes=nodes, run_name=f"{nodes}", compression="int8",
            num_server_rounds=1,
        )  # fmt: skip
        rows = folder.clients()
        failed = {r["client"]: r["failure"] for r in rows if r.get("failure")}
        assert failed == {1: "CodecError: too odd", 4: "CodecError: too odd"}
        assert len(rows) == 6
    assert len({sha(RunFolder(tmp_path / f"{n}")) for n in (1, 2, 6)}) == 1


@pytest.mark.parametrize(
    "forged",
    [
        {"block": np.zeros(10**6, np.uint8)},
        {"block": np.zeros(3, np.float32)},
        {"w": np.zeros(3, np.uint8)},
    ],
)
def test_a_forged_block_is_refused_with_the_reason(tmp_path: Path, forged: Any) -> None:
    given = default_options() | QUICK | {"compression": "int8", "num-clients": 2}
    given |= {"run-name": "run", "results-dir": str(tmp_path)}
    handle = app_node(client_app.app, given)

    def forging(message: Message) -> Message:
        reply = handle(message)
        if message.metadata.message_type == wire.TRAIN:
            reply.content[wire.UPDATE] = wire.pack(forged)
        return reply

    grid = LocalGrid({1: handle, 2: forging})
    server_app.app(grid, Context(1, 1, {}, RecordDict(), given))
    failed = [r for r in RunFolder(tmp_path / "run").clients() if r.get("failure")]
    assert len(failed) == 3
    assert all("CodecError" in row["failure"] for row in failed)


def test_control_variates_go_as_they_are() -> None:
    like = {"w": np.zeros((9, 9), np.float32)}
    like[aggregation.BESIDE + "w"] = np.zeros((9, 9), np.float32)
    assert [t.name for t in compression.Layout(like).coded] == ["w"]


@pytest.mark.parametrize("mod", [mods.compress, mods.tell_states])
def test_an_error_reply_passes_through(tmp_path: Path, mod: Any) -> None:
    """The handler's own error reaches the server, not one of the mod."""
    given = default_options() | QUICK | {"compression": "int4", "num-server-rounds": 1}
    given |= {"run-name": "run", "results-dir": str(tmp_path)}
    handle = app_node(client_app.app, given)
    seen = []

    def failing(message: Message, context: Context) -> Message:
        return Message(Error(2, "the handler's own"), reply_to=message)

    def trying(message: Message) -> Message:
        if message.metadata.message_type == wire.TRAIN:
            context = Context(1, 1, {}, RecordDict(), dict(given))
            seen.append(mod(message, context, failing))
        return handle(message)

    server_app.app(LocalGrid({1: trying}), Context(1, 1, {}, RecordDict(), dict(given)))
    (reply,) = seen
    assert reply.error.reason == "the handler's own"


def test_what_auto_stands_for() -> None:
    cases = {
        ("int8", "auto"): (False, "stochastic"),
        ("int4", "auto"): (True, "nearest"),
        ("topk", "auto"): (True, "nearest"),
        ("int4", False): (False, "stochastic"),
        ("int8", True): (True, "nearest"),
    }
    for (name, given), expected in cases.items():
        config = make_config(compression=name, error_feedback=given)
        assert (config.error_feedback, config.compression_rounding) == expected
