"""Triton killed, Ctrl-C in traffic: a server of its own for each."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import BREAKS_WHILE, Server, command, is_running, running_server, start_server, until
from test_reload import add_facts, copy_version

from training.pictures import encode_png

HANG_TIMEOUT_S = 5


@pytest.fixture(scope="module")
def lasting(models: Path) -> Iterator[Server]:
    """A server that the tests leave as well as they found it, if with another Triton."""
    with running_server(models, triton_hang_timeout_s=HANG_TIMEOUT_S) as running:
        yield running


def test_killed_and_hanging_triton_is_survived(lasting: Server, digit_files: list[bytes]) -> None:
    """Killed, it is started again. Stopped, it is given up within seconds, and in the end replaced."""
    url = f"{lasting.url}/classify"
    right = httpx.post(url, content=digit_files[0]).json()["results"][0]["predictions"]
    for number, refused_within_s in ((signal.SIGKILL, 2), (signal.SIGSTOP, 10)):
        for pid in lasting.tritons():
            os.kill(pid, number)
        sent = time.monotonic()
        refused = 0
        while True:
            asked = time.monotonic()
            answer = httpx.post(url, content=digit_files[0], timeout=30)
            if answer.status_code == 200:
                assert answer.json()["results"][0]["predictions"] == right
                if refused:
                    break
            else:
                refused += 1
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["retry-after"]) >= 1
                assert time.monotonic() - asked < (refused_within_s if refused == 1 else 2)
                ready = httpx.get(f"{lasting.url}/readyz").status_code
                assert ready == 503 or refused > 1
            assert time.monotonic() - sent < 120
            time.sleep(0.05)
        assert refused
    lasting.wait_ready(60)


def test_a_service_that_was_held_goes_on_with_the_triton_that_it_had(lasting: Server, digit_files: list[bytes]) -> None:
    """As in a paused container: the time in which nothing ran does not count against Triton."""
    url = f"{lasting.url}/classify"
    assert httpx.post(url, content=digit_files[0]).status_code == 200
    [triton] = lasting.tritons()
    held = [lasting.process.pid, *lasting.descendants()]
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(HANG_TIMEOUT_S + 1)
    finally:
        for pid in held:
            os.kill(pid, signal.SIGCONT)
    ends = time.monotonic() + 3
    while time.monotonic() < ends:
        assert httpx.post(url, content=digit_files[0], timeout=30).status_code == 200
    assert lasting.tritons() == [triton]


def test_a_model_whose_process_died_is_loaded_anew(lasting: Server, digit_files: list[bytes]) -> None:
    """Triton says that such a model is ready, and fails each request; the other model serves on."""

    def model_process(name: str) -> int | None:
        return next((pid for pid in lasting.descendants() if f"/{name}/1/model.py" in command(pid)), None)

    def ask(name: str) -> httpx.Response:
        route = "classify" if name == "digits" else "tag"
        return httpx.post(f"{lasting.url}/{route}", content=digit_files[0], timeout=30)

    right = {name: ask(name).json()["results"] for name in ("digits", "tagger")}
    died = model_process("tagger")
    os.kill(died, signal.SIGKILL)
    until(lambda: model_process("tagger") not in (died, None), "it is loaded anew though nobody asks")
    until(lambda: ask("tagger").status_code == 200, "it answers again")
    assert ask("tagger").json()["results"] == right["tagger"]

    os.kill(model_process("digits"), signal.SIGKILL)
    refused, ends = 0, time.monotonic() + 60
    while (answer := ask("digits")).status_code != 200 or not refused:
        refused += answer.status_code != 200
        assert answer.status_code in (200, 503), answer.text
        assert ask("tagger").status_code == 200
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert answer.json()["results"] == right["digits"]
    until(lambda: httpx.get(f"{lasting.url}/readyz", timeout=30).status_code == 200, "all is well again")


_ENDLESS = """
@torch.jit.script
def endless(pictures: torch.Tensor) -> torch.Tensor:
    while bool(pictures.sum() >= 0):
        pictures = pictures.clone()
    return pictures


class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        self.good_program, self.program = self.program, self.run_or_hang

    def run_or_hang(self, pictures):
        results = self.good_program(endless(pictures) if Path({mark!r}).exists() else pictures)
        results[0][pictures.flatten(1).amin(1) == 255] = torch.nan
        return results
