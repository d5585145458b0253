import time
from collections.abc import Iterable

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict

from strategies import wire
from strategies.federation import Federation, FederationError, sample_cohort
from tests.local_grid import Handler, LocalGrid


def hosting(counts: list[list[int]]) -> Handler:
    record = wire.pack({wire.LABEL_COUNTS: np.array(counts)})
    return lambda m: Message(RecordDict({wire.HOSTED: record}), reply_to=m)


def refusing(message: Message) -> Message:
    return Message(Error(2, "no data here"), reply_to=message)


def federation(*nodes: Handler, min_nodes: int = 1) -> Federation:
    grid = LocalGrid(dict(enumerate(nodes, start=10)))
    return Federation(grid, min_nodes=min_nodes, node_timeout=0.3)


def test_cohort_size_is_rounded_half_up_and_at_least_one() -> None:
    clients = list(range(10))
    sizes = {
        fraction: len(sample_cohort(clients, fraction, seed=0, round=1))
        for fraction in (0.0, 0.01, 0.24, 0.25, 0.5, 1.0)
    }
    assert sizes == {0.0: 0, 0.01: 1, 0.24: 2, 0.25: 3, 0.5: 5, 1.0: 10}


def test_cohort_depends_on_seed_and_round_alone() -> None:
    clients = list(range(100))
    one = sample_cohort(clients, 0.1, seed=3, round=7)
    assert one == sample_cohort(clients[::-1], 0.1, seed=3, round=7)
    assert one == sorted(set(one))
    assert one != sample_cohort(clients, 0.1, seed=3, round=8)
    assert one != sample_cohort(clients, 0.1, seed=4, round=7)
    assert set(one) < set(sample_cohort(clients, 0.3, seed=3, round=7))


def test_clients_are_dealt_by_number_of_examples() -> None:
    counts = [[9, 0], [5, 0], [4, 0], [1, 1], [0, 2]]
    dealt = federation(hosting(counts), hosting(counts)).deal([0, 1, 2, 3, 4])
    # largest first: 9 | 5, then 4 -> 9 = 9; 2 -> first, 2 -> second: 11 = 11
    assert dealt == {10: [0, 3], 11: [1, 2, 4]}


def test_a_node_without_work_gets_no_message() -> None:
    counts = [[9, 0], [5, 0]]
    assert federation(hosting(counts), hosting(counts)).deal([1]) == {10: [1]}


def test_a_node_that_cannot_take_part_is_left_out() -> None:
    counts = [[1, 2]]
    assert federation(refusing, hosting(counts)).node_ids == [11]


def test_no_node_that_can_take_part_is_an_error_with_its_reason() -> None:
    with pytest.raises(FederationError, match="no data here"):
        federation(refusing)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({wire.HOSTED: wire.pack({"x": np.zeros((2, 2), np.int64)})}),
        RecordDict({wire.HOSTED: wire.pack({wire.LABEL_COUNTS: np.array([1, 2])})}),
        RecordDict({wire.HOSTED: wire.pack({wire.LABEL_COUNTS: np.array([[1.0]])})}),
        RecordDict({wire.HOSTED: wire.pack({wire.LABEL_COUNTS: np.array([[-1, 5]])})}),
    ],
)
def test_a_node_whose_answer_makes_no_sense_is_left_out(content: RecordDict) -> None:
    odd = lambda m: Message(content, reply_to=m)  # noqa: E731
    assert federation(odd, hosting([[1, 2]])).node_ids == [11]


def test_min_nodes_must_be_able_to_take_part() -> None:
    with pytest.raises(FederationError, match="1 nodes can take part, min-nodes = 2"):
        federation(refusing, hosting([[1, 2]]), min_nodes=2)


def test_nodes_that_read_different_data_are_an_error() -> None:
    with pytest.raises(FederationError, match="different data"):
        federation(hosting([[1, 2]]), hosting([[2, 1]]))


def test_waiting_for_nodes_has_a_bound() -> None:
    start = time.monotonic()
    with pytest.raises(FederationError, match="1 of min-nodes = 3 nodes"):
        federation(hosting([[1]]), min_nodes=3)
    assert time.monotonic() - start < 5


