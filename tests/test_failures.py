"""Triton killed, Ctrl-C in traffic: a server of its own for each."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx
from conftest import is_running, start_server


def test_killed_triton_is_survived(models: Path, digit_files: list[bytes]) -> None:
    server = start_server(models)
    try:
        server.wait_ready(60)
        url = f"{server.url}/classify"
        right = httpx.post(url, content=digit_files[0]).json()["results"][0]["predictions"]
        for pid in server.children():
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        refused, served_after = 0, None
        while time.monotonic() - killed < 30:
            asked = time.monotonic()
            answer = httpx.post(url, content=digit_files[0], timeout=30)
            if answer.status_code == 200:
                assert answer.json()["results"][0]["predictions"] == right
                if refused:
                    served_after = time.monotonic() - killed
                    break
            else:
                refused += 1
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
                assert time.monotonic() - asked < 2
                ready = httpx.get(f"{server.url}/readyz").status_code
                assert ready == 503 or refused > 1
            time.sleep(0.05)
        assert refused
        assert served_after is not None and served_after < 15
    finally:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(40)


def test_stop_in_traffic_answers_what_is_in_flight_and_leaves_nothing(models: Path, digit_files: list[bytes]) -> None:
    server = start_server(models)
    server.wait_ready(60)
    statuses: list[int] = []
    broken: list[Exception] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                statuses.append(httpx.post(f"{server.url}/classify", content=digit_files[0], timeout=30).status_code)
            except httpx.ConnectError:
                return
            except httpx.HTTPError as error:
                broken.append(error)
                return

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    time.sleep(1.5)
    started = server.descendants()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(40) == 0
    stop.set()
    for thread in clients:
        thread.join(30)
    assert statuses.count(200) > 8
    assert set(statuses) <= {200, 503}
    assert not broken
    assert started
    assert not [pid for pid in started if is_running(pid)]
