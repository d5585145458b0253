"""The rounds of a run: test, history and callbacks around a strategy's loop."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fl_app import artifacts, best
from fl_app.artifacts import ModelInfo, RunFolder
from fl_app.callbacks import Callback
from strategies.fedavg import FedAvg
from strategies.federation import Federation
from strategies.interfaces import RoundResult
from strategies.replies import Validation
from strategies.wire import Arrays

if TYPE_CHECKING:
    from fl_app.data.datasets import Dataset
    from fl_app.task import Evaluation


class GlobalTest:
    """The global test split, evaluated with all cores of the server.

    It is for reporting only: nothing is ever chosen by it.
    """

    def __init__(
        self, dataset: "Dataset", info: ModelInfo, *, training: Any = None
    ) -> None:
        """Take the test split, or those of the training examples (their indices)."""
        import torch

        from fl_app import models, task

        images, labels = dataset.test_images, dataset.test_labels
        if training is not None:
            images = dataset.train_images[training]
            labels = dataset.train_labels[training]
        self._num_classes = len(info.class_names)
        self._model = task.place(
            models.build(info.model, info.input_shape, self._num_classes, seed=0)
        )
        examples = task.Examples(torch.tensor(images), torch.tensor(labels))
        self._examples = examples.to(task.default_device())
        self._normalise = task.Normalisation(info.mean, info.std, info.full_scale)

    def __call__(self, arrays: Arrays) -> "Evaluation | None":
        """Return the model's result; None where there is no test split."""
        from fl_app import task

        if len(self._examples) == 0:
            return None
        task.set_arrays(self._model, arrays)
        return task.evaluate(
            self._model,
            self._examples,
            self._normalise,
            num_classes=self._num_classes,
        )


class Judged(Protocol):
    """What a test says of a model."""

    @property
    def accuracy(self) -> float:
        """Fraction of examples classified right."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy per example, in nats."""


class History:
    """The rows of metrics.jsonl as they grow, and the callbacks that see them."""

    def __init__(
        self, callbacks: Sequence[Callback], rows: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Start with the rows of a run that goes on; none for a new one."""
        self.rows = [dict(row) for row in rows]
        self.validation: Validation | None = None
        """The newest verdict of the clients."""
        self._callbacks = callbacks

    def start(
        self, counts: Any, class_names: Sequence[str], client_names: Sequence[str]
    ) -> None:
        """Tell the callbacks who owns what; see `Callback.on_start`."""
        for callback in self._callbacks:
            callback.on_start(counts, class_names, client_names)

    def add(
        self,
        result: RoundResult | None,
        test: Judged | None,
        training: Judged | None = None,
    ) -> None:
        """Add a round's row; the one before is complete by then.

        Args:
            result: the round; None for round 0.
            test: the new model's result on the test split; None if not measured.
            training: likewise, on the training examples of all clients.
        """
        self.rows.append(
            {
                "round": result.round if result else 0,
                "test_accuracy": test.accuracy if test else None,
                "test_loss": test.loss if test else None,
                "train_loss": result.train_loss if result else None,
                "global_train_loss": training.loss if training else None,
                "validation_accuracy": None,
                "validation_loss": None,
                "update_norm": result.update_norm if result else None,
                "update_cosine": result.alignment if result else None,
                "num_clients": len(result.trained) if result else 0,
                "num_failures": len(result.failures) if result else 0,
                "seconds": round(result.seconds, 3) if result else None,
                "upload_bytes": result.upload_bytes if result else None,
                "download_bytes": result.download_bytes if result else None,
            }
        )
        for callback in self._callbacks:
            callback.on_round(self.rows, result)

    def validated(self, validation: Validation | None) -> None:
        """Add the clients' verdict to the newest row, whose model they received."""
        self.validation = validation
        if validation is not None:
            self.rows[-1]["validation_accuracy"] = validation.accuracy
            self.rows[-1]["validation_loss"] = validation.loss

    def client_accuracy(self) -> dict[str, float]:
        """Return the newest verdict by client, as summary.json has it."""
        found = self.validation.by_client if self.validation else {}
        return {str(client): accuracy for client, accuracy in found.items()}

    def end(self) -> None:
        """Let the callbacks finish, each of them even if one before it fails."""
        with contextlib.ExitStack() as stack:
            for callback in reversed(self._callbacks):  # the stack turns them around
                stack.callback(callback.on_end, self.rows)


def run_rounds(
    last: int,
    strategy: FedAvg,
    federation: Federation,
    arrays: Arrays,
    *,
    test: GlobalTest | None,
    training: GlobalTest | None = None,
    history: History,
    first: int = 0,
    patience: int = 0,
) -> tuple[Arrays, "Evaluation | None"]:
    """Train to round `last`; return the last global model and its test result.

    Args:
        last: the last round.
        strategy: the algorithm.
        federation: the nodes and clients.
        arrays: the global model of round first - 1, or the initial one.
        test: the test split; None if there is no one model to judge.
        training: the training examples of all clients, if the global model is to be
            judged on them too.
        history: takes in each round.
        first: the round to begin with; 0 is the evaluation of the initial model.
        patience: rounds without a better validation accuracy after which training
            ends early; 0 for never.
    """
    result = test(arrays) if test else None
    if first == 0:
        history.add(None, result, training(arrays) if training else None)
    begin = max(1, first)
    if first > 0 and best.out_of_patience(history.rows, patience):
        begin = last + 1  # the run had ended when it was stopped
    for round in strategy.rounds(federation, arrays, last, first=begin):
        arrays = round.arrays
        history.validated(round.validation)
        ends = best.out_of_patience(history.rows, patience)
        due = strategy.evaluates(round.round) or ends or round.round == last
        result = test(arrays) if test and due else None
        seen = training(arrays) if training and due else None
        history.add(round, result, seen)
        if ends and not strategy.gave_up:  # it says so when asked for the next
            break
    history.validated(strategy.validate(federation, arrays, len(history.rows) - 1))
    return arrays, result


@contextlib.contextmanager
def recorded(folder: RunFolder, history: History) -> Iterator[None]:
    """Finish the files whatever happens; leave error.json if something did."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            history.end()
        with contextlib.suppress(OSError):
            folder.write_error(error)
        if isinstance(error, OSError):
            raise artifacts.ResultsError(
                f"{folder.path} cannot be written ({error.strerror or error}): make "
                f'room, then continue with resume = "{folder.name}"'
            ) from error
        raise
