"""Pictures of who owns which labels: a bar or a row for each client."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_app import lettering, plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS = 40
"""Clients up to which each gets a bar of its own."""
_MAP_WIDTH, _WIDEST = 5.2, 14.4  # inches: cells of the usual heat map; its picture


def partition(
    counts: Any,
    class_names: Sequence[str],
    title: str,
    client_names: Sequence[str] = (),
) -> bytes:
    """Return a PNG: examples per class and client.

    Args:
        counts: (num_clients, num_classes) numbers of training examples.
        class_names: names of the classes.
        title: what the picture is of.
        client_names: names of the clients; empty where they are mere numbers.

    Few clients are stacked bars, one each; many are a heat map, each row scaled to the
    client's own size so that the skew shows, beside a curve of the sizes.
    """
    counts = np.asarray(counts)
    if len(counts) <= MAX_BARS:
        return _partition_bars(counts, class_names, title, client_names)
    return partition_map(counts, class_names, title, client_names)


def _partition_bars(
    counts: Any, class_names: Sequence[str], title: str, client_names: Sequence[str]
) -> bytes:
    num_clients, num_classes = counts.shape
    figure = plots.new_figure(9.6, row_height(num_clients))
    axes = figure.subplots()
    places, left = np.arange(num_clients), np.zeros(num_clients)
    line = 0.4 if num_classes <= 20 else 0.0  # thinner parts would be all edge
    edge: dict[str, Any] = {"edgecolor": "white", "linewidth": line}
    bars = []
    for colour, column in zip(class_colours(num_classes), counts.T, strict=True):
        bars.append(axes.barh(places, column, left=left, color=colour, **edge))
        left += column
    axes.set(title=lettering.title(title), xlabel="training examples")
    axes.set_xlim(0, 1.03 * left.max())
    name_rows(axes, num_clients, client_names)
    plots.whole_numbers(axes.xaxis)
    axes.grid(axis="x", **plots.GRID)
    axes.set_axisbelow(True)
    key_classes(axes, bars, class_names)
    return plots.to_png(figure)


def partition_map(
    counts: Any,
    class_names: Sequence[str],
    title: str,
    client_names: Sequence[str] = (),
) -> bytes:
    """Return a PNG: a heat map of each client's shares, beside its size.

    Args:
        counts: (num_clients, num_classes) numbers of training examples.
        class_names: names of the classes.
        title: what the picture is of.
        client_names: names of the clients; empty where they are mere numbers.

    Where they can be read, the numbers of examples are written into the cells.
    """
    num_clients, num_classes = counts.shape
    sizes = counts.sum(axis=1)
    few = num_clients <= MAX_BARS
    width = max(9.6, 9.6 + (_width_of_numbers(counts) - _MAP_WIDTH) / 0.75)
    numbers = few and width <= _WIDEST
    figure = plots.new_figure(
        width if numbers else 9.6, row_height(num_clients) + 0.4 if few else 6.4
    )
    shares_axes, size_axes = figure.subplots(1, 2, width_ratios=[3, 1], sharey=True)
    shares = counts / np.maximum(1, sizes)[:, None]
    extent = (-0.5, num_classes - 0.5, num_clients - 0.5, -0.5)
    image = shares_axes.imshow(
        shares, aspect="auto", cmap="Blues", vmin=0, vmax=shares.max(), extent=extent,
        interpolation="nearest",
    )  # fmt: skip
    if numbers:
        _write_counts(shares_axes, counts, shares)
    shares_axes.set(title=lettering.title(title), xlabel="class")
    _name_columns(shares_axes, class_names)
    bar = figure.colorbar(image, ax=shares_axes, label="share of the client's examples")
    plots.percentages(bar.ax.yaxis)
    places = np.arange(num_clients)
    if few:
        size_axes.barh(places, sizes, color=plots.BLUE, height=0.9)
    else:  # one shape in place of a thousand
        size_axes.fill_betweenx(
            places, sizes, color=plots.BLUE, step="mid", linewidth=0
        )
    size_axes.set(title="size", xlabel="training examples", xlim=(0, None))
    name_rows(shares_axes, num_clients, client_names)
    shares_axes.set_ylim(num_clients - 0.5, -0.5)
    plots.whole_numbers(size_axes.xaxis, at_most=4)
    size_axes.grid(axis="x", **plots.GRID)
    size_axes.set_axisbelow(True)
    return plots.to_png(figure)


def _width_of_numbers(counts: Any) -> float:
    """Return the inches that a heat map needs to have its numbers written into it."""
    return float(counts.shape[1] * (0.062 * len(f"{counts.max():,}") + 0.06))


def _write_counts(axes: "Axes", counts: Any, shares: Any) -> None:
    """Write each cell's examples into it; an empty cell stays empty."""
    dark = 0.65 * shares.max()
    for client, label in np.argwhere(counts > 0):
        axes.text(
            label, client, f"{counts[client, label]:,}", fontsize=7, in_layout=False,
            ha="center", va="center",
            color="white" if shares[client, label] > dark else "black",
        )  # fmt: skip


