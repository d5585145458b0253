import numpy as np
import pytest
import torch
from torch import nn

from fl_app import models, task
from strategies import available, build, load
from strategies.fedprox import FedProx, ProximalTerm
from tests.conftest import make_config

EXAMPLES = task.Examples(
    torch.randint(
        0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator()
    ),
    torch.arange(40) % 10,
)
NORMALISE = task.Normalisation((0.3,), (0.4,))


def train(mu: float | None, *, name: str = "mlp", rate: float = 0.05) -> nn.Module:
    """Train locally with FedProx's client half, or with FedAvg's for None."""
    model = models.build(name, (1, 8, 8), 10, seed=1)
    options = task.TrainOptions(2, 8, "sgd", rate, 0.9, 0.0)

    def local(*, term: task.Term | None = None) -> dict[str, float]:
        loss = task.train(model, EXAMPLES, options, NORMALISE, seed=5, term=term)
        return {"loss": loss}

    if mu is None:
        load("fedavg").client_train(model, local, {})
    else:
        FedProx.client_train(model, local, {"proximal-mu": mu})
    return model


def distance(model: nn.Module, name: str = "mlp") -> float:
    start = models.build(name, (1, 8, 8), 10, seed=1)
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    return sum((a - b).square().sum().item() for a, b in pairs) ** 0.5


def moved(w_t: torch.Tensor, w: torch.Tensor, mu: float) -> ProximalTerm:
    """Return the term anchored at w_t, with w where it is given."""
    parameter = w_t.clone().requires_grad_()
    term = ProximalTerm([parameter], mu)
    with torch.no_grad():
        parameter.copy_(w)
    return term


def random_term(mu: float) -> tuple[ProximalTerm, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    w_t, w = torch.randn(50, generator=draws), torch.randn(50, generator=draws)
    return moved(w_t, w, mu), w_t, w


def test_the_norm_is_squared() -> None:
    w_t, w = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([3.0, 0.0, 5.0])
    # mu / 2 * (3^2 + 0 + 4^2) = 0.1 * 25
    assert moved(w_t, w, 0.2).value().item() == pytest.approx(2.5)


def test_the_gradient_of_the_term_is_mu_times_the_difference() -> None:
    term, w_t, w = random_term(0.3)
    (parameter,) = term._parameters
    (gradient,) = torch.autograd.grad(term.value(), [parameter])
    torch.testing.assert_close(gradient, 0.3 * (w - w_t), atol=1e-6, rtol=0)
    parameter.grad = torch.ones(50)
    term.add_gradient()
    torch.testing.assert_close(parameter.grad, 1 + gradient, atol=1e-6, rtol=0)


def test_the_step_taken_is_the_terms_gradient_at_the_new_point() -> None:
    term, w_t, w = random_term(0.7)
    term.step(0.2)
    (parameter,) = term._parameters
    reached = parameter.detach()
    (gradient,) = torch.autograd.grad(term.value(), [parameter])
    torch.testing.assert_close((w - reached) / 0.2, gradient, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, 0.7 * (reached - w_t), atol=1e-6, rtol=0)


def test_a_hand_computed_step() -> None:
    term = moved(torch.tensor([1.0]), torch.tensor([4.0]), 2.0)
    term.step(0.5)
    assert term._parameters[0].item() == 2.5  # 1 + (4 - 1) / (1 + 0.5 * 2)


@pytest.mark.parametrize(
    ("optimizer", "momentum", "rate"),
    [("sgd", 0.0, 0.2), ("sgd", 0.9, 0.05), ("adam", 0.0, 0.005)],
)
def test_training_comes_to_rest_at_a_minimum_of_the_whole_objective(
    optimizer: str, momentum: float, rate: float
) -> None:
    """There the gradients of F and of the term cancel, whatever the optimiser."""
    mu = 0.5
    model = models.build("logistic", (1, 8, 8), 10, seed=1)
    term = ProximalTerm(list(model.parameters()), mu)
    options = task.TrainOptions(600, 40, optimizer, rate, momentum, 0.0)
    task.train(model, EXAMPLES, options, NORMALISE, seed=5, term=term)
    inputs = NORMALISE(EXAMPLES.images.float())
    loss = torch.nn.functional.cross_entropy(model(inputs), EXAMPLES.labels)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(loss, parameters)
    theirs = torch.autograd.grad(term.value(), parameters)
    size = sum(g.square().sum() for g in ours) ** 0.5
    rest = sum((a + b).square().sum() for a, b in zip(ours, theirs, strict=True)) ** 0.5
    assert size > 0.1
    assert rest < 0.01 * size


def test_mu_zero_is_fedavg_bit_for_bit() -> None:
    for name in ("mlp", "improved-cnn"):
        plain, proximal = (task.get_arrays(train(mu, name=name)) for mu in (None, 0.0))
        for key, array in plain.items():
            assert array.tobytes() == proximal[key].tobytes()


def test_a_huge_mu_keeps_the_model_where_it_was() -> None:
    moved = distance(train(None))
    assert moved > 0.1
    assert distance(train(1e8)) < 1e-5
    assert np.isfinite(distance(train(1e30)))


def test_a_larger_mu_pulls_harder() -> None:
    moved = [distance(train(mu)) for mu in (0.0, 0.1, 1.0, 10.0)]
    assert moved == sorted(moved, reverse=True)


def test_every_step_is_pulled_and_the_anchor_stays() -> None:
    # With lr * mu -> infinity each step ends at w_t, so any number of steps does.
    assert distance(train(1e12, rate=0.01)) < 1e-6


def test_buffers_are_no_part_of_the_term() -> None:
    # The batch-norm statistics must move freely, whatever mu.
    moved = train(1e8, name="improved-cnn").state_dict()["1.running_mean"]
    assert moved.abs().max() > 1e-3


def test_the_metric_is_the_value_of_the_term() -> None:
    model = models.build("logistic", (1, 8, 8), 10, seed=1)

    def local(*, term: task.Term | None = None) -> dict[str, float]:
        with torch.no_grad():
            next(model.parameters()).add_(0.01)  # 640 weights by 0.01 each
        return {"loss": 0.5}

    metrics = FedProx.client_train(model, local, {"proximal-mu": 2.0})
    assert metrics["proximal-loss"] == pytest.approx(640 * 0.01**2, rel=1e-4)


def test_a_negative_mu_is_refused() -> None:
    with pytest.raises(ValueError, match="proximal-mu must be >= 0, got -1"):
        FedProx(seed=0, proximal_mu=-1.0)


def test_the_registry() -> None:
    assert available() == [
        *("fedadam", "fedavg", "fedavgm", "fedbn", "fedmedian", "fednova", "fedprox"),
        *("fedyogi", "scaffold", "trimmed-mean"),
    ]
    with pytest.raises(ValueError, match="there are: fedadam, fedavg, fedavgm"):
        load("fedmagic")


def test_a_strategy_is_built_with_the_options_it_names() -> None:
    config = make_config(strategy="fedprox", proximal_mu=0.25, fraction_train=0.5)
    strategy = build("fedprox", config.options(), {})
    assert isinstance(strategy, FedProx)
    assert (strategy.proximal_mu, strategy.fraction_train) == (0.25, 0.5)
    assert strategy.client_options(1) == {"proximal-mu": 0.25}
    with pytest.raises(TypeError, match="beta"):
        build("fedprox", config.options(), {"beta": 1})
