"""The Triton server that comes with the PyPI wheel ``nvidia-pytriton``: found, started, watched, stopped.

One thread owns the server process for its whole life: it starts it, restarts it with growing pauses when it
dies, and stops it. Nothing here knows of HTTP or pictures; the gateway reaches this Triton as any other.
"""

from __future__ import annotations

import logging
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from app.freed_memory import ACTIVATIONS
from app.model_control import ModelControl
from app.temporary_folder import temporary_folder
from tresnet.contract import CONFIG_FILE, EMBEDDED
from tresnet.cores import usable_cores
from tresnet.errors import UserError

logger = logging.getLogger(__name__)

_WAITING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"}
"""How a model's threads wait for each other: a moment awake, then asleep. To be woken takes its time, hundreds of times
in a run; those who stay awake take the cores that decode the next pictures."""
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_STEADY_AFTER_S = 30.0
_STOP_TIMEOUT_S = 20.0
_TAIL_BYTES = 16_384
_MODEL_START_TIMEOUT_S = 180
_LOAD_RETRIES = 1
"""So that what fails is, as a rule, done last (docs/decisions/0010-reload-by-explicit-control.md)."""


def default_home() -> Path:
    """Where ``make`` puts the wheel: apart from the environment's packages, because it pins an old numpy."""
    return Path(sys.prefix) / "triton"


