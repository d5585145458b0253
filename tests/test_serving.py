"""The service over HTTP: runs, predictions, and what it refuses."""

import asyncio
import io
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import uvicorn
from filelock import FileLock
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from fl_app.artifacts import ModelInfo, RunFolder
from fl_app.config import ConfigError
from fl_app.data import datasets
from fl_app.serving import images, service
from fl_app.serving.app import Settings, create
from fl_app.serving.guards import Gauges, Guard
from fl_app.serving.images import ImageError
from fl_app.serving.predictor import Batcher, load
from tests.conftest import PROJECT, make_config
from tests.test_run import run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, and one that was stopped."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    folder = tmp_path_factory.mktemp("results")
    run(folder, run_name="first", seed=3)
    run(folder, run_name="second", model="mlp")
    config = make_config(results_dir=str(folder), run_name="begun")
    RunFolder.create(config)
    return folder


@pytest.fixture(scope="module")
def client(results: Path) -> Iterator[TestClient]:
    with TestClient(
        create(Settings(results, PROJECT)), base_url="http://127.0.0.1"
    ) as found:
        yield found


def encoded(pixels: Any, kind: str = "PNG", mode: str | None = None) -> bytes:
    image = Image.fromarray(np.asarray(pixels))
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format=kind)
    return file.getvalue()


def digit(index: int) -> Any:
    """Return a test image of the digits."""
    return np.array(datasets.load(make_config()).test_images[index][0])


def ask(client: TestClient, content: bytes, model: str = "first") -> Any:
    answer = client.post(f"/predict?model={model}", files={"file": content})
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- predictions


@pytest.mark.parametrize("name", ["first", "second"])
def test_accuracy_over_http_is_the_runs(
    client: TestClient, results: Path, name: str
) -> None:
    data = datasets.load(make_config())
    summary = RunFolder(results / name).summary() or {}
    right = 0
    for index, label in enumerate(data.test_labels):
        answer = ask(client, encoded(digit(index)), name)
        right += answer["label"] == data.class_names[label]
        assert answer["model_sha256"] == summary["model_sha256"]
        assert answer["image"]["converted"] == []
    assert right / len(data.test_labels) == summary["final_test_accuracy"]


def test_a_prediction_says_how_sure_it_is(client: TestClient) -> None:
    answer = ask(client, encoded(digit(0)))
    chances = answer["probabilities"]
    assert list(chances) == [str(d) for d in range(10)]
    assert sum(chances.values()) == pytest.approx(1)
    assert answer["probability"] == max(chances.values()) == chances[answer["label"]]


def test_the_newest_model_is_asked_unless_one_is_named(client: TestClient) -> None:
    answer = client.post("/predict", files={"file": encoded(digit(0))})
    assert answer.json()["run"] == "second"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP"])
