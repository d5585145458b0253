"""Runs in TensorBoard, where one asks for it."""

import logging
from importlib.util import find_spec
from typing import Any

from fl_app.artifacts import RunFolder
from fl_app.callbacks import Callback, Rows
from fl_app.config import ConfigError, RunConfig
from strategies.interfaces import RoundResult

log = logging.getLogger("flwr.fl_app")

FOLDER = "tensorboard"
_TAGS = {
    "test_accuracy": "accuracy/test",
    "test_loss": "loss/test",
    "train_loss": "loss/training",
    "global_train_loss": "loss/training, global model",
    "update_norm": "updates/norm",
    "update_cosine": "updates/cosine",
    "num_clients": "clients/counted in",
    "num_failures": "clients/left out",
    "seconds": "cost/seconds",
    "upload_bytes": "cost/bytes up",
    "download_bytes": "cost/bytes down",
}
_LATER = {
    "validation_accuracy": "accuracy/validation",
    "validation_loss": "loss/validation",
}
"""What a row gains when the next round's replies are there."""


def check(config: RunConfig) -> None:
    """Raises: ConfigError: what `tracking` asks for is not installed."""
    if config.tracking == "tensorboard" and find_spec("tensorboard") is None:
        raise ConfigError(
            "tracking = 'tensorboard' needs a package that is not installed: "
            "pip install tensorboard"
        )


def trackers(config: RunConfig, folder: RunFolder) -> list[Callback]:
    """Return the callbacks that `tracking` asks for."""
    return [TensorBoard(folder)] if config.tracking == "tensorboard" else []


class TensorBoard(Callback):
    """Writes a run's figures for `tensorboard --logdir results`.

    What cannot be written is logged and ends no run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._writer: Any = None
        self._opened = False

    def on_round(self, rows: Rows, result: RoundResult | None) -> None:
        """Write the newest row, and what the one before has gained."""
        if not self._opened:
            self._opened = True
            self._open(rows)
        self._write(rows[-1], _TAGS)
        if len(rows) > 1:
            self._write(rows[-2], _LATER)
        self._attempt("flush")

    def _open(self, rows: Rows) -> None:
        """Open the file and show the options.

        A run that goes on begins with its last row but one anew, which an earlier
        process may have written before it was final.
        """
        begin = max(0, len(rows) - 2)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(self._folder.path / FOLDER), purge_step=rows[begin]["round"]
            )
        except Exception:
            log.exception("TensorBoard's file could not be opened")
            return
        options = (self._folder.config() or {}).get("options", {})
        table = "\n".join(f"| {k} | {v} |" for k, v in sorted(options.items()))
        self._attempt("add_text", "options", f"| option | value |\n| - | - |\n{table}")
        if begin < len(rows) - 1:
            self._write(rows[begin], _TAGS)

    def on_end(self, rows: Rows) -> None:
        """Write what the last row has gained, and close."""
        if rows:
            self._write(rows[-1], _LATER)
        self._attempt("close")

    def _write(self, row: Any, tags: dict[str, str]) -> None:
        for key, tag in tags.items():
            if row.get(key) is not None:
                self._attempt("add_scalar", tag, row[key], row["round"])

    def _attempt(self, method: str, *arguments: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*arguments)
        except Exception:
            log.exception("TensorBoard's file could not be written")
            self._writer = None
