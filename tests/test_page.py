"""The demo page in a real browser: pictures in, cards out. Screenshots are kept in ``runs/page``."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import Server
from page_visitor import ANSWERED, FAILED, Open, drop, labels, upload
from PIL import Image
from playwright.sync_api import Page, Route, expect


def test_a_dropped_picture_is_recognised(
    server: Server, open_page: Open, keep: Callable[[Page, str], None], known_digit: tuple[str, bytes]
) -> None:
    digit, file = known_digit
    page = open_page(server.url)
    expect(page.locator("#state-text")).to_have_text("ready")
    keep(page, "empty")
    drop(page, "mine.png", file)
    expect(page.locator(ANSWERED)).to_have_count(1)
    expect(page.locator(".row")).to_have_count(5)
    assert labels(page)[0] == digit
    expect(page.locator("#announce")).to_contain_text(f"mine.png: {digit}, ")
    stages = page.locator(".times-list li").all_inner_texts()
    assert [stage.split()[0] for stage in stages][:3] == ["decode", "queue", "infer"]
    bars = page.locator(".fill").evaluate_all("bars => bars.map((bar) => bar.clientWidth)")
    assert bars == sorted(bars, reverse=True) and bars[0] > bars[1]
    keep(page, "one")


def test_a_pasted_picture_is_recognised(server: Server, open_page: Open, known_digit: tuple[str, bytes]) -> None:
    digit, file = known_digit
    page = open_page(server.url)
    page.evaluate(
        """(data) => {
            const clipboardData = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            clipboardData.items.add(new File([bytes], "image.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
        }""",
        base64.b64encode(file).decode(),
    )
    expect(page.locator(ANSWERED)).to_have_count(1)
    assert labels(page)[0] == digit


def test_the_first_key_press_shows_something(server: Server, open_page: Open) -> None:
    page = open_page(server.url)
    expect(page.locator("#state-text")).to_have_text("ready")
    for _ in range(9):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.sample") == "digit-7.png":
            break
    page.keyboard.press("Enter")
    expect(page.locator(ANSWERED)).to_have_count(1)
    assert page.locator(".card h3").inner_text() == "digit-7.png"


def test_a_broken_file_fails_alone_and_in_words(
    server: Server, open_page: Open, digit_files: list[bytes], keep: Callable[[Page, str], None]
) -> None:
    page = open_page(server.url)
    files = [upload(f"digit-{i}.png", digit_files[i]) for i in range(3)]
    page.set_input_files("#files", [files[0], upload("broken.png", b"not a picture"), *files[1:]])
    expect(page.locator(ANSWERED)).to_have_count(3)
    failed = page.locator(FAILED)
    expect(failed).to_have_count(1)
    expect(failed.locator("h3")).to_have_text("broken.png")
    expect(failed).to_contain_text("not a picture that can be read")
    expect(failed.locator(".frame")).to_have_text("No preview.")
    expect(failed.get_by_role("button", name="Try again")).to_have_count(0)  # which would get the same
    assert len(failed.locator("code").inner_text()) == 32  # the request's id, for whoever looks into the log
    expect(page.locator("#announce")).to_contain_text("3 pictures answered, 1 not")
    keep(page, "several")
    failed.get_by_role("button", name="Remove broken.png").press("Enter")
    expect(failed).to_have_count(0)
    assert page.evaluate("document.activeElement.closest('.card') !== null")  # the focus stays among the cards


def test_what_waits_in_the_browser_is_not_the_network(
    server: Server, open_page: Open, digit_files: list[bytes]
) -> None:
    def send_late(route: Route) -> None:
        page.wait_for_timeout(1000)
        route.continue_()

    page = open_page(server.url)
    page.route("**/classify?*", send_late)
    drop(page, "digit.png", digit_files[0])
    expect(page.locator(ANSWERED)).to_have_count(1)
    times = dict(re.findall(r"([a-z ]+) ([0-9.]+) ms", " ".join(page.locator(".times-list li").all_inner_texts())))
    shown = {name.strip(): float(ms) for name, ms in times.items()}
    assert shown.pop("waited in the browser") >= 950
    total = float(re.sub("[^0-9.]", "", page.locator(".times-total strong").inner_text()))
    assert sum(shown.values()) <= total - 950 + 10  # each is rounded


def test_a_damaged_picture_is_called_so(server: Server, open_page: Open) -> None:
    page = open_page(server.url)
    page.set_input_files("#files", [upload("cut.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "image/jpeg")])
    expect(page.locator(FAILED).locator("strong")).to_have_text("This picture is damaged")
    expect(page.locator(FAILED).locator(".frame")).to_have_text("No preview.")


def test_a_sample_asks_its_own_model_alone(server: Server, open_page: Open, known_digit: tuple[str, bytes]) -> None:
    digit, file = known_digit
    page = open_page(server.url)
    expect(page.locator("#knows")).to_contain_text("10 labels: 0 … 9")
    models = httpx.get(f"{server.url}/models", timeout=30).json()
    next(model for model in models["models"] if model["name"] == "tagger")["labels"][0] = "7"  # the sample's
    page.route("**/models", lambda route: route.fulfill(json=models))
    page.reload()
    drop(page, "mine.png", file)
    expect(page.locator(ANSWERED)).to_have_count(1)
    page.get_by_role("button", name="Try three digits").click()
    expect(page.locator(ANSWERED)).to_have_count(2)
    sample, mine = page.locator(".card").all()
    expect(sample.locator(".facts")).to_contain_text("tagger")
    expect(mine.locator(".facts")).to_contain_text("digits")
    page.get_by_label("Each label’s own threshold").uncheck()  # asks again, each its own model
    page.get_by_label("One for all").fill("0")
    expect(sample.locator(".row")).to_have_count(5)
    expect(mine).to_have_attribute("data-state", "answered")
    expect(mine.locator(".facts")).to_contain_text("digits")
    assert mine.locator(".row .label").first.inner_text() == digit

    page.reload()  # the choice is in the address
    expect(page.get_by_label("Model", exact=True).locator("option:checked")).to_have_text("tagger (tags)")
    page.get_by_label("Model", exact=True).select_option(label="digits (one label)")  # a choice is for all
    page.reload()
    expect(page.get_by_label("Model", exact=True).locator("option:checked")).to_have_text("digits (one label)")


def test_the_default_model_is_chosen_first(server: Server, open_page: Open) -> None:
    page = open_page(server.url)
    models = httpx.get(f"{server.url}/models", timeout=30).json()
    assert [model["is_default"] for model in models["models"]] == [True, True], "each is the only one of its task"
    models["models"][0]["is_default"] = False
    page.route("**/models", lambda route: route.fulfill(json=models))
    page.reload()
    expect(page.get_by_label("Model", exact=True).locator("option:checked")).to_have_text("tagger (tags)")


def test_answers_are_saved(server: Server, open_page: Open, digit_files: list[bytes]) -> None:
    page = open_page(server.url)
    page.set_input_files("#files", [upload("broken.png", b"not a picture"), upload("mine.png", digit_files[0])])
    expect(page.locator(ANSWERED)).to_have_count(1)
    expect(page.locator(FAILED)).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON lines").click()
    assert download.value.suggested_filename == "answers.jsonl"
    [line] = download.value.path().read_text().splitlines()
    saved = json.loads(line)
    asked = httpx.post(f"{server.url}/classify", content=digit_files[0], timeout=60).json()
    assert (saved.pop("path"), saved.pop("id"), saved.pop("model")) == ("mine.png", "1", asked["model"])
    [expected] = asked["results"]
    del expected["id"]
    assert saved == expected


def test_what_the_browser_cannot_show_is_answered(
    server: Server, open_page: Open, known_digit: tuple[str, bytes]
) -> None:
    digit, file = known_digit
    tiff = io.BytesIO()
    Image.open(io.BytesIO(file)).save(tiff, "TIFF")
    page = open_page(server.url)
    page.set_input_files("#files", [upload("scan.tiff", tiff.getvalue(), "image/tiff")])
    expect(page.locator(ANSWERED)).to_have_count(1)
    expect(page.locator(ANSWERED)).to_contain_text("cannot show this kind of file")
    assert labels(page)[0] == digit


def test_models_and_parameters(server: Server, open_page: Open, digit_files: list[bytes]) -> None:
    page = open_page(server.url)
    drop(page, "digit.png", digit_files[0])
    expect(page.locator(".row")).to_have_count(5)
    page.get_by_label("Labels, at most").fill("2")
    expect(page.locator(".row")).to_have_count(2)

    page.get_by_label("Model", exact=True).select_option(label="tagger (tags)")
    (expected,) = httpx.post(f"{server.url}/tag", content=digit_files[0], timeout=30).json()["results"]
    expect(page.locator(".facts")).to_contain_text("tagger")
    assert labels(page) == [tag["label"] for tag in expected["tags"]]
    expect(page.get_by_label("Labels, at most")).to_be_hidden()
    page.get_by_label("Each label’s own threshold").uncheck()
    page.get_by_label("One for all").fill("0")
    expect(page.locator(".row")).to_have_count(5)
    page.get_by_label("One for all").fill("0.2")
    tick = page.locator(".tick").first
    expect(tick).to_have_attribute("style", re.compile(r"--at: 0\.2;"))
    place = tick.evaluate("tick => (tick.offsetLeft + 1) / tick.parentElement.clientWidth")
    assert place == pytest.approx(0.2, abs=0.02)
    page.get_by_label("Tags, at most").fill("1")
    expect(page.locator(".row")).to_have_count(1)


def test_the_copied_code_gives_the_same_answer(
    server: Server, open_page: Open, known_digit: tuple[str, bytes], tmp_path: Path
) -> None:
    digit, file = known_digit
    name = "it's a digit.png"
    (tmp_path / name).write_bytes(file)
    page = open_page(server.url, permissions=["clipboard-read", "clipboard-write"])
    drop(page, name, file)
    page.get_by_text("The same question as code").click()

    def copied(title: str) -> str:
        button = page.locator(".snippet", has_text=title).get_by_role("button")
        button.click()
        expect(button).to_have_text("Copied")
        return str(page.evaluate("navigator.clipboard.readText()"))

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout

    if shutil.which("curl"):
        answer = json.loads(run("sh", "-c", copied("curl")))
        assert [entry["label"] for entry in answer["results"][0]["predictions"]] == labels(page)
    printed = run(sys.executable, "-c", copied("Python"))
    assert printed.split()[0] == digit


def test_where_it_looked(
    server: Server, open_page: Open, keep: Callable[[Page, str], None], digit_files: list[bytes]
) -> None:
    (expected,) = httpx.post(f"{server.url}/tag?threshold=0&explain=true", content=digit_files[0], timeout=30).json()[
        "results"
    ]
    page = open_page(server.url)
    page.route("**/tag?*explain=true*", last_without_map)
    page.get_by_label("Model", exact=True).select_option(label="tagger (tags)")
    page.get_by_label("Each label’s own threshold").uncheck()
    page.get_by_label("One for all").fill("0")
    page.get_by_label("Where did it look?").check()
    drop(page, "digit.png", digit_files[0])
    rows = page.locator("button.row")
    expect(rows).to_have_count(5)
    spans = []
    for row, tag in zip(rows.all()[:4], expected["tags"], strict=False):
        row.press("Enter")
        expect(row).to_have_attribute("aria-pressed", "true")
        shown = opacities(page)
        heat = np.maximum(np.array(tag["heat_map"]), 0).ravel()
        wanted = 0.85 * np.minimum(1, 1.6 * heat / max(heat.max(), 1e-9))
        assert shown == pytest.approx(list(wanted), abs=0.05)
        spans.append(max(shown) - min(shown))
    assert max(spans) > 0.5  # something is to be seen
    expect(rows.last).to_be_disabled()  # it has no map
    keep(page, "where")
    page.get_by_label("Where did it look?").uncheck()
    expect(page.locator("canvas.map")).to_be_hidden()

    page.get_by_label("Where did it look?").check()
    expect(page.locator("canvas.map")).to_be_visible()
    page.get_by_label("Model", exact=True).select_option(label="digits (one label)")  # whose maps have a single cell
    expect(page.locator("#no-maps")).to_contain_text("it cannot say where")
    expect(page.get_by_label("Where did it look?")).to_be_disabled()
    expect(page.locator(ANSWERED)).to_contain_text("digits")
    expect(page.locator("canvas.map")).to_be_hidden()


def last_without_map(route: Route) -> None:
    """Labels past the best 32 have no map; this model has five labels."""
    answer = route.fetch()
    document = answer.json()
    document["results"][0]["tags"][-1]["heat_map"] = None
    route.fulfill(response=answer, json=document)


def opacities(page: Page) -> list[float]:
    """Of the overlay, in the middle of each of the map's four cells."""
    found: list[float] = page.locator("canvas.map").evaluate(
        """(canvas) => {
            const context = canvas.getContext("2d");
            const opacity = (x, y) => context.getImageData(canvas.width * x, canvas.height * y, 1, 1).data[3] / 255;
            return [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]].map(([x, y]) => opacity(x, y));
        }"""
    )
    return found


def test_a_model_without_maps_answers_without(server: Server, open_page: Open, digit_files: list[bytes]) -> None:
    page = open_page(server.url)
    refusal = {"status": 422, "code": "bad_parameter", "detail": "this model has no maps", "request_id": "r"}
    page.route("**/tag?*explain=true*", lambda route: route.fulfill(status=422, json=refusal))
    page.get_by_label("Model", exact=True).select_option(label="tagger (tags)")
    drop(page, "digit.png", digit_files[0])
    expect(page.locator(ANSWERED)).to_have_count(1)
    expect(page.locator("#no-maps")).to_be_hidden()
    page.get_by_label("Where did it look?").click()  # the page takes it back, sooner than check() would look
    expect(page.locator("#no-maps")).to_be_visible()
    expect(page.get_by_label("Where did it look?")).to_be_disabled()
    expect(page.locator(ANSWERED)).to_have_count(1)
