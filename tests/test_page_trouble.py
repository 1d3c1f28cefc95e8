"""The demo page when the service is busy, away, guarded, or answers nonsense."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import Server, free_port, run_tresnet, until
from page_visitor import ANSWERED, FAILED, WAITING, Open, drop, gateway, upload
from playwright.sync_api import Page, Route, expect


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
    until(lambda: page.wait_for_timeout(50) or len(held) == 2, "both are held")
    held.pop().fulfill(status=401, json=refusal)
    page.locator("#key").fill("tresnet_new")
    page.keyboard.press("Enter")
    expect(page.locator(ANSWERED)).to_have_count(1)
    held.pop().fulfill(status=401, json=refusal)
    expect(page.locator(ANSWERED)).to_have_count(2)
    expect(page.locator("#key-form")).to_be_hidden()
    assert held == []


@pytest.mark.parametrize(
    ("gone", "option"),
    [({"version": "2"}, "digits version 2 (one label)"), ({"name": "gone", "is_default": False}, "gone (one label)")],
)
def test_a_model_that_is_taken_back_leaves_the_list(
    server: Server, open_page: Open, digit_files: list[bytes], gone: dict[str, object], option: str
) -> None:
    page = open_page(server.url)
    models = httpx.get(f"{server.url}/models", timeout=30).json()["models"]
    before = {"models": [*models, {**models[0], **gone}]}
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/classify?" in request.url else None)
    page.route("**/models", lambda route: route.continue_() if asked else route.fulfill(json=before))
    page.reload()
    page.get_by_label("Model", exact=True).select_option(label=option)
    page.set_input_files("#files", [upload(f"{i}.png", digit_files[i]) for i in range(6)])
    expect(page.locator(ANSWERED)).to_have_count(6)
    assert page.locator("#model option").all_inner_texts() == ["digits (one label)", "tagger (tags)"]
    expect(page.locator("#banner")).to_be_hidden()


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
