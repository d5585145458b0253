"""Seconds from `flwr run` to the first round trained: digits, the SuperLink up already.

    python -m benchmarks.sides.startup --output FILE

The first run starts the SuperLink and reads the data; the next ones are counted. The
round itself is in the figure: 10 clients, three local epochs.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.sides.flower_run import FirstRound, Home

_TURNS = 3


def main() -> None:
    """Measure, and write the seconds of each turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Home(Path(folder)) as home:
        cold, *warm = [first_round(home, turn) for turn in range(_TURNS + 1)]
    found = {"superlink_down": cold, "superlink_up": median(warm), "turns": warm}
    Path(arguments.output).write_text(json.dumps(found))


def first_round(home: Home, turn: int) -> float:
    """Run two rounds; return the seconds until the first one's figures are there."""
    folder = home.folder / f"run-{turn}"
    options = f'num-server-rounds=2 run-name="{folder.name}"'
    options += f' results-dir="{home.folder}"'
    rows = FirstRound(folder / "metrics.jsonl")
    began = time.time()
    with rows:
        home.command(
            *("flwr", "run", ".", "local-simulation", "--stream"),
            *("--run-config", options),
        )
    return rows.times[1] - began


if __name__ == "__main__":
    main()
