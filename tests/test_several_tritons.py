"""One gateway in front of two Triton servers: one is killed, and once it is back the other is stopped; one hangs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import BREAKS_WHILE, Server, is_running, processes, run_tresnet, start_server, until
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from app.bundled_triton import BundledTriton, default_home


@pytest.fixture(scope="module")
def two_tritons(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[BundledTriton]]:
    """Servers over one repository, each on an address of its own."""
    repository = models / "model_repository"
    with _running([repository, repository], tmp_path_factory.mktemp("tritons")) as servers:
        yield servers


@contextmanager
def _running(repositories: list[Path], folder: Path) -> Iterator[list[BundledTriton]]:
    """A server over each, ready with its digits."""
    options = ["--allow-metrics=false"]
    servers = [
        BundledTriton(repository, default_home(), folder / f"logs-{number}", options)
        for number, repository in enumerate(repositories)
    ]
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


def _has_answered(server: BundledTriton) -> int:
    """How many pictures, in this life of its process."""
    with InferenceServerClient(server.url.removeprefix("grpc://")) as client:
        try:
            statistics = client.get_inference_statistics("digits", client_timeout=5)
        except InferenceServerException:
            return 0
    return sum(model.inference_stats.success.count for model in statistics.model_stats)


def _signal(server: BundledTriton, number: signal.Signals) -> int:
    """The process that got it; its supervisor starts another in its place."""
    [pid] = [pid for pid, command in processes() if f"--grpc-port={server.port}" in command]
    os.kill(pid, number)
    return pid


Asked = tuple[float, int | str, float]
"""A request's start on the loop's clock, its status, or why there is none, and its end."""


async def _ask_at_rate(url: str, picture: bytes, hands: asyncio.Task[float], rate: int = 50) -> list[Asked]:
    """So many requests a second, however slowly they are answered, until the hands are done."""
    loop = asyncio.get_running_loop()

    async def one(client: httpx.AsyncClient) -> Asked:
        started = loop.time()
        status: int | str
        try:
            status = (await client.post(url, content=picture, timeout=180)).status_code
        except httpx.HTTPError as error:
            status = repr(error)
        return started, status, loop.time()

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as client:
        began, calls = loop.time(), []
        while not hands.done():
            calls.append(asyncio.create_task(one(client)))
            await asyncio.sleep(began + len(calls) / rate - loop.time())
        return await asyncio.gather(*calls)


@contextmanager
def _in_front_of(tritons: list[BundledTriton], models: Path, **settings: object) -> Iterator[Server]:
    """A gateway that asks them all; it is ready, and stops as it should."""
    addresses = ",".join(triton.url.removeprefix("grpc://") for triton in tritons)
    server = start_server(models, "--triton-url", f"grpc://{addresses}", **settings)
    try:
        server.wait_ready(60)
        yield server
    finally:
        server.process.terminate()
        assert server.process.wait(40) == 0


def test_one_of_two_tritons_is_killed_and_the_other_stopped_in_traffic(
    models: Path, digit_files: list[bytes], two_tritons: list[BundledTriton]
) -> None:
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

    async def traffic(server: Server) -> tuple[float, list[Asked]]:
        hands = asyncio.create_task(kill_and_stop())
        answers = await _ask_at_rate(f"{server.url}/classify", digit_files[0], hands)
        return await hands, answers

    with _in_front_of(two_tritons, models, request_timeout_ms=120_000) as server:
        killed, answers = asyncio.run(traffic(server))
        failed = [(round(started - killed, 2), status) for started, status, _ in answers if status != 200]
        # Of those that were under way at the kill, or asked in the second after it, some may.
        assert all(-1 < after < 1 for after, _ in failed), (
            failed,
            [line for line in server.log().splitlines() if '"status":503' in line or "WARN" in line][:20],
        )
        assert {status for _, status in failed} <= {503}
        assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_one_of_two_tritons_hangs_in_traffic(
    models: Path, digit_files: list[bytes], two_tritons: list[BundledTriton]
) -> None:
    hanging, _ = two_tritons

    async def hold() -> float:
        """When it went on, on the loop's clock."""
        await asyncio.sleep(1)
        answered = await asyncio.to_thread(_has_answered, hanging)
        _signal(hanging, signal.SIGSTOP)
        try:
            await asyncio.sleep(6)
        finally:
            _signal(hanging, signal.SIGCONT)
        await asyncio.to_thread(until, lambda: _has_answered(hanging) > answered + 5, "it is asked again", 30)
        return asyncio.get_running_loop().time()

    async def traffic(server: Server) -> list[Asked]:
        return await _ask_at_rate(f"{server.url}/classify", digit_files[0], asyncio.create_task(hold()), rate=20)

    with _in_front_of(two_tritons, models, triton_live_timeout_ms=1000) as server:
        answers = asyncio.run(traffic(server))
        assert {status for _, status, _ in answers} == {200}, server.log()[-3000:]
        assert max(ended - started for started, _, ended in answers) < 5


