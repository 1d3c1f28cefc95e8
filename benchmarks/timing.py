"""How long work takes on a device, and how large a batch of it fits.

CUDA runs behind the program's back, so events on its stream are timed there, and the clock on a CPU.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], Any]
_TOO_LARGE = ("out of memory", "ALLOC_FAILED", "unable to find an engine", "32-bit index", "canUse32BitIndexMath")
"""How torch, cuDNN and cuBLAS tell of too large a batch where they do not raise :class:`torch.OutOfMemoryError`."""


def seconds_of(work: Work, device: torch.device) -> float:
    """One run of ``work``, to its end on the device."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3


def median_seconds(work: Work, device: torch.device, *, seconds: float, warm_up: int = 3) -> float:
    """The median of the runs that ``seconds`` have room for, at least one, after ``warm_up`` more."""
    for _ in range(warm_up):
        work()
    taken = [seconds_of(work, device)]
    while sum(taken) < seconds:
        taken.append(seconds_of(work, device))
    return statistics.median(taken)


def largest_batch(fits: Callable[[int], bool], limit: int) -> int:
    """The largest batch up to ``limit`` that ``fits``, by doubling and then by halving the gap; 0 if not even one does.

    ``fits`` must hold for every batch below one for which it holds.
    """
    good, bad = 0, limit + 1
    while good < limit and bad == limit + 1:
        tried = min(max(1, 2 * good), limit)
        good, bad = (tried, bad) if fits(tried) else (good, tried)
    while bad - good > 1:
        tried = (good + bad) // 2
        good, bad = (tried, bad) if fits(tried) else (good, tried)
    return good


def fits_in_memory(work: Work) -> bool:
    """Whether ``work`` runs without the device's memory running out; what it took is given back.

    A batch that cuDNN has no algorithm for, or that is beyond an operator's 32-bit index, does not fit either.
    """
    fits = True
    try:
        work()
    except RuntimeError as error:
        if not is_too_large(error):
            raise
        fits = False
    free_memory()  # out here, where the error no longer holds what its frames held
    return fits


def is_too_large(error: RuntimeError) -> bool:
    """Whether ``error`` says that a batch is too large for the device."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _TOO_LARGE)


def free_memory() -> None:
    """What nobody holds any more goes back to the device, so that the next measurement begins as the first did."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def share_of(batch: int, share: float = 0.9) -> int:
    """``share`` of the largest batch, in whole eights where there are any: matrix units like them."""
    wanted = max(1, int(batch * share))
    return wanted - wanted % 8 if wanted >= 8 else wanted
