"""Has Flower's simulation take messages as soon as they are sent.

A thread of it, in the process of the ServerApp, looks for messages to nodes and then
waits for a tenth of a second: a message waits for half of that on average, and a round
of small clients takes not much longer. It waits for the end of the run, on an event
whose waiters can be woken without it. This is not part of Flower's public interface:
where it is not as in Flower 1.41, messages wait as they did.
"""

import sys
import threading

_ENGINE = "flwr.server.superlink.fleet.vce.vce_api"


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
