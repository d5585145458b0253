"""The server's side of a run: options -> data -> model -> strategy -> artifacts."""

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

import strategies
from fl_app import (
    announcing,
    artifacts,
    at_once,
    best,
    client_states,
    compression,
    environment,
    mods,
    processes,
    remarks,
    report,
    resuming,
    tracking,
    waking,
    work_stealing,
)
from fl_app.artifacts import ModelInfo
from fl_app.callbacks import MetricsFiles, Pictures, ProgressLog
from fl_app.checkpoints import Checkpoints
from fl_app.config import ConfigError, RunConfig, project_path
from fl_app.rounds import GlobalTest, History, recorded, run_rounds
from strategies import wire
from strategies.fedavg import FedAvg
from strategies.federation import Federation, cohort_size
from strategies.interfaces import ServerState
from strategies.randomness import keyed_seed
from strategies.wire import Arrays

if TYPE_CHECKING:
    from fl_app.data.datasets import Dataset

log = logging.getLogger("flwr.fl_app")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run's options describe."""
    from fl_app.data import datasets, private

    start = time.monotonic()
    processes.end_with_parent()
    config = read_config(context.run_config)
    artifacts.usable_results_dir(config)
    tracking.check(config)
    agreement = private.Agreement(config) if config.dataset == private.NAME else None
    shared = None if agreement else datasets.load(config)
    config = datasets.settled(config)
    strategy = build_strategy(config)
    federation = Federation(
        grid,
        min_nodes=config.min_nodes,
        node_timeout=config.node_timeout,
        options=config.for_clients(),
        agreement=agreement,
        client_names=shared.client_names(config) if shared else (),
        on_sent=waking.wake_simulation,
        wait_for_reply=waking.reply_wait(grid),
    )
    dataset = agreement.dataset() if agreement else shared
    assert dataset is not None
    arrays, info = initial_model(config, dataset, read=not config.resume)
    check_model(strategy, config, dataset)
    cohort = cohort_size(len(federation.client_ids), config.fraction_train)
    warned = _announce(config, dataset, strategy.remark(cohort))
    config = at_once.settled(config, federation, dataset)
    federation.clients_together = config.clients_together
    # Of clients trained together, the last bits depend on who is with whom.
    stealing = waking.in_simulation(grid) and config.clients_together == 1
    with (
        resuming.opened(config, federation.label_counts) as (folder, checkpoint),
        work_stealing.waiting_folder() if stealing else nullcontext("") as waiting,
    ):
        federation.waiting_folder = waiting
        log.info("%s", config.in_short())
        log.info("Results go to %s", folder.path)
        folder.write_flower_run(context.run_id)
        if strategy.remembers:
            place, token = client_states.prepare(folder)
            federation.states = ConfigRecord({wire.FOLDER: place, wire.TOKEN: token})
        first, rows = 0, []
        if checkpoint is not None:
            log.info("The run goes on after round %d", checkpoint.round)
            first, rows, arrays = (
                checkpoint.round + 1,
                checkpoint.rows,
                checkpoint.arrays,
            )
            start -= checkpoint.seconds
            strategy.restore(
                ServerState(checkpoint.strategy_state, checkpoint.strategy_arrays)
            )
        elif config.resume:
            arrays, _ = initial_model(config, dataset)
        callbacks = [
            MetricsFiles(folder),
            ProgressLog(config.num_server_rounds),
            Pictures(folder, config),
            *tracking.trackers(config, folder),
            *([best.BestModel(folder, info, arrays)] if strategy.ONE_MODEL else []),
            Checkpoints(folder.path, config, strategy, arrays, start),
        ]
        history = History(callbacks, rows)
        with recorded(folder, history):
            history.start(
                federation.label_counts, info.class_names, federation.client_names
            )
            arrays, final = run_rounds(
                config.num_server_rounds,
                strategy,
                federation,
                arrays,
                test=GlobalTest(dataset, info) if strategy.ONE_MODEL else None,
                training=training_set(config, dataset, info, federation.num_nodes),
                history=history,
                first=first,
                patience=config.patience,
            )
            folder.write_model(arrays, info)
            history.end()
            summary = {
                "final_test_accuracy": final.accuracy if final else None,
                "final_test_loss": final.loss if final else None,
                "per_class_accuracy": final.per_class_accuracy if final else None,
                "client_accuracy": history.client_accuracy(),
                "rounds": history.rows[-1]["round"],
                "best_round": (best.best_row(history.rows) or {}).get("round"),
                "total_seconds": round(time.monotonic() - start, 3),
                "model_sha256": artifacts.model_sha256(arrays),
                "data": dataset.account,
                "remarks": [
                    *warned,
                    *remarks.of_run(
                        *(config, info.class_names, arrays),
                        *(history.rows, final, history.validation),
                    ),
                ],
            }
            report.write(folder, summary)
            folder.write_summary(summary)
            for said in summary["remarks"]:
                log.warning("%s", said)


