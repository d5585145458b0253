"""The service keeps to its OpenAPI document, whatever it is asked."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from fl_app.serving.app import Settings, create
from fl_app.serving.jobs import Jobs
from tests.conftest import PROJECT
from tests.test_serving import results  # noqa: F401 - a fixture

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest.fixture
def address(
    results: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """Serve on loopback; trainings queue and do not begin, streams end soon."""
    monkeypatch.setattr(Jobs, "advance", lambda _: None)
    settings = Settings(results, PROJECT, stream_seconds=0.1)
    server = uvicorn.Server(uvicorn.Config(create(settings), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def ask(address: str, folder: Path, examples: int) -> tuple[int, str]:
    """Return the number of cases asked and the report; each phase, all checks."""
    config = Path(__file__).with_name("schemathesis.toml")
    done = subprocess.run(
        [
            *(str(SCHEMATHESIS), "--config-file", str(config), "run"),
            *(f"{address}/openapi.json", "--checks", "all", "--seed", "0"),
            *("--max-examples", str(examples), "--no-color"),
            *("--continue-on-failure", "--warnings", "off"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    generated = re.search(r"(\d[\d,]*) generated", said)
    assert generated, said
    return int(generated[1].replace(",", "")), said


def test_the_service_keeps_to_its_document(address: str, tmp_path: Path) -> None:
    cases, said = ask(address, tmp_path, examples=15)
    assert cases > 500
    assert "Tested: 12" in said


@pytest.mark.cases
def test_ten_thousand_cases(address: str, tmp_path: Path) -> None:
    cases, _ = ask(address, tmp_path, examples=850)
    assert cases >= 10_000
