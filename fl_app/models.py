"""Models by name. Each builder takes any input shape (channels, height, width).

PyTorch is imported when a model is built, so that listing the names stays cheap.
"""

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, int, int]


def logistic(input_shape: Shape, num_classes: int) -> "nn.Module":
    """Multinomial logistic regression on the raw pixels."""
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(_size(input_shape), num_classes))


def mlp(input_shape: Shape, num_classes: int) -> "nn.Module":
    """Two hidden layers of 200: the 2NN of McMahan et al. 2017, arXiv:1602.05629."""
    from torch import nn

    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(_size(input_shape), 200), nn.ReLU()),
        *(nn.Linear(200, 200), nn.ReLU()),
        nn.Linear(200, num_classes),
    )


def cnn(input_shape: Shape, num_classes: int) -> "nn.Module":
    """The CNN of McMahan et al. 2017; 1,663,370 parameters on (1, 28, 28), 10 classes.

    Two 5x5 convolutions of 32 and 64 channels, each followed by 2x2 max-pooling, and
    a hidden layer of 512.
    """
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(input_shape[0], 32, 5, padding=2), nn.ReLU(), _halve()),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), _halve()),
        nn.Flatten(),
        *(nn.Linear(64 * _quarter_area(input_shape), 512), nn.ReLU()),
        nn.Linear(512, num_classes),
    )


def improved_cnn(input_shape: Shape, num_classes: int) -> "nn.Module":
    """Two 3x3 convolutions with batch normalisation; dropout on the hidden layer."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(input_shape[0], 32, 3, padding=1, bias=False),
        *(nn.BatchNorm2d(32), nn.ReLU(), _halve()),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        *(nn.BatchNorm2d(64), nn.ReLU(), _halve()),
        nn.Flatten(),
        *(nn.Linear(64 * _quarter_area(input_shape), 128), nn.ReLU()),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )


def _size(shape: Shape) -> int:
    channels, height, width = shape
    return channels * height * width


def _halve() -> "nn.Module":
    """2x2 max-pooling that keeps an odd last row and column, so 1x1 stays 1x1."""
    from torch import nn

    return nn.MaxPool2d(2, ceil_mode=True)


def _quarter_area(shape: Shape) -> int:
    """Pixels left of each channel after `_halve` was applied twice."""
    return ceil(ceil(shape[1] / 2) / 2) * ceil(ceil(shape[2] / 2) / 2)


MODELS: dict[str, Callable[[Shape, int], "nn.Module"]] = {
    "logistic": logistic,
    "mlp": mlp,
    "cnn": cnn,
    "improved-cnn": improved_cnn,
}


def build(name: str, input_shape: Shape, num_classes: int, *, seed: int) -> "nn.Module":
    """Return the model of that name in `MODELS`, with weights drawn from `seed` alone.

    The caller's random state is left as it was.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](input_shape, num_classes)
