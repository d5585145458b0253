"""Local training of several clients at once: one model with an axis of clients.

For models so small that starting an operation takes longer than carrying it out: what
would be an operation for each client is one for all (`torch.func.vmap`). Each client
has its own weights, batches, optimiser state and draws throughout, so the result is
that of training one after the other, but for the order in which an operation adds its
numbers. Not for models with statistics of batches or with dropout.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from math import ceil, inf
from threading import Condition
from time import monotonic
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from fl_app import gradients, task
from fl_app.batches import Augment, Batches, Examples, Normalisation

log = logging.getLogger("flwr.fl_app")

Result = TypeVar("Result")

_NO_TARGET = -100
"""What `cross_entropy` leaves out of its mean."""


class Train(Protocol):
    """Trains a model in place; returns the mean loss per example over all steps."""

    def __call__(
        self,
        model: nn.Module,
        examples: Examples,
        options: task.TrainOptions,
        normalise: Normalisation,
        *,
        seed: int,
        augment: Augment | None = None,
        term: task.Term | None = None,
        deadline: float = inf,
        max_steps: float = inf,
    ) -> float:
        """See `task.train`."""


Work = Callable[[nn.Module, Train], Result]
"""All that is done for one client, who trains the model it is given, once."""


def check(model: nn.Module) -> None:
    """Raises: ValueError: the model can only be trained for one client at a time."""
    layers = list(model.modules())
    if any(isinstance(layer, nn.modules.batchnorm._NormBase) for layer in layers):
        raise ValueError("its batch normalisation takes statistics of whole batches")
    if any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in layers):
        raise ValueError("its dropout draws for whole batches")
    if (buffer := next(model.named_buffers(), None)) is not None:
        raise ValueError(f"its buffer {buffer[0]!r} is not trained by gradients")


def run(
    models: Sequence[nn.Module],
    start: nn.Module,
    works: Sequence[Work[Result]],
    *,
    or_one_by_one: bool = True,
) -> list[Result | Exception]:
    """Do the clients' works, and their training together.

    One work runs at a time, each until it asks for its training.

    Args:
        models: copies of `start`, one for each work; overwritten.
        start: the model that each client starts from; it stays as it is.
        works: one for each client. Their options differ in epochs at most.
        or_one_by_one: whether each is trained by itself should an operation for all
            fail, for want of memory or by what one of them brought; else that raises.

    Returns:
        what each work returned or raised, in their order.
    """
    for model in models:
        for own, shared in zip(model.parameters(), start.parameters(), strict=True):
            own.data = shared.detach().clone()
    meeting = _Meeting(len(works), or_one_by_one)
    with ThreadPoolExecutor(len(works), "client") as pool:
        try:
            futures = [
                pool.submit(meeting.attend, number, model, work)
                for number, (model, work) in enumerate(zip(models, works, strict=True))
            ]
            meeting.serve()
        except BaseException:  # else the pool would wait for threads that wait
            meeting.break_up()
            raise
    for model in models:
        model.zero_grad(set_to_none=True)
    # Not raised here: an error that holds this frame, which holds it, is a cycle.
    return list(map(_outcome, futures))


def _outcome(future: Future[Result]) -> Result | Exception:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        return error
    raise error


def copies(model: nn.Module, number: int) -> list[nn.Module]:
    """Return what `run` takes as its models."""
    return [copy.deepcopy(model) for _ in range(number)]


@dataclass(frozen=True)
class _Request:
    """A call of `Train`."""

    model: nn.Module
    examples: Examples
    options: task.TrainOptions
    normalise: Normalisation
    seed: int
    augment: Augment | None = None
    term: task.Term | None = None
    deadline: float = inf
    max_steps: float = inf

    @property
    def steps(self) -> int:
        an_epoch = ceil(len(self.examples) / self.options.batch_size)
        return int(min(self.max_steps, self.options.local_epochs * an_epoch))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return those of `task.train`."""
        device = next(self.model.parameters()).device
        draws = task.draws_of(self.seed)
        batches = Batches(self.examples, self.normalise, self.augment, draws, device)
        return batches.epochs(self.options.local_epochs, self.options.batch_size)


