"""Where a network's time goes: by what its layers are for, in inference and in training.

``torch.profiler`` names kernels and operators, and a convolution may be a blur or a part of squeeze-and-excite. So
every layer marks its calls, and an operator counts for the outermost layer that it runs in; a backward operator, for
the forward one that it belongs to. A mark is what an operator is to the profiler, as ``record_function``'s is not: a
kernel that is launched outside of any, as the Triton language does, is the mark's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._C._profiler import _RecordFunctionFast
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Work
from tresnet.inplace_abn import BatchNormAct, InPlaceABN
from tresnet.layers import BlurPool, FastGlobalPool, SpaceToDepth, SqueezeExcite, StockGlobalPool

_MARK = "layer: "
_REST = "elementwise and the rest"
_OPTIMIZER = "optimizer and loss"
_BACKWARD = "autograd::engine::evaluate_function"
_POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, FastGlobalPool, StockGlobalPool)


def group_of(module: nn.Module) -> str | None:
    """What ``module`` is for, if it is a layer that is looked at by itself."""
    groups: list[tuple[str, Callable[[nn.Module], bool]]] = [
        ("squeeze-and-excite", lambda m: isinstance(m, SqueezeExcite) or type(m).__name__ == "SEModule"),
        ("blur", lambda m: isinstance(m, BlurPool)),
        ("space to depth", lambda m: isinstance(m, SpaceToDepth)),
        ("norm and activation", lambda m: isinstance(m, InPlaceABN | BatchNormAct | nn.BatchNorm2d)
            or "InPlaceABN" in type(m).__name__),
        ("pooling", lambda m: isinstance(m, _POOLS)),
        ("convolution", lambda m: isinstance(m, nn.Conv2d)),
        ("head", lambda m: isinstance(m, nn.Linear)),
    ]  # fmt: skip
    return next((name for name, is_it in groups if is_it(module)), None)


def time_by_group(network: nn.Module, work: Work, device: torch.device, *, runs: int) -> dict[str, float]:
    """Seconds of one run of ``work``, which runs ``network``, by group; the largest first."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with _marked(network):
        work()
        with profile(activities=activities) as profiled:
            for _ in range(runs):
                work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    events = list(profiled.events())
    forward = {
        event.sequence_nr: group
        for event in events
        if event.sequence_nr >= 0 and not _is_backward(event) and (group := _marked_group(event)) is not None
    }
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        if event.device_type.name != "CPU":
            continue  # a kernel: its time is that of the operator that started it
        if device.type == "cuda":
            microseconds = event.self_device_time_total
        else:  # a mark's own is Python's
            microseconds = 0.0 if event.name.startswith(_MARK) else event.self_cpu_time_total
        if microseconds > 0:
            spent[_group(event, forward)] += microseconds / 1e6 / runs
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def _group(event: Any, forward: dict[int, str]) -> str:
    for parent in _upwards(event):
        if parent.name.startswith(_BACKWARD):
            return forward.get(parent.sequence_nr, _REST)
        if parent.name.startswith("Optimizer."):
            return _OPTIMIZER
    return _marked_group(event) or _REST


def _marked_group(event: Any) -> str | None:
    marks = [parent.name.removeprefix(_MARK) for parent in _upwards(event) if parent.name.startswith(_MARK)]
    return marks[-1] if marks else None


def _is_backward(event: Any) -> bool:
    return any(parent.name.startswith(_BACKWARD) for parent in _upwards(event))


def _upwards(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


@contextmanager
def _marked(network: nn.Module) -> Iterator[None]:
    hooks = []
    for module in network.modules():
        group = group_of(module)
        if group is None:
            continue
        marks: list[_RecordFunctionFast] = []

        def begin(*_: Any, marks: list[_RecordFunctionFast] = marks, group: str = group) -> None:
            marks.append(_RecordFunctionFast(_MARK + group))
            marks[-1].__enter__()

        def end(*_: Any, marks: list[_RecordFunctionFast] = marks) -> None:
            marks.pop().__exit__(None, None, None)

        hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
