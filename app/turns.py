"""Of several Tritons, which take turns, one may turn a call down that the next would answer.

A Triton that stops says until it is gone that it is not live or not ready, one that starts has no models yet, and a
connection that breaks takes the calls on it along. In: a call. Out: its first answer, or its last failure.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.errors import ModelNotReadyError, TritonAnswerError, TritonAwayError, TritonStoppingError

_PATIENCE_S = 0.7
"""Twenty turns or so; if none answers, there is no other Triton."""
_ATTEMPTS_UNREACHED = 3
"""Where nothing can be reached, there is none to wait for."""
_ATTEMPTS_WRONG = 2
"""A Triton with a broken GPU calls itself ready; what every Triton gets wrong is not worth more of their time."""
_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.05

Answer = TypeVar("Answer")


async def in_turn(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """What ``call`` answers, asked again where another Triton may answer otherwise.

    Raises:
        ServiceError: what ``call`` raises.
    """
    loop = asyncio.get_running_loop()
    until, pause_s, unreached, wrong = loop.time() + _PATIENCE_S, 0.0, 0, 0
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
        except TritonAnswerError:
            wrong += 1
            if wrong == _ATTEMPTS_WRONG:
                raise
        pause_s = min(pause_s + _PAUSE_S, _LONGEST_PAUSE_S)
        # At random: in step with other callers, who take turns too, it would meet the same Triton each time.
        await asyncio.sleep(random.uniform(0.0, pause_s))  # noqa: S311
