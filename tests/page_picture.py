"""README's picture of the page, from a running `make serve`: `make page-picture`."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import FilePayload, expect, sync_playwright

from training.demos import held_out_canvases
from training.pictures import encode_png


def main(target: Path, url: str) -> None:
    _, canvases = held_out_canvases(seed=0)
    files: list[FilePayload] = [
        {"name": f"canvas-{number}.png", "mimeType": "image/png", "buffer": encode_png(canvases[number][0])}
        for number in (1, 2)
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        page = browser.new_page(viewport={"width": 1120, "height": 800})
        page.goto(url)
        page.locator(".sample").last.click()
        page.locator("#explain").check()  # which its model can tell
        expect(page.locator(".card[data-state=answered]")).to_have_count(1)
        page.set_input_files("#files", files)
        expect(page.locator(".card[data-state=answered]")).to_have_count(3)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until the bars have grown
        target.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=target, full_page=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
