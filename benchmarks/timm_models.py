"""timm's networks, for comparison. timm imports torchvision, which fails beside a CPU build of torch of its own."""

from __future__ import annotations

import functools

import torch
from torch import nn


@functools.cache
def _load_torchvision() -> torch.library.Library | None:
    """Import torchvision; where it cannot load its operators, with the two that it must find declared by us.

    Not beforehand: where it can load them, a second declaration ends the process. Nothing here calls them. What is
    returned has to be kept.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # operator torchvision::nms does not exist
        declarations = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                declarations.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return declarations
    return None


def timm_model(name: str, num_classes: int = 1000) -> nn.Module:
    """One of timm's networks with fresh weights.

    Raises:
        ImportError: if timm is not installed.
    """
    try:
        _load_torchvision()
        import timm
    except ImportError as error:
        raise ImportError(f"timm's networks need: make setup-dev ({error})") from error

    network: nn.Module = timm.create_model(name, num_classes=num_classes)
    return network
