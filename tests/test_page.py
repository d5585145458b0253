"""The page in headless Chromium: start a run, watch it, draw a digit."""

import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from fl_app.serving.app import Settings, create
from fl_app.serving.jobs import Jobs
from tests.conftest import PROJECT
from tests.test_run import run
from tests.test_training_service import let, queue, until

__all__ = ["queue"]  # a fixture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not there")


@pytest.fixture
def address(queue: Jobs) -> Iterator[str]:
    app = create(Settings(queue._results, PROJECT))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = server.force_exit = True
    thread.join(10)


@pytest.fixture(params=[(1200, 900), (390, 800)], ids=["desk", "phone"])
def page(request: Any) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    wrong = []

    def asked(made: Any) -> None:
        if not made.url.startswith(("http://127.0.0.1", "data:", "blob:")):
            wrong.append(made.url)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        width, height = request.param
        opened = browser.new_page(viewport={"width": width, "height": height})
        opened.set_default_timeout(20_000)
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("request", asked)
        yield opened
        browser.close()
    assert wrong == []  # no error, and nothing fetched from elsewhere


def test_a_run_from_the_form_to_its_end(queue: Jobs, address: str, page: Any) -> None:
    page.goto(address)
    page.get_by_label("Rounds").fill("2")
    page.get_by_label("More options, as JSON").fill('{"run-name": "seen"}')
    page.get_by_role("button", name="Start training").click()
    page.get_by_text("seen is queued").wait_for()
    let(queue, 0, 1)
    page.get_by_text("round 1, test accuracy 10.0 %").wait_for()
    let(queue, 2)
    page.get_by_text("round 2, test accuracy 20.0 % (finished)").wait_for()
    drawn = page.locator("#accuracy svg")
    told = "test 0.2000 in round 2, validation 0.0500 in round 1"
    assert drawn.get_attribute("aria-label") == told
    test = page.locator("#accuracy polyline").first
    assert test.get_attribute("points").count(",") == 3
    assert page.get_by_role("link", name="Report").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_wrong_option_is_said(address: str, page: Any) -> None:
    from playwright.sync_api import expect

    page.goto(address)
    page.get_by_label("More options, as JSON").fill('{"nonsense": 1}')
    page.get_by_role("button", name="Start training").click()
    alert = page.get_by_role("alert").filter(has_text="option nonsense is unknown")
    expect(alert).to_be_in_viewport()  # where one has just pressed the button


@pytest.fixture
def trained(queue: Jobs) -> None:
    """A model to try; made before a browser is, whose library holds the event loop."""
    run(queue._results, run_name="digits", model="mlp", num_server_rounds=6)


@pytest.mark.usefixtures("trained")
def test_a_digit_that_is_drawn_is_told(address: str, page: Any) -> None:
    page.goto(address)
    page.locator("#model option", has_text="digits").wait_for(state="attached")
    canvas = page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle, top = box["x"] + box["width"] / 2, box["y"]
    page.mouse.move(middle, top + 15)
    page.mouse.down()
    page.mouse.move(middle, top + box["height"] - 15, steps=8)
    page.mouse.up()
    page.locator("#bars .bar").nth(9).wait_for()
    said = page.locator("#said").inner_text()
    assert said.startswith("1, ")
    assert "resized to 8 x 8" in said
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#bars .bar").count() == 0


def test_the_keyboard_reaches_everything(address: str, page: Any) -> None:
    page.goto(address)
    page.locator("#dataset option").first.wait_for(state="attached")
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    named = {"dataset", "strategy", "num-clients", "seed", "more", "model", "file"}
    assert named <= set(reached)
    unnamed = "[...document.querySelectorAll('input,select,textarea')]"
    assert page.evaluate(f"{unnamed}.every((e) => e.labels.length === 1)")
