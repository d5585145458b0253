"""Pictures of a run, drawn from its artifacts; nothing here trains or reads options."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision, and in grey.
BLUE, ORANGE = "#0072B2", "#D55E00"
_STYLES: dict[str, dict[str, Any]] = {
    "server": {"color": BLUE, "linestyle": "-"},
    "clients": {"color": ORANGE, "linestyle": "--"},
}
GRID: dict[str, Any] = {"color": "#d9d9d9", "linewidth": 0.6}
_LONGEST = 24  # characters of a client's name in a picture
_MAX_BARS = 40
"""Clients up to which each gets a bar of its own in the partition picture."""


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
    figure.suptitle(title)
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
        client_names: names of the clients, if they have any; shown where they are few.

    Few clients are stacked bars, one each; many are a heat map, each row scaled to the
    client's own size so that the skew shows, beside a curve of the sizes.
    """
    counts = np.asarray(counts)
    if len(counts) <= _MAX_BARS:
        return _partition_bars(counts, class_names, title, client_names)
    return partition_map(counts, class_names, title)


def _partition_bars(
    counts: Any, class_names: Sequence[str], title: str, client_names: Sequence[str]
) -> bytes:
    num_clients, num_classes = counts.shape
    figure = new_figure(9.6, 1.8 + 0.26 * max(8, num_clients))
    axes = figure.subplots()
    colours = _class_colours(num_classes)
    left = np.zeros(num_clients)
    for c in range(num_classes):
        axes.barh(
            np.arange(num_clients),
            counts[:, c],
            left=left,
            color=colours[c],
            edgecolor="white",
            linewidth=0.4,
            label=class_names[c].replace("$", r"\$"),
        )
        left += counts[:, c]
    axes.set(
        title=title,
        xlabel="training examples",
        ylabel="client",
        ylim=(-0.6, num_clients - 0.4),
    )
    axes.margins(x=0.03)
    numbers = [str(client) for client in range(num_clients)]
    names = [_shortened(name) for name in client_names] or numbers
    axes.set_yticks(np.arange(num_clients), names)
    axes.invert_yaxis()
    axes.grid(axis="x", **GRID)
    axes.set_axisbelow(True)
    if num_classes <= 20:
        axes.legend(
            title="class", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
        )
    return to_png(figure)


def _shortened(name: str) -> str:
    """Return a name as a label: not too long, and not taken for mathematics."""
    kept = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return kept.replace("$", r"\$")


def partition_map(counts: Any, class_names: Sequence[str], title: str) -> bytes:
    """Return a PNG: a heat map of each client's shares, beside a curve of the sizes.

    Args:
        counts: (num_clients, num_classes) numbers of training examples.
        class_names: names of the classes.
        title: what the picture is of.
    """
    num_clients, num_classes = counts.shape
    sizes = counts.sum(axis=1)
    figure = new_figure(9.6, 6.4)
    shares_axes, size_axes = figure.subplots(1, 2, width_ratios=[3, 1], sharey=True)
    shares = counts / np.maximum(1, sizes)[:, None]
    extent = (-0.5, num_classes - 0.5, num_clients - 0.5, -0.5)
    image = shares_axes.imshow(
        shares, aspect="auto", cmap="Blues", vmin=0, vmax=shares.max(), extent=extent,
        interpolation="nearest",
    )  # fmt: skip
    shares_axes.set(title=title, xlabel="class", ylabel="client")
    if num_classes <= 20:
        slant = 45 if max(map(len, class_names)) > 3 else 0
        shares_axes.set_xticks(range(num_classes), class_names, rotation=slant)
    figure.colorbar(image, ax=shares_axes, label="share of the client's examples")
    places = np.arange(num_clients)
    if num_clients <= _MAX_BARS:
        size_axes.barh(places, sizes, color=BLUE, height=0.9)
    else:  # one shape in place of a thousand
        size_axes.fill_betweenx(places, sizes, color=BLUE, step="mid", linewidth=0)
    size_axes.set(title="size", xlabel="training examples", xlim=(0, None))
    size_axes.grid(axis="x", **GRID)
    size_axes.set_axisbelow(True)
    return to_png(figure)


def examples(images: Any, labels: Sequence[str], title: str) -> bytes:
    """Return a PNG of examples with their labels.

    Args:
        images: (N, channels, height, width) in [0, 1]; other values are brought to it.
        labels: the name of each one's class.
        title: what the picture is of.
    """
    columns = min(8, len(labels))
    rows = -(-len(labels) // columns)
    figure = new_figure(9.6, 0.5 + 1.35 * rows)
    images = np.asarray(images, dtype=float)
    low, high = min(0.0, images.min()), max(1.0, images.max())
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, label in zip(grid, images, labels, strict=False):
        shown = np.moveaxis((image - low) / (high - low), 0, -1)
        grey = shown.shape[2] != 3
        axes.imshow(shown[:, :, 0] if grey else shown, cmap="gray", vmin=0, vmax=1)
        axes.set_title(_shortened(label), fontsize=8)
    figure.suptitle(title)
    return to_png(figure)


def _class_colours(number: int) -> Any:
    from matplotlib import colormaps

    if number <= 10:
        return colormaps["tab10"](np.arange(number))
    return colormaps["turbo"](np.linspace(0.05, 0.95, number))


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure (inches), off the global state of pyplot: thread-safe."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_png(figure: "Figure") -> bytes:
    """Return a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
