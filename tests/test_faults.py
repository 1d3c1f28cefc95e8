"""Faults between the gateway and its Triton, and in the gateway's own limits. What is answered is right."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from conftest import Server, start_server
from tcp_proxy import Direction, TcpProxy


@pytest.fixture(scope="module")
def proxy(server: Server) -> Iterator[TcpProxy]:
    with TcpProxy(server.triton_address()) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(server: Server, proxy: TcpProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway that reaches the shared Triton through the proxy."""
    running = start_server(tmp_path_factory.mktemp("gateway"), "--triton-url", f"grpc://{proxy.address}")
    try:
        running.wait_ready(60)
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0


class Asking:
    """Questions of eight clients, each answer compared with the right one."""

    def __init__(self, server: Server, gateway: Server, pictures: list[bytes]) -> None:
        self.url = f"{gateway.url}/classify"
        self.right = {picture: scores(httpx.post(f"{server.url}/classify", content=picture)) for picture in pictures}

    def ask(self, picture: bytes, timeout_ms: int = 20_000) -> int:
        """The status; what is not 200 must be a problem that says when to come back."""
        headers = {"X-Request-Timeout-Ms": str(timeout_ms)}
        answer = httpx.post(self.url, content=picture, headers=headers, timeout=60)
        if answer.status_code == 200:
            assert scores(answer) == pytest.approx(self.right[picture], abs=1e-3)
        else:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.status_code != 503 or int(answer.headers["retry-after"]) >= 1
        return answer.status_code

    def many(self, count: int = 64) -> list[int]:
        with ThreadPoolExecutor(8) as pool:
            pictures = list(self.right)
            return list(pool.map(self.ask, [pictures[i % len(pictures)] for i in range(count)]))

    def until(self, status: int, seconds: float = 60) -> float:
        started = time.monotonic()
        while self.ask(next(iter(self.right))) != status:
            assert time.monotonic() - started < seconds
            time.sleep(0.05)
        return time.monotonic() - started


def scores(answer: httpx.Response) -> dict[str, float]:
    [result] = answer.raise_for_status().json()["results"]
    return {entry["label"]: entry["score"] for entry in result["predictions"]}


@pytest.fixture
def asking(server: Server, gateway: Server, digit_files: list[bytes]) -> Asking:
    return Asking(server, gateway, digit_files[:8])


def test_cut_connections(asking: Asking, proxy: TcpProxy) -> None:
    cutting = threading.Event()

    def cut_again_and_again() -> None:
        while not cutting.wait(0.3):
            proxy.cut()

    cutter = threading.Thread(target=cut_again_and_again)
    cutter.start()
    try:
        statuses = asking.many(100)
    finally:
        cutting.set()
        cutter.join()
    assert set(statuses) <= {200, 503}, statuses
    proxy.refuses = True
    proxy.cut()
    asking.until(503)
    proxy.refuses = False
    asking.until(200)


def test_slow_connection(asking: Asking, proxy: TcpProxy, digit_files: list[bytes]) -> None:
    """Slow, yet alive: requests that can wait are answered, the others end at their deadline."""
    asking.until(200)
    proxy.delay_s = 0.4
    try:
        started = time.monotonic()
        assert asking.ask(digit_files[0], timeout_ms=300) == 504
        assert time.monotonic() - started < 5
        assert asking.ask(digit_files[0]) == 200
    finally:
        proxy.delay_s = 0.0
    asking.until(200)


@pytest.mark.parametrize("way", ["to server", "to client"])
def test_garbled_connection(asking: Asking, proxy: TcpProxy, way: Direction) -> None:
    asking.until(200)
    proxy.garbles = way
    try:
        statuses = asking.many()
    finally:
        proxy.garbles = None
    assert set(statuses) <= {200, 502, 503, 504}
    assert set(statuses) != {200}
    asking.until(200)


def test_stopped_triton(asking: Asking, server: Server) -> None:
    """A call that Triton took and never answers ends long before its deadline; so do those that come after."""
    asking.until(200)
    [triton] = server.tritons()
    os.kill(triton, signal.SIGSTOP)
    try:
        started = time.monotonic()
        assert set(asking.many(8)) == {503}
        assert time.monotonic() - started < 12
        started = time.monotonic()
        assert set(asking.many(16)) == {503}
        assert time.monotonic() - started < 6
    finally:
        os.kill(triton, signal.SIGCONT)
    asking.until(200)
    server.wait_ready(60)


def test_a_triton_that_is_silent_for_a_moment_is_waited_for(asking: Asking, server: Server) -> None:
    """As where a machine reads from a slow disk: to give it up would refuse everybody until all is learnt anew."""
    asking.until(200)
    [triton] = server.tritons()
    with ThreadPoolExecutor(1) as held:
        os.kill(triton, signal.SIGSTOP)
        try:
            statuses = held.submit(asking.many, 16)
            time.sleep(3.5)
        finally:
            os.kill(triton, signal.SIGCONT)
        assert set(statuses.result()) == {200}


def test_file_descriptors_run_out(asking: Asking, gateway: Server, digit_files: list[bytes]) -> None:
    asking.until(200)
    pid = gateway.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    limit = len(list(Path(f"/proc/{pid}/fd").iterdir())) + 6
    host, port = gateway.url.removeprefix("http://").split(":")
    statuses: set[int] = set()
    with ExitStack() as stack:
        stack.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, before)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
        with ExitStack() as idle:
            for _ in range(40):
                idle.enter_context(socket.create_connection((host, int(port)), timeout=10))
            for _ in range(10):
                try:
                    statuses.add(httpx.post(asking.url, content=digit_files[0], timeout=1).status_code)
                except httpx.HTTPError:
                    statuses.add(0)
        assert statuses <= {0, 200, 503}
        assert 0 in statuses, "the descriptors did not run out"
        asking.until(200)
    assert set(asking.many()) == {200}
