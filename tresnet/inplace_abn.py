"""In-place activated batch norm: one layer in two implementations, and the way back to batch norm.

``y = activation(γ̂ · x̂ + β)`` with ``γ̂ = |weight| + eps``. Only the *output* is kept for the backward
pass, which inverts the activation and the affine map to find ``x̂`` again. A convolution followed by this
layer therefore saves one tensor where batch norm and activation save two (Rota Bulò et al., CVPR 2018;
TResNet, WACV 2021, section 2.2).

The norm layers that one may choose, whose classes :func:`norm_class` gives:

``own``      :class:`InPlaceABN`, in plain PyTorch, on any device, under autocast too; on CUDA by fused kernels
             (:mod:`tresnet.kernels`).
``package``  the ``inplace-abn`` package's fused CUDA and C++ kernels (float16/32/64; no bfloat16).
``bn``       ordinary batch norm and activation, for comparison.
``auto``     our own, on every device. It trains channels last on CUDA and takes half precision as it is, where the
             package gets float32 copies in planes; the package's was not timed beside it on a card.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tresnet.errors import UserError
from tresnet.fused import kernels_for
from tresnet.terms import Norm

logger = logging.getLogger(__name__)

IDENTITY = 1.0
"""The slope at which a leaky ReLU is the identity."""


class _InPlaceABNFunction(torch.autograd.Function):
    """Training-mode forward and the reversible backward; saves only ``y`` and per-channel vectors."""

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
        gamma = weight.abs() + eps
        y, _, inv_std = torch.native_batch_norm(x, gamma, bias, running_mean, running_var, True, momentum, eps)
        if slope != IDENTITY:
            F.leaky_relu_(y, slope)
        ctx.save_for_backward(y, weight, bias, inv_std)
        ctx.eps, ctx.slope = eps, slope
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        y, weight, bias, inv_std = ctx.saved_tensors
        # In float32 beside half-precision activations: 1/γ̂ is 1e5 where the weight is zero, more than float16 holds.
        wide = torch.promote_types(y.dtype, torch.float32)
        gamma, beta, inv_std = weight.to(wide).abs() + ctx.eps, bias.to(wide), inv_std.to(wide)

        grad_z, z = grad_y, y
        if ctx.slope != IDENTITY:
            grad_z = torch.ops.aten.leaky_relu_backward(grad_y, y, ctx.slope, True)
            z = F.leaky_relu(y, 1.0 / ctx.slope)
        # Batch norm's own backward kernel on z in place of x: x̂ = (z - β) / γ̂, so the mean is β and 1/std is 1/γ̂.
        # It scales by weight/std, which for x̂ of x would be γ̂ · inv_std, and has to be here.
        grad_x, grad_gamma, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_z.contiguous(memory_format=_memory_format(y)),
            z,
            gamma.square() * inv_std,
            None,
            None,
            beta,
            1.0 / gamma,
            True,
            ctx.eps,
            [True, True, True],
        )
        grad_weight = torch.where(weight < 0, -grad_gamma, grad_gamma)  # 0 counts as positive
        return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None, None, None, None, None


def _memory_format(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


class InPlaceABN(nn.Module):
    """In-place activated batch norm in plain PyTorch.

    ``[N, C, *] -> [N, C, *]`` in float16/bfloat16/float32/float64; parameters and statistics may stay
    float32 under autocast. ``slope`` is the leaky ReLU's; 1.0 is the identity.

    Raises:
        ValueError: for a slope of zero or below, which cannot be inverted: the package computes wrong
            gradients there without a word, which is why the V2 release uses 1e-6.
    """

    def __init__(self, num_features: int, slope: float, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        if slope <= 0:
            raise ValueError(f"InPlace-ABN needs an invertible activation: the slope must be > 0, not {slope}")
        self.slope, self.eps, self.momentum = slope, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        kernels = kernels_for(x)
        if not self.training:
            if kernels is not None and not torch.is_grad_enabled():
                z: Tensor = kernels.normalise(
                    x, self.running_mean, self.running_var, self.weight, self.bias, self.eps, self.slope, abn=True
                )
                return z
            gamma = self.weight.abs() + self.eps
            z = F.batch_norm(x, self.running_mean, self.running_var, gamma, self.bias, False, 0.0, self.eps)
            return z if self.slope == IDENTITY else F.leaky_relu(z, self.slope, inplace=not z.requires_grad)
        if x.numel() == x.shape[1]:
            raise ValueError(f"training needs more than one value per channel, got an input of shape {tuple(x.shape)}")
        function = _InPlaceABNFunction if kernels is None else kernels.FusedInPlaceABN
        y: Tensor = function.apply(  # type: ignore[no-untyped-call]
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.momentum,
            self.eps,
            self.slope,
        )
        return y

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, slope={self.slope}, eps={self.eps}"


class BatchNormAct(nn.BatchNorm2d):
    """Ordinary batch norm and leaky ReLU: what InPlace-ABN becomes for serving, and ``--norm bn``."""

    def __init__(self, num_features: int, slope: float, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            kernels = kernels_for(x)
            if kernels is not None and not self.training and not torch.is_grad_enabled():
                fused: Tensor = kernels.normalise(
                    x, self.running_mean, self.running_var, self.weight, self.bias, self.eps, self.slope, abn=False
                )
                return fused
        y = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            0.1 if self.momentum is None else self.momentum,
            self.eps,
        )
        return y if self.slope == 1.0 else F.leaky_relu(y, self.slope)


def _package_class() -> type[nn.Module]:
    """The package's layer, with our constructor and with dtypes that it cannot take cast to float32.

    Raises:
        ImportError: if ``inplace-abn`` is not installed.
    """
    import inplace_abn

    class PackageInPlaceABN(inplace_abn.InPlaceABN):  # type: ignore[misc]
        def __init__(self, num_features: int, slope: float, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
            activation = "identity" if slope == IDENTITY else "leaky_relu"
            super().__init__(num_features, eps, momentum, activation=activation, activation_param=slope)
            self.slope = slope

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype in (torch.float32, torch.float64):
                y: Tensor = super().forward(x)
                return y
            with torch.autocast(x.device.type, enabled=False):
                y = super().forward(x.float())
            return y.to(x.dtype)

    return PackageInPlaceABN


def is_package_layer(layer: nn.Module) -> bool:
    """Whether ``layer`` is the package's, whose CUDA kernels read planes and are slow on channels-last pictures."""
    return any(kind.__module__.partition(".")[0] == "inplace_abn" for kind in type(layer).__mro__)


