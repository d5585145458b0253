from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fl_app import models, optim


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_steps_equal_those_of_torch_bit_for_bit(
    kind: str, momentum: float, weight_decay: float
) -> None:
    results = []
    for ours in (True, False):
        model = models.build("improved-cnn", (1, 8, 8), 10, seed=1).eval()
        parameters = list(model.parameters())
        step: optim.Step
        if kind == "adam":
            if ours:
                step = optim.adam(
                    parameters, learning_rate=0.01, weight_decay=weight_decay
                )
            else:
                step = torch.optim.Adam(
                    parameters, lr=0.01, weight_decay=weight_decay, fused=True
                ).step
        elif ours:
            step = optim.sgd(
                parameters,
                learning_rate=0.1,
                momentum=momentum,
                weight_decay=weight_decay,
            )
        else:
            step = torch.optim.SGD(
                parameters,
                lr=0.1,
                momentum=momentum,
                weight_decay=weight_decay,
                fused=True,
            ).step
        images = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)
        for _ in range(4):
            model.zero_grad()
            F.cross_entropy(model(images), torch.arange(4)).backward()
            step()
        results.append(torch.cat([p.detach().flatten() for p in parameters]))
    assert torch.equal(*results)


def test_a_hand_computed_sgd_step() -> None:
    w = torch.tensor([1.0], requires_grad=True)
    step = optim.sgd([w], learning_rate=0.1, momentum=0.5, weight_decay=0.0)
    for expected in (0.8, 0.5):  # v = 2, then 0.5 * 2 + 2 = 3
        w.grad = torch.tensor([2.0])
        step()
        assert w.item() == pytest.approx(expected)


def test_a_parameter_without_a_gradient_is_an_error() -> None:
    w = torch.tensor([1.0], requires_grad=True)
    step = optim.sgd([w], learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    with pytest.raises(RuntimeError, match="no part in the loss"):
        step()


@pytest.mark.parametrize("longest", [0.5, 100.0])
def test_long_gradients_are_scaled_as_torch_does_it(longest: float) -> None:
    draws = torch.Generator().manual_seed(0)
    mine = [torch.randn(shape, generator=draws) for shape in ((3, 4), (5,), ())]
    theirs = [torch.nn.Parameter(torch.zeros_like(g)) for g in mine]
    for parameter, gradient in zip(theirs, mine, strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(theirs, longest)
    optim.clip(mine, longest)
    torch.testing.assert_close(mine, [p.grad for p in theirs])


def test_a_limit_of_zero_leaves_gradients_as_they_are() -> None:
    gradient = torch.tensor([1e9])
    optim.clip([gradient], 0.0)
    assert gradient.item() == 1e9


@pytest.mark.parametrize("make", [optim.sgd, optim.adam])
def test_a_step_clips_before_it_moves(make: Any) -> None:
    moved = torch.nn.Parameter(torch.zeros(2))
    moved.grad = torch.tensor([30.0, 40.0])
    momentum = {"momentum": 0.0} if make is optim.sgd else {}
    step = make(
        [moved], learning_rate=1.0, weight_decay=0.0, max_gradient_norm=5.0, **momentum
    )
    step()
    torch.testing.assert_close(moved.grad, torch.tensor([3.0, 4.0]))
