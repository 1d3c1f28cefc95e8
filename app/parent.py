"""Processes that do not outlive the one that started them, however that one ended."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process ``number`` once its parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
