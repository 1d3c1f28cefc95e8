"""What bounds a network: the device's own matrix rate and bandwidth, measured, and the share that the network reaches.

A network's work is counted on the meta device, so it costs nothing: multiply-adds, and the bytes that its operators
read and write when each runs by itself. A compiler that fuses operators moves less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import median_seconds

_GEMM_SIDE = {"cuda": 8192, "cpu": 512}
_COPY_BYTES = {"cuda": 2**31, "cpu": 2**25}


@dataclass(frozen=True)
class Roof:
    """What a device does at best."""

    format: str
    """In which the matrix units compute."""
    teraflops: float
    """Of a large square matrix product, a multiply-add being two."""
    gigabytes_per_s: float
    """Of a large copy, read and written bytes together."""


@dataclass(frozen=True)
class NetworkWork:
    """What one picture costs in a forward pass."""

    multiply_adds: int
    bytes_moved: int
    largest_tensor: int = 0
    """Elements of the largest activation."""


def measure_roof(device: torch.device, dtype: torch.dtype, *, seconds: float) -> Roof:
    """The matrix rate in ``dtype`` and the bandwidth of ``device``.

    In float32 a GPU's matrix units round to TF32 here: cuDNN's convolutions do so by torch's default, and are what
    the roof is for.
    """
    side, size = _GEMM_SIDE[device.type], _COPY_BYTES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty(side, side, device=device, dtype=dtype)
    is_tf32 = device.type == "cuda" and dtype == torch.float32
    with _tf32(is_tf32):
        gemm_s = median_seconds(lambda: torch.mm(a, b, out=product), device, seconds=seconds)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = median_seconds(lambda: target.copy_(source), device, seconds=seconds)
    form = "TF32" if is_tf32 else str(dtype).removeprefix("torch.")
    return Roof(form, 2 * side**3 / gemm_s / 1e12, 2 * size / copy_s / 1e9)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def count_work(network: nn.Module, image_size: int, dtype: torch.dtype) -> NetworkWork:
    """Of ``network``, in evaluation mode with everything in ``dtype``; it is moved to the meta device."""
    network.eval().to(device="meta", dtype=dtype)
    picture = torch.empty(1, 3, image_size, image_size, dtype=dtype, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        network(picture)
    with torch.no_grad(), _Traffic() as traffic:
        network(picture)
    return NetworkWork(flops.get_total_flops() // 2, traffic.bytes, traffic.largest)


def shares(work: NetworkWork, images_per_s: float, roof: Roof) -> dict[str, float]:
    """What ``images_per_s`` takes of the matrix rate and of the bandwidth; the larger one says what bounds it."""
    return {
        "of_matrix_rate": round(2 * work.multiply_adds * images_per_s / 1e12 / roof.teraflops, 4),
        "of_bandwidth": round(work.bytes_moved * images_per_s / 1e9 / roof.gigabytes_per_s, 4),
    }


class _Traffic(TorchDispatchMode):
    """Adds up what each operator reads and writes, and finds its largest result; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for tensor in tree_leaves((args, kwargs, result)):
                if isinstance(tensor, Tensor):
                    self.bytes += tensor.numel() * tensor.element_size()
            results = [tensor.numel() for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
            self.largest = max(self.largest, *results)
        return result
