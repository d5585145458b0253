"""Pictures of a run, drawn from its artifacts; nothing here trains or reads options."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_app import lettering

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision, and in grey.
BLUE, ORANGE = "#0072B2", "#D55E00"
_STYLES: dict[str, dict[str, Any]] = {
    "server": {"color": BLUE, "linestyle": "-"},
    "clients": {"color": ORANGE, "linestyle": "--"},
}
GRID: dict[str, Any] = {"color": "#d9d9d9", "linewidth": 0.6}


def curves(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Return a PNG: accuracy and loss per round, from the rows of metrics.jsonl."""
    figure = new_figure(9.6, 4.0)
    accuracy, loss = figure.subplots(1, 2)
    _line(accuracy, rows, "test_accuracy", label="test", style="server")
    label = "validation (clients)"
    _line(accuracy, rows, "validation_accuracy", label=label, style="clients")
    accuracy.set(title="Accuracy", ylabel="fraction of examples classified right")
    _zoom(accuracy, rows, ("test_accuracy", "validation_accuracy"))
    _line(loss, rows, "test_loss", label="test", style="server")
    _line(loss, rows, "train_loss", label="training (clients)", style="clients")
    loss.set(title="Loss", ylabel="cross-entropy per example (nats)")
    loss.set_ylim(bottom=0)
    last = max(1, int(rows[-1]["round"])) if rows else 1
    for axes, corner in ((accuracy, "lower right"), (loss, "upper right")):
        axes.set_xlabel("round")
        axes.set_xlim(0, last)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(**GRID)
        if axes.lines:
            axes.legend(frameon=False, loc=corner)
    figure.suptitle(lettering.title(title))
    return to_png(figure)


def _line(
    axes: "Axes",
    rows: Sequence[Mapping[str, Any]],
    key: str,
    *,
    label: str,
    style: str,
) -> None:
    """Draw one metric over the rounds in which it was measured."""
    points = [(row["round"], row[key]) for row in rows if row.get(key) is not None]
    if not points:
        return
    rounds, values = zip(*points, strict=True)
    marker = "o" if len(points) <= 40 else None
    label = f"{label}: {values[-1]:.4f} in round {rounds[-1]}"
    axes.plot(rounds, values, label=label, marker=marker, ms=3.5, **_STYLES[style])
    axes.margins(y=0.05)


def _zoom(
    axes: "Axes", rows: Sequence[Mapping[str, Any]], keys: tuple[str, ...]
) -> None:
    """Top at 1; bottom at 0, or higher where even the first rounds are good."""
    values = [row[key] for row in rows for key in keys if row.get(key) is not None]
    lowest = min(values, default=0.0)
    axes.set_ylim(max(0.0, np.floor(lowest * 10) / 10 - 0.1), 1.0)


def whole_numbers(axis: "Axis", at_most: int = 9) -> None:
    """Give an axis of counts ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    steps = [1, 2, 5, 10]
    axis.set_major_locator(MaxNLocator(at_most, integer=True, steps=steps))
    axis.set_major_formatter("{x:,.0f}")


def percentages(axis: "Axis", at_most: int = 6) -> None:
    """Give an axis of fractions ticks in percent."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(at_most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{round(100 * x, 6):g} %"))


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure (inches), off the global state of pyplot: thread-safe."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_png(figure: "Figure") -> bytes:
    """Return a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    lettering.choose_fonts(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
