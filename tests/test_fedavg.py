"""The server half and the round loop, against nodes whose replies are written here."""

import io
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Error, Message, MetricRecord, RecordDict

from strategies import wire
from strategies.aggregation import ExactSum
from strategies.fedavg import FedAvg
from strategies.federation import Federation, FederationError
from strategies.interfaces import RoundResult
from strategies.wire import Arrays
from tests.local_grid import Handler, LocalGrid

START: Arrays = {"w": np.array([1.0, 2.0], np.float32), "n": np.array(3, np.int64)}
COUNTS = np.array([[10, 0], [20, 10], [0, 30], [25, 5]])
SIZES = COUNTS.sum(axis=1).tolist()


def step(client: int) -> Arrays:
    """Client k moves w by [k, -k] and counts k steps."""
    return {
        "w": np.array([client, -client], np.float32),
        "n": np.array(client, np.int64),
    }


def rows(clients: list[int], **changes: Any) -> MetricRecord:
    columns: dict[str, Any] = {
        wire.CLIENT_IDS: clients,
        wire.NUM_EXAMPLES: [SIZES[c] for c in clients],
        wire.LOSS: [float(c) for c in clients],
    }
    return MetricRecord({**columns, **changes})


def honest(message: Message) -> Message:
    """Answer as the client app does: a sum of several clients, or one update."""
    if message.metadata.message_type == wire.QUERY:
        hosted = wire.pack({wire.LABEL_COUNTS: COUNTS})
        return Message(RecordDict({wire.HOSTED: hosted}), reply_to=message)
    task = message.content.config_records[wire.TASK]
    clients = wire.integers(task, wire.TRAIN_IDS)
    validating = wire.integers(task, wire.EVALUATE_IDS)
    reply = RecordDict()
    if len(clients) == 1:
        reply[wire.UPDATE] = wire.pack(step(clients[0]))
    elif clients:
        total = ExactSum(START, len(clients))
        for client in clients:
            total.add(step(client), SIZES[client])
        reply[wire.SUM] = wire.pack(total.totals)
    if clients:
        reply[wire.TRAINED] = rows(clients)
    if validating:
        right = [SIZES[c] // 2 for c in validating]
        reply[wire.VALIDATED] = rows(validating, **{wire.NUM_CORRECT: right})
    return Message(reply, reply_to=message)


def training(reply: Callable[[Message, RecordDict], Message | None]) -> Handler:
    """An honest node whose replies to training are changed."""

    def handle(message: Message) -> Message | None:
        answer = honest(message)
        if message.metadata.message_type != wire.TRAIN:
            return answer
        return reply(message, answer.content)

    return handle


def run(
    *nodes: Handler, num_rounds: int = 1, **options: Any
) -> tuple[list[RoundResult], FedAvg, Federation]:
    grid = LocalGrid(dict(enumerate(nodes, start=1)))
    federation = Federation(grid, min_nodes=1, node_timeout=1)
    strategy = FedAvg(**{"seed": 0, "round_timeout": 0.3, **options})
    return (
        list(strategy.rounds(federation, START, num_rounds)),
        strategy,
        federation,
    )


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4])
def test_the_mean_is_weighted_by_examples_on_any_number_of_nodes(
    num_nodes: int,
) -> None:
    (result,), _, _ = run(*[honest] * num_nodes)
    # sum n_k k / sum n_k = (10*0 + 30*1 + 30*2 + 30*3) / 100 = 1.8
    np.testing.assert_array_equal(result.arrays["w"], np.float32([2.8, 0.2]))
    assert result.arrays["n"] == 5  # 3 + 1.8 rounded
    assert result.arrays["w"].dtype == np.float32
    assert result.arrays["n"].dtype == np.int64
    assert result.train_loss == pytest.approx(1.8)
    assert [row[wire.CLIENT_IDS] for row in result.trained] == [0, 1, 2, 3]
    assert START["w"].tolist() == [1.0, 2.0]


def test_validation_is_weighted_by_examples_and_sent_with_training() -> None:
    (result,), _, _ = run(honest, honest)
    assert result.validation is not None
    assert result.validation.accuracy == 0.5
    assert result.validation.num_examples == 100


