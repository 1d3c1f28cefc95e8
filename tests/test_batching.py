"""How items are grouped for a model that does one batch at a time; the model is a clock here."""

from __future__ import annotations

import asyncio
import selectors
import statistics
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TypeVar

import pytest

from app.batching import Batcher

_RUN_S = 0.1
Result = TypeVar("Result")


class _Skipped(selectors.DefaultSelector):
    """Time that passes at once whenever all wait for it, and not at all while somebody computes."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += timeout or 0
        return super().select(0)


def _run(told: Coroutine[None, None, Result]) -> Result:
    selector = _Skipped()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(told)


class _Model:
    """Runs batches one after the other, whatever their size, as one Triton instance does."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._turn = asyncio.Lock()

    async def __call__(self, items: Sequence[int], deadline: float) -> Sequence[int]:
        self.sizes.append(len(items))
        async with self._turn:
            await asyncio.sleep(_RUN_S)
        return items


async def _ask(batcher: Batcher[int, int], times: int, think_s: float, begin_s: float = 0) -> None:
    await asyncio.sleep(begin_s)
    deadline = asyncio.get_running_loop().time() + 60
    for _ in range(times):
        await batcher.submit(0, deadline)
        await asyncio.sleep(think_s)


def test_who_was_just_answered_joins_the_next_batch() -> None:
    """16 who ask again at once make two groups of eight, not three of five: one runs while the other one waits."""

    async def sizes() -> list[int]:
        model = _Model()
        batcher = Batcher[int, int](model, max_batch_size=32, batches_in_flight=2)
        await asyncio.gather(*(_ask(batcher, 12, 0.005, _RUN_S * client / 16) for client in range(16)))
        return model.sizes

    # The first few are those of the start, and the last ones have nobody to wait for.
    assert statistics.mean(_run(sizes())[6:-4]) > 7


def test_all_who_ask_again_at_once_make_one_batch() -> None:
    """With one batch at a time, 16 would make two groups of eight that wait for each other."""

    async def sizes() -> list[int]:
        model = _Model()
        batcher = Batcher[int, int](model, max_batch_size=32, batches_in_flight=1)
        await asyncio.gather(*(_ask(batcher, 12, 0.002, _RUN_S * client / 16) for client in range(16)))
        return model.sizes

    assert statistics.mean(_run(sizes())[6:-4]) > 14


async def _queued_s(batcher: Batcher[int, int]) -> float:
    _, queued_s, _ = await batcher.submit(0, asyncio.get_running_loop().time() + 60)
    return queued_s


@pytest.mark.parametrize("batches_in_flight", [1, 2])
def test_who_asks_alone_waits_for_nobody(batches_in_flight: int) -> None:
    async def waits_s() -> list[float]:
        batcher = Batcher[int, int](_Model(), max_batch_size=32, batches_in_flight=batches_in_flight)
        return [await _queued_s(batcher) for _ in range(20)]

    assert statistics.median(_run(waits_s())[-7:]) < 0.005


def test_who_was_answered_and_is_on_the_way_is_waited_for_but_not_for_long() -> None:
    async def wait_s() -> float:
        batcher = Batcher[int, int](_Model(), max_batch_size=32, batches_in_flight=1)
        for _ in range(10):
            await asyncio.gather(_queued_s(batcher), _queued_s(batcher))
        with batcher.expect():  # the second one, who never comes
            return await _queued_s(batcher)

    assert 0.015 < _run(wait_s()) < _RUN_S


def test_what_is_being_decoded_is_waited_for_in_step_with_a_run() -> None:
    async def wait_s(model: Callable[[Sequence[int], float], Awaitable[Sequence[int]]]) -> float:
        batcher = Batcher[int, int](model, max_batch_size=32, batches_in_flight=1)
        for _ in range(20):
            await _queued_s(batcher)
        with batcher.expect():
            return await _queued_s(batcher)

    async def fast(items: Sequence[int], deadline: float) -> Sequence[int]:
        await asyncio.sleep(0.006)
        return items

    assert 0.004 < _run(wait_s(fast)) < 0.018
    assert 0.015 < _run(wait_s(_Model())) < _RUN_S


def test_a_stop_waits_for_no_batch() -> None:
    """Those who asked have been answered by then, or told to go elsewhere."""

    async def hang(items: Sequence[int], deadline: float) -> Sequence[int]:
        await asyncio.sleep(1000)
        return items

    async def close_s() -> float:
        batcher = Batcher[int, int](hang, max_batch_size=8, batches_in_flight=1)
        asked = asyncio.create_task(batcher.submit(0, 1000))
        await asyncio.sleep(1)
        asked.cancel()
        began = asyncio.get_running_loop().time()
        await batcher.close()
        return asyncio.get_running_loop().time() - began

    assert _run(close_s()) < 1
