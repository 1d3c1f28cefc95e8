"""Throughput, largest batch and memory of the networks in mixed precision, in turns.

A network is on the device only while it is measured, so each one's largest batch has all of the memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ablation import MIB, saved_bytes
from benchmarks.networks import NUM_CLASSES, Make
from benchmarks.operator_groups import time_by_group
from benchmarks.progress import Progress
from benchmarks.roofline import NetworkWork, Roof, count_work, shares
from benchmarks.timing import fits_in_memory, free_memory, is_too_large, largest_batch, median_seconds, share_of
from tresnet.inplace_abn import is_package_layer
from tresnet.model import to_batch_norm

OWN_SIZE = {"EfficientNet-B1": 240 / 224}
"""The networks that were made for another size, as a share of the one asked for."""
Measured = TypeVar("Measured")
_MOST_ELEMENTS = 2**31 - 1
"""Of one tensor: beyond, operators split their work, take slower kernels, or refuse."""


@dataclass(frozen=True)
class Setting:
    """What all networks are measured with."""

    device: torch.device
    dtype: torch.dtype
    image_size: int
    batch_limit: int
    """No batch is larger."""
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
    parameters: int = 0
    multiply_adds: int = 0
    bytes_moved: int = 0
    batch_limit: int = 0
    """That of the setting, or what keeps the largest tensor below 2^31 elements."""
    largest_train_batch: int = 0
    largest_infer_batch: int = 0
    limited: bool = False
    """Whether the limit, and not memory, ended the search of the largest training batch: that figure is none then."""
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
    failed: str | None = None
    """Why it was not measured, or not to the end."""


class Step:
    """One step of a network on the device: a batch in, and for training the loss, the gradients and SGD's update."""

    def __init__(self, network: nn.Module, setting: Setting, side: int, *, trains: bool) -> None:
        self._device, self._dtype, self._side = setting.device, setting.dtype, side
        self._trains = trains
        ready = network if trains else to_batch_norm(network)
        # The package's kernels read planes; all else runs fastest channels last.
        reads_planes = any(is_package_layer(module) for module in ready.modules())
        self._memory_format = torch.contiguous_format if reads_planes else torch.channels_last
        self.network = ready.to(setting.device, memory_format=self._memory_format).train(trains)  # type: ignore[call-overload]
        self._scaler = torch.amp.GradScaler(
            setting.device.type, enabled=trains and setting.device.type == "cuda" and setting.dtype == torch.float16
        )
        self._optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
        self.pictures = self.target = torch.empty(0)

    def of(self, batch: int) -> Callable[[], None]:
        """The step on ``batch`` pictures."""
        shape = (batch, 3, self._side, self._side)
        self.pictures = torch.rand(shape, device=self._device).contiguous(memory_format=self._memory_format)
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
    makers: dict[str, Make], setting: Setting, roof: Roof, rows: list[Figures], progress: Progress
) -> None:
    """All figures of all networks, into ``rows``; the timed rounds go through the networks in turn.

    A network's first turn begins with the search of its largest batch. One that fails says why, and has no further.
    """
    rows += [Figures(name, setting.side_of(name)) for name in makers]
    for turn in range(setting.rounds):
        for own, make in zip(rows, makers.values(), strict=True):
            if own.failed is None and not (turn > 0 and progress.is_over()):
                name = f"{own.network}: round {turn + 1} of {setting.rounds}"
                own.failed = progress.attempt(name, partial(_turn, own, make, setting, roof, turn))
                progress.keep()


def _turn(own: Figures, make: Make, setting: Setting, roof: Roof, turn: int) -> None:
    if turn == 0:
        _size_up(own, make, setting)
    of_inference = partial(_timed, make, setting, own.image_size, trains=False)
    own.infer_batch, (rate, own.peak_infer_mib) = with_room(own.infer_batch, of_inference)
    own.infer_images_per_s.append(rate)
    of_training = partial(_timed, make, setting, own.image_size, trains=True)
    own.train_batch, (rate, own.peak_train_mib) = with_room(own.train_batch, of_training)
    own.train_images_per_s.append(rate)
    work = NetworkWork(own.multiply_adds, own.bytes_moved)
    own.infer_share = shares(work, statistics.median(own.infer_images_per_s), roof)
    three = NetworkWork(3 * own.multiply_adds, 0)
    train = shares(three, statistics.median(own.train_images_per_s), roof)
    own.train_share_of_matrix_rate = train["of_matrix_rate"]


