"""Which device work runs on."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tresnet.cores import usable_cores
from tresnet.errors import UserError
from tresnet.terms import Precision

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""As /proc/cpuinfo of x86 and Arm names them."""
_MOST_LOADING = 16


def choose_device(wanted: str = "auto") -> torch.device:
    """``auto`` (a GPU if there is one), ``cpu`` or ``cuda``; a GPU with its index, which parts of torch ask for.

    Raises:
        UserError: for another word, or ``cuda`` where there is none.
    """
    if wanted not in ("auto", "cpu", "cuda") or (wanted == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--device {wanted} is not to be had here: use auto or cpu")
    use_cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")


def loading_processes(device: torch.device) -> int:
    """How many processes should load pictures: none beside a CPU that is busy itself, else a core each."""
    runs_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0 if device.type == "cpu" else max(1, min(_MOST_LOADING, usable_cores() // runs_here))


def native_precision() -> Precision:
    """The fastest number format that this machine computes in itself: fp16 on a GPU, bf16 on a CPU that has it."""
    if torch.cuda.is_available():
        return "fp16"
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "fp32"
    return "bf16" if words & _BF16_FLAGS else "fp32"
