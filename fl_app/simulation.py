"""One simulated run from the command line: check, submit, follow, judge."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from fl_app import artifacts
from fl_app.artifacts import RunFolder
from fl_app.config import ConfigError, RunConfig, project_path
from fl_app.data import datasets
from fl_app.environment import CONNECTION, node_resources
from fl_app.following import RunView, first_traceback, follow

_PATIENCE_SECONDS = 600.0  # for a run to begin; others of the user may be before it


def prepare(config: RunConfig, num_nodes: int) -> RunConfig:
    """Check all that can be checked before a process is started; name the run.

    The data set is read (into its cache, the first time) and divided.

    Raises:
        ConfigError: an option does not fit the data or the machine.
    """
    artifacts.usable_results_dir(config)
    if config.min_nodes > num_nodes:
        raise ConfigError(
            f"min-nodes = {config.min_nodes} is more than the {num_nodes} simulated "
            "nodes: lower it, or raise --nodes"
        )
    if config.initial_model:
        artifacts.read_model(project_path(config.initial_model, "initial-model"))
    datasets.load(config).partition(config, num_nodes)
    name = config.run_name or artifacts.unused_name(config)
    return config.model_copy(update={"run_name": name})


def folder_of(config: RunConfig) -> RunFolder:
    """Return the folder of a run that has a name."""
    return RunFolder(project_path(config.results_dir, "results-dir") / config.run_name)


def run(
    console: Console,
    project: Path,
    config: RunConfig,
    given: Mapping[str, Any],
    num_nodes: int,
) -> str | None:
    """Run the simulation and show how it goes; return why it failed, or None.

    Args:
        console: where progress is shown.
        project: folder of the app.
        config: all options, checked, with a run name.
        given: the options that differ from the project's defaults.
        num_nodes: simulated nodes.
    """
    from fl_app.submission import Connection

    options = {**given, "run-name": config.run_name}
    options |= _absolute_paths(config)
    folder = folder_of(config)
    with RunView(console, config.num_server_rounds) as view:
        with contextlib.chdir(project):  # where a SuperLink started now will stay
            connection = Connection(CONNECTION)
        resources = {"num-supernodes": num_nodes, **node_resources(num_nodes)}
        run_id = connection.start(project, options, resources)
        try:
            waits = follow(
                folder,
                view,
                lambda: connection.status(run_id).state,
                patience=_PATIENCE_SECONDS,
            )
        except KeyboardInterrupt:
            connection.stop(run_id)
            raise
        if waits:
            connection.stop(run_id)
            return (
                f"error: the run was {waits} for {_PATIENCE_SECONDS:g} seconds: "
                "another run may hold Flower's local SuperLink; `flwr ls "
                "local-simulation` lists them"
            )
    status = connection.status(run_id)
    if status.completed and folder.summary() is not None:
        return None
    return _failure(folder, status.details or f"the run ended {status.sub_state}")


def _absolute_paths(config: RunConfig) -> dict[str, str]:
    """Return the options that are paths, as the run's processes can use them."""
    given = {
        "results-dir": config.results_dir,
        "data-dir": config.data_dir,
        "initial-model": config.initial_model,
    }
    if config.dataset.startswith(("~", ".")):
        given["dataset"] = config.dataset
    return {
        option: str(project_path(value, option).resolve())
        for option, value in given.items()
        if value
    }


def _failure(folder: RunFolder, details: str) -> str:
    """Say why a run failed, with the first client's traceback where there is one."""
    trace = first_traceback(folder)
    parts = [f"error: the run failed: {details}"]
    if trace:
        parts.append(f"First failure: {trace}")
    if folder.path.exists():
        parts.append(f"What it left is in {folder.path}")
    return "\n".join(parts)
