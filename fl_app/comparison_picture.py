"""The picture of compared methods: a line and a band for each, in four panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from fl_app import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCURACY = "fraction of examples classified right"
LOSS = "cross-entropy per example (nats)"

_COLOURS = [
    *(plots.BLUE, plots.ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
]
_LINES = ["-", "--", "-.", ":"]
_SHORT = 48  # letters: labels up to that fit beside each other


@dataclass(frozen=True)
class Band:
    """A metric at places on an axis: mean over seeds, and deviation (None for one)."""

    label: str
    places: Sequence[float]
    means: Sequence[float]
    deviations: Sequence[float | None]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a metric of each method, against something."""

    title: str
    across: str
    """What the horizontal axis shows."""
    up: str
    """What the vertical axis shows: `ACCURACY` or `LOSS`."""
    bands: Sequence[Band]


def draw(panels: Sequence[Panel], title: str) -> bytes:
    """Return a PNG of the panels, two in a row; bands are one standard deviation."""
    shown = [panel for panel in panels if any(band.places for band in panel.bands)]
    rows = max(1, -(-len(shown) // 2))
    figure = plots.new_figure(9.6, 0.8 + 3.6 * rows)
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, panel in zip(grid, shown, strict=False):
        _panel(axes, panel)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        frameon=False,
        ncols=1 if max(map(len, labels), default=0) > _SHORT else 2,
    )
    figure.suptitle(title)
    return plots.to_png(figure)


def _panel(axes: "Axes", panel: Panel) -> None:
    styles = zip(panel.bands, cycle(_COLOURS), cycle(_LINES), strict=False)
    for band, colour, line in styles:
        _band(axes, band, colour, line)
    axes.set(title=panel.title, xlabel=panel.across, ylabel=panel.up)
    if panel.across == "round":
        axes.locator_params(axis="x", integer=True)
    axes.margins(x=0)
    axes.grid(**plots.GRID)
    bottom = max(0.0, axes.get_ylim()[0]) if panel.up == ACCURACY else 0.0
    axes.set_ylim(bottom=bottom)


def _band(axes: "Axes", band: Band, colour: str, line: str) -> None:
    means = np.array(band.means)
    label = band.label.replace("$", r"\$")
    axes.plot(band.places, means, color=colour, linestyle=line, label=label, lw=1.4)
    around = np.array([deviation or 0.0 for deviation in band.deviations])
    axes.fill_between(
        band.places, means - around, means + around, color=colour, alpha=0.2, lw=0
    )
