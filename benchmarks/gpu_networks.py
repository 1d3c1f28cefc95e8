"""Throughput, largest batch and memory of the networks in mixed precision, in turns.

A network is on the device only while it is measured, so each one's largest batch has all of the memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ablation import MIB, saved_bytes
from benchmarks.networks import NUM_CLASSES, Make
from benchmarks.operator_groups import time_by_group
from benchmarks.roofline import NetworkWork, Roof, count_work, shares
from benchmarks.timing import fits_in_memory, free_memory, largest_batch, median_seconds, share_of
from tresnet.model import to_batch_norm

OWN_SIZE = {"EfficientNet-B1": 240 / 224}
"""The networks that were made for another size, as a share of the one asked for."""


@dataclass(frozen=True)
class Setting:
    """What all networks are measured with."""

    device: torch.device
    dtype: torch.dtype
    image_size: int
    batch_limit: int
    """No batch is larger: 2048 pictures of 224 px keep every tensor below 2^31 elements, cuDNN's bound."""
    rounds: int
    seconds: float
    warm_up: int

    def side_of(self, name: str) -> int:
        return round(self.image_size * OWN_SIZE.get(name, 1))


@dataclass
class Figures:
    """One network's; lists are by round."""

    network: str
    image_size: int
    parameters: int
    multiply_adds: int
    bytes_moved: int
    largest_train_batch: int = 0
    largest_infer_batch: int = 0
    train_batch: int = 0
    infer_batch: int = 0
    saved_mib: float = 0.0
    """A picture's, kept by the forward pass for the backward one."""
    peak_train_mib: float | None = None
    """The most that a training step of ``train_batch`` took beside weights and optimizer, by picture; CUDA's count."""
    peak_infer_mib: float | None = None
    train_images_per_s: list[float] = field(default_factory=list)
    infer_images_per_s: list[float] = field(default_factory=list)
    infer_share: dict[str, float] = field(default_factory=dict)
    train_share_of_matrix_rate: float = 0.0
    """A training step counted as three forward passes."""


