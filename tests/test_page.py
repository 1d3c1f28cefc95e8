"""The demo page and the API's description, in a real browser. Screenshots are kept in ``runs/page``."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import Server, free_port, run_tresnet, running_server
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from sklearn.datasets import load_digits

ANSWERED, FAILED, WAITING = (f".card[data-state={state}]" for state in ("answered", "failed", "waiting"))
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
SECONDS = 30_000  # most milliseconds for what takes less than one on a quiet machine
expect.set_options(timeout=SECONDS)

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs Debian's chromium; `make test` installs it where it may")
        pytest.skip("no chromium: `apt-get install chromium`")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a URL as a new visitor. No page may ask another site, break its own policy or throw."""
    faults: list[str] = []
    with ExitStack() as stack:

        def open_(url: str, **options: Any) -> Page:
            context = stack.enter_context(browser.new_context(**{"viewport": DESKTOP, **options}))
            context.set_default_timeout(SECONDS)
            page = context.new_page()
            origin = "/".join(url.split("/")[:3])

            def asked(address: str) -> None:
                if not address.startswith((origin + "/", "blob:", "data:")):
                    faults.append(f"asked {address}")

            page.on("request", lambda request: asked(request.url))
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda said: faults.append(said.text) if "Content Security" in said.text else None)
            page.goto(url)
            return page

        yield open_
    assert faults == []


@pytest.fixture
def keep(pytestconfig: pytest.Config) -> Callable[[Page, str], None]:
    folder = pytestconfig.rootpath / pytestconfig.getoption("screenshots")

    def keep_(page: Page, name: str) -> None:
        page.wait_for_timeout(400)  # bars grow for as long; nothing is asserted on it
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    return keep_


@contextmanager
def gateway(server: Server, folder: Path, port: int | None = None, **settings: object) -> Iterator[Server]:
    """One more gateway before the Triton that runs already: up in a second."""
    address = f"grpc://{server.triton_address()}"
    with running_server(folder, port=port, triton_url=address, **settings) as running:
        yield running


