"""What federation is measured against: the same data, model and steps without it.

*Central*: one model on the training data of all clients together. *Local-only*: each
client trains a model of its own and shares nothing. Both take, in every round, exactly
the gradient steps that the federated run's cohort takes, from the same initial model
and with that round's learning rate; so curves lie beside each other round by round.

As in a federated client the optimiser starts afresh in each round: no momentum is kept.
"""

import hashlib
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import ceil, inf
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fl_app import artifacts, environment, remarks, report, resuming, tracking
from fl_app.artifacts import ModelInfo, RunFolder
from fl_app.callbacks import Callback, MetricsFiles, Pictures, Rows
from fl_app.client_work import ClientWork
from fl_app.config import ConfigError, RunConfig
from fl_app.data import datasets, private
from fl_app.data.partition import Partition
from fl_app.following import RunView
from fl_app.rounds import GlobalTest, History, recorded
from fl_app.server_app import initial_model
from fl_app.workspace import Workspace
from strategies import aggregation, wire
from strategies.federation import sample_cohort
from strategies.interfaces import RoundResult
from strategies.replies import Tally, Validation
from strategies.stragglers import Stragglers
from strategies.wire import Arrays

if TYPE_CHECKING:
    from fl_app.task import Evaluation

CENTRAL, LOCAL_ONLY = "central", "local-only"


class _Shown(Callback):
    def __init__(self, view: RunView) -> None:
        self._view = view

    def on_round(self, rows: Rows, result: RoundResult | None) -> None:
        self._view.show([dict(row) for row in rows])


class Steps:
    """How many gradient steps are taken in a round, and by whom."""

    def __init__(self, config: RunConfig, sizes: list[int], epochs: int | None) -> None:
        """Follow the federated run's schedule, or spread some epochs over its rounds.

        Args:
            config: the federated run's options.
            sizes: training examples of each client.
            epochs: passes over the data in all; None for the federated run's steps.
        """
        self._config = config
        self._epochs = epochs
        self._stragglers = Stragglers(
            config.straggler_fraction,
            config.stragglers,
            config.local_epochs,
            config.seed,
        )
        self._whole = [ceil(size / config.batch_size) for size in sizes]  # of an epoch
        self._pooled = ceil(sum(sizes) / config.batch_size)

    def of_clients(self, round: int) -> dict[int, int]:
        """Return the steps of each client that trains in a round."""
        config = self._config
        if self._epochs is not None:
            return {
                client: self._spread(steps * self._epochs, round)
                for client, steps in enumerate(self._whole)
            }
        drawn = sample_cohort(
            range(len(self._whole)),
            config.fraction_train,
            seed=config.seed,
            round=round,
        )
        slow = self._stragglers.schedule(drawn, round)
        return {
            client: slow.get(client, config.local_epochs) * self._whole[client]
            for client in self._stragglers.taking_part(drawn, round)
        }

    def pooled(self, round: int) -> int:
        """Return the steps of one model that has all data."""
        if self._epochs is not None:
            return self._spread(self._pooled * self._epochs, round)
        return sum(self.of_clients(round).values())

    def _spread(self, steps: int, round: int) -> int:
        rounds = self._config.num_server_rounds
        return steps * round // rounds - steps * (round - 1) // rounds


@dataclass(frozen=True)
class Judgement:
    """Mean accuracy and loss of several models on the test split."""

    accuracy: float
    loss: float


def run(
    console: Console,
    config: RunConfig,
    epochs: int | None,
    view: RunView | None = None,
) -> RunFolder:
    """Train the baseline that `regime` names, in this process; return its folder.

    Args:
        console: where progress is shown.
        config: all options, with a run name.
        epochs: passes over the data; None for as many steps as the federation takes.
        view: where rounds are shown, if that is shared with other runs.

    Raises:
        ConfigError: an option does not fit the data, or the run exists.
    """
    import torch

    from fl_app import models, task

    start = time.monotonic()
    torch.set_num_threads(config.num_threads)
    tracking.check(config)
    dataset = datasets.load(config)
    config = datasets.settled(config)
    partition = dataset.partition(config, environment.default_nodes())
    steps = Steps(config, _sizes(partition), epochs)
    central = config.regime == CENTRAL
    owned = partition.merged() if central else partition
    arrays, info = initial_model(config, dataset)
    model = models.build(config.model, info.input_shape, len(info.class_names), seed=0)
    normalise = task.Normalisation(dataset.mean, dataset.std, dataset.full_scale)
    plain = config.model_copy(update={"strategy": "fedavg", "strategy_options": {}})
    space = Workspace(plain, dataset, owned, task.place(model), normalise)
    names = [] if central else dataset.client_names(config)
    folder = RunFolder.create(config)
    shown = nullcontext(view) if view else RunView(console, config.num_server_rounds)
    with shown as bar:
        tracked = tracking.trackers(config, folder)
        callbacks = [MetricsFiles(folder), Pictures(folder, config), _Shown(bar)]
        history = History([*callbacks, *tracked])
        with resuming.held(folder), recorded(folder, history):
            history.start(owned.label_counts(), info.class_names, names)
            alone = Alone(space, arrays, GlobalTest(dataset, info))
            seen = _training_set(config, dataset, info, owned) if central else None
            history.add(None, alone.judge(), seen(arrays) if seen else None)
            for number in range(1, config.num_server_rounds + 1):
                due = steps.pooled(number) if central else steps.of_clients(number)
                result = alone.train(number, {0: due} if isinstance(due, int) else due)
                last = number == config.num_server_rounds
                judged = last or number % config.evaluate_every == 0
                history.validated(result.validation)
                after = seen(alone.models[0]) if seen and judged else None
                history.add(result, alone.judge() if judged else None, after)
            history.validated(alone.validate(config.num_server_rounds + 1))
            by_client = history.client_accuracy()
            if central:
                by_client = _on_each(space, partition, alone.models[0])
            history.end()
            if central:
                folder.write_model(alone.models[0], info)
            summary = alone.summary() | {
                "client_accuracy": by_client,
                "rounds": config.num_server_rounds,
                "total_seconds": round(time.monotonic() - start, 3),
                "data": dataset.account,
                "remarks": [
                    *dataset.warnings,
                    *remarks.of_run(
                        *(config, info.class_names, arrays),
                        *(history.rows, alone.result, history.validation),
                    ),
                ],
            }
            report.write(folder, summary)
            folder.write_summary(summary)
    return folder


