"""Our app and its training step alone, round by round in turn.

    python benchmarks/sides/paired.py --case CASE --output FILE

Virtual cores are not equally fast all the time: what runs minutes apart cannot be
compared to a tenth. So all processes of our app are stopped soon after each round has
begun, the step alone trains a round, and ours goes on. Its seconds are without the
pause. Of each round but the first there is a pair; left out is one whose pause came
before the round, which the time between rounds shows.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.sides.floor import Floor
from benchmarks.sides.flower_run import Home, ours

_UNDER_WAY = 0.1
"""Of a round's seconds: from a round's row to when the next has begun."""


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
            time.sleep(_UNDER_WAY * alone[-1])
            with home.stopped():
                began = time.monotonic()
                alone.append(floor.round())
                pauses.append(time.monotonic() - began)

        figures = ours(home, case, turn)
    first, *later = figures["seconds"]
    measured = zip(later, alone[1:], pauses, figures["evaluation_seconds"], strict=True)
    net, others, beyond = [], [], []
    for seconds, other, pause, evaluation in measured:
        if evaluation < pause:
            net.append(seconds - pause)
            others.append(other)
            beyond.append(evaluation)
        else:
            beyond.append(evaluation - pause)
    if not net:
        raise SystemExit(f"no round was under way when it was to pause: {figures}")
    ours_then = figures | {"seconds": [first, *net], "evaluation_seconds": beyond}
    found = {"ours": ours_then, "floor": {"seconds": [alone[0], *others]}}
    Path(arguments.output).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
