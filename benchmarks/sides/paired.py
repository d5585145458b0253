"""Our app and its training step alone, round by round in turn.

    python benchmarks/sides/paired.py --case CASE --output FILE

Virtual cores are not equally fast all the time: what runs minutes apart cannot be
compared to a tenth. So all processes of our app are stopped soon after each round has
begun, the step alone trains a round, and ours goes on. Its seconds are without the
pause. Of each round but the first there is a pair.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.sides.floor import Floor
from benchmarks.sides.flower_run import Home, ours

_UNDER_WAY_SECONDS = 0.1
"""From a round's row to when the next round has begun for certain."""


def main() -> None:
    """Measure, and write both sides' figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    case = json.loads(Path(arguments.case).read_text())
    alone: list[float] = []
    pauses: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Home(Path(folder)) as home,
        Floor(case) as floor,
    ):
        alone.append(floor.round())  # a first round, as ours has one

        def turn() -> None:
            time.sleep(_UNDER_WAY_SECONDS)
            with home.stopped():
                began = time.monotonic()
                alone.append(floor.round())
                pauses.append(time.monotonic() - began)

        figures = ours(home, case, turn)
    beyond = figures["evaluation_seconds"]
    if len(pauses) != case["rounds"] - 1 or max(beyond) > min(pauses):
        raise SystemExit(f"pauses of {pauses} s were not within rounds ({beyond} s)")
    first, *later = figures["seconds"]
    net = [all_ - pause for all_, pause in zip(later, pauses, strict=True)]
    found = {"ours": figures | {"seconds": [first, *net]}, "floor": {"seconds": alone}}
    Path(arguments.output).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
