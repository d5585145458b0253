"""Our app beside its training step alone, a plain Flower app and pfl-research.

    make bench ARGS='--data-dir DIR'          # all of it
    python -m benchmarks.bench --data-dir DIR --only "1,000 x 50"

DIR holds mnist/ and cifar10/ as Parquet files. Each side of a case runs in processes of
its own: in each turn our app and its training step alone, round by round in turn, and
the others in the first turn, one after the other. A figure is the median of the turns'
rounds after their first, without the server's evaluation, which is given beside. Writes
benchmarks/results.json and results.png, or what `--results` names.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import picture
from benchmarks.cases import CASES, COHORTS, GROWTH, Case, write

HERE = Path(__file__).parent
SIDES = HERE / "sides"
PFL_PACKAGE = "pfl[pytorch]==0.6.0"
PFL = Path.home() / ".cache" / "fl-app" / "pfl-0.6.0"  # `flwr run` walks the project
_REST = ["step", "server", "startup", "flute", "growth", "at_once", "gpu"]
NAMES = {
    "floor": "our step alone",
    "naive": "a tutorial's step alone",
    "ours": "fl-app",
    "plain": "plain Flower",
    "pinned": "plain Flower, a core a client",
    "pfl": "pfl-research",
}
ONCE = ("naive", "plain", "pinned", "pfl")
"""What no aim is close to."""
PAIRED = ("floor", "ours")
"""What is close to one another: their rounds are taken in turn."""
_GPU = "import torch.cuda as c; print(c.get_device_name() if c.is_available() else '')"
console = Console()
Found = dict[str, Any]


def main() -> None:
    """Measure what was asked for, print and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="holds mnist/ and cifar10/")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    names = [*(case.name for case in CASES), *_REST]
    parser.add_argument("--only", nargs="*", choices=names)
    parser.add_argument("--sides", nargs="*", choices=list(NAMES))
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    data_dir = str(Path(arguments.data_dir).resolve())
    chosen = arguments.only or names
    environment()
    results = arguments.results
    found: Found = {"machine": machine()}
    if arguments.only and results.exists():
        found = json.loads(results.read_text())
        if found["machine"] != machine():
            parser.error(
                f"{results} is of another machine: name another file (--results), or "
                "leave out --only"
            )
    cases = {case.name: case for case in CASES}
    found.setdefault("cases", {})
    for name in chosen:
        if case := cases.get(name):
            sides = [s for s in case.sides if s in (arguments.sides or NAMES)]
            taken = measure(case, sides, data_dir, arguments.rounds, arguments.turns)
            found["cases"].setdefault(case.name, {}).update(taken)
        elif name == "flute":
            found["flute"] = flute(data_dir)
        elif name == "growth":
            found["growth"] = growth(GROWTH, data_dir)
            found["cohorts"] = growth(COHORTS, data_dir)
        elif name == "at_once":
            where = ("--data-dir", data_dir)
            found[name] = side("at_once.py", *where, on_gpu=True)
        elif name == "gpu":
            found |= on_gpus(data_dir, arguments.rounds)
        else:
            found[name] = side(f"{name}.py")
        results.write_text(json.dumps(found, indent=2) + "\n")  # as far as it got
        results.with_suffix(".png").write_bytes(picture.draw(found, NAMES))
    show(found)


def environment() -> None:
    """Set the defaults of our app's processes for this one."""
    from fl_app import environment as ours

    ours.enter(HERE.parent)


def machine() -> Found:
    """Return what is measured on."""
    from fl_app import provenance

    described = provenance.describe()
    host = {k: v for k, v in described["host"].items() if k != "name"}
    gpu = subprocess.run(  # not here, where it would take memory of the device
        [sys.executable, "-c", _GPU], capture_output=True, text=True, check=True
    ).stdout.strip()
    host |= {"gpu": gpu} if gpu else {}
    return {**host, **described["versions"]}


# --- the sides


def side(
    script: str, *arguments: str, python: Sequence[str] = (), on_gpu: bool = False
) -> Found:
    """Run a side's script in a process of its own; return what it wrote.

    On the processor, unless it may take a GPU where there is one.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output.json"
        command = [*(python or [sys.executable]), str(SIDES / script), *arguments]
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(HERE.parent),
            **({} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}),
        }
        done = subprocess.run(
            [*command, "--output", str(output)],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{script} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return dict(json.loads(output.read_text()))


def run(name: str, case: Path) -> Found:
    """Run one side of a case, or the two that are `PAIRED`: each one's figures."""
    arguments = ["--case", str(case)]
    if name == "paired":
        return side("paired.py", *arguments)
    if name in ("floor", "naive"):
        naive = ["--naive"] if name == "naive" else []
        return side("floor.py", *arguments, *naive)
    if name == "pfl":
        cores = len(os.sched_getaffinity(0))
        torchrun = [str(pfl() / "torchrun"), f"--nproc_per_node={cores}"]
        return side("pfl_side.py", *arguments, python=torchrun)
    kind = {"ours": [], "plain": ["--plain"], "pinned": ["--plain", "--pinned"]}[name]
    return side("flower_run.py", *arguments, *kind)


def pfl() -> Path:
    """Return the programs of pfl-research's own environment; make it if need be."""
    done = PFL / ".installed"
    if not done.exists():
        console.print(f"installing {PFL_PACKAGE} into {PFL}")
        subprocess.run([sys.executable, "-m", "venv", str(PFL)], check=True)
        torch = metadata.version("torch").partition("+")[0]  # as ours
        pip = [str(PFL / "bin" / "pip"), "install", "--quiet"]
        subprocess.run([*pip, PFL_PACKAGE, f"torch=={torch}"], check=True)
        done.touch()
    return PFL / "bin"


