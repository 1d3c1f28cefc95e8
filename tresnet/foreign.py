"""Weights of the published releases, brought into this project's names: state dict in, our state dict and facts out.

Recognised by keys and shapes, never by file name:

* the authors' form (TResNet, ImageNet21K, ASL, ML_Decoder): InPlace-ABN, ``body.conv1.0.weight``;
* timm's form: plain batch norm, ``body.conv1.conv.weight``.

The two must not be confused: InPlace-ABN scales by ``|weight| + eps``, batch norm by ``weight``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tresnet.errors import UserError
from tresnet.model import VARIANTS

CONTAINER_KEYS = ("model", "state_dict")
_AUTHORS_STEM = "body.conv1.0.weight"
_TIMM_STEM = "body.conv1.conv.weight"

_PARALLEL_PREFIX = re.compile(r"^(module\.)+")

_BODY_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^body\.conv1\.", "stem."),
        (r"^body\.layer(\d)\.", r"stage\1."),
        (r"\.downsample\.[01]\.", ".shortcut."),
        # A strided convolution of the authors is a Sequential in a Sequential, its blur being the second.
        (r"\b(stem|conv\d|shortcut)\.0\.0\.", r"\1.conv."),
        (r"\b(stem|conv\d|shortcut)\.0\.1\.", r"\1.abn."),
        (r"\b(stem|conv\d|shortcut)\.0\.", r"\1.conv."),
        (r"\b(stem|conv\d|shortcut)\.1\.", r"\1.abn."),
        (r"\.bn\.", ".abn."),
    )
]
_DECODER = "head.decoder.layers.0."
_HEAD_NAMES = {
    "head.fc.weight": "head.weight",
    "head.fc.bias": "head.bias",
    "head.fc.embedding_generator.0.weight": "head.embed.weight",
    "head.fc.embedding_generator.0.bias": "head.embed.bias",
    "head.fc.FC.weight": "head.classify.weight",
    "head.fc.FC.bias": "head.classify.bias",
    "head.decoder.embed_standart.weight": "head.embed.weight",
    "head.decoder.embed_standart.bias": "head.embed.bias",
    "head.decoder.query_embed.weight": "head.queries",
    "head.decoder.duplicate_pooling": "head.group_weight",
    "head.decoder.duplicate_pooling_bias": "head.group_bias",
    _DECODER + "multihead_attn.in_proj_weight": "head.attention.in_proj_weight",
    _DECODER + "multihead_attn.in_proj_bias": "head.attention.in_proj_bias",
    _DECODER + "multihead_attn.out_proj.weight": "head.attention.out_proj.weight",
    _DECODER + "multihead_attn.out_proj.bias": "head.attention.out_proj.bias",
    **{
        f"{_DECODER}{layer}.{kind}": f"head.{layer}.{kind}"
        for layer in ("linear1", "linear2", "norm1", "norm2", "norm3")
        for kind in ("weight", "bias")
    },
}


@dataclass(frozen=True)
class ForeignWeights:
    """A release's weights under our names, and what its file says or implies about them."""

    arch: str
    weights: dict[str, Tensor]
    inplace_abn: bool
    num_classes: int
    labels: list[str] | None
    """The file's ``idx_to_class``, if it has one."""


def convert(content: Any) -> ForeignWeights | None:
    """The weights in ``content``, the whole of a read file; None if it holds no TResNet of a known form.

    Raises:
        UserError: if it is a TResNet, but one that cannot be used; the message is half a sentence.
    """
    state = _state_dict(content)
    if state is None:
        return None
    in_timm_form = _TIMM_STEM in state
    if not in_timm_form and _AUTHORS_STEM not in state:
        return None
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _our_name(key)
        if name is not None and not (name.endswith("num_batches_tracked") and not in_timm_form):
            weights[name] = value.float() if value.is_floating_point() else value
    if in_timm_form:
        for name in [name for name in weights if name.endswith(".running_var")]:
            weights.setdefault(name.replace("running_var", "num_batches_tracked"), weights[name].new_zeros(()).long())
    arch = _architecture(weights)
    biases = ("head.group_bias", "head.classify.bias", "head.bias")
    num_classes = next((weights[key].numel() for key in biases if key in weights), 0)
    if num_classes == 0:
        raise UserError("it has no classification head")
    labels = _labels(content.get("idx_to_class"), num_classes) if content is not state else None
    return ForeignWeights(arch, weights, not in_timm_form, num_classes, labels)


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    """The state dict in a file's content, without the prefixes that DataParallel and wrappers in it add."""
    if not isinstance(content, Mapping):
        return None
    for key in CONTAINER_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not content or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        return None
    return {_PARALLEL_PREFIX.sub("", key): value for key, value in content.items()}


def _our_name(key: str) -> str | None:
    """Our name of a foreign entry; None for the blur filters, which are constants."""
    if key.endswith(".filt"):
        return None
    if key.startswith("head."):
        return _HEAD_NAMES.get(key, key)
    for pattern, replacement in _BODY_RULES:
        key = pattern.sub(replacement, key)
    return key


def _architecture(weights: dict[str, Tensor]) -> str:
    """The variant's name, from the number of blocks, their kinds, and the width of the stem."""
    repeats = tuple(
        1 + max((int(match[1]) for key in weights if (match := re.match(rf"stage{stage}\.(\d+)\.", key))), default=-1)
        for stage in (1, 2, 3, 4)
    )
    blocks = tuple(
        "bottleneck" if f"stage{stage}.0.conv3.conv.weight" in weights else "basic" for stage in (1, 2, 3, 4)
    )
    stem = weights["stem.conv.weight"]
    width = stem.shape[0] if stem.dim() == 4 else 0
    for name, variant in VARIANTS.items():
        if (variant.repeats, variant.blocks, variant.width) == (repeats, blocks, width):
            return name
    raise UserError(f"it is no TResNet of a known architecture: blocks {repeats} of {blocks}, width {width}")


def _labels(idx_to_class: Any, num_classes: int) -> list[str] | None:
    if not isinstance(idx_to_class, Mapping):
        return None
    try:
        by_index = {int(index): " ".join(str(name).split()) for index, name in idx_to_class.items()}
    except (TypeError, ValueError) as error:
        raise UserError("its idx_to_class has keys that are not numbers") from error
    if sorted(by_index) != list(range(num_classes)):
        raise UserError(f"its idx_to_class names {len(by_index)} classes, and its head has {num_classes}")
    labels = [by_index[index] or f"class_{index}" for index in range(num_classes)]
    return [f"{label} ({index})" if labels.count(label) > 1 else label for index, label in enumerate(labels)]
