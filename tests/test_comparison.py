"""Runs side by side, on folders written by hand; all figures are computed by hand."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from fl_app import comparing, comparison, comparison_picture, plots, tables
from fl_app.artifacts import RunFolder
from fl_app.comparison import Figure
from fl_app.config import ConfigError
from fl_app.spread import Spread
from tests.conftest import make_config


def write(
    results: Path, accuracies: list[float], *, finished: bool = True, **options: Any
) -> Path:
    """Write the folder of a run with those test accuracies from round 0."""
    by_client = options.pop("client_accuracy", {})
    name = options.pop("run_name", f"run-{len(list(results.iterdir()))}")
    config = make_config(results_dir=str(results), run_name=name, **options)
    folder = RunFolder.create(config)
    folder.write_metrics(
        {
            "round": i,
            "test_accuracy": accuracy,
            "test_loss": 1 - accuracy,
            "train_loss": None if i == 0 else 2 * (1 - accuracy),
            "seconds": None if i == 0 else 2.5,
            "upload_bytes": None if i == 0 else 1_500_000,
            "download_bytes": None if i == 0 else 500_000,
        }
        for i, accuracy in enumerate(accuracies)
    )
    if finished:
        folder.write_summary(
            {
                "final_test_accuracy": accuracies[-1],
                "final_test_loss": 1 - accuracies[-1],
                "rounds": len(accuracies) - 1,
                "total_seconds": 10.0,
                "client_accuracy": by_client,
                "model_sha256": str(accuracies),
            }
        )
    return folder.path


def methods(*paths: Path) -> list[comparison.Method]:
    return comparison.group(comparison.read(paths)[0])


def test_runs_alike_but_for_the_seed_are_one_method(tmp_path: Path) -> None:
    (method,) = methods(
        write(tmp_path, [0.1, 0.5, 0.7], seed=2),
        write(tmp_path, [0.3, 0.5, 0.9], seed=1, num_threads=2),
    )
    assert method.label == "fedavg"
    assert method.seeds == [1, 2]
    final = method.final("final_test_accuracy")
    assert final is not None
    assert final.mean == pytest.approx(0.8)
    assert final.deviation == pytest.approx(0.2 / 2**0.5)  # sample: divided by n - 1
    rounds, figures = method.curve("test_accuracy")
    assert rounds == [0, 1, 2]
    assert [f.mean for f in figures] == pytest.approx([0.2, 0.5, 0.8])
    assert figures[1].deviation == 0


def test_methods_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    found = methods(
        write(tmp_path, [0.1, 0.2]),
        write(tmp_path, [0.1, 0.2], strategy="fedprox", proximal_mu=1.0),
        write(tmp_path, [0.1, 0.2], strategy="fedprox", proximal_mu=0.01),
        write(tmp_path, [0.1, 0.2], local_epochs=9),
    )
    assert [method.label for method in found] == [
        "fedavg local-epochs=3",
        "fedprox proximal-mu=1 local-epochs=3",
        "fedprox proximal-mu=0.01 local-epochs=3",
        "fedavg local-epochs=9",
    ]


def test_an_option_of_another_strategy_makes_no_difference(tmp_path: Path) -> None:
    found = methods(
        write(tmp_path, [0.1, 0.2], seed=0, proximal_mu=1.0),
        write(tmp_path, [0.1, 0.2], seed=1, proximal_mu=0.5),
    )
    assert [method.seeds for method in found] == [[0, 1]]


def test_what_a_codec_says_itself_is_not_said_again(tmp_path: Path) -> None:
    found = methods(
        write(tmp_path, [0.1, 0.2], compression="none"),
        write(tmp_path, [0.1, 0.3], compression="int8", compression_ratio=0.3),
        write(tmp_path, [0.1, 0.4], compression="int8", error_feedback=True),
        write(tmp_path, [0.1, 0.4], compression="topk", compression_ratio=0.1),
        write(tmp_path, [0.1, 0.4], compression="int4"),
        write(
            tmp_path, [0.1, 0.5], compression="int4", compression_rounding="stochastic"
        ),
    )
    assert [method.label for method in found] == [
        "fedavg compression=none",
        "fedavg compression=int8",
        "fedavg compression=int8 error-feedback=True",
        "fedavg compression=topk compression-ratio=0.1",
        "fedavg compression=int4",
        "fedavg compression=int4 compression-rounding=stochastic",
    ]


def test_curves_that_end_far_apart_are_over_a_logarithmic_axis() -> None:
    def scale(*ends: float, far_apart: bool = True) -> str:
        axes = plots.new_figure(3, 3).subplots()
        bands = [
            comparison_picture.Band("a", [0, end / 2, end], [0.1, 0.5, 0.9], [None] * 3)
            for end in ends
        ]
        panel = comparison_picture.Panel(
            "t", "megabytes", comparison_picture.ACCURACY, bands, far_apart
        )
        comparison_picture._panel(axes, panel)
        assert len(axes.lines[0].get_xdata()) == (  # type: ignore[arg-type]
            2 if axes.get_xscale() == "log" else 3  # which has no place for 0
        )
        return str(axes.get_xscale())

    assert scale(100, 300) == "linear"
    assert scale(1, 300) == "log"
    assert scale(1, 300, far_apart=False) == "linear"


def test_the_beginning_does_not_dwarf_the_rest() -> None:
    def limits(up: str, *curves: list[float]) -> tuple[float, float]:
        bands = [
            comparison_picture.Band("a", range(len(c)), c, [0.01] * len(c))
            for c in curves
        ]
        panel = comparison_picture.Panel("t", "round", up, bands)
        return comparison_picture._limits(panel)

    rising = [0.1, 0.6, *[0.9] * 17, 0.92]  # two rounds are the beginning
    assert limits(comparison_picture.ACCURACY, rising) == pytest.approx((0.888, 0.932))
    other = [0.1, 0.6, *[0.8] * 18]
    low, _ = limits(comparison_picture.ACCURACY, rising, other)
    assert low == pytest.approx(0.79 - 0.05 * 0.14)
    assert limits(comparison_picture.ACCURACY, [1.0] * 20)[1] == 1.0
    falling = [2.3, 1.0, *[0.2] * 18]
    assert limits(comparison_picture.LOSS, falling) == pytest.approx((0.0, 0.211))
    assert limits(comparison_picture.ACCURACY, [0.5]) == (0.0, 1.0)


def test_a_single_point_can_be_seen() -> None:
    axes = plots.new_figure(3, 3).subplots()
    bands = [
        comparison_picture.Band(str(n), range(n), [0.5] * n, [None] * n) for n in (1, 3)
    ]
    panel = comparison_picture.Panel("t", "round", comparison_picture.ACCURACY, bands)
    comparison_picture._panel(axes, panel)
    assert [line.get_marker() for line in axes.lines] == ["o", ""]


def test_the_clients_momentum_is_not_the_servers(tmp_path: Path) -> None:
    options = {"strategy": "fedavgm", "fedavgm.momentum": 0.5}
    found = methods(
        write(tmp_path, [0.1, 0.2], momentum=0.0, **options),
        write(tmp_path, [0.1, 0.3], momentum=0.9, **options),
        write(tmp_path, [0.1, 0.4], momentum=0.9, regime="central"),
    )
    assert [method.label.split()[0] for method in found] == [
        "fedavgm",
        "fedavgm",
        "central",
    ]
    assert "momentum=0" in found[0].label
    assert "momentum=0.9" in found[1].label


def test_a_run_of_an_older_version_has_the_options_of_today(tmp_path: Path) -> None:
    older = write(tmp_path, [0.1, 0.2], seed=1)
    described = json.loads((older / "config.json").read_text())
    for option in ("test-path", "resume", "strategy-options", "max-update-norm"):
        del described["options"][option]
    (older / "config.json").write_text(json.dumps(described))
    (method,) = methods(write(tmp_path, [0.1, 0.2], seed=0), older)
    assert method.label == "fedavg"


def test_the_same_run_again_counts_once(tmp_path: Path) -> None:
    first = write(tmp_path, [0.1, 0.2])
    again = write(tmp_path, [0.1, 0.2], run_name="again")
    (method,) = methods(first, again, first)
    assert [run.name for run in method.runs] == [first.name]


def test_a_difference_is_taken_seed_by_seed(tmp_path: Path) -> None:
    fedavg = [write(tmp_path, [0, a], seed=s) for s, a in enumerate((0.5, 0.7, 0.9))]
    prox = [
        write(tmp_path, [0, a], seed=s, strategy="fedprox")
        for s, a in enumerate((0.6, 0.8, 0.9))
    ]
    alone = write(tmp_path, [0, 0.9], seed=9, local_epochs=9)
    ((label, difference, seeds),) = comparison.differences(
        methods(*fedavg, *prox, alone)
    )
    assert label == "fedprox proximal-mu=0.1 local-epochs=3 - fedavg local-epochs=3"
    assert difference.mean == pytest.approx(0.2 / 3)
    assert difference.deviation == pytest.approx((0.02 / 3 / 2) ** 0.5)
    assert seeds == [0, 1, 2]


@pytest.mark.parametrize(
    ("difference", "seeds", "said"),
    [
        # t(0.975, 2) = 4.3027, so three seeds need 2.484 deviations
        (Figure(0.025, 0.01), 3, "+0.0002 to +0.0498: a difference"),
        (Figure(-0.025, 0.01), 3, "-0.0498 to -0.0002: a difference"),
        (Figure(0.024, 0.01), 3, "-0.0008 to +0.0488: no difference shown"),
        (Figure(0.0, 0.0), 3, "+0.0000 to +0.0000: no difference shown"),
        (Figure(0.009, 0.01), 20, ": a difference"),
        (Figure(0.5, None), 1, "one seed says nothing of chance"),
    ],
)
def test_a_difference_is_what_chance_does_not_make(
    difference: Figure, seeds: int, said: str
) -> None:
    assert tables.verdict(difference, seeds).endswith(said)


def test_runs_without_a_test_split_are_judged_by_the_clients(tmp_path: Path) -> None:
    def without_test(seed: int, strategy: str) -> Path:
        path = write(tmp_path, [0.1, 0.2], seed=seed, strategy=strategy)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").open()]
        for row in rows:
            row["validation_accuracy"] = row["test_accuracy"]
            row["test_accuracy"] = row["test_loss"] = None
        RunFolder(path).write_metrics(rows)
        summary = RunFolder(path).summary() or {}
        RunFolder(path).write_summary(
            summary | {"final_test_accuracy": None, "final_test_loss": None}
        )
        return path

    found = methods(without_test(0, "fedavg"), without_test(0, "fedprox"))
    assert comparison.differences(found) == []
    assert "| fedavg | 0 | 1 |  |  | 10 |" in tables.markdown(found, 0)
    assert comparing.picture(found).startswith(b"\x89PNG")


def test_the_same_options_with_another_model_are_named(tmp_path: Path) -> None:
    one = write(tmp_path, [0.1, 0.2], run_name="one")
    other = write(tmp_path, [0.1, 0.3], run_name="other")
    with pytest.raises(ConfigError, match="runs one and other have the same options"):
        methods(one, other)


def test_the_tail_is_the_last_rounds(tmp_path: Path) -> None:
    (method,) = methods(
        write(tmp_path, [0.9, 0.1, 0.4, 0.6], seed=0),
        write(tmp_path, [0.9, 0.1, 0.5, 0.9], seed=1),
    )
    mean = method.tail_mean("test_accuracy", 2)
    by_round = method.tail_deviation("test_accuracy", 2)
    assert mean is not None
    assert by_round is not None
    assert mean.mean == pytest.approx((0.5 + 0.7) / 2)
    assert by_round.mean == pytest.approx((0.2 / 2**0.5 + 0.4 / 2**0.5) / 2)
    assert method.tail_deviation("test_accuracy", 1) is None


def test_rounds_that_a_run_did_not_measure_are_left_out(tmp_path: Path) -> None:
    sparse = write(tmp_path, [0.1, 0.2, 0.3], seed=1)
    metrics = sparse / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([lines[0], lines[2]]))
    (method,) = methods(write(tmp_path, [0.1, 0.2, 0.3], seed=0), sparse)
    assert method.curve("test_accuracy")[0] == [0, 2]


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    monkeypatch.setenv("FL_APP_PROJECT", str(tmp_path))
    names = [
        write(results, [0.1, 0.5 + s / 10], seed=s, strategy=strategy).name
        for strategy in ("fedavg", "fedprox")
        for s in range(3)
    ]
    console = Console(file=io.StringIO(), width=200)
    folder = comparing.write(console, [*names, names[0]], 1, "out")
    assert folder == tmp_path / "out"
    text = (folder / "comparison.md").read_text()
    assert (
        "| fedavg | 0 1 2 | 1 | 0.6000 ± 0.1000 | 0.4000 ± 0.1000 | 10 | 1.50 |" in text
    )
    assert "| fedprox proximal-mu=0.1 | 0 1 2 |" in text
    assert (
        "- fedprox proximal-mu=0.1 - fedavg: +0.0000 ± 0.0000 (3 seeds; 95 % interval"
        in text
    )
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.6000 ± 0.1000" in said
    assert f"left out, the same run again: {names[0]}" in said
    picture = Image.open(folder / "comparison.png").convert("RGB")
    drawn = {colour for _, colour in picture.getcolors(1 << 24) or []}
    assert {(0, 114, 178), (213, 94, 0)} <= drawn


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    going_on = write(tmp_path, [0.1], finished=False, run_name="going-on")
    with pytest.raises(ConfigError, match="run going-on did not finish"):
        methods(going_on)
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        methods(tmp_path)


def test_the_spread_over_clients_by_hand() -> None:
    spread = Spread.of([0.5, 1.0, 0.9, 0.8])
    assert spread.mean == pytest.approx(0.8)
    assert spread.deviation == pytest.approx(((0.09 + 0.04 + 0.01) / 4) ** 0.5)
    assert spread.worst == 0.5
    assert spread.jain == pytest.approx(3.2**2 / (4 * (0.25 + 1 + 0.81 + 0.64)))
    twenty = Spread.of([0.1, 0.3, *[0.9] * 18])
    assert twenty.worst == pytest.approx(0.2)  # two of them
    assert Spread.of([0.7] * 30).jain == pytest.approx(1)
    assert Spread.of([1.0] + [0.0] * 9).jain == pytest.approx(0.1)
    assert Spread.of([0.0, 0.0]).jain == 1


def test_the_table_tells_the_spread(tmp_path: Path) -> None:
    runs = [
        write(tmp_path, [0.1, a], seed=s, client_accuracy={"0": a, "1": a - 0.2})
        for s, a in ((0, 0.8), (1, 0.9))
    ]
    header, (row,) = tables.table(methods(*runs), 0)
    cells = dict(zip(header, row, strict=True))
    assert cells["clients: mean accuracy"] == "0.7500 ± 0.0707"
    assert cells["clients: deviation"] == "0.1000 ± 0.0000"
    assert cells["clients: worst 10 %"] == "0.6500 ± 0.0707"
    header, _ = tables.table(methods(write(tmp_path, [0.1, 0.2])), 0)
    assert "clients: deviation" not in header


def test_curves_by_what_was_spent(tmp_path: Path) -> None:
    (method,) = methods(write(tmp_path, [0.1, 0.5, 0.7]))
    both = ("upload_bytes", "download_bytes")
    assert method.spent(both, [0, 1, 2]) == [0, 2_000_000, 4_000_000]
    assert method.spent(["seconds"], [2]) == [5]
    (band,) = comparing.bands([method], "test_accuracy", both, 1e-6)
    assert list(band.places) == [0, 2, 4]
    assert list(band.means) == [0.1, 0.5, 0.7]


def test_what_sends_nothing_has_no_curve_by_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, [0.1, 0.5], regime="central")
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(
        text.replace("1500000", "null").replace("500000", "null")
    )
    found = methods(write(tmp_path, [0.1, 0.5]), path)
    sending, central = comparing.bands(found, "test_accuracy", ["upload_bytes"])
    assert sending.places
    assert (list(central.places), list(central.means)) == ([], [])
    assert comparing.picture(found).startswith(b"\x89PNG")


def test_a_run_that_is_not_there_is_named_with_what_may_be_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_APP_PROJECT", str(tmp_path))

    def said(name: str) -> str:
        with pytest.raises(ConfigError) as refused:
            comparing.write(Console(), [name], 1, "out")
        return str(refused.value)

    assert said("mnist-fedavg").endswith("; there is none yet")
    for number in range(12):
        RunFolder.create(
            make_config(
                run_name=f"run-{number:02}", results_dir=str(tmp_path / "results")
            )
        )
    assert "did you mean run-07" in said("run-7")
    assert said("zebra").endswith(
        "there are: run-00, "
        + ", ".join(f"run-{number:02}" for number in range(1, 10))
        + " ..."
    )
