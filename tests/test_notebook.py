"""The walkthrough runs, and what is committed of it is what it says today."""

import base64
import contextlib
import importlib.util
import io
import os
import signal
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

from tests.conftest import PROJECT
from tests.test_network import processes_of

FOLDER = PROJECT / "notebooks"


@pytest.fixture(scope="module")
def refresh() -> Any:
    path = FOLDER / "refresh.py"
    spec = importlib.util.spec_from_file_location("refresh", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any) -> str:
    return "".join(o.get("text", "") for o in cell.outputs if o.get("name") == "stdout")


def pictures(cell: Any) -> list[str]:
    return [
        output.data["image/png"]
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


@pytest.mark.notebook
def test_it_runs_and_shows_what_is_committed(
    refresh: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own cells assert that the federation by hand equals Flower's to the bit."""
    committed = nbformat.read(refresh.NOTEBOOK, as_version=4)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))  # a SuperLink of its own
    try:
        executed = refresh.execute()
    finally:
        for pid in processes_of(tmp_path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    refresh.shrink(executed)
    for before, after in zip(code_of(committed), code_of(executed), strict=True):
        assert after.execution_count is not None
        assert bool(texts(before)) == bool(texts(after))
        assert len(pictures(before)) == len(pictures(after))
    (before, after) = (
        "".join(map(texts, code_of(notebook))) for notebook in (committed, executed)
    )
    assert after.splitlines()[0] == before.splitlines()[0]
    assert "skew: 0.297" in before
    assert "skew: 0.297" in after  # the split is the same on every machine


def test_its_pictures_are_small(refresh: Any) -> None:
    committed = nbformat.read(refresh.NOTEBOOK, as_version=4)
    assert refresh.NOTEBOOK.stat().st_size < 200_000
    found = [p for cell in code_of(committed) for p in pictures(cell)]
    assert len(found) == 5
    for encoded in found:
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).width > 400
