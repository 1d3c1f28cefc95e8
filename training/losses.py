"""Losses on logits."""

from __future__ import annotations

import torch
from torch import Tensor


def asymmetric_loss(
    logits: Tensor, targets: Tensor, *, gamma_negative: float = 4.0, gamma_positive: float = 0.0, clip: float = 0.05
) -> Tensor:
    """ASL (Ridnik et al., ICCV 2021), summed over ``[N, C]`` logits and 0/1 targets.

    Easy negatives weigh little (``gamma_negative``), and those under ``clip`` nothing. The weight has no gradient.
    """
    positive = torch.sigmoid(logits)
    negative = (1 - positive + clip).clamp(max=1)
    log_likelihood = targets * positive.clamp(min=1e-8).log() + (1 - targets) * negative.clamp(min=1e-8).log()
    with torch.no_grad():
        chance = positive * targets + negative * (1 - targets)
        weight = (1 - chance) ** (gamma_positive * targets + gamma_negative * (1 - targets))
    return -(weight * log_likelihood).sum()
