"""From a trained network to the serving program: uint8 pictures in, scores and embeddings out, as TorchScript.

Enters: a :class:`~tresnet.model.TResNet`. Leaves: one file that needs neither this project nor Python to run.
:func:`write_program` is the only place that knows the file's format.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tresnet.contract import Precision, Task
from tresnet.model import TResNet, to_batch_norm

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation on the 0..1 scale, red, green, blue. TResNet's weights use none."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def is_identity(self) -> bool:
        return self == Normalisation()


class ServingProgram(nn.Module):
    """``uint8 [N, S, S, 3]`` to ``(float32 [N, C] scores in 0..1, float32 [N, D] embeddings)``.

    The permuted input already is channels-last in memory, which is what tensor cores and oneDNN want.
    """

    def __init__(
        self, network: nn.Module, task: Task, normalisation: Normalisation, temperature: float, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.network = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.is_tag = task == "tag"
        self.normalises = not normalisation.is_identity
        self.temperature = temperature
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(normalisation.std).view(1, 3, 1, 1) * 255))
        self.mean: Tensor
        self.scale: Tensor

    def forward(self, INPUT__0: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803  (Triton matches the name)
        x = INPUT__0.permute(0, 3, 1, 2).to(torch.float32)  # [N, 3, S, S]
        x = (x - self.mean) * self.scale if self.normalises else x / 255
        logits, embedding = self.network.classify_and_embed(x.to(self.dtype))  # type: ignore[operator]
        logits = logits.to(torch.float32) / self.temperature
        scores = torch.sigmoid(logits) if self.is_tag else torch.softmax(logits, dim=1)
        return scores, embedding.to(torch.float32)


def eager_program(network: TResNet, task: Task, normalisation: Normalisation, temperature: float) -> ServingProgram:
    """The reference that a serving program is verified against: the network as trained, in float32."""
    return ServingProgram(network, task, normalisation, temperature, torch.float32).eval()


def serving_program(
    network: TResNet, task: Task, normalisation: Normalisation, temperature: float, precision: Precision
) -> ServingProgram:
    """The program to be written. ``network`` is consumed: its norm layers become batch norms."""
    program = ServingProgram(to_batch_norm(network), task, normalisation, temperature, DTYPES[precision]).eval()
    return program.requires_grad_(False)


def write_program(program: ServingProgram, path: Path) -> None:
    """Write ``program`` to ``path`` as TorchScript.

    Freezing folds every batch norm into its convolution and drops all that only training needs.
    """
    with warnings.catch_warnings(), torch.no_grad():
        # TorchScript is deprecated in PyTorch, and still the format that Triton's PyTorch backend serves.
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(program)
        torch.jit.save(torch.jit.freeze(scripted), str(path))
