"""InPlace-ABN and the end of a residual block as fused kernels, in the Triton language: for CUDA, channels last.

A network for GPUs spends its time on moving activations, and every operator of PyTorch reads and writes all of them.
These kernels do it once where several operators would each: normalising with the activation, its backward pass with
the inversion that InPlace-ABN needs (Rota Bulò et al., CVPR 2018, section 3), and sum with ReLU. They compute in
float32 whatever the activations are in. :mod:`tresnet.fused` says where they are used; elsewhere plain operators do the
same. Importing this module needs the ``triton`` package, which comes with torch for CUDA.

Activations ``[N, C, H, W]`` channels last are a matrix of ``N·H·W`` rows and ``C`` columns in memory, which is what the
kernels see.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_ELEMENTS = 4096
"""Of one tile."""
_PROGRAMS = 1024
"""For a reduction: some for each multiprocessor, so that all of the memory's bandwidth is asked for."""
_VECTOR = 8
"""Elements that are loaded at once where the number of channels allows it: 16 bytes of half precision."""
_WARPS = 8
"""Of what holds a tile's sums, or several tiles: with four, registers keep most of a multiprocessor idle."""

# What depends on the batch is no part of what is compiled: nearly every size of batch would be compiled anew.
_jit = triton.jit(do_not_specialize=["rows", "steps", "parts"])


@triton.jit
def _tile(rows, channels, first_row, DIVISOR: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, column_block):
    """Offsets of a tile's elements, which of them exist, and the same for its channels."""
    channels = channels // DIVISOR * DIVISOR  # as it is; but the compiler knows what it may load at once
    channel = column_block * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)
    exists = channel < channels
    offsets = first_row.to(tl.int64) * channels + (row[:, None] * channels + channel[None, :])
    return offsets, (first_row + row < rows)[:, None] & exists[None, :], channel, exists


