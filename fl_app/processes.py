"""Ends processes of a run that hang, or that were left behind.

When the process that started it is gone, Flower interrupts a ServerApp, but then waits
without a bound for a SuperLink that no longer answers. The lock on the run's folder
waits with it, and the run could not be resumed.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from math import inf
from pathlib import Path

log = logging.getLogger("flwr.fl_app")

_CLIENT = "flwr-clientapp"  # of a SuperNode, for one message
_CLIENT_GRACE_SECONDS = 15.0
_FLAG = "--parent-pid"
_GRACE_SECONDS = 5.0  # to finish the run's files


def end_with_parent(arguments: Sequence[str] = sys.argv) -> None:
    """Have this process end soon after the one its command line names as parent."""
    if _FLAG not in arguments:
        return  # a simulation's, or a test's
    parent = int(arguments[arguments.index(_FLAG) + 1])
    threading.Thread(target=_watch, args=(parent,), daemon=True, name="parent").start()


def _watch(parent: int) -> None:
    while _is_alive(parent):
        time.sleep(0.5)
    log.warning("The process that started this one is gone: the run ends here")
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def import_ahead(module: str) -> None:
    """Import what the next message will need while this one's reply is on its way.

    In a process that stays: one that ends with the message has no use for it.
    """
    if not for_one_message():
        name = f"import {module}"
        threading.Thread(target=import_module, args=(module,), name=name).start()


def for_one_message() -> bool:
    """Whether this process is a real node's, which Flower starts for each message."""
    return Path(sys.argv[0]).name == _CLIENT


@contextmanager
def watched(budget: float) -> Iterator[None]:
    """End this process if what is done within hangs for longer than `budget` seconds.

    It is the business of processes that Flower starts for one message, which can be
    spared; a simulated node is a process that others need. The watch is the C
    library's, so it also ends what never comes back to Python, and says where it was.
    """
    if not for_one_message() or budget == inf:
        yield
        return
    faulthandler.dump_traceback_later(budget + _CLIENT_GRACE_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
