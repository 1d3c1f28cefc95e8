"""Of several Tritons, which take turns, one may turn a call down that the next would answer.

A Triton that stops says until it is gone that it is not live or not ready, one that starts has no models yet, and a
connection that breaks takes the calls on it along. In: a call. Out: its first answer, or its last failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.errors import UnavailableError

_ATTEMPTS = {"triton_unavailable": 3, "model_not_ready": 10}
"""By what a call failed with. Where nothing can be reached there is no other to wait for."""
_PAUSE_S = 0.02

Answer = TypeVar("Answer")


async def in_turn(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """What ``call`` answers, asked again where another Triton may answer otherwise.

    Raises:
        ServiceError: what ``call`` raises.
    """
    attempts = dict(_ATTEMPTS)
    while True:
        try:
            return await call()
        except UnavailableError as error:
            attempts[error.code] = attempts.get(error.code, 1) - 1
            if attempts[error.code] <= 0:
                raise
        await asyncio.sleep(_PAUSE_S)
