"""What a run says of itself at its end, and where that stands."""

import io
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fl_app import baseline, following, remarks, server_app
from fl_app.artifacts import RunFolder
from fl_app.data import datasets
from fl_app.task import Evaluation
from strategies import wire
from strategies.replies import Tally, Validation
from tests.conftest import make_config
from tests.test_baseline import alone
from tests.test_private import own
from tests.test_private import run as run_private
from tests.test_run import run

NAMES = ["cat", "dog", "owl"]
ABSURD = {
    "model": "mlp",
    "learning_rate": 100.0,
    "batch_size": 5000,
    "num_server_rounds": 2,
    "num_clients": 2,
}
"""Options that leave dead units, so that the model says the same of all images.

One step a round: on any processor the last bits of it do not grow into another model.
"""


def judged(examples: list[int], predicted: list[int]) -> Evaluation:
    """A result whose accuracy says nothing, which nothing may be decided by."""
    right = [0] * len(examples)
    return Evaluation(sum(examples), 0, 1.0, right, examples, predicted)


def rows(*accuracies: float | None) -> list[dict[str, Any]]:
    return [
        {"round": round, "validation_accuracy": accuracy}
        for round, accuracy in enumerate(accuracies)
    ]


def found(
    test: Evaluation | None = None,
    validation: Validation | None = None,
    history: list[dict[str, Any]] | None = None,
    tensors: tuple[str, ...] = ("0.weight",),
    **options: Any,
) -> list[str]:
    config = make_config(
        **{"learning_rate": 0.1, "num_server_rounds": 2, "model": "mlp", **options}
    )
    given = history or rows(0.1, 0.2, 0.3)
    return remarks.of_run(config, NAMES, tensors, given, test, validation)


def test_a_model_that_says_one_class_only() -> None:
    (said,) = found(judged([5, 10, 25], [0, 40, 0]))
    assert said == (
        "The last model says one class only: 'dog' for all 40 test images, of which "
        "25 % are 'dog'. Try a smaller learning-rate (0.03 instead of 0.1), more "
        "rounds (num-server-rounds = 4 instead of 2) or another model. Look at the "
        "labels and the pictures with "
        '`fl-app data -c \'dataset="digits" partitioner="dirichlet"\'`.'
    )


