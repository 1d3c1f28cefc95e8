"""Batches that wait in the bundled Triton, asked directly: several gateways' batches meet there."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from conftest import Server, running_server
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from app.errors import DeadlineError
from app.triton import TritonClient
from tresnet.contract import ModelContract, read_contract

_MODEL = "digits"


@asynccontextmanager
async def _asked(server: Server) -> AsyncIterator[tuple[TritonClient, ModelContract]]:
    client = TritonClient(f"grpc://{server.triton_address()}", shared_memory=False)
    await client.start()
    try:
        yield client, read_contract(await client.config(_MODEL), "1")
    finally:
        await client.close()


async def _infer(client: TritonClient, contract: ModelContract, pictures: int, timeout_s: float = 60) -> float:
    """Seconds until the answer to so many black pictures."""
    loop, side = asyncio.get_running_loop(), contract.preprocessing.image_size
    began = loop.time()
    await client.infer(contract, [np.zeros((side, side, 3), np.uint8)] * pictures, timeout_s)
    return loop.time() - began


def _single_pictures_s(server: Server) -> float:
    """Time that the model has spent on batches of one, as Triton counts it."""
    with grpc.insecure_channel(server.triton_address()) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        [model] = stub.ModelStatistics(pb.ModelStatisticsRequest(name=_MODEL)).model_stats
    return sum(batches.compute_infer.ns for batches in model.batch_stats if batches.batch_size == 1) / 1e9


def test_a_second_batch_is_not_left_lying(server: Server) -> None:
    """Triton's dynamic batcher forgets, one time in five, a batch that came while another ran: for half a second."""

    async def longer_s() -> list[float]:
        """By how much the second one took longer."""
        async with _asked(server) as (client, contract):
            longer = []
            for turn in range(40):
                first = asyncio.create_task(_infer(client, contract, 8))
                await asyncio.sleep(0.004 + 0.0005 * turn)
                longer.append(await _infer(client, contract, 8) - await first)
            return longer

    assert sum(seconds > 0.35 for seconds in asyncio.run(longer_s())) <= 1


def test_what_expires_in_triton_is_not_computed(server: Server) -> None:
    async def ask(singles: int, timeout_s: float) -> list[type]:
        """So many single pictures behind batches that take much longer than 20 ms."""
        async with _asked(server) as (client, contract):
            largest = [asyncio.create_task(_infer(client, contract, contract.max_batch_size)) for _ in range(3)]
            await asyncio.sleep(0.03)  # until they are there
            calls = [_infer(client, contract, 1, timeout_s) for _ in range(singles)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.gather(*largest)
            await _infer(client, contract, 1)  # behind all of them
        return [type(outcome) for outcome in outcomes]

    begun = _single_pictures_s(server)
    assert asyncio.run(ask(40, timeout_s=0.02)) == [DeadlineError] * 40
    expired = _single_pictures_s(server)
    assert asyncio.run(ask(40, timeout_s=60)) == [float] * 40
    assert expired - begun < (_single_pictures_s(server) - expired) / 2


def test_a_full_queue_in_triton_takes_no_version_out(models: Path, digit_files: list[bytes], tmp_path: Path) -> None:
    shutil.copytree(models / "model_repository", tmp_path / "model_repository")
    config = tmp_path / "model_repository" / _MODEL / "configs" / "embedded.pbtxt"
    policy = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }\n"
    config.write_text(config.read_text() + policy)
    form = [("image", digit) for digit in digit_files[:8]]
    with running_server(tmp_path, batches_in_flight=16) as server, ThreadPoolExecutor(16) as pool:
        url = f"{server.url}/classify?model={_MODEL}"
        answers = list(pool.map(lambda _: httpx.post(url, files=form, timeout=60), range(64)))
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    codes = {error["code"] for answer in answers for error in _errors(answer.json())}
    assert codes == {"queue_full"}
    assert any(answer.status_code == 200 for answer in answers)


def _errors(document: dict[str, Any]) -> list[dict[str, Any]]:
    if "results" not in document:
        return [document]
    return [result["error"] for result in document["results"] if result["status"] == "error"]


_SLOW = """
import time


class TritonPythonModel(TritonPythonModel):
    def answer(self, request):
        with open({golden!r}, "a") as file:
            if len(request.requested_output_names()) > 1:  # as of the golden picture, its embedding
                file.write("asked")
        time.sleep(0.3 if Path({slow!r}).exists() else 0)
        return super().answer(request)
"""


def test_requests_that_time_out_take_no_version_out_and_check_it_now_and_then(
    models: Path, digit_files: list[bytes], tmp_path: Path
) -> None:
    shutil.copytree(models / "model_repository" / _MODEL, tmp_path / "model_repository" / _MODEL)
    golden, slow = tmp_path / "golden", tmp_path / "slow"
    slow.touch()
    with (tmp_path / "model_repository" / _MODEL / "1" / "model.py").open("a") as file:
        file.write(_SLOW.format(golden=str(golden), slow=str(slow)))
    with running_server(tmp_path, request_timeout_ms=500) as server:

        def ask(timeout_ms: int) -> tuple[int, int]:
            headers = {"X-Request-Timeout-Ms": str(timeout_ms)}
            asked = httpx.post(f"{server.url}/classify", content=digit_files[0], headers=headers, timeout=30)
            return asked.status_code, httpx.get(f"{server.url}/readyz", timeout=30).status_code

        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(ask, [500] * 64)) == {(200, 200), (504, 200)}
        slow.unlink()
        before, ends = golden.stat().st_size, time.monotonic() + 3
        while time.monotonic() < ends:
            assert ask(10)[1] == 200
        assert golden.stat().st_size - before <= 9 * len("asked"), "some at each look, not one after the other"
