"""Figures of each client's data: how much it is, of what, and what the images are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fl_app.data.datasets import Dataset
    from fl_app.data.partition import Indices, Partition

Array = np.ndarray[Any, Any]
Counts = np.ndarray[Any, np.dtype[np.int64]]
_AT_ONCE = 4096  # images whose levels are summed in one go: bounds the memory


@dataclass(frozen=True)
class Skew:
    """How unlike the clients are."""

    sizes: list[int]
    """Training examples of each client."""
    classes: list[int]
    """Classes that each client has examples of."""
    divergence: float
    """Mean Jensen-Shannon divergence of the clients' labels from those of all, in bits:
    0 where every client has the same shares of the classes, at most 1. Clients without
    a training example are left out."""

    @classmethod
    def of(cls, counts: Counts) -> "Skew":
        """Measure a (num_clients, num_classes) table of examples."""
        everybody = counts.sum(axis=0)
        apart = [_divergence(mine, everybody) for mine in counts if mine.any()]
        return cls(
            [int(n) for n in counts.sum(axis=1)],
            [int(n) for n in (counts > 0).sum(axis=1)],
            float(np.mean(apart)),
        )


def _divergence(p: Counts, q: Counts) -> float:
    """Return the Jensen-Shannon divergence of two histograms, in bits (Lin 1991)."""
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(p, q, base=2)) ** 2  # SciPy's is the square root


@dataclass(frozen=True)
class Pictured:
    """Measures of each training image; None where the data has no such thing."""

    brightness: Array | None
    """(N,) float64, mean level as a fraction of white; None for features."""
    sizes: Array | None
    """(N, 2) original width and height; None where no file was read."""
    resized: Array | None
    """(N,) bool, whether the original size is another than the model's input."""

    @classmethod
    def of(cls, dataset: "Dataset") -> "Pictured":
        """Measure the training images of a data set."""
        images, sizes = dataset.train_images, dataset.train_sizes
        if images.dtype != np.uint8:
            return cls(None, None, None)
        if sizes is None:
            return cls(_brightness(images), None, None)
        _, height, width = dataset.input_shape
        sizes = np.asarray(sizes)
        return cls(_brightness(images), sizes, (sizes != (width, height)).any(axis=1))


def _brightness(images: Array) -> Array:
    """Return the mean level of each image, as a fraction of white; sums are exact."""
    sums = [
        np.asarray(images[start : start + _AT_ONCE]).sum(axis=(1, 2, 3), dtype=np.int64)
        for start in range(0, len(images), _AT_ONCE)
    ]
    pixels = int(np.prod(images.shape[1:]))
    return np.concatenate([np.empty(0, np.int64), *sums]) / (255 * pixels)


@dataclass(frozen=True)
class ClientFigures:
    """What is known of one client's data. Images are all of its examples."""

    training: int
    """Examples that it trains on."""
    validation: int
    """Examples that it keeps for validation."""
    classes: int
    """Classes among its training examples."""
    brightness: float | None
    """Mean level of its images, as a fraction of white."""
    median_size: tuple[int, int] | None
    """Median of the original widths, and of the heights; rounded down."""
    resized: float | None
    """Fraction of its images that were brought to another size."""


def measure(partition: "Partition", pictured: Pictured) -> list[ClientFigures]:
    """Return the figures of each client."""
    return [
        _of(partition, pictured, client) for client in range(len(partition.clients))
    ]


def _of(partition: "Partition", pictured: Pictured, client: int) -> ClientFigures:
    training, validation = partition.split(client)
    owned: Indices = partition.clients[client]
    bright, sizes, resized = pictured.brightness, pictured.sizes, pictured.resized
    median = None if sizes is None else np.median(sizes[owned], axis=0).astype(int)
    return ClientFigures(
        len(training),
        len(validation),
        int((partition.counts_of(client) > 0).sum()),
        None if bright is None else float(bright[owned].mean()),
        None if median is None else (int(median[0]), int(median[1])),
        None if resized is None else float(resized[owned].mean()),
    )


def percent(fraction: float) -> str:
    """Return a fraction in whole percent; what is not all or none never looks so."""
    if 0 < fraction < 0.005:
        return "<1 %"
    if 0.995 <= fraction < 1:
        return ">99 %"
    return f"{fraction:.0%}".replace("%", " %")