def test_any_format(client: TestClient, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    file = io.BytesIO()
    Image.fromarray(digit(5)).save(file, format=kind, **options)
    answer = ask(client, file.getvalue())
    assert answer["image"]["format"] == kind
    assert answer["label"] == ask(client, encoded(digit(5)))["label"]


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("RGB", ["RGB to grey"]),
        ("RGBA", ["RGBA to grey"]),
        ("P", ["P to grey"]),
        ("LA", ["LA to grey"]),
        ("I;16", ["16-bit levels to 8 bits"]),
    ],
)
def test_any_mode_is_converted_and_said(
    client: TestClient, mode: str, said: list[str]
) -> None:
    pixels = digit(5)
    if mode == "I;16":
        content = encoded(pixels.astype(np.uint16) * 257)
    else:
        content = encoded(pixels, mode=mode)
    answer = ask(client, content)
    plain = ask(client, encoded(pixels))
    assert answer["image"]["converted"] == said
    assert answer["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-3)


def test_any_size_is_brought_to_the_models(client: TestClient) -> None:
    large = np.kron(digit(5), np.ones((20, 20), np.uint8))
    answer = ask(client, encoded(large))
    assert answer["image"]["converted"] == ["resized to 8 x 8"]
    assert answer["label"] == ask(client, encoded(digit(5)))["label"]


def test_a_picture_that_lies_on_its_side_is_turned_and_said(client: TestClient) -> None:
    lying = Image.fromarray(
        np.rot90(digit(5))
    )  # as a camera turned to the right has it
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    lying.save(file, format="PNG", exif=exif)
    answer, upright = ask(client, file.getvalue()), ask(client, encoded(digit(5)))
    assert answer["image"]["converted"] == ["turned upright by EXIF"]
    assert answer["probabilities"] == upright["probabilities"]


def test_what_is_transparent_is_white_and_said(client: TestClient) -> None:
    cut = np.zeros((8, 8, 4), np.uint8)
    cut[2:6, 2:6] = (90, 90, 90, 255)
    whole = np.full((8, 8), 255, np.uint8)
    whole[2:6, 2:6] = 90
    answer, plain = ask(client, encoded(cut, mode="RGBA")), ask(client, encoded(whole))
    assert answer["image"]["converted"] == ["transparency put on white", "RGBA to grey"]
    assert answer["probabilities"] == plain["probabilities"]


def test_a_tail_behind_the_image_is_not_looked_at(client: TestClient) -> None:
    answer = ask(client, encoded(digit(5)) + b"<script>" * 1000)
    assert answer == ask(client, encoded(digit(5)))


COLOUR = ModelInfo("lenet", "x", (3, 4, 6), (0.5,) * 3, (0.5,) * 3, 255.0, ["a", "b"])


def test_a_colour_models_input() -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    levels, received = images.read(encoded(pixels), COLOUR)
    np.testing.assert_array_equal(levels, pixels.transpose(2, 0, 1))
    assert received.converted == []


# --- what is refused


def hostile(draws: np.random.Generator) -> bytes:
    """Return an upload that is no image, or one that is too large."""
    sound = encoded(draws.integers(0, 256, (30, 30, 3), dtype=np.uint8))
    jpeg = encoded(draws.integers(0, 256, (30, 30, 3), dtype=np.uint8), "JPEG")
    header = bytearray(encoded(np.zeros((9, 9), np.uint8)))
    header[16:24] = (2**30).to_bytes(4, "big") * 2  # says that it is enormous
    noise = draws.integers(0, 256, draws.integers(1, 5000), dtype=np.uint8)
    kinds = [
        sound[: draws.integers(0, len(sound) - 40)],
        jpeg[: draws.integers(0, 300)],
        noise.tobytes(),
        encoded(np.zeros((1, 100_000), np.uint8)),
        b"%PDF-1.7 " + sound,
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        bytes(header),
    ]
    return kinds[draws.integers(len(kinds))]


def test_hostile_uploads_are_each_refused_with_a_reason(client: TestClient) -> None:
    draws = np.random.default_rng(0)
    for _ in range(500):
        answer = client.post("/predict", files={"file": hostile(draws)})
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["detail"]
    assert client.get("/health").json() == {"status": "ok"}
    assert ask(client, encoded(digit(0)))["label"]


def test_a_bomb_is_told_by_its_header() -> None:
    file = io.BytesIO()
    Image.new("1", (9_999, 9_999)).save(file, format="PNG")
    assert len(file.getvalue()) < 20_000
    with pytest.raises(ImageError, match="9999 x 9999 pixels: at most"):
        images.read(file.getvalue(), COLOUR)


def test_only_plain_small_images_are_read_at_once() -> None:
    assert images.is_plain(encoded(np.zeros((8, 8), np.uint8)))
    assert not images.is_plain(encoded(np.zeros((200, 200), np.uint8)))
    assert not images.is_plain(encoded(np.zeros((8, 8), np.uint8), "JPEG"))
    assert not images.is_plain(b"")
    packed = PngInfo()
    packed.add_text("much", "x" * 2**20, zip=True)
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, format="PNG", pnginfo=packed)
    assert len(file.getvalue()) < 2**15
    assert not images.is_plain(file.getvalue())
    large = encoded(np.zeros((200, 200), np.uint8))
    longer = large[:8] + b"\0\0\0\x0e" + large[12:29] + b"\0" + large[29:]
    assert not images.is_plain(longer)  # a header that hides its size
    sound = encoded(np.zeros((8, 8), np.uint8))
    for cut in range(len(sound)):
        images.is_plain(sound[:cut])  # and does not fail


