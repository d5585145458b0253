"""Finished runs side by side: runs alike but for the seed are one method.

A figure of a method is the mean over its seeds with the sample standard deviation; the
difference of two methods is taken seed by seed, since the same seed gives both the same
split, cohorts and initial model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import strategies
from fl_app import compression
from fl_app.artifacts import RunFolder
from fl_app.config import ConfigError
from fl_app.environment import default_options, find_project
from fl_app.spread import Spread

_ANY = "any"  # number of clients at once
_CIRCUMSTANCES = {
    *("seed", "run-name", "results-dir", "data-dir", "num-threads"),
    *("min-nodes", "node-timeout", "round-timeout", "tracking", "evaluate-training"),
}
"""Options that say how or where a run was made, not what it computes."""

_CODECS = ("compression", "download-compression")
_OF_CODECS = {"compression-ratio", "compression-rounding", "error-feedback"}

_COMPARABLE = ("dataset", "num-server-rounds")
"""Options in which methods must agree for their difference to say something."""


@dataclass(frozen=True)
class Figure:
    """A mean over seeds; the sample standard deviation is None for a single one."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """Return mean and deviation of one or more values."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)

    def text(self, digits: int) -> str:
        """Return it for a reader, as in "0.9123 ± 0.0021"."""
        mean = f"{self.mean:.{digits}f}"
        if self.deviation is None:
            return mean
        return f"{mean} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class Run:
    """A finished run, as its folder tells."""

    name: str
    options: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    numbers: Literal["one", "two", "each"] = "one"
    """How many methods runs make that differ by `clients-together`, of which "auto" may
    find any number from one seed to the next: one, that of 1 and that of more, or one
    for each number."""

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read a run's folder.

        Raises:
            ConfigError: there is none, or the run did not finish.
        """
        folder = RunFolder(path)
        config = folder.config()
        if config is None:
            raise ConfigError(
                f"{path} is not the folder of a run (it has no config.json): name "
                "folders in results/"
            )
        summary = folder.summary()
        if summary is None:
            raise ConfigError(
                f"run {path.name} did not finish (it has no summary.json): leave it "
                f'out, or continue it with resume="{path.name}"'
            )
        declared = default_options(find_project())  # for a run of an older version
        options = {"strategy-options": {}, **declared, **config["options"]}
        return cls(path.name, options, folder.metrics(), summary)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.options["seed"])

    @cached_property
    def method(self) -> dict[str, Any]:
        """The options that decide what was computed, the seed aside."""
        others = strategies.of_others(self.options["strategy"])
        falls = self.options["learning-rate-schedule"] == "exponential"
        options = dict(self.options)
        federated = options["regime"] == "federated"
        if not federated:  # what it does not send is not coded
            options |= dict.fromkeys(_CODECS, "none")
        if not federated or self.numbers == "one":
            options["clients-together"] = _ANY
        elif self.numbers == "two" and options["clients-together"] > 1:
            options["clients-together"] = "several"
        unused = _said_by_codec(options)
        unused |= set() if falls else {"learning-rate-decay"}
        decided = {
            key: value
            for key, value in options.items()
            if key not in _CIRCUMSTANCES | others | unused | {"strategy-options"}
            and "." not in key
        }
        name = self.options["strategy"]
        named = self.options["strategy-options"].items()
        return decided | {f"{name}.{key}": value for key, value in named}

    def column(self, key: str) -> dict[int, float]:
        """Return a metric by round, where it was measured."""
        return {r["round"]: r[key] for r in self.rows if r.get(key) is not None}

    def spread(self) -> Spread | None:
        """Return how evenly the final model serves the clients; None if unknown."""
        accuracies = (self.summary.get("client_accuracy") or {}).values()
        return Spread.of(list(accuracies)) if accuracies else None

    def running(self, keys: Sequence[str], round: int) -> float:
        """Return the sum of metrics over all rounds up to one; 0 for the unmeasured."""
        rows = [row for row in self.rows if row["round"] <= round]
        return float(sum(row.get(key) or 0 for row in rows for key in keys))

    def tail(self, key: str, rounds: int) -> list[float]:
        """Return the metric's values of the last so many rounds."""
        first = int(self.summary["rounds"]) - rounds + 1
        return [value for round, value in self.column(key).items() if round >= first]


def _said_by_codec(options: Mapping[str, Any]) -> set[str]:
    """Return options of compression that it does not read, or that are its own."""
    codec, feedback = options["compression"], options["error-feedback"]
    declared = default_options(find_project())
    usual = options["compression-ratio"] == declared["compression-ratio"]
    said = {"compression-ratio"} if usual or codec not in compression.SPARSE else set()
    if codec == "none" or feedback == (codec in compression.FEEDBACK):
        said.add("error-feedback")
    own = "nearest" if feedback else "stochastic"
    if codec in ("none", "fp16", "topk") or options["compression-rounding"] == own:
        said.add("compression-rounding")
    return said


