import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.config import ConfigError
from fl_app.data.partition import PARTITIONERS, Partition, build
from tests.conftest import make_config

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 200))


def cut(num_clients: int, **options: object) -> Partition:
    config = make_config(num_clients=num_clients, **options)
    return build(config, LABELS, num_classes=10, num_clients=num_clients)


@pytest.mark.parametrize("partitioner", sorted(PARTITIONERS))
@settings(max_examples=25, deadline=None)
@given(num_clients=st.integers(5, 60), seed=st.integers(0, 2**40))
def test_a_partition_is_disjoint_complete_and_repeatable(
    partitioner: str, num_clients: int, seed: int
) -> None:
    options = {"partitioner": partitioner, "seed": seed, "dirichlet_alpha": 1.0}
    partition = cut(num_clients, **options)
    assert len(partition.clients) == num_clients
    owned = np.concatenate(partition.clients)
    np.testing.assert_array_equal(np.sort(owned), np.arange(len(LABELS)))
    again = cut(num_clients, **options)
    for one, other in zip(partition.clients, again.clients, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=25, deadline=None)
@given(fraction=st.floats(0, 0.99), client=st.integers(0, 9))
def test_training_and_validation_divide_a_clients_data(
    fraction: float, client: int
) -> None:
    partition = cut(10, partitioner="iid", validation_fraction=fraction)
    train, validation = partition.split(client)
    both = np.concatenate([train, validation])
    np.testing.assert_array_equal(np.sort(both), partition.clients[client])
    assert len(train) >= 1
    assert len(validation) == min(int(fraction * 200 + 0.5), 199)


def test_a_client_with_one_example_trains_on_it() -> None:
    partition = cut(2000, partitioner="iid", validation_fraction=0.9)
    train, validation = partition.split(7)
    assert (len(train), len(validation)) == (1, 0)


def test_iid_parts_are_equal_and_mixed() -> None:
    counts = cut(10, partitioner="iid", validation_fraction=0.0).label_counts()
    assert counts.sum(axis=1).tolist() == [200] * 10
    assert counts.min() > 5


def test_dirichlet_is_more_skewed_for_a_smaller_alpha() -> None:
    def skew(alpha: float) -> float:
        counts = cut(10, partitioner="dirichlet", dirichlet_alpha=alpha).label_counts()
        return float((counts.max(axis=1) / counts.sum(axis=1)).mean())

    assert skew(0.1) > skew(1.0) > skew(100.0)
    assert skew(1000.0) < 0.2


def test_classes_gives_each_client_its_number_of_classes() -> None:
    for wanted in (1, 2, 3, 10):
        counts = cut(
            20, partitioner="classes", classes_per_client=wanted
        ).label_counts()
        assert ((counts > 0).sum(axis=1) == wanted).all()
        assert (counts.sum(axis=0) > 0).all()


def test_shards_are_of_few_classes() -> None:
    counts = cut(20, partitioner="shards", shards_per_client=2).label_counts()
    assert (counts > 0).sum(axis=1).max() <= 4
    assert set(counts.sum(axis=1)) == {90}  # 2 shards of 50, less a tenth


def test_quantity_skews_sizes_and_leaves_nobody_empty() -> None:
    partition = cut(50, partitioner="quantity", dirichlet_alpha=0.1)
    sizes = [len(owned) for owned in partition.clients]
    assert min(sizes) >= 1
    assert max(sizes) > 5 * np.median(sizes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"partitioner": "dirichlet", "dirichlet_alpha": 0.01},
            "raise dirichlet-alpha",
        ),
        ({"partitioner": "shards", "shards_per_client": 11}, "makes 2200 shards"),
        (
            {"partitioner": "classes", "classes_per_client": 11},
            "classes-per-client = 11",
        ),
    ],
)
def test_a_partition_that_cannot_be_is_an_error_that_names_the_option(
    options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        cut(200, **options)


def test_classes_that_nobody_would_own_are_an_error() -> None:
    with pytest.raises(ConfigError, match="to nobody"):
        cut(3, partitioner="classes", classes_per_client=2)


def test_more_clients_than_examples_are_an_error() -> None:
    with pytest.raises(ConfigError, match="num-clients = 2001 is more than the 2000"):
        cut(2001, partitioner="iid")


def test_a_tiny_alpha_ends_and_says_what_to_change() -> None:
    with pytest.raises(ConfigError, match="raise dirichlet-alpha"):
        cut(50, partitioner="dirichlet", dirichlet_alpha=1e-300)


def test_ten_thousand_clients() -> None:
    labels = np.random.default_rng(1).integers(0, 10, 60_000)
    for partitioner in ("iid", "shards", "classes", "quantity"):
        config = make_config(partitioner=partitioner, num_clients=10_000)
        partition = build(config, labels, num_classes=10, num_clients=10_000)
        assert min(map(len, partition.clients)) >= 1


def test_the_golden_partition() -> None:
    """Guards D3: the same seed must divide data alike on every machine and release."""
    import hashlib

    digest = hashlib.sha256()
    for partitioner in sorted(PARTITIONERS):
        partition = cut(10, partitioner=partitioner, seed=42)
        for client in range(10):
            for indices in partition.split(client):
                digest.update(indices.astype("<i8").tobytes())
    assert digest.hexdigest() == GOLDEN


GOLDEN = "7f6ed0eb862e180252f1bf3f31b66771477d83fab2d1325dfc1ebc98bc8443e9"
