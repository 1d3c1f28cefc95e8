"""The servers compared: how each is started, asked, paused and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
PEERS_BIN = ROOT / ".venv" / "peers" / "bin"
OURS = "ours"
_STARTUP_S = 120
_SETTLE_S = 10
_PEERS = "benchmarks.serving.peers"


@dataclass(frozen=True)
class Contestant:
    """``command`` with ``{port}`` in it; ``multipart`` if the server takes a picture only so."""

    name: str
    command: tuple[str, ...]
    multipart: bool = False


CONTESTANTS = {
    own.name: own
    for own in (
        Contestant(OURS, (str(Path(sys.executable).with_name("tresnet")), "serve", "--port", "{port}")),
        Contestant("in process", (str(PEERS_BIN / "uvicorn"), f"{_PEERS}.in_process:app", "--port", "{port}",
                                  "--log-level", "warning", "--no-access-log")),
        Contestant("LitServe", (str(PEERS_BIN / "python"), "-m", f"{_PEERS}.litserve_app", "{port}"), multipart=True),
        Contestant("BentoML", (str(PEERS_BIN / "bentoml"), "serve", f"{_PEERS}.bentoml_app:Classifier", "--host",
                               "127.0.0.1", "--port", "{port}"), multipart=True),
        Contestant("mosec", (str(PEERS_BIN / "python"), "-m", f"{_PEERS}.mosec_app", "--address", "127.0.0.1",
                             "--port", "{port}", "--timeout", "120000")),
    )
}  # fmt: skip


@dataclass
class Running:
    """A started server and its processes."""

    contestant: Contestant
    url: str
    process: subprocess.Popen[bytes]

    def family(self) -> list[psutil.Process]:
        """Its processes and theirs, those that a bundled Triton put into a session of its own included."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def pause(self) -> None:
        """Nothing of it runs while another one is measured.

        What is under way ends first: Triton may take a model that is stopped amid a run for one that has died.
        """
        self._settle()
        for process in self.family():
            process.suspend()

    def _settle(self) -> None:
        """Until it takes less than a fifth of a core, ten seconds at most."""
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline:
            before = sum(self.cpu_seconds().values())
            time.sleep(0.5)
            if sum(self.cpu_seconds().values()) - before < 0.1:
                return

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """It runs again for so long."""
        self._go_on()
        try:
            yield
        finally:
            self.pause()

    def _go_on(self) -> None:
        for process in reversed(self.family()):
            process.resume()

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time so far, by what the process is."""
        spent: dict[str, float] = {}
        for process in self.family():
            try:
                times = process.cpu_times()
                kind = _kind(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            spent[kind] = spent.get(kind, 0.0) + times.user + times.system
        return spent

    def resident_bytes(self) -> int:
        """Resident memory that is its own, shared pages counted once."""
        return sum(process.memory_full_info().pss for process in self.family())

    def stop(self) -> None:
        self._go_on()
        family = self.family()
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for process in family:
            if process.is_running():
                process.kill()
        self.process.wait()


def start(contestant: Contestant, model: Path, image_size: int, body: Path, content_type: str, route: str) -> Running:
    """Start the server and wait until it answers ``body``.

    Raises:
        RuntimeError: if it does not within two minutes, or ends; with the last that it said.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    repository = model.parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PATH": f"{PEERS_BIN}:{os.environ['PATH']}",
        "MODEL": str(model),
        "IMAGE_SIZE": str(image_size),
        "TRESNET_REPOSITORY": str(repository),
        "TRESNET_LOG_DIR": str(repository / "logs"),
        "TRESNET_LOG_FORMAT": "text",
    }
    with (repository / f"{contestant.name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            [part.format(port=port) for part in contestant.command],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    running = Running(contestant, f"http://127.0.0.1:{port}{route}", process)
    content, headers = body.read_bytes(), {"Content-Type": content_type}
    deadline = time.monotonic() + _STARTUP_S
    answer = "no answer"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            response = httpx.post(running.url, content=content, headers=headers, timeout=30)
            if response.status_code == 200:
                return running
            answer = f"answered {response.status_code}: {response.text[:200]}"
        except httpx.HTTPError as error:
            answer = f"no answer: {type(error).__name__}"
        time.sleep(0.2)
    ended = process.poll()
    running.stop()
    state = answer if ended is None else f"ended with status {ended}"
    said = " | ".join(Path(log.name).read_text(errors="replace").splitlines()[-3:])[-600:]
    raise RuntimeError(f"{contestant.name} did not start ({state}); see {log.name}: {said}")


def _kind(command: list[str]) -> str:
    text = " ".join(command)
    for sign, kind in (
        ("python_backend_stub", "model"),
        ("tritonserver", "triton"),
        ("decode_process", "decoders"),
    ):
        if sign in text:
            return kind
    return "server"
