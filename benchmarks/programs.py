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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import free_memory, median_seconds
from export.program import DTYPES, Normalisation, ServingProgram
from export.program_file import RunProgram, load_program, write_torch_aoti, write_torchscript
from export.verify import noise_pictures, top1_agreement
from tresnet.model import TResNet, to_batch_norm
from tresnet.terms import Precision

REFERENCE = "eager fp32"
_AGREEMENT_BATCHES = 8
_TELL = Callable[[str], None]


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
        Form("eager", lambda program, _: program),
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
    names: list[str],
    precisions: list[Precision],
    image_size: int,
    batch_size: int,
    rounds: int,
    seconds: float,
    device: torch.device,
    tell: _TELL,
) -> list[dict[str, Any]]:
    """Every form in every precision, in turns; ``network`` is left as it is.

    Raises:
        KeyError: for an unknown form.
    """
    wanted = [(forms()[name], precision) for name in names for precision in precisions]
    pictures = noise_pictures(batch_size, image_size).to(device)
    reference = _program(network, "fp32", torch.device("cpu"))  # a GPU's float32 is TF32 inside
    checked = [noise_pictures(batch_size + index, image_size)[:batch_size] for index in range(_AGREEMENT_BATCHES)]
    with torch.inference_mode():
        expected = torch.cat([reference(batch)[0] for batch in checked])
    built: dict[str, RunProgram] = {}
    figures: dict[str, FormFigures] = {}
    for form, precision in wanted:
        name = f"{form.name} {precision}"
        tell(f"{name}: building")
        own = figures[name] = FormFigures(name)
        try:
            run, own.build_s = _build(form, _program(network, precision, device), pictures)
            with torch.inference_mode():
                got = torch.cat([run(batch.to(device))[0].float().cpu() for batch in checked])
        except (
            RuntimeError,
            NotImplementedError,
        ) as error:  # not for this device, dtype or compiler: part of the result
            own.failed = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            continue
        own.max_score_distance = round((got - expected).abs().max().item(), 7)
        own.top1_agreement = round(top1_agreement(expected, got, 0.0)[0], 5)
        built[name] = run
        free_memory()
    taken: dict[str, list[float]] = {name: [] for name in built}
    for turn in range(rounds):
        for name, run in built.items():
            tell(f"{name}: round {turn + 1} of {rounds}")
            with torch.inference_mode():
                taken[name].append(median_seconds(lambda run=run: run(pictures), device, seconds=seconds))  # type: ignore[misc]
    for name, times in taken.items():
        figures[name].images_per_s = round(batch_size / statistics.median(times), 2)
    return [asdict(own) for own in figures.values()]


def _program(network: TResNet, precision: Precision, device: torch.device) -> ServingProgram:
    own = to_batch_norm(copy.deepcopy(network))
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


def failed(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each form that could not be measured."""
    return (f"{row['form']}: {row['failed']}" for row in rows if row["failed"])
