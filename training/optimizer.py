"""The optimizer of a recipe: which parameters decay, and how fast they learn at which step."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from training.recipes import Recipe


def create_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on weights of two dimensions and more; none on norms and biases (what ASL's code calls true)."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.learning_rate, fused=True)


def create_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> OneCycleLR:
    """The one-cycle schedule over ``steps`` steps, however few."""
    total = max(steps, 2)  # a cycle of one step has its end alone, at which nothing is learnt
    rise = recipe.rise
    if rise * total == 1:
        rise += 1e-6  # one step exactly would begin and end at step 0, which torch divides by
    return OneCycleLR(optimizer, recipe.learning_rate, total, pct_start=rise)
