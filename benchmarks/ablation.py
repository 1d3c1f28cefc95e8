"""What each of the paper's refinements costs and brings: size, speed and memory of TResNet-M without it.

Ridnik et al., WACV 2021, section 4.2, compares the same switches by accuracy too, which takes weeks of GPU time.
Speeds are taken in rounds, every network once in each, so that a machine's moods meet all of them; the median counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timm_models import timm_model
from tresnet.heads import linear_head
from tresnet.inplace_abn import Norm, resolve_norm
from tresnet.model import VARIANTS, TResNet, Variant, to_batch_norm

MIB = 2**20
NUM_CLASSES = 1000
_M = VARIANTS["tresnet_m"]
_BOTTLENECKS: Any = ("bottleneck",) * 4
TIMM = {
    "ResNet50": "resnet50",
    "ResNet50-D": "resnet50d",
    "ResNeXt50": "resnext50_32x4d",
    "SEResNeXt50": "seresnext50_32x4d",
    "EfficientNet-B1": "efficientnet_b1",
    "MixNet-L": "mixnet_l",
}


@dataclass(frozen=True)
class Row:
    """One network's figures."""

    network: str
    parameters: int
    multiply_adds: int
    saved_mib: float
    """What one picture's forward pass keeps for the backward pass, in MiB."""
    largest_batch: int
    """Pictures in one training step that fit into the memory asked for, weights and AdamW's state included."""
    train_images_per_s: float
    infer_images_per_s: float


def networks(norm: Norm, names: list[str] | None = None) -> dict[str, Callable[[], nn.Module]]:
    """Makers of the networks compared, by name; ``names`` picks some.

    Raises:
        KeyError: for a name that is none of them.
    """

    def ours(variant: Variant, norm: Norm = norm) -> Callable[[], nn.Module]:
        return lambda: TResNet(variant, linear_head(variant.num_features, NUM_CLASSES), norm)

    makers: dict[str, Callable[[], nn.Module]] = {
        "TResNet-M": ours(_M),
        "stem conv7x7": ours(replace(_M, stem="conv7x7")),
        "stem ResNet-D": ours(replace(_M, stem="resnet_d")),
        "without blur": ours(replace(_M, blur=False)),
        "without SE": ours(replace(_M, squeeze_excite=False)),
        "bottlenecks only": ours(replace(_M, blocks=_BOTTLENECKS)),
        "batch norm": ours(_M, "bn"),
        "stock pooling": ours(replace(_M, fast_pool=False)),
        "none of them": ours(
            Variant((3, 4, 6, 3), _BOTTLENECKS, 64, stem="conv7x7", blur=False, squeeze_excite=False, fast_pool=False),
            "bn",
        ),
    }
    makers |= {label: lambda name=name: timm_model(name) for label, name in TIMM.items()}  # type: ignore[misc]
    return makers if names is None else {name: makers[name] for name in names}


def run_ablation(
    *,
    names: list[str] | None = None,
    image_size: int = 224,
    batch_size: int = 4,
    rounds: int = 3,
    memory_gib: float = 16.0,
    device: torch.device,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Measure the networks; ``tell`` hears what is under way.

    Raises:
        KeyError: for an unknown name.
        ImportError: if timm is not installed and one of its networks is asked for.
    """
    makers = networks(resolve_norm("auto", device), names)
    x = torch.rand(batch_size, 3, image_size, image_size, device=device)
    trained, served, facts = {}, {}, {}
    for name, make in makers.items():
        tell(f"{name}: counting")
        facts[name] = _count(make, image_size)
        trained[name] = make().to(device)
        served[name] = to_batch_norm(make()).to(device).eval()
    train_s: dict[str, list[float]] = {name: [] for name in makers}
    infer_s: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(rounds + 1):  # the first warms up
        for name in makers:
            tell(f"{name}: round {turn} of {rounds}")
            seconds = _time_training(trained[name], x), _time_inference(served[name], x)
            if turn > 0:
                train_s[name].append(seconds[0])
                infer_s[name].append(seconds[1])
    rows = []
    for name, (parameters, multiply_adds, saved) in facts.items():
        left = memory_gib * 1024 * MIB - 16 * parameters  # weights, gradients, and AdamW's two moments
        rows.append(
            Row(
                name,
                parameters,
                multiply_adds,
                round(saved / MIB, 1),
                max(0, int(left // saved)),
                round(batch_size / statistics.median(train_s[name]), 2),
                round(batch_size / statistics.median(infer_s[name]), 2),
            )
        )
    return rows


def as_plain(rows: list[Row]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(row) for row in rows]


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """What a training forward pass of ``x`` keeps for the backward pass, beside parameters, buffers and ``x`` itself.

    Tensors that share memory count once.
    """
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), x]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor  # held, so that no later tensor takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.train()(x)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


def _count(make: Callable[[], nn.Module], image_size: int) -> tuple[int, int, float]:
    """Parameters, multiply-adds of one picture, and bytes saved for one (in float32, as half of a batch of two)."""
    model = make()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.rand(1, 3, image_size, image_size))
    saved = saved_bytes(model, torch.rand(2, 3, image_size, image_size)) / 2
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, saved


def _time_training(model: nn.Module, x: Tensor) -> float:
    model.train()
    target = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), target).backward()

    return _seconds(step, x.device)


def _time_inference(model: nn.Module, x: Tensor) -> float:
    with torch.inference_mode():
        return _seconds(lambda: model(x), x.device)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
