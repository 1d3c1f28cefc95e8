"""README's picture of the page, from a running `make serve`: `make page-picture`."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main(target: Path, url: str = "http://127.0.0.1:8080") -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        page = browser.new_page(viewport={"width": 1120, "height": 900})
        page.goto(url)
        page.locator("#settings").wait_for()
        page.locator("#explain").check()
        page.locator(".sample").nth(0).click()
        page.locator(".card[data-state=answered]").wait_for()
        page.locator(".sample").nth(1).click()
        page.locator(".card[data-state=answered] >> nth=1").wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until the bars have grown
        target.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=target, full_page=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
