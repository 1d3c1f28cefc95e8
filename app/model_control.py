"""Which versions the bundled Triton has loaded: what lies in the model repository, less what cannot be loaded.

:class:`ModelControl` looks at the repository's files every second and tells Triton, through its explicit model
control, to load what is new, to load again what changed, and to unload what is gone. Triton keeps the old one
answering until the new one is loaded. A version that cannot be loaded is left out and named in the parameter
``failed_versions`` of the configuration that Triton then gives to everyone who asks.

Triton's own polling will not do: with one broken version in a model, a Triton that starts loads none of them. Nor does
Triton notice when the process that runs a model has died: it calls the model ready and fails every request, and a load
of what is loaded does nothing. So a model that lacks a process is loaded anew, by a configuration that counts how
often.

A model's process whose run does not end, ends itself (``HangWatch`` in export/embedded_model.py), and is one that died.
And when a model's process was silent for a second while it started (stopped, or starved), Triton 2.51 gives it up but
then waits, without end, for it to exit, which nobody has told it to. So what a load has started and what then does
nothing for long is killed, upon which Triton tries again.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient import grpc as triton
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from app.model_processes import IdleStart, ModelProcess, model_processes
from tresnet.contract import EMBEDDED_CONFIG_FILE, FAILED_VERSIONS, RUN_TIMEOUT

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_LIVE_TIMEOUT_S = 5.0
_INDEX_TIMEOUT_S = 30.0
_LOAD_TIMEOUT_S = 600.0
_FIRST_RETRY_S = 30.0
_LONGEST_RETRY_S = 1800.0
_FIRST_REVIVAL_S = 2.0
_LONGEST_REVIVAL_S = 60.0
_CALM_S = 300.0
"""Lived so long, a model's processes are not taken for ones that die at once."""
_REVIVALS = "revivals"
_IDLE_LOOKS = 20
"""After so many, one each second, a load that does nothing hangs."""

Stamp = tuple[tuple[str, int, int], ...]
"""Name, time and size of each file: equal stamps mean unchanged files."""


@dataclass(frozen=True)
class OnDisk:
    """A model's folder at one look: its own files, and each version's."""

    files: Stamp
    versions: dict[int, Stamp]


@dataclass
class _Model:
    """What Triton was last told about a model."""

    told: OnDisk | None = None  # None: nothing, or to unload it
    broken: dict[int, Stamp] = field(default_factory=dict)
    """Versions that could not be loaded, as they were then."""
    is_guessed: bool = False
    """Whether some of them are there because Triton did not say which one was at fault."""
    retry_pause_s: float = _FIRST_RETRY_S
    retry_at: float | None = None
    call: Future[None] | None = None
    start: IdleStart | None = None
    """Of the load that is under way, or was the last."""
    processes: int = 0
    """How many each loaded version ought to have; 0 while that is not known."""
    revivals: int = 0
    revival_pause_s: float = _FIRST_REVIVAL_S
    revived_at: float = 0.0

    @property
    def is_idle(self) -> bool:
        return self.call is None or self.call.done()


def read_repository(repository: Path, before: Mapping[str, OnDisk]) -> tuple[dict[str, OnDisk], set[str]]:
    """The models that lie in the repository now, and why some of it cannot be read, which counts as it was ``before``.

    Hidden folders are those of an export under way.
    """
    found: dict[str, OnDisk] = {}
    unreadable: set[str] = set()
    for folder in _entries(repository):
        known = before.get(folder.name)
        try:
            if (folder / EMBEDDED_CONFIG_FILE).exists():
                files = _stamp(folder) + _stamp((folder / EMBEDDED_CONFIG_FILE).parent)
                found[folder.name] = OnDisk(files, _versions(folder, known.versions if known else {}, unreadable))
        except OSError as error:
            unreadable.add(str(error))
            if known is not None:
                found[folder.name] = known
    return found, unreadable


def _versions(model: Path, before: Mapping[int, Stamp], unreadable: set[str]) -> dict[int, Stamp]:
    versions = {}
    for folder in _entries(model):
        if not (folder.name.isdecimal() and folder.is_dir()):
            continue
        number = int(folder.name)
        try:
            versions[number] = _stamp(folder)
        except OSError as error:
            unreadable.add(str(error))
            if number in before:
                versions[number] = before[number]
    return versions


