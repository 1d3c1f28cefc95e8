"""What `/tag` is worth on pictures with known labels: the demo's canvases, from training to the answer over HTTP."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import httpx
import pytest
from conftest import Server, run_tresnet, start_server

from benchmarks.heat_maps import main as measure_heat_maps


def micro_f1(server: Server, canvases: Path, query: str = "") -> float:
    """Of all tags that the gateway gives to the pictures of a labelled folder."""
    with (canvases / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    hits = answered = right = 0
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            files = [("image", (row["path"], (canvases / row["path"]).read_bytes())) for row in part]
            for row, result in zip(part, client.post(f"/tag{query}", files=files).json()["results"], strict=True):
                given, expected = {tag["label"] for tag in result["tags"]}, set(row["labels"].split("|"))
                hits, answered, right = hits + len(given & expected), answered + len(given), right + len(expected)
    return 2 * hits / (answered + right)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tags_with_fitted_thresholds_are_right_and_their_heat_maps_on_the_digits(tmp_path: Path) -> None:
    trained = run_tresnet("train", "multidigits", cwd=tmp_path, timeout=1200)
    assert trained.returncode == 0, trained.stderr
    run = tmp_path / "runs" / "multidigits"
    exported = run_tresnet("export", run / "best.pt", "--task", "tag", "--name", "multidigits", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    server = start_server(tmp_path)
    try:
        server.wait_ready(100)
        fitted, at_half = micro_f1(server, run / "test"), micro_f1(server, run / "test", "?threshold=0.5")
        measure_heat_maps(server.url, "multidigits", 0, tmp_path / "heat_maps.json")
    finally:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(40)
    evaluated = run_tresnet("eval", run / "best.pt", "--json", cwd=tmp_path)
    assert fitted >= 0.94
    assert fitted > at_half
    assert fitted == pytest.approx(json.loads(evaluated.stdout)["f1"], abs=0.003)
    assert json.loads((tmp_path / "heat_maps.json").read_text())["mean_share"] >= 0.73
