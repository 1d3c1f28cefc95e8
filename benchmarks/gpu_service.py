"""The whole service on this machine's GPU: JPEG bytes over HTTP, through the bundled Triton, to labels.

Run it by ``tresnet bench gpu-service`` or ``make bench-gpu``. Every number of gateway workers is measured at every
number of connections, beside what the serving program does alone with the same card, and what decoding costs: so the
result names the bound that holds, be it the card, the program with its copies, or the cores.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.gpu_decode import decode_on_cpu, decode_on_gpu
from benchmarks.gpu_models import target
from benchmarks.progress import Progress
from benchmarks.serving.compare import WORK
from benchmarks.serving.contestants import CONTESTANTS, OURS, Running, start
from benchmarks.serving.load import closed_loop
from benchmarks.serving.models import bare_images_per_s, build_model
from benchmarks.serving.pictures import SIZES, write_picture
from benchmarks.serving.report import TINY_NOTE, machine
from tresnet.errors import UserError
from tresnet.picture import Preprocessing
from tresnet.terms import Precision

HTTP_TARGET = 0.8
"""Of the bare serving program's rate."""


@dataclass(frozen=True)
class Options:
    """What is asked of the service, and how long."""

    device: torch.device
    model: str = "tresnet_m"
    precision: Precision = "fp16"
    image_size: int = 224
    picture: str = "photo"
    max_batch_size: int = 64
    workers: tuple[int, ...] = (1, 4, 8)
    connections: tuple[int, ...] = (16, 64, 256)
    seconds: float = 8.0
    deadline_s: float | None = None
    tiny: bool = False

    def made_tiny(self) -> Options:
        """One convolution at 32 px, one worker, four connections, for a second."""
        return replace(
            self, model="one_convolution", precision="fp32", image_size=32, max_batch_size=4, workers=(1,),
            connections=(4,), seconds=1.0, tiny=True,
        )  # fmt: skip


