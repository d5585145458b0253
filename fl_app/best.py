"""The best model by the clients' validation, and when to stop waiting for a better one.

The verdict on a round's model comes with the next round's replies, so both lag by one
round; the test split has no part in it.
"""

from collections.abc import Sequence
from typing import Any

from fl_app.artifacts import ModelInfo, RunFolder
from fl_app.callbacks import Callback, Rows
from strategies.interfaces import RoundResult
from strategies.wire import Arrays

ACCURACY = "validation_accuracy"


def best_row(rows: Rows) -> dict[str, Any] | None:
    """Return the row of the best model by validation accuracy, the first of equals."""
    judged = [row for row in rows if row[ACCURACY] is not None]
    best = max(judged, key=lambda row: (row[ACCURACY], -row["round"]), default=None)
    return None if best is None else dict(best)


def out_of_patience(rows: Rows, patience: int) -> bool:
    """Whether so many judged rounds in a row brought nothing better; 0 never ends.

    It follows from the rows alone, so a resumed run stops where the whole one does.
    """
    best = best_row(rows)
    if patience == 0 or best is None:
        return False
    since = [
        row
        for row in rows
        if row["round"] > best["round"] and row[ACCURACY] is not None
    ]
    return len(since) >= patience


class BestModel(Callback):
    """Keeps best.safetensors; register it before what makes a round final."""

    def __init__(self, folder: RunFolder, info: ModelInfo, arrays: Arrays) -> None:
        """Begin with the model that the next round's clients receive."""
        self._folder = folder
        self._info = info
        self._arrays = arrays
        self._written: int | None = None

    def on_round(self, rows: Rows, result: RoundResult | None) -> None:
        """Keep the model of the round before if that was the best until now."""
        self._judge(rows[:-1])
        if result is not None:
            self._arrays = result.arrays

    def on_end(self, rows: Rows) -> None:
        """Do so with the last model."""
        self._judge(rows)

    def _judge(self, rows: Sequence[Any]) -> None:
        best = best_row(rows)
        if best is None or best["round"] != rows[-1]["round"]:
            return
        if best["round"] != self._written:
            self._folder.write_model(self._arrays, self._info, best=True)
            self._written = best["round"]
