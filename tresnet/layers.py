"""The small layers of TResNet: space-to-depth, anti-alias blur, squeeze-and-excite, global pooling."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tresnet.fused import kernels_for


class SpaceToDepth(nn.Module):
    """Moves each 4×4 block of pixels into channels: ``[N, C, H, W] -> [N, 16·C, H/4, W/4]``.

    The output channel is ``(dy·4 + dx)·C + c``, the order of the published weights;
    :func:`torch.nn.functional.pixel_unshuffle` orders otherwise. What comes channels last, leaves so.
    """

    def __init__(self, block: int = 4) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        b = self.block
        if h % b != 0 or w % b != 0:
            raise ValueError(f"height and width must be multiples of {b}, got {h}x{w}")
        blocks = x.reshape(n, c, h // b, b, w // b, b)
        if x.is_contiguous(memory_format=torch.channels_last):
            return blocks.permute(0, 2, 4, 3, 5, 1).reshape(n, h // b, w // b, b * b * c).permute(0, 3, 1, 2)
        return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, b * b * c, h // b, w // b)


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
        if not torch.jit.is_scripting() and torch.is_grad_enabled():  # type: ignore[attr-defined]
            y: Tensor = _Blur.apply(x, self.filter)  # type: ignore[no-untyped-call]
            return y
        return _blur(x, self.filter)


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """``x`` convolved with zero padding, after its edges took up what a reflection would have put beyond them.

    An edge and the pixels beyond it are read by the same positions alone, twice and once: half of the second row added
    to the first is as good as a reflected row. On CUDA torch's reflection costs fifteen times the convolution.
    """
    x = x.clone()
    height, width = x.shape[2], x.shape[3]
    x[:, :, 0].add_(x[:, :, 1], alpha=0.5)
    if height % 2 == 1:
        x[:, :, height - 1].add_(x[:, :, height - 2], alpha=0.5)
    x[:, :, :, 0].add_(x[:, :, :, 1], alpha=0.5)
    if width % 2 == 1:
        x[:, :, :, width - 1].add_(x[:, :, :, width - 2], alpha=0.5)
    return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


class _Blur(torch.autograd.Function):
    """:func:`_blur` as what it is to the backward pass: linear, so that of ``x`` nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(kernel)
        ctx.odd = (x.shape[2] % 2, x.shape[3] % 2)
        return _blur(x, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (kernel,) = ctx.saved_tensors
        odd_height, odd_width = ctx.odd
        grad = F.conv_transpose2d(
            grad_y, kernel.to(grad_y.dtype), stride=2, padding=1, groups=grad_y.shape[1],
            output_padding=(1 - odd_height, 1 - odd_width),
        )  # fmt: skip
        grad[:, :, :, 1].add_(grad[:, :, :, 0], alpha=0.5)
        if odd_width:
            grad[:, :, :, -2].add_(grad[:, :, :, -1], alpha=0.5)
        grad[:, :, 1].add_(grad[:, :, 0], alpha=0.5)
        if odd_height:
            grad[:, :, -2].add_(grad[:, :, -1], alpha=0.5)
        return grad, None


class _Mean(torch.autograd.Function):
    """The mean over all positions, whose gradient is one value for all of them: it is not written out here.

    PyTorch's is, and in planes whatever the pictures are in, so that adding it to another gradient reads across.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.shape = x.shape
        return x.mean(dim=[2, 3], keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor) -> Tensor:  # type: ignore[override]
        _, _, height, width = shape = ctx.shape
        share: Tensor = grad_mean / (height * width)
        return share.expand(shape)


def _mean(x: Tensor) -> Tensor:
    """``[N, C, H, W] -> [N, C, 1, 1]``."""
    if not torch.jit.is_scripting() and torch.is_grad_enabled():  # type: ignore[attr-defined]
        y: Tensor = _Mean.apply(x)  # type: ignore[no-untyped-call]
        return y
    return x.mean(dim=[2, 3], keepdim=True)


class FastGlobalPool(nn.Module):
    """The mean over all positions, ``[N, C, H, W] -> [N, C]``, as one reduction."""

    def forward(self, x: Tensor) -> Tensor:
        return _mean(x).flatten(1)


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
        gate = _mean(x)  # [N, C, 1, 1]
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(gate), inplace=True)))
        return x * gate


def add_relu(x: Tensor, shortcut: Tensor) -> Tensor:
    """``relu(x + shortcut)``: how every block ends."""
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        kernels = kernels_for(x)
        if kernels is not None and shortcut.stride() == x.stride() and shortcut.dtype == x.dtype:
            y: Tensor = kernels.FusedAddReLU.apply(x, shortcut)
            return y
    return F.relu(x + shortcut, inplace=True)
