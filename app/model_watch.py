"""Learns from Triton which models there are, and lets a version into the catalogue once it has proved itself.

Every ``triton_poll_ms`` :class:`ModelWatch` asks Triton whether it lives and what it has loaded. A version goes live
only after its contract was read, its labels agree with their digest, and its golden picture was answered as at
export along the whole path; what was live before serves on meanwhile. The golden picture is asked again every
``golden_check_s``, and at the next look when a version lets requests time out. When Triton is away, nothing is live,
calls under way end with 503, and all must be learnt anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from app.batch_run import BatchRuns
from app.batching import Batcher
from app.catalogue import Catalogue, Key, Picture, ServedModel
from app.decoder import Decoder
from app.errors import (
    DeadlineError,
    ModelNotReadyError,
    ServiceError,
    TritonAnswerError,
    TritonAwayError,
    UnavailableError,
)  # fmt: skip
from app.metrics import Metrics
from app.proof import Proof
from app.readiness import not_ready, read_index
from app.settings import Settings
from app.triton import IndexRow, Prediction, TritonClient
from app.turns import in_turn
from tresnet.contract import ContractError, ModelContract, describes, read_contract

logger = logging.getLogger(__name__)

_IN_FLIGHT = 2
"""Batches at Triton, which may be several servers, that leave it no pause between two."""
_FIRST_LOOK_S = 5.0
_STARTING_POLL_MS = 250
_MISSED_S = 3.0
_LOOKS_FOR_LIVE = 5
"""Tritons that are asked in turn for what one does not have."""
_LEARN_AGAIN_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses after which a version that failed is asked again."""


@dataclass
class _Watched:
    """What is known of a version that Triton says it has loaded."""

    config: pb.ModelConfig
    contract: ModelContract | None = None
    task: asyncio.Task[None] | None = None
    """Learning or checking, while it lasts."""
    due_s: float = 0.0
    """When to learn or check next, on the loop's clock."""
    failures: int = 0
    missed_since_s: float | None = None
    """Since when no look has found it loaded, on the loop's clock."""


