"""Compared runs as tables, for the terminal and in Markdown."""

from collections.abc import Sequence
from statistics import fmean

from fl_app.comparison import Figure, Method, differences


def verdict(difference: Figure) -> str:
    """Say whether a difference is more than what the seeds make of it."""
    if difference.deviation is None:
        return "one seed: says nothing of chance"
    if abs(difference.mean) <= difference.deviation:
        return "within its deviation: no difference shown"
    return "exceeds its deviation"


def table(methods: Sequence[Method], tail: int) -> tuple[list[str], list[list[str]]]:
    """Return a header and a row per method, as text.

    Args:
        methods: what to compare.
        tail: rounds over which to average at the end; 0 leaves those columns out.
    """
    header = ["method", "seeds", "rounds", "test accuracy", "test loss"]
    header += ["seconds", "MB up", "MB down"]
    if tail:
        header += [
            f"accuracy, last {tail} rounds",
            "its deviation by round",
            f"train loss, last {tail} rounds",
        ]
    return header, [_row(method, tail) for method in methods]


def _row(method: Method, tail: int) -> list[str]:
    cells = [
        method.label,
        " ".join(map(str, method.seeds)),
        f"{method.final('rounds').mean:g}",
        method.final("final_test_accuracy").text(4),
        method.final("final_test_loss").text(4),
        f"{method.final('total_seconds').mean:.0f}",
        *(f"{_megabytes(method, way):.1f}" for way in ("upload", "download")),
    ]
    if tail:
        last = (
            method.tail_mean("test_accuracy", tail),
            method.tail_deviation("test_accuracy", tail),
            method.tail_mean("train_loss", tail),
        )
        cells += [figure.text(4) if figure else "" for figure in last]
    return cells


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
    return text


def difference_lines(methods: Sequence[Method]) -> list[str]:
    """Return a line on each method's difference to the first."""
    lines = []
    for label, difference, seeds in differences(methods):
        signed = ("+" if difference.mean >= 0 else "") + difference.text(4)
        count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
        lines.append(f"{label}: {signed} ({count}; {verdict(difference)})")
    return lines
