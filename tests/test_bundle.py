"""What travels to the nodes: the code, and nothing else."""

import io
import zipfile
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from fl_app.submission import build_bundle
from tests.conftest import PROJECT


def names(bundle: bytes) -> set[str]:
    return set(zipfile.ZipFile(io.BytesIO(bundle)).namelist())


def test_the_list_of_files() -> None:
    code = {
        path.relative_to(PROJECT).as_posix()
        for package in ("fl_app", "strategies")
        for path in (PROJECT / package).rglob("*.py")
    }
    extra = {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
    bundle = build_bundle(PROJECT)
    assert names(bundle) == code | extra
    assert {"fl_app/data/datasets.py", "strategies/fedprox.py"} < code
    assert len(bundle) < 1_000_000


def test_it_is_the_bundle_that_flower_builds(tmp_path: Path) -> None:
    # Of a copy without the environment: Flower walks all of it.
    for path in build_places():
        target = tmp_path / "app" / path.relative_to(PROJECT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "app" / "results").mkdir()
    (tmp_path / "app" / "results" / "summary.json").write_text("{}")
    assert build_bundle(PROJECT) == build_fab_from_disk(tmp_path / "app")


def build_places() -> list[Path]:
    code = [p for d in ("fl_app", "strategies") for p in (PROJECT / d).rglob("*.py")]
    top = ["pyproject.toml", "README.md", "LICENSE", ".gitignore", "Makefile"]
    return [*code, *(PROJECT / name for name in top)]
