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