def with_room(batch: int, measure: Callable[[int], Measured]) -> tuple[int, Measured]:
    """The batch, smaller than asked where cuDNN's fastest algorithms need room, and what ``measure`` makes of it."""
    while True:
        free_memory()
        try:
            return batch, measure(batch)
        except RuntimeError as error:
            if not is_too_large(error) or batch == (batch := share_of(batch)):
                raise


def _timed(make: Make, setting: Setting, side: int, batch: int, *, trains: bool) -> tuple[float, float | None]:
    """Pictures a second, and the peak of memory."""
    step = Step(make(), setting, side, trains=trains)
    with _fastest_algorithms():
        taken = median_seconds(step.of(batch), setting.device, seconds=setting.seconds, warm_up=setting.warm_up)
        return round(batch / taken, 2), _peak_mib_per_picture(step, batch, setting.device)


@contextmanager
def _fastest_algorithms() -> Iterator[None]:
    """CuDNN tries its algorithms for each shape: not in the search of the largest batch, where every shape is new.

    It does so where a shape is first met: one that has run outside keeps the algorithm that was guessed there.
    """
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False  # as where the program serves


def profile_networks(
    makers: dict[str, Make], rows: list[Figures], setting: Setting, found: list[dict[str, Any]], progress: Progress
) -> None:
    """Milliseconds a picture by group of layers, in inference and in training, at the timed batches, into ``found``."""
    sizes = {own.network: own for own in rows}
    for name, make in makers.items():
        for trains in (False, True):
            what, own = "training" if trains else "inference", sizes[name]
            batch = own.train_batch if trains else own.infer_batch
            entry: dict[str, Any] = {"network": name, "what": what, "batch": batch, "groups": []}
            step = partial(_profile, make, setting, own.image_size, entry, trains=trains)
            entry["failed"] = own.failed or progress.attempt(f"{name}: profile of {what}", step)
            found.append(entry)
            progress.keep()


def _profile(make: Make, setting: Setting, side: int, entry: dict[str, Any], *, trains: bool) -> None:
    def measure(batch: int) -> dict[str, float]:
        step = Step(make(), setting, side, trains=trains)
        with _fastest_algorithms():
            return time_by_group(step.network, step.of(batch), setting.device, runs=3)

    entry["batch"], spent = with_room(entry["batch"], measure)
    whole = sum(spent.values())
    entry["groups"] = [
        {"group": group, "ms_per_image": round(1e3 * s / entry["batch"], 5), "share": round(s / whole, 4)}
        for group, s in spent.items()
    ]


def _size_up(own: Figures, make: Make, setting: Setting) -> None:
    work = count_work(to_batch_norm(make()), own.image_size, setting.dtype)
    own.multiply_adds, own.bytes_moved = work.multiply_adds, work.bytes_moved
    own.batch_limit = min(setting.batch_limit, _MOST_ELEMENTS // work.largest_tensor)
    _size_up_training(own, make, setting)
    free_memory()
    _size_up_inference(own, make, setting)
    free_memory()


def _size_up_training(own: Figures, make: Make, setting: Setting) -> None:
    step = Step(make(), setting, own.image_size, trains=True)
    own.parameters = sum(parameter.numel() for parameter in step.network.parameters())
    own.saved_mib = round(step.saved_bytes_per_picture() / MIB, 2)
    # One picture may be taken to fit: of 32 px, it would leave the last norms one value a channel, too few to train.
    own.largest_train_batch = largest_batch(lambda n: n < 2 or _fits(step, n), own.batch_limit)
    own.limited = own.largest_train_batch == own.batch_limit
    own.train_batch = max(2, share_of(own.largest_train_batch))


def _size_up_inference(own: Figures, make: Make, setting: Setting) -> None:
    step = Step(make(), setting, own.image_size, trains=False)
    own.largest_infer_batch = largest_batch(lambda n: _fits(step, n), own.batch_limit)
    own.infer_batch = share_of(own.largest_infer_batch)


def _fits(step: Step, batch: int) -> bool:
    def run() -> None:
        step.of(batch)()

    fits = fits_in_memory(run)
    step.pictures = step.target = torch.empty(0)
    return fits


def _peak_mib_per_picture(step: Step, batch: int, device: torch.device) -> float | None:
    """Of a step that has run before, so that the optimizer's state is there."""
    if device.type != "cuda":
        return None
    run = step.of(batch)
    step.network.zero_grad(set_to_none=True)
    free_memory()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / batch / MIB, 2)
