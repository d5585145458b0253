"""Has Flower's simulation take messages at once, and say when there is a reply.

A thread of it, in the process of the ServerApp, looks for messages to nodes and then
waits for a tenth of a second: a message waits for half of that on average, and a round
of small clients takes not much longer. It waits for the end of the run, on an event
whose waiters can be woken without it. Another thread stores the replies; the ServerApp,
which would ask for them again and again, is told by what it stores them with. This is
not part of Flower's public interface: where it is not as in Flower 1.41, messages and
replies wait as they did.
"""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from flwr.serverapp import Grid

_ENGINE = "flwr.server.superlink.fleet.vce.vce_api"
_UNTOLD = 0.2
"""Seconds after which replies are asked for even if none was told of."""


def in_simulation(grid: Grid) -> bool:
    """Return whether the grid's nodes are simulated, by this process."""
    return _ENGINE in sys.modules and hasattr(grid, "state")


def wake_simulation() -> None:
    """Have the simulation in this process look for messages now, if there is one."""
    engine = sys.modules.get(_ENGINE)
    looking = getattr(engine, "add_messages_to_queue", None)
    if looking is None:
        return
    for thread in threading.enumerate():
        if getattr(thread, "_target", None) is looking:
            for argument in getattr(thread, "_args", ()):
                _wake_waiters(argument)


def _wake_waiters(event: object) -> None:
    condition = getattr(event, "_cond", None)
    if isinstance(event, threading.Event) and condition is not None:
        with condition:
            condition.notify_all()


def reply_wait(grid: Grid) -> Callable[[float], None]:
    """Return what waits for so many seconds, or until a reply may be there.

    In a simulation of this process it takes the place of what its state stores replies
    with, which tells of each and does as before; and once it has told, waits are longer
    where no reply comes.
    """
    state: Any = getattr(grid, "state", None)
    store = getattr(state, "store_message_res", None)
    if not in_simulation(grid) or store is None:
        return time.sleep
    told, tells = threading.Event(), threading.Event()

    def store_and_tell(*reply: Any, **named: Any) -> Any:
        try:
            return store(*reply, **named)
        finally:
            tells.set()
            told.set()

    def wait(seconds: float) -> None:
        told.wait(max(seconds, _UNTOLD) if tells.is_set() else seconds)
        told.clear()  # and what was stored until now is asked for after this

    try:
        state.store_message_res = store_and_tell
    except AttributeError:  # a state of another make, which takes no attributes
        return time.sleep
    return wait
