"""The paper's table on this machine's GPU, in one run: networks, ablation, serving program, roofline, profile.

Run it by ``tresnet bench gpu-models`` or ``make bench-gpu``. ``--tiny`` runs all of it on a CPU at toy sizes, to see
that it runs; its figures say nothing, and its result says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_networks import Figures, Setting, measure_networks, profile_networks
from benchmarks.networks import M, as_if_trained, chosen, gpu_networks, miniature
from benchmarks.programs import REFERENCE, FormFigures, forms, measure_programs
from benchmarks.progress import Progress
from benchmarks.roofline import Roof, measure_roof
from benchmarks.serving.report import TINY_NOTE, machine
from export.program import DTYPES
from tresnet.checkpoint import build_model, load_checkpoint
from tresnet.fused import kernels_work
from tresnet.inplace_abn import norm_class
from tresnet.model import TResNet
from tresnet.terms import PRECISIONS, Norm, Precision

PAPER = {"inference": 2930 / 2830, "training": 730 / 805, "largest_train_batch": 512 / 288}
"""TResNet-M's figures over ResNet50's in the paper, on a V100 of 16 GB."""
TARGETS = {"inference": 1.04, "training": 0.91, "largest_train_batch": 1.78}
PROGRAM_TARGET = 1.5
"""Of eager float32's throughput, in a form whose scores are near enough to it."""
MOST_SCORE_DISTANCE = 5e-3
LEAST_AGREEMENT = 0.995
PACKAGE = "package's InPlace-ABN"


@dataclass(frozen=True)
class Options:
    """What is measured, and how long."""

    device: torch.device
    networks: list[str] | None = None
    programs: list[str] | None = None
    precisions: tuple[Precision, ...] = PRECISIONS
    precision: Precision = "fp16"
    """Of autocast, for the networks."""
    norm: Norm = "own"
    image_size: int = 224
    batch_limit: int = 8192
    serving_batch: int = 64
    rounds: int = 3
    seconds: float = 2.0
    memory_gib: float | None = None
    """Of the networks, to compare with a smaller card."""
    deadline_s: float | None = None
    checkpoint: Path | None = None
    profile: tuple[str, ...] = ()
    tiny: bool = False

    def made_tiny(self) -> Options:
        """The same at toy sizes, for a CPU."""
        return replace(self, image_size=32, batch_limit=2, serving_batch=2, rounds=1, seconds=0.01, tiny=True)


