"""What each of the paper's refinements costs and brings: size, speed and memory of TResNet-M without it.

Ridnik et al., WACV 2021, section 4.2, compares the same switches by accuracy too, which takes weeks of GPU time.
Speeds are taken in rounds, every network once in each, so that a machine's moods meet all of them; the median counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import ablation_networks, chosen
from benchmarks.timing import seconds_of
from tresnet.inplace_abn import resolve_norm
from tresnet.model import to_batch_norm

MIB = 2**20


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
    makers = chosen(ablation_networks(resolve_norm("auto", device)), names)
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

    return seconds_of(step, x.device)


def _time_inference(model: nn.Module, x: Tensor) -> float:
    with torch.inference_mode():
        return seconds_of(lambda: model(x), x.device)
