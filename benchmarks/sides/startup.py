"""Seconds from `flwr run` to the first round trained: digits, the SuperLink up already.

    python -m benchmarks.sides.startup --output FILE

The first run starts the SuperLink and reads the data; the next ones are counted. The
round itself is in the figure: 10 clients, three local epochs. Turn by turn from a copy
of the project without its environment, as `make` leaves it, and from one that has the
environment in it (`make install VENV=.venv`): Flower's command line looks at every file
below the folder that it runs.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.sides.flower_run import PROJECT, Home, Rows

_TURNS = 3
_PAUSE_SECONDS = 10.0
"""After the cold run, until the SuperLink has made ready for the next ones."""


def main() -> None:
    """Measure, and write the seconds of each turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    environment = Path(sys.prefix).resolve()
    with (
        tempfile.TemporaryDirectory(dir=environment.parent) as folder,
        Home(Path(folder)) as home,
    ):
        outside, inside = Path(folder) / "outside", Path(folder) / "inside"
        # The folder too: it lies in the project where the environment does.
        unlike = shutil.ignore_patterns(".venv", ".git", Path(folder).name)
        for copy in (outside, inside):
            shutil.copytree(PROJECT, copy, ignore=unlike)
        shutil.copytree(  # links to the files take neither time nor room
            environment, inside / ".venv", symlinks=True, copy_function=os.link
        )
        cold = first_round(home, "cold", outside)
        time.sleep(_PAUSE_SECONDS)
        turns, inside_turns = zip(
            *(
                (
                    first_round(home, f"outside-{turn}", outside),
                    first_round(home, f"inside-{turn}", inside),
                )
                for turn in range(_TURNS)
            ),
            strict=True,
        )
    found = {
        "superlink_down": cold,
        "superlink_up": median(turns),
        "turns": turns,
        "environment_inside": median(inside_turns),
        "inside_turns": inside_turns,
    }
    Path(arguments.output).write_text(json.dumps(found))


def first_round(home: Home, name: str, project: Path) -> float:
    """Run two rounds; return the seconds until the first one's figures are there."""
    folder = home.folder / name
    options = f'num-server-rounds=2 run-name="{folder.name}"'
    options += f' results-dir="{home.folder}"'
    rows = Rows(folder / "metrics.jsonl", rounds=2)
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