def test_validation_follows_evaluate_every() -> None:
    results, _, _ = run(honest, num_rounds=4, evaluate_every=2)
    # rounds 1 and 3 receive the models of rounds 0 and 2
    assert [r.validation is not None for r in results] == [True, False, True, False]


def test_the_last_model_can_be_validated_alone() -> None:
    (result,), strategy, federation = run(honest, honest)
    verdict = strategy.validate(federation, result.arrays, 1)
    assert verdict is not None
    assert verdict.accuracy == 0.5


def test_fraction_evaluate_zero_asks_nobody() -> None:
    (result,), strategy, federation = run(honest, fraction_evaluate=0.0)
    assert result.validation is None
    assert strategy.validate(federation, result.arrays, 1) is None


def test_bytes_are_those_of_the_messages() -> None:
    (result,), _, federation = run(honest, honest)
    sent = [m for m in federation._grid.sent if m.metadata.message_type == wire.TRAIN]  # type: ignore[attr-defined]
    assert result.download_bytes == sum(wire.num_bytes(m.content) for m in sent) > 0
    assert result.upload_bytes > 0


def error(message: Message, _: RecordDict) -> Message:
    return Message(Error(2, "<class 'ValueError'>:<'boom'>"), reply_to=message)


def silent(message: Message, _: RecordDict) -> None:
    return None


def altered(change: Callable[[RecordDict], None]) -> Handler:
    def reply(message: Message, content: RecordDict) -> Message:
        change(content)
        return Message(content, reply_to=message)

    return training(reply)


def with_update(**arrays: np.ndarray) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[wire.UPDATE] = wire.pack(arrays)

    return change


