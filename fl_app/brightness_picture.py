"""The picture of the clients' images: how large and how bright they are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_app import lettering, partition_picture, plots
from fl_app.client_figures import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]
_CENTILES = (5, 25, 50, 75, 95)
_MOST, _HALF = "5th to 95th percentile", "25th to 75th percentile"
_MIDDLE = "median of the client's images"


def draw(
    brightness: Sequence[Array],
    shorter: Sequence[Array] | None,
    resized: Sequence[float] | None,
    title: str,
    client_names: Sequence[str] = (),
) -> bytes:
    """Return a PNG: how large and how bright the clients' images are.

    Few clients get a row each, many are bands of percentiles, from the least median on.

    Args:
        brightness: per client, the mean level of each image as a fraction of white.
        shorter: per client, the shorter side in pixels of each original image; None
            where the data came without files.
        resized: per client, the fraction of images brought to another size; or None.
        title: what the picture is of.
        client_names: names of the clients; empty where they are mere numbers.
    """
    few = len(brightness) <= partition_picture.MAX_BARS
    names = lettering.labels(client_names) or [
        f"client {c}" for c in range(len(brightness))
    ]
    spreads = [("mean brightness (of white)", brightness, True)]
    if shorter is not None:
        spreads.insert(0, ("shorter side of the original (pixels)", shorter, False))
    number = len(spreads) + (resized is not None)
    height = partition_picture.row_height(len(brightness)) if few else 4.2
    figure = plots.new_figure(9.6, height)
    panels = figure.subplots(1, number, squeeze=False, sharey=few)[0]
    for axes, (what, values, fraction) in zip(panels, spreads, strict=False):
        centiles = np.array([np.percentile(mine, _CENTILES) for mine in values])
        if few:
            _spread_rows(axes, centiles)
        else:
            _spread_bands(axes, centiles, names)
        top = 1.0 if fraction else 1.05 * centiles.max()
        _scale(axes, what, top, few=few, fraction=fraction)
    if resized is not None:
        if few:
            _share_rows(panels[-1], resized)
        else:
            _share_curve(panels[-1], resized, names)
        _scale(panels[-1], "share of images resized", 1.0, few=few, fraction=True)
    if few:
        partition_picture.name_rows(panels[0], len(brightness), client_names)
    figure.suptitle(lettering.title(title))
    drawn, said = panels[0].get_legend_handles_labels()
    figure.legend(drawn, said, loc="outside lower center", ncols=3, frameon=False)
    figure.set_layout_engine("constrained", wspace=0.08)
    return plots.to_png(figure)


def _spread_rows(axes: "Axes", centiles: Array) -> None:
    """Draw the percentiles of each client on its row."""
    lowest, low, middle, high, highest = centiles.T
    places = np.arange(len(centiles))
    shade: dict[str, Any] = {"height": 0.6, "color": plots.BLUE, "alpha": 0.45}
    axes.hlines(places, lowest, highest, plots.BLUE, linewidth=1, label=_MOST)
    axes.barh(places, high - low, left=low, label=_HALF, **shade)
    axes.plot(middle, places, "o", color=plots.BLUE, markersize=4, label=_MIDDLE)


def _spread_bands(axes: "Axes", centiles: Array, names: Sequence[str]) -> None:
    """Draw the percentiles of all clients, from the least median to the greatest."""
    order = np.argsort(centiles[:, 2], kind="stable")
    lowest, low, middle, high, highest = centiles[order].T
    places = np.arange(len(centiles))
    shade: dict[str, Any] = {"color": plots.BLUE, "linewidth": 0}
    axes.fill_between(places, lowest, highest, alpha=0.2, label=_MOST, **shade)
    axes.fill_between(places, low, high, alpha=0.35, label=_HALF, **shade)
    axes.plot(places, middle, color=plots.BLUE, label=_MIDDLE)
    axes.set_xlabel(f"clients by their median,\n{_ends(names, order)}")


def _share_rows(axes: "Axes", shares: Sequence[float]) -> None:
    """Draw each client's share of resized images on its row."""
    axes.barh(np.arange(len(shares)), shares, height=0.6, color=plots.ORANGE)
    for place, share in enumerate(shares):
        inside = share > 0.8
        axes.annotate(
            percent(share), (share, place), va="center", fontsize=8,
            xytext=(-3 if inside else 3, 0), textcoords="offset points",
            ha="right" if inside else "left", color="white" if inside else "black",
        )  # fmt: skip


def _share_curve(axes: "Axes", shares: Sequence[float], names: Sequence[str]) -> None:
    """Draw the shares of resized images of all clients, from the least on."""
    order = np.argsort(shares, kind="stable")
    axes.plot(np.asarray(shares)[order], color=plots.ORANGE)
    axes.set_xlabel(f"clients by their share,\n{_ends(names, order)}")


def _ends(names: Sequence[str], order: Array) -> str:
    return f"{names[order[0]]} to {names[order[-1]]}"


def _scale(axes: "Axes", what: str, top: float, *, few: bool, fraction: bool) -> None:
    """Name what is measured, along the axis that it is measured on: from 0 to top."""
    measured = axes.xaxis if few else axes.yaxis
    if few:
        axes.set(xlabel=what, xlim=(0, top))
    else:
        axes.set(ylabel=what, ylim=(0, top))
        plots.whole_numbers(axes.xaxis, at_most=5)
    if fraction:
        plots.percentages(measured, at_most=3 if few else 6)
    else:
        plots.whole_numbers(measured, at_most=5)
    measured.grid(**plots.GRID)
    axes.set_axisbelow(True)
