"""The OpenAPI document is true: what it allows gets no 500, and every answer is as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import jsonschema_rs
from conftest import Guarded, Server
from test_http import oversized_png

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
            "--header", "X-Request-Timeout-Ms: 30000",  # a deadline of 1 ms gets its 504, as documented
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert "7 selected / 7 total" in done.stdout


def test_every_example_is_as_its_schema_says(server: Server) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    seen: list[str] = []
    for path, item in document["paths"].items():
        for operation in item.values():
            seen.append(operation["operationId"])
            answers = [(f"{path} {status}", answer["content"]) for status, answer in operation["responses"].items()]
            for where, content in [*answers, (f"{path} body", operation.get("requestBody", {}).get("content", {}))]:
                for kind, media in content.items():
                    examples = [media["example"]] if "example" in media else []
                    examples += [example["value"] for example in media.get("examples", {}).values()]
                    is_binary = media["schema"].get("format") == "binary" or kind == "multipart/form-data"
                    assert examples or is_binary, f"{where} {kind} has no example"
                    validator = jsonschema_rs.validator_for({**media["schema"], "components": document["components"]})
                    for example in examples:
                        validator.validate(example)
    assert {"classify", "tag", "list_models", "live", "ready", "metrics"} <= set(seen)
    assert len(seen) == len(set(seen))


def test_locks_are_shown_where_a_key_is_asked_for(server: Server, guarded: Guarded) -> None:
    for running, is_locked in ((server, False), (guarded, True)):
        paths = httpx.get(f"{running.url}/openapi.json").json()["paths"]
        for path, item in paths.items():
            for operation in item.values():
                assert operation["tags"][0] in ("Ask", "Models", "State")
                wanted = is_locked and operation["tags"][0] != "State"
                assert ("security" in operation) == wanted, (running.url, path)


def test_the_documented_bodies_are_answered(server: Server) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    for path in ("/classify", "/tag"):
        examples = paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        for name in ("one", "several"):
            results = httpx.post(server.url + path, json=examples[name]["value"], timeout=30).json()["results"]
            assert {result["status"] for result in results} == {"ok"}


def test_real_errors_are_among_the_documented_ones(server: Server, guarded: Guarded, digit_files: list[bytes]) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    (digit, url) = digit_files[0], server.url
    many = {"images": [{"b64": "eA=="}] * 65}
    by_url = {"images": [{"url": "https://images.example.com/a.jpg"}]}
    said: dict[str, list[str]] = {}
    for answer in (
        httpx.post(f"{url}/classify", content=b""),
        httpx.post(f"{url}/classify", json={"images": []}),
        httpx.post(f"{url}/classify", json=[]),
        httpx.post(f"{url}/classify", content=b"{"),
        httpx.post(f"{url}/classify", files={"picture": digit}),
        httpx.post(f"{url}/classify", content=oversized_png()),
        httpx.post(f"{url}/classify", content=bytes(33 * 2**20)),
        httpx.post(f"{guarded.url}/classify", content=digit),
        httpx.get(f"{guarded.url}/models"),
        httpx.post(f"{url}/classify?model=nobody", content=digit),
        httpx.post(f"{url}/classify?version=9", content=digit),
        httpx.post(f"{url}/tag", json=many),
        httpx.post(f"{url}/tag", json=by_url),
        httpx.post(f"{url}/tag", content=b"text"),
        httpx.post(f"{url}/tag", content=b"text", headers={"Content-Type": "text/plain"}),
        httpx.post(f"{url}/tag?threshold=2", content=digit),
        httpx.post(f"{url}/classify?top_k=0", content=digit),
        httpx.post(f"{guarded.url}/tag", json=many | {"images": many["images"][:9]}, headers=_key(guarded.owing_key)),
        httpx.post(f"{guarded.url}/tag", content=digit, headers=_key(guarded.owing_key)),
    ):
        problem = answer.json()
        operation = paths[problem["instance"]][answer.request.method.lower()]
        codes = operation["responses"][str(answer.status_code)]["content"]["application/problem+json"]["examples"]
        assert problem["code"] in codes, problem
        said.setdefault(codes[problem["code"]]["value"]["detail"], []).append(problem["detail"])
    for documented, details in said.items():
        assert _without_values(documented) in map(_without_values, details), (documented, details)


def _without_values(detail: str) -> str:
    """What an example has in common with what is said of other models, names and numbers."""
    return re.sub(r"'[^']*'|[0-9][0-9,]*|(?<=served: ).*|(?<='model': ).*", "…", detail)


def _key(key: str) -> dict[str, str]:
    return {"X-API-Key": key}
