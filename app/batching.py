"""Batch when busy, wait next to never. Knows only an async callable; nothing of pictures, models or Triton.

An item leaves at once while fewer than ``batches_in_flight`` batches run. While all run, items queue, and the
next batch is whatever has queued meanwhile, up to ``max_batch_size``: batches grow with the load by
themselves, and there is no delay to tune. The stage before counts too: what a small batch costs by itself is taken from
it, so one is held for a moment while items are announced (:meth:`Batcher.expect`), and for longer while they wait there
for their turn: then an item's own wait is decided there. So is one that would follow upon another at once: those whom
the last batch answered are about to ask again.
Items whose caller has left or whose deadline has passed are dropped when a batch is formed, before they cost anything.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import DeadlineError, ServiceError

_COMPANY = 8
"""Items at which what a batch costs by itself no longer shows."""
_LONGEST_HOLD_S = 0.02
_COMING_HOLD = 1.0
"""Share of a run that a small batch waits for items that are announced."""
_FOLLOWER_HOLD = 0.25
"""Share of a run that a batch waits for company, from the end of the last run, while another one runs."""
_RETURNING_HOLD = 0.1
"""The same share while none runs, until as many have come as the last run answered."""
_ARRIVING_HOLD = 0.5
"""The same share while none runs, for those of them who are announced."""
_SMOOTHING = 0.2

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    deadline: float  # on the loop's clock, seconds
    queued_at: float
    answer: asyncio.Future[tuple[Result, float, float]]


class Batcher(Generic[Item, Result]):
    """Groups items into calls of ``run(items, deadline)``, which answers one result an item, in order, or its error."""

    def __init__(
        self,
        run: Callable[[Sequence[Item], float], Awaitable[Sequence[Result | ServiceError]]],
        *,
        max_batch_size: int,
        batches_in_flight: int,
        on_queue_change: Callable[[int], None] = lambda change: None,
        is_backlogged: Callable[[], bool] = lambda: False,
    ) -> None:
        self._run = run
        self._max_batch_size = max_batch_size
        self._free = batches_in_flight
        self._on_queue_change = on_queue_change
        self._is_backlogged = is_backlogged
        self._expected = 0
        self._hold: asyncio.TimerHandle | None = None
        self._queue: OrderedDict[_Waiting[Item, Result], None] = OrderedDict()  # who leaves is taken out at once
        self._running: set[asyncio.Task[None]] = set()
        self._pump_is_due = False
        self._run_s = 0.0  # what a run takes, without its wait behind the one before
        self._last_end = 0.0
        self._answered = 0  # by the last run
        self._returned = 0  # items since then

    @contextmanager
    def expect(self) -> Iterator[None]:
        """Announce an item that is on its way from the stage before, until it is submitted or lost."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            if self._queue and not self._expected:
                self._schedule_pump()

    async def submit(self, item: Item, deadline: float) -> tuple[Result, float, float]:
        """The item's result, and the seconds it spent in the queue and in its run.

        Raises:
            DeadlineError: if ``deadline`` (the event loop's clock) passes first. What ``run`` raises, it raises.
        """
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Item, Result] = _Waiting(item, deadline, loop.time(), loop.create_future())
        self._queue[waiting] = None
        self._returned += 1
        self._on_queue_change(1)
        self._schedule_pump()
        try:
            async with asyncio.timeout_at(deadline):
                return await waiting.answer
        except TimeoutError:
            raise DeadlineError from None
        finally:
            if waiting in self._queue:
                del self._queue[waiting]
                self._on_queue_change(-1)

    async def close(self) -> None:
        """End what waits and the batches in flight, whose callers have gone."""
        self._queue.clear()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _schedule_pump(self) -> None:
        """Form batches once this turn of the loop is over, so that what was submitted together goes together."""
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_is_due = False
        while self._free and not self._is_held() and (batch := self._next_batch()):
            self._free -= 1
            task = asyncio.ensure_future(self._run_batch(batch))
            self._running.add(task)

    def _is_held(self) -> bool:
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if not self._queue:
            return False
        loop = asyncio.get_running_loop()
        until = self._company_until()
        if until <= loop.time():
            return False
        self._hold = loop.call_at(until, self._schedule_pump)
        return True

    def _company_until(self) -> float:
        """Until when what has queued is worth holding."""
        if len(self._queue) >= self._max_batch_size:
            return 0.0
        until = self._last_end + self._hold_after_a_run()
        if self._expected and len(self._queue) < _COMPANY:
            hold_s = _LONGEST_HOLD_S if self._is_backlogged() else min(_COMING_HOLD * self._run_s, _LONGEST_HOLD_S)
            until = max(until, next(iter(self._queue)).queued_at + hold_s)
        return until

    def _hold_after_a_run(self) -> float:
        """Seconds."""
        if self._running:
            return _FOLLOWER_HOLD * self._run_s
        if self._returned >= self._answered:
            return 0.0
        share = _ARRIVING_HOLD if self._expected else _RETURNING_HOLD
        return min(share * self._run_s, _LONGEST_HOLD_S)

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        now = asyncio.get_running_loop().time()
        batch: list[_Waiting[Item, Result]] = []
        while self._queue and len(batch) < self._max_batch_size:
            waiting, _ = self._queue.popitem(last=False)
            self._on_queue_change(-1)
            if not waiting.answer.done() and waiting.deadline > now:
                batch.append(waiting)
        return batch

    async def _run_batch(self, batch: list[_Waiting[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            results = await self._run([waiting.item for waiting in batch], max(w.deadline for w in batch))
            took = loop.time() - started
            for waiting, result in zip(batch, results, strict=True):
                if waiting.answer.done():
                    continue
                if isinstance(result, ServiceError):
                    waiting.answer.set_exception(result)
                else:
                    waiting.answer.set_result((result, started - waiting.queued_at, took))
        except Exception as error:  # every caller in the batch gets it; none may wait for ever
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
        finally:
            ended = loop.time()
            self._run_s += _SMOOTHING * (ended - max(started, self._last_end) - self._run_s)
            self._last_end = ended
            self._answered, self._returned = len(batch), 0
            self._free += 1
            self._running.discard(asyncio.current_task())
            self._schedule_pump()
