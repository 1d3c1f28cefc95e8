"""The demo page and the API's description for everyone: phones, schemes, prefixes, cards from strangers."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import Server
from page_visitor import ANSWERED, FAILED, PHONE, Open, drop, upload
from playwright.sync_api import Page, expect

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
    expect(page.get_by_label("Where did it look?")).to_be_disabled()
    page.get_by_label("Model", exact=True).select_option(label="tagger (tags)")
    page.get_by_label("Where did it look?").check()
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
