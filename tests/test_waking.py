import sys
import threading
import time
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


class Store:
    """Flower's state, as far as replies are stored in it."""

    def __init__(self) -> None:
        self.replies: list[str] = []

    def store_message_res(self, message: str) -> str:
        if message == "odd":
            raise ValueError(message)
        self.replies.append(message)
        return f"id of {message}"


class GridOf:
    """Flower's grid in a simulation."""

    def __init__(self, state: object) -> None:
        self.state = state


def put_into_state(grid: Any, *replies: str) -> None:
    """Have a thread of Flower's simulation store replies, as it does."""
    stop, queue = threading.Event(), Queue[str]()
    given: Any = (grid.state, queue, stop)
    thread = threading.Thread(target=vce_api.put_message_into_state, args=given)
    for reply in replies:
        queue.put(reply)
    stored = len(grid.state.replies) + len(replies)
    thread.start()
    while len(grid.state.replies) < stored:
        time.sleep(0.001)
    stop.set()
    thread.join(10)


def test_a_reply_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "_UNTOLD", 60.0)
    grid: Any = GridOf(Store())
    wait = waking.reply_wait(grid)
    threading.Timer(0.1, put_into_state, [grid, "one"]).start()
    start = time.monotonic()
    wait(0.01)
    assert grid.state.replies == ["one"]
    put_into_state(grid, "two")  # before it waits
    wait(0.01)
    assert time.monotonic() - start < 30
    assert grid.state.replies == ["one", "two"]


def test_what_stores_replies_answers_as_before() -> None:
    grid: Any = GridOf(Store())
    waking.reply_wait(grid)
    assert grid.state.store_message_res("one") == "id of one"
    with pytest.raises(ValueError, match="odd"):
        grid.state.store_message_res("odd")


def test_without_a_reply_the_wait_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "_UNTOLD", 0.05)
    grid: Any = GridOf(Store())
    wait = waking.reply_wait(grid)
    start = time.monotonic()
    wait(0.01)
    assert time.monotonic() - start >= 0.05


@pytest.mark.parametrize("state", [None, object()])
def test_a_grid_of_another_kind_is_left_alone(state: object) -> None:
    grid: Any = GridOf(state)
    assert waking.reply_wait(grid) is time.sleep


def test_without_the_engine_replies_are_not_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, waking._ENGINE)
    grid: Any = GridOf(Store())
    assert waking.reply_wait(grid) is time.sleep
