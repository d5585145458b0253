"""The report of a run: all its parts, nothing fetched, a command that repeats it."""

import re
import shlex
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fl_app import cli, client_app, report
from fl_app.artifacts import RunFolder
from tests.conftest import default_options, make_config
from tests.test_run import run, sha


class Links(HTMLParser):
    """Collects what a page would fetch, and checks that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(folder: RunFolder) -> str:
    return (folder.path / "report.html").read_text()


def repeated(folder: RunFolder, results: Path) -> RunFolder:
    """Run again what the report's command says."""
    (line,) = re.findall(r"<pre><code>(.*?)</code>", text_of(folder), flags=re.DOTALL)
    words = shlex.split(line.replace("&#34;", '"').replace("&#39;", "'"))
    assert words[:3] == ["fl-app", "run", "-c"]
    _, given = cli.resolve([words[3]])
    options = {key.replace("-", "_"): value for key, value in given.items()}
    return run(results, run_name="again", **{
        "model": "auto", "num_server_rounds": "auto", "local_epochs": "auto",
        "num_clients": "auto", **options,
    })  # fmt: skip


def test_it_tells_all_and_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = client_app.ClientWork.train

    def train(work: Any, client: int, **options: Any) -> Any:
        if client == 2:
            raise RuntimeError("<b>no</b> & never")
        return honest(work, client, **options)

    monkeypatch.setattr(client_app.ClientWork, "train", train)
    folder = run(tmp_path, run_name="told")
    text = text_of(folder)
    page = Links()
    page.feed(text)
    assert page.open == []
    assert len(page.found) == 2
    assert all(link.startswith("data:image/png;base64,") for link in page.found)
    assert "http" not in re.sub(r"<code>.*?</code>", "", text)
    summary = folder.summary()
    assert summary is not None
    for said in (
        f"{summary['final_test_accuracy']:.4f}",
        summary["model_sha256"],
        "&lt;b&gt;no&lt;/b&gt; &amp; never",
        "digits, logistic,",
        "Failures",
        "torch",
        *(f"<td>{each:.4f}</td>" for each in summary["client_accuracy"].values()),
    ):
        assert said in text
    assert len(summary["client_accuracy"]) > 1
    assert "<b>no</b>" not in text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "fedprox", "proximal_mu": 0.5, "seed": 3},
        {"partitioner": "classes", "optimizer": "adam", "fraction_train": 0.5},
        {"strategy": "trimmed-mean", "trimmed-mean.beta": 0.3, "augment": False},
    ],
)
def test_its_command_repeats_the_run(tmp_path: Path, options: dict[str, Any]) -> None:
    first = run(tmp_path, run_name="first", **options)
    assert sha(repeated(first, tmp_path)) == sha(first)


def test_the_default_needs_no_option() -> None:
    assert report.command(make_config().options()) == "fl-app run"
    central = make_config(regime="central").options()
    assert report.command(central) == "fl-app baseline"
    alone = make_config(regime="local-only", seed=4).options()
    assert report.command(alone) == "fl-app baseline --local-only -c 'seed=4'"
    assert "trimmed-mean.beta" in default_options()


def test_what_is_odd_in_an_option_stays_in_it() -> None:
    odd = '/data/o\'brien \\ "x" $(y)'
    line = report.command(make_config(test_path=odd).options())
    fl_app, verb, flag, text = shlex.split(line)
    assert (fl_app, verb, flag) == ("fl-app", "run", "-c")
    assert tomllib.loads(text) == {"test-path": odd}
    private = report.command(make_config(dataset="private").options())
    assert private.startswith("fl-app network --data DIR")


def test_one_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> str:
        raise KeyError("nothing")

    monkeypatch.setattr(report, "page", broken)
    folder = run(tmp_path)
    assert folder.summary() is not None
    assert "report.html could not be made" in caplog.text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not there")
@pytest.mark.parametrize("size", ["1200,1600", "400,900"])
def test_a_browser_shows_it(tmp_path: Path, size: str) -> None:
    folder = run(tmp_path, run_name="shown")
    shot = tmp_path / "shot.png"
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu"),
            *(f"--window-size={size}", f"--screenshot={shot}"),
            (folder.path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shot.exists(), done.stderr
    assert "ERROR:CONSOLE" not in done.stderr
    with Image.open(shot) as picture:
        shown = picture.convert("RGB").getcolors(maxcolors=2**20)
    assert shown is not None
    assert len(shown) > 50