def run_gpu_service(
    options: Options, tell: Callable[[str], None], say: Callable[[str], None], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Measure; the figures as plain values. ``keep`` gets those that there are, after each piece.

    Raises:
        UserError: without wrk, which makes the load.
        RuntimeError: if nothing could be measured at all.
    """
    if shutil.which("wrk", path="/usr/bin:/bin") is None:
        raise UserError("this measurement needs wrk: apt-get install wrk")
    device, size = options.device, options.image_size
    name = f"gpu-{options.model}-{size}-{options.precision}-{options.max_batch_size}"
    model = build_model(options.model, size, options.precision, WORK / name, max_batch_size=options.max_batch_size)
    picture = write_picture(options.picture, WORK / "pictures")
    tell("the bare program, and decoding")
    bare = bare_images_per_s(model, size, options.max_batch_size, options.seconds, device=device)
    how = Preprocessing(image_size=size, crop_pct=0.875)
    rows: list[dict[str, Any]] = []
    not_measured: list[str] = []
    content: dict[str, Any] = {
        "what": "JPEG bytes over HTTP through the gateway and the bundled Triton, beside the bare serving program",
        **({"tiny": TINY_NOTE} if options.tiny else {}),
        **machine(device),
        "finished": False,
        "model": f"{options.model} at {size} px, {options.precision}",
        "picture": "{}x{} JPEG".format(*SIZES[options.picture]),
        "batch": options.max_batch_size,
        "seconds": options.seconds,
        "deadline_s": options.deadline_s,
        "bare_images_per_s": round(bare, 1),
        "decode_on_cpu": decode_on_cpu(picture.read_bytes(), how, seconds=options.seconds),
        "decode_on_gpu": decode_on_gpu(
            picture.read_bytes(), size, device, batch_size=options.max_batch_size, seconds=options.seconds
        ),
        "rows": rows,
        "not_measured": not_measured,
        "targets": [],
    }  # fmt: skip
    progress = Progress(tell, say, lambda: keep(content), options.deadline_s)
    progress.keep()

    def measure_with(workers: int) -> None:
        contestant = replace(CONTESTANTS[OURS], command=(*CONTESTANTS[OURS].command, "--workers", str(workers)))
        free = _free_mib(device)
        running = start(contestant, model, size, picture, "image/jpeg", "/classify")
        try:
            taken = None if free is None else free - (_free_mib(device) or 0)
            for connections in options.connections:
                row: dict[str, Any] = {"workers": workers, "connections": connections, "gpu_mib": taken}
                name = f"{workers} workers, {connections} connections"
                if (why := progress.attempt(name, partial(_measure, row, running, picture, options))) is not None:
                    not_measured.append(f"{name}: {why}")
                    continue
                row["cores_to_feed"] = round(bare * sum(row["cpu_ms_per_image"].values()) / 1e3, 2)
                rows.append(row)
                progress.keep()
        finally:
            running.stop()

    for workers in options.workers:
        if (why := progress.attempt(f"{workers} workers", partial(measure_with, workers))) is not None:
            not_measured.append(f"{workers} workers: {why}")
            progress.keep()
    if not rows:
        raise RuntimeError(f"nothing was measured: {'; '.join(not_measured)}")
    best = max(rows, key=lambda row: row["images_per_s"])
    seen = max(1, min(options.max_batch_size, round(best["batch_seen"] or 1)))
    tell("the program with its copies")
    copied = bare_images_per_s(model, size, seen, options.seconds, device=device, copies=True)
    content["best"] = _best(best, bare, copied, seen, content["cores"])
    content["targets"] = [target("HTTP of the bare program's rate", content["best"]["of_bare_program"], HTTP_TARGET)]
    content["finished"] = True
    return content


def _free_mib(device: torch.device) -> float | None:
    """Of the GPU's memory: what the service takes of it shows that its model is there."""
    return round(torch.cuda.mem_get_info(device)[0] / 2**20) if device.type == "cuda" else None


def _measure(row: dict[str, Any], running: Running, picture: Path, options: Options) -> None:
    """Into ``row``."""
    closed_loop(running.url, picture, "image/jpeg", row["connections"], max(1.0, options.seconds / 4))
    before, sent = running.cpu_seconds(), _batches(running)
    load = closed_loop(running.url, picture, "image/jpeg", row["connections"], options.seconds)
    spent, then = running.cpu_seconds(), _batches(running)
    images = max(1, load.requests - load.failed)
    pictures, batches = then[0] - sent[0], then[1] - sent[1]
    row |= {
        "images_per_s": load.requests_per_s,
        "p50_ms": load.p50_ms,
        "p99_ms": load.p99_ms,
        "failed": load.failed,
        "batch_seen": round(pictures / batches, 2) if batches > 0 else None,
        "cpu_ms_per_image": {
            kind: round(1e3 * (spent[kind] - before.get(kind, 0.0)) / images, 3) for kind in sorted(spent)
        },
    }


def _batches(running: Running) -> tuple[float, float]:
    """Pictures and batches that went to Triton so far, by the gateway's own count."""
    text = httpx.get(running.url.rpartition("/")[0] + "/metrics", timeout=30).text
    found = dict.fromkeys(("sum", "count"), 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name == "tresnet_batch_size" else ():
            kind = sample.name.rpartition("_")[2]
            if kind in found:
                found[kind] += sample.value
    return found["sum"], found["count"]


def _best(row: dict[str, Any], bare: float, copied: float, batch: int, cores: int) -> dict[str, Any]:
    """The best row against its bounds, and which of them is the least.

    The card alone; the program fed from CPU memory and read into it, one batch after another, as Triton's model does
    at the batch that was seen; and the cores with the CPU time that a picture took. The load generator shares these
    cores, so theirs is one that cannot quite be reached.
    """
    bounds = {
        "card": round(bare, 1),
        "serving program with its copies": round(copied, 1),
        "cores": round(cores * 1e3 / max(1e-9, sum(row["cpu_ms_per_image"].values())), 1),
    }
    return {
        "images_per_s": row["images_per_s"],
        "of_bare_program": round(row["images_per_s"] / bare, 4),
        "batch_seen": batch,
        "bounds_images_per_s": bounds,
        "bound": min(bounds, key=lambda name: bounds[name]),
    }
