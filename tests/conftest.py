"""Real models, a real Triton and a real gateway, once for all tests."""

from __future__ import annotations

import io
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from collector import Collector, collector
from filelock import FileLock
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from server_logs import pytest_runtest_makereport, pytest_runtest_setup, watch  # noqa: F401  (hooks of pytest)
from sklearn.datasets import load_digits

from app.bundled_triton import _free_port as free_port
from commands.main import main
from training.pictures import encode_png
from tresnet.checkpoint import ModelFacts, save_checkpoint
from tresnet.model import create_model
from tresnet.picture import Preprocessing

pytest_plugins = ["page_visitor"]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

TRESNET = str(Path(sys.executable).with_name("tresnet"))
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""For commands that compute: beside another test, two threads on two cores would mostly wait for each other, awake."""
torch.set_num_threads(1)


def run_tresnet(
    *arguments: object, cwd: Path, timeout: float = 300, largest_file: int | None = None
) -> subprocess.CompletedProcess[str]:
    """``largest_file`` in bytes, beyond which writing fails as on a full disk."""
    return subprocess.run(
        [TRESNET, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        preexec_fn=largest_file and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))),
    )


def call_tresnet(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As :func:`run_tresnet`, in this process, which has imported torch already: for what is refused at once."""
    said, complained, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(complained):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [TRESNET, *map(str, arguments)])
        patch.setattr(logging.root, "handlers", [])  # pytest's, which would keep a command from setting up its own
        patch.setattr(logging.root, "level", logging.root.level)
        try:
            main()
        except SystemExit as ended:
            assert isinstance(ended.code, int), ended.code
            status = ended.code
    return subprocess.CompletedProcess(sys.argv, status, said.getvalue(), complained.getvalue())


def run_side_by_side(
    calls: Sequence[tuple[object, ...]], cwd: Path, timeout: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """Calls that do not touch each other, two at a time: a start is a second or two of one core's time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda call: run_tresnet(*call, cwd=cwd, timeout=timeout), calls))


def random_checkpoint(path: Path, *, task: str, labels: list[str], size: int, arch: str = "tresnet_m") -> Path:
    """Weights and statistics as of a trained network: nothing zero, a third of the norm weights negative."""
    torch.manual_seed(len(labels) + size)
    model = create_model(arch, len(labels))
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.weight.data.normal_(0.8, 0.2)
            module.weight.data[::3] *= -1
            module.bias.data.normal_(0, 0.1)
    model.head.weight.data.normal_(0, 0.05)
    with torch.no_grad():
        for _ in range(10):
            model(torch.rand(8, 3, size, size))
    facts = ModelFacts(arch=arch, task=task, labels=labels, preprocessing=Preprocessing(image_size=size))
    save_checkpoint(path, facts, model.state_dict())
    return path


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    folder: Path
    log_path: Path

    def log(self) -> str:
        return self.log_path.read_text()

    def children(self) -> list[int]:
        """The processes that the gateway started: its Triton, and its workers if it has several."""
        return [pid for pid in _processes() if _parent(pid) == self.process.pid]

    def tritons(self) -> list[int]:
        return [pid for pid in self.children() if "tritonserver" in command(pid)]

    def command(self, pid: int) -> list[str]:
        return command(pid).split("\0")

    def triton_address(self) -> str:
        """Of the bundled Triton, for a second gateway or for a hand at its controls."""
        [port] = re.findall(r"--grpc-port=(\d+)", command(self.tritons()[0]))
        return f"127.0.0.1:{port}"

    def workers(self) -> list[int]:
        return [pid for pid in self.children() if "spawn_main" in command(pid)]

    def descendants(self) -> list[int]:
        """The gateway's Triton and Triton's own helpers."""
        found = self.children()
        for parent in found:  # grows as it is walked
            found += [pid for pid in _processes() if _parent(pid) == parent]
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum of what the gateway tells of ``name`` with these labels among others."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(own.value for own in samples if own.name == name and labels.items() <= own.labels.items())

    def wait_ready(self, seconds: float, workers: int = 1) -> float:
        """Seconds until ready. Workers become so one by one; many connections in a row meet them all."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            try:
                asked = 1 if workers == 1 else 10 * workers
                if all(httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200 for _ in range(asked)):
                    return time.monotonic() - started
            except httpx.HTTPError:
                pass
            assert self.process.poll() is None, self.log()
            time.sleep(0.1)
        raise AssertionError(f"not ready in {seconds} s: {self.log()[-3000:]}")


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def processes() -> list[tuple[int, str]]:
    """Every process on this machine and its command line."""
    return [(pid, command(pid)) for pid in _processes()]


def is_running(pid: int) -> bool:
    """Whether the process is there and not merely waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def needs(*programs: str) -> None:
    """Skips a test for want of programs that `make test` installs from Debian's packages; in CI it fails."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"CI needs {', '.join(missing)}, which `make test` installs from Debian's packages")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def until(condition: Callable[[], object], what: str = "waited in vain", seconds: float = 100) -> None:
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise TimeoutError(what)
        time.sleep(0.05)


def start_server(
    folder: Path, *options: str, port: int | None = None, run_by: Sequence[str] = (), **settings: object
) -> Server:
    """``run_by``: a command that runs the one that is given to it."""
    port = port or free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRESNET_")}
    environment |= {f"TRESNET_{name.upper()}": str(value) for name, value in settings.items()}
    watch(folder)
    log_path = folder / f"serve-{port}.log"  # of this server alone, whoever else runs in the folder
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*run_by, TRESNET, "serve", "--port", str(port), *options],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Server(f"http://127.0.0.1:{port}", process, folder, log_path)