"""


def test_one_picture_without_a_score_fails_alone_and_a_model_that_hangs_in_a_run_is_loaded_anew(
    models: Path, digit_files: list[bytes], tmp_path: Path
) -> None:
    mark = tmp_path / "endless"
    shutil.copytree(models / "model_repository", tmp_path / "model_repository")
    with (tmp_path / "model_repository" / "digits" / "1" / "model.py").open("a") as file:
        file.write(_ENDLESS.format(mark=str(mark)))
    with running_server(tmp_path, triton_hang_timeout_s=3, request_timeout_ms=4000) as server:

        def ask(route: str = "classify") -> int:
            return httpx.post(f"{server.url}/{route}", content=digit_files[0], timeout=30).status_code

        form = [("image", file) for file in (digit_files[0], encode_png(np.full((32, 32, 3), 255, np.uint8)))]
        results = httpx.post(f"{server.url}/classify", files=form, timeout=30).json()["results"]
        assert results[0]["status"] == "ok"
        assert (results[1]["error"]["status"], results[1]["error"]["code"]) == (502, "triton_error")
        mark.touch()
        assert ask() == 504
        mark.unlink()
        assert ask("tag") == 200
        until(lambda: ask() == 200, "it answers again, and no hand was moved", 40)
        assert server.log().count("'digits' has lost a process") == 1
        written = (tmp_path / "logs" / "triton.log").read_text()
        assert "a run has not ended for 4 s" in written
        assert " in run_or_hang\n" in written.split("a run has not ended")[1], "where it hung"


def test_a_model_that_answers_nowhere_takes_none_of_the_others_from_a_load_balancer(
    models: Path, digit_files: list[bytes], tmp_path: Path
) -> None:
    mark = tmp_path / "broken"
    shutil.copytree(models / "model_repository", tmp_path / "model_repository")
    with (tmp_path / "model_repository" / "tagger" / "1" / "model.py").open("a") as file:
        file.write(BREAKS_WHILE.format(mark))
    with running_server(tmp_path, golden_check_s=1) as server:

        def ready(query: str = "") -> int:
            return httpx.get(f"{server.url}/readyz{query}", timeout=30).status_code

        assert (ready("?models=any"), server.metric("tresnet_ready")) == (200, 1)
        mark.touch()
        until(lambda: ready() == 503, "it is noticed")
        assert (ready("?models=any"), server.metric("tresnet_ready")) == (200, 0)
        assert httpx.post(f"{server.url}/classify", content=digit_files[0], timeout=30).status_code == 200
        mark.unlink()
        until(lambda: ready() == 200, "it is asked again")
        until(lambda: server.metric("tresnet_ready") == 1, "and counted")


def test_a_model_that_dies_unasked_is_not_called_ready(models: Path) -> None:
    with running_server(models, golden_check_s=1) as server:

        def is_ready() -> bool:
            return httpx.get(f"{server.url}/readyz", timeout=30).status_code == 200

        def loads() -> int:
            return server.log().count("digits': loaded [1]")

        for _ in range(4):  # each time, it takes longer until it is loaded anew
            before = loads()
            [process] = [pid for pid in server.descendants() if "/digits/1/model.py" in command(pid)]
            os.kill(process, signal.SIGKILL)
            with suppress(TimeoutError):
                until(lambda: not is_ready(), "it is called ready", 2)
                return
            until(lambda before=before: loads() > before and is_ready(), "it is loaded anew")
        raise AssertionError("it is called ready")


@pytest.mark.parametrize(("workers", "stop_signal"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_stop_in_traffic_answers_what_is_in_flight_and_leaves_nothing(
    models: Path, digit_files: list[bytes], workers: int, stop_signal: signal.Signals
) -> None:
    settings = {"workers": workers, "drain_delay_s": 0.5, "drain_refuse_s": 3}
    with running_server(models, ready_within_s=None, **settings) as server:
        server.wait_ready(60, workers=workers)
        stopped_in_traffic(server, stop_signal, digit_files[0])


def stopped_in_traffic(server: Server, stop_signal: signal.Signals, picture: bytes) -> None:
    statuses: list[int] = []
    codes: set[str] = set()
    broken: list[float] = []

    def client() -> None:
        while True:
            asked = time.monotonic()
            try:
                answer = httpx.post(f"{server.url}/classify", content=picture, timeout=30)
            except httpx.HTTPError:
                broken.append(asked)
                return
            statuses.append(answer.status_code)
            if answer.status_code != 200:
                codes.add(answer.json()["code"])
                assert int(answer.headers["retry-after"]) >= 1
                return

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    time.sleep(1.5)
    started = server.descendants()
    stopped = time.monotonic()
    server.process.send_signal(stop_signal)
    assert server.process.wait(40) == 0
    for thread in clients:
        thread.join(30)
    assert not [asked for asked in broken if asked < stopped]
    assert codes == {"draining"}, (codes, len(broken))
    assert set(statuses) == {200, 503}
    assert statuses.count(200) > 8
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/livez")
    assert started
    assert not [pid for pid in started if is_running(pid)]


def test_what_does_not_end_before_the_server_must_is_told_to_go_elsewhere(
    models: Path, digit_files: list[bytes]
) -> None:
    with running_server(models, drain_delay_s=0, drain_refuse_s=0, drain_timeout_s=1) as server:
        [triton] = server.tritons()
        os.kill(triton, signal.SIGSTOP)
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(httpx.post, f"{server.url}/classify", content=digit_files[0], timeout=30)
            until(lambda: server.metric("tresnet_inflight_images") == 1, "the picture is at Triton")
            server.process.send_signal(signal.SIGTERM)
            answer = asked.result()
        os.kill(triton, signal.SIGCONT)
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert int(answer.headers["retry-after"]) >= 1
        assert server.process.wait(40) == 0


_SLOW = """
import time


