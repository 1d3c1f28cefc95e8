"""The examples in four languages, run as their first lines say, against the real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import Guarded, Server, needs
from test_client import problem, scripted

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNNERS = {"ask.sh": ["sh"], "ask.py": [sys.executable], "ask.mjs": ["node"], "ask.go": ["go", "run"]}
NEEDS = {"ask.sh": "curl", "ask.mjs": "node", "ask.go": "go"}


@pytest.fixture(scope="session", params=RUNNERS)
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How an example is started; the one in Go is compiled once."""
    name = request.param
    if name in NEEDS:
        needs(NEEDS[name])
    if name == "ask.go":
        program = tmp_path_factory.mktemp("go") / "ask"
        subprocess.run(["go", "build", "-o", program, EXAMPLES / name], check=True, timeout=300)
        return [str(program)]
    return [*RUNNERS[name], str(EXAMPLES / name)]


def run(command: list[str], *paths: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *map(str, paths)], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def lines_of(done: subprocess.CompletedProcess[str], paths: list[Path]) -> list[list[str]]:
    """Name, label and score of each picture, or name and code; curl prints the answer as it is."""
    if not done.stdout.startswith("{"):
        return [line.split() for line in done.stdout.splitlines()]
    return [
        [path.name, result["predictions"][0]["label"], f"{result['predictions'][0]['score']:.3f}"]
        if result["status"] == "ok"
        else [path.name, result["error"]["code"]]
        for path, result in zip(paths, json.loads(done.stdout)["results"], strict=True)
    ]


def test_it_answers(command: list[str], server: Server, digit_files: list[bytes], tmp_path: Path) -> None:
    paths = [EXAMPLES / "digit-7.png", tmp_path / "b, c;d.png", tmp_path / "broken.png"]
    paths[1].write_bytes(digit_files[3])
    paths[2].write_bytes(b"no picture")
    done = run(command, *paths, TRESNET_URL=server.url)
    expected: list[list[str]] = []
    for path in paths[:2]:
        best = httpx.post(f"{server.url}/classify", content=path.read_bytes()).json()["results"][0]["predictions"][0]
        expected.append([path.name, best["label"], f"{best['score']:.3f}"])
    lines = lines_of(done, paths)
    assert [" ".join(line) for line in lines[:2]] == [" ".join(line) for line in expected]
    assert lines[2] == ["broken.png", "undecodable_image"]


def test_it_gives_its_key(command: list[str], guarded: Guarded) -> None:
    path = EXAMPLES / "digit-7.png"
    refused = run(command, path, TRESNET_URL=guarded.url)
    assert refused.returncode != 0
    assert "API key" in refused.stdout + refused.stderr
    assert run(command, path, TRESNET_URL=guarded.url, TRESNET_API_KEY=guarded.key).returncode == 0


def test_it_waits_as_long_as_it_is_told(command: list[str]) -> None:
    answer = {"request_id": "r", "model": {"name": "m", "version": "1", "task": "classify"}, "results": []}
    result = {"id": "0", "status": "ok", "width": 1, "height": 1,
              "predictions": [{"label": "7", "label_id": 7, "score": 0.5}]}  # fmt: skip
    busy = (503, {"Retry-After": "1"}, problem(503, "queue_full"))
    with scripted([busy, (200, {}, {**answer, "results": [result]})]) as (url, asked):
        done = run(command, EXAMPLES / "digit-7.png", TRESNET_URL=url)
    assert done.returncode == 0, done.stderr
    assert len(asked) == 2
    assert float(asked[1]["at"]) - float(asked[0]["at"]) >= 1
