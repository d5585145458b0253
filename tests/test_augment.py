import pytest
import torch
from torch.nn import functional as F

from fl_app.data.augment import AUGMENTATIONS, flip_crop, rotate_shift
from fl_app.task import Augment

BOTH = pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@BOTH
def test_each_image_is_changed_by_its_own_draw(augment: Augment) -> None:
    image = torch.rand(1, 1, 28, 28, generator=draws(5))
    batch = augment(image.repeat(8, 1, 1, 1), draws())
    assert all(not torch.equal(batch[i], batch[j]) for i in range(8) for j in range(i))


def test_shifts_and_rotations_are_small() -> None:
    image = torch.zeros(64, 1, 28, 28)
    image[:, :, 13:15, 13:15] = 255  # the centre
    moved = rotate_shift(image, draws())
    weight = moved.sum(dim=(1, 2, 3))
    positions = torch.arange(28.0)
    columns = (moved.sum(dim=(1, 2)) * positions).sum(dim=1) / weight
    rows = (moved.sum(dim=(1, 3)) * positions).sum(dim=1) / weight
    for centre in (columns, rows):
        assert (centre - 13.5).abs().max() < 2.6  # 0.07 * 28, and a rotation
        assert (centre - 13.5).abs().max() > 0.5


def test_nothing_is_mirrored() -> None:
    image = torch.zeros(200, 1, 28, 28)
    image[:, :, :, :9] = 255  # bright on the left
    moved = rotate_shift(image, draws())
    assert (
        moved[..., :10].sum(dim=(1, 2, 3)) > moved[..., 18:].sum(dim=(1, 2, 3))
    ).all()


@BOTH
def test_shape_range_and_repeatability(augment: Augment) -> None:
    image = torch.rand(5, 3, 9, 7, generator=draws()) * 255
    one, two = augment(image, draws(1)), augment(image, draws(1))
    assert torch.equal(one, two)
    assert one.shape == image.shape
    assert one.min() >= 0
    assert one.max() <= 255.001


def test_flip_crop_equals_flipping_and_cropping_one_by_one() -> None:
    images = torch.rand(64, 3, 8, 6, generator=draws())
    batch = flip_crop(images, draws(3))
    drawn = torch.rand((3, 64, 1), generator=draws(3))[..., 0]
    flipped = 0
    for i, image in enumerate(images):
        mirrored = bool(drawn[2, i] < 0.5)
        flipped += mirrored
        top, left = int(drawn[0, i] * 3), int(drawn[1, i] * 3)  # a border of 1 pixel
        padded = F.pad(image, (1, 1, 1, 1))
        crop = padded[:, top : top + 8, left : left + 6]
        assert torch.equal(batch[i], crop.flip(2) if mirrored else crop)
    assert 20 < flipped < 44