def measure(
    case: Case, sides: Sequence[str], data_dir: str, rounds: int, turns: int
) -> Found:
    """Return each side's figures, all turns together."""
    found: dict[str, list[Found]] = {name: [] for name in sides}
    paired = set(sides) >= set(PAIRED)
    apart = [name for name in sides if not paired or name not in PAIRED]
    with tempfile.TemporaryDirectory() as folder:
        path = write(case, data_dir, rounds, Path(folder))
        for turn in range(turns):
            if paired:
                console.print(
                    f"{case.name}: fl-app, and its step alone", highlight=False
                )
                for name, figures in run("paired", path).items():
                    found[name].append(figures)
            for name in apart:
                if turn and name in ONCE:
                    continue
                console.print(f"{case.name}: {NAMES[name]}", highlight=False)
                found[name].append(run(name, path))
    result = {name: joined(each) for name, each in found.items()}
    if paired:
        ratios = [
            ours / alone
            for side_by_side in zip(*(found[name] for name in PAIRED), strict=True)
            for alone, ours in zip(
                *(s["seconds"][1:] for s in side_by_side), strict=True
            )
        ]
        result["ours"]["to_floor"] = round(median(ratios), 3)
        result["ours"]["pairs"] = [round(ratio, 3) for ratio in ratios]
    return result


def joined(runs: Sequence[Found]) -> Found:
    """Return the figures of one side."""
    later = [each["seconds"][1:] for each in runs]
    rounds = [seconds for each in later for seconds in each]
    result: Found = {
        "seconds": round(median(rounds), 3),
        "rounds": len(rounds),
        "turns": [round(median(each), 3) for each in later],
    }
    for name in ("evaluation_seconds", "startup_seconds", "first_round_seconds"):
        values = [each[name] for each in runs if name in each]
        flat = [v for value in values for v in (value if _many(value) else [value])]
        if flat:
            result[name] = round(median(flat), 3)
    if "accuracy" in runs[0]:
        result["accuracy"] = runs[0]["accuracy"][-1]
    if "peak_bytes" in runs[0]:
        result["peak_bytes"] = max(each["peak_bytes"] for each in runs)
    return result


def _many(value: object) -> bool:
    return isinstance(value, list)


# --- the rest


def flute(data_dir: str) -> Found:
    """Run FLUTE's published job; return the seconds of the whole command.

    Logistic regression on MNIST, 1,000 clients, 10 a round, one epoch, batches of 10,
    100 rounds (Garcia et al. 2022, arXiv:2203.13789, table 2: FLUTE 200 s, Flower
    1,814 s on their machine).
    """
    job = Case(
        "flute",
        "mnist",
        "logistic",
        num_clients=1000,
        cohort=10,
        examples=60,
        batch_size=10,
        learning_rate=0.03,
        momentum=0.0,
    )
    console.print("FLUTE's job")
    with tempfile.TemporaryDirectory() as folder:
        ran = run("ours", write(job, data_dir, 100, Path(folder)))
    return {
        "whole_seconds": round(ran["whole_seconds"], 1),
        "first_round_seconds": round(ran["first_round_seconds"], 1),
        "accuracy": ran["accuracy"][-1],
    }


def on_gpus(data_dir: str, rounds: int) -> Found:
    """Return our app's rounds on this machine's GPUs; nothing where it has none.

    With one to four processes a GPU, of which each trains its clients one by one, or as
    many at once as they find the fastest: that number is told beside.
    """
    from fl_app.environment import num_gpus

    found: Found = {}
    for case in CASES[1:] if num_gpus() else ():
        for processes in (1, 2, 4):
            for together in (1, "auto"):
                name = f"{case.name}, {processes} a GPU, clients-together = {together}"
                console.print(name, highlight=False)
                nodes = processes * num_gpus()
                ours = replace(case, nodes=nodes, clients_together=together)
                with tempfile.TemporaryDirectory() as folder:
                    path = write(ours, data_dir, rounds, Path(folder))
                    where = ("--case", str(path))
                    ran = side("flower_run.py", *where, on_gpu=True)
                kept = {"clients_together": ran["clients_together"]}
                found[name] = joined([ran]) | kept
    return {"gpu": found} if found else {}


def growth(cases: Sequence[Case], data_dir: str) -> Found:
    """Return seconds of a round and peak memory by number of clients."""
    found: Found = {}
    for case in cases:
        console.print(case.name, highlight=False)
        with tempfile.TemporaryDirectory() as folder:
            ran = run("ours", write(case, data_dir, 4, Path(folder)))
        found[case.name] = {
            "clients": case.num_clients,
            "seconds": round(median(ran["seconds"][1:]), 3),
            "peak_bytes": ran["peak_bytes"],
        }
    return found


def show(found: Found) -> None:
    """Print the tables."""
    for name, sides in found.get("cases", {}).items():
        table = Table(title=name, title_justify="left")
        for heading in ("", "s a round", "/ fl-app", "evaluation", "accuracy", "GB"):
            table.add_column(heading)
        ours = sides.get("ours", {}).get("seconds")
        for kind, figures in sides.items():
            ratio = figures["seconds"] / ours if ours else None
            peak = figures.get("peak_bytes")
            table.add_row(
                NAMES[kind],
                f"{figures['seconds']:.2f}",
                "" if ratio is None else f"{ratio:.2f}",
                _shown(figures.get("evaluation_seconds"), ".2f"),
                _shown(figures.get("accuracy"), ".3f"),
                _shown(peak / 1e9 if peak else None, ".2f"),
            )
        console.print(table)
    for name in (
        "step",
        "server",
        "startup",
        "flute",
        "growth",
        "cohorts",
        "at_once",
        "gpu",
    ):
        if name in found:
            console.print(name, found[name])


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
