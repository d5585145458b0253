"""The code paths of a GPU, on a device that stands in for one: see `tests.stand_in`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import stand_in
from tests.conftest import PROJECT

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler"),
]

FILES = [
    "stand_in/checks.py",
    "test_run.py",
    "test_server_optimizers.py",
    "test_together.py",
]
OF_CPUS = [
    "test_small_convolutions_give_one_model_on_any_number_of_nodes",
    "test_the_golden_model",
]
"""Tests of what is so on a CPU alone."""


def test_all_that_trains_does_so_beside_the_cpu(tmp_path: Path) -> None:
    library = stand_in.build(tmp_path)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n", "2"),
            *("-p", "tests.stand_in", "-p", "no:cacheprovider"),
            *("-k", " and ".join(f"not {name}" for name in OF_CPUS)),
            *(f"tests/{name}" for name in FILES),
        ],
        cwd=PROJECT,
        env={**os.environ, stand_in.BUILT: str(library)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > 100
