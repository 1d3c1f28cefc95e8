"""What a comparison found, as a table for people; and where it was found."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

TINY_NOTE = "toy sizes, to see that it runs: these figures say nothing about speed"


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """The date and the machine, with its GPU if that is what was measured."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": models[0].partition(": ")[2] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **({} if device is None else {"device": _device(device)}),
    }


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"kind": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {
        "kind": "cuda",
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def table_of(result: dict[str, Any]) -> Table:
    """One workload: medians over the rounds."""
    work = result["workload"]
    table = Table(title=f"({work['key']}) {work['what']}; {work['connections']} connections")
    bare = ", ".join(f"{precision} {rate:g}" for precision, rate in result["bare_model_images_per_s"].items())
    ratios = "; ".join(f"{name}: {value:g}" for name, value in result["ratios"].items())
    table.caption = f"the bare model: {bare} images/s. Ratios of requests/s: {ratios}"
    for row in result["rows"]:
        if at_peers := row["at_best_peers_rate"]:
            rate, p99 = at_peers["requests_per_s"], at_peers["p99_ms"]
            table.caption += f". {row['name']} at {rate:g} requests/s, 70 % of the best peer's: p99 {p99:g} ms"
    table.add_column("server", no_wrap=True)
    for title in ("requests/s", "images/s", "p50 ms", "p99 ms", "p99 at 70 %", "CPU ms/image", "peak MiB", "failed"):
        table.add_column(title, justify="right")
    for row in result["rows"]:
        rate = statistics.median(row["requests_per_s"])
        cpu = statistics.median(sum(spent.values()) for spent in row["cpu_ms_per_image"])
        at_70 = row["at_70_percent"].get("p99_ms")
        table.add_row(
            row["name"],
            f"{rate:.1f}",
            f"{rate * work['pictures_a_request']:.1f}",
            f"{statistics.median(row['p50_ms']):.1f}",
            f"{statistics.median(row['p99_ms']):.1f}",
            "" if at_70 is None else f"{at_70:.1f}",
            f"{cpu:.2f}",
            f"{row['peak_mib']:.0f}",
            str(row["failed"] + int(row["at_70_percent"].get("failed", 0))),
        )
    return table
