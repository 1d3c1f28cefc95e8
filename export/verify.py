"""A program is published only if its scores agree with the eager network's, at batch 1 and at the maximum."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export.program import MappingProgram, ServingProgram
from tresnet.contract import HeatMaps, Precision
from tresnet.errors import UserError

TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""The largest allowed distance between two scores in 0..1."""


class VerificationError(UserError):
    """The exported program does not answer as the network does; nothing was published."""


@dataclass(frozen=True)
class Verified:
    """What was measured: the largest score distance, and the share of pictures whose best label agrees."""

    max_distance: float
    top1_agreement: float
    batch_sizes: tuple[int, ...]


def load_program(path: Path) -> torch.jit.ScriptModule:
    """The TorchScript program at ``path``, on the CPU, as Triton would load it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        program: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu").eval()
    return program


@torch.inference_mode()
def verify_program(
    path: Path, eager: ServingProgram | MappingProgram, image_size: int, max_batch_size: int, precision: Precision
) -> Verified:
    """Compare the saved program with the eager one on pictures of smooth noise, which excite all channels.

    Raises:
        VerificationError: if any output is not finite, or a score, or a heat map beside its largest value, is further
            off than ``TOLERANCE``.
    """
    program = load_program(path)
    distance, agreeing, total = 0.0, 0, 0
    batch_sizes = tuple(sorted({1, max_batch_size}))
    for batch_size in batch_sizes:
        pictures = _pictures(batch_size, image_size)
        features = eager.feature_map(pictures)
        expected, _ = eager.read(features)
        for _ in range(2):  # the second run is the one that TorchScript has optimised
            outputs = program(pictures)
            if not all(output.isfinite().all() for output in outputs):
                raise VerificationError(
                    f"the {precision} program gives infinite or undefined values at batch {batch_size}"
                )
            scores = outputs[0]
            distance = max(distance, (scores - expected).abs().max().item())
            if isinstance(eager, MappingProgram):
                _check_heat_maps(outputs[2], eager.heat_maps(features, outputs[3]), precision)
        agreeing += int((scores.argmax(1) == expected.argmax(1)).sum())
        total += batch_size
    if distance > TOLERANCE[precision]:
        raise VerificationError(
            f"the {precision} program's scores are up to {distance:.2g} away from the network's; "
            f"at most {TOLERANCE[precision]:g} is allowed"
        )
    return Verified(distance, agreeing / total, batch_sizes)


def _check_heat_maps(maps: Tensor, expected: Tensor, precision: Precision) -> None:
    distance = ((maps - expected).abs().max() / expected.abs().max()).item()
    if not distance <= TOLERANCE[precision]:
        raise VerificationError(
            f"the {precision} program's heat maps are off by up to {distance:.2g} of their largest value; "
            f"at most {TOLERANCE[precision]:g} is allowed"
        )


@torch.inference_mode()
def heat_maps_of(program: ServingProgram | MappingProgram, image_size: int) -> HeatMaps | None:
    """The form of the heat maps that ``program`` gives for pictures of ``image_size``, as it gives them."""
    if not isinstance(program, MappingProgram):
        return None
    labels, height, width = program(_pictures(1, image_size))[2].shape[1:]
    return HeatMaps(labels=labels, height=height, width=width)


def _pictures(batch_size: int, image_size: int) -> Tensor:
    """``uint8 [N, S, S, 3]``: noise at several scales, different in each picture."""
    generator = torch.Generator().manual_seed(batch_size)
    picture = torch.zeros(batch_size, 3, image_size, image_size)
    for cells in (3, 8, image_size):
        noise = torch.rand(batch_size, 3, cells, cells, generator=generator)
        picture += torch.nn.functional.interpolate(noise, size=(image_size, image_size), mode="bilinear")
    return (picture / 3 * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
