"""How many cores this process may use: its affinity, and the quota of the container around it."""

from __future__ import annotations

import math
import os
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""``QUOTA PERIOD`` in microseconds, or ``max PERIOD``; cgroup v2 shows it inside a container."""


def usable_cores() -> int:
    """At least 1; a quota of a part of a core counts as a whole one."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_MAX.read_text().split()
    except (OSError, ValueError):  # no container, or cgroup v1
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
