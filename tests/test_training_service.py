"""Trainings over HTTP: queued, followed, stopped, and still there after a kill."""

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click import ClickException
from filelock import FileLock
from starlette.testclient import TestClient

from fl_app import simulation
from fl_app.artifacts import RunFolder
from fl_app.config import ConfigError
from fl_app.network import free_port
from fl_app.serving import jobs as job_files
from fl_app.serving import service, train_routes
from fl_app.serving.app import Settings, create
from fl_app.serving.catalogue import is_held
from fl_app.serving.jobs import MAX_QUEUED, Jobs, QueueFullError
from tests.conftest import PROJECT
from tests.test_cli import FL_APP
from tests.test_network import processes_of

# In place of `fl-app run`: writes a run's files, a round each time it is told to.
FAKE = """#!{python}
import json, os, signal, sys, time, tomllib
from pathlib import Path

sys.path.insert(0, {project!r})
from filelock import FileLock
from fl_app.artifacts import RunFolder, StoppedError
from fl_app.config import RunConfig
from fl_app.data.datasets import recipe_for
from fl_app.environment import default_options

options = tomllib.loads(Path(sys.argv[-1]).read_text())
declared = default_options(Path({project!r}))
config = RunConfig.from_options(declared | options, recipe_for)
if config.seed == 13:
    sys.exit("error: unlucky")
folder = RunFolder.create(config)
(folder.path / "checkpoint").mkdir()
rows = []

def stop(*_):
    folder.write_error(StoppedError("it was stopped by the user"))
    sys.exit(1)

signal.signal(signal.SIGTERM, stop)
with FileLock(folder.path / "checkpoint" / ".lock"):
    for number in range(config.num_server_rounds + 1):
        while not (folder.path.parent / f"go-{{number}}").exists():
            time.sleep(0.02)
        for row in rows[-1:]:
            row["validation_accuracy"] = row["round"] / 20
        rows.append({{"round": number, "test_accuracy": number / 10, "test_loss": 1.0}})
        folder.write_metrics(rows)
    folder.write_summary({{"final_test_accuracy": number / 10, "rounds": number}})
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    script = tmp_path / "bin" / "fl-app"
    script.parent.mkdir()
    script.write_text(FAKE.format(python=sys.executable, project=str(PROJECT)))
    script.chmod(0o755)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(job_files.sys, "executable", str(tmp_path / "bin" / "python"))
    made = Jobs(tmp_path / "results", PROJECT, nodes=2)
    yield made
    for job in made.all():
        if made.is_alive(job):
            os.kill(job.pid, signal.SIGKILL)


def until(holds: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)
    return value


def let(queue: Jobs, *rounds: int) -> None:
    for number in rounds:
        (queue._results / f"go-{number}").touch()


ADDRESS = "http://127.0.0.1"
QUICK: dict[str, Any] = {"num-server-rounds": 2, "seed": 1}


def test_one_trains_at_a_time_in_order(queue: Jobs) -> None:
    first, second = (queue.submit(QUICK | {"run-name": name}) for name in "ab")
    assert [job.id for job in queue.queued()] == ["a", "b"]
    begun = queue.advance()
    assert begun is not None
    assert begun.id == first.id
    assert queue.advance() is None
    let(queue, 0, 1, 2)
    until(lambda: not queue.is_alive(begun))
    assert queue.folder_of(first).summary() == {"final_test_accuracy": 0.2, "rounds": 2}
    begun = queue.advance()
    assert begun is not None
    assert begun.id == second.id


def test_another_service_takes_up_what_the_first_left(queue: Jobs) -> None:
    for name in "ab":
        queue.submit(QUICK | {"run-name": name})
    begun = queue.advance()
    later = Jobs(queue._results, PROJECT, nodes=2)
    assert later.running() == begun
    assert later.advance() is None
    let(queue, 0, 1, 2)
    until(queue.advance)  # `a` is done: this takes its exit status, too
    assert [job.id for job in later.queued()] == []


def test_two_services_start_a_training_once(queue: Jobs) -> None:
    """Of one folder, at the same time: the other's would be in no file."""
    services = [queue, *(Jobs(queue._results, PROJECT, nodes=2) for _ in range(5))]
    for name in "abc":
        job = queue.submit(QUICK | {"run-name": name})
        with ThreadPoolExecutor(len(services)) as pool:
            begun = [one for one in pool.map(Jobs.advance, services) if one]
        assert begun == [queue.find(name)]
        for one in services:
            one.stop(job)
        until(lambda: services[0].running() is None)


