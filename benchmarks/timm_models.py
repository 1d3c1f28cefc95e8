"""timm's networks, for comparison. timm imports torchvision, which fails beside a CPU build of torch of its own."""

from __future__ import annotations

import torch
from torch import nn

# torchvision needs these two operators to be declared, and nothing here calls them.
_declarations = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _declarations.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def timm_model(name: str, num_classes: int = 1000) -> nn.Module:
    """One of timm's networks with fresh weights.

    Raises:
        ImportError: if timm is not installed.
    """
    import timm

    network: nn.Module = timm.create_model(name, num_classes=num_classes)
    return network