def test_a_large_body_is_refused(client: TestClient) -> None:
    content = b"x" * (images.MAX_BYTES + 10_000)
    answer = client.post("/predict", files={"file": content})
    assert answer.status_code == 413

    def parts() -> Iterator[bytes]:  # without a length in the header
        for _ in range(12):
            yield b"x" * 2**20

    answer = client.post("/predict", content=parts())
    assert answer.status_code == 413
    assert "at most" in answer.json()["detail"]


@pytest.mark.parametrize(
    "name",
    ["%2e%2e", "..%2f..%2fetc", "a%00b", "none", "-", ".hidden", "x" * 101],
)
def test_a_name_reaches_no_other_file(client: TestClient, name: str) -> None:
    for path in (f"/runs/{name}", f"/runs/{name}/curves.png", f"/runs/{name}/report"):
        assert client.get(path).status_code in (404, 422)
    answer = client.post(f"/predict?model={name}", files={"file": encoded(digit(0))})
    assert answer.status_code in (404, 422)


def test_a_link_out_of_the_results_is_not_followed_by_name(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    run(outside, run_name="secret", num_server_rounds=1)
    results = tmp_path / "results"
    results.mkdir()
    with TestClient(
        create(Settings(results, PROJECT)), base_url="http://127.0.0.1"
    ) as client:
        assert client.get("/runs/../outside/secret").status_code == 404
        assert client.get("/runs").json() == []
        answer = client.post("/predict", files={"file": encoded(digit(0))})
        assert answer.status_code == 404
        assert "train one first" in answer.json()["detail"]


def test_a_file_that_is_no_model_predicts_nothing(tmp_path: Path) -> None:
    folder = run(tmp_path, num_server_rounds=1)
    (folder.path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with TestClient(
        create(Settings(tmp_path, PROJECT)), base_url="http://127.0.0.1"
    ) as client:
        answer = client.post("/predict", files={"file": encoded(digit(0))})
        assert answer.status_code == 404
        assert "not a model that a run has written" in answer.json()["detail"]
        assert client.get("/models").json() == []


# --- runs


def test_runs_are_told_as_they_are(client: TestClient, results: Path) -> None:
    listed = client.get("/runs").json()
    assert {line["id"]: line["status"] for line in listed} == {
        "first": "finished",
        "second": "finished",
        "begun": "stopped",
    }
    told = client.get("/runs/first").json()
    folder = RunFolder(results / "first")
    assert told["metrics"] == folder.metrics()
    assert told["summary"] == folder.summary()
    assert told["options"]["seed"] == told["seed"] == 3
    assert told["rounds"] == 3
    assert told["test_accuracy"] == folder.metrics()[-1]["test_accuracy"]


def test_a_run_is_running_while_a_process_holds_it(
    client: TestClient, results: Path
) -> None:
    (results / "begun" / "checkpoint").mkdir(exist_ok=True)
    with FileLock(results / "begun" / "checkpoint" / ".lock"):
        assert client.get("/runs/begun").json()["status"] == "running"
    assert client.get("/runs/begun").json()["status"] == "stopped"
    RunFolder(results / "begun").write_error(ValueError("odd"))
    assert client.get("/runs/begun").json()["status"] == "failed"
    assert client.get("/runs/begun").json()["error"]["message"] == "odd"
    (results / "begun" / "error.json").unlink()


def test_pictures_and_reports(client: TestClient) -> None:
    curves = client.get("/runs/first/curves.png")
    assert curves.headers["content-type"] == "image/png"
    assert curves.content.startswith(b"\x89PNG")
    report = client.get("/runs/first/report")
    assert report.headers["content-type"].startswith("text/html")
    assert "<html" in report.text
    assert client.get("/runs/begun/report").status_code == 404


def test_models_are_those_that_can_predict(client: TestClient) -> None:
    listed = client.get("/models").json()
    assert [line["run"] for line in listed] == ["second", "first"]
    assert listed[0]["input_shape"] == [1, 8, 8]
    assert listed[0]["test_accuracy"] > 0.5


def test_openapi_says_what_is_answered(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        *("/health", "/metrics", "/models", "/predict", "/runs", "/runs/{run}"),
        "/choices",
        *("/runs/{run}/curves.png", "/runs/{run}/report", "/runs/{run}/events"),
        *("/runs/{run}/stop", "/train"),
    }


def test_docs_need_no_network(results: Path) -> None:
    with TestClient(
        create(Settings(results, PROJECT, token="secret")), base_url="http://127.0.0.1"
    ) as client:
        page = client.get("/docs")
        assert page.status_code == 200
        files = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
        assert len(files) == 3
        for file in files:
            assert file.startswith("/docs/files/")
            assert client.get(file).status_code == 200
        assert "'/openapi.json'" in page.text
        document = client.get("/openapi.json").json()
        assert document["paths"]["/runs"]["get"]["security"] == [{"HTTPBearer": []}]
        assert "security" not in document["paths"]["/health"]["get"]


def test_prometheus_is_told(client: TestClient) -> None:
    ask(client, encoded(digit(0)))
    client.get("/nowhere")
    text = client.get("/metrics").text
    predict = 'method="POST",route="/predict",status="200"'
    assert f"fl_app_requests_total{{{predict}}}" in text
    assert 'route="unknown",status="404"' in text  # no path of a stranger's choosing
    assert "fl_app_batch_size_count" in text


# --- who may ask


def test_a_token_is_asked_for_everywhere_but_at_health(results: Path) -> None:
    with TestClient(
        create(Settings(results, PROJECT, token="secret")), base_url="http://127.0.0.1"
    ) as client:
        assert client.get("/health").status_code == 200
        for path in ("/runs", "/models", "/metrics", "/docs/x", "/none"):
            refused = client.get(path)
            assert refused.status_code == 401
            assert "Bearer TOKEN" in refused.json()["detail"]
        for wrong in ("Bearer", "Bearer secret2", "bearer secret", "Basic secret"):
            answer = client.get("/runs", headers={"Authorization": wrong})
            assert answer.status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert len(client.get("/runs", headers=right).json()) == 3


@pytest.mark.parametrize(
    ("host", "token", "allowed"),
    [
        ("127.0.0.1", "", True),
        ("127.8.8.8", "", True),
        ("::1", "", True),
        ("localhost", "", True),
        ("0.0.0.0", "", False),
        ("::", "", False),
        ("192.168.1.5", "", False),
        ("fl.example.org", "", False),
        ("0.0.0.0", "secret", True),
    ],
)
def test_other_machines_need_a_token(host: str, token: str, allowed: bool) -> None:
    if allowed:
        service.check_binding(host, token)
        return
    with pytest.raises(ConfigError, match="set FL_APP_TOKEN"):
        service.check_binding(host, token)


def test_a_token_is_made_where_none_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FL_APP_TOKEN", raising=False)
    said = io.StringIO()
    console = Console(file=said, width=40)
    made = service.token(console, "0.0.0.0", 8000, make=True)
    assert len(made) >= 32
    assert said.getvalue() == f"address  http://127.0.0.1:8000\ntoken    {made}\n"
    assert service.token(console, "0.0.0.0", 8000, make=True) != made
    with pytest.raises(ConfigError, match="set FL_APP_TOKEN"):
        service.token(console, "0.0.0.0", 8000, make=False)
    monkeypatch.setenv("FL_APP_TOKEN", "secret")
    assert service.token(console, "0.0.0.0", 8000, make=True) == "secret"
    assert "secret" not in said.getvalue()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "[::1]"}, 200),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:8000"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_a_page_of_another_site_cannot_ask(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    assert client.get("/runs", headers=headers).status_code == status


