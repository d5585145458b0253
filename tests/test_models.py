import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fl_app import models

SHAPES = [(1, 28, 28), (1, 8, 8), (3, 32, 32), (3, 17, 9), (1, 1, 1)]


@pytest.mark.parametrize("name", sorted(models.MODELS))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_model_learns_on_any_shape(
    name: str, shape: tuple[int, int, int]
) -> None:
    model = models.build(name, shape, 7, seed=0)
    logits = model(torch.rand(4, *shape))
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("logistic", 784 * 10 + 10),
        ("mlp", 784 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10),
        ("cnn", 1_663_370),
        ("lenet", 44_426),
    ],
)
def test_numbers_of_parameters(name: str, number: int) -> None:
    model = models.build(name, (1, 28, 28), 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == number


def test_lenet_on_colour_images_has_62_006_parameters() -> None:
    model = models.build("lenet", (3, 32, 32), 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 62_006


def test_improved_cnn_has_its_parts() -> None:
    kinds = [
        type(m).__name__ for m in models.build("improved-cnn", (1, 28, 28), 10, seed=0)
    ]
    assert kinds.count("Conv2d") == kinds.count("BatchNorm2d") == 2
    assert kinds.count("MaxPool2d") == 2
    assert kinds.count("Dropout") == 1
    assert kinds.count("Linear") == 2  # the hidden layer and the output


def test_weights_depend_on_the_seed_alone_and_leave_the_callers_draws() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = models.build("mlp", (1, 8, 8), 10, seed=5)
    assert torch.equal(torch.rand(3), expected)
    two = models.build("mlp", (1, 8, 8), 10, seed=5)
    other = models.build("mlp", (1, 8, 8), 10, seed=6)
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


@pytest.mark.parametrize("name", ["cnn", "improved-cnn", "lenet"])
def test_relu_after_pooling_is_relu_before_it(name: str) -> None:
    ours = models.build(name, (1, 28, 28), 10, seed=3)
    layers = list(ours)
    for at, layer in enumerate(ours):
        if isinstance(layer, nn.MaxPool2d):
            layers[at : at + 2] = [layers[at + 1], layer]
    assert list(ours) != layers
    papers = nn.Sequential(*layers)
    inputs = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % 10
    gradients = []
    for model in (ours, papers):
        torch.manual_seed(0)  # of dropout
        loss = F.cross_entropy(model(inputs), targets)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.equal(mine, theirs)
