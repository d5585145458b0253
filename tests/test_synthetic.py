import numpy as np
import pytest

from fl_app.config import ConfigError
from fl_app.data import datasets, synthetic
from tests.conftest import make_config


def test_clients_sizes_and_the_split() -> None:
    arrays, described = synthetic.generate(1.0, 1.0, 30, seed=0)
    train = np.bincount(arrays["train-owners"])
    assert len(train) == len(described["owners"]) == 30
    assert train.min() >= 45  # 90 % of at least 50
    assert train.max() > 5 * np.median(train)  # log-normal
    share = len(arrays["test-labels"]) / len(arrays["train-labels"])
    assert share == pytest.approx(1 / 9, rel=0.02)
    assert arrays["train-images"].shape[1:] == (1, 1, 60)


def test_labels_are_those_of_the_clients_own_model() -> None:
    features, labels = synthetic._client(0.0, 0.0, seed=3, client=7)
    draws = synthetic.keyed_generator(3, "synthetic", client=7)
    draws.lognormal(4, 2), draws.normal(), draws.normal()
    weights, bias = draws.normal(0, 1, (10, 60)), draws.normal(0, 1, 10)
    expected = [int(np.argmax(weights @ x + bias)) for x in features]
    assert labels.tolist() == expected


def test_variances_fall_with_the_feature() -> None:
    features, _ = synthetic._client(1.0, 1.0, seed=12, client=11)
    many = np.concatenate(
        [
            x - x.mean(axis=0)
            for x, _ in (synthetic._client(1, 1, 0, k) for k in range(40))
        ]
    )
    expected = np.arange(1, 61) ** -1.2
    np.testing.assert_allclose(many.var(axis=0), expected, rtol=0.15)
    assert features.shape[1] == 60


def test_beta_moves_the_inputs_apart() -> None:
    def spread(beta: float) -> float:
        centres = [
            synthetic._client(0.0, beta, seed=0, client=k)[0].mean() for k in range(30)
        ]
        return float(np.std(centres))

    assert spread(5.0) > 3 * spread(0.0)


def test_the_seed_redraws_the_data() -> None:
    one, again, other = (
        datasets.load(make_config(dataset="synthetic", seed=s)) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.train_images, again.train_images)
    assert len(one.train_images) != len(other.train_images)


def test_the_recipe_is_the_papers() -> None:
    config = make_config(dataset="synthetic")
    assert (config.model, config.local_epochs, config.batch_size) == (
        "logistic",
        20,
        10,
    )
    assert (config.learning_rate, config.momentum) == (0.01, 0.0)
    partition = datasets.load(config).partition(config, num_nodes=2)
    assert len(partition.clients) == 30


def test_it_can_be_divided_otherwise_but_not_augmented() -> None:
    config = make_config(dataset="synthetic", partitioner="iid", num_clients=4)
    counts = datasets.load(config).partition(config, 1).label_counts().sum(axis=1)
    assert counts.max() - counts.min() <= 1
    with pytest.raises(ConfigError, match="augment = True is not allowed"):
        datasets.load(make_config(dataset="synthetic", augment=True))


def test_natural_needs_data_that_says_who_owns_it() -> None:
    config = make_config(partitioner="natural")
    with pytest.raises(ConfigError, match="does not say who owns what"):
        datasets.load(config).partition(config, 1)