class TritonPythonModel(TritonPythonModel):
    def answer(self, request):
        time.sleep(0.5 if Path({slow!r}).exists() else 0)
        return super().answer(request)
"""


def test_what_waits_for_a_version_that_goes_is_answered_by_the_one_before(
    models: Path, digit_files: list[bytes], tmp_path: Path
) -> None:
    """At once, though each batch by itself would look for a Triton that still has it."""
    slow = tmp_path / "slow"
    digits = tmp_path / "model_repository" / "digits"
    shutil.copytree(models / "model_repository" / "digits", digits)
    for path in (digits / "config.pbtxt", digits / "configs" / "embedded.pbtxt"):
        path.write_text(re.sub(r"max_batch_size: \d+", "max_batch_size: 1", path.read_text()))
    add_facts(digits, "2", lambda facts: facts)
    copy_version(digits, "1", "2")
    with (digits / "2" / "model.py").open("a") as file:
        file.write(_SLOW.format(slow=str(slow)))
    with running_server(tmp_path) as server, ThreadPoolExecutor(60) as pool, httpx.Client(timeout=60) as client:

        def ask(_: int) -> tuple[int, str]:
            answer = client.post(f"{server.url}/classify", content=digit_files[0])
            return answer.status_code, answer.json().get("model", {}).get("version")

        slow.touch()
        answers = pool.map(ask, range(60))
        until(lambda: server.metric("tresnet_queue_depth_images") > 40, "they wait")
        shutil.rmtree(digits / "2")
        found = list(answers)
    assert set(found) == {(200, "1"), (200, "2")}


def test_workers_share_their_metrics_and_are_replaced(models: Path, digit_files: list[bytes]) -> None:
    def ask(client: httpx.Client) -> int:
        return client.post(f"{server.url}/classify", content=digit_files[0]).status_code

    def counted(line: str) -> float:
        text = httpx.get(f"{server.url}/metrics").text
        return next(float(found.rpartition(" ")[2]) for found in text.splitlines() if found.startswith(line))

    with running_server(models, "--workers", "2", ready_within_s=None) as server:
        server.wait_ready(60, workers=2)
        for _ in range(20):  # a connection each: the kernel deals them out to both
            with httpx.Client() as client:
                assert ask(client) == 200
        asked = 'tresnet_http_requests_total{code="200",method="POST",route="/classify"}'
        assert counted(asked) == 20
        assert counted("tresnet_triton_up") == 1
        assert counted("tresnet_model_info") == 1
        [worker, *_] = server.workers()
        os.kill(worker, signal.SIGKILL)
        killed = time.monotonic()
        while worker in server.workers() or len(server.workers()) < 2:
            assert time.monotonic() - killed < 20
            time.sleep(0.1)
        for _ in range(20):
            with httpx.Client(transport=httpx.HTTPTransport(retries=5)) as client:
                assert ask(client) == 200
        assert counted(asked) == 40
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root has what others may not read")
def test_what_others_left_and_clear_away_stops_nothing(
    models: Path, digit_files: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume's ``lost+found``, a version that root copied, shared memory of another user, temporary files cleaned."""

    def unread(server: Server) -> list[str]:
        return [line for line in server.log().splitlines() if "left as it is in the model repository" in line]

    repository, temporary = tmp_path / "model_repository", tmp_path / "tmp"
    shutil.copytree(models / "model_repository", repository)
    digits = repository / "digits"
    copy_version(digits, "1", "2")
    add_facts(digits, "2", lambda facts: facts)
    (repository / "lost+found").mkdir()
    for unreadable in (digits / "2", repository / "lost+found"):
        unreadable.chmod(0o700)
        os.chown(unreadable, 65534, 65534)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    left = Path(f"/dev/shm/tresnet-stub-{socket.gethostname()}-{2**22 + 1}-0")  # noqa: S108  (no process is it)
    left.mkdir()
    try:
        server = start_server(tmp_path, run_by=["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"])
        try:
            server.wait_ready(60)
            os.chown(digits / "1", 65534, 65534)
            (digits / "1").chmod(0o700)
            until(lambda: len(unread(server)) == 3, "what became unreadable is told")
            answer = httpx.post(f"{server.url}/classify", content=digit_files[0])
            assert answer.json()["model"] == {"name": "digits", "version": "1", "task": "classify"}
            for number in "12":
                (digits / number).chmod(0o755)
            until(lambda: "live: model 'digits' version 2" in server.log(), "what became readable is loaded")
            assert len(unread(server)) == 3, "it is told once"
            if shutil.which("systemd-tmpfiles"):
                (tmp_path / "tmpfiles.conf").write_text(f"d {temporary} - - - 0\n")
                subprocess.run(["systemd-tmpfiles", "--clean", tmp_path / "tmpfiles.conf"], check=False)
                [backends] = temporary.glob("tresnet-backends-*")
                assert (backends / "python" / "triton_python_backend_stub").exists()
        finally:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(40) == 0
    finally:
        left.rmdir()