def test_whether_a_run_goes_on_can_be_asked_by_many(queue: Jobs) -> None:
    """Each holds it for a moment, which is not to be taken for the run."""
    folder = RunFolder(queue._results / "one")
    (folder.path / "checkpoint").mkdir(parents=True)
    (folder.path / "checkpoint" / ".lock").touch()
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(is_held, [folder] * 400))


def test_what_one_service_ended_another_goes_on_with(queue: Jobs) -> None:
    """The first knows its own process alone, which has ended."""
    first, second = queue, Jobs(queue._results, PROJECT, nodes=2)
    first.submit(QUICK | {"run-name": "one", "seed": 13})  # which fails
    failed = first.advance()
    assert failed is not None
    until(lambda: not first.is_alive(failed))
    second.submit(QUICK | {"run-name": "one"})
    begun = second.advance()
    assert begun is not None
    assert first.is_alive(begun)
    assert first.running() == begun


def test_a_service_that_keeps_the_trainings_is_told_of(
    queue: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_files, "_PATIENCE", 0.1)
    settings = Settings(queue._results, PROJECT)
    queue.submit({"run-name": "one"})
    with queue._alone(), TestClient(create(settings), base_url=ADDRESS) as client:
        for path in ("/train", "/runs/one/stop"):
            answer = client.post(path)
            assert answer.status_code == 503
            assert "another service" in answer.json()["detail"]


