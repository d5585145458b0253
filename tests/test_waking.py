import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any

import pytest
from flwr.server.superlink.fleet.vce import vce_api

from fl_app import waking


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
