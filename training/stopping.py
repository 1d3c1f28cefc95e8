"""Ctrl-C and SIGTERM: they reach every process of a run, and its main one answers them for all."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM that came; a second SIGINT stops at once."""
    came: list[int] = []

    def remember(number: int, _: Any) -> None:
        came.append(number)
        if came.count(signal.SIGINT) > 1:  # SIGTERM comes twice by itself: from the scheduler and from torchrun
            raise KeyboardInterrupt

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stops_held() -> Iterator[None]:
    """While processes are forked: one that comes meanwhile waits, in them until they know what to do with it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_stops_to_parent(_: int = 0) -> None:
    """For a process that loads pictures: the step under way still needs it, and its parent ends it, by SIGTERM too.

    Were that ignored, a parent that fails would wait for ever: Python's exit sends it and joins the process. A parent
    that is killed sends nothing; DataLoader's workers look for that every five seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