@dataclass(frozen=True)
class Method:
    """Runs that differ in the seed alone, sorted by it."""

    label: str
    runs: list[Run]

    def option(self, key: str) -> Any:
        """Return an option that decides what was computed."""
        return self.runs[0].options[key]

    @property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return [run.seed for run in self.runs]

    def final(self, key: str) -> Figure | None:
        """Return a value of summary.json over the seeds; None if a run lacks it."""
        values = [run.summary[key] for run in self.runs]
        return None if None in values else Figure.of(values)

    def spread(self, key: str) -> Figure | None:
        """Return a figure of the spread over clients, over the seeds."""
        spreads = [spread for run in self.runs if (spread := run.spread())]
        if len(spreads) < len(self.runs):
            return None
        return Figure.of([getattr(spread, key) for spread in spreads])

    def spent(self, keys: Sequence[str], rounds: Sequence[int]) -> list[float]:
        """Return what metrics sum up to by each round, the mean over the seeds."""
        return [
            fmean(run.running(keys, round) for run in self.runs) for round in rounds
        ]

    def curve(self, key: str) -> tuple[list[int], list[Figure]]:
        """Return the rounds in which every run has the metric, and its figures."""
        columns = [run.column(key) for run in self.runs]
        rounds = sorted(set.intersection(*(set(column) for column in columns)))
        return rounds, [Figure.of([c[r] for c in columns]) for r in rounds]

    def tail_mean(self, key: str, rounds: int) -> Figure | None:
        """Return the metric's mean over the last rounds."""
        tails = [run.tail(key, rounds) for run in self.runs]
        return Figure.of([fmean(t) for t in tails]) if all(tails) else None

    def tail_deviation(self, key: str, rounds: int) -> Figure | None:
        """Return the metric's standard deviation over the last rounds of a run."""
        tails = [run.tail(key, rounds) for run in self.runs]
        enough = all(len(tail) > 1 for tail in tails)
        return Figure.of([stdev(tail) for tail in tails]) if enough else None


def read(paths: Iterable[Path]) -> tuple[list[Run], list[Run]]:
    """Return the runs, and those that are one of them again (by the model's hash).

    Raises:
        ConfigError: a folder is not of a finished run, or two runs with the same
            options and seed made different models.
    """
    runs: list[Run] = []
    again: list[Run] = []
    for run in _told_apart([Run.read(path) for path in paths]):
        alike = [r for r in runs if r.seed == run.seed and r.method == run.method]
        if not alike:
            runs.append(run)
        elif alike[0].summary["model_sha256"] != run.summary["model_sha256"]:
            raise ConfigError(
                f"runs {alike[0].name} and {run.name} have the same options and seed "
                "but made different models (other code, machine or number of nodes?): "
                "leave one of them out"
            )
        else:
            again.append(run)
    return runs, again


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, by their numbers of clients at once where those are compared.

    That is where one seed was run with two of them, all else alike.
    """

    def number(run: Run) -> int:
        return int(run.options["clients-together"])

    compared = [
        (one.method, min(number(one), number(other)) > 1)
        for one, other in combinations(runs, 2)
        if one.seed == other.seed
        and number(one) != number(other)
        and one.method == other.method
    ]

    def told_apart(run: Run) -> Run:
        among_several = [both for method, both in compared if method == run.method]
        if not among_several:
            return run
        return replace(run, numbers="each" if any(among_several) else "two")

    return [told_apart(run) for run in runs]


def group(runs: Sequence[Run]) -> list[Method]:
    """Return the methods in order of appearance, named by what tells them apart."""
    groups: list[list[Run]] = []
    for run in runs:
        alike = next((g for g in groups if g[0].method == run.method), None)
        if alike is None:
            groups.append([run])
        else:
            alike.append(run)
    labels = _labels([g[0].method for g in groups])
    return [
        Method(label, sorted(g, key=lambda run: run.seed))
        for label, g in zip(labels, groups, strict=True)
    ]


def _labels(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name each by strategy, that strategy's own options, and others that differ."""
    keys = list(dict.fromkeys(key for method in methods for key in method))
    keys.sort(key=lambda key: all(key in method for method in methods))
    first = next((i for i, key in enumerate(keys) if key in _OF_CODECS), None)
    if first is not None:  # the codec whose they are stands before them
        keys.insert(first, keys.pop(keys.index("compression")))
    absent = object()
    differing = [
        key
        for key in keys
        if key not in ("strategy", "regime")
        and any(m.get(key, absent) != methods[0].get(key, absent) for m in methods)
    ]
    return [
        " ".join(
            [
                _kind(method),
                *(
                    f"{k}={_value(method[k])}"
                    for k in differing
                    if method.get(k, _ANY) != _ANY
                ),
            ]
        )
        for method in methods
    ]


def _kind(method: Mapping[str, Any]) -> str:
    """Return the strategy, or what a baseline is."""
    regime = str(method["regime"])
    return str(method["strategy"]) if regime == "federated" else regime


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def differences(methods: Sequence[Method]) -> list[tuple[str, Figure, list[int]]]:
    """Return final test accuracy against the first method's, for the seeds of both.

    Each is a label, the mean of the paired differences with their deviation, and the
    seeds. A method is left out that shares no seed with the first, or is of another
    data set or number of rounds.
    """
    first, *others = methods
    accuracy = "final_test_accuracy"
    base = {
        run.seed: run.summary[accuracy]
        for run in first.runs
        if run.summary[accuracy] is not None
    }
    found = []
    for method in others:
        if any(method.option(key) != first.option(key) for key in _COMPARABLE):
            continue
        pairs = {
            run.seed: run.summary[accuracy] - base[run.seed]
            for run in method.runs
            if run.seed in base and run.summary[accuracy] is not None
        }
        if pairs:
            label = f"{method.label} - {first.label}"
            found.append((label, Figure.of(list(pairs.values())), list(pairs)))
    return found
