"""TResNet-M, L, XL and V2-L from one definition: blocks, then the network, then the variants' few numbers.

Ridnik et al., "TResNet: High Performance GPU-Dedicated Architecture", WACV 2021. Where the paper and the
authors' released code differ (the stem is a 3×3 convolution in the code, 1×1 in the paper's drawing), this
follows the code, because the released weights do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tresnet.errors import UserError
from tresnet.heads import Head, linear_head
from tresnet.inplace_abn import IDENTITY, BatchNormAct, as_batch_norm, norm_class
from tresnet.layers import BlurPool, FastGlobalPool, SpaceToDepth, SqueezeExcite, StockGlobalPool, add_relu
from tresnet.terms import Norm

Block = Literal["basic", "bottleneck"]
Stem = Literal["space_to_depth", "conv7x7", "resnet_d"]
MakeNorm = Callable[[int, float], nn.Module]


@dataclass(frozen=True)
class Variant:
    """The few numbers that make one architecture of the family, and the paper's refinements, each to be turned off."""

    repeats: tuple[int, int, int, int]
    blocks: tuple[Block, Block, Block, Block]
    width: int
    stem_slope: float = 1e-2
    block_slope: float = 1e-3
    stem: Stem = "space_to_depth"
    blur: bool = True
    """Stride 2 by a blur after a convolution of stride 1; without it by the convolution's own stride."""
    squeeze_excite: bool = True
    fast_pool: bool = True

    @property
    def num_features(self) -> int:
        """Channels of the pooled embedding."""
        return self.width * 8 * EXPANSION[self.blocks[3]]


EXPANSION: dict[Block, int] = {"basic": 1, "bottleneck": 4}

_BASIC_EARLY: tuple[Block, Block, Block, Block] = ("basic", "basic", "bottleneck", "bottleneck")
_BOTTLENECK: tuple[Block, Block, Block, Block] = ("bottleneck", "bottleneck", "bottleneck", "bottleneck")

VARIANTS: dict[str, Variant] = {
    "tresnet_m": Variant((3, 4, 11, 3), _BASIC_EARLY, 64),
    "tresnet_l": Variant((4, 5, 18, 3), _BASIC_EARLY, 76),
    "tresnet_xl": Variant((4, 5, 24, 3), _BASIC_EARLY, 83),
    "tresnet_v2_l": Variant((3, 4, 23, 3), _BOTTLENECK, 64),
    # Of ML-Decoder's release: a smaller M, and what that release calls tresnet_xl, another network than the paper's.
    "tresnet_s": Variant((3, 4, 6, 3), _BASIC_EARLY, 64),
    "tresnet_v2_xl": Variant((3, 8, 34, 5), _BOTTLENECK, 64),
}


class ConvABN(nn.Sequential):
    """Convolution without bias, then the norm layer with its activation (slope 1 is none)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: MakeNorm, slope: float, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.abn = norm(outputs, slope)


def make_stem(kind: Stem, width: int, norm: MakeNorm, slope: float) -> nn.Module:
    """``[N, 3, H, W]`` (``[N, 48, H/4, W/4]`` after space-to-depth) to ``[N, width, H/4, W/4]``."""
    if kind == "space_to_depth":
        return ConvABN(3 * 16, width, 3, norm, slope)
    pool = nn.MaxPool2d(3, 2, 1)
    if kind == "conv7x7":  # He et al., CVPR 2016
        return nn.Sequential(ConvABN(3, width, 7, norm, slope, stride=2), pool)
    half = width // 2  # ResNet-D: He et al., "Bag of Tricks", CVPR 2019
    convolutions = [ConvABN(i, o, 3, norm, slope, s) for i, o, s in ((3, half, 2), (half, half, 1), (half, width, 1))]
    return nn.Sequential(*convolutions, pool)


class Shortcut(nn.Sequential):
    """What the shortcut does where the shape changes: a 2×2 mean if the stride is 2, then 1×1 ConvABN."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: MakeNorm) -> None:
        super().__init__()
        if stride == 2:
            self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.abn = norm(outputs, IDENTITY)