def _instances(config: pb.ModelConfig) -> int:
    """Instances of each version, each of which is a process."""
    return sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)


def _stamp(folder: Path) -> Stamp:
    found = []
    for path in _entries(folder):
        with suppress(FileNotFoundError):  # it is being removed
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                found.append((path.name, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        return []


def _says_yes(ask: Callable[..., Any], *what: str) -> bool:
    try:
        return bool(ask(*what, client_timeout=_LIVE_TIMEOUT_S))
    except InferenceServerException:
        return False


class ModelControl:
    """Keeps one life of a Triton server in step with the repository, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self, repository: Path, process: int, address: str, hang_timeout_s: float, run_timeout_s: float
    ) -> None:
        """``run_timeout_s``: what one run of a model may take, before its process ends itself as one that hangs."""
        self._repository = repository
        self._process = process
        self._address = address
        self._hang_timeout_s = hang_timeout_s
        self._run_timeout_s = run_timeout_s
        self._unanswered_s = 0.0
        self._stopping = threading.Event()
        self._models: dict[str, _Model] = {}
        self._unreadable: set[str] = set()
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="load-model")
        self._thread = threading.Thread(target=self._run, name="model-control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Call it once the server is gone, so that a load under way has failed."""
        self._stopping.set()
        if self._thread.is_alive():  # there may have been no thread to be had
            self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    @property
    def server_hangs(self) -> bool:
        """Whether only a new start can help: the server has not answered for so long, or nobody is left to ask it."""
        return self._unanswered_s > self._hang_timeout_s or not self._thread.is_alive()

    def _run(self) -> None:
        with triton.InferenceServerClient(self._address) as client:
            before: dict[str, OnDisk] | None = None
            looked_at = time.monotonic()
            while not self._stopping.wait(0.1 if before is None else _LOOK_EVERY_S):
                is_live = _says_yes(client.is_server_live)
                looked_before, looked_at = looked_at, time.monotonic()
                if not is_live:
                    # Capped: while this process itself is held (a paused container), nobody could have answered it.
                    self._unanswered_s += min(looked_at - looked_before, _LIVE_TIMEOUT_S + _LOOK_EVERY_S)
                    continue
                self._unanswered_s = 0.0
                try:
                    now, unreadable = read_repository(self._repository, before or {})
                except OSError as error:
                    logger.warning("the model repository cannot be read: %s", error)
                    continue
                for reason in sorted(unreadable - self._unreadable):
                    logger.warning("left as it is in the model repository: %s", reason)
                self._unreadable = unreadable
                self._follow(client, now if before is None else before, now)
                before = now

    def _follow(self, client: triton.InferenceServerClient, before: dict[str, OnDisk], now: dict[str, OnDisk]) -> None:
        """Act on what has not changed since the look before: what is being written or removed is left to settle."""
        running = model_processes(self._process)
        for name in self._models.keys() - now.keys() - before.keys():
            model = self._models[name]
            if model.is_idle and model.told is not None:
                logger.info("model %r is gone from the repository", name)
                model.told, model.retry_at, model.start = None, None, None
                model.call = self._pool.submit(self._unload, client, name)
        for name, found in now.items():
            model = self._models.setdefault(name, _Model())
            is_due = model.retry_at is not None and time.monotonic() > model.retry_at
            if model.is_idle and before.get(name) == found and (model.told != found or is_due):
                if is_due or model.is_guessed:
                    model.broken.clear()
                if not is_due:
                    model.retry_pause_s = _FIRST_RETRY_S
                model.told = found
                self._start_load(client, name, model, found, running)
        self._revive(client, running)
        self._kill_idle_starts(running)

    def _start_load(
        self,
        client: triton.InferenceServerClient,
        name: str,
        model: _Model,
        found: OnDisk,
        running: list[ModelProcess],
    ) -> None:
        model.start = IdleStart(running)
        model.call = self._pool.submit(self._load, client, name, model, found)

    def _kill_idle_starts(self, running: list[ModelProcess]) -> None:
        for name, model in self._models.items():
            if model.start is None or model.is_idle:
                continue
            started = model.start.look([process for process in running if process.model == name])
            if model.start.looks >= _IDLE_LOOKS:
                logger.error("model %r: its start hangs, for %d s now: killing its processes", name, _IDLE_LOOKS)
                model.start = IdleStart(running)
                for process in started:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)

    def _revive(self, client: triton.InferenceServerClient, running: list[ModelProcess]) -> None:
        """Load anew what has lost a process; what dies again and again, less and less often."""
        alive = Counter((process.model, process.version) for process in running)
        for name, model in self._models.items():
            told = model.told
            if told is None or not model.is_idle or not model.processes:
                continue
            good = told.versions.keys() - model.broken.keys()
            if all(alive[name, number] >= model.processes for number in good):
                continue
            lived = time.monotonic() - model.revived_at
            if lived < model.revival_pause_s or not _says_yes(client.is_model_ready, name):  # it was unloaded by hand
                continue
            model.revival_pause_s = (
                _FIRST_REVIVAL_S if lived > _CALM_S else min(_LONGEST_REVIVAL_S, 2 * model.revival_pause_s)
            )
            logger.error("model %r has lost a process: loading it anew", name)
            model.revivals += 1
            model.revived_at = time.monotonic()
            self._start_load(client, name, model, told, running)

    def _unload(self, client: triton.InferenceServerClient, name: str) -> None:
        try:
            client.unload_model(name, client_timeout=_LOAD_TIMEOUT_S)
        except InferenceServerException as error:
            logger.info("unloading model %r: %s", name, error.message())

    def _load(self, client: triton.InferenceServerClient, name: str, model: _Model, found: OnDisk) -> None:
        """Load all versions that can be; come back later for those that cannot, be it the machine's fault."""
        model.broken = {number: stamp for number, stamp in model.broken.items() if found.versions.get(number) == stamp}
        model.is_guessed = model.is_guessed and bool(model.broken)
        started, model.processes = time.monotonic(), 0
        while good := sorted(found.versions.keys() - model.broken.keys()):
            try:
                self._tell(client, name, good, model)
            except (InferenceServerException, text_format.ParseError, OSError, ValueError) as error:
                if self._stopping.is_set():
                    return
                reason = (str(error) or repr(error)).splitlines()[0][:300]
                broken = self._failed(client, name, good)
                model.is_guessed |= not broken
                logger.error("model %r version %s cannot be loaded: %s", name, broken or good, reason)
                model.broken |= {number: found.versions[number] for number in broken or good}
            else:
                logger.info("model %r: loaded %s in %.1f s", name, good, time.monotonic() - started)
                with suppress(InferenceServerException):  # the load itself is done
                    model.processes = _instances(client.get_model_config(name, client_timeout=_INDEX_TIMEOUT_S).config)
                break
        model.retry_at = None
        if model.broken:
            model.retry_at = time.monotonic() + model.retry_pause_s
            model.retry_pause_s = min(_LONGEST_RETRY_S, 2 * model.retry_pause_s)

    def _tell(self, client: triton.InferenceServerClient, name: str, good: list[int], model: _Model) -> None:
        path = self._repository / name / EMBEDDED_CONFIG_FILE
        config = text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
        config.version_policy.specific.versions.extend(good)
        config.parameters[FAILED_VERSIONS].string_value = ",".join(map(str, sorted(model.broken)))
        config.parameters[RUN_TIMEOUT].string_value = str(self._run_timeout_s)
        if model.revivals:
            config.parameters[_REVIVALS].string_value = str(model.revivals)
        text = json_format.MessageToJson(config, preserving_proto_field_name=True)
        client.load_model(name, config=text, client_timeout=_LOAD_TIMEOUT_S)

    def _failed(self, client: triton.InferenceServerClient, name: str, asked: list[int]) -> list[int]:
        """Which of the versions asked for are the reason that a model could not be loaded, as Triton tells it."""
        try:
            index = client.get_model_repository_index(client_timeout=_INDEX_TIMEOUT_S)
        except InferenceServerException:
            return []
        return [
            int(entry.version)
            for entry in index.models
            if entry.name == name
            and entry.state == "UNAVAILABLE"
            and entry.reason not in ("", "unloaded")
            and entry.version.isdecimal()
            and int(entry.version) in asked
        ]
