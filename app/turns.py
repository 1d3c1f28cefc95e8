"""Of several Tritons, which take turns, one may turn a call down that the next would answer.

A Triton that stops says until it is gone that it is not live or not ready, one that starts has no models yet, and a
connection that breaks takes the calls on it along. In: a call. Out: its first answer, or its last failure.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.errors import ModelNotReadyError, TritonAwayError, TritonStoppingError

_PATIENCE_S = 0.7
"""Twenty turns or so; if none answers, there is no other Triton."""
_ATTEMPTS_UNREACHED = 3
"""Where nothing can be reached, there is none to wait for."""
_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.05

Answer = TypeVar("Answer")


async def in_turn(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """What ``call`` answers, asked again where another Triton may answer otherwise.

    Raises:
        ServiceError: what ``call`` raises.
    """
    loop = asyncio.get_running_loop()
    until, pause_s, unreached = loop.time() + _PATIENCE_S, 0.0, 0
    while True:
        try:
            return await call()
        except (TritonStoppingError, ModelNotReadyError):
            if loop.time() > until:
                raise
        except TritonAwayError:
            unreached += 1
            if unreached == _ATTEMPTS_UNREACHED:
                raise
        pause_s = min(pause_s + _PAUSE_S, _LONGEST_PAUSE_S)
        # At random: in step with other callers, who take turns too, it would meet the same Triton each time.
        await asyncio.sleep(random.uniform(0.0, pause_s))  # noqa: S311
