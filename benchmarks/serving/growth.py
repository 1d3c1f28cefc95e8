"""Throughput of this project against concurrency and against workers: it must not fall once there is enough to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.serving.compare import WORKLOADS, model_file, request_body
from benchmarks.serving.contestants import CONTESTANTS, OURS, start
from benchmarks.serving.load import Load, closed_loop

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
WORKERS = (1, 2, 4)


def measure_growth(key: str, *, rounds: int, seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """Requests/s, latency and memory by workers and concurrency, for workload ``key``: medians over ``rounds``.

    Up and down in turns, so that a machine that grows slower meanwhile does not pass for a service that does.
    """
    work = WORKLOADS[key]
    rows = []
    for workers in WORKERS:
        contestant = replace(CONTESTANTS[OURS], command=(*CONTESTANTS[OURS].command, "--workers", str(workers)))
        body, content_type = request_body(work, contestant)
        running = start(contestant, model_file(work, "fp32"), work.image_size, body, content_type, "/classify")
        loads: dict[int, list[Load]] = {connections: [] for connections in CONCURRENCIES}
        resident: dict[int, int] = {}
        try:
            closed_loop(running.url, body, content_type, 16, seconds / 2)
            for turn in range(rounds):
                for connections in CONCURRENCIES[:: -1 if turn % 2 else 1]:
                    tell(f"{workers} workers, {connections} connections, round {turn + 1} of {rounds}")
                    loads[connections].append(closed_loop(running.url, body, content_type, connections, seconds))
                    resident[connections] = max(resident.get(connections, 0), running.resident_bytes())
        finally:
            running.stop()
        rows += [
            {
                "workers": workers,
                "connections": connections,
                "requests_per_s": median(load.requests_per_s for load in turns),
                "requests_per_s_by_turn": [load.requests_per_s for load in turns],
                "p50_ms": median(load.p50_ms for load in turns),
                "p99_ms": median(load.p99_ms for load in turns),
                "failed": sum(load.failed for load in turns),
                "resident_mib": round(resident[connections] / 2**20),
            }
            for connections, turns in loads.items()
        ]
    return {"workload": work.what, "cores": len(os.sched_getaffinity(0)), "rows": rows}


def draw_growth(content: dict[str, Any], path: Path) -> None:
    """Throughput and the slowest hundredth's latency as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for workers in WORKERS:
        rows = [row for row in content["rows"] if row["workers"] == workers]
        x = [row["connections"] for row in rows]
        label = "1 worker" if workers == 1 else f"{workers} workers"
        left.plot(x, [row["requests_per_s"] for row in rows], marker="o", label=label)
        right.plot(x, [row["p99_ms"] for row in rows], marker="o", label=label)
    left.set(title=f"requests/s, {content['cores']} cores", xlabel="connections", xscale="log", ylim=(0, None))
    right.set(title="p99, ms", xlabel="connections", xscale="log", yscale="log")
    left.legend()
    figure.savefig(path, dpi=110)
