"""Which models are served, learnt from Triton alone, and kept up to date.

:class:`Catalogue` looks at Triton every ``triton_poll_ms``. A model version goes live only after its contract
was read, its labels agree with their digest, and its golden picture was answered as at export along the whole
path. When Triton is away, nothing is live until it is back and all of that holds again.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from app.batching import Batcher
from app.decoder import Decoder
from app.errors import RequestError, ServiceError, TritonAnswerError, UnavailableError, bad_parameter
from app.metrics import Metrics
from app.settings import Settings
from app.tracing import Tracing
from app.triton import Prediction, TritonClient
from tresnet.contract import SCORE_TOLERANCE, ModelContract, Task, labels_digest

logger = logging.getLogger(__name__)

_FIRST_LOOK_S = 5.0


@dataclass(frozen=True)
class Picture:
    """A prepared picture on its way to Triton, with the headers that travel along."""

    pixels: npt.NDArray[np.uint8]
    traceparent: str | None = None
    wants_embedding: bool = False


@dataclass(frozen=True)
class ServedModel:
    """A live version of a model: its contract, its labels, its batcher."""

    contract: ModelContract
    labels: list[str]
    batcher: Batcher[Picture, Prediction]

    @property
    def thresholds(self) -> list[float]:
        """Each label's own, else 0.5."""
        return self.contract.facts.thresholds or [0.5] * self.contract.num_labels


