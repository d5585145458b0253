"""Local training and evaluation in plain PyTorch; knows nothing of federation.

Images are tensors (N, C, H, W); batches are gathered, augmented and normalised
as a whole, without a data loader.
"""

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fl_app import convolutional, gradients, optim, schedules
from fl_app.batches import LAYOUT, Augment, Batches, Examples, Normalisation
from fl_app.config import RunConfig
from fl_app.resident import Snapshot, gather

__all__ = [
    "Augment",
    "Evaluation",
    "Examples",
    "Normalisation",
    "Snapshot",
    "Term",
    "TrainOptions",
    "default_device",
    "evaluate",
    "get_arrays",
    "place",
    "set_arrays",
    "train",
]


_CHUNK_OF_SMALL = 64
"""Images at a time that are evaluated by `convolutional`: what a core's cache holds."""
TIME_IS_UP = "the round's time was up before training ended"

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Term(Protocol):
    """A term beside the loss in the objective; see `strategies.interfaces.Term`."""

    @property
    def implicit(self) -> bool:
        """Whether it is stepped after SGD's step, and not a gradient before it."""

    def add_gradient(self) -> None:
        """Add the term's gradient to the parameters' gradients."""

    def step(self, step_size: float) -> None:
        """Move the parameters to the term's proximal point."""


@dataclass(frozen=True)
class TrainOptions:
    """How one client trains in one round."""

    local_epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    precision: str = "float32"
    max_gradient_norm: float = 0.0

    @classmethod
    def of_round(cls, config: RunConfig, round: int) -> "TrainOptions":
        """Return the run's options, with the learning rate of a round."""
        return cls(
            local_epochs=config.local_epochs,
            batch_size=config.batch_size,
            optimizer=config.optimizer,
            learning_rate=config.learning_rate
            * schedules.factor(
                config.learning_rate_schedule,
                round,
                num_rounds=config.num_server_rounds,
                decay=config.learning_rate_decay,
                warmup_rounds=config.warmup_rounds,
            ),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            precision=config.precision,
            max_gradient_norm=config.max_gradient_norm,
        )


@dataclass(frozen=True)
class Evaluation:
    """Sums over examples, so that results of several clients can be added."""

    num_examples: int
    num_correct: int
    loss: float
    """Mean cross-entropy per example, in nats; 0 where there is no example."""
    correct_per_class: list[int]
    examples_per_class: list[int]
    predicted_per_class: list[int]
    """How many examples the model said each class of."""

    @property
    def only_class(self) -> int | None:
        """The class that the model said of all examples; None if it said several."""
        said = [label for label, n in enumerate(self.predicted_per_class) if n]
        return said[0] if len(said) == 1 else None

    @property
    def accuracy(self) -> float:
        """Fraction of examples classified right."""
        return self.num_correct / self.num_examples

    @property
    def per_class_accuracy(self) -> list[float | None]:
        """Fraction classified right, per class; None for a class without examples."""
        return [
            right / number if number else None
            for right, number in zip(
                self.correct_per_class, self.examples_per_class, strict=True
            )
        ]


def train(
    model: nn.Module,
    examples: Examples,
    options: TrainOptions,
    normalise: Normalisation,
    *,
    seed: int,
    augment: Augment | None = None,
    term: Term | None = None,
    deadline: float = inf,
    max_steps: float = inf,
) -> float:
    """Train the model in place; return the mean loss per example over all steps.

    All local epochs are trained, or as much of them as `max_steps` steps are.

    Shuffling, augmentation and dropout are drawn from `seed` alone, and the caller's
    random state is left as it was. The last batch of an epoch may be smaller.

    Raises:
        FloatingPointError: the loss is not finite.
        TimeoutError: `deadline`, a time of the monotonic clock, passed.
    """
    device = next(model.parameters()).device
    parameters = [p for p in model.parameters() if p.requires_grad]
    step = optimizer(parameters, options)
    total = torch.zeros((), dtype=torch.float64, device=device)
    stepped = term if term and term.implicit and options.optimizer == "sgd" else None
    added = None if stepped else term
    loss_and_gradient = gradients.backpropagation(model, options.precision)
    if not model.training:
        model.train()
    seen = taken = 0
    with _seeded(seed, device) as draws:
        batches = Batches(
            *(examples, normalise, augment, draws, device),
            images_last=isinstance(loss_and_gradient, convolutional.Network),
        )
        for inputs, targets in batches.epochs(options.local_epochs, options.batch_size):
            if taken >= max_steps:
                break
            if monotonic() > deadline:
                raise TimeoutError(TIME_IS_UP)
            loss = loss_and_gradient(inputs, targets)
            if added is not None:
                added.add_gradient()
            step()
            if stepped is not None:
                stepped.step(options.learning_rate / (1 - options.momentum))
            total.add_(loss, alpha=len(targets))
            seen += len(targets)
            taken += 1
    return finite(float(total) / seen)


def finite(loss: float) -> float:
    """Return a training loss; raises FloatingPointError if it is not finite."""
    if not np.isfinite(loss):
        raise FloatingPointError(
            "the training loss is not finite: a smaller learning-rate may help"
        )
    return loss


