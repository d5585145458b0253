"""Synthetic(alpha, beta): the FedProx paper's generated data.

Li et al. 2020, arXiv:1812.06127, section 5.1 (after Shamir et al. 2014). Client k draws

    u_k ~ N(0, alpha), W_k, b_k ~ N(u_k, 1)      (10 x 60, 10): how its model differs
    B_k ~ N(0, beta),  v_k ~ N(B_k, 1)           (60): how its inputs differ
    x ~ N(v_k, S), S diagonal, S_jj = j^-1.2;    y = argmax softmax(W_k x + b_k)

for lognormal(4, 2) + 50 examples, of which 90 % are for training and 10 % for the test.
Whether alpha and beta are variances or deviations the paper leaves open; as in its
authors' code they are deviations here (at 0 and 1 there is no difference).
"""

from typing import Any

import numpy as np

from strategies.randomness import keyed_generator

NUM_FEATURES, NUM_CLASSES = 60, 10
_LARGEST = 20_000  # examples of one client; the log-normal's tail has no end
_TRAIN_SHARE = 0.9

Array = np.ndarray[Any, Any]


def generate(
    alpha: float, beta: float, num_clients: int, seed: int
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return features (N, 1, 1, 60) float32, labels and owners, and a description."""
    train: list[tuple[Array, Array]] = []
    test: list[tuple[Array, Array]] = []
    for client in range(num_clients):
        features, labels = _client(alpha, beta, seed, client)
        cut = int(_TRAIN_SHARE * len(labels))
        train.append((features[:cut], labels[:cut]))
        test.append((features[cut:], labels[cut:]))
    owners = [np.full(len(y), k, np.int64) for k, (_, y) in enumerate(train)]
    arrays: dict[str, Array] = {"train-owners": np.concatenate(owners)}
    for name, parts in (("train", train), ("test", test)):
        stacked = np.concatenate([x for x, _ in parts]).astype(np.float32)
        arrays[f"{name}-images"] = stacked.reshape(-1, 1, 1, NUM_FEATURES)
        arrays[f"{name}-labels"] = np.concatenate([y for _, y in parts])
    return arrays, {
        "class-names": [str(c) for c in range(NUM_CLASSES)],
        "mean": [0.0],
        "std": [1.0],
        "full-scale": 1.0,
        "owners": [str(k) for k in range(num_clients)],
    }


def _client(alpha: float, beta: float, seed: int, client: int) -> tuple[Array, Array]:
    draws = keyed_generator(seed, "synthetic", client=client)
    number = min(_LARGEST, int(draws.lognormal(4, 2)) + 50)
    u, b_mean = draws.normal(0, alpha), draws.normal(0, beta)
    weights = draws.normal(u, 1, (NUM_CLASSES, NUM_FEATURES))
    bias = draws.normal(u, 1, NUM_CLASSES)
    centre = draws.normal(b_mean, 1, NUM_FEATURES)
    deviation = np.arange(1, NUM_FEATURES + 1) ** (-1.2 / 2)
    features = centre + deviation * draws.normal(0, 1, (number, NUM_FEATURES))
    labels = (features @ weights.T + bias).argmax(axis=1)
    return features, labels.astype(np.int64)
