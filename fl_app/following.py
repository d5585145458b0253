"""Follows a run from its folder and shows how it goes, in a terminal or a log."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fl_app.artifacts import CURVES, PARTITION, RunFolder

_POLL_SECONDS = 0.2
_STATUS_SECONDS = 1.0


class RunView:
    """A progress bar with round, accuracy, loss and time left; plain lines in a log."""

    def __init__(self, console: Console, num_rounds: int) -> None:
        self._console = console
        self._num_rounds = self._rounds = num_rounds
        self._shown = self._before = 0
        self._name = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "RunView":
        self._progress.start()
        self._task = self._progress.add_task(
            "starting", total=self._num_rounds, figures="", start=False
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def next_run(self, name: str, num_rounds: int) -> None:
        """Begin with a run of several that share this view."""
        if self._name:
            self._before += self._rounds
        self._name, self._rounds, self._shown = name, num_rounds, 0

    def show(self, rows: list[dict[str, Any]]) -> None:
        """Show rounds that were not shown yet."""
        for row in rows[self._shown :]:
            self._shown += 1  # first: who is interrupted does not show it twice
            self._show(row)

    def go_on(self, after: int) -> None:
        """Say that a run goes on, and show no round that it had before."""
        whose = f"{self._name}  " if self._name else ""
        self._console.print(f"{whose}going on after round {after}", highlight=False)
        self._shown = after + 1
        if self._task is not None:
            self._progress.start_task(self._task)
            self._progress.update(
                self._task,
                description=self._name or "round",
                completed=self._before + after,
            )

    def pass_over(self, rows: list[dict[str, Any]]) -> None:
        """Say that a run had finished before, and how."""
        self._console.print(
            f"{self._name}  finished before  {figures_of(rows[-1])}", soft_wrap=True
        )
        if self._task is not None:
            done = self._before + self._rounds
            self._progress.update(self._task, completed=done, figures="")

    def _show(self, row: dict[str, Any]) -> None:
        figures = figures_of(row)
        if not self._console.is_terminal:
            whose = f"{self._name}  " if self._name else ""
            self._console.print(
                f"{whose}round {row['round']}/{self._rounds}  {figures}",
                soft_wrap=True,
            )
            return
        assert self._task is not None
        if row["round"] == 0:
            self._progress.start_task(self._task)
        self._progress.update(
            self._task,
            description=self._name or "round",
            completed=self._before + row["round"],
            figures=figures,
        )


def figures_of(row: dict[str, Any]) -> str:
    """Return a round's figures in one phrase; what was not measured is left out."""
    parts = []
    if row["test_accuracy"] is not None:
        parts.append(f"accuracy {row['test_accuracy']:.4f}")
    if row["test_loss"] is not None:
        parts.append(f"loss {row['test_loss']:.4f}")
    elif row["train_loss"] is not None:
        parts.append(f"training loss {row['train_loss']:.4f}")
    if row["num_failures"]:
        number = row["num_failures"]
        parts.append(f"{number} client{'s' if number > 1 else ''} left out")
    return "  ".join(parts)


def follow(
    folder: RunFolder,
    view: RunView,
    state: Callable[[], str],
    *,
    patience: float,
    resumed: int | None = None,
) -> str | None:
    """Show the run's rounds until it has finished; return None, or what it waits for.

    Args:
        folder: the run's folder, which need not be there yet.
        view: where the rounds are shown.
        state: where the run stands, in Flower's words; asked about once a second.
        patience: seconds after which a run that has not begun is given up.
        resumed: how often a run that goes on had done so before; None for a new one.
    """
    begun = asked = time.monotonic()
    while True:
        if resumed is not None and len(again := folder.resumed()) > resumed:
            view.go_on(again[-1]["after_round"])
            resumed = None
        if resumed is None:  # what is there until then is of before
            view.show(folder.metrics())
        now = time.monotonic()
        if now - asked > _STATUS_SECONDS or folder.summary() is not None:
            asked, where = now, state()
            if where == "finished":
                if resumed is None:
                    view.show(folder.metrics())
                return None
            if where == "pending" and now - begun > patience:
                return where
        time.sleep(_POLL_SECONDS)


def print_result(console: Console, folder: RunFolder) -> None:
    """Print a finished run's figures and where its pictures are."""
    summary = folder.summary()
    assert summary is not None
    rows = folder.metrics()
    last = rows[-1]
    table = Table(title=folder.name, show_header=False, title_justify="left")
    for label, value in (
        ("test accuracy", _figure(summary["final_test_accuracy"])),
        ("test loss", _figure(summary["final_test_loss"])),
        ("validation accuracy", _figure(last["validation_accuracy"])),
        ("rounds", str(summary["rounds"])),
        ("seconds", f"{summary['total_seconds']:.1f}"),
        *_messages(folder, rows),
        ("model", summary["model_sha256"][:16]),
    ):
        table.add_row(label, value)
    console.print(table)
    if data := summary.get("data"):  # earlier versions did not write it
        console.print(f"data: {data}", soft_wrap=True, markup=False, highlight=False)
    print_remarks(console, folder)
    for name in (CURVES, PARTITION):
        console.print(str(folder.path / name), soft_wrap=True, highlight=False)


def print_remarks(console: Console, folder: RunFolder, whose: str = "") -> None:
    """Print a finished run's warnings; `whose` is its name, where there are several."""
    begins = f"{whose}  warning:" if whose else "warning:"
    for remark in (folder.summary() or {}).get("remarks", []):
        line = f"{begins} {remark}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _messages(
    folder: RunFolder, rows: list[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield what clients sent, and how often one was left out and why; if at all."""
    sent = sum(row["upload_bytes"] or 0 for row in rows)
    if sent:
        options = (folder.config() or {}).get("options", {})
        codec = options.get("compression", "none")
        how = "" if codec == "none" else f" ({codec})"
        yield "sent by clients", f"{sent / 1e6:.3g} MB{how}"
    left_out = sum(row["num_failures"] for row in rows)
    if left_out:
        first = next(row for row in folder.clients() if row.get("failure"))
        times = f"{left_out} time{'s' if left_out > 1 else ''}"
        yield "clients left out", f"{times}; first: {first['failure']}"


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def first_traceback(folder: RunFolder) -> str | None:
    """Return the first failed client's traceback, with its name; None without one."""
    for row in folder.clients():
        if row.get("failure"):
            where = (
                f"client {row['client']} in round {row['round']} (node {row['node']})"
            )
            return f"{where}:\n{row['traceback'].rstrip()}"
    return None