def _announce(config: RunConfig, dataset: "Dataset", remark: str) -> list[str]:
    """Log what is read and trained; return the warnings, which it logs too.

    Args:
        config: the run's options.
        dataset: its data.
        remark: the strategy's warning; "" for none.
    """
    read, cautions = announcing.of_data(dataset)
    said, warnings = announcing.of_model(config, dataset)
    said, warnings = read + said, cautions + warnings
    warnings += [remark] if remark else []
    for line in said:
        log.info("%s", line)
    for warning in warnings:
        log.warning("%s", warning)
    return warnings


def read_config(options: Mapping[str, Any]) -> RunConfig:
    """Return the run's configuration; that of the run it resumes, if it does.

    Raises:
        ConfigError: an option is not allowed, or the run cannot be resumed.
    """
    from fl_app.data import datasets

    if not options.get("resume"):
        config = RunConfig.from_options(options, datasets.recipe_for)
        check_regime(config)
        return config
    declared = environment.default_options(Path(__file__).parent.parent)
    given = resuming.given_of(options, declared)
    config = resuming.config_of(given, str(options["results-dir"]))
    check_regime(config)
    return config


def check_regime(config: RunConfig) -> None:
    """Raises: ConfigError: what is to be trained is no federation."""
    if config.regime != "federated":
        raise ConfigError(
            f"regime = {config.regime!r} is no federation: use `fl-app baseline`"
        )


def initial_model(
    config: RunConfig, dataset: "Dataset", *, read: bool = True
) -> tuple[Arrays, ModelInfo]:
    """Return the untrained global model: seeded, or read from `initial-model`.

    Args:
        config: the run's options.
        dataset: what it is for.
        read: whether to read `initial-model`; a run with a checkpoint need not.

    Raises:
        ConfigError: `initial-model` is no model file, or of another model.
    """
    from fl_app import models, task

    shape, num_classes = dataset.input_shape, len(dataset.class_names)
    info = ModelInfo(
        config.model,
        config.dataset,
        shape,
        dataset.mean,
        dataset.std,
        dataset.full_scale,
        dataset.class_names,
        dataset.resize,
        dataset.white_level,
    )
    seed = keyed_seed(config.seed, "model")
    model = models.build(config.model, shape, num_classes, seed=seed)
    if config.initial_model and read:
        path = project_path(config.initial_model, "initial-model")
        given, _ = artifacts.read_model(path)
        try:
            task.set_arrays(model, given)
        except ValueError as error:
            raise ConfigError(
                f"initial-model = {config.initial_model!r} does not fit model = "
                f"{config.model!r} on {config.dataset!r}: {error}; start from a file "
                "of the same model and data set, or leave initial-model empty"
            ) from None
    return task.get_arrays(model), info


def training_set(
    config: RunConfig, dataset: "Dataset", info: ModelInfo, num_nodes: int
) -> GlobalTest | None:
    """Return what judges a model on all that clients train on, if that is asked for."""
    if not config.evaluate_training:
        return None
    clients = dataset.partition(config, num_nodes)
    return GlobalTest(dataset, info, training=clients.merged().split(0)[0])


def check_model(strategy: FedAvg, config: RunConfig, dataset: "Dataset") -> None:
    """Raises: ConfigError: the strategy, or another option, is not for this model."""
    from fl_app import models

    shape, num_classes = dataset.input_shape, len(dataset.class_names)
    model = models.build(config.model, shape, num_classes, seed=0)
    try:
        strategy.check_model(model)
    except ValueError as error:
        raise ConfigError(f"model = {config.model!r}: {error}") from None
    if config.clients_together > 1:
        from fl_app import together

        try:
            together.check(model)
        except ValueError as error:
            raise ConfigError(
                f"model = {config.model!r} cannot be trained for several clients at "
                f"once: {error}; set clients-together = 1"
            ) from None


def build_strategy(config: RunConfig) -> FedAvg:
    """Return the run's strategy.

    Raises:
        ConfigError: one of its options is not allowed.
    """
    try:
        strategy = strategies.build(
            config.strategy,
            config.options(),
            config.strategy_options,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"strategy = {config.strategy!r}: {error}") from None
    if strategy.NEEDS_EVERY_VALUE and config.compression in compression.SPARSE:
        raise ConfigError(
            f"compression = {config.compression!r} sends few of a client's values, and "
            f"strategy = {config.strategy!r} takes for 0 what most did not send: use "
            "int8 or int4"
        )
    up = config.compression != "none"
    down = config.download_compression != "none"
    strategy.compress(
        partial(mods.upload_codec, config) if up else None,
        partial(mods.download_codec, config) if down else None,
        feedback=config.error_feedback,
    )
    return strategy
