"""The Dockerfile, instruction for instruction, in a clean root without an engine."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT
from tests.dockerfile import Image, bare

pytestmark = [
    pytest.mark.image,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("debootstrap") is None,
        reason="needs root and debootstrap (Debian's package)",
    ),
]
ADDRESS = "http://127.0.0.1:8000"


def ask(path: str, token: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
    }
    request = urllib.request.Request(ADDRESS + path, data, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_the_image_serves_and_trains_by_itself(tmp_path: Path) -> None:
    root = tmp_path / "root"
    bare(root)
    image = Image(root, {"TORCH_INDEX": "https://pypi.org/simple"})  # as for a GPU
    image.build(PROJECT / "Dockerfile")
    assert image.user == "fl-app"
    done = image.run(["id", "-un"])
    assert done.stdout.strip() == "fl-app", done.stderr
    assert image.run(["touch", "/opt/fl-app/fl_app/x"]).returncode != 0
    service = subprocess.Popen(
        image.entering(image.command, image.user),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert service.stdout is not None
        said = []
        for line in service.stdout:  # it ends, should the service end
            said.append(line)
            if found := re.match(r"token +(\S+)", line):
                break
        assert found, "".join(said)
        assert f"address  {ADDRESS}\n" in said
        deadline = time.monotonic() + 60
        while image.run(image.health).returncode != 0:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        options = {"num-server-rounds": 2, "run-name": "first"}
        ask("/train", found[1], options)
        deadline = time.monotonic() + 180
        while (run := ask("/runs/first", found[1]))["status"] in ("queued", "running"):
            assert time.monotonic() < deadline, run
            time.sleep(1)
        assert run["status"] == "finished", run
        assert run["summary"]["rounds"] == 2
    finally:
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children")
        for first in children.read_text().split():  # all of its processes end with it
            os.kill(int(first), signal.SIGKILL)
        service.wait()
    assert image.run(image.health).returncode != 0
