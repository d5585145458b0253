"""Loss and gradient of small convolutional networks, layer by layer, on one core.

For a chain of 5x5 convolutions (each followed by 2x2 max-pooling and ReLU) and linear
layers, as `lenet` is. Arrays have the images last, as `kernels` computes them. Equal to
automatic differentiation but for the last bits.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_app import softmax
from fl_app.batches import to_images_last

_SIDE = 5  # of a filter, in pixels
_MOST_CHANNELS = 16  # beyond it PyTorch's convolutions lose nothing


class Layer(Protocol):
    """A part of the network; remembers what it was last given."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs; the images are last in both."""

    def backward(self, gradient: Tensor) -> Tensor:
        """Set the parameters' `grad`; return the gradient by the inputs."""


class Convolution:
    """Convolved, pooled, rectified: (C, H, W, B) to (K, (H-4)//2, (W-4)//2, B)."""

    def __init__(self, layer: nn.Conv2d, *, first: bool) -> None:
        """Take over the layer's parameters; of the first, inputs need no gradient."""
        assert layer.bias is not None
        self._weight, self._bias = layer.weight, layer.bias
        self._first = first

    def forward(self, inputs: Tensor) -> Tensor:
        """See `Layer`.

        Raises:
            ValueError: the inputs have another number of channels than the filters.
        """
        from fl_app import kernels  # and with it Numba, which other models do not need

        channels, height, width, images = inputs.shape
        if channels != self._weight.shape[1]:
            raise ValueError(
                f"inputs have {channels} channels, filters {self._weight.shape[1]}"
            )
        sides = [(side - _SIDE + 1) // 2 for side in (height, width)]
        outputs = torch.empty((len(self._bias), *sides, images))
        self._places = np.empty(outputs.shape, np.int8)
        self._inputs = inputs.contiguous().numpy()
        self._filters = self._weight.contiguous().numpy()
        kernels.convolve(
            *(self._inputs, self._filters, self._bias.numpy()),
            *(outputs.numpy(), self._places),
        )
        return outputs

    def backward(self, gradient: Tensor) -> Tensor:
        """See `Layer`; of the first one it is an empty tensor."""
        from fl_app import kernels

        of_weights = np.empty_like(self._filters)
        of_bias = torch.empty_like(self._bias)
        of_inputs = torch.empty((0,) * 4 if self._first else self._inputs.shape)
        kernels.differentiate(
            *(self._inputs, self._filters, self._places),
            gradient.contiguous().numpy(),
            *(of_weights, of_bias.numpy(), of_inputs.numpy()),
        )
        by_weights = torch.from_numpy(of_weights)
        if not self._weight.is_contiguous():
            # In memory as the parameter lies, which the optimiser's step relies on.
            by_weights = torch.empty_like(self._weight).copy_(by_weights)
        self._weight.grad = by_weights
        self._bias.grad = of_bias
        return of_inputs


class Pad:
    """Zeros to the right of images and below them, before the first layer."""

    def __init__(self, layer: nn.ZeroPad2d) -> None:
        """Take over the padding."""
        _, self._right, _, self._below = layer.padding

    def forward(self, inputs: Tensor) -> Tensor:
        """See `Layer`."""
        return F.pad(inputs, (0, 0, 0, self._right, 0, self._below))

    def backward(self, gradient: Tensor) -> Tensor:
        """See `Layer`; nobody asks for it."""
        return gradient


class Flatten:
    """(C, H, W, B) to (C * H * W, B)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """See `Layer`."""
        self._shape = inputs.shape
        return inputs.flatten(0, 2)

    def backward(self, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        return gradient.reshape(self._shape)


class Linear:
    """(inputs, B) to (outputs, B)."""

    def __init__(self, layer: nn.Linear) -> None:
        """Take over the layer's parameters."""
        self._weight, self._bias = layer.weight, layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """See `Layer`."""
        self._inputs = inputs
        return torch.addmm(self._bias.unsqueeze(1), self._weight, inputs)

    def backward(self, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        self._weight.grad = gradient.mm(self._inputs.t())
        self._bias.grad = gradient.sum(1)
        return self._weight.t().mm(gradient)


class Relu:
    """Positive parts."""

    def forward(self, inputs: Tensor) -> Tensor:
        """See `Layer`."""
        self._outputs = inputs.clamp_min(0)
        return self._outputs

    def backward(self, gradient: Tensor) -> Tensor:
        """See `Layer`."""
        return torch.ops.aten.threshold_backward(gradient, self._outputs, 0)  # type: ignore[no-any-return]


class Network:
    """Computes a chain's loss and gradient; see `gradients.Backpropagation`."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Take the layers, first to last."""
        self._layers = layers

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Return (B, classes) of inputs (B, C, H, W)."""
        values = to_images_last(inputs)
        for layer in self._layers:
            values = layer.forward(values)
        return values.t()

    @torch.no_grad()
    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy; leave its gradient in the parameters."""
        loss, residual = softmax.cross_entropy(self.logits(inputs), targets)
        gradient = residual.t()
        for layer in reversed(self._layers):
            gradient = layer.backward(gradient)
        return loss


def network(model: nn.Module) -> Network | None:
    """Return what computes the model's gradient; None where PyTorch is to do it.

    That is for models of another kind and for GPUs. Hooks of layers are not called. One
    network is for one thread.
    """
    if type(model) is not nn.Sequential:
        return None
    layers = _layers(list(model))
    if not layers or not all(
        p.requires_grad and p.dtype == torch.float32 and p.device.type == "cpu"
        for p in model.parameters()
    ):
        return None
    return Network(layers)


def _layers(modules: list[nn.Module]) -> list[Layer]:
    """Return the layers of a chain, first to last; none if there are others."""
    layers: list[Layer] = []
    if modules and _is_padding(modules[0]):
        layers.append(Pad(modules.pop(0)))  # type: ignore[arg-type]
    first = True
    while _is_convolution(modules[:3], first=first):
        layers.append(Convolution(modules[0], first=first))  # type: ignore[arg-type]
        modules, first = modules[3:], False
    if first or not modules or not _is_flattening(modules.pop(0)):
        return []
    layers.append(Flatten())
    for module in modules:
        if type(module) is nn.Linear and module.bias is not None:
            layers.append(Linear(module))
        elif type(module) is nn.ReLU:
            layers.append(Relu())
        else:
            return []
    return layers


def _is_padding(module: nn.Module) -> bool:
    return type(module) is nn.ZeroPad2d and module.padding[::2] == (0, 0)


def _is_flattening(module: nn.Module) -> bool:
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def _is_convolution(modules: Sequence[nn.Module], *, first: bool) -> bool:
    """Say whether the modules are what `Convolution` computes, and faster."""
    if [type(module) for module in modules] != [nn.Conv2d, nn.MaxPool2d, nn.ReLU]:
        return False
    convolution, pooling = modules[0], modules[1]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(pooling, nn.MaxPool2d)
    return (
        convolution.kernel_size == (_SIDE, _SIDE)
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.padding == (0, 0)
        and convolution.groups == 1
        and convolution.bias is not None
        and convolution.out_channels % 2 == 0
        and convolution.out_channels <= _MOST_CHANNELS
        and (first or convolution.in_channels % 2 == 0)
        and pooling.kernel_size == pooling.stride == 2
        and pooling.padding == 0
        and pooling.dilation == 1
        and not pooling.ceil_mode
    )
