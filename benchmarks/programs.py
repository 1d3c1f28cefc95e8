"""The serving program in every form that could be served: its speed, and how far its scores are off.

The reference is the eager program in float32 on a CPU. One network, one kind of input (``uint8`` pictures on the
device), forms in turns; what cannot be built here says why.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.progress import Progress
from benchmarks.timing import median_seconds
from export.program import DTYPES, Normalisation, ServingProgram
from export.program_file import RunProgram, load_program, write_torch_aoti, write_torchscript
from export.verify import noise_pictures, top1_agreement
from tresnet.model import TResNet, fold_norms, to_batch_norm
from tresnet.terms import Precision

EAGER = "eager"
"""The network as it was trained; all other forms are made of what export writes."""
REFERENCE = f"{EAGER} fp32"
_AGREEMENT_BATCHES = 8


@dataclass(frozen=True)
class Form:
    """A way to run the program; ``build`` makes it from an eager program of the precision, on the device."""

    name: str
    build: Callable[[ServingProgram, Tensor], RunProgram]


@dataclass
class FormFigures:
    """What a form does; ``failed`` says why it could not be measured."""

    form: str
    images_per_s: float | None = None
    build_s: float | None = None
    max_score_distance: float | None = None
    top1_agreement: float | None = None
    failed: str | None = None


def forms() -> dict[str, Form]:
    """By name, from the plainest."""
    known = (
        Form(EAGER, lambda program, _: program),
        Form("torchscript", lambda program, _: _script(program)),
        Form("frozen", _exported),
        Form("optimize_for_inference", lambda program, _: _quietly(torch.jit.optimize_for_inference, _script(program))),
        Form("torch.compile", _compiled),
        Form("AOTInductor", _aoti),
        Form("CUDA graph of frozen", _cuda_graph),
    )
    return {form.name: form for form in known}


def measure_programs(
    network: TResNet,
    *,
    wanted: list[tuple[Form, Precision]],
    image_size: int,
    batch_size: int,
    rounds: int,
    seconds: float,
    device: torch.device,
    found: list[FormFigures],
    progress: Progress,
) -> None:
    """Every wanted form, into ``found``, in turns; ``network`` is left as it is.

    A form's first turn begins with building it. One that fails says why, and has no further.
    """
    pictures = noise_pictures(batch_size, image_size).to(device)
    checked = [noise_pictures(batch_size + index, image_size)[:batch_size] for index in range(_AGREEMENT_BATCHES)]
    expected = torch.empty(0)
    if not progress.is_over():
        progress.tell("the reference: float32 on the CPU")
        reference = _program(network, "fp32", torch.device("cpu"))  # a GPU's float32 is TF32 inside
        with torch.inference_mode():
            expected = torch.cat([reference(batch)[0] for batch in checked])
    built: dict[str, RunProgram] = {}
    taken: dict[str, list[float]] = {}

    def turn_of(own: FormFigures, form: Form, precision: Precision) -> None:
        if own.form not in built:
            built[own.form], own.build_s = _build(
                form, _program(network, precision, device, folds=form.name != EAGER), pictures
            )
        run, times = built[own.form], taken.setdefault(own.form, [])
        with torch.inference_mode():
            if not times:
                got = torch.cat([run(batch.to(device))[0].float().cpu() for batch in checked])
                own.max_score_distance = round((got - expected).abs().max().item(), 7)
                own.top1_agreement = round(top1_agreement(expected, got, 0.0)[0], 5)
            times.append(median_seconds(lambda: run(pictures), device, seconds=seconds))
        own.images_per_s = round(batch_size / statistics.median(times), 2)

    found += [FormFigures(f"{form.name} {precision}") for form, precision in wanted]
    for turn in range(rounds):
        for own, (form, precision) in zip(found, wanted, strict=True):
            if own.failed is None and not (turn > 0 and progress.is_over()):
                name = f"{own.form}: round {turn + 1} of {rounds}"
                own.failed = progress.attempt(name, partial(turn_of, own, form, precision))
                if own.failed is not None:
                    built.pop(own.form, None)
                progress.keep()


def _program(network: TResNet, precision: Precision, device: torch.device, *, folds: bool = False) -> ServingProgram:
    own = (fold_norms if folds else to_batch_norm)(copy.deepcopy(network))
    program = ServingProgram(own, "classify", Normalisation(), 1.0, DTYPES[precision]).eval().to(device)
    return program.requires_grad_(False)


def _build(form: Form, program: ServingProgram, pictures: Tensor) -> tuple[RunProgram, float]:
    """The form, and the seconds until it has answered for the first time."""
    started = time.perf_counter()
    run = form.build(program, pictures)
    with torch.inference_mode():
        run(pictures)[0].cpu()
    return run, round(time.perf_counter() - started, 2)


def _script(program: ServingProgram) -> Any:
    return _quietly(torch.jit.script, program)


def _quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript's deprecation, and the compilers' own
        return call(*arguments)


def _exported(program: ServingProgram, pictures: Tensor) -> RunProgram:
    """What ``tresnet export`` writes, read back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        write_torchscript(program, path)
        return load_program(path, pictures.device)


def _compiled(program: ServingProgram, _: Tensor) -> RunProgram:
    compiled: RunProgram = torch.compile(program)
    return lambda pictures: _quietly(compiled, pictures)


def _aoti(program: ServingProgram, pictures: Tensor) -> RunProgram:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        batch_size, image_size = pictures.shape[:2]
        write_torch_aoti(program, path, image_size, batch_size, pictures.device)
        return load_program(path, pictures.device)


def _cuda_graph(program: ServingProgram, pictures: Tensor) -> RunProgram:
    """The frozen program's kernels, recorded once and replayed as one launch: for batches of this very size."""
    if pictures.device.type != "cuda":
        raise NotImplementedError("CUDA graphs need CUDA")
    run, held = _exported(program, pictures), pictures.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(3):
            run(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        results = run(held)

    def replay(batch: Tensor) -> tuple[Tensor, ...]:
        held.copy_(batch)
        graph.replay()
        return results

    return replay
