"""A batch's run: from the batcher, by whichever Triton answers, to its predictions; counted and traced."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from app.catalogue import Catalogue, Picture
from app.errors import ModelNotReadyError, ServiceError, TritonAnswerError, TritonAwayError
from app.metrics import Metrics
from app.tracing import Tracing
from app.triton import Prediction, TritonClient
from app.turns import in_turn
from tresnet.contract import ModelContract

Run = Callable[[Sequence[Picture], float], Awaitable[list[Prediction | TritonAnswerError]]]
"""Of a batch, until a deadline on the loop's clock: each picture's prediction, or why it has none."""


class BatchRuns:
    """Runs of all models; those under way end together when Triton is lost."""

    def __init__(self, triton: TritonClient, catalogue: Catalogue, metrics: Metrics, tracing: Tracing) -> None:
        self._triton = triton
        self._catalogue = catalogue
        self._metrics = metrics
        self._tracing = tracing
        self._calls: set[asyncio.Task[Any]] = set()

    def of(self, contract: ModelContract, on_failure: Callable[[ServiceError], None]) -> Run:
        """Runs of one version. Of a call that fails ``on_failure`` is told before those who wait for it."""
        key = contract.name, contract.version

        async def run(pictures: Sequence[Picture], deadline: float) -> list[Prediction | TritonAnswerError]:
            if key not in self._catalogue.live:  # it went while they waited
                raise ModelNotReadyError.of(contract.name)
            self._metrics.batch_size.observe(len(pictures))
            self._metrics.inflight.inc(len(pictures))
            try:
                return await in_turn(lambda: self._call(contract, pictures, deadline))
            except ServiceError as error:
                on_failure(error)
                raise
            finally:
                self._metrics.inflight.dec(len(pictures))

        return run

    def cancel(self) -> None:
        """End the calls under way: with 503, as Triton is lost."""
        for call in self._calls:
            call.cancel()

    async def _call(
        self, contract: ModelContract, pictures: Sequence[Picture], deadline: float
    ) -> list[Prediction | TritonAnswerError]:
        """One call of Triton."""
        if not self._catalogue.triton_is_up:
            raise TritonAwayError
        with self._tracing.infer([picture.traceparent for picture in pictures]) as traceparent:
            call = asyncio.create_task(
                self._triton.infer(
                    contract,
                    [picture.pixels for picture in pictures],
                    max(0.001, deadline - asyncio.get_running_loop().time()),
                    embedding=any(picture.wants_embedding for picture in pictures),
                    heat_maps=any(picture.wants_heat_maps for picture in pictures),
                    headers={"traceparent": traceparent} if traceparent else None,
                )
            )
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            try:
                return await call
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise
                raise TritonAwayError from None  # the call alone was cancelled, because Triton is lost
