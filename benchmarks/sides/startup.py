"""Seconds from `flwr run` to the first round trained: digits, the SuperLink up already.

    python -m benchmarks.sides.startup --output FILE

The first run starts the SuperLink and reads the data; the next ones are counted. The
round itself is in the figure: 10 clients, three local epochs. Turn by turn from the
project's folder and from a copy without `.venv` and `.git`, as after `make install
VENV=DIR`: Flower's command line looks at every file below the folder that it runs.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.sides.flower_run import PROJECT, FirstRound, Home

_TURNS = 3


def main() -> None:
    """Measure, and write the seconds of each turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    if (PROJECT / ".venv").is_symlink():
        parser.error("the environment is outside the project already: make clean first")
    with tempfile.TemporaryDirectory() as folder, Home(Path(folder)) as home:
        copy = Path(folder) / "fl-app"
        unlike = shutil.ignore_patterns(".venv", ".git")
        shutil.copytree(PROJECT, copy, ignore=unlike)
        cold = first_round(home, "cold", PROJECT)
        within, outside = zip(
            *(
                (
                    first_round(home, f"within-{turn}", PROJECT),
                    first_round(home, f"outside-{turn}", copy),
                )
                for turn in range(_TURNS)
            ),
            strict=True,
        )
    found = {
        "superlink_down": cold,
        "superlink_up": median(within),
        "turns": within,
        "environment_outside": median(outside),
        "outside_turns": outside,
    }
    Path(arguments.output).write_text(json.dumps(found))


def first_round(home: Home, name: str, project: Path) -> float:
    """Run two rounds; return the seconds until the first one's figures are there."""
    folder = home.folder / name
    options = f'num-server-rounds=2 run-name="{folder.name}"'
    options += f' results-dir="{home.folder}"'
    rows = FirstRound(folder / "metrics.jsonl")
    began = time.time()
    with rows:
        home.command(
            *("flwr", "run", ".", "local-simulation", "--stream"),
            *("--run-config", options),
            project=project,
        )
    return rows.times[1] - began


if __name__ == "__main__":
    main()
