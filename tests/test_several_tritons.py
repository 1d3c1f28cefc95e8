"""One gateway in front of two Triton servers: one is killed, and once it is back the other is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import is_running, processes, run_tresnet, start_server, until
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from app.bundled_triton import BundledTriton, default_home

_RATE = 50  # requests a second


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


def _has_answered(server: BundledTriton) -> bool:
    """Whether it has answered a picture in this life of its process."""
    with InferenceServerClient(server.url.removeprefix("grpc://")) as client:
        try:
            statistics = client.get_inference_statistics("digits", client_timeout=5)
        except InferenceServerException:
            return False
    return any(model.inference_stats.success.count for model in statistics.model_stats)


def _signal(server: BundledTriton, number: signal.Signals) -> int:
    """The process that got it; its supervisor starts another in its place."""
    [pid] = [pid for pid, command in processes() if f"--grpc-port={server.port}" in command]
    os.kill(pid, number)
    return pid


async def _ask_at_rate(url: str, picture: bytes, hands: asyncio.Task[float]) -> list[tuple[float, int | str]]:
    """Requests at a fixed rate, however slowly they are answered, until the hands are done.

    Each one's start on the loop's clock, and its status, or why there is none.
    """
    loop = asyncio.get_running_loop()

    async def one(client: httpx.AsyncClient) -> tuple[float, int | str]:
        started = loop.time()
        try:
            return started, (await client.post(url, content=picture, timeout=180)).status_code
        except httpx.HTTPError as error:
            return started, repr(error)

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as client:
        began, calls = loop.time(), []
        while not hands.done():
            calls.append(asyncio.create_task(one(client)))
            await asyncio.sleep(began + len(calls) / _RATE - loop.time())
        return await asyncio.gather(*calls)


def test_one_of_two_tritons_is_killed_and_the_other_stopped_in_traffic(
    models: Path, digit_files: list[bytes], two_tritons: list[BundledTriton]
) -> None:
    addresses = ",".join(server.url.removeprefix("grpc://") for server in two_tritons)
    server = start_server(models, "--triton-url", f"grpc://{addresses}", request_timeout_ms=120_000)
    first, second = two_tritons

    async def kill_and_stop() -> float:
        """When the kill was, on the loop's clock."""
        await asyncio.sleep(2)
        _signal(first, signal.SIGKILL)
        killed = asyncio.get_running_loop().time()
        await asyncio.to_thread(until, lambda: _has_answered(first), "the gateway asks the killed Triton again")
        stopped = _signal(second, signal.SIGTERM)
        await asyncio.to_thread(until, lambda: not is_running(stopped), "the stopped Triton is gone")
        await asyncio.to_thread(until, lambda: _has_answered(second), "the gateway asks the stopped Triton again")
        return killed

    async def traffic() -> tuple[float, list[tuple[float, int | str]]]:
        hands = asyncio.create_task(kill_and_stop())
        answers = await _ask_at_rate(f"{server.url}/classify", digit_files[0], hands)
        return await hands, answers

    try:
        server.wait_ready(60)
        killed, answers = asyncio.run(traffic())
        failed = [(round(started - killed, 2), status) for started, status in answers if status != 200]
        # Of those that were under way at the kill, or asked in the second after it, some may.
        assert all(-1 < after < 1 for after, _ in failed), (
            failed,
            [line for line in server.log().splitlines() if '"status":503' in line or "WARN" in line][:20],
        )
        assert {status for _, status in failed} <= {503}
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
