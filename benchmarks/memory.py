"""Peak memory of all processes of a run, for a small and a large cohort.

    .venv/bin/python benchmarks/memory.py --data-dir DIR

Runs MNIST with `cnn` (1,663,370 parameters) on 200 clients, 10 and then all 200 of them
in a round, and adds up the proportional set size (shared pages counted once) of every
process that the run started, the SuperLink too, ten times a second.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def pss_bytes(home: str) -> int:
    """Return the memory of all processes whose Flower home is `home`, in bytes."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={home}\0".encode() not in (process / "environ").read_bytes():
                continue
            lines = (process / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024


def peak_bytes(fraction: float, data_dir: str, rounds: int) -> int:
    """Run once, in a Flower home of its own; return the peak."""
    with tempfile.TemporaryDirectory() as home:
        options = (
            f'dataset="mnist" data-dir="{data_dir}" model="cnn" num-clients=200 '
            f"fraction-train={fraction} fraction-evaluate={fraction} local-epochs=1 "
            f'num-server-rounds={rounds} results-dir="{home}/results"'
        )
        command = [str(Path(sys.executable).parent / "fl-app"), "run", "-c", options]
        variables = {**os.environ, "FLWR_HOME": home}
        run = subprocess.Popen(
            command, env=variables, cwd=PROJECT, stdout=subprocess.DEVNULL
        )
        peak, stop = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not stop.wait(0.1):
                peak = max(peak, pss_bytes(home))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = run.wait()
        stop.set()
        watcher.join()
        _stop_superlink(home)
        if status != 0:
            raise SystemExit(f"the run failed with status {status}")
        return peak


def _stop_superlink(home: str) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes()
        except OSError:
            continue
        if f"FLWR_HOME={home}\0".encode() in variables:
            os.kill(int(process.name), signal.SIGTERM)
    time.sleep(2)


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