def resolve_norm(norm: Norm, device: torch.device) -> Norm:
    """The norm layers that ``norm`` means, where ``auto`` is our own; says the choice in the log.

    Raises:
        UserError: for ``package`` where ``inplace-abn`` is not installed.
    """
    chosen: Norm = "own" if norm == "auto" else norm
    if chosen == "package" and not _package_is_installed():
        raise UserError("--norm package needs the inplace-abn package: run `make inplace-abn`, or use --norm own")
    logger.info("norm layers: %s (asked for %s, on %s)", chosen, norm, device.type)
    return chosen


def _package_is_installed() -> bool:
    try:
        import inplace_abn  # noqa: F401
    except ImportError:
        return False
    return True


def norm_class(norm: Norm) -> type[nn.Module]:
    """The layer class of a resolved ``norm``; it is called with ``(num_features, slope)``."""
    return {"own": lambda: InPlaceABN, "bn": lambda: BatchNormAct, "package": _package_class}[norm]()


def as_batch_norm(layer: nn.Module) -> BatchNormAct | None:
    """``layer`` as an equal :class:`BatchNormAct` if it is an InPlace-ABN of either kind, else None.

    The effective scale ``|weight| + eps`` becomes batch norm's weight, so weights of either sign come out
    right. Exact in evaluation mode up to float32 rounding.
    """
    if isinstance(layer, BatchNormAct) or not hasattr(layer, "slope"):
        return None
    weight: Any = layer.weight
    batch_norm = BatchNormAct(weight.numel(), float(layer.slope), eps=float(layer.eps))  # type: ignore[arg-type]
    state = {"num_batches_tracked": torch.tensor(0), **layer.state_dict()}
    state["weight"] = weight.detach().abs() + layer.eps
    batch_norm.load_state_dict(state)
    return batch_norm.to(weight.device, weight.dtype).train(layer.training)
