"""The networks that the benchmarks compare: TResNet's family, M without each refinement, and timm's of its class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from benchmarks.timm_models import timm_model
from tresnet.heads import linear_head
from tresnet.inplace_abn import BatchNormAct
from tresnet.model import VARIANTS, TResNet, Variant
from tresnet.terms import Norm

NUM_CLASSES = 1000
M = VARIANTS["tresnet_m"]
_BOTTLENECKS: Any = ("bottleneck",) * 4
TIMM = {
    "ResNet50": "resnet50",
    "ResNet50-D": "resnet50d",
    "ResNeXt50": "resnext50_32x4d",
    "SEResNeXt50": "seresnext50_32x4d",
    "EfficientNet-B1": "efficientnet_b1",
    "MixNet-L": "mixnet_l",
}
LARGER = {"TResNet-L": "tresnet_l", "TResNet-XL": "tresnet_xl", "TResNet-V2-L": "tresnet_v2_l"}
Make = Callable[[], nn.Module]
_Any = TypeVar("_Any")


def ablation_networks(norm: Norm, m: Variant = M) -> dict[str, Make]:
    """Makers of TResNet-M, of M without each refinement, and of timm's networks, by name."""
    makers: dict[str, Make] = {
        "TResNet-M": tresnet(m, norm),
        "stem conv7x7": tresnet(replace(m, stem="conv7x7"), norm),
        "stem ResNet-D": tresnet(replace(m, stem="resnet_d"), norm),
        "without blur": tresnet(replace(m, blur=False), norm),
        "without SE": tresnet(replace(m, squeeze_excite=False), norm),
        "bottlenecks only": tresnet(replace(m, blocks=_BOTTLENECKS), norm),
        "batch norm": tresnet(m, "bn"),
        "stock pooling": tresnet(replace(m, fast_pool=False), norm),
        "none of them": tresnet(
            Variant((3, 4, 6, 3), _BOTTLENECKS, 64, stem="conv7x7", blur=False, squeeze_excite=False, fast_pool=False),
            "bn",
        ),
    }
    return makers | {label: lambda name=name: timm_model(name) for label, name in TIMM.items()}  # type: ignore[misc]


def gpu_networks(norm: Norm, *, tiny: bool = False) -> dict[str, Make]:
    """The same, the larger variants, and M with each implementation of InPlace-ABN; ``tiny`` ones of all of ours."""
    size = miniature if tiny else (lambda variant: variant)
    makers = ablation_networks(norm, size(M))
    makers |= {label: tresnet(size(VARIANTS[name]), norm) for label, name in LARGER.items()}
    return makers | {"own InPlace-ABN": tresnet(size(M), "own"), "package's InPlace-ABN": tresnet(size(M), "package")}


def miniature(variant: Variant) -> Variant:
    """Every kind of layer of ``variant``, once and thin."""
    return replace(variant, repeats=(1, 1, 1, 1), width=16)


def chosen(known: dict[str, _Any], names: list[str] | None) -> dict[str, _Any]:
    """Those named; all where ``names`` is None.

    Raises:
        KeyError: for a name that is none of them.
    """
    return dict(known) if names is None else {name: known[name] for name in names}


def tresnet(variant: Variant, norm: Norm) -> Make:
    """A maker of ``variant`` with fresh weights."""
    return lambda: TResNet(variant, linear_head(variant.num_features, NUM_CLASSES), norm)


@torch.no_grad()
def as_if_trained(variant: Variant, image_size: int) -> TResNet:
    """Random weights and the statistics that belong to them, with batch norms: scores differ as a trained net's do.

    Fresh weights would not do: the last norm of each block is zero in them, and hides what a precision does to it.
    """
    torch.manual_seed(0)
    network = TResNet(variant, linear_head(variant.num_features, NUM_CLASSES), "bn")
    for module in network.modules():
        if isinstance(module, BatchNormAct):
            module.momentum = 1.0  # the statistics of the one batch below
            module.weight.normal_(0.8, 0.2)
            module.bias.normal_(0, 0.1)
    head: Any = network.head
    head.weight.normal_(0, 0.1)
    network.train()(torch.rand(16, 3, image_size, image_size))
    return network.eval()
