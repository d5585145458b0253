import pytest
import torch
from torch import nn

from fl_app import gradients, models


def batch(classes: int, size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    inputs = 3 * torch.randn((size, 2, 4, 4), generator=draws)
    return inputs, torch.randint(0, classes, (size,), generator=draws)


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_closed_form_is_the_derivative_of_the_loss(size: int, classes: int) -> None:
    model = models.build("logistic", (2, 4, 4), classes, seed=0).double()
    inputs, targets = batch(classes, size)
    inputs = inputs.double()
    found = []
    for way in (gradients.backpropagation, gradients.automatic):
        loss = way(model, "float32")(inputs, targets)
        found.append(
            [loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    assert len(found[0]) == 3
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def test_the_closed_form_is_used_for_softmax_regression_alone() -> None:
    logistic = models.build("logistic", (2, 4, 4), 3, seed=0)
    ways = {
        name: gradients.backpropagation(model, precision).__qualname__.split(".")[0]
        for name, model, precision in (
            ("logistic", logistic, "float32"),
            ("bfloat16", logistic, "bfloat16"),
            ("mlp", models.build("mlp", (2, 4, 4), 3, seed=0), "float32"),
            (
                "without bias",
                nn.Sequential(nn.Flatten(), nn.Linear(32, 3, bias=False)),
                "float32",
            ),
        )
    }
    assert ways == {
        "logistic": "softmax_regression",
        "bfloat16": "automatic",
        "mlp": "automatic",
        "without bias": "automatic",
    }


def test_huge_logits_do_not_overflow() -> None:
    model = models.build("logistic", (2, 4, 4), 3, seed=0)
    inputs, targets = batch(3)
    loss = gradients.backpropagation(model, "float32")(1e6 * inputs, targets)
    assert torch.isfinite(loss)
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in model.parameters()
    )
