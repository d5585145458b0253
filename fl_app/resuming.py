"""What a run is resumed with: its own options, and its newest checkpoint."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from fl_app import checkpoints, schedules
from fl_app.artifacts import RunFolder
from fl_app.checkpoints import Checkpoint
from fl_app.config import ConfigError, RunConfig, is_auto, project_path

_PATHS = {"dataset", "initial-model", "test-path"}


def config_of(given: Mapping[str, Any], results_dir: str) -> RunConfig:
    """Return the configuration with which the run `given["resume"]` goes on.

    Args:
        given: the options that were given, kebab-case; the run's may be repeated, a
            few (`checkpoints.CHANGEABLE`) changed.
        results_dir: the option of that name.

    Raises:
        ConfigError: there is no such run, it is finished or past the last round asked
            for, or an option differs.
    """
    name = str(given["resume"])
    folder = RunFolder(project_path(results_dir, "results-dir") / name)
    described = folder.config() if "/" not in name else None
    if described is None:
        raise ConfigError(
            f"resume = {name!r}: there is no such run in {folder.path.parent}; give "
            "the name of a folder there"
        )
    recorded = described["options"]
    flat = {key: v for key, v in recorded.items() if key != "strategy-options"}
    flat |= {
        f"{recorded['strategy']}.{key}": value
        for key, value in recorded["strategy-options"].items()
    }
    given = {key: v for key, v in given.items() if not is_auto(key, v)}
    for key, value in given.items():
        if key not in checkpoints.CHANGEABLE and not _same(key, flat.get(key), value):
            raise ConfigError(
                f"resume = {name!r}: the run has {key} = {flat.get(key)!r}, it cannot "
                f"go on with {value!r}: leave {key} out, or start a new run"
            )
    ends = recorded.get("learning-rate-schedule") in schedules.ENDING
    rounds = given.get("num-server-rounds", flat["num-server-rounds"])
    if ends and rounds != flat["num-server-rounds"]:
        raise ConfigError(
            f"resume = {name!r}: with learning-rate-schedule = "
            f"{recorded['learning-rate-schedule']!r} the learning rate depends on "
            f"num-server-rounds, which must stay {flat['num-server-rounds']}"
        )
    changed = {k: v for k, v in given.items() if k in checkpoints.CHANGEABLE}
    changed |= {"resume": name, "run-name": name, "results-dir": results_dir}
    try:
        RunConfig.model_validate(recorded)
    except ValidationError:
        raise ConfigError(
            f"resume = {name!r}: its options are not those of this version of fl-app; "
            "start it anew"
        ) from None
    config = RunConfig.checked({**recorded, **changed})
    summary = folder.summary()
    if summary is not None and summary["rounds"] >= config.num_server_rounds:
        further = (
            f"to train it further num-server-rounds must be more, it is "
            f"{config.num_server_rounds}"
        )
        if ends:
            further = "its learning rate has come to its end: start a new run"
        raise ConfigError(
            f"resume = {name!r}: the run has finished its {summary['rounds']} rounds; "
            + further
        )
    done = checkpoints.newest_round(folder.path)
    if done > config.num_server_rounds:
        raise ConfigError(
            f"resume = {name!r}: round {done} is done, num-server-rounds = "
            f"{config.num_server_rounds} is less"
        )
    return config


def resolve(given: Mapping[str, Any], declared: Mapping[str, Any]) -> RunConfig:
    """Return `config_of`, if Flower can hand the options over.

    Args:
        given: the options that were given, `resume` among them.
        declared: all options, with their defaults.

    Raises:
        ConfigError: see `config_of`; or an option is put back to its declared value.
    """
    results = str({**declared, **given}["results-dir"])
    config = config_of(given, results)
    seen = config_of(given_of(given, declared), results)
    for key, value in config.options().items():
        if seen.options()[key] != value:
            raise ConfigError(
                f"{key} = {value!r} is the declared value, which a resumed run "
                "cannot be put back to: give another"
            )
    return config


def _same(key: str, recorded: Any, given: Any) -> bool:
    """Whether two values of an option mean the same; paths may be relative."""
    if key in _PATHS and isinstance(recorded, str) and recorded and given:
        one, other = (project_path(str(value), key) for value in (recorded, given))
        return recorded == given or one.resolve() == other.resolve()
    return bool(recorded == given)


def given_of(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, as far as that can be told.

    Flower hands over declared and given options alike, so one that was given its
    declared value counts as not given: the run's own then holds.
    """
    return {k: v for k, v in options.items() if k not in defaults or defaults[k] != v}


@contextlib.contextmanager
def opened(
    config: RunConfig, label_counts: Any
) -> Iterator[tuple[RunFolder, Checkpoint | None]]:
    """Hold the folder of a new run, or of a resumed one with its newest checkpoint.

    A run that was stopped before its first checkpoint begins anew.

    Raises:
        ConfigError: the run exists, is still going on, began with other data, or has
            no checkpoint that can be used.
    """
    if not config.resume:
        folder = RunFolder.create(config)
        with held(folder):
            yield folder, None
        return
    folder = RunFolder(project_path(config.results_dir, "results-dir") / config.resume)
    with held(folder):
        checkpoint = checkpoints.read_newest(folder.path, config)
        trained = any(row["round"] > 0 for row in folder.metrics())
        if checkpoint is None and (trained or checkpoints.exist(folder.path)):
            raise ConfigError(
                f"resume = {config.resume!r}: the run has no checkpoint that can be "
                f"used (the log says why); what it has is left in {folder.path}"
            )
        done = checkpoint.round if checkpoint else 0
        counts = checkpoints.counts_digest(label_counts)
        if checkpoint and checkpoint.label_counts != counts:
            raise ConfigError(
                f"resume = {config.resume!r}: the clients' data is not what the run "
                "began with (numbers of examples per client and class differ)"
            )
        folder.reopen(done, config)
        yield folder, checkpoint


@contextlib.contextmanager
def held(folder: RunFolder, patience: float = 1.0) -> Iterator[None]:
    """Be the only one that writes the run's folder; it is free when a process dies.

    Args:
        folder: the run's folder.
        patience: seconds to wait for the process that holds it; more than none, as
            whoever asks how the run stands holds it for a moment.

    Raises:
        ConfigError: another process holds it.
    """
    checks = folder.path / checkpoints.FOLDER
    checks.mkdir(exist_ok=True)
    try:
        with FileLock(checks / ".lock", timeout=patience):
            yield
    except Timeout:
        raise ConfigError(
            f"run {folder.name} is still going on: wait for its end, or stop it"
        ) from None
