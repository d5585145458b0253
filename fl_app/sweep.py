"""A grid of runs: every combination of the options that are given as lists.

A sweep is its runs' folders and nothing else. Started again it leaves finished ones
alone, continues those that were stopped, and runs what is missing.
"""

import hashlib
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fl_app import (
    baseline,
    checkpoints,
    comparing,
    resuming,
    running,
    simulation,
)
from fl_app.artifacts import RunFolder
from fl_app.config import ConfigError, RunConfig, is_auto, meant
from fl_app.data.datasets import recipe_for
from fl_app.environment import check_nodes, default_options, find_project
from fl_app.following import RunView, print_remarks
from fl_app.server_app import build_strategy

_PAIR = re.compile(r"(\S+?)=(\[[^\]]*\]|'[^']*'|\"[^\"]*\"|\S+)")
_MOST = 1000
_LONGEST = 100  # letters of a run's name
_NEVER_A_LIST = ("run-name", "results-dir", "resume")


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    config: RunConfig
    given: dict[str, Any]
    """The options as typed, with this cell's values."""

    @property
    def folder(self) -> RunFolder:
        """Where its results are, or will be."""
        return running.folder_of(self.config)


def parse(
    arguments: Sequence[str] | None,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the options with one value, and those with a list of values.

    Raises:
        ConfigError: an argument cannot be read, or a list is of no use.
    """
    single: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {}
    for argument in arguments or []:
        if rest := _PAIR.sub("", argument).strip():
            raise ConfigError(
                f"-c/--run-config cannot be read: {rest!r} is no key=value, "
                "nor key=[a,b]"
            )
        for key, text in _PAIR.findall(argument):
            try:
                value = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                raise ConfigError(
                    f"-c/--run-config cannot be read: {key}={text}; values are TOML: "
                    'strings in quotes, also in lists: strategy=["fedavg","fedprox"]'
                ) from None
            if key in single or key in lists:
                raise ConfigError(f"option {key} is given twice")
            if not isinstance(value, list):
                single[key] = value
            elif (
                key in _NEVER_A_LIST
                or not value
                or len(set(map(str, value))) < len(value)
            ):
                raise ConfigError(
                    f"{key} = {text} is not allowed: a sweep takes lists of different "
                    f"values, and none for {', '.join(_NEVER_A_LIST)}"
                )
            else:
                lists[key] = value
    return single, lists


def grid(arguments: Sequence[str] | None, name: str) -> list[Cell]:
    """Return every combination, the last list varying fastest; all are checked.

    Raises:
        ConfigError: an option is unknown or not allowed, or there are too many runs.
    """
    declared = default_options(find_project())
    single, lists = parse(arguments)
    for key in [*single, *lists]:
        if key not in declared:
            raise ConfigError(f"option {key} is unknown{meant(key, declared)}")
    if single.get("resume"):
        raise ConfigError("a sweep continues by itself: leave resume out")
    if not lists:
        raise ConfigError(
            "a sweep needs an option with several values, such as seed=[0,1,2]"
        )
    combinations = list(itertools.product(*lists.values()))
    if len(combinations) > _MOST:
        raise ConfigError(
            f"the grid has {len(combinations)} runs, at most {_MOST} will do"
        )
    prefix = str(single.pop("run-name", "")) or name
    cells = []
    for values in combinations:
        chosen = dict(zip(lists, values, strict=True))
        given = {**single, **chosen, "run-name": _name(prefix, chosen)}
        config = RunConfig.from_options(declared | given, recipe_for)
        if config.regime != "federated":
            config = baseline.named(config)  # or it has no baseline
        else:
            build_strategy(config)  # or its options do not go together
        cells.append(Cell(config, given))
    names = [cell.config.run_name for cell in cells]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two runs of the grid would be called {twice!r}: rename one")
    return cells


def _name(prefix: str, chosen: Mapping[str, Any]) -> str:
    """Return a folder's name that tells what is special to a cell."""
    parts = [prefix]
    for key, value in chosen.items():
        text = Path(value).name if isinstance(value, str) else str(value).lower()
        bare = key in ("strategy", "regime", "dataset", "model", "partitioner")
        parts.append(text if bare else f"{key}-{text}")
    whole = re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(parts))
    if len(whole) <= _LONGEST:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{whole[: _LONGEST - 9]}-{digest}"


def run(
    console: Console, cells: Sequence[Cell], nodes: int, output: str, tail: int
) -> list[str]:
    """Run what is not finished, then compare; return what failed, a line each.

    Raises:
        ConfigError: a run of that name with other options is in the way.
    """
    check_nodes(nodes)
    for cell in cells:
        _check(cell)
    failures = []
    total = sum(cell.config.num_server_rounds for cell in cells)
    with RunView(console, total) as view:
        for cell in cells:
            view.next_run(cell.config.run_name, cell.config.num_server_rounds)
            if cell.folder.summary() is not None:
                view.pass_over(cell.folder.metrics())
                continue
            failure = _run(console, view, cell, nodes)
            print_remarks(console, cell.folder, cell.config.run_name)
            if failure is not None:
                failures.append(f"{cell.config.run_name}: {failure}")
                if running.STOPPED in failure:
                    return failures
    finished = [str(c.folder.path) for c in cells if c.folder.summary() is not None]
    if finished:
        folder = comparing.write(console, finished, tail, output)
        console.print(f"written to {folder}", soft_wrap=True, markup=False)
    return failures


def _check(cell: Cell) -> None:
    """Refuse a folder of the cell's name that holds another run."""
    there = cell.folder.config()
    if there is None:
        return
    wanted = cell.config.options()
    elsewhere = wanted | running.absolute_paths(cell.config)  # as a node is told
    odd = [
        key
        for key, value in wanted.items()
        if key not in checkpoints.CHANGEABLE
        and not is_auto(key, value)  # what came of it is there
        and not (key == "clients-together" and cell.config.regime != "federated")
        and there["options"].get(key) not in (value, elsewhere[key])
    ]
    if odd or there["options"]["num-server-rounds"] != wanted["num-server-rounds"]:
        raise ConfigError(
            f"{cell.folder.path} holds a run with other options "
            f"({', '.join(odd) or 'num-server-rounds'}): give the sweep another name "
            "(--name), or remove that run"
        )


def _run(console: Console, view: RunView, cell: Cell, nodes: int) -> str | None:
    """Run a cell, or what is left of it; return why it failed, or None."""
    config, given, folder = cell.config, cell.given, cell.folder
    try:
        if config.regime != "federated":
            _discard(folder)
            baseline.run(console, config, None, view)
            return None
        if checkpoints.exist(folder.path):
            given = {"resume": config.run_name, "results-dir": config.results_dir}
            config = resuming.config_of(given, config.results_dir)
        else:
            _discard(folder)
            config = running.prepare(config, nodes)
        return simulation.run(console, find_project(), config, given, nodes, view)
    except KeyboardInterrupt:
        return running.STOPPED
    except ConfigError as error:
        return str(error)
    except Exception as error:  # the other runs go on
        return f"{type(error).__name__}: {error}"


def _discard(folder: RunFolder) -> None:
    """Remove a run that left nothing to go on from.

    Raises:
        ConfigError: another process is at work on it.
    """
    import shutil

    if folder.config() is not None:
        with resuming.held(folder):
            shutil.rmtree(folder.path)
