import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from fl_app import waking
from tests.local_grid import LocalGrid


class SlowEvent(threading.Event):
    """Its waiters wait for a minute, however short a time they ask for."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(60.0)


class State:
    """Hands out the messages it holds, and says when it was asked and held none."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.asked_in_vain = threading.Event()

    def get_message_ins(self, node_id: int, limit: int) -> list[str]:
        found = [self.messages.pop() for _ in self.messages[:limit]]
        if not found:
            self.asked_in_vain.set()
        return found


@contextmanager
def simulation(state: State) -> Iterator["Queue[str]"]:
    """Run the thread of Flower's simulation that looks for messages."""
    stop, queue = SlowEvent(), Queue[str]()
    given: Any = (state, queue, {7: 0}, stop)
    thread = threading.Thread(target=vce_api.add_messages_to_queue, args=given)
    thread.start()
    try:
        assert state.asked_in_vain.wait(10)
        yield queue
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def woken_until_there(queue: "Queue[str]") -> str:
    """Wake it until a message comes: at the first look it may not yet wait."""
    for _ in range(100):
        waking.wake_simulation()
        try:
            return queue.get(timeout=0.1)
        except Empty:
            continue
    raise AssertionError("no message was taken")


def test_the_simulation_takes_messages_when_it_is_woken() -> None:
    state = State()
    with simulation(state) as queue:
        state.messages.append("hello")
        with pytest.raises(Empty):
            queue.get(timeout=0.2)  # twice as long as Flower waits, a minute not
        assert woken_until_there(queue) == "hello"


def test_waking_does_not_end_the_simulation() -> None:
    state = State()
    with simulation(state) as queue:
        for message in ("one", "two"):
            state.messages.append(message)
            assert woken_until_there(queue) == message


@pytest.mark.parametrize("renamed", [True, False])
def test_without_the_engine_as_it_is_known_messages_wait(
    monkeypatch: pytest.MonkeyPatch, *, renamed: bool
) -> None:
    state = State()
    with simulation(state) as queue:
        if renamed:
            monkeypatch.delattr(vce_api, "add_messages_to_queue")
        else:
            monkeypatch.delitem(sys.modules, waking._ENGINE)
        state.messages.append("hello")
        for _ in range(5):
            waking.wake_simulation()
            with pytest.raises(Empty):
                queue.get(timeout=0.05)


@pytest.fixture
def simulated() -> Any:
    """Flower's own grid of a simulation, over its own state."""
    factory = LinkStateFactory(
        FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
    )
    return InMemoryGrid(state_factory=factory)


def without_id() -> Message:
    """Return a reply that Flower's state refuses, and logs."""
    return Message(RecordDict(), 1, "train.reply")


def test_a_simulation_is_told_from_real_nodes(simulated: Any) -> None:
    """By Flower's own grid: what a ServerApp does in a simulation alone hangs on it."""
    assert waking.in_simulation(simulated)
    assert not waking.in_simulation(LocalGrid({}))


def test_a_reply_ends_the_wait(simulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "_UNTOLD", 60.0)
    wait = waking.reply_wait(simulated)
    reply = without_id()
    assert simulated.state.store_message_res(reply) is None  # as without it
    start = time.monotonic()
    wait(60.0)  # it was stored before
    stop, queue = threading.Event(), Queue[Message]()
    given: Any = (simulated.state, queue, stop)
    thread = threading.Thread(
        target=vce_api.put_message_into_state, args=given, daemon=True
    )
    thread.start()
    threading.Timer(0.1, queue.put, [reply]).start()
    wait(60.0)
    assert 0.1 <= time.monotonic() - start < 30
    stop.set()


def test_without_a_reply_the_wait_ends(
    simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waking, "_UNTOLD", 0.5)
    wait = waking.reply_wait(simulated)
    spans = []
    for _ in range(2):
        start = time.monotonic()
        wait(0.05)
        spans.append(time.monotonic() - start)
        simulated.state.store_message_res(without_id())
        wait(0.05)
    assert spans[0] < 0.5  # as asked for, until it is known that replies are told of
    assert spans[1] >= 0.5


class Rigid:
    """A state that takes no attributes."""

    __slots__ = ()

    def store_message_res(self, message: Message) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("state", [None, object(), Rigid()])
def test_a_grid_of_another_kind_is_left_alone(simulated: Any, state: object) -> None:
    simulated.state = state
    assert waking.reply_wait(simulated) is time.sleep


def test_without_the_engine_replies_are_not_told_of(
    simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, waking._ENGINE)
    assert waking.reply_wait(simulated) is time.sleep
