"""A long measurement in pieces: what is under way, how long each took, and what was found so far, kept after each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.timing import free_memory

DEADLINE = "not begun: the deadline had passed"


@dataclass
class Progress:
    """``tell`` is given what is under way, ``say`` a line for each piece that ended; ``keep`` keeps the figures."""

    tell: Callable[[str], None]
    say: Callable[[str], None]
    keep: Callable[[], None]
    deadline_s: float | None = None
    """Nothing is begun later; what is under way then ends."""
    started: float = field(default_factory=time.monotonic)

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline_s is not None and time.monotonic() - self.started > self.deadline_s

    def attempt(self, name: str, work: Callable[[], None]) -> str | None:
        """Do a piece; None, or why it was not done: what fails, or is not begun, is a part of the result."""
        if self.is_over():
            return DEADLINE
        self.tell(name)
        began, failed = time.monotonic(), None
        try:
            work()
        except Exception as error:  # of a compiler, a driver, a package: no list of them is complete
            failed = first_line(error)
        free_memory()  # out here, where the error no longer holds what its frames held
        self.say(f"{name}: {time.monotonic() - began:.1f} s" + (f", failed: {failed}" if failed else ""))
        return failed


def first_line(error: Exception) -> str:
    """What an error says, for a table."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]