class BasicBlock(nn.Module):
    """3×3 → (blur) → 3×3 → squeeze-and-excite → + shortcut → ReLU."""

    def __init__(
        self, inputs: int, planes: int, stride: int, use_se: bool, blur: bool, norm: MakeNorm, slope: float
    ) -> None:
        super().__init__()
        blurs = blur and stride == 2
        self.conv1 = ConvABN(inputs, planes, 3, norm, slope, 1 if blurs else stride)
        self.blur = BlurPool(planes) if blurs else nn.Identity()
        self.conv2 = ConvABN(planes, planes, 3, norm, IDENTITY)
        self.se = SqueezeExcite(planes, max(planes // 4, 64)) if use_se else nn.Identity()
        self.shortcut = Shortcut(inputs, planes, stride, norm) if stride == 2 or inputs != planes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.se(self.conv2(self.blur(self.conv1(x))))
        return add_relu(out, self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1 → 3×3 → (blur) → squeeze-and-excite on the narrow tensor → 1×1 → + shortcut → ReLU."""

    def __init__(
        self, inputs: int, planes: int, stride: int, use_se: bool, blur: bool, norm: MakeNorm, slope: float
    ) -> None:
        super().__init__()
        outputs = planes * EXPANSION["bottleneck"]
        blurs = blur and stride == 2
        self.conv1 = ConvABN(inputs, planes, 1, norm, slope)
        self.conv2 = ConvABN(planes, planes, 3, norm, slope, 1 if blurs else stride)
        self.blur = BlurPool(planes) if blurs else nn.Identity()
        self.se = SqueezeExcite(planes, max(outputs // 8, 64)) if use_se else nn.Identity()
        self.conv3 = ConvABN(planes, outputs, 1, norm, IDENTITY)
        self.shortcut = Shortcut(inputs, outputs, stride, norm) if stride == 2 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(self.se(self.blur(self.conv2(self.conv1(x)))))
        return add_relu(out, self.shortcut(x))


BLOCK_CLASSES: dict[Block, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class TResNet(nn.Module):
    """``[N, 3, H, W]`` float pictures in 0..1, sides multiples of 4, to ``[N, num_classes]`` logits."""

    def __init__(self, variant: Variant, head: Head, norm: Norm = "own") -> None:
        super().__init__()
        make_norm: MakeNorm = norm_class(norm)
        self.space_to_depth = SpaceToDepth() if variant.stem == "space_to_depth" else nn.Identity()
        self.stem = make_stem(variant.stem, variant.width, make_norm, variant.stem_slope)
        inputs = variant.width
        stages: list[nn.Module] = []
        for stage, (repeats, block) in enumerate(zip(variant.repeats, variant.blocks, strict=True)):
            planes = variant.width * 2**stage
            layers: list[nn.Module] = []
            for index in range(repeats):
                stride = 2 if stage > 0 and index == 0 else 1
                use_se = variant.squeeze_excite and stage < 3
                make_block = BLOCK_CLASSES[block]
                layers.append(make_block(inputs, planes, stride, use_se, variant.blur, make_norm, variant.block_slope))
                inputs = planes * EXPANSION[block]
            stages.append(nn.Sequential(*layers))
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self._initialise()
        self.pool = FastGlobalPool() if variant.fast_pool else StockGlobalPool()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        logits, _ = self.classify_and_embed(self.feature_map(x))
        return logits

    def feature_map(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` pictures to ``[N, num_features, H/32, W/32]``, sides rounded up."""
        x = self.stem(self.space_to_depth(x))  # [N, width, H/4, W/4]
        x = self.stage1(x)
        x = self.stage2(x)  # [N, ·, H/8, W/8]
        x = self.stage3(x)  # [N, ·, H/16, W/16]
        features: Tensor = self.stage4(x)  # [N, num_features, H/32, W/32]
        return features

    def classify_and_embed(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The last feature map to ``[N, num_classes]`` logits and the pooled ``[N, num_features]`` embedding."""
        embedding: Tensor = self.pool(features)
        logits: Tensor = self.head(features, embedding)
        return logits, embedding

    def label_weights(self, labels: Tensor) -> Tensor:
        """What maps the features to some labels' logits, ``[N, K, num_features]``; of heads that are linear alone."""
        weights: Tensor = self.head.label_weights(labels)  # type: ignore[operator]
        return weights

    def _initialise(self) -> None:
        """Convolutions Kaiming-normal, the last norm of every block zero (the authors' code)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
            elif isinstance(module, BasicBlock | Bottleneck):
                last = module.conv2 if isinstance(module, BasicBlock) else module.conv3
                nn.init.zeros_(last.abn.weight)  # type: ignore[arg-type]


def create_model(
    arch: str,
    head: int | Head,
    norm: Norm = "own",
    *,
    block_slope: float | None = None,
    stem_slope: float | None = None,
) -> TResNet:
    """One of :data:`VARIANTS` with fresh weights; ``head`` is the number of classes of a linear one, or a head.

    ``block_slope`` and ``stem_slope`` replace the variant's leaky-ReLU slopes: no checkpoint stores them,
    and the cars weights of V2-L were trained with 1e-6 throughout.

    Raises:
        UserError: for an unknown ``arch``.
    """
    if arch not in VARIANTS:
        raise UserError(f"unknown architecture {arch!r}: choose one of {', '.join(VARIANTS)}")
    variant = VARIANTS[arch]
    if block_slope is not None:
        variant = replace(variant, block_slope=block_slope)
    if stem_slope is not None:
        variant = replace(variant, stem_slope=stem_slope)
    if isinstance(head, int):
        head = linear_head(variant.num_features, head)
    return TResNet(variant, head, norm)


def to_batch_norm(model: nn.Module) -> nn.Module:
    """``model`` itself, each InPlace-ABN in it replaced by the equal batch norm (:func:`as_batch_norm`)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            batch_norm = as_batch_norm(child)
            if batch_norm is not None:
                setattr(parent, name, batch_norm)
    return model


def fold_norms(model: nn.Module) -> nn.Module:
    """``model`` itself, in evaluation mode, each norm folded into the convolution before it, computed in float64.

    For serving, and before the weights are rounded to fewer bits: then they are rounded once, and a variance that half
    precision cannot hold does no harm.
    """
    to_batch_norm(model)
    for parent in list(model.modules()):
        conv, abn = getattr(parent, "conv", None), getattr(parent, "abn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(abn, BatchNormAct):
            parent.conv, parent.abn = _folded(conv, abn), _activation(abn.slope)
    return model


@torch.no_grad()
def _folded(conv: nn.Conv2d, norm: BatchNormAct) -> nn.Conv2d:
    mean: Any = norm.running_mean
    var: Any = norm.running_var
    scale = norm.weight.double() / torch.sqrt(var.double() + norm.eps)
    conv.weight.copy_(conv.weight.double() * scale[:, None, None, None])
    conv.bias = nn.Parameter((norm.bias.double() - mean.double() * scale).to(conv.weight.dtype))
    return conv


def _activation(slope: float) -> nn.Module:
    return nn.Identity() if slope == IDENTITY else nn.LeakyReLU(slope, inplace=True)