def test_with_a_token_any_name_will_do(results: Path) -> None:
    with TestClient(create(Settings(results, PROJECT, token="secret"))) as client:
        headers = {"Authorization": "Bearer secret", "Origin": "https://fl.example.org"}
        assert client.get("/runs", headers=headers).status_code == 200


def test_a_foreign_folder_hides_no_run(client: TestClient, results: Path) -> None:
    for name, text in (("empty", ""), ("other", "{}"), ("list", "[1]")):
        (results / name).mkdir()
        (results / name / "config.json").write_text(text)
        assert client.get(f"/runs/{name}").status_code == 404
    assert len(client.get("/runs").json()) == 3
    assert len(client.get("/models").json()) == 2
    for name in ("empty", "other", "list"):
        shutil.rmtree(results / name)


def test_to_list_models_loads_none(client: TestClient) -> None:
    with patch("fl_app.serving.predictor.load", side_effect=AssertionError):
        assert len(client.get("/models").json()) == 2


# --- together, and too slow


def test_requests_that_come_together_are_computed_together(results: Path) -> None:
    loaded = load(results / "second" / "model.safetensors", "second")
    levels = [images.read(encoded(digit(i)), loaded.info)[0] for i in range(100)]
    sizes: list[int] = []

    async def all_at_once() -> list[Any]:
        batcher = Batcher(sizes.append)
        found = await asyncio.gather(*(batcher.predict(loaded, x) for x in levels))
        batcher.close()
        return found

    found = asyncio.run(all_at_once())
    assert sum(sizes) == 100
    assert max(sizes) == 64
    alone = [loaded.chances(x[None])[0] for x in levels]
    np.testing.assert_allclose(found, alone, atol=1e-6)