@pytest.mark.parametrize(
    ("examples", "predicted"),
    [
        ([5, 10, 25], [0, 39, 1]),  # two classes
        ([0, 40, 0], [0, 40, 0]),  # one class is all there is
        ([0, 40, 0], [40, 0, 0]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_a_model_of_which_there_is_nothing_to_say(
    examples: list[int], predicted: list[int]
) -> None:
    assert found(judged(examples, predicted)) == []


def test_without_a_test_split_the_clients_say_it() -> None:
    verdict = Validation(0.125, 1.0, 16, only_class=2)
    (said,) = found(None, verdict)
    assert "'owl' for all 16 validation images, of which 12.5 % are 'owl'" in said
    assert found(None, replace(verdict, only_class=None)) == []
    assert found(None, replace(verdict, accuracy=1.0)) == []  # nobody has another class
    assert found(None, replace(verdict, only_class=3)) == []  # a node's odd word
    assert found(None, None) == []
    assert found(judged([5, 10, 25], [1, 39, 0]), verdict) == []
    assert found(judged([0, 9, 0], [0, 0, 9]), verdict) == [said]
    (said,) = found(None, verdict, regime="local-only")
    assert said.startswith("Each client's model says one class only: 'owl'")


def test_a_best_round_of_0() -> None:
    (said,) = found(history=rows(0.5, 0.25, 0.125))
    assert said.startswith(
        "The best round by validation is 0, before training (accuracy 0.5000; round 2 "
        "has 0.1250). Try a smaller learning-rate (0.03 instead of 0.1), more rounds"
    )
    (said,) = found(history=rows(0.5, 0.5, None))  # no better, and not judged
    assert "(accuracy 0.5000; round 1 has 0.5000)" in said


@pytest.mark.parametrize(
    "accuracies", [(None, None, None), (0.5, None, None), (0.1, 0.2, 0.1), (0.5,)]
)
def test_no_best_round_of_0(accuracies: tuple[float | None, ...]) -> None:
    assert found(history=rows(*accuracies)) == []


def test_what_to_try_is_said_once_and_fits_the_run() -> None:
    first, second = found(judged([1, 1, 1], [0, 0, 3]), history=rows(0.5, 0.25, 0.25))
    assert "Try a smaller" in first
    assert second.endswith("Try the same.")
    normalised = ("1.weight", "1.running_mean", "1.running_var")
    (said,) = found(history=rows(0.5, 0.25), patience=1, tensors=normalised)
    assert "more rounds (patience = 1 ended it after round 1)" in said
    assert 'a model without batch normalisation (model = "lenet")' in said
    data = {"dataset": "/o'b/x y", "partitioner": "folders", "data_dir": "/d"}
    (said,) = found(history=rows(0.5, 0.25, 0.2), **data)
    command = said.split("`")[1]
    options = 'dataset="/o\'b/x y" partitioner="folders" data-dir="/d"'
    assert shlex.split(command) == ["fl-app", "data", "-c", options]
    (said,) = found(history=rows(0.5, 0.25, 0.2), dataset="private")
    assert "of each node's folder with `fl-app data -c 'dataset=\"FOLDER\"'`" in said


@pytest.mark.parametrize(
    ("told", "agreed"),
    [((2, 2), 2), ((2, 1), None), ((2, -1), None), ((-1, -1), None), ((2, None), None)],
)
def test_clients_must_agree_on_the_one_class(
    told: tuple[int | None, int | None], agreed: int | None
) -> None:
    tally = Tally(lambda client: 0)
    for client, label in enumerate(told):
        row = {wire.NUM_EXAMPLES: 4, wire.NUM_CORRECT: 1, wire.LOSS: 1.0}
        said = {} if label is None else {wire.ONLY_CLASS: label}
        tally.validated.append(row | said | {wire.CLIENT_IDS: client})
    verdict = tally.validation()
    assert verdict is not None
    assert verdict.only_class == agreed


def texts(folder: RunFolder) -> list[str]:
    summary = folder.summary()
    assert summary is not None
    found = summary["remarks"]
    assert isinstance(found, list)
    return found


def printed(folder: RunFolder) -> str:
    console = Console(file=io.StringIO(), width=80)
    following.print_result(console, folder)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_a_run_says_it_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = datasets.load

    def load(config: Any) -> datasets.Dataset:
        account, odd = "read 1,797 images; passed over <2> files", "2 files & more"
        return replace(plain(config), account=account, warnings=[odd])

    monkeypatch.setattr(datasets, "load", load)
    monkeypatch.setattr(server_app.FedAvg, "remark", lambda *_: "a small cohort")
    folder = run(tmp_path, **ABSURD)
    summary = folder.summary()
    assert summary is not None
    assert summary["data"] == "read 1,797 images; passed over <2> files"
    *warnings, one_class, best = texts(folder)
    assert warnings == ["2 files & more", "a small cohort"]
    assert one_class.startswith("The last model says one class only: '")
    assert "for all 359 test images" in one_class
    assert "(30 instead of 100)" in one_class
    assert summary["best_round"] == 0
    assert best.startswith("The best round by validation is 0")
    logged = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert logged[-4:] == [*warnings, one_class, best]
    report = (folder.path / "report.html").read_text()
    assert "Data: read 1,797 images; passed over &lt;2&gt; files." in report
    assert "<li>2 files &amp; more</li>" in report
    assert "<li>The last model says one class only: &#39;" in report
    assert "<li>The best round by validation is 0" in report
    said = printed(folder)
    assert "data: read 1,797 images; passed over <2> files\n" in said
    assert all(f"warning: {text}\n" in said for text in texts(folder))


def test_a_run_that_learns_says_nothing(tmp_path: Path) -> None:
    folder = run(tmp_path)
    assert texts(folder) == []
    assert 'class="remarks"' not in (folder.path / "report.html").read_text()
    assert "warning" not in printed(folder)


def test_clients_say_it_where_the_server_has_no_images(
    tmp_path: Path, clinics: Path
) -> None:
    options = ABSURD | {"dataset": "private", "min_nodes": 2, "num_clients": "auto"}
    folder = run_private(tmp_path, own(clinics, "north", "south"), "run", **options)
    (said,) = [text for text in texts(folder) if "one class only" in text]
    assert "validation images" in said


@pytest.mark.parametrize("regime", [baseline.CENTRAL, baseline.LOCAL_ONLY])
def test_baselines_say_it_too(tmp_path: Path, regime: str) -> None:
    folder = alone(tmp_path, regime, learning_rate=1e-9)  # they stay as they were
    assert any("best round by validation is 0" in text for text in texts(folder))
    report = (folder.path / "report.html").read_text()
    assert "The best round by validation is 0" in report


def test_a_run_of_an_earlier_version_is_shown_as_ever(tmp_path: Path) -> None:
    folder = run(tmp_path)
    summary = folder.summary()
    assert summary is not None
    del summary["remarks"], summary["data"]
    folder.write_summary(summary)
    assert "test accuracy" in printed(folder)


def test_among_several_runs_each_warning_has_a_name(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_summary({"remarks": ["one", "two [bold]"]})
    console = Console(file=io.StringIO(), width=80)
    following.print_remarks(console, folder, "a-run")
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said == "a-run  warning: one\na-run  warning: two [bold]\n"