def test_a_triton_that_nobody_can_watch_does_not_keep_the_port(
    two_tritons: list[BundledTriton], caplog: pytest.LogCaptureFixture
) -> None:
    server, _ = two_tritons
    ordinary = threading.stack_size(2**46)  # which no thread gets
    try:
        _signal(server, signal.SIGKILL)
        until(lambda: "can't start new thread" in caplog.text, "it is started again", 30)
    finally:
        threading.stack_size(ordinary)
    until(lambda: _is_ready(server), "it serves again", 60)


def _repository(folder: Path, models: Path, *, version: str = "1", code: str = "") -> Path:
    """The digits alone, as a version of that number, perhaps with more code in its model.py."""
    model = shutil.copytree(models / "model_repository" / "digits", folder / "digits")
    (model / "1").rename(model / version)
    with (model / version / "model.py").open("a") as file:
        file.write(code)
    for path in (model / "config.pbtxt", model / "configs" / "embedded.pbtxt"):
        path.write_text(path.read_text().replace('"version.1"', f'"version.{version}"'))
    return folder


def test_tritons_with_one_version_each_take_nothing_out_of_service(
    models: Path, digit_files: list[bytes], tmp_path: Path
) -> None:
    """As while they are replaced, one by one, by some of an image that holds the new version alone."""
    repositories = [_repository(tmp_path / version, models, version=version) for version in ("1", "2")]
    with _running(repositories, tmp_path) as tritons, _in_front_of(tritons, models, triton_poll_ms=200) as server:

        def asked() -> tuple[int, str]:
            answer = httpx.post(f"{server.url}/classify", content=digit_files[0], timeout=30)
            return answer.status_code, answer.json().get("model", {}).get("version", answer.text)

        first = asked()
        assert first in ((200, "1"), (200, "2"))
        until_s = time.monotonic() + 5
        while time.monotonic() < until_s:
            assert (asked(), httpx.get(f"{server.url}/readyz").status_code) == (first, 200), server.log()[-3000:]
            time.sleep(0.02)
        assert server.log().count("live: model 'digits'") == 1
        tritons[int(first[1]) - 1].stop()
        other = "2" if first[1] == "1" else "1"
        until(lambda: asked() == (200, other), "the other version serves", 30)


def test_a_triton_that_answers_wrongly_takes_no_version_out(
    models: Path, digit_files: list[bytes], tmp_path: Path
) -> None:
    """It calls itself ready, as one does whose GPU is broken."""
    mark = tmp_path / "broken"
    repositories = [
        _repository(tmp_path / "a", models),
        _repository(tmp_path / "b", models, code=BREAKS_WHILE.format(mark)),
    ]
    settings = {"golden_check_s": 1, "triton_poll_ms": 200}
    with _running(repositories, tmp_path) as tritons, _in_front_of(tritons, models, **settings) as server:
        mark.touch()
        answers, until_s = [], time.monotonic() + 8
        while time.monotonic() < until_s:
            answers.append(httpx.post(f"{server.url}/classify", content=digit_files[0], timeout=30).status_code)
            assert httpx.get(f"{server.url}/readyz").status_code == 200, server.log()[-3000:]
            time.sleep(0.02)
        assert set(answers) <= {200, 502}
        assert answers.count(502) < len(answers) / 5, "each is asked of the other one, too"
        assert "is out" not in server.log()


@pytest.mark.parametrize("url", ["http://a:1", "grpc://a", "grpc://a:b", "grpc://a:1,b:2", "grpc://1.2.3.4:1,[::1]:2"])
def test_a_url_that_names_no_server_stops_the_start(tmp_path: Path, url: str) -> None:
    refused = run_tresnet("serve", "--triton-url", url, cwd=tmp_path)
    assert refused.returncode == 2
    assert "TRESNET_TRITON_URL" in refused.stderr
    assert url in refused.stderr
