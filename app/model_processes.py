"""The processes in which the bundled Triton runs models, one for each instance of each version, as ``/proc`` tells."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_AWAKE = "RD"
"""States of a main thread that computes, waits for a core, or waits for a disk."""
_IDLE_TICKS = 1
"""Processor time that idle processes may use from one look to the next."""


@dataclass(frozen=True)
class ModelProcess:
    """One process at one look."""

    pid: int
    model: str
    version: int
    state: str
    """Of its main thread, by the kernel's letter."""
    cpu_ticks: int
    """Processor time used so far, by all its threads, in the kernel's ticks, mostly hundredths of a second."""


def model_processes(server: int) -> list[ModelProcess]:
    """Those of the Triton server with process id ``server``."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError, IndexError, ValueError):  # it has ended meanwhile, or is something else
            state, parent, *facts = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(parent) == server:
                program = Path((folder / "cmdline").read_text().split("\0")[1])  # …/MODEL/VERSION/model.py
                ticks = int(facts[9]) + int(facts[10])  # utime and stime
                found.append(ModelProcess(int(folder.name), program.parts[-3], int(program.parts[-2]), state, ticks))
    return found


class IdleStart:
    """Whether a load hangs: at how many looks in a row all of the processes that it has started did nothing."""

    def __init__(self, before: Collection[ModelProcess]) -> None:
        """``before``: what ran when the load began, and may idle for as long as it likes."""
        self._before = {process.pid for process in before}
        self._ticks = 0
        self.looks = 0

    def look(self, running: Collection[ModelProcess]) -> list[ModelProcess]:
        """Look again, at all processes of that model; the answer is those that the load has started."""
        started = [process for process in running if process.pid not in self._before]
        ticks_before, self._ticks = self._ticks, sum(process.cpu_ticks for process in started)
        is_busy = any(process.state in _AWAKE for process in started) or abs(self._ticks - ticks_before) > _IDLE_TICKS
        self.looks = 0 if is_busy or not started else self.looks + 1
        return started
