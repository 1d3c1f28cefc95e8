"""Decoding processes that hang, crash and are killed: seen from outside, through HTTP."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Server, command, is_running, start_server


def decoders(server: Server) -> list[int]:
    return [pid for pid in server.children() if "app.decode_process" in command(pid)]


@pytest.fixture(scope="module")
def own(models: Path) -> Iterator[Server]:
    server = start_server(models, decode_timeout_ms=1500, decode_processes=1)
    try:
        server.wait_ready(60)
        yield server
    finally:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(40)


def until(condition: object, seconds: float = 30) -> None:
    started = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - started < seconds
        time.sleep(0.05)


def test_a_picture_survives_the_death_of_its_process(own: Server, digit_files: list[bytes]) -> None:
    right = httpx.post(f"{own.url}/classify", content=digit_files[0]).json()["results"]
    (before,) = decoders(own)
    os.kill(before, signal.SIGSTOP)  # so that the picture is with it when it dies
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{own.url}/classify", content=digit_files[0], timeout=30))
    )
    asking.start()
    time.sleep(0.3)
    os.kill(before, signal.SIGKILL)
    asking.join(30)
    assert answers[0].status_code == 200
    assert answers[0].json()["results"] == right
    assert decoders(own) != [before]


def test_a_process_that_hangs_is_replaced(own: Server, digit_files: list[bytes]) -> None:
    (hanging,) = decoders(own)
    os.kill(hanging, signal.SIGSTOP)
    answer = httpx.post(f"{own.url}/classify", content=digit_files[0], timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert httpx.get(f"{own.url}/readyz").status_code == 200
    assert httpx.post(f"{own.url}/classify", content=digit_files[0], timeout=30).status_code == 200
    assert not is_running(hanging)


def test_decoders_do_not_outlive_a_killed_gateway(models: Path) -> None:
    server = start_server(models, decode_processes=1)
    until(lambda: decoders(server))
    orphans = server.descendants()
    server.process.kill()
    server.process.wait()
    until(lambda: not any(is_running(pid) for pid in orphans))
