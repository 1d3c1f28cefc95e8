"""The OpenAPI document is true: what it allows gets no 500, and every answer is as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
from conftest import Server

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)


def test_every_answer_is_as_documented(server: Server, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json",
            "--phases", "examples,coverage,fuzzing", "--checks", CHECKS,
            "--max-examples", "30", "--generation-deterministic", "--seed", "1", "--no-color",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert "6 selected / 6 total" in done.stdout


def test_the_documented_example_is_answered(server: Server) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    for path in ("/classify", "/tag"):
        example = paths[path]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert httpx.post(server.url + path, json=example, timeout=30).json()["results"][0]["status"] == "ok"
