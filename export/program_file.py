"""The serving program as a file: the one place that knows its formats, on the way out and back in.

``torchscript``  ``model.pt``: one file for any device.
``torch_aoti``   ``model.pt2``: compiled by AOTInductor, for the kind of device that it was compiled on alone.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from export.program import MappingProgram, ServingProgram
from tresnet.contract import PLATFORMS, PROGRAM_FILES
from tresnet.errors import UserError

RunProgram = Callable[[Tensor], tuple[Tensor, ...]]
"""A program that was read back: pictures in, scores and what follows them out."""


class CompilationError(UserError):
    """The program cannot be compiled on this machine; nothing was published."""


def write_torchscript(program: ServingProgram | MappingProgram, path: Path) -> None:
    """Write ``program`` to ``path`` as TorchScript.

    Freezing makes constants of the weights and drops all that only training needs.

    Raises:
        OSError: if the file cannot be written.
    """
    with warnings.catch_warnings(), torch.no_grad():
        # TorchScript is deprecated in PyTorch, and still the format that Triton's PyTorch backend serves best.
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(program)
        _write(path, torch.jit.freeze(scripted).save_to_buffer())


def write_torch_aoti(
    program: ServingProgram | MappingProgram, path: Path, image_size: int, max_batch_size: int, device: torch.device
) -> None:
    """Compile ``program`` for ``device`` and for batches of 1 to ``max_batch_size``, and write the package to ``path``.

    Raises:
        CompilationError: if the compiler is missing or refuses.
        OSError: if the package cannot be written.
    """
    package = io.BytesIO()
    program.to(device)
    pictures = torch.zeros(min(2, max_batch_size), image_size, image_size, 3, dtype=torch.uint8, device=device)
    # An example of one picture would fix the batch at one.
    sizes = {0: torch.export.Dim("batch", min=1, max=max_batch_size)} if max_batch_size > 1 else {}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # PyTorch's own, about its own insides
            exported = torch.export.export(program, (pictures,), dynamic_shapes={"INPUT__0": sizes})
            torch._inductor.aoti_compile_and_package(exported, package_path=package)
    except RuntimeError as error:  # what the compilers raise derives from it
        raise CompilationError(f"AOTInductor cannot compile the program here: {_first_line(error)}") from error
    _write(path, package.getbuffer())


def _write(path: Path, content: bytes | memoryview) -> None:
    """Torch's own writer, given a path, ends the process where the disk is full: it throws in a destructor."""
    try:
        path.write_bytes(content)
    except OSError as error:
        error.filename = str(path)  # which only opening tells by itself
        raise


def load_program(path: Path, device: torch.device) -> RunProgram:
    """The program at ``path`` on ``device``, as Triton would load it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if path.name == PROGRAM_FILES[PLATFORMS["torch_aoti"]]:
            index = torch.cuda.current_device() if device.type == "cuda" else -1
            package: RunProgram = torch._inductor.aoti_load_package(str(path), device_index=index)
            return package
        program: RunProgram = torch.jit.load(str(path), map_location=device).eval()
        return program


def _first_line(error: RuntimeError) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
