"""Pictures of the clients' examples: how many of which class, and some of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fl_app import lettering, partition_picture, plots

Array = np.ndarray[Any, Any]
COLUMNS = 8
"""Examples in a row of a picture."""
MAX_ROWS = 12
"""Clients up to which each gets a row of examples of its own."""


def labels(
    counts: Array,
    class_names: Sequence[str],
    title: str,
    client_names: Sequence[str] = (),
) -> bytes:
    """Return a PNG: stacked bars of the clients' examples, by class.

    Many clients are stacked areas, from the client with the most examples down.

    Args:
        counts: (num_clients, num_classes) numbers of training examples.
        class_names: names of the classes.
        title: what the picture is of.
        client_names: names of the clients; empty where they are mere numbers.
    """
    if len(counts) <= partition_picture.MAX_BARS:
        return partition_picture.partition(counts, class_names, title, client_names)
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    tops = np.vstack([np.zeros(len(counts)), np.cumsum(counts[order], axis=1).T])
    figure = plots.new_figure(9.6, 5.0)
    axes = figure.subplots()
    places = np.arange(len(counts) + 1)  # both edges of each client's step
    areas = []
    for c, colour in enumerate(partition_picture.class_colours(len(class_names))):
        low, high = (np.append(top, top[-1]) for top in (tops[c], tops[c + 1]))
        area = axes.fill_between(
            places, low, high, color=colour, step="post", linewidth=0
        )
        areas.append(area)
    axes.set(
        title=lettering.title(title),
        xlabel="clients, from most to fewest training examples",
        ylabel="training examples",
        xlim=(0, len(counts)),
        ylim=(0, None),
    )
    plots.whole_numbers(axes.xaxis)
    plots.whole_numbers(axes.yaxis)
    if client_names:
        shown = range(0, len(counts), -(-len(counts) // partition_picture.MAX_BARS))
        names = lettering.labels(client_names)
        labels = [names[order[i]] for i in shown]
        axes.set_xticks([i + 0.5 for i in shown], labels, rotation=90, fontsize=8)
    axes.grid(axis="y", **plots.GRID)
    axes.set_axisbelow(True)
    partition_picture.key_classes(axes, areas, class_names)
    return plots.to_png(figure)


def examples(images: Array, labels: Sequence[str], title: str) -> bytes:
    """Return a PNG of examples with their labels, as a grid.

    Args:
        images: (N, channels, height, width) in [0, 1]; other values are brought to it.
        labels: what is written above each one, drawable.
        title: what the picture is of.
    """
    rows = [slice(i, i + COLUMNS) for i in range(0, len(labels), COLUMNS)]
    return _grid([images[r] for r in rows], [labels[r] for r in rows], [], title)


def client_examples(
    images: Sequence[Array],
    labels: Sequence[Sequence[str]],
    clients: Sequence[str],
    title: str,
) -> bytes:
    """Return a PNG of examples with their labels, a row for each client.

    Args:
        images: per client, (n, channels, height, width) in [0, 1]; others are brought
            to it. At most `COLUMNS` are drawn.
        labels: per client, what is written above each of its images, drawable.
        clients: what is written before each row, drawable.
        title: what the picture is of.
    """
    return _grid(images, labels, clients, title)


def _grid(
    images: Sequence[Array],
    labels: Sequence[Sequence[str]],
    rows: Sequence[str],
    title: str,
) -> bytes:
    """Draw rows of images, each under its label, and before them the rows' names.

    All are on one pair of axes, where a cell is 1 wide: a hundred would take seconds.
    """
    low = min(float(np.min(mine, initial=0.0)) for mine in images)
    high = max(float(np.max(mine, initial=1.0)) for mine in images)
    width, height = _size_in_cell(images[0].shape[2:])
    margin = 0.085 * max(map(len, rows)) + 0.1 if rows else 0.0  # for the rows' names
    inches = (9.5 - margin) / COLUMNS  # of a cell
    lines = 1 + max(label.count("\n") for mine in labels for label in [*mine, ""])
    pitch = height + (0.1 + 0.14 * lines) / inches
    figure = plots.new_figure(9.6, 0.5 + inches * pitch * len(images))
    axes = figure.subplots()
    for row, (mine, names) in enumerate(zip(images, labels, strict=True)):
        bottom = (row + 1) * pitch
        top = bottom - height
        if rows:
            middle = (-0.05, (top + bottom) / 2)
            axes.text(*middle, rows[row], ha="right", va="center", fontsize=9)
        for column, (image, name) in enumerate(zip(mine, names, strict=False)):
            shown = np.moveaxis((image - low) / (high - low), 0, -1)
            shown = shown if shown.shape[2] == 3 else shown[:, :, 0]
            left = column + (1 - width) / 2
            extent = (left, left + width, bottom, top)
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=extent)
            middle = (column + 0.5, top - 0.03)
            axes.text(*middle, name, ha="center", va="bottom", fontsize=8)
    axes.set_xlim(-margin / inches, COLUMNS)
    axes.set(ylim=(pitch * len(images), 0), aspect=1)
    axes.set_axis_off()
    figure.suptitle(lettering.title(title))
    return plots.to_png(figure)


def _size_in_cell(shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the width and height of an image in a cell of 1; features fill theirs."""
    height, width = shape
    longer = max(height, width)
    if longer > 8 * min(height, width):
        return 0.92, 0.92
    return 0.92 * width / longer, 0.92 * height / longer