class BundledTriton:
    """A supervised ``tritonserver`` over a model repository, on a free port of the loopback interface."""

    def __init__(
        self,
        repository: Path,
        home: Path,
        log_dir: Path,
        options: Sequence[str] = (),
        *,
        hang_timeout_s: float = math.inf,
        run_timeout_s: float = math.inf,
    ) -> None:
        """``hang_timeout_s`` and ``run_timeout_s`` are :class:`ModelControl`'s."""
        self._repository = repository
        self._hang_timeout_s = hang_timeout_s
        self._run_timeout_s = run_timeout_s
        self._server = home / "pytriton" / "tritonserver"
        self._libraries = home / "nvidia_pytriton.libs"
        self.log_path = log_dir / "triton.log"
        self._options = options
        self.port = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Check what is needed, then start the server and its watch. Does not wait for its models.

        Raises:
            UserError: if the repository, the server, or a library that it needs is missing.
        """
        if not self._repository.is_dir():
            raise UserError(f"{self._repository}: no such model repository; `tresnet export` makes one")
        if not any(self._repository.glob(f"*/{CONFIG_FILE}")):
            logger.warning("%s holds no model; `tresnet export` puts one there", self._repository)
        self.check_program()
        self._clear_shared_memory(f"tresnet-stub-{socket.gethostname()}-*")
        self.port = _free_port()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._supervise, name="triton-supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the server and wait until it and its children are gone."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def check_program(self) -> None:
        """Raise :class:`UserError`, which says how to mend it, if the server or a library that it needs is missing."""
        if not self._server.is_dir():
            raise UserError(
                f"no bundled Triton in {self._server.parent.parent}: run `make setup`, or give --triton-url grpc://HOST:8001"
            )
        if not self._stub.exists():
            raise UserError(
                f"the bundled Triton has no backend for Python {_python_version()}; use Python 3.11 or 3.12"
            )
        missing = [
            line.split()[0] for line in self._linked_libraries() if "not found" in line and "libcuda" not in line
        ]
        if missing:
            raise UserError(
                f"the bundled Triton needs {', '.join(missing)}; on Debian or Ubuntu: "
                f"apt-get install libpython{_python_version()}"
            )
        program = self._server / "bin" / "tritonserver"
        try:
            asked = subprocess.run(  # noqa: S603
                [program, "--help"], env=self._environment(), capture_output=True, text=True, check=False
            )
        except OSError as error:  # not executable, or for other processors
            raise UserError(f"the bundled Triton does not start on this machine: {error}") from error
        if "Usage: tritonserver" not in asked.stdout + asked.stderr:
            said = asked.stderr.strip() or f"exit status {asked.returncode}"
            raise UserError(f"the bundled Triton does not start on this machine: {said[-300:]}")

    @property
    def _stub(self) -> Path:
        return self._server / "python_backend_stubs" / _python_version() / "triton_python_backend_stub"

    def _linked_libraries(self) -> list[str]:
        ldd = shutil.which("ldd")
        if ldd is None:
            return []
        answer = subprocess.run(  # noqa: S603
            [ldd, str(self._stub)], env=self._environment(), capture_output=True, text=True, check=False
        )
        return answer.stdout.splitlines()

    def _link_backend(self, folder: Path) -> None:
        """Triton looks for the stub beside the backend; the wheel keeps one for each Python apart."""
        folder.mkdir()
        backend = self._server / "backends" / "python"
        for path in (backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", self._stub):
            (folder / path.name).symlink_to(path)

    def _environment(self) -> dict[str, str]:
        libraries = [str(self._libraries)]
        own = Path(sysconfig.get_config_var("LIBDIR") or "")
        if (own / f"libpython{_python_version()}.so.1.0").exists():
            libraries.append(str(own))
        libraries += [path for path in [os.environ.get("LD_LIBRARY_PATH", "")] if path]
        return {
            **ACTIVATIONS,
            **_WAITING_THREADS,
            "OMP_NUM_THREADS": str(usable_cores()),
            **{key: value for key, value in os.environ.items() if not key.startswith("TRESNET_")},
            # The stub finds its packages through the first python on PATH, and through nothing else.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": ":".join(libraries),
        }

    def _command(self, backends: Path) -> list[str]:
        command = [
            str(self._server / "bin" / "tritonserver"),
            f"--model-repository={self._repository.resolve()}",
            f"--model-config-name={EMBEDDED}",
            f"--backend-directory={backends}",
            "--disable-auto-complete-config",
            "--exit-on-error=false",
            "--model-control-mode=explicit",
            f"--model-load-retry-count={_LOAD_RETRIES}",
            f"--backend-config=python,stub-timeout-seconds={_MODEL_START_TIMEOUT_S}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory_prefix}",
            "--allow-http=false",
            *self._options,
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.port}",
            "--exit-timeout-secs=10",
        ]
        # If this process is killed outright, the kernel stops the server too.
        setpriv = shutil.which("setpriv")
        return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else command

    def _supervise(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                with temporary_folder("tresnet-backends-") as backends:
                    self._link_backend(backends / "python")
                    self._run_once(backends)
                if self._stopping.is_set():
                    return
                logger.error("Triton stopped; its last lines in %s:\n%s", self.log_path, self._last_lines())
            except (OSError, RuntimeError) as error:  # no memory, descriptors or threads: they may come back
                logger.error("Triton cannot be started: %s", error)
            pause_s = _FIRST_PAUSE_S if time.monotonic() - started > _STEADY_AFTER_S else pause_s
            logger.warning("starting Triton again in %.1f s", pause_s)
            self._stopping.wait(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    def _run_once(self, backends: Path) -> None:
        """One life of the server: start it, wait for its end or for :meth:`stop`, leave no child behind."""
        with self.log_path.open("ab") as log:
            # A group of its own: a Ctrl-C in the terminal reaches the gateway alone, which drains first. In the
            # gateway's session: kernels that share the cores out by session would give the decoders less.
            process = subprocess.Popen(  # noqa: S603
                self._command(backends),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        logger.info("Triton started, process %d, log in %s", process.pid, self.log_path)
        address = f"127.0.0.1:{self.port}"
        control = ModelControl(self._repository, process.pid, address, self._hang_timeout_s, self._run_timeout_s)
        try:
            control.start()
            while process.poll() is None and not control.server_hangs and not self._stopping.wait(0.1):
                pass
            if control.server_hangs:
                logger.error("Triton has not answered for %.0f s; killing it", self._hang_timeout_s)
            elif process.poll() is None:
                process.terminate()
                try:
                    process.wait(_STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    logger.warning("Triton did not stop in %.0f s; killing it", _STOP_TIMEOUT_S)
        finally:
            _kill_group(process)
            control.stop()
            self._clear_shared_memory(f"{self._shared_memory_prefix}*", own=True)

    @property
    def _shared_memory_prefix(self) -> str:
        return f"tresnet-stub-{socket.gethostname()}-{os.getpid()}-"

    @staticmethod
    def _clear_shared_memory(pattern: str, *, own: bool = False) -> None:
        """What a server that was killed could not clear away: its own, or that of gateways that are gone."""
        for path in Path("/dev/shm").glob(pattern):  # noqa: S108
            pid = path.name.removeprefix(f"tresnet-stub-{socket.gethostname()}-").partition("-")[0]
            if own or not Path(f"/proc/{pid}").exists():
                with suppress(OSError):  # another user's
                    path.unlink()

    def _last_lines(self, count: int = 15) -> str:
        with self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = log.read(_TAIL_BYTES).decode(errors="replace")
        return "\n".join(text.splitlines()[-count:])


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _free_port() -> int:
    """Not one that the kernel gives to outgoing connections: such a connection could take it between two starts."""
    for port in random.sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise UserError("no free port on 127.0.0.1 between 20000 and 32767 for the bundled Triton")
