"""Weights as the world publishes them, made from timm's network, which is the reference for all of them."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timm_models import timm_model


def timm_network(arch: str, num_classes: int, *, slope: float | None = None, size: int = 64) -> nn.Module:
    """timm's network with random weights and statistics of its own; ``slope`` is set in every leaky ReLU."""
    torch.manual_seed(num_classes)
    network = timm_model(arch, num_classes)
    for module in network.modules():
        if isinstance(module, nn.LeakyReLU) and slope is not None:
            module.negative_slope = slope
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.1)
            module.bias.data.normal_(0, 0.1)
    if num_classes:
        network.head.fc.weight.data.normal_(0, 0.05)
    network.train()
    with torch.no_grad():
        for _ in range(12):
            network(torch.rand(6, 3, size, size))
    return network.eval()


def authors_form(network: nn.Module) -> dict[str, Tensor]:
    """timm's weights under the authors' names, in their raw InPlace-ABN form, with three in ten scales negative."""
    generator = torch.Generator().manual_seed(1)
    modules = dict(network.named_modules())
    state: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        path, _, entry = key.rpartition(".")
        if path.endswith(".bn"):
            if entry == "num_batches_tracked":
                continue
            if entry == "weight":
                sign = 1.0 - 2.0 * (torch.rand(value.shape, generator=generator) < 0.3)
                value = (value - 1e-5) * sign  # noqa: PLW2901
        unit = path.removesuffix(".conv").removesuffix(".bn")
        if unit != path:
            nested = "0." if type(getattr(modules[unit], "aa", None)).__name__ == "BlurPool2d" else ""
            path = f"{unit}.{nested}{0 if path.endswith('.conv') else 1}"
            if nested:
                state[f"{unit}.1.op.filt"] = torch.ones(1, 1, 3, 3)
        state[f"{path}.{entry}"] = value.clone()
    assert any(re.search(r"conv\d\.0\.0\.weight", key) for key in state)
    return state


def two_linear(hidden: int, classes: int, features: int) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
    """ASL's OpenImages head: its entries, and what it computes from a feature map."""
    first, second = torch.randn(hidden, features) * 0.05, torch.randn(classes, hidden) * 0.05
    entries = {
        "head.fc.embedding_generator.0.weight": first,
        "head.fc.embedding_generator.0.bias": torch.randn(hidden),
        "head.fc.FC.weight": second,
        "head.fc.FC.bias": torch.randn(classes),
    }

    def logits(features: Tensor) -> Tensor:
        hidden = features.mean((2, 3)) @ first.T + entries["head.fc.embedding_generator.0.bias"]
        return hidden @ second.T + entries["head.fc.FC.bias"]

    return entries, logits


def ml_decoder(groups: int, classes: int, features: int) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
    """ML-Decoder's head: its entries, and what it computes from a feature map, one query and one head at a time."""
    size, inner, heads = 768, 2048, 8
    factor = -(-classes // groups)
    layer = "head.decoder.layers.0."
    shapes = {
        "head.decoder.embed_standart.weight": (size, features),
        "head.decoder.embed_standart.bias": (size,),
        "head.decoder.query_embed.weight": (groups, size),
        layer + "multihead_attn.in_proj_weight": (3 * size, size),
        layer + "multihead_attn.in_proj_bias": (3 * size,),
        layer + "multihead_attn.out_proj.weight": (size, size),
        layer + "multihead_attn.out_proj.bias": (size,),
        layer + "linear1.weight": (inner, size),
        layer + "linear1.bias": (inner,),
        layer + "linear2.weight": (size, inner),
        layer + "linear2.bias": (size,),
        **{f"{layer}norm{n}.{kind}": (size,) for n in (1, 2, 3) for kind in ("weight", "bias")},
        "head.decoder.duplicate_pooling": (groups, size, factor),
        "head.decoder.duplicate_pooling_bias": (classes,),
    }
    w = {key: torch.randn(shape) * 0.06 for key, shape in shapes.items()}

    def norm(x: Tensor, n: int) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{layer}norm{n}.weight"] + w[f"{layer}norm{n}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def one(picture: Tensor) -> Tensor:
        memory = linear(picture.flatten(1).T, "head.decoder.embed_standart").clamp(min=0)  # [h·w, 768]
        x = norm(2 * w["head.decoder.query_embed.weight"], 1)
        q, k, v = (
            y @ weight.T + bias
            for y, weight, bias in zip(
                (x, memory, memory),
                w[layer + "multihead_attn.in_proj_weight"].chunk(3),
                w[layer + "multihead_attn.in_proj_bias"].chunk(3),
                strict=True,
            )
        )
        attended = torch.cat(
            [
                (a @ b.T / (size // heads) ** 0.5).softmax(-1) @ c
                for a, b, c in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True)
            ],
            dim=1,
        )
        x = norm(x + linear(attended, layer + "multihead_attn.out_proj"), 2)
        x = norm(x + linear(linear(x, layer + "linear1").clamp(min=0), layer + "linear2"), 3)
        grouped = torch.cat([x[g] @ w["head.decoder.duplicate_pooling"][g] for g in range(groups)])
        return grouped[:classes] + w["head.decoder.duplicate_pooling_bias"]

    return w, lambda features: torch.stack([one(picture) for picture in features])
