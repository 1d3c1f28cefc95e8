"""Answers that are kept: the same bytes get them again, from the version that gave them, within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton
from conftest import Server, running_server, until
from page_visitor import gateway

_FEW = 3  # answers of `digits` that the small cache holds


@pytest.fixture(scope="module")
def caching(models: Path) -> Iterator[Server]:
    with running_server(models, answer_cache_bytes=10_000_000, triton_poll_ms=100) as running:
        yield running


def looked_up(server: Server) -> tuple[float, float]:
    return tuple(server.metric("tresnet_answer_cache_total", result=result) for result in ("hit", "miss"))


def ask(server: Server, picture: bytes, route: str = "/classify", **parameters: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}{route}", params=parameters, content=picture, timeout=60)
    assert answer.status_code == 200, answer.text
    [result] = answer.json()["results"]
    return result


def test_the_same_bytes_are_computed_once(caching: Server, server: Server, digit_files: list[bytes]) -> None:
    hits, misses = looked_up(caching)
    pictures = caching.metric("tresnet_batch_size_sum")
    first = ask(caching, digit_files[0])
    assert ask(caching, digit_files[0]) == first
    assert ask(caching, digit_files[0], top_k=2)["predictions"] == first["predictions"][:2]
    assert ask(caching, digit_files[1]) != first
    assert looked_up(caching) == (hits + 2, misses + 2)
    assert caching.metric("tresnet_batch_size_sum") == pictures + 2
    assert [entry["label"] for entry in first["predictions"]] == [
        entry["label"] for entry in ask(server, digit_files[0])["predictions"]
    ]


def test_what_was_not_asked_before_is_not_known(caching: Server, digit_files: list[bytes]) -> None:
    plain = ask(caching, digit_files[2])
    asked = ask(caching, digit_files[2], embedding=True, explain=True)
    assert len(asked["embedding"]) == 2048
    assert all("heat_map" in entry for entry in asked["predictions"])
    assert ask(caching, digit_files[2], embedding=True, explain=True) == asked
    assert ask(caching, digit_files[2]) == plain
    assert len(ask(caching, digit_files[2], "/tag", threshold=0)["tags"]) == 5, "another model's answer"


def test_a_model_that_is_loaded_anew_knows_nothing(caching: Server, digit_files: list[bytes]) -> None:
    ask(caching, digit_files[3])
    with triton.InferenceServerClient(caching.triton_address()) as client:
        client.unload_model("digits")
        until(lambda: len(httpx.get(f"{caching.url}/models", timeout=30).json()["models"]) == 1)
        client.load_model("digits")
    until(lambda: len(httpx.get(f"{caching.url}/models", timeout=30).json()["models"]) == 2)
    hits, misses = looked_up(caching)
    ask(caching, digit_files[3])
    assert looked_up(caching) == (hits, misses + 1)


def test_a_broken_picture_is_refused_each_time(caching: Server) -> None:
    for _ in range(2):
        assert httpx.post(f"{caching.url}/classify", content=b"no picture", timeout=60).status_code == 422


def test_the_oldest_answer_makes_room(server: Server, digit_files: list[bytes], tmp_path: Path) -> None:
    with gateway(server, tmp_path, answer_cache_bytes=_FEW * (600 + 10 * 4)) as small:
        for index in (0, 1, 2, 0, 3):  # 1 is the oldest when 3 comes
            ask(small, digit_files[index])
        assert looked_up(small) == (1, 4)
        for index in (0, 2, 3):
            ask(small, digit_files[index])
        assert looked_up(small) == (4, 4)
        ask(small, digit_files[1])
        assert looked_up(small) == (4, 5)


def test_none_is_kept_unless_asked_for(server: Server, digit_files: list[bytes]) -> None:
    pictures = server.metric("tresnet_batch_size_sum")
    for _ in range(2):
        ask(server, digit_files[4])
    assert server.metric("tresnet_batch_size_sum") == pictures + 2
    assert looked_up(server) == (0, 0)
