"""What a run says of itself at its end: that it learnt nothing, and what to try."""

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fl_app import best
from fl_app.callbacks import Rows
from fl_app.config import AUTO, RunConfig
from fl_app.data import private
from strategies.replies import Validation

if TYPE_CHECKING:
    from fl_app.task import Evaluation

_READ_BY = ("dataset", "partitioner", "data-dir", "image-column", "label-column")
"""Options that say what data is read, and how; each is a text."""
_WITHOUT_BATCH_NORMALISATION = "lenet"


class _Verdict(NamedTuple):
    """One class that a model said of all images, and the share of them that it is."""

    label: int
    num_images: int
    share: float
    whose: str


def of_run(
    config: RunConfig,
    class_names: Sequence[str],
    tensors: Iterable[str],
    rows: Rows,
    test: "Evaluation | None",
    validation: Validation | None,
) -> list[str]:
    """Return what to tell of a finished run, one text for each thing found.

    Args:
        config: the run's options.
        class_names: names of the classes.
        tensors: names of the model's tensors.
        rows: all its rows.
        test: the last model on the test split; None without one, or with several
            models.
        validation: the clients' verdict on the last model.
    """
    findings = []
    verdict = _one_class(test, validation)
    if verdict is not None and verdict.label < len(class_names):
        who = (
            "Each client's model says"
            if config.regime == "local-only"
            else "The last model says"
        )
        name = class_names[verdict.label]
        findings.append(
            f"{who} one class only: {name!r} for all {verdict.num_images:,} "
            f"{verdict.whose} images, of which {100 * verdict.share:.3g} % are {name!r}"
        )
    first, last = best.best_row(rows), _last_judged(rows)
    if first is not None and first["round"] == 0 and last is not None:
        findings.append(
            "The best round by validation is 0, before training (accuracy "
            f"{first[best.ACCURACY]:.4f}; round {last['round']} has "
            f"{last[best.ACCURACY]:.4f})"
        )
    advice = [_advice(config, rows, tensors), "Try the same."]
    return [f"{f}. {a}" for f, a in zip(findings, advice, strict=False)]


def _one_class(
    test: "Evaluation | None", validation: Validation | None
) -> _Verdict | None:
    """Return the one class that was said of all images; None if there was another.

    Decided by the test split, or by the clients' validation where there is none. Either
    must hold images of two classes: of one class alone, one answer is no fault.
    """
    if test is not None and sum(n > 0 for n in test.examples_per_class) > 1:
        label = test.only_class
        if label is None:
            return None
        share = test.examples_per_class[label] / test.num_examples
        return _Verdict(label, test.num_examples, share, "test")
    if validation is None or validation.only_class is None or validation.accuracy == 1:
        return None
    # Where one class is said of all images, those of the class are those said right.
    return _Verdict(
        validation.only_class,
        validation.num_examples,
        validation.accuracy,
        "validation",
    )


def _last_judged(rows: Rows) -> dict[str, float] | None:
    """Return the last trained round that clients validated."""
    trained = [row for row in rows if row["round"] > 0]
    return next(
        (dict(row) for row in reversed(trained) if row[best.ACCURACY] is not None),
        None,
    )


def _advice(config: RunConfig, rows: Rows, tensors: Iterable[str]) -> str:
    rate = config.learning_rate
    smaller = float(f"{rate / 3:.1g}")
    done, asked = rows[-1]["round"], config.num_server_rounds
    more = (
        f"more rounds (patience = {config.patience} ended it after round {done})"
        if done < asked
        else f"more rounds (num-server-rounds = {2 * asked} instead of {asked})"
    )
    tries = [f"a smaller learning-rate ({smaller:g} instead of {rate:g})", more]
    if any(name.endswith("running_mean") for name in tensors):
        other = _WITHOUT_BATCH_NORMALISATION
        tries.append(f'a model without batch normalisation (model = "{other}")')
    else:
        tries.append("another model")
    return (
        f"Try {', '.join(tries[:-1])} or {tries[-1]}. Look at the labels and the "
        f"pictures{_command(config)}."
    )


def _command(config: RunConfig) -> str:
    """Return how to look at the data, in words."""
    if config.dataset == private.NAME:
        return " of each node's folder with `fl-app data -c 'dataset=\"FOLDER\"'`"
    values = {key: config.options().get(key) for key in _READ_BY}
    options = " ".join(
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if value and value != AUTO
    )
    return f" with `fl-app data -c {shlex.quote(options)}`"
