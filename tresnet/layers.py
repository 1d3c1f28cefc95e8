"""The small layers of TResNet: space-to-depth, anti-alias blur, squeeze-and-excite, global pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpaceToDepth(nn.Module):
    """Moves each 4×4 block of pixels into channels: ``[N, C, H, W] -> [N, 16·C, H/4, W/4]``.

    The output channel is ``(dy·4 + dx)·C + c``, the order of the published weights;
    :func:`torch.nn.functional.pixel_unshuffle` orders otherwise.
    """

    def __init__(self, block: int = 4) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        b = self.block
        if h % b != 0 or w % b != 0:
            raise ValueError(f"height and width must be multiples of {b}, got {h}x{w}")
        x = x.reshape(n, c, h // b, b, w // b, b)
        return x.permute(0, 3, 5, 1, 2, 4).reshape(n, b * b * c, h // b, w // b)


class BlurPool(nn.Module):
    """A fixed [1 2 1]⊗[1 2 1]/16 filter at stride 2 with reflect padding: ``[N, C, H, W] -> [N, C, ⌈H/2⌉, ⌈W/2⌉]``.

    Anti-aliased downsampling (Zhang, ICML 2019), placed after the activation of a stride-1 convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        kernel = torch.outer(row, row) / 16
        self.register_buffer("filter", kernel.expand(channels, 1, 3, 3).contiguous(), persistent=False)
        self.filter: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, [1, 1, 1, 1], mode="reflect"), self.filter, stride=2, groups=x.shape[1])


class FastGlobalPool(nn.Module):
    """The mean over all positions, ``[N, C, H, W] -> [N, C]``, as one reduction over a flat view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(dim=2)


class StockGlobalPool(nn.Module):
    """The same as PyTorch has it; for comparison."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class SqueezeExcite(nn.Module):
    """Rescales channels by a gate computed from their means: ``[N, C, H, W] -> [N, C, H, W]``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean(dim=[2, 3], keepdim=True)  # [N, C, 1, 1]
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(gate), inplace=True)))
        return x * gate
