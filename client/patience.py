"""How long a call may take, and when it asks again: pauses that grow, jittered, never before ``Retry-After``."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

_DOUBLED = 64
"""The first pause, at most so many times: more than any longest pause, and a number that floats have."""


@dataclass(frozen=True)
class Patience:
    """What a caller is willing to wait. Each call has all of it for itself."""

    deadline_s: float = 60.0
    """Of a whole call with all its attempts; what is left of it goes along as ``X-Request-Timeout-Ms``."""
    attempt_s: float = 30.0
    """Of one attempt, so that a gateway that hangs does not use up the deadline."""
    retry_for_s: float | None = None
    """No attempt begins later than this after the first failure; None: until the deadline."""
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0


class Trial:
    """The clock of one call, from its creation."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._ends_s = time.monotonic() + patience.deadline_s
        self._failing_since_s: float | None = None
        self._failures = 0

    def attempt_s(self) -> float:
        """Time that the next attempt may take."""
        return max(0.001, min(self._patience.attempt_s, self._ends_s - time.monotonic()))

    def pause_s(self, retry_after_s: float | None) -> float | None:
        """Note a failure. Time until the next attempt; None if it would come too late."""
        now = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now
        growing = min(self._patience.longest_pause_s, self._patience.first_pause_s * 2 ** min(self._failures, _DOUBLED))
        self._failures += 1
        pause = (retry_after_s or 0.0) + growing * (0.5 + random.random() / 2)  # noqa: S311 - no secret
        last = self._ends_s
        if self._patience.retry_for_s is not None:
            last = min(last, self._failing_since_s + self._patience.retry_for_s)
        return pause if now + pause < last else None
