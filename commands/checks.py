"""The doctor's checks: each looks at one thing and says ok, warn or fail, what it found, and how to mend it.

``fail`` is what `tresnet serve` cannot do without; ``warn`` is what only a part of the product needs.
"""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from app.settings import Settings, load_settings
from tresnet.errors import UserError

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_SHARED_MEMORY_MIB = 256
_DEBIAN = "on Debian or Ubuntu: apt-get install"


@dataclass(frozen=True)
class Subject:
    """What is looked at; None is the setting's own value."""

    repository: Path | None = None
    port: int | None = None
    url: str | None = None
    api_key: str | None = None

    @functools.cached_property
    def settings(self) -> Settings:
        """What `tresnet serve` would run by; the defaults where a value does not fit, which its own check tells."""
        given = {"repository": self.repository and str(self.repository), "port": self.port}
        own: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        try:
            return Settings(**own)
        except ValidationError:
            return Settings.model_construct(**own)


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str
    remedy: str | None = None

    def as_plain(self) -> dict[str, str | None]:
        return asdict(self)


def run_checks(subject: Subject) -> list[Finding]:
    return [finding for check in _CHECKS if (finding := check(subject)) is not None]


def _python(subject: Subject) -> Finding:
    version = sys.version.split()[0]
    if sys.version_info >= (3, 14):
        remedy = "rm -r .venv, then PYTHON=python3.13 make setup"
        return Finding("python", "warn", f"{version}; the bundled Triton knows 3.13 at most", remedy)
    return Finding("python", "ok", f"{version}, {sys.executable}")


def _make(subject: Subject) -> Finding:
    found = shutil.which("make")
    if found is None:
        return Finding("make", "warn", "none; the make targets need it", f"{_DEBIAN} make")
    return Finding("make", "ok", found)


def _compiler(subject: Subject) -> Finding:
    found = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if found is None:
        return Finding("compiler", "warn", "none; the package inplace-abn needs C++", f"{_DEBIAN} g++")
    if not headers.exists():
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
        return Finding("compiler", "warn", f"{found}, but no {headers}; inplace-abn needs it", f"{_DEBIAN} {package}")
    return Finding("compiler", "ok", f"{found}, {headers}")


def _settings(subject: Subject) -> Finding:
    names = sorted(name for name in os.environ if name.startswith("TRESNET_"))
    try:
        load_settings()
    except UserError as error:
        return Finding("settings", "fail", str(error), "correct or unset the variable; docs/settings.md lists all")
    return Finding("settings", "ok", ", ".join(names) or "no TRESNET_ variable is set")


def _triton(subject: Subject) -> Finding:
    """The one that serve would use: another machine's, or the bundled one, with the torch that its models need."""
    settings = subject.settings
    if settings.triton_url is not None:
        return _other_triton(settings.triton_url)
    from app.bundled_triton import BundledTriton, default_home

    home = Path(settings.triton_home) if settings.triton_home else default_home()
    try:
        BundledTriton(Path(), home, Path()).check_program()
    except UserError as error:
        return Finding("triton", "fail", str(error), "do as it says, or name another one in TRESNET_TRITON_URL")
    if importlib.util.find_spec("torch") is None:
        return Finding("triton", "fail", "the bundled Triton runs models with torch, which is missing", "make setup")
    return Finding("triton", "ok", f"the bundled one starts, and its libraries are there: {home}")


def _other_triton(url: str) -> Finding:
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    from app.triton_url import channel_target

    try:
        client = InferenceServerClient(channel_target(url))
        is_live = client.is_server_live(client_timeout=3)
    except (InferenceServerException, ValueError) as error:
        return Finding("triton", "fail", f"{url}: {error}", "start it, or correct TRESNET_TRITON_URL")
    return Finding("triton", "ok" if is_live else "fail", url, None if is_live else "start it; it says it is not live")