class Step:
    """One step of a network on the device: a batch in, and for training the loss, the gradients and SGD's update."""

    def __init__(self, network: nn.Module, setting: Setting, side: int, *, trains: bool) -> None:
        self._device, self._dtype, self._side = setting.device, setting.dtype, side
        self._trains = trains
        ready = network if trains else to_batch_norm(network)
        self.network = ready.to(setting.device, memory_format=torch.channels_last).train(trains)  # type: ignore[call-overload]
        self._scaler = torch.amp.GradScaler(
            setting.device.type, enabled=trains and setting.device.type == "cuda" and setting.dtype == torch.float16
        )
        self._optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
        self.pictures = self.target = torch.empty(0)

    def of(self, batch: int) -> Callable[[], None]:
        """The step on ``batch`` pictures."""
        shape = (batch, 3, self._side, self._side)
        self.pictures = torch.rand(shape, device=self._device).contiguous(memory_format=torch.channels_last)
        self.target = torch.randint(NUM_CLASSES, (batch,), device=self._device)
        return self._train if self._trains else self._infer

    def _forward(self) -> Tensor:
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits: Tensor = self.network(self.pictures)
        return logits

    def _infer(self) -> None:
        with torch.inference_mode():
            self._forward()

    def _train(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(F.cross_entropy(self._forward().float(), self.target)).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def saved_bytes_per_picture(self) -> float:
        """By the difference of two batches: autocast keeps its copies of the weights too."""
        return (self._saved_bytes(4) - self._saved_bytes(2)) / 2

    def _saved_bytes(self, batch: int) -> int:
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            return saved_bytes(self.network, torch.rand(batch, 3, self._side, self._side, device=self._device))


def measure_networks(
    makers: dict[str, Make], setting: Setting, roof: Roof, tell: Callable[[str], None]
) -> list[Figures]:
    """All figures of all networks; the timed rounds go through the networks in turn."""
    rows = {}
    for name, make in makers.items():
        tell(f"{name}: counting, and searching the largest batch")
        rows[name] = _size_up(name, make, setting)
    torch.backends.cudnn.benchmark = True  # not before: it would try every algorithm for every batch of the search
    for turn in range(setting.rounds):
        for name, make in makers.items():
            tell(f"{name}: round {turn + 1} of {setting.rounds}")
            own = rows[name]
            for trains, batch, rates in (
                (True, own.train_batch, own.train_images_per_s),
                (False, own.infer_batch, own.infer_images_per_s),
            ):
                step = Step(make(), setting, own.image_size, trains=trains)
                taken = median_seconds(step.of(batch), setting.device, seconds=setting.seconds, warm_up=setting.warm_up)
                rates.append(round(batch / taken, 2))
                del step
                free_memory()
    for own in rows.values():
        work = NetworkWork(own.multiply_adds, own.bytes_moved)
        own.infer_share = shares(work, statistics.median(own.infer_images_per_s), roof)
        three = NetworkWork(3 * own.multiply_adds, 0)
        own.train_share_of_matrix_rate = shares(three, statistics.median(own.train_images_per_s), roof)[
            "of_matrix_rate"
        ]
    return list(rows.values())


def profile_networks(makers: dict[str, Make], rows: list[Figures], setting: Setting) -> list[dict[str, Any]]:
    """Milliseconds a picture by group of layers, in training and in inference, at the timed batches."""
    sizes = {own.network: own for own in rows}
    found = []
    for name, make in makers.items():
        for trains in (False, True):
            own = sizes[name]
            batch = own.train_batch if trains else own.infer_batch
            step = Step(make(), setting, own.image_size, trains=trains)
            spent = time_by_group(step.network, step.of(batch), setting.device, runs=3)
            whole = sum(spent.values())
            found.append(
                {
                    "network": name,
                    "what": "training" if trains else "inference",
                    "batch": batch,
                    "groups": [
                        {"group": group, "ms_per_image": round(1e3 * s / batch, 5), "share": round(s / whole, 4)}
                        for group, s in spent.items()
                    ],
                }
            )
            del step
            free_memory()
    return found


def _size_up(name: str, make: Make, setting: Setting) -> Figures:
    side = setting.side_of(name)
    work = count_work(to_batch_norm(make()), side, setting.dtype)
    own = Figures(name, side, 0, work.multiply_adds, work.bytes_moved)
    _size_up_training(own, make, setting)
    free_memory()
    _size_up_inference(own, make, setting)
    free_memory()
    return own


def _size_up_training(own: Figures, make: Make, setting: Setting) -> None:
    step = Step(make(), setting, own.image_size, trains=True)
    own.parameters = sum(parameter.numel() for parameter in step.network.parameters())
    own.saved_mib = round(step.saved_bytes_per_picture() / MIB, 2)
    # One picture may be taken to fit: of 32 px, it would leave the last norms one value a channel, too few to train.
    own.largest_train_batch = largest_batch(lambda n: n < 2 or _fits(step, n), setting.batch_limit)
    own.train_batch = max(2, share_of(own.largest_train_batch))
    own.peak_train_mib = _peak_mib_per_picture(step, own.train_batch, setting.device)


def _size_up_inference(own: Figures, make: Make, setting: Setting) -> None:
    step = Step(make(), setting, own.image_size, trains=False)
    own.largest_infer_batch = largest_batch(lambda n: _fits(step, n), setting.batch_limit)
    own.infer_batch = share_of(own.largest_infer_batch)
    own.peak_infer_mib = _peak_mib_per_picture(step, own.infer_batch, setting.device)


def _fits(step: Step, batch: int) -> bool:
    def run() -> None:
        step.of(batch)()

    fits = fits_in_memory(run)
    step.pictures = step.target = torch.empty(0)
    return fits


def _peak_mib_per_picture(step: Step, batch: int, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    run = step.of(batch)
    run()  # the optimizer's state is there from now on
    step.network.zero_grad(set_to_none=True)
    free_memory()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / batch / MIB, 2)


def as_plain(rows: list[Figures]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(own) for own in rows]
