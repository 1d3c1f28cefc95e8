"""Whether the fused kernels of :mod:`tresnet.kernels` are used: on CUDA, where they are found to work."""

from __future__ import annotations

import functools
import logging
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from tresnet.errors import UserError

logger = logging.getLogger(__name__)

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MOST_RELATIVE_ERROR = 5e-3
"""Half precision rounds to 5e-4; what is computed wrongly is off by far more."""


def kernels_for(x: Tensor) -> ModuleType | None:
    """The kernels, if they take ``x``: on the current CUDA device, channels last, half precision or float32. Else None.

    None, too, while a compiler reads the network: it fuses by itself.
    """
    if torch.compiler.is_compiling() or not x.is_cuda or x.dim() != 4 or x.dtype not in _DTYPES:
        return None
    if x.get_device() != torch.cuda.current_device():  # where the Triton language launches, whatever it is given
        return None
    return _working_kernels() if x.is_contiguous(memory_format=torch.channels_last) else None


def kernels_work() -> bool:
    """Whether this machine's CUDA runs the kernels; the first to ask has them compiled and checked."""
    return torch.cuda.is_available() and _working_kernels() is not None


@functools.cache
def _working_kernels() -> ModuleType | None:
    """The module, or None and a word in the log: it takes ``triton`` and a C compiler, which not every machine has."""
    try:
        from tresnet import kernels

        check(kernels, torch.device("cuda"))
    except Exception as error:  # of whatever the compilers' parts raise
        logger.warning("no fused kernels on this machine, which costs time and memory: %s", error)
        return None
    return kernels


def check(kernels: ModuleType, device: torch.device) -> None:
    """Run every kernel once, in half precision, beside PyTorch's own operators in float64.

    Raises:
        UserError: if one of them computes something else.
        Exception: whatever the compilers raise where they do not work.
    """
    slope, eps = 0.01, 1e-5
    generator = torch.Generator().manual_seed(0)  # a run's own random numbers stay what they are

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu").half().to(device)

    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        x, grad = (draw(3, 70, 9, 5).contiguous(memory_format=torch.channels_last) for _ in range(2))
        weight, bias = draw(70).float(), draw(70).float()
        mean, var = torch.zeros(70, device=device), torch.ones(70, device=device)
        inputs = [each.clone().requires_grad_() for each in (x, weight, bias)]
        exact = [each.double().requires_grad_() for each in (x, weight, bias)]

        y = kernels.FusedInPlaceABN.apply(*inputs, mean, var, 1.0, eps, slope)
        found = [y, *torch.autograd.grad(y, inputs, grad), mean, var]
        found.append(kernels.normalise(x, mean, var, weight, bias, eps, slope, abn=True))
        found.append(kernels.FusedAddReLU.apply(x, grad))

        gamma, own_var, own_mean = exact[1].abs() + eps, *torch.var_mean(exact[0].detach(), dim=(0, 2, 3))
        z = F.leaky_relu(F.batch_norm(exact[0], None, None, gamma, exact[2], True, 0.0, eps), slope)
        expected = [z, *torch.autograd.grad(z, exact, grad.double()), own_mean, own_var]
        given = F.batch_norm(exact[0], own_mean, own_var, gamma, exact[2], False, 0.0, eps)
        expected += [F.leaky_relu(given, slope), F.relu(x.double() + grad.double())]
        for got, right in zip(found, expected, strict=True):
            error = ((got.double() - right).norm() / right.norm()).item()
            if not error <= _MOST_RELATIVE_ERROR:  # nor if it is no number
                raise UserError(f"a fused kernel is off by {error:.1e} of the result")
