"""Decoding processes that hang, crash and are killed: seen from outside, through HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from conftest import Server, command, is_running, running_server, until
from page_visitor import gateway
from PIL import Image

from app.decoder import Decoder
from app.settings import Settings
from tresnet.cores import usable_cores
from tresnet.picture import Preprocessing


def decoders(server: Server) -> list[int]:
    return [pid for pid in server.children() if "app.decode_process" in command(pid)]


@pytest.fixture(scope="module")
def own(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with gateway(server, tmp_path_factory.mktemp("own"), decode_timeout_ms=1500, decode_processes=1) as running:
        yield running


@pytest.mark.parametrize(
    ("quota", "processes"),
    [("max 100000", 6), ("150000 100000", 2), ("20000 100000", 1), ("900000 100000", 6), ("", 6), (None, 6)],
)
def test_the_quota_of_a_container_bounds_the_processes(
    quota: str | None, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr("tresnet.cores.CPU_MAX", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert Settings().decode_processes_per_worker == processes


def test_a_models_threads_and_the_decoders_keep_to_their_share(server: Server) -> None:
    (model,) = (pid for pid in server.descendants() if "/digits/1/model.py" in command(pid))
    assert f"\0OMP_NUM_THREADS={usable_cores()}\0" in Path(f"/proc/{model}/environ").read_text()
    found = decoders(server)
    assert found
    for decoder in found:
        assert os.getpriority(os.PRIO_PROCESS, decoder) > os.getpriority(os.PRIO_PROCESS, server.process.pid)


def page_faults(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


def test_a_picture_is_decoded_in_the_memory_of_the_one_before(own: Server) -> None:
    file = BytesIO()
    Image.effect_noise((500, 375), 50).convert("RGB").save(file, "PNG")
    (decoder,) = decoders(own)
    faults = []
    for _ in range(6):
        assert httpx.post(f"{own.url}/classify", content=file.getvalue()).status_code == 200
        faults.append(page_faults(decoder))
    assert faults[-1] - faults[1] < 4 * 50, "a picture of 750 kB has some 200 pages"


def test_a_picture_survives_the_death_of_its_process(own: Server, digit_files: list[bytes]) -> None:
    right = httpx.post(f"{own.url}/classify", content=digit_files[0]).json()["results"]
    (before,) = decoders(own)
    os.kill(before, signal.SIGSTOP)  # so that the picture is with it when it dies
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{own.url}/classify", content=digit_files[0], timeout=30))
    )
    asking.start()
    time.sleep(0.3)  # nothing tells that it is: were it late, the next process would have it at once
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
    with running_server(models, ready_within_s=None, decode_processes=1) as server:
        until(lambda: decoders(server))
        orphans = server.descendants()
        server.process.kill()
        server.process.wait()
        until(lambda: not any(is_running(pid) for pid in orphans))


def test_a_picture_whose_client_has_left_is_not_kept() -> None:
    data = bytes(1000)
    decoder = Decoder(Settings())  # which is not started: every picture waits

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(decoder(data, Preprocessing(image_size=32)), 0.01)

    before = sys.getrefcount(data)
    asyncio.run(leave())
    assert sys.getrefcount(data) == before
