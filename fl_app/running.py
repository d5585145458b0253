"""One run from the command line: check, submit, follow, judge."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import strategies
from fl_app import announcing, artifacts, checkpoints, resuming, tracking
from fl_app.artifacts import RunFolder, StoppedError
from fl_app.config import ConfigError, RunConfig, project_path
from fl_app.data import datasets, private
from fl_app.environment import default_options, find_project
from fl_app.following import RunView, first_traceback, follow
from fl_app.server_app import build_strategy, check_model, check_regime
from strategies.federation import cohort_size

if TYPE_CHECKING:
    from fl_app.submission import Connection

STOPPED = "it was stopped by the user"
_FLOWER_PREFIX = "Simulation failed with exception: "
_STOP_SECONDS = 30.0
_PATIENCE_SECONDS = 600.0  # for a run to begin; others of the user may be before it


def prepare(
    config: RunConfig,
    num_nodes: int,
    *,
    own_data: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> RunConfig:
    """Check all that can be checked before a process is started; name the run.

    The data set is read (into its cache, the first time) and divided, unless each node
    has data of its own. `say` is told what was read, and warnings about it.

    Raises:
        ConfigError: an option does not fit the data or the machine.
    """
    check_regime(config)
    artifacts.usable_results_dir(config)
    if config.min_nodes > num_nodes:
        raise ConfigError(
            f"min-nodes = {config.min_nodes} is more than the {num_nodes} nodes there "
            "will be: lower it, or raise --nodes"
        )
    tracking.check(config)
    strategy = build_strategy(config)
    if not own_data:
        dataset = datasets.load(config)
        config = datasets.settled(config)
        _say(say, *announcing.of_data(dataset))
        dataset.partition(config, num_nodes)
        check_model(strategy, config, dataset)
        _say(say, *announcing.of_model(config, dataset))
    if config.initial_model and not own_data and not config.resume:
        path = project_path(config.initial_model, "initial-model")
        _, info = artifacts.read_model(path)
        given = (info.model, info.input_shape, len(info.class_names))
        wanted = (config.model, dataset.input_shape, len(dataset.class_names))
        if given != wanted:
            raise ConfigError(
                f"initial-model = {config.initial_model!r} is of (model, input shape, "
                f"classes) {given}, this run of {wanted}: they must be the same"
            )
    name = config.run_name or artifacts.unused_name(config)
    return config.model_copy(update={"run_name": name})


def _say(
    say: Callable[[str], None], lines: Sequence[str], warnings: Sequence[str]
) -> None:
    for line in [*lines, *(f"warning: {warning}" for warning in warnings)]:
        say(line)


def without_effect(config: RunConfig, given: Mapping[str, Any]) -> list[str]:
    """Return the options that were given and are only other strategies'."""
    others = strategies.of_others(config.strategy)
    tables = set(strategies.available()) - {config.strategy}
    return [k for k in given if k in others or k.partition(".")[0] in tables]


def remark(config: RunConfig, num_nodes: int) -> str:
    """Return what the strategy says of the number of clients in a round; or "".

    Nothing where each folder is a client: how many there are the server will know.
    """
    number = config.num_clients
    if config.dataset == private.NAME:
        number = num_nodes
    elif number == 0:
        number = 0 if config.partitioner == "folders" else num_nodes
    cohort = cohort_size(number, config.fraction_train)
    return build_strategy(config).remark(cohort) if cohort else ""


def remark_on_precision(config: RunConfig) -> str:
    """Return why the precision is no gain where nodes are of this machine; or "".

    Where it has a GPU the nodes say so, which open that anyway.
    """
    if config.precision == "float32":
        return ""
    import torch

    from fl_app import gradients

    if torch.cuda.is_available():
        return ""
    return gradients.slowness(config.precision, "cpu")


def folder_of(config: RunConfig) -> RunFolder:
    """Return the folder of a run that has a name."""
    return RunFolder(project_path(config.results_dir, "results-dir") / config.run_name)