def test_what_fails_is_told_to_each_and_the_next_goes_on(results: Path) -> None:
    loaded = load(results / "second" / "model.safetensors", "second")
    sound = images.read(encoded(digit(0)), loaded.info)[0]

    async def some() -> Any:
        batcher = Batcher()
        odd = np.zeros((1, 3, 3), np.float32)
        failed = await asyncio.gather(
            *(batcher.predict(loaded, odd) for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(error, RuntimeError) for error in failed)
        return await asyncio.wait_for(batcher.predict(loaded, sound), 10)

    assert asyncio.run(some()).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx",
            408,
        ),
        (b"", None),
        (b"GET /health HTTP/1.1\r\nHost: loc", None),
    ],
)
def test_a_request_that_does_not_arrive_is_ended(
    results: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes, answered: int | None
) -> None:
    monkeypatch.setattr(service.Prompt, "seconds", 0.5)
    settings = Settings(results, PROJECT, request_timeout=0.5)
    config = uvicorn.Config(
        create(settings), port=0, log_level="error", http=service.Prompt
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for before in (b"", whole):  # also after a request that did arrive
            with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
                if before:
                    slow.sendall(before)
                    assert slow.recv(1000).startswith(b"HTTP/1.1 200")
                if sent:
                    slow.sendall(sent)
                said = slow.recv(1000)
                if answered:
                    assert said.startswith(b"HTTP/1.1 %d" % answered)
                else:
                    assert said == b""
    finally:
        server.should_exit = True
        thread.join()


def test_what_all_send_together_is_bounded() -> None:
    """A body waits in memory until it is whole; many of them must not fill that."""

    async def play() -> list[int]:
        begun, statuses = asyncio.Event(), []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            begun.set()
            await asyncio.sleep(0.2)
            await JSONResponse({})(scope, receive, send)

        guard = Guard(app, gauges=Gauges(), max_body=80, timeout=5, max_bodies=100)

        async def ask(size: int) -> None:
            async def receive() -> Any:
                return {"type": "http.request", "body": b"x" * size}

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            host = [(b"host", b"localhost")]
            scope = {"type": "http", "method": "POST", "path": "/", "headers": host}
            await guard(scope, receive, send)

        first = asyncio.create_task(ask(60))
        await begun.wait()
        await ask(60)
        await first
        await ask(60)  # the first one's room is free again
        await ask(81)
        return statuses

    assert asyncio.run(play()) == [429, 200, 200, 413]
