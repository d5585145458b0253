"""Seconds of a round beyond training, over real nodes: ours beside a plain Flower app.

    .venv/bin/python benchmarks/network.py

Three SuperNodes on this machine, over TLS and with keys; scikit-learn's digits and the
same network, one client a node, one local epoch. Our app runs on the nodes that
`fl-app network` starts, the plain one on Flower's own; in turn, so that each sees the
machine as the other does. A round's time is that between global evaluations; what the
slowest client does, from the received model to the trained one, is taken off.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

PROJECT = Path(__file__).parent.parent
PLAIN = Path(__file__).parent / "plain_flower"
NODES = 3


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    from fl_app import environment

    environment.enter(PROJECT)
    from fl_app import network

    beyond: dict[str, list[float]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as results:
        for turn in range(arguments.turns):
            for name, measure in (("ours", ours), ("plain", plain)):
                folder = Path(results) / f"{name}-{turn}"
                nodes, warm = network.sharing(NODES), name == "ours"
                with network.federation(PROJECT, nodes, warm=warm) as connection:
                    beyond[name] += measure(connection, folder, arguments.rounds)
    middle = {name: median(seconds) for name, seconds in beyond.items()}
    print(
        json.dumps(
            {
                "seconds_beyond_training": {k: round(v, 2) for k, v in middle.items()},
                "ratio": round(middle["ours"] / middle["plain"], 3),
                "rounds_each": len(beyond["ours"]),
                "cores": len(os.sched_getaffinity(0)),
            }
        )
    )


def ours(connection, folder: Path, rounds: int) -> list[float]:
    """Run fl-app; return each round's seconds beyond training, but for the first."""
    options = {
        "model": "cnn",
        "num-clients": NODES,
        "partitioner": "iid",
        "local-epochs": 1,
        "batch-size": 32,
        "learning-rate": 0.05,
        "augment": False,
        "min-nodes": NODES,
        "num-server-rounds": rounds,
        "results-dir": str(folder.parent),
        "run-name": folder.name,
    }
    _finish(connection, connection.start(PROJECT, options, {}))
    rows = _lines(folder / "metrics.jsonl")
    clients = _lines(folder / "clients.jsonl")
    training = {
        row["round"]: max(c["seconds"] for c in clients if c["round"] == row["round"])
        for row in rows[1:]
    }
    return [row["seconds"] - training[row["round"]] for row in rows[2:]]


def plain(connection, folder: Path, rounds: int) -> list[float]:
    """Run the plain app; return likewise."""
    output = folder.with_suffix(".json")
    options = {"num-server-rounds": rounds, "output": str(output)}
    _finish(connection, connection.start(PLAIN, options, {}))
    said = json.loads(output.read_text())
    if said["accuracy"][-1] < 0.7:
        raise SystemExit(f"the plain app did not learn: {said['accuracy']}")
    pairs = zip(said["seconds"], said["training"], strict=True)
    return [seconds - training for seconds, training in pairs][1:]


def _finish(connection, run: int) -> None:
    while not (status := connection.status(run)).finished:
        time.sleep(0.5)
    if not status.completed:
        raise SystemExit(f"a run failed: {status.details}")


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
