"""Compared runs as tables, for the terminal and in Markdown."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from fl_app.comparison import Figure, Method, differences

_SPREAD = {
    "mean": "clients: mean accuracy",
    "deviation": "clients: deviation",
    "worst": "clients: worst 10 %",
    "jain": "clients: Jain's index",
}
"""Over the clients' accuracies on their own validation examples."""


def verdict(difference: Figure, seeds: int) -> str:
    """Say whether a mean of paired differences is more than chance makes of it.

    By Student's t: the 95 % interval, mean ± t(0.975, n - 1) * deviation / sqrt(n).
    """
    if difference.deviation is None:
        return "one seed says nothing of chance"
    from scipy.stats import t

    half = float(t.ppf(0.975, seeds - 1)) * difference.deviation / sqrt(seeds)
    low, high = difference.mean - half, difference.mean + half
    shown = "a difference" if low > 0 or high < 0 else "no difference shown"
    return f"95 % interval {low:+.4f} to {high:+.4f}: {shown}"


def table(methods: Sequence[Method], tail: int) -> tuple[list[str], list[list[str]]]:
    """Return a header and a row per method, as text.

    Args:
        methods: what to compare.
        tail: rounds over which to average at the end; 0 leaves those columns out.
    """
    header = ["method", "seeds", "rounds", "test accuracy", "test loss"]
    header += ["seconds in all", "MB up", "MB down"]
    spread = any(method.spread("mean") for method in methods)
    header += _SPREAD.values() if spread else []
    if tail:
        header += [
            f"accuracy, last {tail} rounds",
            "its deviation by round",
            f"train loss, last {tail} rounds",
            f"global train loss, last {tail} rounds",
        ]
    return header, [_row(method, tail, spread=spread) for method in methods]


def _row(method: Method, tail: int, *, spread: bool) -> list[str]:
    cells = [
        method.label,
        " ".join(map(str, method.seeds)),
        _text(method.final("rounds"), 0),
        *(_text(method.final(f"final_test_{of}"), 4) for of in ("accuracy", "loss")),
        _text(method.final("total_seconds"), 0),
        *(_digits(_megabytes(method, way)) for way in ("upload", "download")),
    ]
    if spread:
        cells += [_text(method.spread(key), 4) for key in _SPREAD]
    if tail:
        last = (
            method.tail_mean("test_accuracy", tail),
            method.tail_deviation("test_accuracy", tail),
            method.tail_mean("train_loss", tail),
            method.tail_mean("global_train_loss", tail),
        )
        cells += [_text(figure, 4) for figure in last]
    return cells


def _text(figure: Figure | None, digits: int) -> str:
    """Return a figure for a cell; empty where it was not measured."""
    if figure is None:
        return ""
    return figure.text(digits) if digits else f"{figure.mean:.0f}"


def _digits(value: float) -> str:
    """Return three significant digits, and no fewer than there are before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _megabytes(method: Method, way: str) -> float:
    """Return what a run sent one way, in 10^6 bytes: the mean over the seeds."""
    return fmean(sum(run.column(f"{way}_bytes").values()) for run in method.runs) / 1e6


def markdown(methods: Sequence[Method], tail: int) -> str:
    """Return the table and the differences as Markdown."""
    header, rows = table(methods, tail)
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
    found = difference_lines(methods)
    if found:
        text += "\nDifference in test accuracy, seed by seed:\n\n"
        text += "".join(f"- {line}\n" for line in found)
    return text + "".join(f"\n{line}.\n" for line in notes(methods))


def records(methods: Sequence[Method], tail: int) -> list[dict[str, Any]]:
    """Return what the table rests on: a record per run."""
    return [
        {
            "method": method.label,
            "run": run.name,
            "seed": run.seed,
            **run.summary,
            "tail_rounds": tail,
            "tail_accuracy": _mean(last),
            "tail_global_train_loss": _mean(run.tail("global_train_loss", tail)),
            "tail_accuracy_deviation": stdev(last) if len(last) > 1 else None,
        }
        for method in methods
        for run in method.runs
        for last in [run.tail("test_accuracy", tail) if tail else []]
    ]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def notes(methods: Sequence[Method]) -> list[str]:
    """Return what a reader of the table must know beside it."""
    if len({method.option("compression") for method in methods}) < 2:
        return []
    return [
        "MB up: without compression a node that trains several clients sends one sum, "
        "of 8 bytes a weight; with it, each client's update"
    ]


def difference_lines(methods: Sequence[Method]) -> list[str]:
    """Return a line on each method's difference to the first, or why there is none."""
    lines = []
    named = {label for label, _, _ in differences(methods)}
    for method in methods[1:]:
        label = f"{method.label} - {methods[0].label}"
        if label not in named:
            why = "no common seed, or another data set or number of rounds"
            lines.append(f"{label}: not compared ({why})")
    for label, difference, seeds in differences(methods):
        signed = ("+" if difference.mean >= 0 else "") + difference.text(4)
        count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
        lines.append(f"{label}: {signed} ({count}; {verdict(difference, len(seeds))})")
    return lines
