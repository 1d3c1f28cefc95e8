"""The paper's table on this machine's GPU, in one run: networks, ablation, serving program, roofline, profile.

Run it by ``tresnet bench gpu-models`` or ``make bench-gpu``. ``--tiny`` runs all of it on a CPU at toy sizes, to see
that it runs; its figures say nothing, and its result says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.gpu_networks import Figures, Setting, as_plain, measure_networks, profile_networks
from benchmarks.networks import M, as_if_trained, chosen, gpu_networks, miniature
from benchmarks.programs import REFERENCE, forms, measure_programs
from benchmarks.roofline import measure_roof
from benchmarks.serving.report import TINY_NOTE, machine
from export.program import DTYPES
from tresnet.checkpoint import build_model, load_checkpoint
from tresnet.inplace_abn import Norm, norm_class
from tresnet.model import TResNet
from tresnet.terms import Precision

GOALS = {"inference": 2930 / 2830, "training": 730 / 805, "largest_train_batch": 512 / 288}
"""TResNet-M's figures over ResNet50's in the paper, on a V100 of 16 GB."""
PROGRAM_GOAL = 1.5
PACKAGE = "package's InPlace-ABN"


@dataclass(frozen=True)
class Options:
    """What is measured, and how long."""

    device: torch.device
    networks: list[str] | None = None
    programs: list[str] | None = None
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Of autocast, for the networks."""
    norm: Norm = "own"
    image_size: int = 224
    batch_limit: int = 2048
    serving_batch: int = 64
    rounds: int = 3
    seconds: float = 2.0
    memory_gib: float | None = None
    checkpoint: Path | None = None
    profile: tuple[str, ...] = ()
    tiny: bool = False

    def made_tiny(self) -> Options:
        """The same at toy sizes, for a CPU."""
        return replace(self, image_size=32, batch_limit=2, serving_batch=2, rounds=1, seconds=0.01, tiny=True)


def run_gpu_models(options: Options, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure; the figures as plain values.

    Raises:
        KeyError: for a network or a form of the program that is none.
        ImportError: if timm is not installed and one of its networks is asked for.
        CheckpointError: if the checkpoint given cannot be read.
    """
    device = options.device
    if options.memory_gib is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory_gib * 2**30 / total), device)
    makers = chosen(gpu_networks(options.norm, tiny=options.tiny), options.networks)
    skipped = {}
    if PACKAGE in makers and (why := _why_no_package()) is not None:
        skipped[PACKAGE] = why
        del makers[PACKAGE]
    setting = Setting(
        device,
        DTYPES[options.precision],
        options.image_size,
        options.batch_limit,
        options.rounds,
        options.seconds,
        warm_up=1 if options.tiny else 3,
    )
    profiled = chosen(makers, list(options.profile))
    tell("the device's matrix rate and bandwidth")
    roofs = {
        precision: measure_roof(device, DTYPES[precision], seconds=options.seconds)
        for precision in dict.fromkeys((options.precision, *options.precisions))
    }
    rows = measure_networks(makers, setting, roofs[options.precision], tell)
    network = _serving_network(options)
    programs = measure_programs(
        network,
        names=list(forms()) if options.programs is None else options.programs,
        precisions=list(options.precisions),
        image_size=options.image_size,
        batch_size=options.serving_batch,
        rounds=options.rounds,
        seconds=options.seconds,
        device=device,
        tell=tell,
    )
    tell("profiling")
    return {
        "what": "TResNet beside its peers in mixed precision, channels last",
        **({"tiny": TINY_NOTE} if options.tiny else {}),
        **machine(device),
        "setting": {
            "autocast": options.precision, "norm": options.norm, "image_size": options.image_size,
            "batch_limit": options.batch_limit, "serving_batch": options.serving_batch, "rounds": options.rounds,
            "seconds": options.seconds, "memory_gib": options.memory_gib,
            "serving_weights": str(options.checkpoint or "") or "random, with the statistics that belong to them",
        },
        "roof": {precision: asdict(roof) for precision, roof in roofs.items()},
        "networks": as_plain(rows),
        "skipped": skipped,
        "ratios": ratios(rows),
        "serving_program": programs,
        "serving_program_ratios": program_ratios(programs),
        "profile": profile_networks(profiled, rows, setting),
    }  # fmt: skip


def ratios(rows: list[Figures], ours: str = "TResNet-M", theirs: str = "ResNet50") -> dict[str, dict[str, float]]:
    """Ours over theirs, the median of the ratios within a round, beside the paper's."""
    by_name = {own.network: own for own in rows}
    if ours not in by_name or theirs not in by_name:
        return {}
    a, b = by_name[ours], by_name[theirs]

    def within(x: list[float], y: list[float]) -> float:
        return statistics.median(p / q for p, q in zip(x, y, strict=True))

    measured = {
        "inference": within(a.infer_images_per_s, b.infer_images_per_s),
        "training": within(a.train_images_per_s, b.train_images_per_s),
        "largest_train_batch": a.largest_train_batch / b.largest_train_batch,
    }
    return {what: {"measured": round(value, 3), "paper": round(GOALS[what], 3)} for what, value in measured.items()}


def program_ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Each form's throughput over eager float32's, if that was measured."""
    rates = {row["form"]: row["images_per_s"] for row in rows if row["images_per_s"]}
    reference = rates.get(REFERENCE)
    return {form: round(rate / reference, 3) for form, rate in rates.items()} if reference else {}


def _serving_network(options: Options) -> TResNet:
    if options.checkpoint is not None:
        return build_model(load_checkpoint(options.checkpoint, task="classify"))
    return as_if_trained(miniature(M) if options.tiny else M, options.image_size)


def _why_no_package() -> str | None:
    try:
        norm_class("package")
    except ImportError as error:
        return f"{error}: run `make inplace-abn`"
    return None
