import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fl_app import gradients, models, running
from tests.conftest import make_config


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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_that_is_emulated_is_remarked_on(
    device: str, monkeypatch: pytest.MonkeyPatch, *, has: bool
) -> None:
    known = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: has)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", known)
    # A GPU's driver says yes where it emulates, unless asked not to count that.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has
    )
    said = gradients.slowness("bfloat16", device)
    assert bool(said) is not has
    assert has or ("GPU" if device == "cuda" else "processor") in said
    assert gradients.slowness("float32", device) == ""


def test_a_build_that_does_not_say_is_not_remarked_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert gradients.slowness("bfloat16", "cpu") == ""


def test_emulation_is_logged_once_and_told_to_who_starts_a_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gradients, "_computes_bfloat16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gradients._warn_if_slow.cache_clear()
    model = models.build("mlp", (2, 4, 4), 3, seed=0)
    with caplog.at_level(logging.WARNING, logger="flwr.fl_app"):
        gradients.backpropagation(model, "float32")
        assert not caplog.records
        for _ in range(3):
            gradients.backpropagation(model, "bfloat16")
    (record,) = caplog.records
    told = running.remark_on_precision(make_config(precision="bfloat16"))
    assert record.getMessage() == told == gradients.slowness("bfloat16", "cpu")
    assert running.remark_on_precision(make_config()) == ""
    gradients._warn_if_slow.cache_clear()
