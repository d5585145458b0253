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

TESTS = [
    "stand_in/checks.py",
    "test_run.py::test_the_number_of_nodes_does_not_change_a_bit",
    "test_server_optimizers.py::test_all_learn_alike_on_any_number_of_nodes",
    "test_together.py",
]


def test_all_that_trains_does_so_beside_the_cpu(tmp_path: Path) -> None:
    library = stand_in.build(tmp_path)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n", "2"),
            *("-p", "tests.stand_in", "-p", "no:cacheprovider"),
            *(f"tests/{name}" for name in TESTS),
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
    assert int(passed[1]) > 80