def run_gpu_models(
    options: Options, tell: Callable[[str], None], say: Callable[[str], None], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Measure; the figures as plain values. ``keep`` gets those that there are, after each piece.

    Raises:
        KeyError: for a network or a form of the program that is none.
        CheckpointError: if the checkpoint given cannot be read.
    """
    device = options.device
    makers = chosen(gpu_networks(options.norm, tiny=options.tiny), options.networks)
    profiled = chosen(makers, list(options.profile))
    wanted = [
        (form, precision) for form in chosen(forms(), options.programs).values() for precision in options.precisions
    ]
    network = _serving_network(options) if wanted else None
    skipped = {}
    if PACKAGE in makers and (why := _why_no_package()) is not None:
        skipped[PACKAGE] = why
        del makers[PACKAGE]
        profiled.pop(PACKAGE, None)
    setting = Setting(
        device,
        DTYPES[options.precision],
        options.image_size,
        options.batch_limit,
        options.rounds,
        options.seconds,
        warm_up=1 if options.tiny else 3,
    )
    has_kernels = device.type == "cuda" and kernels_work()
    roofs: dict[str, Roof] = {}
    rows: list[Figures] = []
    programs: list[FormFigures] = []
    profile: list[dict[str, Any]] = []

    def content(*, finished: bool = False) -> dict[str, Any]:
        found, factors = ratios(rows), program_ratios(programs)
        return {
            "what": "TResNet beside its peers in mixed precision, channels last",
            **({"tiny": TINY_NOTE} if options.tiny else {}),
            **machine(device),
            "finished": finished,
            "setting": {
                "autocast": options.precision, "norm": options.norm, "image_size": options.image_size,
                "batch_limit": options.batch_limit, "serving_batch": options.serving_batch, "rounds": options.rounds,
                "seconds": options.seconds, "fused_kernels": has_kernels,
                "memory_gib": options.memory_gib, "deadline_s": options.deadline_s,
                "serving_weights": str(options.checkpoint or "") or "random, with the statistics that belong to them",
            },
            "roof": {precision: asdict(roof) for precision, roof in roofs.items()},
            "networks": [asdict(own) for own in rows],
            "skipped": skipped,
            "ratios": found,
            "serving_program": [asdict(own) for own in programs],
            "serving_program_ratios": factors,
            "targets": [
                *(target(what, own["measured"], TARGETS[what]) for what, own in found.items()),
                *_program_target(programs, factors),
            ],
            "profile": profile,
        }  # fmt: skip

    progress = Progress(tell, say, lambda: keep(content()), options.deadline_s)
    progress.keep()
    tell("the device's matrix rate and bandwidth")
    for precision in dict.fromkeys((options.precision, *options.precisions)):
        roofs[precision] = measure_roof(device, DTYPES[precision], seconds=options.seconds)
    with _memory_of(device, options.memory_gib):
        measure_networks(makers, setting, roofs[options.precision], rows, progress)
    if network is not None:
        measure_programs(
            network,
            wanted=wanted,
            image_size=options.image_size,
            batch_size=options.serving_batch,
            rounds=options.rounds,
            seconds=options.seconds,
            device=device,
            found=programs,
            progress=progress,
        )
    with _memory_of(device, options.memory_gib):
        profile_networks(profiled, rows, setting, profile, progress)
    return content(finished=True)


@contextmanager
def _memory_of(device: torch.device, gib: float | None) -> Iterator[None]:
    """No more than ``gib`` of a GPU's memory for so long; a CPU's is not searched."""
    if gib is None or device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def target(what: str, measured: float, at_least: float) -> dict[str, Any]:
    """A figure that has to be reached, and whether it was."""
    return {"what": what, "measured": measured, "at_least": at_least, "met": measured >= at_least}


def ratios(rows: list[Figures], ours: str = "TResNet-M", theirs: str = "ResNet50") -> dict[str, dict[str, float]]:
    """Ours over theirs, the median of the ratios within a round, beside the paper's; of what was measured."""
    by_name = {own.network: own for own in rows if own.failed is None and own.train_images_per_s}
    if ours not in by_name or theirs not in by_name:
        return {}
    a, b = by_name[ours], by_name[theirs]

    def within(x: list[float], y: list[float]) -> float:
        return statistics.median(p / q for p, q in zip(x, y, strict=False))  # one may be a round ahead

    measured = {
        "inference": within(a.infer_images_per_s, b.infer_images_per_s),
        "training": within(a.train_images_per_s, b.train_images_per_s),
    }
    if not (a.limited or b.limited):
        measured["largest_train_batch"] = a.largest_train_batch / b.largest_train_batch
    return {what: {"measured": round(value, 3), "paper": round(PAPER[what], 3)} for what, value in measured.items()}


def program_ratios(rows: list[FormFigures]) -> dict[str, float]:
    """Each form's throughput over eager float32's, if that was measured."""
    rates = {own.form: own.images_per_s for own in rows if own.images_per_s}
    reference = rates.get(REFERENCE)
    return {form: round(rate / reference, 3) for form, rate in rates.items()} if reference else {}


def _program_target(rows: list[FormFigures], factors: dict[str, float]) -> Iterator[dict[str, Any]]:
    """The fastest form whose scores are near enough, against its target."""
    near = [
        own.form
        for own in rows
        if own.form in factors
        and (own.max_score_distance or 0.0) <= MOST_SCORE_DISTANCE
        and (own.top1_agreement or 0.0) >= LEAST_AGREEMENT
    ]
    if near:
        best = max(near, key=lambda form: factors[form])
        yield target(f"{best}, of the forms whose scores are near enough", factors[best], PROGRAM_TARGET)


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