def with_rows(**changes: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        clients = list(content.metric_records[wire.TRAINED][wire.CLIENT_IDS])  # type: ignore[arg-type]
        content[wire.TRAINED] = rows(clients, **changes)

    return change


def without(name: str, put: str = "") -> Callable[[RecordDict], None]:
    """Drop a record, or put one of another kind in the place of `put`."""

    def change(content: RecordDict) -> None:
        if put:
            content[put] = ConfigRecord({"odd": 1})
        else:
            del content[name]

    return change


def without_column(name: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        columns = dict(content[wire.TRAINED])  # type: ignore[call-overload]
        del columns[name]
        content[wire.TRAINED] = MetricRecord(columns)

    return change


def with_verdict(**changes: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        columns = dict(content[wire.VALIDATED])  # type: ignore[call-overload]
        content[wire.VALIDATED] = MetricRecord(columns | changes)

    return change


def both(number: float) -> dict[str, list[float]]:
    return {wire.NUM_EXAMPLES: [number], wire.NUM_CORRECT: [number]}


def with_bytes(data: bytes) -> Callable[[RecordDict], None]:
    """An update whose array `w` is these bytes."""

    def change(content: RecordDict) -> None:
        record = wire.pack({"n": N})
        record["w"] = Array("float32", (2,), "numpy.ndarray", data)
        content[wire.UPDATE] = record

    return change


def header(shape: tuple[int, ...]) -> bytes:
    """A NumPy header that promises float32 of that shape; no data follows."""
    file = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


N = np.array(0, np.int64)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (training(error), "boom"),
        (training(silent), "no reply within"),
        (altered(with_update(w=np.float32([np.nan, 0]), n=N)), "not finite"),
        (altered(with_update(w=np.float32([np.inf, 0]), n=N)), "not finite"),
        (altered(with_update(w=np.float32([1, 2, 3]), n=N)), "shape"),
        (altered(with_update(w=np.float32([1]), n=N)), "shape"),
        (altered(with_update(w=np.float64([1, 2]), n=N)), "float64"),
        (altered(with_update(n=N)), "missing: w"),
        (altered(with_update(w=np.float32([1, 2]), n=N, x=N)), "unknown to the model"),
        (altered(without(wire.UPDATE)), "holds no update"),
        (altered(without(wire.TRAINED)), "accounts for clients"),
        (altered(with_rows(**{wire.NUM_EXAMPLES: [0]})), "had 30"),
        (altered(with_rows(**{wire.NUM_EXAMPLES: [-30]})), "had 30"),
        (altered(with_rows(**{wire.NUM_EXAMPLES: [2**30]})), "had 30"),
        (altered(with_rows(**{wire.NUM_EXAMPLES: [30.5]})), "had 30"),
        (altered(with_rows(**{wire.LOSS: [float("nan")]})), "not finite"),
        (altered(with_rows(**{wire.CLIENT_IDS: [float("inf")]})), "not finite"),
        (altered(with_rows(**{wire.LOSS: [1e308]})), "beyond all sense"),
        (altered(with_rows(**{wire.CLIENT_IDS: [2.5]})), "no integer"),
        (altered(without_column(wire.LOSS)), "lacks loss"),
        (altered(without_column(wire.NUM_EXAMPLES)), "lacks num-examples"),
        (altered(with_bytes(b"")), "not in NumPy's format"),
        (altered(with_bytes(b"PK\x03\x04 and more")), "not in NumPy's format"),
        (altered(with_bytes(header((2**50,)))), "other bytes than its header"),
        (altered(with_bytes(header((2**70,)))), "other bytes than its header"),
        (altered(with_bytes(header((2,))[:40])), "not in NumPy's format"),
        (altered(with_verdict(**{wire.NUM_CORRECT: [10**9]})), "than there are"),
        (altered(with_verdict(**{wire.NUM_CORRECT: [-1]})), "than there are"),
        (
            altered(
                with_verdict(**{wire.NUM_EXAMPLES: [0.5], wire.NUM_CORRECT: [0.5]})
            ),
            "no integer",
        ),
        (
            altered(with_verdict(**{wire.NUM_EXAMPLES: [0], wire.NUM_CORRECT: [0]})),
            "on no example",
        ),
        (altered(with_verdict(**{wire.CLIENT_IDS: [77]})), "asked were"),
        (altered(with_verdict(**{wire.LOSS: [float("inf")]})), "not finite"),
        (altered(without(wire.MODEL, put=wire.TRAINED)), "is no MetricRecord"),
        (altered(with_rows(**{wire.CLIENT_IDS: [99]})), "accounts for clients"),
        (altered(with_rows(**{wire.LOSS: [1.0, 2.0]})), "bad reply"),
    ],
)
def test_a_bad_reply_is_left_out_with_its_reason(bad: Handler, reason: str) -> None:
    nodes = [honest, honest, bad, honest]  # node 3 trains one client
    (result,), _, _ = run(*nodes)
    (failure,) = result.failures
    assert failure.node_id == 3
    assert reason in failure.reason
    assert result.quorum_met
    good = [c for c in range(4) if c != failure.client_id]
    mean = sum(SIZES[c] * c for c in good) / sum(SIZES[c] for c in good)
    np.testing.assert_allclose(result.arrays["w"], [1 + mean, 2 - mean], rtol=1e-6)


@pytest.mark.parametrize(
    ("totals", "reason"),
    [
        ({}, "missing: n, w"),
        ({"w": np.zeros(2, np.float32), "n": np.int64(0)}, "expected int64"),
        ({"w": np.full(2, 2**62), "n": np.array(0)}, "too large"),
    ],
)
def test_a_bad_partial_sum_is_left_out_with_all_its_clients(
    totals: Arrays, reason: str
) -> None:
    def change(content: RecordDict) -> None:
        assert wire.SUM in content
        content[wire.SUM] = wire.pack(totals)

    # dealt: 30 to each of the nodes, then 10 to the first
    (result,), _, federation = run(altered(change), honest, honest)
    bad = federation.deal([0, 1, 2, 3])[1]
    assert len(bad) == 2
    assert [failure.client_id for failure in result.failures] == bad
    assert all(reason in failure.reason for failure in result.failures)
    assert sorted(row[wire.CLIENT_IDS] for row in result.trained) == [
        client for client in range(4) if client not in bad
    ]


def test_a_validation_that_fails_does_not_touch_training() -> None:
    def change(content: RecordDict) -> None:
        clients = list(content.metric_records[wire.VALIDATED][wire.CLIENT_IDS])  # type: ignore[arg-type]
        del content[wire.VALIDATED]
        said = ["boom"] * len(clients)
        content[wire.NOT_VALIDATED] = ConfigRecord(
            {wire.CLIENT_IDS: clients, wire.REASON: said, wire.TRACEBACK: said}
        )

    (result,), _, _ = run(honest, altered(change), honest, honest)
    assert len(result.trained) == 4
    assert not result.failures
    assert result.validation is not None
    assert result.validation.num_examples == 70


def test_the_quorum_is_not_missed_by_rounding() -> None:
    strategy = FedAvg(seed=0, min_fraction=0.55)
    assert strategy.quorum(100) == 55
    assert FedAvg(seed=0, min_fraction=0.28).quorum(25) == 7
    assert FedAvg(seed=0, min_fraction=0.5).quorum(3) == 2
    assert FedAvg(seed=0, min_fraction=0.0).quorum(3) == 1


def test_a_client_that_failed_on_its_node_is_named() -> None:
    def change(content: RecordDict) -> None:
        (client,) = content.metric_records[wire.TRAINED][wire.CLIENT_IDS]  # type: ignore[misc]
        for name in (wire.TRAINED, wire.UPDATE):
            del content[name]
        content[wire.FAILED] = ConfigRecord(
            {
                wire.CLIENT_IDS: [client],
                wire.REASON: ["ValueError: boom"],
                wire.TRACEBACK: ["Traceback: boom"],
            }
        )

    (result,), _, _ = run(honest, altered(change), honest, honest)
    (failure,) = result.failures
    assert (failure.reason, failure.traceback) == (
        "ValueError: boom",
        "Traceback: boom",
    )


def test_below_quorum_the_old_model_stays() -> None:
    nodes = [honest, training(error), training(error), training(error)]
    (result,), _, _ = run(*nodes, min_fraction=0.5)
    assert not result.quorum_met
    assert result.arrays is START
    assert len(result.failures) == 3


def test_failed_rounds_in_a_row_end_the_run_with_the_reason() -> None:
    with pytest.raises(FederationError, match="2 rounds in a row.*boom"):
        run(training(error), num_rounds=5, max_failed_rounds=2)


def test_rounds_can_go_on_from_any_round() -> None:
    results, strategy, federation = run(honest, num_rounds=3, fraction_train=0.5)
    resumed = list(strategy.rounds(federation, results[0].arrays, 3, first=2))
    assert resumed[-1].arrays["w"].tobytes() == results[-1].arrays["w"].tobytes()
    assert [r.cohort for r in resumed] == [r.cohort for r in results[1:]]


def test_memory_does_not_grow_with_the_cohort() -> None:
    size = 250_000  # float32: a model of 1 MB
    model = {"w": np.zeros(size, np.float32)}

    def peak(num_clients: int) -> int:
        counts = np.full((num_clients, 1), 10)

        def node(message: Message) -> Message:
            reply = RecordDict()
            if message.metadata.message_type == wire.QUERY:
                reply[wire.HOSTED] = wire.pack({wire.LABEL_COUNTS: counts})
            else:
                task = message.content.config_records[wire.TASK]
                clients = wire.integers(task, wire.TRAIN_IDS)
                reply[wire.UPDATE] = wire.pack({"w": np.ones(size, np.float32)})
                ones = [1.0] * len(clients)
                reply[wire.TRAINED] = MetricRecord(
                    {
                        wire.CLIENT_IDS: clients,
                        wire.NUM_EXAMPLES: [10] * len(clients),
                        wire.LOSS: ones,
                    }
                )
            return Message(reply, reply_to=message)

        grid = LocalGrid(dict.fromkeys(range(num_clients), node))
        federation = Federation(grid, min_nodes=1, node_timeout=5)
        strategy = FedAvg(seed=0, fraction_evaluate=0.0)
        tracemalloc.start()
        (result,) = strategy.rounds(federation, model, 1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(result.trained) == num_clients
        assert result.arrays["w"].tolist() == [1.0] * size
        return most

    assert peak(40) < 1.2 * peak(4)
