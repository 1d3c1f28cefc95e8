"""Two gateways behind a real proxy are replaced one after the other; no request fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import Server, free_port, start_server, until

REQUESTS_PER_S = 50


@contextmanager
def caddy(folder: Path, ports: list[int]) -> Iterator[str]:
    """A proxy in front of the ports, that looks at each one's /readyz every 200 ms."""
    port = free_port()
    handler = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": f"127.0.0.1:{port}"} for port in ports],
        "load_balancing": {"selection_policy": {"policy": "round_robin"}, "try_duration": "10s"},
        "health_checks": {"active": {"uri": "/readyz", "interval": "200ms", "timeout": "5s"}},
    }
    server = {"listen": [f"127.0.0.1:{port}"], "routes": [{"handle": [handler]}], "automatic_https": {"disable": True}}
    config = {"admin": {"disabled": True}, "apps": {"http": {"servers": {"gateways": server}}}}
    path = folder / "caddy.json"
    path.write_text(json.dumps(config))
    with (folder / "caddy.log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("caddy"), "run", "--config", path],
            env={"HOME": str(folder)},
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: is_ready(f"http://127.0.0.1:{port}"), "the proxy passes on")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=20).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.timeout(900)
def test_no_request_fails(server: Server, digit_files: list[bytes], tmp_path: Path) -> None:
    def start(port: int) -> Server:
        return start_server(
            tmp_path,
            "--triton-url",
            f"grpc://{server.triton_address()}",
            port=port,
            drain_delay_s=2,
            drain_refuse_s=0,
            drain_timeout_s=200,  # a busy machine may be slow, and fails nobody for it
            request_timeout_ms=200_000,
            max_queue_images=10_000,
        )

    picture = digit_files[0]
    gateways = [start(free_port()) for _ in range(2)]
    ports = [int(gateway.url.rpartition(":")[2]) for gateway in gateways]
    answers: list[Future[httpx.Response]] = []
    try:
        for gateway in gateways:
            gateway.wait_ready(60)
        with (
            caddy(tmp_path, ports) as url,
            ThreadPoolExecutor(200) as clients,
            httpx.Client(timeout=300, limits=httpx.Limits(max_connections=200)) as client,
        ):
            started = time.monotonic()

            def ask_until(is_done: Future[None]) -> None:
                while not is_done.done():
                    answers.append(clients.submit(client.post, f"{url}/classify", content=picture))
                    time.sleep(max(0.0, started + len(answers) / REQUESTS_PER_S - time.monotonic()))

            def restart_both() -> None:
                time.sleep(1)
                for i, port in enumerate(ports):
                    gateways[i].process.send_signal(signal.SIGTERM)
                    assert gateways[i].process.wait(250) == 0
                    gateways[i] = start(port)
                    gateways[i].wait_ready(60)
                    time.sleep(1)  # the proxy sees it too

            with ThreadPoolExecutor(1) as hands:
                restarts = hands.submit(restart_both)
                ask_until(restarts)
                restarts.result()
            seconds = time.monotonic() - started
            got = [answer.result() for answer in answers]
    finally:
        for gateway in gateways:
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(250) == 0
    assert [(answer.status_code, answer.text) for answer in got if answer.status_code != 200] == []
    assert len({answer.json()["results"][0]["predictions"][0]["label"] for answer in got}) == 1
    assert len(got) > 0.8 * REQUESTS_PER_S * seconds