class _Meeting:
    """Works in threads of which one runs at a time, and where they meet to be trained.

    A strategy's client half calls for training in its midst, so each needs a stack of
    its own to wait on; nothing is ever done by two at once.
    """

    def __init__(self, number: int, or_one_by_one: bool) -> None:
        self._or_one_by_one = or_one_by_one
        self._turn = Condition()
        self._running = number
        self._asked: dict[int, _Request] = {}
        self._answers: dict[int, float | Exception] = {}
        self._over = False

    def attend(self, number: int, model: nn.Module, work: Work[Result]) -> Result:
        """Do a client's work, in its thread."""
        with self._turn:
            try:
                self._check()
                return work(model, partial(self._ask, number))
            finally:
                self._running -= 1
                self._turn.notify_all()

    def _ask(self, number: int, *what: Any, **options: Any) -> float:
        self._asked[number] = _Request(*what, **options)
        self._turn.notify_all()
        self._turn.wait_for(lambda: self._over or number in self._answers)
        self._check()
        answer = self._answers.pop(number)
        if isinstance(answer, Exception):
            try:
                raise answer
            finally:
                del answer  # which holds this frame now
        return answer

    def _check(self) -> None:
        if self._over:
            raise RuntimeError("the training of all clients was broken off")

    def break_up(self) -> None:
        """Have all that wait for their training end without it."""
        with self._turn:
            self._over = True
            self._turn.notify_all()

    def serve(self) -> None:
        """Train whenever all that are not done ask for it; return when all are."""
        with self._turn:
            while self._running:
                self._turn.wait_for(lambda: len(self._asked) == self._running)
                asked, self._asked = self._asked, {}
                if asked:
                    answers = _train(asked.values(), self._or_one_by_one)
                    self._answers |= zip(asked, answers, strict=True)
                    self._turn.notify_all()


def _train(
    requests: Iterable[_Request], or_one_by_one: bool
) -> list[float | Exception]:
    """Train in place; return for each what `task.train` would return or raise."""
    asked = list(requests)
    begun = [[p.detach() for p in request.model.parameters()] for request in asked]
    try:
        return _train_as_one(asked)
    except Exception:
        if not or_one_by_one:
            raise
        log.warning("Clients are trained one by one, not together", exc_info=True)
    # All are put back first, and the error is gone, so that the memory of the model
    # that failed is free: it may have failed for want of that.
    for request, starts in zip(asked, begun, strict=True):
        for parameter, start in zip(request.model.parameters(), starts, strict=True):
            parameter.data, parameter.grad = start, None
    return [_alone(request) for request in asked]


def _train_as_one(asked: Sequence[_Request]) -> list[float | Exception]:
    by_steps = sorted(asked, key=lambda request: -request.steps)
    stack = _Stack(by_steps)
    for taken in range(by_steps[0].steps):
        if monotonic() > by_steps[0].deadline:
            break
        stack.step(sum(request.steps > taken for request in by_steps))
    return [stack.outcome(by_steps.index(request)) for request in asked]


def _alone(request: _Request) -> float | Exception:
    given = {each.name: getattr(request, each.name) for each in fields(request)}
    try:
        return task.train(**given)
    except Exception as error:
        return error