def test_a_silent_node_is_an_error_after_the_timeout() -> None:
    counts = [[1, 2], [3, 4]]
    nodes = federation(hosting(counts), hosting(counts))
    nodes._grid.nodes[11] = lambda message: None  # type: ignore[attr-defined]
    contents = {node: RecordDict() for node in (10, 11)}
    replies = {r.node_id: r for r in nodes.exchange(contents, "query", timeout=0.2)}
    assert replies[10].content is not None
    assert replies[11].content is None
    assert "no reply within 0.2 seconds" in replies[11].error


def test_it_is_told_when_all_messages_have_been_sent() -> None:
    node = hosting([[1, 2]])
    grid = LocalGrid({10: node, 11: node})
    sent: list[int] = []
    sides = Federation(
        grid,
        min_nodes=2,
        node_timeout=0.3,
        on_sent=lambda: sent.append(len(grid.sent)),
    )
    assert sent == [2]  # what they host
    contents = {node: RecordDict() for node in sides.node_ids}
    assert len(list(sides.exchange(contents, wire.TRAIN, timeout=1.0))) == 2
    assert sent == [2, 4]


def test_a_reply_that_comes_while_it_waits_is_taken() -> None:
    asked: list[float] = []
    grid = LocalGrid({10: hosting([[1, 2]])})
    pull = grid.pull_messages

    def look(message_ids: Iterable[str]) -> list[Message]:
        return pull(message_ids) if asked else []

    grid.pull_messages = look  # type: ignore[method-assign]
    sides = Federation(grid, min_nodes=1, node_timeout=5.0, wait_for_reply=asked.append)
    assert sides.num_examples(0) == 3
    assert len(asked) == 1
    assert 0.01 <= asked[0] <= 0.2


def test_messages_expire_with_the_round() -> None:
    nodes = federation(hosting([[1]]))
    list(nodes.exchange({10: RecordDict()}, "query", timeout=12.5))
    assert nodes._grid.sent[-1].metadata.ttl == 12.5  # type: ignore[attr-defined]


def test_a_refused_message_is_an_error_of_its_node() -> None:
    nodes = federation(hosting([[1]]))
    nodes._grid.push_messages = lambda messages: [None]  # type: ignore[method-assign]
    (reply,) = nodes.exchange({10: RecordDict()}, "query", timeout=1)
    assert reply.content is None
    assert "refused" in reply.error


def test_work_is_dealt_to_the_nodes_that_are_there() -> None:
    counts = [[9, 0], [5, 0], [4, 0], [1, 1], [0, 2]]
    here = federation(hosting(counts), hosting(counts))
    grid = here._grid
    assert isinstance(grid, LocalGrid)
    gone = grid.nodes.pop(10)
    assert here.deal([0, 1, 2, 3, 4]) == {11: [0, 1, 2, 3, 4]}
    grid.nodes[10] = gone  # the same node, restarted
    assert set(here.deal([0, 1, 2, 3, 4])) == {10, 11}
    grid.nodes[77] = gone  # a node that was not asked at the start
    assert set(here.deal([0, 1, 2, 3, 4])) == {10, 11}


def test_a_node_that_is_not_there_is_an_answer_at_once() -> None:
    here = federation(hosting([[1, 2]]), hosting([[1, 2]]))
    del here._grid.nodes[10]  # type: ignore[attr-defined]
    contents = {node: RecordDict() for node in (10, 11)}
    start = time.monotonic()
    replies = {r.node_id: r for r in here.exchange(contents, wire.QUERY, timeout=30)}
    assert time.monotonic() - start < 10
    assert replies[10].error == "the node is not there"
    assert replies[11].content is not None


def test_a_round_waits_for_the_nodes_with_a_bound() -> None:
    here = federation(hosting([[1, 2]]), hosting([[1, 2]]), min_nodes=2)
    here.wait()
    del here._grid.nodes[10]  # type: ignore[attr-defined]
    start = time.monotonic()
    here.wait()  # node_timeout
    assert 0.3 <= time.monotonic() - start < 10