def upload(name: str, data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": media_type, "buffer": data}


def drop(page: Page, name: str, data: bytes) -> None:
    transfer = page.evaluate_handle(
        """([name, data]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            return transfer;
        }""",
        [name, base64.b64encode(data).decode()],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def labels(page: Page, card: str = ".card") -> list[str]:
    return page.locator(card).first.locator(".row .label").all_inner_texts()


@pytest.fixture(scope="module")
def known_digit(server: Server, digit_files: list[bytes]) -> tuple[str, bytes]:
    """A picture, and the digit that is in it, which this briefly trained model recognises."""
    for digit, file in zip(load_digits().target, digit_files, strict=False):
        (result,) = httpx.post(f"{server.url}/classify", content=file, timeout=30).json()["results"]
        if result["predictions"][0]["label"] == str(digit):
            return str(digit), file
    raise AssertionError("not one of 64 digits is recognised")


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
    assert len(failed.locator("code").inner_text()) == 32  # the request's id, for whoever looks into the log
    expect(page.locator("#announce")).to_contain_text("3 pictures answered, 1 not")
    keep(page, "several")
    failed.get_by_role("button", name="Remove broken.png").press("Enter")
    expect(failed).to_have_count(0)
    assert page.evaluate("document.activeElement.closest('.card') !== null")  # the focus stays among the cards


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
    page.get_by_label("Model", exact=True).select_option(label="digits (one label)")  # whose maps have a single cell
    expect(page.locator(ANSWERED)).to_contain_text("it cannot say where")
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
    page.route("**/classify?*explain=true*", lambda route: route.fulfill(status=422, json=refusal))
    drop(page, "digit.png", digit_files[0])
    expect(page.locator(ANSWERED)).to_have_count(1)
    page.get_by_label("Where did it look?").check()
    expect(page.locator("#no-maps")).to_be_visible()
    expect(page.get_by_label("Where did it look?")).to_be_hidden()
    expect(page.locator(ANSWERED)).to_have_count(1)


def test_a_busy_service_is_asked_again(server: Server, open_page: Open, digit_files: list[bytes]) -> None:
    page = open_page(server.url)
    busy = {"status": 503, "code": "queue_full", "detail": "too much is waiting", "request_id": "r"}
    page.route(
        "**/classify?*", lambda route: route.fulfill(status=503, headers={"Retry-After": "1"}, json=busy), times=1
    )
    drop(page, "digit.png", digit_files[0])
    expect(page.locator(WAITING)).to_contain_text("busy")
    expect(page.locator(ANSWERED)).to_have_count(1)
    expect(page.locator("#banner")).to_be_hidden()


def test_the_service_goes_and_comes_back(
    server: Server, open_page: Open, keep: Callable[[Page, str], None], digit_files: list[bytes], tmp_path: Path
) -> None:
    port = free_port()
    with gateway(server, tmp_path, port) as first:
        page = open_page(first.url)
        expect(page.locator("#state-text")).to_have_text("ready")
    expect(page.locator("#banner")).to_contain_text("The service does not answer")
    drop(page, "meanwhile.png", digit_files[0])
    expect(page.locator(WAITING)).to_have_count(1)
    keep(page, "away")
    with gateway(server, tmp_path, port):
        expect(page.locator(ANSWERED)).to_have_count(1)  # found again and sent without anyone's doing
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("#state-text")).to_have_text("ready")


def test_a_key_is_asked_for_and_a_large_picture_refused_in_words(
    server: Server, open_page: Open, keep: Callable[[Page, str], None], digit_files: list[bytes], tmp_path: Path
) -> None:
    key = run_tresnet("key", "visitor", "--add-to", tmp_path / "keys", cwd=tmp_path).stdout.strip()
    with gateway(server, tmp_path, api_keys_file=tmp_path / "keys", max_body_bytes=100_000) as guarded:
        page = open_page(guarded.url)
        expect(page.locator("#key")).to_be_focused()
        drop(page, "digit.png", digit_files[0])
        keep(page, "key")
        for wrong in ("•••", "tresnet_wrong"):  # the first one cannot even be sent
            page.locator("#key").fill(wrong)
            page.keyboard.press("Enter")
            expect(page.locator("#key")).to_have_value("")
            expect(page.locator("#key-title")).to_have_text("This key is not known")
        page.locator("#key").fill(key)
        page.keyboard.press("Enter")
        expect(page.locator(ANSWERED)).to_have_count(1)
        assert key not in page.content()
        expect(page.locator("pre").first).to_contain_text("$TRESNET_API_KEY")

        page.set_input_files("#files", [upload("large.png", os.urandom(200_000))])
        expect(page.locator(FAILED)).to_contain_text("too large")
        expect(page.locator(FAILED)).to_contain_text("100,000 bytes")
        page.reload()
        expect(page.locator("#settings")).to_be_visible()  # the tab still has the key
        page.get_by_role("button", name="Forget the API key").click()
        expect(page.locator("#key")).to_be_focused()


def test_a_late_refusal_leaves_a_newer_key_alone(server: Server, open_page: Open, digit_files: list[bytes]) -> None:
    page = open_page(server.url)
    held: list[Route] = []
    refusal = {"status": 401, "code": "unauthorized", "detail": "no key", "request_id": "r"}

    def hold(route: Route) -> None:
        if route.request.headers.get("x-api-key") == "tresnet_new":
            route.continue_()
        else:
            held.append(route)

    page.route("**/classify?*", hold)
    page.set_input_files("#files", [upload(f"{i}.png", digit_files[i]) for i in range(2)])
    for _ in range(SECONDS // 50):
        if len(held) == 2:
            break
        page.wait_for_timeout(50)
    held.pop().fulfill(status=401, json=refusal)
    page.locator("#key").fill("tresnet_new")
    page.keyboard.press("Enter")
    expect(page.locator(ANSWERED)).to_have_count(1)
    held.pop().fulfill(status=401, json=refusal)
    expect(page.locator(ANSWERED)).to_have_count(2)
    expect(page.locator("#key-form")).to_be_hidden()
    assert held == []


def test_an_answer_that_is_none_is_a_problem_of_its_own(
    server: Server, open_page: Open, digit_files: list[bytes]
) -> None:
    page = open_page(server.url)
    page.route("**/classify?*", lambda route: route.fulfill(json={"results": [{"predictions": [{"label": 7}]}]}))
    drop(page, "digit.png", digit_files[0])
    expect(page.locator(FAILED)).to_contain_text("The answer cannot be read")
    expect(page.locator("#banner")).to_be_hidden()
    page.route("**/models", lambda route: route.fulfill(json=[]))
    page.reload()
    expect(page.locator("#banner")).to_contain_text("not an answer of this service")


CARD = """# digits
Trained on *handwritten* digits, see [the paper](https://arxiv.org/abs/2003.13630).
<img src=x onerror="throw 1"> [a trap](javascript:throw_1)

## Scores
| split | top-1 |
|---|---:|
| held out | `98.6 %` |

- no letters
- no words: a\\|b, &lt;b>, \\*c\\*, \\[d](https://e.org), \\`e\\`
"""


def test_the_models_card_is_shown_and_cannot_run_anything(server: Server, open_page: Open) -> None:
    page = open_page(server.url)
    page.route("**/models/digits?version=1", lambda route: route.fulfill(json={"name": "digits", "card": CARD}))
    page.reload()
    page.get_by_text("About digits").click()
    card = page.locator("#model-card-text")
    expect(card.get_by_role("heading", name="Scores")).to_be_visible()
    expect(card.get_by_role("cell", name="98.6 %")).to_be_visible()
    expect(card.get_by_role("listitem")).to_have_count(2)
    expect(card).to_contain_text("<img src=x onerror")
    expect(card.get_by_role("listitem").last).to_have_text("no words: a|b, <b>, *c*, [d](https://e.org), `e`")
    assert card.locator("img").count() == 0
    assert card.locator("a").evaluate_all("links => links.map((link) => link.href)") == [
        "https://arxiv.org/abs/2003.13630"
    ]


@pytest.mark.parametrize("text", ["# x" + " " * 60_000 + "#x", "[" * 60_000, "[a](b" * 12_000, "# a #", "# a C#"])
def test_no_card_takes_long(server: Server, open_page: Open, text: str) -> None:
    page = open_page(server.url)
    took_ms, shown = page.evaluate(
        """async (text) => {
            const { render } = await import("/page/markdown.js");
            const began = performance.now();
            const nodes = render(text);
            return [performance.now() - began, nodes.map((node) => node.textContent).join("")];
        }""",
        text,
    )
    assert took_ms < 3000
    assert shown == text.removeprefix("# ").removesuffix(" #")


def test_below_a_path_prefix(server: Server, open_page: Open, digit_files: list[bytes]) -> None:
    page = open_page(f"{server.url}/livez")  # asks for nothing more
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if "/a/team/" not in request.url else None)
    page.route("**/a/team/**", lambda route: route.continue_(url=route.request.url.replace("/a/team", "")))
    page.goto(f"{server.url}/a/team/")
    drop(page, "digit.png", digit_files[0])
    expect(page.locator(ANSWERED)).to_have_count(1)
    assert [url for url in outside if not url.startswith("blob:")] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_and_for_everyone(
    server: Server, open_page: Open, keep: Callable[[Page, str], None], digit_files: list[bytes], scheme: str
) -> None:
    """Nothing sticks out on a phone, and axe finds no serious fault, in either colour scheme."""
    page = open_page(server.url, viewport=PHONE, is_mobile=True, has_touch=True, color_scheme=scheme)
    expect(page.get_by_role("button", name="Take a photo")).to_be_visible()
    check_access(page)
    page.get_by_label("Where did it look?").check()
    page.get_by_label("Model", exact=True).select_option(label="tagger (tags)")
    page.get_by_label("Each label’s own threshold").uncheck()
    page.get_by_label("One for all").fill("0")
    files = [upload(f"a rather long name of a picture, number {i}.png", digit_files[i]) for i in range(2)]
    page.set_input_files("#files", [*files, upload("broken.png", b"x" * 80)])
    expect(page.locator(ANSWERED)).to_have_count(2)
    expect(page.locator(FAILED)).to_have_count(1)
    page.get_by_text("The same question as code").first.click()
    check_access(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    keep(page, f"phone-{scheme}")


def check_access(page: Page) -> None:
    page.wait_for_timeout(500)  # colours in transition have no contrast to judge
    found = Axe().run(page).response["violations"]
    assert [
        (fault["id"], fault["nodes"][0]["html"]) for fault in found if fault["impact"] in ("serious", "critical")
    ] == []


def test_the_api_is_described_without_a_network(
    server: Server, open_page: Open, keep: Callable[[Page, str], None]
) -> None:
    page = open_page(f"{server.url}/docs")
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    routes = page.locator(".opblock-summary-path")
    expect(routes).to_have_count(sum(len(path) for path in paths.values()))
    assert {route.replace("\u200b", "") for route in routes.all_inner_texts()} == set(paths)
    page.locator(".opblock", has=page.locator("[data-path='/livez']")).click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    keep(page, "docs")


def test_files_are_sent_once(server: Server) -> None:
    first = httpx.get(f"{server.url}/page/page.js")
    policy = dict(part.strip().split(" ", 1) for part in first.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'" == policy["style-src"]
    assert first.headers["cache-control"] == "no-cache"
    again = httpx.get(f"{server.url}/page/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for path in ("/", "/docs", "/page/page.js"):
        head, whole = httpx.head(server.url + path), httpx.get(server.url + path)
        assert (head.status_code, head.content, int(head.headers["content-length"])) == (200, b"", len(whole.content))
        assert head.headers["content-security-policy"] == whole.headers["content-security-policy"]
    for path in ("/page/", "/page/%2e%2e/api.py", "/page/nothing.js"):
        assert httpx.get(server.url + path).json()["code"] == "not_found"