class ModelWatch:
    """Keeps the catalogue true from :meth:`start` to :meth:`close`."""

    def __init__(
        self,
        triton: TritonClient,
        decoder: Decoder,
        settings: Settings,
        metrics: Metrics,
        catalogue: Catalogue,
        runs: BatchRuns,
    ) -> None:
        self._triton = triton
        self._decoder = decoder
        self._proof = Proof(triton, decoder)
        self._settings = settings
        self._metrics = metrics
        self._catalogue = catalogue
        self._runs = runs
        self._watched: dict[Key, _Watched] = {}
        self._served_names: set[str] = set()
        self._missing_defaults: list[str] = []
        self._wake = asyncio.Event()
        self._needs_new_connection = False
        self._loop_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look once, so that a process that joins others is of use when its first request comes; then keep watching."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LOOK_S):
                await self._look()
                await asyncio.gather(*(watched.task for watched in self._watched.values() if watched.task))
                await self._look()
        self._loop_task = asyncio.create_task(self._keep_watching())

    async def close(self) -> None:
        tasks = [self._loop_task, *(watched.task for watched in self._watched.values())]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
        await asyncio.gather(*(model.batcher.close() for model in self._catalogue.live.values()))

    async def _keep_watching(self) -> None:
        while True:
            pause_ms = self._settings.triton_poll_ms
            if not self._catalogue.is_ready:
                pause_ms = min(_STARTING_POLL_MS, pause_ms)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_ms / 1000)
            self._wake.clear()
            try:
                await self._look()
            except Exception:
                logger.exception("looking at Triton failed")
                self._lose_triton("the inference server could not be looked at")

    async def _look(self) -> None:
        if self._needs_new_connection:
            self._needs_new_connection = False
            await self._triton.reconnect()
        if not await self._triton_lives():
            self._lose_triton("the inference server does not answer")
            return
        if not self._catalogue.triton_is_up:
            await self._triton.clear_away()
        try:
            index = await self._index()
            ready: dict[str, list[str]] = {}
            for name, version in sorted(_ready(index)):
                ready.setdefault(name, []).append(version)
            configs = {name: await self._config(name, versions) for name, versions in ready.items()}
        except ServiceError as error:
            self._lose_triton(error.detail)
            return
        self._catalogue.triton_is_up = True
        self._metrics.triton_up.set(1)
        self._follow(_ready(index), configs)
        self._judge(index, configs)

    async def _triton_lives(self) -> bool:
        """Whether one answers, a second time where the first took too long."""
        timeout_s = self._settings.triton_live_timeout_ms / 1000
        for _ in range(2):
            try:
                await in_turn(lambda: self._triton.check_live(timeout_s))
                return True
            except DeadlineError:
                continue
            except ServiceError:
                return False
        return False

    async def _index(self) -> list[IndexRow]:
        """Of a Triton that has loaded all that is live, if there is one: one that starts does not speak for all."""
        for _ in range(_LOOKS_FOR_LIVE):
            index = await in_turn(self._triton.index)
            if self._catalogue.live.keys() <= _ready(index):
                break
        return index

    async def _config(self, name: str, versions: list[str]) -> pb.ModelConfig | None:
        """Of a Triton that has these versions, as the one has that gave the index; None if the model has gone."""
        config = None
        for _ in range(_LOOKS_FOR_LIVE):
            try:
                config = await self._triton.config(name)
            except (ModelNotReadyError, TritonAnswerError):
                continue
            if all(describes(config, version) for version in versions):
                break
        return config

    def _follow(self, ready: set[Key], configs: dict[str, pb.ModelConfig | None]) -> None:
        """Forget what is gone or changed; learn what is new; check again what is due."""
        now = asyncio.get_running_loop().time()
        # The index and a configuration may be of two Tritons, one with the version and one without.
        ready = {key for key in ready if not (key in self._catalogue.live and _is_left_out(configs[key[0]], key[1]))}
        for key in self._watched.keys() - ready:
            # Of several Tritons, the others may have been asked by chance: they are at the next looks.
            since_s = self._watched[key].missed_since_s
            if key not in self._catalogue.live or (since_s is not None and now - since_s > _MISSED_S):
                self._forget(key)
            elif since_s is None:
                self._watched[key].missed_since_s = now
        for key in sorted(ready):
            config = configs[key[0]]
            if config is None:
                continue
            watched = self._watched.get(key)
            if watched is not None and watched.config != config and describes(config, key[1]):
                if watched.contract != _contract_or_none(config, key[1]):
                    self._forget(key)
                    watched = None
                else:
                    watched.config = config
            if watched is None:
                watched = self._watched[key] = _Watched(config)
            watched.missed_since_s = None
            if watched.task is None and watched.due_s <= now:
                work = self._check(key) if key in self._catalogue.live else self._learn(key, watched)
                watched.task = asyncio.create_task(self._attempt(key, watched, work))

    def _forget(self, key: Key) -> None:
        watched = self._watched.pop(key)
        if watched.task is not None:
            watched.task.cancel()
        self._catalogue.live.pop(key, None)
        self._catalogue.failed.pop(key, None)

    def _judge(self, index: list[IndexRow], configs: dict[str, pb.ModelConfig | None]) -> None:
        """Which versions failed, and whether the gateway is ready."""
        catalogue, served = self._catalogue, self._served_names
        disproved = {key: reason for key, reason in catalogue.failed.items() if key in self._watched}
        standing = read_index(index, configs, served=served, disproved=disproved)
        for key in sorted(standing.failed.keys() - catalogue.failed.keys()):
            logger.warning("model %r version %s is not served: %s", *key, standing.failed[key])
        catalogue.known, catalogue.failed = standing.known, standing.failed
        self._served_names &= standing.wanted  # one that was taken out and comes again is new
        problems = standing.problems(catalogue.live_names, served)
        if problems and problems != catalogue.problems:
            loads = standing.known and not standing.failed and not served  # as every start does
            logger.log(logging.INFO if loads else logging.WARNING, "not ready: %s", "; ".join(problems))
        catalogue.problems = problems
        self._metrics.ready.set(self._catalogue.is_ready)
        if not problems:
            self._catalogue.was_ready = True
            self._served_names |= catalogue.live_names
            self._tell_missing_defaults()
        self._metrics.publish_models({_info(model.contract) for model in catalogue.live.values()})
        self._metrics.publish_failed_versions([name for name, _ in standing.failed])

    def _tell_missing_defaults(self) -> None:
        """Once for each time that they change; they may be meant for later, so nothing is refused."""
        missing = [name for name in self._catalogue.defaults if name not in self._catalogue.known]
        if missing and missing != self._missing_defaults:
            logger.warning("TRESNET_DEFAULT_MODELS names what the repository does not hold: %s", ", ".join(missing))
        self._missing_defaults = missing

    async def _attempt(self, key: Key, watched: _Watched, work: Coroutine[Any, Any, None]) -> None:
        """Learn or check a version; if it fails, take it out and come back later."""
        loop = asyncio.get_running_loop()
        try:
            await work
            watched.failures = 0
            watched.due_s = loop.time() + self._settings.golden_check_s
            self._catalogue.failed.pop(key, None)
        except UnavailableError as error:  # nothing is said of the version; the next look will see
            watched.due_s = loop.time() + _STARTING_POLL_MS / 1000
            watched.task = None
            if key in self._catalogue.live:
                self._suspect(key, error)
        except Exception as error:  # whatever it is, this version alone is out
            if self._watched.get(key) is watched:
                detail = error.detail if isinstance(error, ServiceError) else repr(error)
                pause_s = _LEARN_AGAIN_S[min(watched.failures, len(_LEARN_AGAIN_S) - 1)]
                watched.failures += 1
                watched.due_s = loop.time() + pause_s
                self._catalogue.live.pop(key, None)
                self._catalogue.failed[key] = detail
                logger.warning("model %r version %s is out: %s", *key, detail)
        finally:
            watched.task = None
            self._wake.set()

    async def _learn(self, key: Key, watched: _Watched) -> None:
        name, version = key
        try:
            watched.contract = contract = read_contract(watched.config, version)
        except ContractError as error:
            raise TritonAnswerError(str(error)) from error
        labels = await self._proof.labels(contract)
        await self._proof.golden_picture(contract)
        batcher: Batcher[Picture, Prediction] = Batcher(
            self._runs.of(contract, on_failure=partial(self._suspect, key)),
            max_batch_size=contract.max_batch_size,
            batches_in_flight=self._settings.batches_in_flight or _IN_FLIGHT,
            on_queue_change=self._metrics.queue_depth.inc,
            is_backlogged=lambda: self._decoder.is_backlogged,
        )
        self._catalogue.live[key] = ServedModel(contract, labels, batcher)
        self._catalogue.tasks[name] = contract.task
        logger.info("live: model %r version %s (%s, %s)", name, version, contract.facts.architecture, contract.task)

    async def _check(self, key: Key) -> None:
        await self._proof.golden_picture(self._catalogue.live[key].contract)

    def _suspect(self, key: Key, error: ServiceError) -> None:
        """A call failed: draw the consequence."""
        if isinstance(error, TritonAwayError):
            self._lose_triton(error.detail)
            self._wake.set()
        elif isinstance(error, ModelNotReadyError):
            if key in self._watched:
                self._forget(key)
                if key[0] not in self._catalogue.live_names:
                    self._catalogue.problems = [*self._catalogue.problems, not_ready(key[0], {})]
            self._wake.set()
        elif isinstance(error, DeadlineError) and key in self._watched:
            self._watched[key].due_s = 0.0  # at the next look: perhaps its clients alone are impatient

    def _lose_triton(self, why: str) -> None:
        if self._catalogue.triton_is_up:
            logger.warning("Triton is lost: %s", why)
        self._needs_new_connection = True
        self._catalogue.lose_triton(why)
        self._metrics.triton_up.set(0)
        self._metrics.ready.set(0)
        self._metrics.publish_models(set())
        for key in list(self._watched):
            self._forget(key)
        self._runs.cancel()


def _ready(index: list[IndexRow]) -> set[Key]:
    return {(name, version) for name, version, state, _ in index if state == "READY"}


def _is_left_out(config: pb.ModelConfig | None, version: str) -> bool:
    return config is not None and not describes(config, version)


def _contract_or_none(config: pb.ModelConfig, version: str) -> ModelContract | None:
    try:
        return read_contract(config, version)
    except ContractError:
        return None


def _info(contract: ModelContract) -> tuple[str, ...]:
    facts = contract.facts
    return (
        contract.name, contract.version, facts.architecture, contract.task, facts.precision, facts.source_sha256
    )  # fmt: skip
