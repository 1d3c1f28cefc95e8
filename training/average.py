"""The moving average of a model's weights: often better than the weights themselves, and never worse than the worst."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from tresnet.model import TResNet


def moving_average(model: TResNet, decay: float) -> AveragedModel:
    """An exponential average over steps, running statistics included.

    It warms up: after ``n`` steps the decay is at most ``(1 + n) / (10 + n)``, so that the first weights, which are
    chance, are soon forgotten.
    """

    @torch.no_grad()
    def update(mean: list[Tensor], current: list[Tensor], _: Tensor | int) -> None:
        steps = int(average.n_averaged)  # torch's own argument lies on a GPU, which would have to be waited for
        warm = min(decay, (1 + steps) / (10 + steps))
        if mean[0].is_floating_point():
            torch._foreach_lerp_(mean, current, 1 - warm)
        else:  # batch norm's counter
            torch._foreach_copy_(mean, current)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)  # type: ignore[arg-type]
    return average
