"""Peak memory of all processes of a run, for a small and a large cohort.

    python -m benchmarks.memory --data-dir DIR

Runs MNIST with `cnn` (1,663,370 parameters) on 200 clients, 10 and then all 200 of them
in a round, and adds up the proportional set size (shared pages counted once) of every
process that the run started, the SuperLink too, twice a second.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.sides.flower_run import Home


def peak_bytes(fraction: float, data_dir: str, rounds: int) -> int:
    """Run once, in a Flower home of its own; return the peak."""
    with tempfile.TemporaryDirectory() as folder, Home(Path(folder), 0.5) as home:
        options = (
            f'dataset="mnist" data-dir="{data_dir}" model="cnn" num-clients=200 '
            f"fraction-train={fraction} fraction-evaluate={fraction} local-epochs=1 "
            f'num-server-rounds={rounds} results-dir="{folder}/results"'
        )
        home.command("fl-app", "run", "-c", options)
        return home.peak_bytes


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="parent folder of mnist/")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    data_dir = str(Path(arguments.data_dir).resolve())
    small = peak_bytes(0.05, data_dir, arguments.rounds)
    large = peak_bytes(1.0, data_dir, arguments.rounds)
    print(
        json.dumps(
            {
                "peak_bytes_10_clients": small,
                "peak_bytes_200_clients": large,
                "ratio": round(large / small, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
