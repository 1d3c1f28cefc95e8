"""Pictures as training sees them: cropped, mirrored, recoloured and partly hidden, each by its own random numbers.

Which numbers, only the run's seed, the epoch and the picture's index decide; so neither the number of loading
processes nor an interruption changes them. RandAugment and AutoAugment are kornia's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.pictures import Pixels
from tresnet.picture import Preprocessing, prepare

Policy = Literal["none", "rand", "auto"]


class _RandomCrop(Preprocessing):
    """Preprocessing that takes one part of the picture, chosen by numbers drawn beforehand."""

    area: float
    """Share of the picture's area."""
    aspect: float
    """Width by height."""
    left: float
    top: float
    """Where the part lies, 0..1 of what room there is."""

    def source_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        pixels = self.area * width * height
        part_width = min(float(width), math.sqrt(pixels * self.aspect))
        part_height = min(float(height), math.sqrt(pixels / self.aspect))
        left, top = self.left * (width - part_width), self.top * (height - part_height)
        return (left, top, left + part_width, top + part_height)


@dataclass(frozen=True)
class Augmentation:
    """How a recipe varies its pictures; called with a file's bytes, gives ``uint8 [S, S, 3]``."""

    how: Preprocessing
    crop_area: tuple[float, float] | None = None
    """Least and greatest share of the picture's area that a random crop keeps; ``None`` prepares as evaluation does."""
    mirror: bool = True
    policy: Policy = "none"
    cutout: float = 0.0
    """Side of the square that a random colour hides, as a share of the picture's; 0 hides nothing."""

    def __call__(self, data: bytes, random: np.random.Generator) -> Pixels:
        how = self.how if self.crop_area is None else self._random_crop(self.crop_area, random)
        pixels = prepare(data, how).pixels
        if self.mirror and random.random() < 0.5:
            pixels = pixels[:, ::-1]
        pixels = pixels.copy()
        if self.cutout and random.random() < 0.5:
            _hide_square(pixels, self.cutout, random)
        return _apply_policy(pixels, self.policy, random) if self.policy != "none" else pixels

    def _random_crop(self, area: tuple[float, float], random: np.random.Generator) -> Preprocessing:
        """Of a shape between 3:4 and 4:3, as ImageNet is trained on (Szegedy et al., CVPR 2015)."""
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        left, top = random.random(2)
        own = self.how.model_dump()
        return _RandomCrop(**own, area=random.uniform(*area), aspect=aspect, left=left, top=top)


def _hide_square(pixels: Pixels, share: float, random: np.random.Generator) -> None:
    """Cutout (DeVries and Taylor, 2017) with a random colour; the square may stick out."""
    size = len(pixels)
    side = round(share * size)
    top, left = random.integers(0, size, 2) - side // 2
    pixels[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = random.integers(0, 256, 3)


@cache
def _policy(name: Policy) -> Any:
    from kornia.augmentation.auto import AutoAugment, RandAugment

    return RandAugment(n=2, m=9) if name == "rand" else AutoAugment("imagenet")


def _apply_policy(pixels: Pixels, name: Policy, random: np.random.Generator) -> Pixels:
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.integers(2**63)))
        varied: Tensor = _policy(name)(picture)
    return (varied[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()


def mix(
    x: Tensor, targets: Tensor, *, mixup: float, cutmix: float, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Each picture of a batch with another: blended (mixup) or with a part pasted in (cutmix), one of the two by lot.

    ``x`` ``float [B, 3, S, S]``, ``targets`` ``float [B, C]``; ``mixup`` and ``cutmix`` are the Beta distribution's
    parameters, 0 turns one off. Zhang et al., ICLR 2018; Yun et al., ICCV 2019.
    """
    if not mixup and not cutmix:
        return x, targets
    paste = bool(cutmix) and (not mixup or random.random() < 0.5)
    share = float(random.beta(cutmix, cutmix) if paste else random.beta(mixup, mixup))
    other = torch.from_numpy(random.permutation(len(x))).to(x.device, non_blocking=True)
    if paste:
        size = x.shape[-1]
        side = round(size * math.sqrt(1 - share))
        top, left = (int(corner) for corner in random.integers(0, size, 2) - side // 2)
        rows, columns = (slice(max(0, corner), max(0, min(size, corner + side))) for corner in (top, left))
        pasted = x.clone()
        pasted[:, :, rows, columns] = x[other][:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / size**2
        return pasted, share * targets + (1 - share) * targets[other]
    return share * x + (1 - share) * x[other], share * targets + (1 - share) * targets[other]


def smoothed_one_hot(classes: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """``int64 [B]`` classes to ``float32 [B, C]``: ``1 - smoothing`` on the right one, the rest spread evenly."""
    return F.one_hot(classes, num_classes).float() * (1 - smoothing) + smoothing / num_classes