@_jit
def _moments_kernel(
    x, sums, rows, channels, steps, DIVISOR: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Each program's sums of ``x - pivot`` and of its square; a channel's pivot is its first value."""
    part, column_block = tl.program_id(0), tl.program_id(1)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    squares = tl.zeros([ROWS, CHANNELS], tl.float32)
    channel = column_block * CHANNELS + tl.arange(0, CHANNELS)
    pivot = tl.load(x + channel, mask=channel < channels, other=0.0).to(tl.float32)
    for step in range(steps):
        offsets, inside, _, _ = _tile(
            rows, channels, (part * steps + step) * ROWS, DIVISOR, ROWS, CHANNELS, column_block
        )
        value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value - pivot[None, :], 0.0)
        total += value
        squares += value * value
    place = sums + part * 2 * channels + channel
    tl.store(place, tl.sum(total, 0), mask=channel < channels)
    tl.store(place + channels, tl.sum(squares, 0), mask=channel < channels)


@triton.jit
def _summed(sums, parts, channels, channel, exists, PARTS: tl.constexpr):
    """Both sums of all programs, by channel."""
    part = tl.arange(0, PARTS)
    place = sums + part[:, None] * 2 * channels + channel[None, :]
    inside = (part < parts)[:, None] & exists[None, :]
    first = tl.sum(tl.load(place, mask=inside, other=0.0), 0)
    second = tl.sum(tl.load(place + channels, mask=inside, other=0.0), 0)
    return first, second


@_jit
def _statistics_kernel(
    x, sums, mean, inv_std, running_mean, running_var, rows, parts, channels, momentum, eps,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    total, squares = _summed(sums, parts, channels, channel, exists, PARTS)
    pivot = tl.load(x + channel, mask=exists, other=0.0).to(tl.float32)
    offset = total / rows
    variance = squares / rows - offset * offset
    variance = tl.where(variance < 0, 0.0, variance)
    own_mean = pivot + offset
    tl.store(mean + channel, own_mean, mask=exists)
    tl.store(inv_std + channel, 1.0 / tl.sqrt(variance + eps), mask=exists)
    before = tl.load(running_mean + channel, mask=exists, other=0.0)
    tl.store(running_mean + channel, before + momentum * (own_mean - before), mask=exists)
    before = tl.load(running_var + channel, mask=exists, other=0.0)
    unbiased = variance * (rows / (rows - 1.0))
    tl.store(running_var + channel, before + momentum * (unbiased - before), mask=exists)


@_jit
def _normalise_kernel(
    x, y, mean, spread, weight, bias, rows, channels, eps, slope,
    SPREAD_IS_VARIANCE: tl.constexpr, ABN: tl.constexpr, ACTIVATES: tl.constexpr,
    DIVISOR: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``y = activation(γ · (x - mean) / std + β)``; ``γ`` is ``|weight| + eps`` for ABN and else ``weight``."""
    offsets, inside, channel, exists = _tile(
        rows, channels, tl.program_id(0) * ROWS, DIVISOR, ROWS, CHANNELS, tl.program_id(1)
    )
    scale = tl.load(spread + channel, mask=exists, other=1.0).to(tl.float32)
    if SPREAD_IS_VARIANCE:
        scale = 1.0 / tl.sqrt(scale + eps)
    gamma = tl.load(weight + channel, mask=exists, other=0.0).to(tl.float32)
    if ABN:
        gamma = tl.abs(gamma) + eps
    scale *= gamma
    centre = tl.load(mean + channel, mask=exists, other=0.0).to(tl.float32)
    beta = tl.load(bias + channel, mask=exists, other=0.0).to(tl.float32)
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    value = (value - centre[None, :]) * scale[None, :] + beta[None, :]
    if ACTIVATES:
        value = tl.where(value >= 0, value, value * slope)
    tl.store(y + offsets, value, mask=inside)


@triton.jit
def _before_activation(y, grad, offsets, inside, slope, ACTIVATES: tl.constexpr):
    """The normalised value and its gradient, out of the activation's."""
    value = tl.load(y + offsets, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATES:
        positive = value >= 0
        gradient = tl.where(positive, gradient, gradient * slope)
        value = tl.where(positive, value, value / slope)
    return value, gradient


@_jit
def _gradient_sums_kernel(
    y, grad, bias, sums, rows, channels, steps, slope,
    ACTIVATES: tl.constexpr, DIVISOR: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Each program's sums of ``∂z`` and of ``∂z · (z - β)``."""
    part, column_block = tl.program_id(0), tl.program_id(1)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    products = tl.zeros([ROWS, CHANNELS], tl.float32)
    channel = column_block * CHANNELS + tl.arange(0, CHANNELS)
    beta = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    for step in range(steps):
        offsets, inside, _, _ = _tile(
            rows, channels, (part * steps + step) * ROWS, DIVISOR, ROWS, CHANNELS, column_block
        )
        value, gradient = _before_activation(y, grad, offsets, inside, slope, ACTIVATES)
        total += gradient
        products += gradient * (value - beta[None, :])
    place = sums + part * 2 * channels + channel
    tl.store(place, tl.sum(total, 0), mask=channel < channels)
    tl.store(place + channels, tl.sum(products, 0), mask=channel < channels)


@_jit
def _parameter_gradients_kernel(
    sums, weight, grad_weight, grad_bias, parts, channels, eps, PARTS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    total, products = _summed(sums, parts, channels, channel, exists, PARTS)
    signed = tl.load(weight + channel, mask=exists, other=0.0).to(tl.float32)
    grad_gamma = products / (tl.abs(signed) + eps)
    tl.store(grad_weight + channel, tl.where(signed < 0, -grad_gamma, grad_gamma), mask=exists)
    tl.store(grad_bias + channel, total, mask=exists)


@_jit
def _input_gradient_kernel(
    y, grad, grad_x, weight, bias, inv_std, grad_weight, grad_bias, rows, channels, eps, slope,
    ACTIVATES: tl.constexpr, DIVISOR: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``∂x = γ̂ / std · (∂z - mean(∂z) - x̂ · mean(∂z · x̂))``, with ``x̂ = (z - β) / γ̂``."""
    offsets, inside, channel, exists = _tile(
        rows, channels, tl.program_id(0) * ROWS, DIVISOR, ROWS, CHANNELS, tl.program_id(1)
    )
    signed = tl.load(weight + channel, mask=exists, other=1.0).to(tl.float32)
    gamma = tl.abs(signed) + eps
    beta = tl.load(bias + channel, mask=exists, other=0.0).to(tl.float32)
    scale = gamma * tl.load(inv_std + channel, mask=exists, other=0.0)
    grad_gamma = tl.load(grad_weight + channel, mask=exists, other=0.0)
    slant = tl.where(signed < 0, -grad_gamma, grad_gamma) / rows / gamma
    level = tl.load(grad_bias + channel, mask=exists, other=0.0) / rows
    value, gradient = _before_activation(y, grad, offsets, inside, slope, ACTIVATES)
    gradient = gradient - level[None, :] - (value - beta[None, :]) * slant[None, :]
    tl.store(grad_x + offsets, gradient * scale[None, :], mask=inside)


@triton.jit
def _add_relu_kernel(a, b, y, elements, ELEMENTS: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = offsets < elements
    total = tl.load(a + offsets, mask=inside, other=0.0).to(tl.float32) + tl.load(b + offsets, mask=inside, other=0.0)
    tl.store(y + offsets, tl.where(total < 0, 0.0, total), mask=inside)  # no number stays none


class _Shape:
    """How a tensor is cut into tiles, for elementwise kernels and for reductions."""

    def __init__(self, x: Tensor) -> None:
        self.channels = x.shape[1]
        self.rows = x.numel() // self.channels
        columns = min(128, triton.next_power_of_2(self.channels))
        divisor = math.gcd(self.channels, _VECTOR)
        self.tile = {"DIVISOR": divisor, "ROWS": _ELEMENTS // columns, "CHANNELS": columns}
        self.column_blocks = triton.cdiv(self.channels, columns)
        self.tiles = (triton.cdiv(self.rows, self.tile["ROWS"]), self.column_blocks)
        self.steps = triton.cdiv(self.tiles[0] * self.column_blocks, _PROGRAMS)  # of each program of a reduction
        self.parts = triton.cdiv(self.tiles[0], self.steps)
        self.sum_tile = {"PARTS": _PROGRAMS, "CHANNELS": 8}
        self.sum_blocks = (triton.cdiv(self.channels, 8),)

    def new_sums(self, x: Tensor) -> Tensor:
        return torch.empty(self.parts, 2, self.channels, dtype=torch.float32, device=x.device)


class FusedInPlaceABN(torch.autograd.Function):
    """:class:`tresnet.inplace_abn.InPlaceABN` in training; saves ``y`` and per-channel vectors."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        slope: float,
    ) -> Tensor:
        shape = _Shape(x)
        sums = shape.new_sums(x)
        mean = torch.empty(shape.channels, dtype=torch.float32, device=x.device)
        inv_std = torch.empty_like(mean)
        _moments_kernel[shape.parts, shape.column_blocks](
            x, sums, shape.rows, shape.channels, shape.steps, **shape.tile, num_warps=_WARPS
        )
        _statistics_kernel[shape.sum_blocks](
            x, sums, mean, inv_std, running_mean, running_var, shape.rows, shape.parts, shape.channels, momentum, eps,
            **shape.sum_tile,
        )  # fmt: skip
        y = torch.empty_like(x)
        _normalise_kernel[shape.tiles](
            x, y, mean, inv_std, weight, bias, shape.rows, shape.channels, eps, slope,
            SPREAD_IS_VARIANCE=False, ABN=True, ACTIVATES=slope != 1.0, **shape.tile,
        )  # fmt: skip
        ctx.save_for_backward(y, weight, bias, inv_std)
        ctx.eps, ctx.slope = eps, slope
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        y, weight, bias, inv_std = ctx.saved_tensors
        grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        shape = _Shape(y)
        sums = shape.new_sums(y)
        activates = ctx.slope != 1.0
        _gradient_sums_kernel[shape.parts, shape.column_blocks](
            y, grad_y, bias, sums, shape.rows, shape.channels, shape.steps, ctx.slope,
            ACTIVATES=activates, **shape.tile, num_warps=_WARPS,
        )  # fmt: skip
        grad_weight, grad_bias = torch.empty_like(inv_std), torch.empty_like(inv_std)
        _parameter_gradients_kernel[shape.sum_blocks](
            sums, weight, grad_weight, grad_bias, shape.parts, shape.channels, ctx.eps, **shape.sum_tile
        )
        grad_x = torch.empty_like(y)
        _input_gradient_kernel[shape.tiles](
            y, grad_y, grad_x, weight, bias, inv_std, grad_weight, grad_bias, shape.rows, shape.channels, ctx.eps,
            ctx.slope, ACTIVATES=activates, **shape.tile, num_warps=_WARPS,
        )  # fmt: skip
        return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None, None, None, None, None


def normalise(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, *, abn: bool
) -> Tensor:
    """Norm and leaky ReLU with given statistics; ``abn`` makes the scale ``|weight| + eps``. Without gradients."""
    shape, y = _Shape(x), torch.empty_like(x)
    _normalise_kernel[shape.tiles](
        x, y, mean, variance, weight, bias, shape.rows, shape.channels, eps, slope,
        SPREAD_IS_VARIANCE=True, ABN=abn, ACTIVATES=slope != 1.0, **shape.tile,
    )  # fmt: skip
    return y


class FusedAddReLU(torch.autograd.Function):
    """``relu(a + b)``; saves the result alone."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        y = torch.empty_like(a)
        _add_relu_kernel[(triton.cdiv(y.numel(), _ELEMENTS),)](a, b, y, y.numel(), ELEMENTS=_ELEMENTS)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad_y, y, 0)
        return grad, grad
