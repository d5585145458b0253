"""Random changes to training images: drawn per image, applied to the batch at once."""

from math import pi
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_ANGLE = 10 / 180 * pi
"""Largest rotation either way, in radians."""
MAX_SHIFT = 0.07
"""Largest shift either way, as a fraction of the image's side (2 of 28 pixels)."""


def rotate_shift(pixels: "Tensor", draws: "torch.Generator") -> "Tensor":
    """Rotate and shift each image a little; what enters from outside is black.

    For drawn characters. They are not mirrored: a mirrored digit is no digit.

    Args:
        pixels: (B, C, H, W) float.
        draws: the generator all draws come from, on the CPU.
    """
    import torch
    from torch.nn import functional as F

    drawn = torch.rand((3, len(pixels)), generator=draws) * 2 - 1
    drawn = drawn.to(pixels.device, non_blocking=True)
    angle, shift = drawn[0] * MAX_ANGLE, drawn[1:] * 2 * MAX_SHIFT
    cos, sin = angle.cos(), angle.sin()
    rows = [cos, -sin, shift[0], sin, cos, shift[1]]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


PADDING = 0.125
"""Border around an image before it is cropped, as a fraction of its side (4 of 32)."""


def flip_crop(pixels: "Tensor", draws: "torch.Generator") -> "Tensor":
    """Mirror half of the images left to right; crop each from a black border.

    For photographs (He et al. 2016, arXiv:1512.03385, section 4.2). One gather does
    both for the whole batch.

    Args:
        pixels: (B, C, H, W) float.
        draws: the generator all draws come from, on the CPU.
    """
    import torch
    from torch.nn import functional as F

    batch, channels, height, width = pixels.shape
    border = [int(PADDING * side + 0.5) for side in (height, width)]
    padded = F.pad(pixels, (border[1], border[1], border[0], border[0]))
    drawn = torch.rand((3, batch, 1), generator=draws)
    drawn = drawn.to(pixels.device, non_blocking=True)
    down, across = (torch.arange(n, device=pixels.device) for n in (height, width))
    rows = (drawn[0] * (2 * border[0] + 1)).long() + down
    columns = across.expand(batch, -1)
    columns = torch.where(drawn[2] < 0.5, columns.flip(1), columns)
    columns = (drawn[1] * (2 * border[1] + 1)).long() + columns
    index = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(
        batch, 1, -1
    )
    chosen = padded.flatten(2).gather(2, index.expand(-1, channels, -1))
    return chosen.view(pixels.shape)


AUGMENTATIONS = {"rotate-shift": rotate_shift, "flip-crop": flip_crop}