def _gpu(subject: Subject) -> Finding:
    """None is well; one that torch cannot use is not."""
    tool = shutil.which("nvidia-smi")
    listed = ""
    if tool is not None:
        asked = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)  # noqa: S603
        listed = asked.stdout.strip() if asked.returncode == 0 else ""
        if asked.returncode:
            said = (asked.stdout + asked.stderr).strip()
            return Finding("gpu", "warn", f"nvidia-smi says: {said[:200]}", "install NVIDIA's driver for this kernel")
    if importlib.util.find_spec("torch") is None:
        return Finding("gpu", "ok", listed or "none")
    import torch

    if torch.cuda.is_available():
        return Finding("gpu", "ok", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
    if listed:
        return Finding(
            "gpu", "warn", f"{listed}; torch {torch.__version__} cannot use it",
            "install a torch that is built for CUDA, and a driver that is new enough for it",
        )  # fmt: skip
    return Finding("gpu", "ok", "none: models are trained and run on the CPU")


def _shared_memory(subject: Subject) -> Finding:
    if not _SHARED_MEMORY.is_dir():
        return Finding(
            "shared memory", "fail", f"no {_SHARED_MEMORY}; Triton needs it", f"mount a tmpfs at {_SHARED_MEMORY}"
        )
    free = shutil.disk_usage(_SHARED_MEMORY).free // 2**20
    if free < _SHARED_MEMORY_MIB:
        remedy = "docker run --shm-size=1g, or a larger emptyDir of medium Memory; remove what is left there"
        return Finding("shared memory", "warn", f"{free} MiB free in {_SHARED_MEMORY}; large batches need more", remedy)
    return Finding("shared memory", "ok", f"{free:,} MiB free in {_SHARED_MEMORY}")


def _port(subject: Subject) -> Finding:
    from app.port import try_port

    host, port = subject.settings.host, subject.settings.port
    try:
        try_port(subject.settings)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            remedy = "correct TRESNET_HOST, or give --port"
            return Finding("port", "warn", f"{port} on {host}: {error.strerror}", remedy)
        if _is_gateway(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"):
            return Finding("port", "ok", f"{port} on {host} is taken by a gateway of this kind, which runs")
        remedy = f"stop what listens there (ss -ltnp 'sport = :{port}'), or give --port"
        return Finding("port", "warn", f"{port} on {host}: {error.strerror}", remedy)
    return Finding("port", "ok", f"{port} is free on {host}")


def _is_gateway(url: str) -> bool:
    """Whether a gateway of this kind answers there, be it ready or not, and ask it for a key or not."""
    import httpx

    try:
        document = httpx.get(f"{url}/openapi.json", timeout=3).json()
        return bool(document["info"]["title"] == "TResNet Serving")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError):
        return False


def _repository(subject: Subject) -> Finding | None:
    if subject.repository is None and subject.settings.triton_url is not None:
        return None  # that Triton has its own
    from commands.repository import read_repository

    folder = Path(subject.settings.repository)
    try:
        versions = read_repository(folder)
    except UserError:
        return Finding("repository", "fail", f"{folder}: no such folder", _how_to_get_models())
    faults = [fault for version in versions if (fault := version.told_fault())]
    if faults:
        return Finding("repository", "fail", "; ".join(faults), "remove that folder, and export it again")
    if not versions:
        return Finding("repository", "fail", f"{folder} holds no model", _how_to_get_models())
    return Finding("repository", "ok", f"{folder}: " + ", ".join(f"{v.model} {v.version}" for v in versions))


def _how_to_get_models() -> str:
    """`make models` is one of this project's folder alone."""
    project = Path(__file__).parents[1]
    of_the_demo = "make models, or " if Path.cwd() == project and (project / "Makefile").is_file() else ""
    return f"{of_the_demo}`tresnet export CHECKPOINT --task … --name …`"


def _gateway(subject: Subject) -> Finding | None:
    if subject.url is None:
        return None
    from client import Client, ClientError, Patience, UnauthorizedError, UnavailableError, UnreachableError
    from commands.away import why_away

    patience = Patience(deadline_s=10, retry_for_s=1)
    try:
        with Client(subject.url, api_key=subject.api_key, patience=patience) as gateway:
            state = gateway.wait_ready()
            gateway.models()
    except UnauthorizedError as error:
        return Finding("gateway", "fail", str(error), "give --api-key, or TRESNET_API_KEY")
    except UnavailableError as error:
        return Finding("gateway", "fail", f"not ready: {error}", "its log and logs/triton.log say more")
    except ClientError as error:
        said = why_away(subject.url, error) if isinstance(error, UnreachableError) else f"{subject.url}: {error}"
        return Finding("gateway", "fail", said, "start it, or correct --url or TRESNET_URL")
    failed = ", ".join(f"{entry['model']} {entry['version']}: {entry['reason']}" for entry in state["failed"])
    if failed:
        return Finding("gateway", "warn", f"ready, but not served: {failed}", "export that version again")
    return Finding("gateway", "ok", f"ready with {', '.join(state['models'])}")


_CHECKS: tuple[Callable[[Subject], Finding | None], ...] = (
    _python, _make, _compiler, _settings, _triton, _gpu, _shared_memory, _port, _repository, _gateway,
)  # fmt: skip