def row_height(num_rows: int) -> float:
    """Return the height in inches of a figure with a row for each client."""
    return 1.8 + 0.26 * max(8, num_rows)


def name_rows(axes: "Axes", num_clients: int, names: Sequence[str]) -> None:
    """Put a client on each row, the first on top, with its name or number.

    Of many names each k-th is written, so that they stay apart.
    """
    axes.set(ylabel="client", ylim=(num_clients - 0.4, -0.6))
    step = -(-num_clients // MAX_BARS)
    if names:
        shown = range(0, num_clients, step)
        labels = lettering.labels(names)
        axes.set_yticks(shown, [labels[i] for i in shown], fontsize=9 - (step > 1))
    elif step == 1:
        axes.set_yticks(range(num_clients))
    else:
        plots.whole_numbers(axes.yaxis)


def _name_columns(axes: "Axes", class_names: Sequence[str]) -> None:
    """Write the names of the classes below their columns; of many, each k-th."""
    shown = range(0, len(class_names), -(-len(class_names) // 40))
    labels = lettering.labels(class_names)
    written = [labels[i] for i in shown]
    longest = max(map(len, written))
    if longest * len(written) <= 60:
        axes.set_xticks(shown, written)
    elif len(written) <= 20:
        axes.set_xticks(shown, written, rotation=45, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(shown, written, rotation=90, fontsize=8)


def class_colours(number: int) -> Any:
    """Return a colour for each class, (number, 4)."""
    from matplotlib import colormaps

    if number <= 10:
        return colormaps["tab10"](np.arange(number))
    return colormaps["turbo"](np.linspace(0.05, 0.95, number))


def key_classes(axes: "Axes", drawn: Sequence[Any], class_names: Sequence[str]) -> None:
    """Say which colour stands for which class: a legend, or a scale where many."""
    labels = lettering.labels(class_names)
    if len(labels) <= 10:
        places: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        numbers = [str(c) for c in range(len(labels))]
        key = axes.legend(drawn, numbers, title="class", frameon=False, **places)
        for text, label in zip(key.get_texts(), labels, strict=True):
            text.set_text(label)  # given to legend(), "_name" would be left out
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    edges = np.arange(len(labels) + 1) - 0.5
    scale = ScalarMappable(
        BoundaryNorm(edges, len(labels)), ListedColormap(class_colours(len(labels)))
    )
    bar = axes.figure.colorbar(scale, ax=axes, label="class", spacing="uniform")
    shown = range(0, len(labels), -(-len(labels) // 20))
    bar.set_ticks(shown, labels=[labels[i] for i in shown], fontsize=8)
    bar.ax.minorticks_off()
    bar.ax.invert_yaxis()