def _training_set(
    config: RunConfig, dataset: datasets.Dataset, info: ModelInfo, merged: Partition
) -> GlobalTest | None:
    """Return what judges one model on all training examples, if that is asked for."""
    if not config.evaluate_training:
        return None
    return GlobalTest(dataset, info, training=merged.split(0)[0])


def _on_each(space: Workspace, clients: Partition, model: Arrays) -> dict[str, float]:
    """Return one model's accuracy on the validation examples of each client."""
    divided = replace(space, partition=clients)
    work = ClientWork(divided, model, 0, {}, inf)
    number = len(clients.clients) if space.config.fraction_evaluate else 0
    return {
        str(client): row[wire.NUM_CORRECT] / row[wire.NUM_EXAMPLES]
        for client in range(number)
        for row in work.validate(client)
    }


class Alone:
    """Models that are never averaged, one for each client of a workspace."""

    def __init__(self, space: Workspace, initial: Arrays, test: GlobalTest) -> None:
        """Start all of them as the same initial model."""
        self.models = [initial] * len(space.partition.clients)
        self._space = space
        self._test = test
        self._steps = 0
        first = test(initial)
        self._results = [first] * len(self.models)

    def train(self, round: int, steps: Mapping[int, int]) -> RoundResult:
        """Validate the models, then train those of some clients for so many steps."""
        begun = time.monotonic()
        validation = self.validate(round)
        trained = []
        for client, number in steps.items():
            if number == 0:
                continue
            work = ClientWork(self._space, self.models[client], round, {}, inf)
            update, row = work.train(client, steps=number)
            moved = aggregation.apply_mean(work.base, update)
            if work.pooled:
                moved = aggregation.from_moments(moved)
            self.models[client] = moved
            self._results[client] = result = self._test(self.models[client])
            self._steps += number
            judged = {"test-accuracy": result.accuracy} if result else {}
            trained.append(row | judged)
        return RoundResult(
            round=round,
            arrays={},
            cohort=list(steps),
            trained=trained,
            validation=validation,
            seconds=time.monotonic() - begun,
        )

    def validate(self, round: int) -> Validation | None:
        """Return the verdict of each client's validation examples on its own model."""
        if self._space.config.fraction_evaluate == 0:
            return None
        tally = Tally(lambda client: 0)
        for client, arrays in enumerate(self.models):
            work = ClientWork(self._space, arrays, round, {}, inf)
            tally.validated += work.validate(client)
        return tally.validation()

    def judge(self) -> Judgement | None:
        """Return the models' mean result on the test split; None without one."""
        results = [result for result in self._results if result is not None]
        if not results:
            return None
        return Judgement(
            fmean(result.accuracy for result in results),
            fmean(result.loss for result in results),
        )

    @property
    def result(self) -> "Evaluation | None":
        """The one model's result on the test split; None without one, or of several."""
        return self._results[0] if len(self.models) == 1 else None

    def summary(self) -> dict[str, Any]:
        """Return what summary.json says of the models."""
        judged, only = self.judge(), self.result
        digests = [artifacts.model_sha256(arrays) for arrays in self.models]
        together = hashlib.sha256("".join(digests).encode()).hexdigest()
        return {
            "final_test_accuracy": judged.accuracy if judged else None,
            "final_test_loss": judged.loss if judged else None,
            "per_class_accuracy": only.per_class_accuracy if only else None,
            "per_client_accuracy": [r.accuracy for r in self._results if r],
            "gradient_steps": self._steps,
            "model_sha256": digests[0] if len(digests) == 1 else together,
        }


def named(config: RunConfig) -> RunConfig:
    """Return the options with a name for the run.

    Raises:
        ConfigError: they are of a run without a baseline.
    """
    if config.dataset == private.NAME:
        raise ConfigError(
            "dataset = 'private' has no baseline: nobody has all of the data; rehearse "
            "it with partitioner = 'folders' where all of it is in one place"
        )
    if config.resume:
        raise ConfigError("a baseline cannot be resumed: start it anew")
    if config.patience:
        raise ConfigError(
            "patience is not allowed here: a baseline takes as many steps as the "
            "federation would without it"
        )
    name = config.run_name or artifacts.unused_name(config)
    return config.model_copy(update={"run_name": name, "clients_together": 1})


def _sizes(partition: Partition) -> list[int]:
    return [int(n) for n in partition.label_counts().sum(axis=1)]
