"""Models by name. Each builder takes any input shape (channels, height, width).

Where papers have ReLU before max-pooling, it stands after: the largest of the positive
parts is the positive part of the largest, and so are the gradients, bit for bit, at a
quarter of ReLU's work.

PyTorch is imported when a model is built, so that listing the names stays cheap.
"""

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

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
        *(nn.Conv2d(input_shape[0], 32, 5, padding=2), _halve(), nn.ReLU()),
        *(nn.Conv2d(32, 64, 5, padding=2), _halve(), nn.ReLU()),
        nn.Flatten(),
        *(nn.Linear(64 * _area(input_shape, halved=2), 512), nn.ReLU()),
        nn.Linear(512, num_classes),
    )


def improved_cnn(input_shape: Shape, num_classes: int) -> "nn.Module":
    """Two 3x3 convolutions with batch normalisation; dropout on the hidden layer."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(input_shape[0], 32, 3, padding=1, bias=False),
        *(nn.BatchNorm2d(32), _halve(), nn.ReLU()),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        *(nn.BatchNorm2d(64), _halve(), nn.ReLU()),
        nn.Flatten(),
        *(nn.Linear(64 * _area(input_shape, halved=2), 128), nn.ReLU()),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )


def lenet(input_shape: Shape, num_classes: int) -> "nn.Module":
    """LeNet-5 with ReLU and max-pooling; 62,006 parameters on (3, 32, 32), 10 classes.

    LeCun et al. 1998: 5x5 convolutions of 6 and 16 channels, then 120-84. Images
    smaller than 16 pixels are padded to that.
    """
    from torch import nn

    channels, height, width = input_shape
    height, width = max(16, height), max(16, width)
    bottom, right = height - input_shape[1], width - input_shape[2]
    area = _lenet_side(height) * _lenet_side(width)
    return nn.Sequential(
        *([nn.ZeroPad2d((0, right, 0, bottom))] if bottom or right else []),
        *(nn.Conv2d(channels, 6, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        nn.Flatten(),
        *(nn.Linear(16 * area, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, num_classes),
    )


def _lenet_side(side: int) -> int:
    """Pixels a side is left with after two 5x5 convolutions, each halved."""
    return ((side - 4) // 2 - 4) // 2


def resnet(input_shape: Shape, num_classes: int) -> "nn.Module":
    """A small residual network; 726,218 parameters on (3, 32, 32), 10 classes.

    3x3 convolutions of 32, 64 and 128 channels, halved after each stage, residual
    blocks at 64 and 128, a hidden layer of 128. Group normalisation (Wu and He 2018,
    arXiv:1803.08494: no statistics to average) stands at the head of the residual
    branches alone: on the main path it slows the first epochs down, and what a client
    has is few epochs on few examples.
    """
    from torch import nn

    return nn.Sequential(
        *(_convolution(input_shape[0], 32), _halve(), nn.ReLU()),
        *(_convolution(32, 64), nn.ReLU(), _residual(64), _halve()),
        *(_convolution(64, 128), nn.ReLU(), _residual(128), _halve()),
        nn.Flatten(),
        *(nn.Linear(128 * _area(input_shape, halved=3), 128), nn.ReLU()),
        nn.Linear(128, num_classes),
    )


def _convolution(inputs: int, outputs: int) -> "nn.Conv2d":
    from torch import nn

    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution


def _residual(channels: int) -> "nn.Module":
    """An identity and beside it normalisation and two convolutions.

    After He et al. 2016, arXiv:1603.05027 (the main path is left as it is). The branch
    gives 0 at first (Goyal et al. 2017, arXiv:1706.02677).
    """
    from torch import nn

    class Residual(nn.Sequential):
        def forward(self, x: "Tensor") -> "Tensor":
            return x + super().forward(x)  # type: ignore[no-any-return, no-untyped-call]

    last = _convolution(channels, channels)
    nn.init.zeros_(last.weight)
    return Residual(
        nn.GroupNorm(channels // 16, channels),
        *(_convolution(channels, channels), nn.ReLU(), last),
    )


def _size(shape: Shape) -> int:
    channels, height, width = shape
    return channels * height * width


def _halve() -> "nn.Module":
    """2x2 max-pooling that keeps an odd last row and column, so 1x1 stays 1x1."""
    from torch import nn

    return nn.MaxPool2d(2, ceil_mode=True)


def _area(shape: Shape, halved: int) -> int:
    """Pixels left of each channel after `_halve` was applied so many times."""
    side = 1 << halved
    return ceil(shape[1] / side) * ceil(shape[2] / side)


MODELS: dict[str, Callable[[Shape, int], "nn.Module"]] = {
    "logistic": logistic,
    "mlp": mlp,
    "cnn": cnn,
    "improved-cnn": improved_cnn,
    "lenet": lenet,
    "resnet": resnet,
}


def build(name: str, input_shape: Shape, num_classes: int, *, seed: int) -> "nn.Module":
    """Return the model of that name in `MODELS`, with weights drawn from `seed` alone.

    The caller's random state is left as it was.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](input_shape, num_classes)
