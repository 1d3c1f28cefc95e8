"""A visitor of the demo page: a real browser, and what it does to the page."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Server, needs, running_server
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sklearn.datasets import load_digits

ANSWERED, FAILED, WAITING = (f".card[data-state={state}]" for state in ("answered", "failed", "waiting"))
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
SECONDS = 30_000  # most milliseconds for what takes less than one on a quiet machine
expect.set_options(timeout=SECONDS)

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    needs("chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=shutil.which("chromium"))
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
