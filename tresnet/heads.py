"""The heads that turn TResNet's last feature map into logits; which one a checkpoint has, its keys tell.

Each takes both the map ``[N, F, h, w]`` and its mean ``[N, F]`` and uses the one it needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearHead(nn.Linear):
    """One linear layer on the pooled features: the head of the paper."""

    def forward(self, features: Tensor, pooled: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(pooled, self.weight, self.bias)

    def label_weights(self, labels: Tensor) -> Tensor:
        """What maps features to the logits of some labels, without the bias: ``int64 [N, K]`` to ``[N, K, F]``."""
        return self.weight[labels]


class TwoLinearHead(nn.Module):
    """Two linear layers with nothing between them: the narrow head of ASL's OpenImages release."""

    def __init__(self, num_features: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(num_features, hidden)
        self.classify = nn.Linear(hidden, num_classes)
        self.out_features = num_classes

    def forward(self, features: Tensor, pooled: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.embed(pooled))
        return logits

    def label_weights(self, labels: Tensor) -> Tensor:
        """As of :class:`LinearHead`: the two layers are one linear map."""
        return self.classify.weight[labels] @ self.embed.weight


class MLDecoderHead(nn.Module):
    """A transformer decoder whose fixed queries look at the feature map, each for a group of classes.

    Ridnik et al., "ML-Decoder", WACV 2023. ``groups`` queries of 768 values attend to the map; each gives the
    logits of ``⌈classes / groups⌉`` neighbouring classes. There is no self-attention, and the first norm sees
    twice the query, because upstream adds the query to itself there.
    """

    DIMENSIONS = 768
    HIDDEN = 2048
    HEADS = 8
    DROPOUT = 0.1

    def __init__(self, num_features: int, groups: int, num_classes: int) -> None:
        super().__init__()
        size = self.DIMENSIONS
        self.out_features = num_classes
        self.embed = nn.Linear(num_features, size)
        self.register_buffer("queries", torch.randn(groups, size))
        self.queries: Tensor
        self.norm1 = nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(size, self.HEADS, dropout=self.DROPOUT, batch_first=True)
        self.norm2 = nn.LayerNorm(size)
        self.linear1 = nn.Linear(size, self.HIDDEN)
        self.linear2 = nn.Linear(self.HIDDEN, size)
        self.norm3 = nn.LayerNorm(size)
        self.dropout = nn.Dropout(self.DROPOUT)
        self.group_weight = nn.Parameter(torch.empty(groups, size, math.ceil(num_classes / groups)))
        self.group_bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.xavier_normal_(self.group_weight)

    def forward(self, features: Tensor, pooled: Tensor) -> Tensor:
        memory = F.relu(self.embed(features.flatten(2).transpose(1, 2)))  # [N, h·w, 768]
        queries = self.queries.unsqueeze(0).expand(memory.shape[0], -1, -1)  # [N, G, 768]
        queries = self.norm1(queries + self.dropout(queries))
        attended, _ = self.attention(queries, memory, memory, need_weights=False)
        x = self.norm2(queries + self.dropout(attended))
        x = self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        logits = torch.einsum("ngd,gdf->ngf", x, self.group_weight).flatten(1)  # [N, G·⌈C/G⌉]
        return logits[:, : self.out_features] + self.group_bias


Head = LinearHead | TwoLinearHead | MLDecoderHead


def linear_head(num_features: int, num_classes: int) -> LinearHead:
    """The paper's head with small fresh weights."""
    head = LinearHead(num_features, num_classes)
    nn.init.normal_(head.weight, 0.0, 0.01)
    nn.init.zeros_(head.bias)
    return head


def head_for(weights: Mapping[str, Tensor]) -> Head:
    """An empty head of the kind and the sizes that the ``head.…`` entries of our own state dict have.

    Raises:
        KeyError: if there is no head in ``weights``.
    """
    if "head.group_weight" in weights:
        groups = len(weights["head.queries"])
        return MLDecoderHead(weights["head.embed.weight"].shape[1], groups, len(weights["head.group_bias"]))
    if "head.embed.weight" in weights:
        hidden, num_features = weights["head.embed.weight"].shape
        return TwoLinearHead(num_features, hidden, len(weights["head.classify.weight"]))
    num_classes, num_features = weights["head.weight"].shape
    return LinearHead(num_features, num_classes)
