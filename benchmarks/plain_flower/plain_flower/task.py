"""Model and data: the digits and network of fl-app's default, the usual way."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def build_model() -> nn.Module:
    """Return the network of McMahan et al. (2017), for 8x8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 2 * 2, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def load_split() -> tuple[TensorDataset, TensorDataset]:
    """Return a training and a test split: four fifths and one."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = torch.tensor(digits.images[order, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target[order], dtype=torch.int64)
    cut = len(labels) * 4 // 5
    return (
        TensorDataset(images[:cut], labels[:cut]),
        TensorDataset(images[cut:], labels[cut:]),
    )


def load_client(
    part: int, parts: int, batch_size: int
) -> tuple[DataLoader, DataLoader]:
    """Return a client's training and validation batches: nine tenths and one."""
    train, _ = load_split()
    mine = torch.utils.data.Subset(train, range(part, len(train), parts))
    cut = len(mine) * 9 // 10
    fit = torch.utils.data.Subset(mine, range(cut))
    check = torch.utils.data.Subset(mine, range(cut, len(mine)))
    return (
        DataLoader(fit, batch_size=batch_size, shuffle=True),
        DataLoader(check, batch_size=batch_size),
    )


def train(model: nn.Module, batches: DataLoader, epochs: int, rate: float) -> float:
    """Train in place; return the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    model.train()
    for _ in range(epochs):
        total = 0.0
        for images, labels in batches:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / len(batches)


def test(model: nn.Module, batches: DataLoader) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    criterion = nn.CrossEntropyLoss(reduction="sum")
    loss, correct, number = 0.0, 0, 0
    model.eval()
    with torch.no_grad():
        for images, labels in batches:
            logits = model(images)
            loss += criterion(logits, labels).item()
            correct += (logits.argmax(1) == labels).sum().item()
            number += len(labels)
    return loss / number, correct / number
