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

    drawn = torch.rand((3, len(pixels)), generator=draws).to(pixels.device) * 2 - 1
    angle, shift = drawn[0] * MAX_ANGLE, drawn[1:] * 2 * MAX_SHIFT
    cos, sin = angle.cos(), angle.sin()
    rows = [cos, -sin, shift[0], sin, cos, shift[1]]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


AUGMENTATIONS = {"rotate-shift": rotate_shift}