@contextmanager
def running_server(
    folder: Path, *options: str, port: int | None = None, ready_within_s: float | None = 60, **settings: object
) -> Iterator[Server]:
    """A server that is ready, unless nobody waits for it; stopped at the end, if it has not ended by itself."""
    server = start_server(folder, *options, port=port, **settings)
    try:
        if ready_within_s is not None:
            server.wait_ready(ready_within_s)
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGINT)
        try:
            server.process.wait(60)
        except subprocess.TimeoutExpired:
            for pid in [*server.descendants(), server.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise


BREAKS_WHILE = """
answer = TritonPythonModel.answer
def answer_unless_broken(self, request):
    if Path("{}").exists():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return answer(self, request)
TritonPythonModel.answer = answer_unless_broken
"""
"""For the end of a version's model.py: it calls itself ready, and answers with errors while a file is there."""

LONGEST_FIRST = (
    "published_weights", "failures", "resume", "reload", "gpu_benches", "admission", "own_pictures", "several_tritons",
    "model_card", "faults", "commands", "rolling_restart", "eval", "heat_maps", "training", "ablation",
)  # fmt: skip
"""Files of half a minute or more, those that compute beside those that mostly wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long file that began last would keep one process busy while the others have nothing left to do."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--models", type=Path, help="a folder of an earlier `models` fixture, to spare the training")
    parser.addoption("--screenshots", type=Path, default=Path("runs/page"), help="where those of the page are kept")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config, worker_id: str) -> Path:
    """A folder with digits trained for real, shortly, and a tagger, exported by the command line.

    The processes that share the tests share the training, and each has a copy.
    """
    made = pytestconfig.getoption("models")
    if made is None:
        own = tmp_path_factory.getbasetemp()
        made = (own if worker_id == "master" else own.parent) / "made"
        with FileLock(f"{made}.lock"):
            if not made.exists():
                _make_models(made.with_name("making"))
                made.with_name("making").rename(made)
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return folder


def _make_models(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of one who failed
    folder.mkdir()
    trained = run_tresnet("train", "digits", "--epochs", 3, cwd=folder)
    assert trained.returncode == 0, trained.stderr
    random_checkpoint(folder / "tagger.pt", task="tag", labels=[f"tag {i}" for i in range(5)], size=40)
    for arguments in (
        ("runs/digits/best.pt", "--task", "classify", "--name", "digits"),
        ("tagger.pt", "--task", "tag", "--name", "tagger"),
    ):
        exported = run_tresnet("export", *arguments, cwd=folder)
        assert exported.returncode == 0, exported.stderr


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[Server]:
    with running_server(models) as running:
        yield running


@dataclass
class Guarded(Server):
    """A server with all that is off by default: keys, traces, JSON logs, Triton's own metrics, CORS."""

    key: str
    slow_key: str  # a picture in four seconds
    owing_key: str  # as slow; for who asks for more than is to be waited for
    keys_file: Path
    triton_metrics_url: str
    collector: Collector


@pytest.fixture(scope="session")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder, metrics_port = tmp_path_factory.mktemp("guarded"), free_port()
    keys_file = folder / "keys"

    def make_key(name: str, *options: object) -> str:
        return run_tresnet("key", name, "--add-to", keys_file, *options, cwd=folder).stdout.strip()

    key = make_key("alice")
    slow_key, owing_key = (make_key(name, "--images-per-second", 0.25) for name in ("slow", "owing"))
    with collector() as received, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        environment.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        environment.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")  # which comes before it
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with running_server(
            folder,
            repository=models / "model_repository",
            api_keys_file=keys_file,
            tracing=True,
            triton_metrics_port=metrics_port,
            cors_origins="https://app.example",
        ) as running:
            metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
            own = (running.url, running.process, folder, running.log_path)
            yield Guarded(*own, key, slow_key, owing_key, keys_file, metrics_url, received)


@pytest.fixture(scope="session")
def digit_files() -> list[bytes]:
    """Real digits as PNG files, enlarged."""
    digits = load_digits().images[:64]
    return [
        encode_png(
            np.asarray(Image.fromarray((d * 255 / 16).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC))
        )
        for d in digits
    ]
