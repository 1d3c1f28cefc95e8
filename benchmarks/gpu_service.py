"""The whole service on this machine's GPU: JPEG bytes over HTTP, through the bundled Triton, to labels.

Run it by ``tresnet bench gpu-service`` or ``make bench-gpu``. Every number of gateway workers is measured at every
number of connections, beside what the serving program does alone with the same card, and what decoding costs: so the
result names the bound that holds, be it the card or the cores.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_decode import decode_on_cpu, decode_on_gpu
from benchmarks.serving.compare import WORK
from benchmarks.serving.contestants import CONTESTANTS, OURS, Running, start
from benchmarks.serving.load import closed_loop
from benchmarks.serving.models import bare_images_per_s, build_model
from benchmarks.serving.pictures import SIZES, write_picture
from benchmarks.serving.report import TINY_NOTE, machine
from tresnet.errors import UserError
from tresnet.picture import Preprocessing
from tresnet.terms import Precision


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
    tiny: bool = False

    def made_tiny(self) -> Options:
        """One convolution at 32 px, one worker, four connections, for a second."""
        return replace(
            self, model="one_convolution", precision="fp32", image_size=32, max_batch_size=4, workers=(1,),
            connections=(4,), seconds=1.0, tiny=True,
        )  # fmt: skip


def run_gpu_service(options: Options, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure; the figures as plain values.

    Raises:
        UserError: without wrk, which makes the load.
        RuntimeError: if the service does not start.
    """
    if shutil.which("wrk", path="/usr/bin:/bin") is None:
        raise UserError("this measurement needs wrk: apt-get install wrk")
    name = f"gpu-{options.model}-{options.image_size}-{options.precision}-{options.max_batch_size}"
    model = build_model(
        options.model, options.image_size, options.precision, WORK / name, max_batch_size=options.max_batch_size
    )
    picture = write_picture(options.picture, WORK / "pictures")
    tell("the bare program")
    bare = bare_images_per_s(model, options.image_size, options.max_batch_size, options.seconds, device=options.device)
    tell("decoding")
    how = Preprocessing(image_size=options.image_size, crop_pct=0.875)
    content = {
        "what": "JPEG bytes over HTTP through the gateway and the bundled Triton, beside the bare serving program",
        **({"tiny": TINY_NOTE} if options.tiny else {}),
        **machine(options.device),
        "model": f"{options.model} at {options.image_size} px, {options.precision}",
        "picture": "{}x{} JPEG".format(*SIZES[options.picture]),
        "batch": options.max_batch_size,
        "seconds": options.seconds,
        "bare_images_per_s": round(bare, 1),
        "decode_on_cpu": decode_on_cpu(picture.read_bytes(), how, seconds=options.seconds),
        "decode_on_gpu": decode_on_gpu(
            picture.read_bytes(), options.image_size, options.device,
            batch_size=options.max_batch_size, seconds=options.seconds,
        ),
    }  # fmt: skip
    rows = []
    for workers in options.workers:
        contestant = replace(CONTESTANTS[OURS], command=(*CONTESTANTS[OURS].command, "--workers", str(workers)))
        tell(f"starting {workers} workers")
        running = start(contestant, model, options.image_size, picture, "image/jpeg", "/classify")
        try:
            for connections in options.connections:
                tell(f"{workers} workers, {connections} connections")
                load = _measure(running, picture, connections, options.seconds)
                rows.append({"workers": workers, "connections": connections, **load})
        finally:
            running.stop()
    for row in rows:
        row["cores_to_feed"] = round(bare * sum(row["cpu_ms_per_image"].values()) / 1e3, 2)
    best = max(rows, key=lambda row: row["images_per_s"])
    return content | {"rows": rows, "best": _best(best, bare, content["cores"])}


def _measure(running: Running, picture: Path, connections: int, seconds: float) -> dict[str, Any]:
    closed_loop(running.url, picture, "image/jpeg", connections, max(1.0, seconds / 4))
    before = running.cpu_seconds()
    load = closed_loop(running.url, picture, "image/jpeg", connections, seconds)
    spent = running.cpu_seconds()
    images = max(1, load.requests - load.failed)
    return {
        "images_per_s": load.requests_per_s,
        "p50_ms": load.p50_ms,
        "p99_ms": load.p99_ms,
        "failed": load.failed,
        "cpu_ms_per_image": {
            kind: round(1e3 * (spent[kind] - before.get(kind, 0.0)) / images, 3) for kind in sorted(spent)
        },
    }


def _best(row: dict[str, Any], bare: float, cores: int) -> dict[str, Any]:
    """The best row against its bounds: the card alone, and the cores with the CPU time that a picture took.

    The load generator shares these cores, so the cores' bound is one that cannot quite be reached.
    """
    of_cores = cores * 1e3 / max(1e-9, sum(row["cpu_ms_per_image"].values()))
    return {
        "images_per_s": row["images_per_s"],
        "of_bare_program": round(row["images_per_s"] / bare, 4),
        "bound_by_card_images_per_s": round(bare, 1),
        "bound_by_cores_images_per_s": round(of_cores, 1),
        "bound": "card" if bare < of_cores else "cores",
    }