def test_a_training_is_not_told_the_services_secret(
    queue: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_APP_TOKEN", "a secret")
    queue.submit(QUICK | {"run-name": "a"})
    begun = queue.advance()
    assert begun is not None
    variables = Path(f"/proc/{begun.pid}/environ").read_bytes()
    assert b"PATH=" in variables
    assert b"a secret" not in variables


def test_a_pid_that_is_anothers_now_is_no_job(queue: Jobs) -> None:
    job = job_files.Job("x", {}, {}, 0.0, pid=os.getpid(), born=1)
    assert not queue.is_alive(job)


def test_the_queue_is_bounded(queue: Jobs) -> None:
    for number in range(MAX_QUEUED):
        queue.submit({"run-name": f"run-{number}"})
    with pytest.raises(QueueFullError, match="8 trainings wait already"):
        queue.submit({})
    assert len(queue.queued()) == MAX_QUEUED


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"results-dir": "/tmp"}, "results-dir cannot be set over HTTP"),
        ({"data-dir": "/etc"}, "data-dir cannot be set"),
        ({"initial-model": "x"}, "initial-model cannot be set"),
        ({"test-path": "x"}, "test-path cannot be set"),
        ({"resume": "x"}, "there is no such run$"),
        ({"resume": "../x"}, "not the name of a run"),
        ({"regime": "central"}, "regime cannot be set"),
        ({"dataset": "/etc"}, "dataset must be one of"),
        ({"dataset": "owner/name"}, "dataset must be one of"),
        ({"run-name": "../x"}, "run-name = '../x' is not allowed"),
        ({"learning-rate": "fast"}, "learning-rate = 'fast' is not allowed"),
        ({"strategy": "fedmagic"}, "there are: fedadam"),
        ({"nonsense": 1}, "option nonsense is unknown"),
        ({"min-nodes": 99}, "min-nodes must be at most 2"),
        ({"strategy": "scaffold", "optimizer": "adam"}, "use optimizer = 'sgd'"),
    ],
)
def test_what_is_not_allowed_is_not_queued(
    queue: Jobs, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        queue.submit(options)
    assert queue.all() == []


def test_a_name_is_taken_once(queue: Jobs) -> None:
    queue.submit({"run-name": "a"})
    with pytest.raises(ConfigError, match="'a' is taken"):
        queue.submit({"run-name": "a"})


# --- over HTTP, with the trainings faked


@pytest.fixture
def client(queue: Jobs) -> Iterator[TestClient]:
    settings = Settings(queue._results, PROJECT)
    with TestClient(create(settings), base_url=ADDRESS) as found:
        yield found


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_a_training_from_start_to_end(queue: Jobs, client: TestClient) -> None:
    answer = client.post("/train", json=QUICK | {"run-name": "one"})
    assert (answer.status_code, answer.json()) == (
        202, {"id": "one", "status": "queued"},
    )  # fmt: skip
    until(lambda: client.get("/runs/one").json()["status"] == "running")
    let(queue, 0, 1)
    until(lambda: client.get("/runs/one").json()["rounds"] == 1)
    let(queue, 2)
    told = events(client.get("/runs/one/events").text)
    assert [kind for kind, _ in told][-2:] == ["round", "end"]
    newest = {row["round"]: row for kind, row in told if kind == "round"}
    assert list(newest) == [0, 1, 2]
    assert told[-1][1]["status"] == "finished"
    assert client.get("/runs/one").json()["summary"]["rounds"] == 2
    assert client.post("/runs/one/stop").status_code == 409


def test_a_stream_goes_on_where_it_was_cut(queue: Jobs, client: TestClient) -> None:
    client.post("/train", json=QUICK | {"run-name": "one"})
    let(queue, 0, 1, 2)
    answer = client.get("/runs/one/events", headers={"Last-Event-ID": "1"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [kind for kind, _ in events(answer.text)] == ["round", "end"]


def test_a_training_that_is_stopped(queue: Jobs, client: TestClient) -> None:
    for name in ("one", "two"):
        client.post("/train", json=QUICK | {"run-name": name})
    until(lambda: client.get("/runs/one").json()["status"] == "running")
    assert client.get("/runs/two").json()["status"] == "queued"
    assert client.post("/runs/two/stop").json()["status"] == "stopped"
    stopping = client.post("/runs/one/stop")
    assert stopping.status_code == 202
    assert stopping.json()["status"] in ("stopping", "stopped")
    until(lambda: client.get("/runs/one").json()["status"] != "stopping")
    assert client.get("/runs/one").json()["status"] == "stopped"
    again = client.post("/runs/one/stop")
    assert again.status_code == 409
    assert "nothing to stop" in again.json()["detail"]
    assert {line["id"] for line in client.get("/runs").json()} == {"one", "two"}


def test_a_training_that_fails_says_why(client: TestClient) -> None:
    client.post("/train", json={"seed": 13, "run-name": "bad"})
    told = until(
        lambda: (r := client.get("/runs/bad").json())["status"] == "failed" and r
    )
    assert told["error"]["message"] == "unlucky"
    assert events(client.get("/runs/bad/events").text)[-1][1]["status"] == "failed"


def test_without_a_body_the_default_is_trained(queue: Jobs, client: TestClient) -> None:
    answer = client.post("/train")
    assert answer.status_code == 202
    job = queue.find(answer.json()["id"])
    assert job is not None
    assert job.resolved["dataset"] == "digits"
    assert job.resolved["seed"] == 0


@pytest.mark.parametrize(
    "body", [[1], "x", {"seed": [1]}, {"seed": None}, {"seed": -1}, {"nonsense": 1}]
)
def test_a_bad_body_is_described(client: TestClient, body: Any) -> None:
    answer = client.post("/train", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"]


def test_a_body_that_is_no_json_is_refused(client: TestClient) -> None:
    answer = client.post(
        "/train", content=b"\xff{", headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["detail"]


def test_a_full_queue_says_so(queue: Jobs, client: TestClient) -> None:
    answers = [client.post("/train").status_code for _ in range(MAX_QUEUED + 3)]
    assert answers[0] == 202
    assert answers[-1] == 429


# --- for real


def call(port: int, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data,
        {"Content-Type": "application/json"} if data else {},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as response:
        return json.loads(response.read())


def serving(results: Path, home: Path, port: int) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [str(FL_APP), "serve", "--port", str(port), "--results-dir", str(results)],
        env={**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"},
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        try:
            return bool(call(port, "/health")["status"] == "ok")
        except (urllib.error.URLError, OSError):
            return False

    until(answers, 60)
    return process


@pytest.mark.network
def test_a_training_outlives_the_service(tmp_path: Path) -> None:
    """kill -9 of the service in mid-training: the training ends well, and is told."""
    results, home, port = tmp_path / "results", tmp_path / "flwr", free_port()
    options = {
        "run-name": "kept",
        "model": "logistic",
        "num-server-rounds": 6,
        "local-epochs": 10,
        "num-clients": 20,
    }
    first = serving(results, home, port)
    second = None
    try:
        assert call(port, "/train", options) == {"id": "kept", "status": "queued"}
        until(lambda: call(port, "/runs/kept")["rounds"] >= 1, 120)
        first.kill()
        first.wait()
        second = serving(results, home, port)
        told = call(port, "/runs/kept")
        assert told["status"] in ("running", "finished")
        until(lambda: call(port, "/runs/kept")["status"] == "finished", 120)
        told = call(port, "/runs/kept")
        assert [row["round"] for row in told["metrics"]] == list(range(7))
        assert told["summary"] == RunFolder(results / "kept").summary()
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()
        for pid in processes_of(tmp_path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_job_is_stopped_or_begun_and_not_both(queue: Jobs) -> None:
    for name in "abcdefgh":
        job = queue.submit(QUICK | {"run-name": name})
        with ThreadPoolExecutor(2) as pool:
            begun = pool.submit(queue.advance)
            assert pool.submit(queue.stop, job).result()
        now = queue.find(name)
        assert now is not None
        assert now.cancelled
        assert bool(now.pid) == (begun.result() is not None)
        until(lambda now=now: not queue.is_alive(now))


def test_the_queue_takes_no_more_than_it_may(queue: Jobs) -> None:
    def submit(number: int) -> bool:
        with contextlib.suppress(QueueFullError, ConfigError):
            queue.submit(QUICK | {"run-name": f"run-{number // 2}"})
            return True
        return False

    with ThreadPoolExecutor(12) as pool:
        taken = list(pool.map(submit, range(24)))
    assert sum(taken) == MAX_QUEUED == len(queue.queued())
    assert not any(a and b for a, b in zip(taken[::2], taken[1::2], strict=True))


def test_nothing_begins_beside_a_run_whose_process_is_gone(queue: Jobs) -> None:
    job = queue.submit(QUICK | {"run-name": "one"})
    queue.submit(QUICK | {"run-name": "two"})
    queue.advance()
    now = until(lambda: queue.find("one"))
    until(queue.folder_of(job).config)
    os.kill(now.pid, signal.SIGKILL)
    until(lambda: not queue.is_alive(now))
    with FileLock(queue.folder_of(job).path / "checkpoint" / ".lock"):
        assert queue.running() == now  # a SuperLink's process holds its folder
        assert queue.advance() is None
    begun = queue.advance()
    assert begun is not None
    assert begun.id == "two"


def test_a_run_whose_process_is_gone_is_stopped_in_flower(
    queue: Jobs, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    class Connected:
        def stop(self, run_id: int) -> None:
            if told == []:
                told.append(run_id)
                raise ClickException("no SuperLink")
            told.append(run_id)

    monkeypatch.setattr(simulation, "connect", lambda project: Connected())
    job = queue.submit(QUICK | {"run-name": "one"})
    queue.advance()
    folder = queue.folder_of(job)
    until(folder.config)
    now = until(lambda: queue.find("one"))
    os.kill(now.pid, signal.SIGKILL)
    until(lambda: not queue.is_alive(now))
    assert client.post("/runs/one/stop").status_code == 409  # nobody writes it
    with FileLock(folder.path / "checkpoint" / ".lock"):
        assert client.post("/runs/one/stop").status_code == 409  # nor known to Flower
        folder.write_flower_run(2**64 - 1)
        answer = client.post("/runs/one/stop")
        assert (answer.status_code, answer.json()) == (503, {"detail": "no SuperLink"})
        assert client.post("/runs/one/stop").status_code == 202
        assert client.get("/runs/one").json()["status"] == "stopping"
        assert client.post("/runs/one/stop").status_code == 202  # and not told twice
    assert told == [2**64 - 1] * 2
    error = until(folder.error)
    assert error["type"] == "StoppedError"
    until(lambda: client.get("/runs/one").json()["status"] == "stopped")


def test_a_run_that_was_stopped_goes_on(queue: Jobs, client: TestClient) -> None:
    client.post("/train", json=QUICK | {"run-name": "one"})
    until(RunFolder(queue._results / "one").config)
    client.post("/train", json=QUICK | {"run-name": "between"})
    refused = client.post("/train", json={"resume": "one"})
    assert refused.status_code == 422
    assert "going on" in refused.json()["detail"]
    client.post("/runs/one/stop")
    until(lambda: client.get("/runs/one").json()["status"] == "stopped")
    for odd, said in (
        ({"resume": "../one"}, "not the name"),
        ({"resume": "two"}, "no such run"),
        ({"resume": "one", "seed": 5}, "seed"),
        ({"resume": "one", "data-dir": "/"}, "data-dir"),
    ):
        answer = client.post("/train", json=odd)
        assert answer.status_code == 422
        assert said in answer.json()["detail"]
    answer = client.post("/train", json={"resume": "one", "num-server-rounds": 5})
    assert answer.json() == {"id": "one", "status": "queued"}
    assert client.get("/runs").json()[0]["id"] == "one"
    told = client.get("/runs/one").json()
    assert (told["status"], told["error"]) == ("queued", None)
    job = queue.find("one")
    assert job is not None
    assert job.options["resume"] == "one"
    assert job.resolved["num-server-rounds"] == 5
    assert client.post("/runs/one/stop").json()["status"] == "stopped"


def test_lists_are_in_order_of_time(queue: Jobs, client: TestClient) -> None:
    client.post("/train", json={"seed": 13, "run-name": "first"})
    until(lambda: client.get("/runs/first").json()["status"] == "failed")
    client.post("/train", json=QUICK | {"run-name": "second"})
    until(lambda: client.get("/runs/second").json()["status"] == "running")
    for name in ("third", "fourth"):
        client.post("/train", json=QUICK | {"run-name": name})
    ids = [line["id"] for line in client.get("/runs").json()]
    assert ids == ["fourth", "third", "second", "first"]


def test_what_is_most_often_forgotten_is_said(client: TestClient) -> None:
    answer = client.post("/train", content='{"seed": 1}')
    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.json()["detail"]
    answer = client.post("/train", json={"num_clients": 3})
    assert answer.json()["detail"].endswith("did you mean num-clients?")


@pytest.mark.parametrize("wrong", ["/dev/null/runs", "/proc"])
def test_a_service_does_not_begin_without_a_folder(wrong: str) -> None:
    with pytest.raises(ConfigError, match="results-dir"):
        service.check(Path(wrong), "", "127.0.0.1", free_port())


def test_a_service_does_not_begin_on_a_port_that_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        service.check(tmp_path, str(tmp_path / "no"), "127.0.0.1", free_port())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="--port"):
            service.check(tmp_path, "", "127.0.0.1", port)
    service.check(tmp_path, str(tmp_path), "127.0.0.1", free_port())


def test_trainings_long_over_are_forgotten(
    queue: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_files, "_REMEMBERED", 2)
    for name in "abcd":
        queue.stop(queue.submit(QUICK | {"run-name": name}))
    queue.submit(QUICK | {"run-name": "waits"})
    assert [job.id for job in queue.all()] == ["c", "d", "waits"]


@pytest.mark.network
@pytest.mark.faults
def test_a_real_run_is_stopped_without_the_process_that_began_it(
    tmp_path: Path,
) -> None:
    results, port = tmp_path / "results", free_port()
    service = serving(results, tmp_path / "flwr", port)
    try:
        call(port, "/train", {"run-name": "long", "num-server-rounds": 9999})
        until(lambda: call(port, "/runs/long")["rounds"] >= 1, 120)
        job = json.loads((results / job_files.FOLDER / "long.json").read_text())
        os.kill(job["pid"], signal.SIGKILL)
        time.sleep(1)
        assert call(port, "/runs/long")["status"] == "running"
        assert call(port, "/runs/long/stop", {})["status"] == "stopping"
        until(lambda: call(port, "/runs/long")["status"] == "stopped", 60)
        told = until(lambda: (r := call(port, "/runs/long"))["error"] and r, 60)
        assert told["error"]["type"] == "StoppedError"
        more = told["rounds"] + 2
        call(port, "/train", {"resume": "long", "num-server-rounds": more})
        until(lambda: call(port, "/runs/long")["status"] == "finished", 120)
        assert call(port, "/runs/long")["summary"]["rounds"] == more
    finally:
        service.kill()
        service.wait()
        for pid in processes_of(tmp_path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "options",
    [{"fedadam.tau": math.nan}, {"class-names": "\ud83d"}, {"class-names": "a\nb"}],
)
def test_what_no_file_can_hold_is_refused(queue: Jobs, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        queue.submit(options)
    assert queue.queued() == []


def test_any_text_reaches_the_run(queue: Jobs) -> None:
    names = 'a "quoted" \\ one,😀'
    queue.submit(QUICK | {"run-name": "one", "class-names": names})
    queue.advance()
    config = until(lambda: RunFolder(queue._results / "one").config())
    assert config["options"]["class-names"] == names


def test_a_stream_brings_validation_when_it_is_there(
    queue: Jobs, client: TestClient
) -> None:
    client.post("/train", json=QUICK | {"run-name": "one"})
    let(queue, 0)
    until(lambda: len(client.get("/runs/one").json()["metrics"]) == 1)
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(lambda: client.get("/runs/one/events").text)
        time.sleep(1)
        let(queue, 1, 2)
        told = [row for kind, row in events(text.result()) if kind == "round"]
    assert [row["round"] for row in told[:2]] == [0, 0]
    newest = {row["round"]: row for row in told}
    assert newest[1]["validation_accuracy"] == 0.05


def test_events_hold_no_number_that_json_has_not() -> None:
    told = train_routes._event("round", {"a": math.inf, "b": [math.nan, 1.5]}, 3)
    assert told == 'id: 3\nevent: round\ndata: {"a": null, "b": [null, 1.5]}\n\n'
