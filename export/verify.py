"""A program is published only if its scores agree with the eager network's, at batch 1 and at the maximum.

The program runs on the device that it is for, and the eager network, in float32, on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export.program import MappingProgram, ServingProgram
from export.program_file import load_program
from tresnet.contract import HeatMaps
from tresnet.errors import UserError
from tresnet.terms import Precision

TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2}
"""The largest allowed distance between two scores in 0..1."""
GPU_FP32_TOLERANCE = 5e-3
"""Of float32 on a GPU, whose matrix units round their inputs to TF32's ten bits."""
LEAST_AGREEMENT = 0.995
"""Of the pictures whose best label leads by more than the tolerance, the share that must keep it."""


class VerificationError(UserError):
    """The exported program does not answer as the network does; nothing was published."""


@dataclass(frozen=True)
class Verified:
    """What was measured, and where: the largest score distance, and the share of pictures whose best label agrees."""

    max_distance: float
    top1_agreement: float
    batch_sizes: tuple[int, ...]
    device: str


@torch.inference_mode()
def verify_program(
    path: Path,
    eager: ServingProgram | MappingProgram,
    image_size: int,
    max_batch_size: int,
    precision: Precision,
    device: torch.device,
) -> Verified:
    """Compare the saved program with the eager one on pictures of smooth noise, which excite all channels.

    Raises:
        VerificationError: if any output is not finite, a score, or a heat map beside its largest value, is further off
            than the tolerance, or best labels change that should not.
    """
    program = load_program(path, device)
    tolerance = max(TOLERANCE[precision], GPU_FP32_TOLERANCE if device.type == "cuda" else 0.0)
    batch_sizes = tuple(sorted({1, max_batch_size}))
    distance, wanted, got = 0.0, [], []
    for batch_size in batch_sizes:
        pictures = noise_pictures(batch_size, image_size)
        features = eager.feature_map(pictures)
        expected, _ = eager.read(features)
        for _ in range(2):  # the second run is the one that TorchScript has optimised
            outputs = [output.cpu() for output in program(pictures.to(device))]
            if not all(output.isfinite().all() for output in outputs):
                raise VerificationError(
                    f"the {precision} program gives infinite or undefined values at batch {batch_size}"
                )
            scores = outputs[0]
            distance = max(distance, (scores - expected).abs().max().item())
            if isinstance(eager, MappingProgram):
                _check_heat_maps(outputs[2], eager.heat_maps(features, outputs[3]), precision, tolerance)
        wanted.append(expected)
        got.append(scores)
    if distance > tolerance:
        raise VerificationError(
            f"the {precision} program's scores are up to {distance:.2g} away from the network's; "
            f"at most {tolerance:g} is allowed"
        )
    agreement, of_clear = top1_agreement(torch.cat(wanted), torch.cat(got), tolerance)
    if of_clear < LEAST_AGREEMENT:
        raise VerificationError(
            f"the {precision} program's best label differs from the network's for {1 - of_clear:.1%} of the pictures "
            f"in which it leads by more than {tolerance:g}; at most {1 - LEAST_AGREEMENT:.1%} is allowed"
        )
    return Verified(distance, agreement, batch_sizes, device.type)


def _check_heat_maps(maps: Tensor, expected: Tensor, precision: Precision, tolerance: float) -> None:
    distance = ((maps - expected).abs().max() / expected.abs().max()).item()
    if not distance <= tolerance:
        raise VerificationError(
            f"the {precision} program's heat maps are off by up to {distance:.2g} of their largest value; "
            f"at most {tolerance:g} is allowed"
        )


@torch.inference_mode()
def heat_maps_of(program: ServingProgram | MappingProgram, image_size: int) -> HeatMaps | None:
    """The form of the heat maps that ``program`` gives for pictures of ``image_size``, as it gives them."""
    if not isinstance(program, MappingProgram):
        return None
    labels, height, width = program(noise_pictures(1, image_size))[2].shape[1:]
    return HeatMaps(labels=labels, height=height, width=width)


def top1_agreement(wanted: Tensor, got: Tensor, margin: float) -> tuple[float, float]:
    """The share of rows with the same best label: of all, and of those in which it leads by more than ``margin``."""
    same = wanted.argmax(1) == got.argmax(1)
    if wanted.shape[1] == 1:
        return 1.0, 1.0
    best = wanted.topk(2, dim=1).values
    clear = same[best[:, 0] - best[:, 1] > margin]
    return same.float().mean().item(), clear.float().mean().item() if len(clear) else 1.0


def noise_pictures(batch_size: int, image_size: int) -> Tensor:
    """``uint8 [N, S, S, 3]``: noise at several scales, different in each picture."""
    generator = torch.Generator().manual_seed(batch_size)
    picture = torch.zeros(batch_size, 3, image_size, image_size)
    for cells in (3, 8, image_size):
        noise = torch.rand(batch_size, 3, cells, cells, generator=generator)
        picture += torch.nn.functional.interpolate(noise, size=(image_size, image_size), mode="bilinear")
    return (picture / 3 * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
