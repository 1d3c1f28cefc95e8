"""From a trained network to the serving program: uint8 pictures in; scores, embeddings and heat maps out.

Enters: a :class:`~tresnet.model.TResNet`. Leaves: a module that :mod:`export.program_file` writes as one file, which
needs neither this project nor Python to run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tresnet.contract import MAX_MAPPED_LABELS
from tresnet.model import TResNet, fold_norms
from tresnet.terms import Precision, Task

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation on the 0..1 scale, red, green, blue. TResNet's weights use none."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def is_identity(self) -> bool:
        return self == Normalisation()


class _Program(nn.Module):
    """The permuted input already is channels-last in memory, which is what tensor cores and oneDNN want."""

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

    def feature_map(self, pictures: Tensor) -> Tensor:
        """``uint8 [N, S, S, 3]`` to ``[N, F, h, w]`` in the program's own precision."""
        x = pictures.permute(0, 3, 1, 2).to(torch.float32)  # [N, 3, S, S]
        x = (x - self.mean) * self.scale if self.normalises else x / 255
        features: Tensor = self.network.feature_map(x.to(self.dtype))  # type: ignore[operator]
        return features

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, F, h, w]`` to ``(float32 [N, C] scores in 0..1, float32 [N, D] embeddings)``."""
        logits, embedding = self.network.classify_and_embed(features)  # type: ignore[operator]
        logits = logits.to(torch.float32) / self.temperature
        scores = torch.sigmoid(logits) if self.is_tag else torch.softmax(logits, dim=1)
        return scores, embedding.to(torch.float32)


class ServingProgram(_Program):
    """``uint8 [N, S, S, 3]`` to ``(float32 [N, C] scores in 0..1, float32 [N, D] embeddings)``."""

    def forward(self, INPUT__0: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803  (Triton matches the name)
        return self.read(self.feature_map(INPUT__0))


class MappingProgram(_Program):
    """A :class:`ServingProgram` that also says where it saw the best labels.

    Further outputs: ``float32 [N, K, h, w]`` class activation maps (Zhou et al., CVPR 2016) and the ``int64 [N, K]``
    labels that they are of, best first; K is the number of labels, :data:`MAX_MAPPED_LABELS` at most, so that the
    maps of a model with thousands of labels cost no more. With global average pooling and a linear head, the mean of
    a label's map, plus its bias over the temperature, is the logit that its score is computed of.
    """

    def __init__(
        self, network: TResNet, task: Task, normalisation: Normalisation, temperature: float, dtype: torch.dtype
    ) -> None:
        super().__init__(network, task, normalisation, temperature, dtype)
        self.mapped_labels = min(MAX_MAPPED_LABELS, network.head.out_features)

    def forward(self, INPUT__0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: N803
        features = self.feature_map(INPUT__0)
        scores, embedding = self.read(features)
        labels = scores.topk(self.mapped_labels, dim=1).indices  # [N, K]
        return scores, embedding, self.heat_maps(features, labels), labels

    def heat_maps(self, features: Tensor, labels: Tensor) -> Tensor:
        """``[N, F, h, w]`` features and ``int64 [N, K]`` labels to their ``float32 [N, K, h, w]`` maps."""
        weights: Tensor = self.network.label_weights(labels)  # type: ignore[operator]
        maps = torch.bmm(weights, features.flatten(2)).to(torch.float32) / self.temperature  # [N, K, h·w]
        return maps.view(maps.shape[0], maps.shape[1], features.shape[2], features.shape[3])


def can_map(network: TResNet) -> bool:
    """Whether the network's head is linear in its features, so that its logits are means of maps."""
    return hasattr(network.head, "label_weights")


def eager_program(
    network: TResNet, task: Task, normalisation: Normalisation, temperature: float, *, heat_maps: bool
) -> ServingProgram | MappingProgram:
    """The reference that a serving program is verified against: the network as trained, in float32."""
    kind = MappingProgram if heat_maps else ServingProgram
    return kind(network, task, normalisation, temperature, torch.float32).eval()


def serving_program(
    network: TResNet,
    task: Task,
    normalisation: Normalisation,
    temperature: float,
    precision: Precision,
    *,
    heat_maps: bool,
) -> ServingProgram | MappingProgram:
    """The program to be written. ``network`` is consumed: its norm layers are folded into its convolutions."""
    kind = MappingProgram if heat_maps else ServingProgram
    fold_norms(network)
    program = kind(network, task, normalisation, temperature, DTYPES[precision]).eval()
    return program.requires_grad_(False)