def optimizer(
    parameters: list[nn.Parameter],
    options: TrainOptions,
    kept: list[torch.Tensor] | None = None,
) -> optim.Step:
    """Return the step of the options' optimiser; `kept` as in `optim`."""
    if options.optimizer == "adam":
        return optim.adam(
            parameters,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            max_gradient_norm=options.max_gradient_norm,
            kept=kept,
        )
    return optim.sgd(
        parameters,
        learning_rate=options.learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        max_gradient_norm=options.max_gradient_norm,
        kept=kept,
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Seed torch's global generator within the block; yield one of our own, on CPU."""
    on_cpu = device.type == "cpu"
    others = ((), "cuda") if on_cpu else ([device], device.type)
    with torch.random.fork_rng(others[0], device_type=others[1]):
        # As torch.manual_seed does, which walks the stack for each device not there.
        torch.default_generator.manual_seed(seed)
        if not on_cpu:
            torch.get_device_module(device).manual_seed(seed)
        yield draws_of(seed)


def draws_of(seed: int) -> torch.Generator:
    """Return what shuffling and augmentation are drawn from, on the CPU."""
    return torch.Generator().manual_seed(seed ^ 0x5DEECE66D)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    examples: Examples,
    normalise: Normalisation,
    *,
    num_classes: int,
    chunk: int = 500,
) -> Evaluation:
    """Return loss and accuracy over the examples, in eval mode, `chunk` at a time."""
    model.eval()
    examples = examples.gathered()
    targets = examples.labels.to(next(model.parameters()).device)
    loss = torch.zeros((), dtype=torch.float64, device=targets.device)
    predicted = torch.zeros_like(targets)
    if convolutional.network(model):
        chunk = min(chunk, _CHUNK_OF_SMALL)
    images, labels_of, said_of = (
        torch.split(each, chunk) if len(examples) else ()
        for each in (examples.images, targets, predicted)
    )
    found = _logits(model, images, normalise)
    for logits, labels, said in zip(found, labels_of, said_of, strict=True):
        loss += F.cross_entropy(logits, labels, reduction="sum")
        torch.argmax(logits, dim=1, out=said)
    # Counted on the CPU: on a GPU each count is waited for.
    labels, answers = targets.cpu(), predicted.cpu()
    correct, count, said_per_class = (
        torch.bincount(each, minlength=num_classes)
        for each in (labels[answers == labels], labels, answers)
    )
    return Evaluation(
        num_examples=len(examples),
        num_correct=int(correct.sum()),
        loss=float(loss) / max(1, len(examples)),
        correct_per_class=correct.tolist(),
        examples_per_class=count.tolist(),
        predicted_per_class=said_per_class.tolist(),
    )


def _logits(
    model: nn.Module, chunks: Sequence[torch.Tensor], normalise: Normalisation
) -> Iterator[torch.Tensor]:
    """Yield the outputs for each chunk of images, (B, num_classes)."""
    device = next(model.parameters()).device

    def of(images: torch.Tensor) -> torch.Tensor:
        inputs = normalise(images.to(device).to(torch.float32))
        if network := convolutional.network(model):
            return network.logits(inputs)
        return model(inputs.contiguous(memory_format=LAYOUT))  # type: ignore[no-any-return]

    threads = torch.get_num_threads()
    if threads == 1 or len(chunks) == 1 or convolutional.network(model) is None:
        yield from map(of, chunks)
        return
    with ThreadPoolExecutor(threads) as pool:  # what works on one core, on all
        yield from pool.map(of, chunks)


def get_arrays(model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """Return the model's state (parameters and buffers) as new arrays, by name."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if any(tensor.device.type != "cpu" for tensor in state.values()):
        state = _fetched(state)
    return {name: tensor.numpy().copy() for name, tensor in state.items()}


def _fetched(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of a device on the CPU; it is waited for once for each dtype."""
    found: dict[str, torch.Tensor] = {}
    for dtype in {tensor.dtype for tensor in tensors.values()}:
        alike = {name: t for name, t in tensors.items() if t.dtype == dtype}
        flat = torch.cat([tensor.reshape(-1) for tensor in alike.values()]).cpu()
        parts = torch.split(flat, [tensor.numel() for tensor in alike.values()])
        for (name, tensor), part in zip(alike.items(), parts, strict=True):
            found[name] = part.view(tensor.shape)
    return {name: found[name] for name in tensors}


def set_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Copy the arrays into the model, in place.

    Raises:
        ValueError: names, shapes or dtypes differ from the model's.
    """
    state = model.state_dict()
    if state.keys() != arrays.keys():
        odd = ", ".join(sorted(state.keys() ^ arrays.keys()))
        raise ValueError(f"the arrays are of another model; not in both: {odd}")
    with torch.no_grad():
        for name, tensor in state.items():
            source = torch.from_numpy(np.array(arrays[name]))
            if source.shape != tensor.shape or source.dtype != tensor.dtype:
                raise ValueError(
                    f"{name!r} is {source.dtype} {tuple(source.shape)}, the model's is "
                    f"{tensor.dtype} {tuple(tensor.shape)}"
                )
            tensor.copy_(source)


def default_device() -> torch.device:
    """Return the device this process was given: a GPU if it sees one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def place(model: nn.Module) -> nn.Module:
    """Return the model on this process's device.

    In one piece of memory where `resident` can do that; channels-last, which PyTorch's
    convolutions are fastest with, but for chains that `convolutional` can compute.
    """
    device = default_device()
    if device.type == "cuda":
        # Convolutions that give the same bits each time, and of float32: TensorFloat-32
        # has 10 bits of a number's 23. Who would have speed has bfloat16.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    elif device.type == "cpu":
        _keep_freed_memory()
    model = model.to(device)
    if convolutional.network(model) is None:
        model = model.to(memory_format=LAYOUT)
    gather(model)
    return model


def _keep_freed_memory() -> None:
    """Have the C library hand freed blocks to the next step, not back to the system.

    Each step frees and asks for the same tens of megabytes; fetching their pages anew
    takes a fifth of a convolutional network's time. Other C libraries go without.
    """
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    )
    if mallopt is not None:  # the numbers of glibc's malloc.h
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the largest it takes
        mallopt(_M_TRIM_THRESHOLD, 2**30)
