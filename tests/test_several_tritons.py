"""One gateway in front of two Triton servers, one of which is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import processes, run_tresnet, start_server
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from app.bundled_triton import BundledTriton, default_home

_RATE = 50  # requests a second
_SECONDS = 8
_KILL_AFTER_S = 2.0


@pytest.fixture
def two_tritons(models: Path, tmp_path: Path) -> Iterator[list[BundledTriton]]:
    """Servers over one repository, each on an address of its own."""
    repository, options = models / "model_repository", ["--allow-metrics=false"]
    servers = [BundledTriton(repository, default_home(), tmp_path / name, options, 60.0) for name in ("a", "b")]
    try:
        for server in servers:
            server.start()
        until = time.monotonic() + 120
        while not all(_is_ready(server) for server in servers):
            assert time.monotonic() < until, [server.log_path.read_text()[-2000:] for server in servers]
            time.sleep(0.2)
        yield servers
    finally:
        for server in servers:
            server.stop()


def _is_ready(server: BundledTriton) -> bool:
    with InferenceServerClient(server.url.removeprefix("grpc://")) as client:
        try:
            return bool(client.is_model_ready("digits", client_timeout=5))
        except InferenceServerException:
            return False


async def _send_at_rate(url: str, picture: bytes, kill: asyncio.Event) -> list[tuple[float, int]]:
    """Requests at a fixed rate, however slowly they are answered; each one's start and status, 0 for no answer."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    limits = httpx.Limits(max_connections=None)

    async def one(client: httpx.AsyncClient, number: int) -> tuple[float, int]:
        at = number / _RATE
        await asyncio.sleep(began + at - loop.time())
        if at >= _KILL_AFTER_S:
            kill.set()
        try:
            answer = await client.post(url, content=picture, timeout=180)
        except httpx.HTTPError:
            return at, 0
        return at, answer.status_code

    async with httpx.AsyncClient(limits=limits) as client:
        return await asyncio.gather(*(one(client, number) for number in range(_RATE * _SECONDS)))


def test_one_of_two_tritons_is_killed_in_traffic(
    models: Path, digit_files: list[bytes], two_tritons: list[BundledTriton]
) -> None:
    addresses = ",".join(server.url.removeprefix("grpc://") for server in two_tritons)
    server = start_server(models, "--triton-url", f"grpc://{addresses}", request_timeout_ms=120_000)

    async def traffic_and_kill() -> list[tuple[float, int]]:
        kill = asyncio.Event()
        traffic = asyncio.create_task(_send_at_rate(f"{server.url}/classify", digit_files[0], kill))
        await kill.wait()
        [pid] = [pid for pid, command in processes() if f"--grpc-port={two_tritons[0].port}" in command]
        os.kill(pid, signal.SIGKILL)  # its supervisor starts it again: it joins in once more
        return await traffic

    try:
        server.wait_ready(60)
        answers = asyncio.run(traffic_and_kill())
        assert len(answers) == _RATE * _SECONDS
        assert not [answer for answer in answers if answer[1] != 200 and answer[0] > _KILL_AFTER_S + 1]
        assert not [answer for answer in answers if answer[1] not in (200, 503)]
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    finally:
        server.process.terminate()
        assert server.process.wait(40) == 0


@pytest.mark.parametrize("url", ["http://a:1", "grpc://a", "grpc://a:b", "grpc://a:1,b:2", "grpc://1.2.3.4:1,[::1]:2"])
def test_a_url_that_names_no_server_stops_the_start(tmp_path: Path, url: str) -> None:
    refused = run_tresnet("serve", "--triton-url", url, cwd=tmp_path)
    assert refused.returncode == 2
    assert "TRESNET_TRITON_URL" in refused.stderr
    assert url in refused.stderr
