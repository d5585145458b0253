"""The command that compares runs: reads them, prints the table, writes the files."""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fl_app import comparison, comparison_picture, tables
from fl_app.artifacts import write_atomically
from fl_app.comparison import Method
from fl_app.config import ConfigError, project_path

_SOME = 10
"""Runs that are named where one was not found."""
_ACROSS = 3
"""Methods beside each other in a table on the terminal."""


def write(console: Console, names: Sequence[str], tail: int, output: str) -> Path:
    """Print the comparison of finished runs and write it; return its folder.

    Raises:
        ConfigError: a name is not of a finished run, or nothing can be written.
    """
    runs, again = comparison.read([_folder(name) for name in names])
    methods = comparison.group(runs)
    for run in again:
        console.print(f"left out, the same run again: {run.name}", soft_wrap=True)
    _print(console, methods, tail)
    folder = project_path(output, "--output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = tables.markdown(methods, tail)
        write_atomically(folder / "comparison.md", text.encode())
        described = json.dumps(tables.records(methods, tail), indent=2) + "\n"
        write_atomically(folder / "comparison.json", described.encode())
        write_atomically(folder / "comparison.png", picture(methods))
    except OSError as error:
        raise ConfigError(f"--output {output!r} cannot be written: {error}") from error
    return folder


def _folder(name: str) -> Path:
    """A path as typed from here, or else a run's name in results/."""
    here = Path(name).expanduser().absolute()
    if here.is_dir():
        return here
    results = project_path("results", "results-dir")
    if (results / name).is_dir():
        return results / name
    there = sorted(path.parent.name for path in results.glob("*/config.json"))
    if close := get_close_matches(name, there):
        raise ConfigError(f"there is no run {name!r}: did you mean {', '.join(close)}?")
    some = ", ".join(there[:_SOME]) + (" ..." if len(there) > _SOME else "")
    there_are = f"there are: {some}" if there else "there is none yet"
    raise ConfigError(f"there is no run {name!r} in {results}; {there_are}")


def _print(console: Console, methods: Sequence[Method], tail: int) -> None:
    header, rows = tables.table(methods, tail)
    for start in range(0, len(rows), _ACROSS):  # a method a column: narrow enough
        columns = [header, *rows[start : start + _ACROSS]]
        first, *lines = zip(*columns, strict=True)
        table = Table(*first)
        for cells in lines:
            table.add_row(*cells)
        console.print(table)
    for line in [*tables.difference_lines(methods), *tables.notes(methods)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def picture(methods: Sequence[Method]) -> bytes:
    """Return a PNG: test accuracy and loss, mean and band over the seeds."""
    on_test = all(method.curve("test_loss")[0] for method in methods)
    judge, loss = ("test", "test_loss") if on_test else ("validation", "train_loss")
    kinds = {
        f"{Path(m.runs[0].options['dataset']).name}, {m.runs[0].options['model']}"
        for m in methods
    }
    title = kinds.pop() if len(kinds) == 1 else "several data sets or models"
    accuracy = f"{judge}_accuracy"
    way, sent = "by the clients", ["upload_bytes"]
    if any(method.option("download-compression") != "none" for method in methods):
        way, sent = "both ways", ["upload_bytes", "download_bytes"]
    panels = [
        comparison_picture.Panel(
            f"{judge.capitalize()} accuracy by round",
            "round",
            comparison_picture.ACCURACY,
            bands(methods, accuracy),
        ),
        comparison_picture.Panel(
            f"{loss.split('_')[0].capitalize()} loss by round",
            "round",
            comparison_picture.LOSS,
            bands(methods, loss),
        ),
        comparison_picture.Panel(
            "Accuracy by what was sent",
            f"megabytes sent {way}",
            comparison_picture.ACCURACY,
            bands(methods, accuracy, sent, 1e-6),
            far_apart=True,
        ),
        comparison_picture.Panel(
            "Accuracy by time",
            "seconds of rounds",
            comparison_picture.ACCURACY,
            bands(methods, accuracy, ("seconds",)),
        ),
    ]
    return comparison_picture.draw(panels, title)


def bands(
    methods: Sequence[Method], key: str, spent: Sequence[str] = (), scale: float = 1.0
) -> list[comparison_picture.Band]:
    """Return a metric of each method, by round or by what was spent until then.

    Args:
        methods: what to compare.
        key: the metric.
        spent: metrics whose sum until a round is its place; none for the round itself.
        scale: what that sum is multiplied by.
    """
    found = []
    for method in methods:
        rounds, figures = method.curve(key)
        places = [scale * total for total in method.spent(spent, rounds)]
        if spent and not any(places):  # not measured, as the bytes of a baseline
            places = []
        number = len(method.runs)
        label = f"{method.label} ({number} seed{'s' if number > 1 else ''})"
        kept = figures if places or not spent else []
        means = [figure.mean for figure in kept]
        deviations = [figure.deviation for figure in kept]
        found.append(
            comparison_picture.Band(
                label, places if spent else rounds, means, deviations
            )
        )
    return found