class _Stack:
    """Models as rows of tensors (client, ...), most steps first.

    The clients' own models are views of the rows, so that a strategy's term, which
    knows the parameters of its client, acts on that row.
    """

    def __init__(self, rows: Sequence[_Request]) -> None:
        self._rows = rows
        self._own = [dict(row.model.named_parameters()) for row in rows]
        self._all = {
            name: nn.Parameter(torch.stack([own[name].detach() for own in self._own]))
            for name in self._own[0]
        }
        for place, own in enumerate(self._own):
            for name, parameter in own.items():
                parameter.data = self._all[name].detach()[place]
        options, device = rows[0].options, self._first.device
        self._kept: list[Tensor] = []
        self._optimize = task.optimizer(
            list(self._all.values()),
            replace(options, max_gradient_norm=0.0),
            self._kept,
        )
        self._longest = options.max_gradient_norm
        self._step_size = options.learning_rate / (1 - options.momentum)
        self._sgd = options.optimizer == "sgd"
        self._outputs = vmap(partial(functional_call, rows[0].model))
        self._arithmetic = gradients.arithmetic(options.precision, device)
        self._batches = [row.batches() for row in rows]
        self._total = torch.zeros(len(rows), dtype=torch.float64, device=device)
        self._seen = [0] * len(rows)
        self._taken = 0

    @property
    def _first(self) -> Tensor:
        return next(iter(self._all.values()))

    def step(self, active: int) -> None:
        """Take one step of the first rows, so many."""
        if active < len(self._first):
            for tensor in [*self._all.values(), *self._kept]:
                tensor.data = tensor.data[:active]
        batches = [next(each) for each in self._batches[:active]]
        inputs, targets = _padded(batches)
        sizes = torch.tensor([len(real) for _, real in batches])
        sizes = sizes.to(inputs.device, non_blocking=True)
        for parameter in self._all.values():
            parameter.grad = None
        with self._arithmetic:
            losses = _losses(self._outputs(self._all, inputs), targets)
        (losses / sizes).sum().backward()  # type: ignore[no-untyped-call]
        self._move(active)
        for place, (_, real) in enumerate(batches):
            self._seen[place] += len(real)
        self._total[:active].add_(losses.detach())
        self._taken += 1

    @torch.no_grad()
    def _move(self, active: int) -> None:
        """Change the parameters by their gradients, and by the terms of strategies."""
        terms = [(k, row.term) for k, row in enumerate(self._rows[:active]) if row.term]
        stepped = [term for _, term in terms if term.implicit and self._sgd]
        for place, term in terms:
            if term not in stepped:
                for name, parameter in self._own[place].items():
                    parameter.grad = _gradient(self._all[name])[place]
                term.add_gradient()
        if self._longest:
            _clip([_gradient(p) for p in self._all.values()], self._longest)
        self._optimize()
        for term in stepped:
            term.step(self._step_size)

    def outcome(self, place: int) -> float | Exception:
        """Return a row's mean loss, or what keeps it from being counted."""
        if self._rows[place].steps > self._taken:
            return TimeoutError(task.TIME_IS_UP)
        return _mean(float(self._total[place]), self._seen[place])


def _mean(total: float, number: int) -> float | Exception:
    """Return the quotient, or its error.

    Without a traceback: through its frames, and those that called them, all tensors of
    the clients trained together would be held for as long as the error is.
    """
    try:
        return task.finite(total / number)
    except (FloatingPointError, ZeroDivisionError) as error:
        return error.with_traceback(None)


def _losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each client's sum of losses, of outputs (client, B, class).

    Not under `vmap`, which makes fourteen operations of what is three.
    """
    each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return each.view(targets.shape).sum(dim=1)


def _padded(batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return inputs (client, B, C, H, W) and targets (client, B).

    Where a client has fewer than B, there are inputs of zeros that count for nothing.
    """
    size = max(len(targets) for _, targets in batches)
    inputs, targets = [], []
    for x, y in batches:
        lacking = size - len(y)
        inputs.append(F.pad(x, (0,) * 7 + (lacking,)) if lacking else x)
        targets.append(F.pad(y, (0, lacking), value=_NO_TARGET) if lacking else y)
    return torch.stack(inputs), torch.stack(targets)


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a parameter of the model takes no part in the loss")
    return parameter.grad


def _clip(all_gradients: Sequence[Tensor], longest: float) -> None:
    """Scale each client's gradients as `optim.clip` does."""
    flat = [g.flatten(1) for g in all_gradients]
    norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in flat])
    factor = longest / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)
    factor.clamp_(max=1.0)
    for gradient in all_gradients:  # itself: flattened, one in LAYOUT is a copy
        gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))
