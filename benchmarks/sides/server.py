"""Milliseconds of the server's one core for each reply of a round, and bytes of it.

    python benchmarks/sides/server.py --output FILE

A reply is parsed from its bytes, checked and added to the exact sum: a single client's
update, or the sum that a node has made of its clients'. Beside it, what it takes to put
the global model into the message to a node. The update is of the MNIST CNN (1,663,370
parameters) and of the CIFAR-10 LeNet (62,006).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto

from fl_app import models, task
from strategies import wire
from strategies.aggregation import ExactSum
from strategies.wire import Arrays

_SHAPES = {"cnn": (1, 28, 28), "lenet": (3, 32, 32)}
_TURNS = 30


def main() -> None:
    """Measure, and write the figures by model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    found = {name: measure(name) for name in _SHAPES}
    Path(arguments.output).write_text(json.dumps(found))


def measure(name: str) -> dict[str, Any]:
    """Return milliseconds and bytes for a model."""
    model = task.get_arrays(models.build(name, _SHAPES[name], 10, seed=0))
    draws = np.random.default_rng(0)
    update = {
        key: (0.01 * draws.standard_normal(a.shape)).astype(a.dtype)
        for key, a in model.items()
    }
    node = ExactSum(model, 100)
    node.add(update, 60)
    alone, summed = message(update), message(node.totals)
    into = ExactSum(model, 10**6)

    def add() -> None:
        into.add(parsed(alone), 60)

    def add_sum() -> None:
        into.add_partial(parsed(summed), 60, 1)

    return {
        "parameters": sum(a.size for a in model.values()),
        "update_bytes": len(alone),
        "sum_bytes": len(summed),
        "update_ms": milliseconds(add),
        "sum_ms": milliseconds(add_sum),
        "model_ms": milliseconds(lambda: message(model)),
    }


def message(arrays: Arrays) -> bytes:
    """Return the arrays as they travel."""
    return recorddict_to_proto(RecordDict({"": wire.pack(arrays)})).SerializeToString()


def parsed(sent: bytes) -> Arrays:
    """Return the arrays of a message."""
    content = recorddict_from_proto(Proto.FromString(sent))
    return wire.unpack(content.array_records[""])


def milliseconds(work: Callable[[], object]) -> float:
    """Return the median of many turns."""
    times = []
    for _ in range(_TURNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return round(1000 * median(times), 3)


if __name__ == "__main__":
    main()
