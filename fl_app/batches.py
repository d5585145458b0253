"""Examples in memory, and their way into a model: shuffled, augmented, normalised.

A batch is gathered and changed as a whole; there is no data loader.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

LAYOUT = torch.channels_last
"""How images and models lie in memory: what convolutions are fastest with."""

_NORMALISED_AT_ONCE = 2**20
"""Values of a client (4 MiB) that are normalised before its epochs: what a core's cache
holds. More of them would be written to memory and fetched again, several times over."""

_SHARE_OF_DEVICE = 1 / 16
"""Of a GPU's memory, for a data set. Several processes may share the GPU, each with a
copy, and a client's part is gathered beside it. Of all and not of the free memory: what
is free depends on who else has begun."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Changes a float batch (B, C, H, W) in [0, 255], each image by its own draw."""


@dataclass(frozen=True)
class Examples:
    """Images (N, C, H, W), uint8 or float32, and labels (N,) int64, in memory.

    Where some are `chosen`, the others are there too: they are for who asks `gathered`.
    """

    images: Tensor
    labels: Tensor
    chosen: Tensor | None = None
    """Which of them are meant (n,), int64; None for all, in their order."""

    def __len__(self) -> int:
        return len(self.labels if self.chosen is None else self.chosen)

    def gathered(self) -> "Examples":
        """Return the ones that are meant, and none beside them."""
        if self.chosen is None:
            return self
        return Examples(self.images[self.chosen], self.labels[self.chosen])

    def to(self, device: torch.device) -> "Examples":
        """Return them in the device's memory, to stay there for all that is to come.

        As they are where they would take more than `_SHARE_OF_DEVICE` of a GPU's.
        """
        if device.type == "cpu":
            return self
        memory = torch.get_device_module(device).mem_get_info(device)[1]
        if self.images.nbytes + self.labels.nbytes > memory * _SHARE_OF_DEVICE:
            return self
        chosen = None if self.chosen is None else self.chosen.to(device)
        return Examples(self.images.to(device), self.labels.to(device), chosen)


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, of pixels divided by `full_scale`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    full_scale: float = 255.0

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return float32 (B, C, H, W) with zero mean and unit variance."""
        shift, factor = _affine(self, pixels.device)
        return (pixels - shift) * factor


@lru_cache(maxsize=16)  # made once, not at every step
def _affine(of: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    shift, scale = (
        torch.tensor(values, device=device).view(-1, 1, 1) * of.full_scale
        for values in (of.mean, of.std)
    )
    return shift, 1 / scale


def to_images_last(inputs: Tensor) -> Tensor:
    """Return (B, C, H, W) as (C, H, W, B), contiguous; without a copy if it lies so."""
    return inputs.permute(1, 2, 3, 0).contiguous()


class Batches:
    """A client's examples as batches on the device, shuffled anew for each epoch."""

    def __init__(
        self,
        examples: Examples,
        normalise: Normalisation,
        augment: Augment | None,
        draws: torch.Generator,
        device: torch.device,
        *,
        images_last: bool = False,
    ) -> None:
        """Prepare the examples.

        Args:
            examples: the client's.
            normalise: what pixels go through.
            augment: what they go through before; None for nothing.
            draws: what the order and the augmentation are drawn from.
            device: where batches are to be.
            images_last: batches lie in memory as (C, H, W, B), and not in `LAYOUT`.
        """
        self._shape = examples.images.shape[1:]
        self._normalise = normalise
        self._augment = augment
        self._draws = draws
        self._device = device
        self._images_last = images_last
        batch_by_batch = augment is not None or images_last
        few = len(examples) * self._shape.numel() <= _NORMALISED_AT_ONCE
        self._ready = few and not batch_by_batch
        images, labels = examples.images, examples.labels
        self._chosen = examples.chosen
        """Where in the images the client's are; None once they are gathered."""
        if self._chosen is not None:
            labels = labels.index_select(0, self._chosen)
            if not batch_by_batch:
                images = images.index_select(0, self._chosen)
                self._chosen = None
        self._labels = labels.to(device)
        if self._ready:
            images = normalise(images.to(device).to(torch.float32))
        elif augment is None:  # an image a row, its pixels in the order of the batches'
            images = images.to(device)
            if not images_last:
                images = images.permute(0, 2, 3, 1)
            images = images.reshape(len(images), -1)
        self._images = images

    def epochs(self, number: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of so many epochs; see `epoch`."""
        for _ in range(number):
            yield from self.epoch(batch_size)

    def epoch(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs (B, C, H, W) float32 and targets (B,); the last may be fewer."""
        order = torch.randperm(len(self._labels), generator=self._draws)
        there = order.to(self._device, non_blocking=True)
        labels = self._labels.index_select(0, there)
        if self._images.device == self._device:
            order = there
        if self._ready:
            inputs = self._of_normalised(order, batch_size)
        elif self._augment is not None:
            inputs = self._augmented(self._places(order), batch_size, self._augment)
        elif self._images_last:
            inputs = self._of_columns(self._places(order), batch_size)
        else:
            inputs = self._of_rows(order, batch_size)
        yield from zip(inputs, torch.split(labels, batch_size), strict=True)

    def _places(self, order: Tensor) -> Tensor:
        """Return the places in the images of the client's examples in that order."""
        return order if self._chosen is None else self._chosen.index_select(0, order)

    def _of_normalised(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield views of one gather for the whole epoch."""
        images = self._images.index_select(0, order)
        images = images.contiguous(memory_format=LAYOUT)
        yield from torch.split(images, batch_size)

    def _of_rows(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Gather, normalise and lay out each batch where it fits the cache."""
        channels, height, width = self._shape
        shift, factor = (
            each.view(-1).repeat(height * width)
            for each in _affine(self._normalise, self._device)
        )
        for chosen in torch.split(order, batch_size):
            pixels = self._images.index_select(0, chosen).to(torch.float32)
            pixels.sub_(shift).mul_(factor)
            yield pixels.view(-1, height, width, channels).permute(0, 3, 1, 2)

    def _of_columns(self, places: Tensor, batch_size: int) -> Iterator[Tensor]:
        """As `_of_rows`, an image a column."""
        channels, height, width = self._shape
        affine = _affine(self._normalise, self._device)
        shift, factor = (each.view(-1, 1) for each in affine)
        for chosen in torch.split(places, batch_size):
            rows = self._images.index_select(0, chosen)
            pixels = torch.empty((rows.shape[1], len(rows)), device=self._device)
            pixels.copy_(rows.t())
            pixels.view(channels, -1).sub_(shift).mul_(factor)
            yield pixels.view(channels, height, width, -1).permute(3, 0, 1, 2)

    def _augmented(
        self, places: Tensor, batch_size: int, augment: Augment
    ) -> Iterator[Tensor]:
        for chosen in torch.split(places, batch_size):
            images = self._images.index_select(0, chosen)
            pixels = augment(images.to(self._device).to(torch.float32), self._draws)
            yield self._laid_out(self._normalise(pixels))

    def _laid_out(self, inputs: Tensor) -> Tensor:
        if self._images_last:
            return to_images_last(inputs).permute(3, 0, 1, 2)
        return inputs.contiguous(memory_format=LAYOUT)