def run(
    console: Console,
    connect: "Callable[[], Connection]",
    project: Path,
    config: RunConfig,
    given: Mapping[str, Any],
    resources: Mapping[str, Any],
    command: str,
    view: RunView | None = None,
) -> str | None:
    """Submit a run and show how it goes; return why it failed, or None.

    Args:
        console: where progress is shown.
        connect: returns the way to the SuperLink, once that is up.
        project: folder of the app.
        config: all options, checked, with a run name.
        given: the options that differ from the project's defaults.
        resources: what is simulated; empty where nodes are real.
        command: what was typed, without options: how the run is resumed.
        view: where rounds are shown, if that is shared with other runs.
    """
    options = {**given, "run-name": config.run_name}
    options |= absolute_paths(config)
    folder = folder_of(config)
    again = _resuming(command, config)
    if view is None:
        console.print(config.in_short(), soft_wrap=True, markup=False, highlight=False)
    shown = (
        contextlib.nullcontext(view)
        if view
        else RunView(console, config.num_server_rounds)
    )
    with shown as bar, stopped_by_signals():
        resumed = len(folder.resumed()) if config.resume else None
        connection = connect()
        run_id = connection.start(project, options, resources)
        try:
            waits = follow(
                folder,
                bar,
                lambda: connection.status(run_id).state,
                patience=_PATIENCE_SECONDS,
                resumed=resumed,
            )
        except KeyboardInterrupt:
            console.print("stopping the run, which takes some seconds")
            with _not_stopped_again(console):
                failure = _stop(connection, run_id, folder, STOPPED, again)
            # One of several that has come to its end is no reason to begin the next.
            return failure or (STOPPED if view else None)
        if waits:
            reason = (
                f"it was {waits} for {_PATIENCE_SECONDS:g} seconds: another run may "
                "hold Flower's SuperLink; `flwr ls` lists them"
            )
            return _stop(connection, run_id, folder, reason, again)
    status = connection.status(run_id)
    if status.completed and folder.summary() is not None:
        return None
    return _failure(folder, status.details or f"it ended {status.sub_state}", again)


def _resuming(command: str, config: RunConfig) -> str:
    """Return the command that continues the run."""
    options = f'resume="{config.run_name}"'
    if config.results_dir != _declared_results():
        options += f' results-dir="{config.results_dir}"'
    return f"{command} -c '{options}'"


def _declared_results() -> str:
    return str(default_options(find_project())["results-dir"])


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Take a request to end (a batch queue's, a closed terminal's) as Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with _signals_to(interrupt, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def _signals_to(
    handler: Callable[..., None], *numbers: signal.Signals
) -> Iterator[None]:
    """Have signals handled so; ignored ones, as nohup sets them, stay that."""
    before = {number: signal.getsignal(number) for number in numbers}
    for number, usual in before.items():
        if usual is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


@contextlib.contextmanager
def _not_stopped_again(console: Console) -> Iterator[None]:
    """Have further requests to end answered, and only a third one heeded.

    A run that nobody waits for may leave no word of why it ended.
    """
    asked = 1

    def answer(*_: object) -> None:
        nonlocal asked
        asked += 1
        if asked > 2:
            raise KeyboardInterrupt
        console.print("it is being stopped; once more to wait for it no longer")

    with _signals_to(answer, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield


def _stop(
    connection: "Connection", run_id: int, folder: RunFolder, reason: str, again: str
) -> str | None:
    """Stop the run, wait until it has, and say so; None if it came to its end."""
    connection.stop(run_id)
    deadline = time.monotonic() + _STOP_SECONDS
    while not connection.status(run_id).finished and time.monotonic() < deadline:
        time.sleep(0.3)
    if connection.status(run_id).completed and folder.summary() is not None:
        return None
    return _failure(folder, reason, again)


def absolute_paths(config: RunConfig) -> dict[str, str]:
    """Return the options that are paths, as the run's processes can use them."""
    given = {
        "results-dir": config.results_dir,
        "data-dir": config.data_dir,
        "initial-model": config.initial_model,
        "test-path": config.test_path,
    }
    if not config.data_dir and datasets.local_folder(config) is not None:
        given["dataset"] = config.dataset
    return {
        option: str(project_path(value, option).resolve())
        for option, value in given.items()
        if value
    }


def _failure(folder: RunFolder, details: str, again: str) -> str:
    """Say why a run failed, with the first client's traceback where there is one.

    A run whose process was killed had no chance to leave its error.json.
    """
    reason = details.removeprefix(_FLOWER_PREFIX)
    if "No heartbeat" in reason:
        reason += ": its server process died or hung (was memory short?)"
    leave_error(folder, reason)
    trace = first_traceback(folder)
    parts = [f"error: the run failed: {reason}"]
    if trace:
        parts.append(f"First failure: {trace}")
    if folder.path.exists():
        done = max((row["round"] for row in folder.metrics()), default=0)
        parts.append(f"What it left, of {done} rounds, is in {folder.path}")
    if checkpoints.exist(folder.path):
        parts.append(f"To go on: {again}")
    return "\n".join(parts)


def leave_error(folder: RunFolder, reason: str) -> None:
    """Wait for the run's own process to end; write error.json if that did not.

    Not into a folder that another run holds or has finished.
    """
    if folder.config() is None or folder.error() or folder.summary():
        return
    with (
        contextlib.suppress(ConfigError, OSError),
        resuming.held(folder, patience=_STOP_SECONDS),
    ):
        if not folder.error() and not folder.summary():
            kind = StoppedError if reason == STOPPED else RuntimeError
            folder.write_error(kind(reason))
