"""The picture of compared methods: a line and a band for each, in four panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil, inf
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
_BEGINNING = 10  # a share of so many of a curve's rounds
_FAR = 4  # times: curves that end so far apart are drawn over a logarithmic axis
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
    far_apart: bool = False
    """Whether curves may end at places so different that a logarithmic axis shows them
    better."""


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
    ends = [max(band.places) for band in panel.bands if any(band.places)]
    logarithmic = panel.far_apart and bool(ends) and max(ends) > _FAR * min(ends)
    for band, colour, line in styles:
        _band(axes, band, colour, line, above=0.0 if logarithmic else -inf)
    axes.set(title=panel.title, xlabel=panel.across, ylabel=panel.up)
    if panel.across == "round":
        axes.locator_params(axis="x", integer=True)
    if logarithmic:
        from matplotlib.ticker import LogLocator

        axes.set_xscale("log", subs=[])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(f"{panel.across} (logarithmic)")
    axes.margins(x=0)
    axes.grid(**plots.GRID)
    axes.set_ylim(*_limits(panel))


def _limits(panel: Panel) -> tuple[float, float]:
    """Return the ends of the upright axis: what shows the curves after their beginning.

    In the first tenth of its rounds a model goes from guessing to knowing most; drawn
    whole, that leaves the differences of methods a hair's breadth.
    """
    low, high = inf, -inf
    for band in panel.bands:
        later = slice(ceil(len(band.means) / _BEGINNING), None)
        means = np.array(band.means)
        around = np.array([deviation or 0.0 for deviation in band.deviations])
        for value in (means - around)[later]:
            low = min(low, value)
        for value in (means + around)[later]:
            high = max(high, value)
    if low > high:  # no curve has more than a beginning
        return 0.0, 1.0 if panel.up == ACCURACY else 3.0
    margin = 0.05 * (high - low) or 0.01
    if panel.up == ACCURACY:
        return max(0.0, low - margin), min(1.0, high + margin)
    return 0.0, high + margin


def _band(axes: "Axes", band: Band, colour: str, line: str, above: float) -> None:
    """Draw a band, as far as its places are above some value."""
    places, means = np.array(band.places), np.array(band.means)
    label = band.label.replace("$", r"\$")
    around = np.array([deviation or 0.0 for deviation in band.deviations])
    shown = places > above
    places, means, around = places[shown], means[shown], around[shown]
    (curve,) = axes.plot(
        places, means, color=colour, linestyle=line, label=label, lw=1.4
    )
    curve.set_marker("o" if len(places) == 1 else "")  # one point makes no line
    axes.fill_between(
        places, means - around, means + around, color=colour, alpha=0.2, lw=0
    )
