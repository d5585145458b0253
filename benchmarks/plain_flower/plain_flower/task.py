"""Models and data, the usual way: digits, or images in a folder of Parquet files."""

from functools import cache

import numpy as np
import torch
from datasets import load_dataset
from flwr_datasets.partitioner import IidPartitioner
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision.transforms import Compose, Normalize, ToTensor

TRANSFORMS = Compose([ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])


def build_model(data: str) -> nn.Module:
    """Return a network for 8x8 digits, or one for 32x32 images in colour.

    The first is that of McMahan et al. (2017), the other the one of PyTorch's and
    Flower's first tutorials: 62,006 parameters.
    """
    if not data:
        return nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 2 * 2, 512), nn.ReLU(), nn.Linear(512, 10),
        )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 5 * 5, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def load_test(data: str) -> DataLoader:
    """Return the batches of the test split."""
    test = _images(data, "test") if data else _digits()[1]
    return DataLoader(test, batch_size=100, collate_fn=_collate)


def load_client(
    data: str, part: int, parts: int, batch_size: int, held_out: float
) -> tuple[DataLoader, DataLoader]:
    """Return a client's training and validation batches."""
    if data:
        kept, held = _images_of(part, data, parts, held_out)
    else:
        kept, held = _digits_of(part, parts, held_out)
    return (
        DataLoader(kept, batch_size=batch_size, shuffle=True, collate_fn=_collate),
        DataLoader(held, batch_size=batch_size, collate_fn=_collate),
    )


def _digits_of(part: int, parts: int, held_out: float) -> tuple[Dataset, Dataset]:
    train, _ = _digits()
    mine = Subset(train, range(part, len(train), parts))
    cut = round(len(mine) * (1 - held_out))
    return Subset(mine, range(cut)), Subset(mine, range(cut, len(mine)))


def _images_of(
    part: int, data: str, parts: int, held_out: float
) -> tuple[Dataset, Dataset]:
    mine = _parts(data, parts).load_partition(part)
    if not held_out:
        return mine.with_transform(_transformed), Subset(mine, [])
    split = mine.train_test_split(test_size=held_out, seed=42)
    split = split.with_transform(_transformed)
    return split["train"], split["test"]


def _digits() -> tuple[TensorDataset, TensorDataset]:
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


def _images(data: str, split: str) -> Dataset:
    files = {split: f"{data}/{split}-*.parquet"}
    return load_dataset("parquet", data_files=files)[split].with_transform(_transformed)


@cache  # one for all clients of a process, as in Flower's quickstart
def _parts(data: str, parts: int) -> IidPartitioner:
    partitioner = IidPartitioner(num_partitions=parts)
    files = {"train": f"{data}/train-*.parquet"}
    partitioner.dataset = load_dataset("parquet", data_files=files)["train"]
    return partitioner


def _transformed(batch: dict) -> dict:
    images, labels = (next(batch[k] for k in batch if n in k) for n in ("im", "label"))
    return {"image": [TRANSFORMS(image) for image in images], "label": labels}


def _collate(examples: list) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(examples[0], dict):
        examples = [(example["image"], example["label"]) for example in examples]
    images, labels = zip(*examples, strict=True)
    return torch.stack(images), torch.tensor(labels)


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