@dataclass
class Catalogue:
    """The served models, and why the gateway is not ready if it is not."""

    triton: TritonClient
    decoder: Decoder
    settings: Settings
    metrics: Metrics
    tracing: Tracing
    live: dict[tuple[str, str], ServedModel] = field(default_factory=dict)
    known_names: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=lambda: ["the inference server has not been reached yet"])
    triton_is_up: bool = False
    _watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look once, so that a process that joins others is of use when its first request comes; then keep watching."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._look(), _FIRST_LOOK_S)
        self._watch = asyncio.create_task(self._keep_watching())

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await asyncio.gather(*(model.batcher.close() for model in self.live.values()))

    @property
    def is_ready(self) -> bool:
        return self.triton_is_up and bool(self.live) and not self.problems

    def find(self, task: Task, name: str | None, version: str | None) -> ServedModel:
        """The live model that a request means; without a name, the only one of the route's task.

        Raises:
            UnavailableError: if Triton is away or the model is not live now.
            RequestError: 404 for an unknown model or version, 422 for one of the other task or for no choice.
        """
        if not self.triton_is_up:
            raise UnavailableError("triton_unavailable", "the inference server is away; try again")
        route = f"/{task}"
        if name is None:
            names = sorted({model.contract.name for model in self.live.values() if model.contract.task == task})
            if not names:
                if self.problems:
                    raise UnavailableError("model_not_ready", f"no model for {route} is ready yet; try again")
                raise RequestError(404, "unknown_model", f"no model for {route} is served")
            if len(names) > 1:
                raise RequestError(422, "model_required", f"choose a model for {route}: {', '.join(names)}")
            name = names[0]
        versions = {key[1]: model for key, model in self.live.items() if key[0] == name}
        if not versions:
            if name in self.known_names:
                raise UnavailableError("model_not_ready", f"model {name!r} is not ready; try again")
            raise RequestError(404, "unknown_model", f"there is no model {name!r}; GET /models lists them")
        if version is not None and version not in versions:
            raise RequestError(
                404, "unknown_version", f"model {name!r} has no version {version!r}; GET /models lists them"
            )
        model = versions[version or max(versions, key=int)]
        if model.contract.task != task:
            raise bad_parameter(f"model {name!r} is for /{model.contract.task}, not for {route}")
        return model

    def triton_failed(self) -> None:
        """A call could not reach Triton: nothing is live until the watch has seen it whole again."""
        if self.triton_is_up:
            logger.warning("the inference server cannot be reached")
        self.triton_is_up = False
        self.live = {}
        self.problems = ["the inference server cannot be reached"]
        self.metrics.triton_up.set(0)

    async def _keep_watching(self) -> None:
        while True:
            pause_ms = self.settings.triton_poll_ms if self.is_ready else min(250, self.settings.triton_poll_ms)
            await asyncio.sleep(pause_ms / 1000)
            await self._look()

    async def _look(self) -> None:
        try:
            await self.refresh()
        except ServiceError as error:
            self.triton_failed()
            logger.info("looking at the inference server: %s", error.detail)

    async def refresh(self) -> None:
        """Look at Triton once; learn new versions, forget those that are gone."""
        if not await self.triton.is_live():
            self.triton_failed()
            return
        problems: list[str] = []
        ready: set[tuple[str, str]] = set()
        names: set[str] = set()
        for name, version, state, reason in await self.triton.index():
            if name.startswith("."):  # what a cut-off export left behind
                continue
            names.add(name)
            if state == "READY":
                ready.add((name, version))
            elif state or not version:
                problems.append(f"model {name!r} {version}: {state or 'not loaded'} {reason}".strip())
        kept = {key: model for key, model in self.live.items() if key in ready}
        for key in sorted(ready - kept.keys()):
            try:
                kept[key] = await self._learn(*key)
            except ServiceError as error:
                problems.append(error.detail)
        if problems != self.problems:
            for message in problems:
                logger.warning("not ready: %s", message)
        if not names:
            problems.append("the model repository is empty")
        self.live, self.known_names, self.problems = kept, names, problems
        self.triton_is_up = True
        self.metrics.triton_up.set(1)
        self._publish_model_info()

    async def _learn(self, name: str, version: str) -> ServedModel:
        contract = await self.triton.contract(name, version)
        labels = await self.triton.labels(contract)
        if labels_digest(labels) != contract.labels_sha256:
            raise TritonAnswerError(f"model {name!r} version {version}: its labels are not those it was exported with")
        batcher: Batcher[Picture, Prediction] = Batcher(
            self._runner(contract),
            max_batch_size=contract.max_batch_size,
            batches_in_flight=self.settings.batches_in_flight,
            on_queue_change=self.metrics.queue_depth.inc,
            is_backlogged=lambda: self.decoder.is_backlogged,
        )
        model = ServedModel(contract, labels, batcher)
        await self._check_golden_picture(model)
        logger.info("live: model %r version %s (%s, %s)", name, version, contract.facts.architecture, contract.task)
        return model

    async def _check_golden_picture(self, model: ServedModel) -> None:
        golden, contract = model.contract.facts.golden, model.contract
        prepared = await self.decoder(base64.b64decode(golden.png_base64), contract.preprocessing)
        deadline = asyncio.get_running_loop().time() + 60
        prediction, _, _ = await model.batcher.submit(Picture(prepared.pixels), deadline)
        distance = max(abs(float(prediction.scores[label]) - score) for label, score in golden.scores.items())
        if distance > SCORE_TOLERANCE[contract.facts.precision]:
            raise TritonAnswerError(
                f"model {contract.name!r} version {contract.version}: golden picture's scores are {distance:.3f} off"
            )

    def _runner(self, contract: ModelContract) -> Callable[[Sequence[Picture], float], Awaitable[list[Prediction]]]:
        async def run(pictures: Sequence[Picture], deadline: float) -> list[Prediction]:
            self.metrics.batch_size.observe(len(pictures))
            self.metrics.inflight.inc(len(pictures))
            try:
                with self.tracing.infer([picture.traceparent for picture in pictures]) as traceparent:
                    return await self.triton.infer(
                        contract,
                        [picture.pixels for picture in pictures],
                        max(0.001, deadline - asyncio.get_running_loop().time()),
                        embedding=any(picture.wants_embedding for picture in pictures),
                        headers={"traceparent": traceparent} if traceparent else None,
                    )
            except UnavailableError as error:
                if error.code == "triton_unavailable":
                    self.triton_failed()
                raise
            finally:
                self.metrics.inflight.dec(len(pictures))

        return run

    def _publish_model_info(self) -> None:
        self.metrics.publish_models(
            {
                (m.contract.name, m.contract.version, m.contract.facts.architecture, m.contract.task,
                 m.contract.facts.precision, m.contract.facts.source_sha256)
                for m in self.live.values()
            }
        )  # fmt: skip
