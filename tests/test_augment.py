import torch

from fl_app.data.augment import rotate_shift


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_image_is_changed_by_its_own_draw() -> None:
    image = torch.zeros(1, 1, 28, 28)
    image[:, :, 8:20, 10:18] = 255
    batch = rotate_shift(image.repeat(16, 1, 1, 1), draws())
    assert all(not torch.equal(batch[i], batch[j]) for i in range(16) for j in range(i))


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


def test_shape_range_and_repeatability() -> None:
    image = torch.rand(5, 3, 9, 7, generator=draws()) * 255
    one, two = rotate_shift(image, draws(1)), rotate_shift(image, draws(1))
    assert torch.equal(one, two)
    assert one.shape == image.shape
    assert one.min() >= 0
    assert one.max() <= 255.001
