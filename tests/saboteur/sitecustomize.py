"""Makes one SuperNode's client misbehave: put on the PYTHONPATH of that node alone.

`SABOTAGE` in the environment is a JSON object of round -> fault. The app itself knows
nothing of it: its module is altered as it is imported.
"""

import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

VICTIM = "fl_app.client_app"


class Saboteur(MetaPathFinder):
    """Alters the victim once its own code has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != VICTIM:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_alter(module: ModuleType) -> None:
            execute(module)
            alter(module)

        spec.loader.exec_module = execute_and_alter  # type: ignore[method-assign]
        return spec


def alter(client_app: Any) -> None:
    plan = json.loads(os.environ["SABOTAGE"])
    honest = client_app._train_and_validate

    def work(message: Any, context: Any, deadline: float) -> Any:
        from strategies import wire

        task = message.content[wire.TASK]
        fault = plan.get(str(task[wire.ROUND]))
        if fault is None or wire.TRAIN_IDS not in task:
            return honest(message, context, deadline)
        if fault == "raise":
            raise RuntimeError("sabotaged")
        if fault == "hang":
            time.sleep(3600)
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        reply = honest(message, context, deadline)
        PAYLOADS[fault](reply.content)
        return reply

    client_app._train_and_validate = work


def _arrays(change: Callable[[dict[str, Any]], None]) -> Callable[[Any], None]:
    def alter_update(content: Any) -> None:
        from strategies import wire

        update = {
            name: array.copy()
            for name, array in wire.unpack(content[wire.UPDATE]).items()
        }
        change(update)
        content[wire.UPDATE] = wire.pack(update)

    return alter_update


def _examples(number: Any) -> Callable[[Any], None]:
    def alter_rows(content: Any) -> None:
        from flwr.app import ConfigRecord

        from strategies import wire

        rows = content[wire.TRAINED]
        if isinstance(number, str):
            content[wire.TRAINED] = ConfigRecord(
                {**dict(rows), wire.NUM_EXAMPLES: [number]}
            )
        else:
            rows[wire.NUM_EXAMPLES] = [number]

    return alter_rows


def _first(update: dict[str, Any]) -> str:
    return next(iter(update))


def _fill(value: float) -> Callable[[Any], None]:
    return _arrays(lambda update: update[_first(update)].fill(value))


def _reshape(update: dict[str, Any]) -> None:
    update[_first(update)] = update[_first(update)].reshape(-1)[:-1]


def _broadcastable(update: dict[str, Any]) -> None:
    update[_first(update)] = update[_first(update)].reshape(-1)[:1]


def _missing(update: dict[str, Any]) -> None:
    del update[_first(update)]


def _extra(update: dict[str, Any]) -> None:
    update["extra"] = update[_first(update)]


PAYLOADS: dict[str, Callable[[Any], None]] = {
    "nan": _fill(float("nan")),
    "inf": _fill(float("inf")),
    "shape": _arrays(_reshape),
    "broadcastable": _arrays(_broadcastable),
    "missing": _arrays(_missing),
    "extra": _arrays(_extra),
    "zero": _examples(0),
    "negative": _examples(-5),
    "huge": _examples(2**40),
    "string": _examples("many"),
}

if "SABOTAGE" in os.environ:
    sys.meta_path.insert(0, Saboteur())
