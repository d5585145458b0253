"""Milliseconds to encode and decode an update, for each codec, on one core.

    .venv/bin/python benchmarks/codec.py

The update is of the CNN of McMahan et al. on MNIST's shape (1,663,370 parameters). Each
codec is timed many times, in turn with a plain copy of the same arrays; the figure is
the median, and the ratio is to that copy's.
"""

import json
import time
from statistics import median

import numpy as np

TURNS = 40


def main() -> None:
    """Print one line of JSON."""
    from fl_app import compression, models, task

    like = task.get_arrays(models.build("cnn", (1, 28, 28), 10, seed=0))
    draws = np.random.default_rng(0)
    update = {
        name: (0.01 * draws.standard_normal(array.shape)).astype(array.dtype)
        for name, array in like.items()
    }
    codecs = {name: compression.build(name, like) for name in compression.CODECS[1:]}
    seconds: dict[str, list[float]] = {name: [] for name in (*codecs, "copy")}
    blocks: dict[str, int] = {}
    for turn in range(TURNS):
        for name, codec in codecs.items():
            start = time.perf_counter()
            block = codec.encode(update, np.random.default_rng(turn))
            codec.decode(block)
            seconds[name].append(time.perf_counter() - start)
            blocks[name] = block[compression.BLOCK].nbytes
        start = time.perf_counter()
        for array in update.values():
            array.copy()
        seconds["copy"].append(time.perf_counter() - start)
    middle = {name: median(times) for name, times in seconds.items()}
    parameters = sum(array.size for array in like.values())
    print(
        json.dumps(
            {
                "parameters": parameters,
                "milliseconds": {k: round(1000 * v, 2) for k, v in middle.items()},
                "times_a_copy": {
                    k: round(v / middle["copy"], 1) for k, v in middle.items()
                },
                "percent_of_float32": {
                    k: round(100 * size / (4 * parameters), 3)
                    for k, size in blocks.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
